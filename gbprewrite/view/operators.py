"""Operators by what they do: one place for the lists that several stages ask."""

# Operators whose output carries no gradient: piecewise constant, of integer or Boolean type, or independent of values.
NO_GRADIENT = frozenset(
    (
        *("And", "Not", "Or", "Xor", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
        *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsInf", "IsNaN", "NonZero", "Unique"),
        *("ArgMax", "ArgMin", "Hardmax", "NonMaxSuppression", "OneHot", "Shape", "Size"),
        *("BitCast", "Ceil", "Floor", "Round", "Sign"),
        *("Constant", "ConstantOfShape", "EyeLike", "Range", "ImageDecoder", "MelWeightMatrix"),
        *("BlackmanWindow", "HammingWindow", "HannWindow"),
        *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    )
)
RECTIFIERS = ("Relu", "Clip", "ThresholdedRelu")
ACTIVATIONS = (
    *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid", "Softplus"),
    *("Softsign", "Swish", "Tanh"),
)
GATES = ("HardSigmoid", "Sigmoid", "Tanh")
OTHERS = ("Abs", "Hardmax", "LogSoftmax", "Max", "Min", "Softmax", "Where")  # never activations in this sense
MOVES = (
    *("Cast", "Expand", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)
POOLS = (
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxRoiPool"),
    "MaxUnpool",
)

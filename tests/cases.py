"""Operator cases: one line for each, read by test_operators.py.

An operand is a float array (an input of the model, differentiated), an integer or Boolean array (an initializer), None
(left out), or `constant(array)` (a float initializer). Values keep away from kinks: finite differences see a slope only
where there is one.
"""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Constant(NamedTuple):
    """A float operand that is an initializer."""

    value: Array


class Case(NamedTuple):
    """One node; `opset` is the source's, `outputs` how many it has, `static` the reason against symbolic shapes."""

    name: str
    operator: str
    operands: tuple[Any, ...]
    attributes: dict[str, Any]
    opset: int
    outputs: int
    static: str


def _rng(shape: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng([len(shape), *shape])


def normal(*shape: int) -> Array:
    """Normal values at least 0.1 away from zero."""
    values = _rng(shape).normal(size=shape)
    return values + 0.1 * np.sign(values)


def positive(*shape: int) -> Array:
    """Values between 0.5 and 2."""
    return _rng(shape).uniform(0.5, 2, shape)


def unit(*shape: int) -> Array:
    """Values between -0.9 and 0.9, away from zero."""
    return _rng(shape).uniform(0.1, 0.9, shape) * _rng((*shape, 1)).choice([-1, 1], shape)


def distinct(*shape: int) -> Array:
    """A permutation of equidistant values: no two of them tie."""
    count = int(np.prod(shape))
    return (_rng(shape).permutation(count) / 4 - count / 8 + 0.06).reshape(shape)


def ints(*values: Any) -> Array:
    """An int64 operand."""
    return np.array(values, np.int64)


def constant(value: Array) -> Constant:
    """A float operand that is not differentiated."""
    return Constant(value)


CASES: list[Case] = []


def case(operator: str, *operands: Any, opset: int = 18, outputs: int = 1, static: str = "", **attributes: Any) -> None:
    """Add a line to the table."""
    shapes = ",".join("×".join(map(str, np.shape(getattr(o, "value", o)))) if o is not None else "-" for o in operands)
    options = ",".join(f"{k}={v}" for k, v in attributes.items())
    name = f"{operator}-{opset}({shapes}{';' if options else ''}{options})".replace(" ", "")
    CASES.append(Case(name, operator, operands, attributes, opset, outputs, static))


# Elementwise
for _name in ("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Softsign", "Relu", "Identity"):
    case(_name, normal(2, 3, 4))
for _name in ("Log", "Sqrt", "Reciprocal"):
    case(_name, positive(2, 3, 4))
for _name in ("Add", "Sub", "Mul", "Div"):
    for _a, _b in (((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((4,), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((2, 3), ())):
        case(_name, normal(*_a), normal(*_b))
case("Pow", positive(2, 3, 4), normal(3, 1))
case("Pow", normal(2, 3, 4), constant(np.array(2.0)))
case("Pow", normal(2, 3, 4), ints(3))
case("Max", distinct(2, 3, 4), distinct(3, 1) * 0.9)
case("Min", distinct(2, 3, 4), distinct(3, 1) * 0.9, distinct(4) * 0.8)
case("Max", distinct(2, 3, 4))
case("Sum", normal(2, 3, 4), normal(3, 1), normal(1, 1, 4))
case("Mean", normal(2, 3, 4), normal(3, 1), normal(4))
case("Where", np.array([[True], [False], [True]]), normal(2, 3, 4), normal(3, 1))
case("Where", np.array([True, False, True, True]), normal(3, 1), normal(2, 1, 4))
case("Cast", normal(2, 3), to=11)
case("Dropout", normal(2, 3, 4))
# Activations
case("LeakyRelu", normal(2, 3, 4), alpha=0.2)
case("PRelu", normal(2, 3, 4), positive(3, 1))
case("PRelu", normal(2, 3, 4), positive(1))
case("Elu", normal(2, 3, 4), alpha=1.3)
case("Celu", normal(2, 3, 4), alpha=1.3)
case("Selu", normal(2, 3, 4))
case("Selu", normal(2, 3, 4), alpha=1.5, gamma=1.2)
case("ThresholdedRelu", normal(2, 3, 4), alpha=0.07)
case("Clip", normal(2, 3, 4), constant(np.array(-0.73)), constant(np.array(0.71)))
case("Clip", normal(2, 3, 4), constant(np.array(0.0)))
case("Clip", normal(2, 3, 4), None, constant(np.array(0.31)))
case("HardSigmoid", normal(2, 3, 4))
case("HardSigmoid", normal(2, 3, 4), alpha=0.9, beta=0.3)
case("HardSwish", 3 * normal(2, 3, 4))
case("Mish", normal(2, 3, 4))
case("Gelu", normal(2, 3, 4), opset=20)
case("Gelu", normal(2, 3, 4), opset=20, approximate="tanh")
for _name in ("Softmax", "LogSoftmax"):
    case(_name, normal(2, 3, 4))
    case(_name, normal(2, 3, 4), axis=1)
    case(_name, normal(2, 3, 4), axis=1, opset=11)
    case(_name, normal(2, 3, 4), axis=0, opset=9)
# Convolutions
case("Conv", normal(2, 3, 9), normal(4, 3, 3), normal(4), strides=[2], pads=[1, 2])
case("Conv", normal(2, 3, 7, 6), normal(4, 3, 3, 2), normal(4))
case("Conv", normal(2, 3, 7, 6), normal(4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
case("Conv", normal(1, 3, 8, 8), normal(4, 3, 3, 3), strides=[3, 2], pads=[0, 1, 2, 0])
case("Conv", normal(2, 3, 7, 8), normal(4, 3, 2, 2), dilations=[2, 3], pads=[1, 1, 1, 1])
case("Conv", normal(1, 4, 6, 6), normal(6, 2, 3, 3), normal(6), group=2, pads=[1, 1, 1, 1])
case("Conv", normal(1, 4, 6, 6), normal(4, 1, 3, 3), group=4, strides=[2, 2], pads=[1, 1, 1, 1])
case("Conv", normal(1, 2, 7, 8), normal(3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 3])
case("Conv", normal(1, 2, 7, 8), normal(3, 2, 4, 4), auto_pad="SAME_LOWER", strides=[2, 2])
case("Conv", normal(1, 2, 7, 8), normal(3, 2, 4, 3), auto_pad="VALID", strides=[2, 2])
case("Conv", normal(1, 2, 8, 8), normal(3, 2, 1, 1), strides=[3, 3])
case("Conv", normal(1, 2, 4, 5, 4), normal(3, 2, 2, 3, 2), normal(3), strides=[1, 2, 2], pads=[0, 1, 0, 1, 1, 1])
case("ConvTranspose", normal(2, 3, 5), normal(3, 2, 3), normal(2), strides=[2])
case("ConvTranspose", normal(1, 3, 4, 3), normal(3, 2, 3, 3), strides=[2, 3], pads=[1, 0, 1, 2])
case("ConvTranspose", normal(1, 3, 4, 3), normal(3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1])
case("ConvTranspose", normal(1, 4, 4, 3), normal(4, 1, 3, 3), group=2, dilations=[2, 1])
case("ConvTranspose", normal(1, 3, 4, 3), normal(3, 2, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
for _pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
    case(
        *("ConvTranspose", normal(1, 3, 4, 3), normal(3, 2, 3, 3)),
        **{"output_shape": [8, 6], "strides": [2, 2], "auto_pad": _pad},
    )
case("ConvTranspose", normal(1, 3, 4, 3), normal(3, 2, 3, 3), output_shape=[7, 5], strides=[2, 2], dilations=[2, 1])
case("ConvTranspose", normal(1, 2, 2, 3, 2), normal(2, 2, 2, 2, 2), strides=[1, 2, 1])
# Matrix products
case("Gemm", normal(2, 3), normal(3, 4), normal(4))
case("Gemm", normal(3, 2), normal(4, 3), normal(2, 1), transA=1, transB=1, alpha=0.5, beta=2.0)
case("Gemm", normal(2, 3), normal(4, 3), transB=1)
case("Gemm", normal(3, 2), normal(3, 4), normal(), transA=1, alpha=1.5)
for _a, _b in (((2, 3), (3, 4)), ((2, 2, 3), (3, 4)), ((2, 1, 2, 3), (3, 3, 2)), ((3,), (3, 2)), ((2, 3), (3,))):
    case("MatMul", normal(*_a), normal(*_b))
case("MatMul", normal(3), normal(3))
case("MatMul", normal(3), normal(2, 3, 4))
# Normalisations
case("BatchNormalization", normal(2, 3, 4, 2), normal(3), normal(3), normal(3), positive(3), epsilon=1e-3)
case("BatchNormalization", normal(2, 3), *map(constant, (normal(3), normal(3), normal(3), positive(3))))
case("InstanceNormalization", normal(2, 3, 4, 2), normal(3), normal(3), epsilon=1e-2)
case("LayerNormalization", normal(2, 3, 4), normal(4), normal(4))
case("LayerNormalization", normal(2, 3, 4), normal(3, 4), axis=-2, epsilon=1e-2)
case("LRN", normal(2, 6, 2, 3), size=3, alpha=0.5, beta=0.6, bias=1.5)
case("LRN", normal(1, 6, 2, 2), size=5, alpha=0.5)
case("LpNormalization", normal(2, 3, 4), axis=1, p=2)
case("LpNormalization", normal(2, 3, 4), p=1)
# Pools
case("MaxPool", distinct(2, 3, 9), kernel_shape=[3], strides=[2])
case("MaxPool", distinct(2, 3, 6, 6), kernel_shape=[2, 2], strides=[2, 2])
case("MaxPool", distinct(2, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
case("MaxPool", distinct(1, 2, 7, 8), kernel_shape=[3, 2], strides=[1, 2], pads=[0, 0, 1, 1])
case("MaxPool", distinct(1, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
case("MaxPool", distinct(1, 2, 9, 8), kernel_shape=[2, 3], strides=[2, 1], dilations=[2, 2])
# ceil_mode with a last window that would start in the padding, along both axes and along one
case("MaxPool", distinct(1, 2, 7, 7), kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
case("MaxPool", distinct(1, 2, 9, 8), kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 0, 1], ceil_mode=1)
case("AveragePool", normal(1, 2, 7, 8), kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1)
case(
    *("AveragePool", normal(1, 2, 6, 5)),
    **{"kernel_shape": [2, 3], "strides": [3, 2], "pads": [0, 1, 0, 0], "ceil_mode": 1, "count_include_pad": 1},
)
case("AveragePool", normal(1, 1, 2, 3), kernel_shape=[1, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1)
case("MaxPool", distinct(1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("MaxPool", distinct(1, 2, 6, 7), kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER")
case("MaxPool", distinct(1, 2, 7, 7), kernel_shape=[3, 3], storage_order=1)
case("MaxPool", distinct(1, 2, 4, 5, 4), kernel_shape=[2, 3, 2], strides=[2, 1, 2])
case("AveragePool", normal(2, 3, 9), kernel_shape=[3], strides=[2], pads=[1, 1])
case("AveragePool", normal(2, 3, 6, 6), kernel_shape=[2, 2], strides=[2, 2])
case("AveragePool", normal(1, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
case("AveragePool", normal(1, 2, 7, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1)
case("AveragePool", normal(1, 2, 8, 7), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
case("AveragePool", normal(1, 2, 8, 7), kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 0, 1], ceil_mode=1)
case("AveragePool", normal(1, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
case("AveragePool", normal(1, 2, 7, 7), kernel_shape=[2, 2], dilations=[2, 3], opset=19)
case("AveragePool", normal(1, 2, 4, 5, 4), kernel_shape=[2, 2, 2], strides=[1, 2, 2])
for _name in ("GlobalAveragePool", "GlobalMaxPool"):
    for _shape in ((2, 3, 5), (2, 3, 4, 5), (1, 2, 2, 3, 4)):
        case(_name, distinct(*_shape))
case("GlobalLpPool", normal(2, 3, 4, 5), p=3)
case("GlobalLpPool", normal(2, 3, 4, 5))
case("LpPool", normal(2, 3, 6, 6), kernel_shape=[2, 3], strides=[2, 1], p=2)
case("LpPool", normal(2, 3, 7, 6), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], p=3)
# Reductions
for _name in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"):
    case(_name, normal(2, 3, 4), ints(1))
    case(_name, normal(2, 3, 4), ints(-1, 0), keepdims=0)
    case(_name, normal(2, 3, 4))
case("ReduceLogSum", positive(2, 3, 4), ints(1))
case("ReduceSum", normal(2, 3, 4), noop_with_empty_axes=1)
for _name in ("ReduceMax", "ReduceMin"):
    case(_name, distinct(2, 3, 4), ints(1))
    case(_name, distinct(2, 3, 4), ints(0, 2), keepdims=0)
case("ReduceMean", normal(2, 3, 4), axes=[2], opset=13)
case("ReduceSum", normal(2, 3, 4), axes=[1], keepdims=0, opset=11)
# Movement
case("Reshape", normal(2, 3, 4), ints(2, -1))
case("Reshape", normal(2, 3, 4), ints(0, 2, 6))
case("Flatten", normal(2, 3, 4), axis=2)
case("Transpose", normal(2, 3, 4), perm=[1, 2, 0])
case("Transpose", normal(2, 3, 4))
case("Squeeze", normal(2, 1, 3, 1), ints(1, 3))
case("Squeeze", normal(2, 1, 3), axes=[1], opset=11)
case("Unsqueeze", normal(2, 3), ints(0, 3))
case("Unsqueeze", normal(2, 3), axes=[1], opset=11)
case("Concat", normal(2, 3, 4), normal(2, 1, 4), normal(2, 2, 4), axis=1)
case("Concat", normal(2, 3), normal(2, 1), axis=-1)
case("Split", normal(2, 6, 3), ints(1, 3, 2), axis=1, outputs=3)
case("Split", normal(2, 7), axis=1, num_outputs=3, outputs=3)
case("Split", normal(2, 6), axis=1, split=[2, 4], outputs=2, opset=11)
case("Slice", normal(4, 6, 5), ints(1, 2), ints(3, 9), ints(0, 1))
case("Slice", normal(4, 6, 5), ints(-1, 4), ints(-9, 0), ints(0, 2), ints(-2, -1))
case("Slice", normal(4, 6), ints(1), ints(-1), ints(1), ints(2))
case("Slice", normal(4, 6), starts=[1, 0], ends=[3, 4], opset=9)
case("Gather", normal(4, 3, 2), ints(0, 2, 2, -1))
case("Gather", normal(2, 4, 3), ints([0, 1], [3, 3]), axis=1)
case("Gather", normal(2, 4, 3), np.array(1), axis=2)
case("GatherElements", normal(3, 4), ints([0, 0, 2, 1], [2, 2, 2, 0]), axis=0)
case("Pad", normal(2, 3, 4), ints(0, 1, 2, 0, 0, 1))
case("Pad", normal(2, 3, 5), ints(0, -1, 1, 0, 2, -2), constant(np.array(0.7)))
case("Pad", normal(2, 3, 4), ints(1, 2, 0, 1), None, ints(1, 2))
for _mode in ("reflect", "edge"):
    case("Pad", normal(2, 3, 5, 4), ints(0, 0, 1, 2, 0, 0, 3, 1), mode=_mode)
case("Pad", normal(2, 3, 5), ints(0, 0, 3, 0, 0, 2), mode="wrap", opset=19)
case("Pad", normal(2, 3, 4), pads=[0, 1, 2, 0, 0, 1], opset=10)
case("Expand", normal(3, 1), ints(2, 3, 4))
case("Expand", normal(2, 3), ints(1, 3))
case("Tile", normal(2, 3), ints(2, 3))
_resizes: list[dict[str, Any]] = [
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "nearest"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic"},
]
for _how in _resizes:
    case("Resize", normal(1, 2, 4, 5), None, constant(np.array([1, 1, 2, 1.6], np.float32)), **_how)
    case("Resize", normal(1, 2, 5, 6), None, None, ints(1, 2, 3, 9), **_how)
for _mode in ("nearest", "linear"):  # channels last: the axes that change are not the last two
    case("Resize", normal(1, 4, 5, 2), None, None, ints(1, 3, 8, 2), mode=_mode)
case("Upsample", normal(1, 2, 3, 3), constant(np.array([1, 1, 2, 3], np.float32)), mode="nearest", opset=9)
case("DepthToSpace", normal(1, 8, 2, 3), blocksize=2)
case("DepthToSpace", normal(1, 8, 2, 3), blocksize=2, mode="CRD")
case("SpaceToDepth", normal(1, 2, 4, 6), blocksize=2)
# Indexing
for _how in ("none", "add", "mul", "max", "min"):
    case(
        *("ScatterElements", distinct(3, 4), ints([1, 0], [2, 1]), distinct(2, 2) * 1.7),
        **({} if _how == "none" else {"reduction": _how}),
    )
    case(
        *("ScatterND", distinct(4, 3), ints([1], [3]), distinct(2, 3) * 1.7),
        **({} if _how == "none" else {"reduction": _how}),
    )
case("ScatterElements", normal(3, 4), ints([1, 1], [2, 0]), normal(2, 2), axis=1, reduction="add")
case("GatherND", normal(3, 4, 2), ints([0, 1], [2, 3], [0, 1]))
case("GatherND", normal(2, 3, 4), ints([[0], [2]], [[1], [1]]), batch_dims=1)
case("TopK", distinct(3, 5), ints(2), axis=1)
case("Compress", normal(3, 4), np.array([True, False, True]), axis=0)
case("CumSum", normal(3, 4), np.array(1), exclusive=1)
case("CumSum", normal(3, 4), np.array(0), reverse=1)
case("Trilu", normal(2, 4, 5), ints(1)[0], upper=0)
case("ReverseSequence", normal(4, 3, 2), ints(2, 4, 1))
# Further functions
for _name in ("Tan", "Atan", "Sinh", "Cosh", "Asinh"):
    case(_name, normal(2, 3))
for _name in ("Asin", "Acos", "Atanh"):
    case(_name, unit(2, 3))
case("Acosh", positive(2, 3) + 1)
case("Shrink", normal(2, 3, 4), lambd=0.3, bias=0.1)
case("Mod", normal(2, 3), positive(3), fmod=1)
case("Det", normal(2, 3, 3), static="its size is not known")
for _equation, _shapes in (
    ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
    ("ij,ji", ((3, 4), (4, 3))),
    ("...ij,...jk->...ik", ((2, 3, 4), (2, 4, 5))),
    ("ij->i", ((3, 4),)),
    ("i,j,k->ij", ((2,), (3,), (4,))),
):
    case("Einsum", *(normal(*s) for s in _shapes), equation=_equation)
# Normalisations by their bodies, and reading between the pixels
case("GroupNormalization", normal(2, 4, 3, 2), normal(4), normal(4), num_groups=2, opset=21)
case("RMSNormalization", normal(2, 3, 4), normal(4), opset=23)
for _mode in ("linear", "nearest", "cubic"):
    for _padding in ("zeros", "border", "reflection"):
        case("GridSample", normal(1, 2, 4, 5), 0.7 * unit(1, 3, 2, 2), mode=_mode, padding_mode=_padding, opset=20)
case("GridSample", normal(1, 2, 4, 5), 0.7 * unit(1, 3, 2, 2), align_corners=1, opset=20)
for _align in (0, 1):
    case("AffineGrid", normal(2, 2, 3), ints(2, 1, 3, 4), align_corners=_align, opset=20)
case("AffineGrid", normal(2, 3, 4), ints(2, 1, 3, 4, 2), opset=20)
_rois = constant(np.array([[0.3, 0.2, 3.1, 2.7], [1.1, 0.4, 4.6, 3.9]]))
case("RoiAlign", normal(2, 2, 5, 6), _rois, ints(0, 1), output_height=2, output_width=3, sampling_ratio=2)
case("RoiAlign", normal(2, 2, 5, 6), _rois, ints(1, 1), output_height=2, output_width=2)
case("DeformConv", normal(1, 2, 4, 5), normal(3, 2, 2, 2), 0.3 * unit(1, 8, 3, 4), opset=19)
case("Col2Im", normal(1, 8, 6), ints(3, 4), ints(2, 2))
for _policy in ("not_larger", "not_smaller"):
    for _how in (
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    ):
        case(
            *("Resize", normal(1, 2, 5, 6), None, None, ints(7, 4)),
            **{"axes": [2, 3], "keep_aspect_ratio_policy": _policy, **_how},
        )
# (Of antialiased cubics ONNX's reference evaluator rounds the weights to float32, which some sizes show.)
case(
    *("Resize", normal(1, 2, 5, 6), None, None, ints(7, 4)),
    **{"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger", "mode": "cubic", "antialias": 1, "exclude_outside": 1},
)
_region = constant(np.array([0.1, 0.2, 0.83, 0.9]))
for _how in (
    {"mode": "linear"},
    {"mode": "linear", "antialias": 1},
    {"mode": "cubic", "exclude_outside": 1},
):
    case(
        *("Resize", normal(1, 2, 6, 8), _region, None, ints(3, 4)),
        **{"axes": [2, 3], "coordinate_transformation_mode": "tf_crop_and_resize", **_how},
    )
_regions = constant(np.array([[1, 0.6, 1.5, 9.1, 7], [0, 3, 2, 3, 2], [1, 0, 0, 6, 5], [1, 20, 1, 24, 4]]))
case("MaxRoiPool", distinct(2, 2, 6, 7), _regions, pooled_shape=[2, 3], spatial_scale=0.6)
case("MaxRoiPool", distinct(2, 3, 5, 4), _regions, pooled_shape=[1, 1])

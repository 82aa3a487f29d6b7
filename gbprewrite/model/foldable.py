"""Which nodes are worth computing while a model is read, and how many elements they make.

Shape arithmetic and small weights are folded. Operators are named here whose cost and result are known beforehand;
others (convolutions, pools, windows of a signal) stay in the graph, where a kernel of a hundred million is a number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper, numpy_helper

from gbprewrite.model.messages import elements

Operands = Sequence[TensorProto | None]

# No more elements than the largest of their inputs, or, of a Concat, than all of them.
MOVES_AND_SUMS = (
    *("ArgMax", "ArgMin", "Cast", "CastLike", "Compress", "Concat", "Constant", "CumProd", "CumSum", "DepthToSpace"),
    *("Det", "EyeLike", "Flatten", "GatherElements", "Hardmax", "Identity", "LogSoftmax", "LpNormalization", "NonZero"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare", "Reshape", "ReverseSequence", "Scatter", "ScatterElements", "ScatterND"),
    *("Slice", "Softmax", "SpaceToDepth", "Squeeze", "Transpose", "Trilu", "Unsqueeze"),
)
# Element by element, their inputs broadcast to one shape.
ELEMENTWISE = (
    *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitCast", "BitShift", "BitwiseAnd"),
    *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Celu", "Clip", "Cos", "Cosh", "DequantizeLinear", "Div"),
    *("Dropout", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
    *("HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod"),
    *("Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Shrink"),
    *("Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh"),
    *("ThresholdedRelu", "Where", "Xor"),
)


def result_size(node: NodeProto, operands: Operands) -> int | None:
    """An upper bound of the elements that a node with known operands makes; None where it is not to be folded.

    Costs as little as looking at the operands.
    """
    if node.op_type in MOVES_AND_SUMS:
        sizes = [elements(t.dims) for t in operands if t is not None]
        return sum(sizes) if node.op_type == "Concat" else max(sizes, default=0)
    if node.op_type in ELEMENTWISE:
        return _broadcast([t.dims for t in operands if t is not None])
    if node.op_type not in SIZES or any(t is None for t in operands[:2]):
        return None
    try:
        return SIZES[node.op_type](node, operands)
    except (TypeError, ValueError, IndexError, OverflowError, ZeroDivisionError):
        return None  # operands that contradict each other: the node would not run


def _broadcast(shapes: Sequence[Sequence[int]]) -> int:
    """Elements of the common shape, at the most."""
    rank = max((len(s) for s in shapes), default=0)
    aligned = ((1,) * (rank - len(s)) + tuple(s) for s in shapes)
    return math.prod(max(sizes) if min(sizes) else 0 for sizes in zip(*aligned, strict=True))


def _values(tensor: TensorProto | None) -> list[Any]:
    found: list[Any] = numpy_helper.to_array(tensor).ravel().tolist() if tensor is not None else []
    return found


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _expand(_node: NodeProto, operands: Operands) -> int:
    return _broadcast([_dims(operands[0]), _values(operands[1])])


def _tile(_node: NodeProto, operands: Operands) -> int:
    return elements(_dims(operands[0])) * int(math.prod(_values(operands[1])))


def _range(_node: NodeProto, operands: Operands) -> int:
    (start,), (limit,), (step,) = map(_values, operands)
    steps: int = math.ceil((limit - start) / step)
    return max(steps, 0)


def _pad(_node: NodeProto, operands: Operands) -> int:
    dims, widths = _dims(operands[0]), _values(operands[1])
    over = _values(operands[3]) if len(operands) > 3 and operands[3] is not None else range(len(dims))
    for axis, begin, end in zip(over, widths[: len(widths) // 2], widths[len(widths) // 2 :], strict=True):
        dims[axis] = max(dims[axis] + begin + end, 0)
    return elements(dims)


def _one_hot(_node: NodeProto, operands: Operands) -> int:
    return elements(_dims(operands[0])) * abs(int(_values(operands[1])[0]))


def _gather(node: NodeProto, operands: Operands) -> int:
    dims = _dims(operands[0])
    dims[int(_attributes(node).get("axis", 0))] = 1
    return elements(dims) * elements(_dims(operands[1]))


def _gather_nd(node: NodeProto, operands: Operands) -> int:
    data, (*places, depth) = map(_dims, operands)
    return elements(places) * elements(data[int(_attributes(node).get("batch_dims", 0)) + depth :])


def _matmul(_node: NodeProto, operands: Operands) -> int:
    a, b = _dims(operands[0]), _dims(operands[1])
    return _broadcast([a[:-2], b[:-2]]) * elements(a[-2:-1]) * elements(b[-1:] if len(b) > 1 else [])


def _gemm(node: NodeProto, operands: Operands) -> int:
    given = _attributes(node)
    rows, columns = _dims(operands[0])[bool(given.get("transA"))], _dims(operands[1])[not given.get("transB")]
    return rows * columns


def _dims(tensor: TensorProto | None) -> list[int]:
    return [] if tensor is None else list(tensor.dims)


SIZES: Mapping[str, Callable[[NodeProto, Operands], int]] = {
    "ConstantOfShape": lambda _node, operands: math.prod(_values(operands[0])),
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Tile": _tile,
}

"""The magnitude of an operator's output, from those of its inputs: one formula for each operator.

An operator without a formula can make anything. Interval arithmetic: Moore 1966; sums with weights are bounded by the
inequality of Cauchy and Schwarz.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.magnitudes.magnitude import (
    FEW,
    INF,
    LENGTHS,
    LONG,
    ORDINARY,
    SHARE,
    SIGNED_SHARE,
    UNBOUNDED,
    USUAL_LENGTH,
    Formula,
    Known,
    Magnitude,
    small,
)
from gbprewrite.model.tensors import Tensor, fixed


def unknown(node: gs.Node, known: Known) -> Magnitude:
    return UNBOUNDED


def _fixed_bounds(magnitude: Magnitude) -> Formula:
    return lambda node, known: magnitude


def _around(most: float, usual: float) -> Magnitude:
    return Magnitude(-most, most, usual) if most == most and usual == usual else UNBOUNDED


def _times(a: float, b: float) -> float:
    """A product in which zero times anything is zero."""
    return a * b if a and b else 0.0


def _moved(node: gs.Node, known: Known) -> Magnitude:
    """The same values in other places."""
    (x,) = known(node.inputs[0])
    if x.value is not None and node.op in ("Reshape", "Transpose", "Cast", "Identity", "Unsqueeze", "Squeeze"):
        shape = node.outputs[0].shape
        if node.op == "Transpose":
            return small(np.transpose(x.value, node.attrs.get("perm")))
        if shape is not None and all(map(fixed, shape)) and math.prod(shape) == x.value.size:
            return small(x.value.reshape(shape))
    if x.squares is None or node.op not in MOVES_ONCE:
        return Magnitude(x.low, x.high, x.usual)
    squares = x.squares if node.op in ("Cast", "Identity") else x.squares.sum(keepdims=True)
    return Magnitude(x.low, x.high, x.usual, None, squares)


MOVES_ONCE = ("Cast", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def _with_zeros(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(min(x.low, 0.0), max(x.high, 0.0), x.usual)


def _padded(node: gs.Node, known: Known) -> Magnitude:
    (x, *around) = known(*(t for t in node.inputs[:1] + node.inputs[2:3] if t.name))
    low, high = (around[0].low, around[0].high) if around else (0.0, 0.0)
    if low != low:  # beside x, where the unpooling looks for what equals nothing
        return x
    return Magnitude(min(x.low, low), max(x.high, high), x.usual)


def _resized(node: gs.Node, known: Known) -> Magnitude:
    return UNBOUNDED if node.attrs.get("mode") == "cubic" else _with_zeros(node, known)


def _given(node: gs.Node, at: int) -> bool:
    return len(node.inputs) > at and bool(node.inputs[at].name)


def _any_of(node: gs.Node, known: Known) -> Magnitude:
    """Each value is one of an input's."""
    found = known(*(node.inputs[1:] if node.op == "Where" else node.inputs))
    return Magnitude(min(f.low for f in found), max(f.high for f in found), max(f.usual for f in found))


def _where(node: gs.Node, known: Known) -> Magnitude:
    """A value that is chosen where it is above 0 is then no smaller than a square root can be."""
    condition, x, other = node.inputs
    made, asked = _any_of(node, known), condition.inputs[0] if condition.inputs else None
    if asked is None or asked.op != "Greater" or asked.inputs[0] is not x:
        return made
    bound, otherwise = known(asked.inputs[1], other)
    if x.inputs and x.inputs[0].op in ("Sqrt", "ReduceL2") and bound.low >= 0:
        return made._replace(low=min(LEAST_ROOT, otherwise.low))
    return made


LEAST_ROOT = 2.0**-75  # of the smallest float32


def _largest(node: gs.Node, known: Known) -> Magnitude:
    found, pick = known(*node.inputs), max if node.op == "Max" else min
    return Magnitude(pick(f.low for f in found), pick(f.high for f in found), max(f.usual for f in found))


def _sum(node: gs.Node, known: Known) -> Magnitude:
    found = known(*node.inputs)
    if all(f.value is not None for f in found):
        return _computed(sum, [[f.value for f in found]])
    usual = math.sqrt(sum(_times(f.usual, f.usual) for f in found))
    return _checked(sum(f.low for f in found), sum(f.high for f in found), usual)


def _difference(node: gs.Node, known: Known) -> Magnitude:
    a, b = known(*node.inputs)
    if a.value is not None and b.value is not None:
        return _computed(np.subtract, [a.value, b.value])
    return _checked(a.low - b.high, a.high - b.low, math.hypot(a.usual, b.usual))


def _computed(function: Callable[..., Any], operands: Sequence[Any]) -> Magnitude:
    return small(np.asarray(function(*operands), np.float64))


def _checked(low: float, high: float, usual: float) -> Magnitude:
    return Magnitude(low if low == low else -INF, high if high == high else INF, usual if usual == usual else INF)


def _product(node: gs.Node, known: Known) -> Magnitude:
    a, b = known(*node.inputs)
    if a.value is not None and b.value is not None and max(a.value.size, b.value.size) <= FEW:
        return _computed(np.multiply, [a.value, b.value])
    usual = _times(a.usual, b.usual)
    if node.inputs[0] is node.inputs[1]:
        most = _times(a.most, a.most)
        return Magnitude(0.0, most, usual)
    ends = [_times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    made = Magnitude(min(ends), max(ends), usual)
    for weights, scale in ((a, b), (b, a)):  # numbers for each output channel, of BatchNormalization
        if weights.squares is not None and scale.value is not None and len(weights.squares) == scale.value.size:
            squares = weights.squares * scale.value.ravel() ** 2
            share = float(squares.sum()) / (float(weights.squares.sum()) or 1.0)
            return made._replace(usual=weights.usual * math.sqrt(share), squares=squares)
    return made


def _quotient(node: gs.Node, known: Known) -> Magnitude:
    a, b = known(*node.inputs) if node.op == "Div" else (small(np.ones(())), *known(*node.inputs))
    if a.value is not None and b.value is not None:
        return _computed(np.divide, [a.value, b.value])
    if not (b.low > 0 or b.high < 0):
        return UNBOUNDED
    ends = [_times(x, 1 / y if y else INF) for x in (a.low, a.high) for y in (b.low, b.high)]
    least = min(abs(b.low), abs(b.high))
    usual = a.usual / b.usual if least >= 1 or (b.constant and b.usual) else a.usual
    return _checked(min(ends), max(ends), usual)


def _negative(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(-x.high, -x.low, x.usual, None if x.value is None else -x.value, x.squares)


def _absolute(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(0.0, x.most, x.usual)


def _relu(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(max(x.low, 0.0), max(x.high, 0.0), x.usual)


def _clip(node: gs.Node, known: Known) -> Magnitude:
    x, *bounds = known(*(t for t in node.inputs if t.name))
    low, high = -INF, INF
    if bounds and _given(node, 1):
        low, *bounds = bounds[0].low, *bounds[1:]
    if bounds:
        high = bounds[0].high
    return Magnitude(max(low, min(x.low, high)), min(high, max(x.high, low)), x.usual)


def _root(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    if x.value is not None:
        return _computed(np.sqrt, [x.value])
    return Magnitude(math.sqrt(max(x.low, 0.0)), math.sqrt(max(x.high, 0.0)), ORDINARY)


def _power(node: gs.Node, known: Known) -> Magnitude:
    x, exponent = known(*node.inputs)
    if x.low <= 0 or exponent.value is None or exponent.value.size != 1:
        return UNBOUNDED
    ends = [float(np.power(np.float64(v), exponent.value.ravel()[0])) for v in (x.low, x.high)]
    return _checked(min(ends), max(ends), ORDINARY)


def _exponential(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(0.0, float(np.exp(np.float64(x.high))), ORDINARY if x.high <= 1 else INF)


def _reduced_sum(node: gs.Node, known: Known) -> Magnitude:
    """As many values are added as the output has fewer."""
    (x,) = known(node.inputs[0])
    made = max(_length(node.outputs[0], 1), 1.0)
    most, usual = (max(_length(node.inputs[0], length) / made, 1.0) for length in (LONG, USUAL_LENGTH))
    return _checked(min(_times(x.low, most), x.low), max(_times(x.high, most), x.high), x.usual * math.sqrt(usual))


def _reduced_root(node: gs.Node, known: Known) -> Magnitude:
    return Magnitude(0.0, INF, ORDINARY)


def _length(x: Tensor, left_open: int = LONG) -> float:
    """The number of elements."""
    if x.shape is None:
        return float(left_open)
    return float(math.prod(d if fixed(d) else left_open for d in x.shape))


def _scattered(node: gs.Node, known: Known) -> Magnitude:
    """All the updates may meet in one place; usually few do."""
    onto, updates = known(node.inputs[0], node.inputs[2])
    count = _length(node.inputs[2])
    return _around(onto.most + _times(updates.most, count), math.hypot(onto.usual, 2 * updates.usual))


def _filled(node: gs.Node, known: Known) -> Magnitude:
    value = node.attrs.get("value")
    held = np.zeros(1) if value is None else np.asarray(getattr(value, "values", value), np.float64)
    return small(held)._replace(value=None, squares=None)


def _cast(node: gs.Node, known: Known) -> Magnitude:
    return SHARE if node.inputs[0].dtype == np.bool_ else _moved(node, known)


def _weighted(x: Magnitude, w: Magnitude, fan: float, outputs: float) -> Magnitude:
    """Sums of `fan` products each; the weights are shared among so many outputs."""
    if w.squares is None:
        return _around(_times(fan, _times(x.most, w.most)), _times(math.sqrt(fan), _times(x.usual, w.usual)))
    total = float(w.squares.sum())
    sums = min(fan * w.most, math.sqrt(fan * total))  # Cauchy and Schwarz
    return _around(_times(x.most, sums), _times(x.usual, math.sqrt(total / max(outputs, 1.0))))


def _convolved(node: gs.Node, known: Known) -> Magnitude:
    """Conv, or ConvTranspose, whose weights have their axes the other way round."""
    (x,) = known(node.inputs[0])
    shape = node.inputs[1].shape
    if not math.isfinite(x.usual) or shape is None or not all(map(fixed, shape)):
        return UNBOUNDED
    w, *bias = known(*node.inputs[1:])
    group = node.attrs.get("group", 1)
    a, b, *kernel = shape
    outputs, inputs = (a, b) if node.op == "Conv" else (b * group, a / group)
    made = _weighted(x, w, inputs * math.prod(kernel), outputs)
    return _around(made.most + sum(v.most for v in bias), math.hypot(made.usual, *(v.usual for v in bias)))


def _multiplied(node: gs.Node, known: Known) -> Magnitude:
    """MatMul and Gemm."""
    a, b, *rest = known(*node.inputs)
    shapes = [t.shape for t in node.inputs[:2]]
    if any(s is None or len(s) < 2 for s in shapes):
        return UNBOUNDED
    across, rows, columns = node.inputs[0].shape[-1], shapes[0][-2], shapes[1][-1]
    if node.attrs.get("transA"):
        across, rows = rows, across
    if node.attrs.get("transB"):
        columns = shapes[1][-2]
    fan, rows, columns = (float(n) if fixed(n) else float(LONG) for n in (across, rows, columns))
    made = _weighted(b, a, fan, rows) if a.constant and not b.constant else _weighted(a, b, fan, columns)
    scale = abs(node.attrs.get("alpha", 1.0))
    added = [_times(abs(node.attrs.get("beta", 1.0)), v.most) for v in rest]
    return _around(_times(made.most, scale) + sum(added), math.hypot(_times(made.usual, scale), *added))


def _dequantised(node: gs.Node, known: Known) -> Magnitude:
    """(q - zero point) · scale, of weights with their sums where the zero point is 0."""
    q, scale, *zero = known(*(t for t in node.inputs if t.name))
    offset = zero[0].most if zero else 0.0
    most = _times(q.most + offset, scale.most)
    if q.squares is None or scale.value is None:
        return _around(most, min(ORDINARY, most))
    squares = q.squares if not offset else np.full(len(q.squares), (q.most + offset) ** 2) * _length(node.inputs[0])
    per_row = scale.value.size == len(squares) and node.attrs.get("axis", 1) == 0
    squares = squares * (scale.value.ravel() ** 2 if per_row else np.mean(scale.value**2))
    return Magnitude(-most, most, math.sqrt(float(squares.sum()) / _length(node.inputs[0])), None, squares)


FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(
        (
            *(
                "Identity",
                "Reshape",
                "Transpose",
                "Flatten",
                "Squeeze",
                "Unsqueeze",
                "Expand",
                "Slice",
                "Gather",
                "Tile",
            ),
            *("Split", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMean", "ReduceMax"),
            *("ReduceMin", "DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND"),
        ),
        _moved,
    ),
    **dict.fromkeys(("AveragePool", "Trilu", "MaxUnpool"), _with_zeros),
    "Pad": _padded,
    "Resize": _resized,
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), _fixed_bounds(SHARE)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Sign", "Softsign"), _fixed_bounds(SIGNED_SHARE)),
    **dict.fromkeys(
        ("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"),
        _fixed_bounds(SHARE),
    ),
    **dict.fromkeys(("Shape", "Size"), _fixed_bounds(LENGTHS)),
    "Range": _fixed_bounds(Magnitude(0.0, INF, ORDINARY)),
    "Cast": _cast,
    "Concat": _any_of,
    "Where": _where,
    "Max": _largest,
    "Min": _largest,
    "Add": _sum,
    "Sum": _sum,
    "Sub": _difference,
    "Mul": _product,
    "Div": _quotient,
    "Reciprocal": _quotient,
    "Neg": _negative,
    "Abs": _absolute,
    "Relu": _relu,
    "Clip": _clip,
    "Sqrt": _root,
    "Pow": _power,
    "Exp": _exponential,
    "ReduceSum": _reduced_sum,
    "ReduceL2": _reduced_root,
    "ReduceSumSquare": _reduced_root,
    "ScatterElements": _scattered,
    "ScatterND": _scattered,
    "ConstantOfShape": _filled,
    "Conv": _convolved,
    "ConvTranspose": _convolved,
    "MatMul": _multiplied,
    "Gemm": _multiplied,
    "DequantizeLinear": _dequantised,
}

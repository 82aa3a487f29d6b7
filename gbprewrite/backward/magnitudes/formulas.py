"""The magnitude of an operator's output, from those of its inputs: one formula for each operator.

An operator without a formula can make anything. Interval arithmetic: Moore 1966.
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
    ORDINARY,
    SHARE,
    SIGNED_SHARE,
    UNBOUNDED,
    Formula,
    Known,
    Magnitude,
    checked,
    small,
    times,
)
from gbprewrite.backward.magnitudes.sums import convolved, dequantised, multiplied, reduced_root, reduced_sum, scattered
from gbprewrite.model.tensors import fixed


def unknown(node: gs.Node, known: Known) -> Magnitude:
    return UNBOUNDED


def _fixed_bounds(magnitude: Magnitude) -> Formula:
    return lambda node, known: magnitude


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
    usual = math.sqrt(sum(times(f.usual, f.usual) for f in found))
    return checked(sum(f.low for f in found), sum(f.high for f in found), usual)


def _difference(node: gs.Node, known: Known) -> Magnitude:
    a, b = known(*node.inputs)
    if a.value is not None and b.value is not None:
        return _computed(np.subtract, [a.value, b.value])
    return checked(a.low - b.high, a.high - b.low, math.hypot(a.usual, b.usual))


def _computed(function: Callable[..., Any], operands: Sequence[Any]) -> Magnitude:
    return small(np.asarray(function(*operands), np.float64))


def _product(node: gs.Node, known: Known) -> Magnitude:
    a, b = known(*node.inputs)
    if a.value is not None and b.value is not None and max(a.value.size, b.value.size) <= FEW:
        return _computed(np.multiply, [a.value, b.value])
    usual = times(a.usual, b.usual)
    if node.inputs[0] is node.inputs[1]:
        most = times(a.most, a.most)
        return Magnitude(0.0, most, usual)
    ends = [times(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
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
    ends = [times(x, 1 / y if y else INF) for x in (a.low, a.high) for y in (b.low, b.high)]
    least = min(abs(b.low), abs(b.high))
    usual = a.usual / b.usual if least >= 1 or (b.constant and b.usual) else a.usual
    return checked(min(ends), max(ends), usual)


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
    return checked(min(ends), max(ends), ORDINARY)


def _exponential(node: gs.Node, known: Known) -> Magnitude:
    (x,) = known(node.inputs[0])
    return Magnitude(0.0, float(np.exp(np.float64(x.high))), ORDINARY if x.high <= 1 else INF)


def _filled(node: gs.Node, known: Known) -> Magnitude:
    value = node.attrs.get("value")
    held = np.zeros(1) if value is None else np.asarray(getattr(value, "values", value), np.float64)
    return small(held)._replace(value=None, squares=None)


def _cast(node: gs.Node, known: Known) -> Magnitude:
    return SHARE if node.inputs[0].dtype == np.bool_ else _moved(node, known)


FORMULAS: dict[str, Formula] = {
    **dict.fromkeys(
        (
            *("DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND"),
            *("GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
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
    "ReduceSum": reduced_sum,
    "ReduceL2": reduced_root,
    "ReduceSumSquare": reduced_root,
    "ScatterElements": scattered,
    "ScatterND": scattered,
    "ConstantOfShape": _filled,
    "Conv": convolved,
    "ConvTranspose": convolved,
    "MatMul": multiplied,
    "Gemm": multiplied,
    "DequantizeLinear": dequantised,
}

"""Interval arithmetic on a graph: between which real numbers a value can lie, whatever the inputs are.

Quantised values count as the numbers that they stand for, without their rounding. What is not known is unbounded, so
that an answer is always true, and may be too wide.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.qlinear import QLINEAR, operands
from gbprewrite.model.tensors import SMALL, Tensor, constant_of, elements_of, is_quantised, quantised_range

INFINITE = math.inf


class Range(NamedTuple):
    """The numbers from low to high."""

    low: float
    high: float


ANY = Range(-INFINITE, INFINITE)
Bounds: TypeAlias = Callable[[gs.Node, Sequence[Range]], Range]


def within(found: Range, limits: Range) -> Range:
    """A range cut off at limits, as Clip does."""
    low, high = (min(max(v, limits.low), limits.high) for v in found)
    return Range(low, high)


def hull(*ranges: Range) -> Range:
    """The smallest range that holds all of these."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))


def representable(quantised: Tensor, scale: Tensor | None, zero: Tensor | None) -> Range:
    """What levels of the tensor's type can stand for; unbounded where the zero point is not known."""
    step = constant_of(scale)
    offset = np.zeros(1) if zero is None or not zero.name else constant_of(zero)
    if offset is None or not offset.size or not is_quantised(quantised):
        return ANY
    if step is None or not step.size:  # a scale is positive
        return Range(0.0 if (offset == quantised_range(quantised)[0]).all() else -INFINITE, INFINITE)
    ends = [(end - offset.astype(np.float64)) * step.astype(np.float64) for end in quantised_range(quantised)]
    return Range(float(np.min(ends[0])), float(np.max(ends[1])))


class Ranges:
    """Answers for one graph; each tensor is looked at once, and no depth of a graph is too deep."""

    def __init__(self) -> None:
        self._known: dict[int, Range] = {}  # id() of a tensor →

    def of(self, tensor: Tensor) -> Range:
        """Where the values of a tensor lie; of levels, what they stand for."""
        todo, opened = [tensor], set()
        while todo:
            current = todo[-1]
            node = current.inputs[0] if current.inputs else None
            if id(current) in self._known:
                todo.pop()
            elif node is not None and id(current) not in opened:
                opened.add(id(current))
                todo += [t for t, *_ in values_of(node) if id(t) not in self._known]
            else:
                todo.pop()
                self._known[id(current)] = _constant(current) if node is None else self._made_by(node)
        return self._known[id(tensor)]

    def never_negative(self, tensor: Tensor) -> bool:
        """Whether the graph proves that a value is 0 or more."""
        return self.of(tensor).low >= 0

    def of_value(self, tensor: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Range:
        """Where an operand lies; with a scale, what its levels stand for."""
        self.of(tensor)
        return self._operand(tensor, scale, zero)

    def _made_by(self, node: gs.Node) -> Range:
        ranges = [self._operand(*value) for value in values_of(node)]
        if node.op not in _RANGE_OF or not ranges:
            return ANY
        found = _RANGE_OF[node.op](node, ranges)
        return ANY if any(map(math.isnan, found)) else found

    def _operand(self, tensor: Tensor, scale: Tensor | None = None, zero: Tensor | None = None) -> Range:
        """A value that a node reads; with a scale, what its levels stand for."""
        if scale is None:
            return self._known.get(id(tensor), ANY)
        if isinstance(tensor, gs.Constant):
            return _dequantised(tensor, scale, zero)
        return within(self._known.get(id(tensor), ANY), representable(tensor, scale, zero))


def _constant(tensor: Tensor) -> Range:
    """Of a constant its least and largest number; anything that the caller gives is unbounded."""
    if not isinstance(tensor, gs.Constant) or not 0 < elements_of(tensor) <= SMALL:
        return ANY
    values = tensor.values.astype(np.float64)
    return Range(float(values.min()), float(values.max())) if np.isfinite(values).all() else ANY


def values_of(node: gs.Node) -> list[tuple[Tensor, ...]]:
    """The inputs of a node whose numbers its output is made of; with scale and zero point where they are levels."""
    if node.op in QLINEAR:
        return operands(node)
    if node.op == "DequantizeLinear":
        return [tuple(node.inputs[:3])]
    if node.op in ("ScatterElements", "ScatterND", "Pad", "Where"):
        return [(t,) for t in (node.inputs[1:] if node.op == "Where" else node.inputs[:3:2]) if t.name]
    return [(t,) for t in (node.inputs if node.op in _OF_ALL else node.inputs[:1]) if t.name]


def _product(a: Range, b: Range) -> Range:
    ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
    return Range(min(ends), max(ends))


def _added(a: Range, b: Range) -> Range:
    return Range(a.low + b.low, a.high + b.high)


def _sum(node: gs.Node, ranges: Sequence[Range]) -> Range:
    total = Range(0.0, 0.0)
    for one in ranges:
        total = _added(total, one)
    return total


def _sub(node: gs.Node, ranges: Sequence[Range]) -> Range:
    a, b = ranges
    return Range(a.low - b.high, a.high - b.low)


def _mul(node: gs.Node, ranges: Sequence[Range]) -> Range:
    if node.inputs[0] is operands(node)[1][0]:  # a square
        return within(_product(*ranges), Range(0.0, INFINITE))
    return _product(*ranges)


def _div(node: gs.Node, ranges: Sequence[Range]) -> Range:
    a, b = ranges
    if b.low > 0 or b.high < 0:
        return _product(a, Range(1 / b.high, 1 / b.low))
    if b.low == 0:  # by numbers that may come near 0: only the sign is known
        return Range(0.0 if a.low >= 0 else -INFINITE, 0.0 if a.high <= 0 else INFINITE)
    return ANY


def _pow(node: gs.Node, ranges: Sequence[Range]) -> Range:
    exponent = constant_of(node.inputs[1])
    even = exponent is not None and exponent.size and not (exponent.astype(np.float64) % 2).any()
    return Range(0.0, INFINITE) if even or ranges[0].low >= 0 else ANY


def _of_sign(node: gs.Node, ranges: Sequence[Range]) -> Range:
    """A sum of many, a square root, a scaling by positive numbers: 0 or more of such, 0 or less of such."""
    found = hull(*ranges)
    return Range(0.0 if found.low >= 0 else -INFINITE, 0.0 if found.high <= 0 else INFINITE)


def _positive_weights(node: gs.Node, ranges: Sequence[Range]) -> Range:
    """Products with weights: 0 or more where everything is."""
    return Range(0.0, INFINITE) if all(r.low >= 0 for r in ranges) else ANY


def _activated(least: float) -> Bounds:
    """An activation that is never below `least`, and 0 or more of what is 0 or more."""
    return lambda node, ranges: Range(0.0 if ranges[0].low >= 0 else least, INFINITE)


def _clip(node: gs.Node, ranges: Sequence[Range]) -> Range:
    low, high = (constant_of(t) for t in [*node.inputs[1:3], None, None][:2])
    least = -INFINITE if low is None or not low.size else float(low.min())
    most = INFINITE if high is None or not high.size else float(high.max())
    return within(ranges[0], Range(least, most))


def _quantised(node: gs.Node, ranges: Sequence[Range]) -> Range:
    scale, zero = [*node.inputs, None, None][1:3]
    return within(ranges[0], representable(node.outputs[0], scale, zero))


def _dequantised(levels: gs.Constant, scale: Tensor, zero: Tensor | None) -> Range:
    """Of weights with one scale: their own numbers."""
    step, offset = constant_of(scale), np.zeros(1) if zero is None or not zero.name else constant_of(zero)
    if step is None or offset is None or step.size != 1 or offset.size != 1 or not 0 < elements_of(levels) <= SMALL:
        return ANY
    values = (levels.values.astype(np.float64) - float(offset.ravel()[0])) * float(step.ravel()[0])
    return Range(float(values.min()), float(values.max()))


def _saturated(node: gs.Node, ranges: Sequence[Range]) -> Range:
    return within(ranges[0], representable(node.outputs[0], node.attrs["scale"], node.attrs["zero"]))


def _padded(node: gs.Node, ranges: Sequence[Range]) -> Range:
    given = ranges[1] if len(ranges) > 1 else Range(0.0, 0.0)
    return ranges[0] if node.attrs.get("mode", "constant") != "constant" else hull(ranges[0], given)


def _resized(node: gs.Node, ranges: Sequence[Range]) -> Range:
    mode = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    if node.attrs.get("mode", "nearest") == "cubic":  # overshoots
        return ANY
    outside = node.attrs.get("extrapolation_value", 0.0)
    return hull(ranges[0], Range(outside, outside)) if mode == "tf_crop_and_resize" else ranges[0]


def _with_zero(node: gs.Node, ranges: Sequence[Range]) -> Range:
    """Means of windows that may count padding."""
    return hull(ranges[0], Range(0.0, 0.0))


def _between(low: float, high: float) -> Bounds:
    return lambda node, ranges: Range(low, high)


def _extremum(choose: Callable[..., float]) -> Bounds:
    return lambda node, ranges: Range(choose(r.low for r in ranges), choose(r.high for r in ranges))


def _same(node: gs.Node, ranges: Sequence[Range]) -> Range:
    return ranges[0]


def _cast(node: gs.Node, ranges: Sequence[Range]) -> Range:
    """The same number; but levels that become floats stand for nothing any more."""
    levels, made = node.inputs[0], node.outputs[0]
    if not is_quantised(levels) or is_quantised(made):
        return ranges[0]
    return Range(*map(float, quantised_range(levels)))


def _any_of(node: gs.Node, ranges: Sequence[Range]) -> Range:
    return hull(*ranges)


# Operators whose output is made of all their inputs.
_OF_ALL = (
    *("Add", "Concat", "Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Max", "Mean", "Min", "Mul", "Sub"),
    "Sum",
)
_RANGE_OF: dict[str, Bounds] = {
    **dict.fromkeys(
        (
            *("Compress", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements"),
            *("GatherND", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMean"),
            *("ReduceMin", "Reshape", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK"),
            *("Transpose", "Unsqueeze", "DequantizeLinear", "QLinearGlobalAveragePool"),
        ),
        _same,
    ),
    **dict.fromkeys(("Concat", "Mean", "QLinearConcat", "ScatterElements", "ScatterND", "Where"), _any_of),
    **dict.fromkeys(("AveragePool", "CenterCropPad", "QLinearAveragePool"), _with_zero),
    **dict.fromkeys(("Ceil", "CumSum", "Dropout", "Floor", "LpNormalization", "LRN", "ReduceSum", "Round"), _of_sign),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "ReduceProd"), _positive_weights),
    **dict.fromkeys(("Add", "QLinearAdd", "Sum"), _sum),
    **dict.fromkeys(("Mul", "QLinearMul"), _mul),
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **{"Sub": _sub, "Div": _div, "Pow": _pow, "Clip": _clip, "Pad": _padded, "Resize": _resized},
    **{"Max": _extremum(max), "Min": _extremum(min), "Saturation": _saturated, "QuantizeLinear": _quantised},
    **dict.fromkeys(("HardSigmoid", "QLinearSigmoid", "Sigmoid", "Softmax"), _between(0.0, 1.0)),
    **dict.fromkeys(
        (
            *("Abs", "Exp", "GlobalLpPool", "LpPool", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Softplus", "Sqrt"),
            "Relu",
        ),
        _between(0.0, INFINITE),
    ),
    **dict.fromkeys(("Cos", "Sin"), _between(-1.0, 1.0)),
    "ThresholdedRelu": lambda node, ranges: Range(min(0.0, node.attrs.get("alpha", 1.0)), INFINITE),
    "Erf": lambda node, ranges: Range(*map(math.erf, ranges[0])),
    "Tanh": lambda node, ranges: Range(*map(math.tanh, ranges[0])),
    "Softsign": lambda node, ranges: Range(0.0 if ranges[0].low >= 0 else -1.0, 1.0),
    "Neg": lambda node, ranges: Range(-ranges[0].high, -ranges[0].low),
    "Reciprocal": lambda node, ranges: _div(node, [Range(1.0, 1.0), ranges[0]]),
    # The least value of an activation, rounded down.
    **{"Gelu": _activated(-0.17), "HardSwish": _activated(-0.38), "Mish": _activated(-0.31)},
    **dict.fromkeys(("Celu", "Elu", "LeakyRelu", "PRelu", "QLinearLeakyRelu", "Selu", "Swish"), _activated(-INFINITE)),
}

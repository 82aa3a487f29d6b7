"""Where the channels of a score come from: one axis taken apart, back through what joins, cuts and moves it.

A detector joins boxes and scores by Concat, often once more over its scales. Each `Piece` is a range of channels that
came from one tensor, with what was done to it on the way. Nothing here looks at values.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, constant_of, fixed
from gbprewrite.view import operators
from gbprewrite.view.idioms import producer

MOST = 4096  # steps: a graph that joins the same tensor again and again has more pieces than nodes
UNCHANGED = ("Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear")
ALIKE = (
    *("Abs", "Clip", "Exp", "Floor", "HardSigmoid", "Log", "LogSoftmax", "Neg", "Reciprocal", "Saturation", "Sigmoid"),
    *("Softmax", "Sqrt", "Tanh"),
    *operators.ACTIVATIONS, *operators.RECTIFIERS,
)  # fmt: skip
SIGNS = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "Pow", "Where")
CHOICES = ("Gather", "GatherElements", "GatherND", "TopK")  # some of the positions


class Step(NamedTuple):
    """A node that a piece went through. `kind`: "activation" (value by value), "constant" (arithmetic with one value
    for all positions), "positions" (with values that differ from position to position), "mixed" (with another tensor
    that depends on the input), "chosen" (some positions of it)."""

    kind: str
    node: gs.Node
    axis: int  # of the channels, in what the node makes


class Piece(NamedTuple):
    """Channels start to stop of the axis; `steps` from the output inwards; `source` is the tensor at which the axis
    ends, and `joined` the same, or the last one before it that has two parents or is a choice."""

    start: int
    stop: int
    steps: tuple[Step, ...]
    source: Tensor
    joined: Tensor


class _Place(NamedTuple):
    """Channels low to high of an axis of a tensor, which are start and on of the whole."""

    tensor: Tensor
    axis: int
    low: int
    high: int
    start: int
    steps: tuple[Step, ...]
    joined: Tensor
    settled: bool  # two parents were met: `joined` stays


def pieces(score: Tensor, axis: int, dependent: set[int]) -> list[Piece] | None:
    """The axis of a score in pieces; None where its length is open, or there are too many.

    `dependent`: id() of the tensors that depend on the model's inputs by real numbers. Tensors that are joined along
    another axis (a detector's scales) give pieces for the same channels.
    """
    length = score.shape[axis]
    if not fixed(length):
        return None
    todo = [_Place(score, axis, 0, int(length), 0, (), score, False)]
    found: list[Piece] = []
    for _ in range(MOST):
        if not todo:
            return found
        place = todo.pop()
        node = producer(place.tensor)
        further = _STEPS[node.op](node, place, dependent) if node is not None and node.op in _STEPS else None
        if further:
            todo += further
        else:
            stop = place.start + place.high - place.low
            found.append(Piece(place.start, stop, place.steps, place.tensor, place.joined))
    return None


def _through(place: _Place, x: Tensor, axis: int, step: Step | None = None) -> list[_Place]:
    """The same channels of another tensor."""
    steps = place.steps if step is None else (*place.steps, step)
    joined = place.joined if place.settled or place.joined is not place.tensor else x
    return [place._replace(tensor=x, axis=axis, steps=steps, joined=joined)]


def _unchanged(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    return _through(place, node.inputs[0], place.axis)


def _alike(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    return _through(place, node.inputs[0], place.axis, Step("activation", node, place.axis))


def _arithmetic(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    """Along the operand that has the channels; what the others are is the kind of the step."""
    back = len(place.tensor.shape) - place.axis
    given = [t for t in node.inputs if id(t) in dependent and t.shape is not None]
    wide = [t for t in given if len(t.shape) >= back and t.shape[-back] == place.tensor.shape[place.axis]]
    if not wide or len(wide) < len([t for t in node.inputs if id(t) in dependent and t.shape is None]):
        return None
    x = wide[0]
    if len(given) > 1:
        step, settled = Step("mixed", node, place.axis), True
    else:
        others = [t for t in node.inputs if t is not x]
        varies = any(_varies(t, back) for t in others)
        step, settled = Step("positions" if varies else "constant", node, place.axis), place.settled
    return _through(place._replace(settled=settled), x, len(x.shape) - back, step)


def _varies(t: Tensor, back: int) -> bool:
    """Whether an operand has more than one value along another axis than that of the channels."""
    if t.shape is None:
        return True
    return any(size != 1 for at, size in enumerate(t.shape) if len(t.shape) - at != back)


def _joined(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    rank = len(place.tensor.shape)
    axis = node.attrs.get("axis", 0) % rank
    if axis != place.axis:
        return [_split_off(place, t, place.low, place.high, place.start) for t in node.inputs]
    found, offset = [], 0
    for t in node.inputs:
        size = _length(t, axis)
        if size is None:
            return None
        low, high = max(place.low - offset, 0), min(place.high - offset, size)
        if low < high:
            found.append(_split_off(place, t, low, high, place.start + low + offset - place.low))
        offset += size
    return found


def _length(t: Tensor, axis: int) -> int | None:
    """Of an axis, where the graph fixes it."""
    return int(t.shape[axis]) if t.shape is not None and fixed(t.shape[axis]) else None


def _split_off(place: _Place, x: Tensor, low: int, high: int, start: int) -> _Place:
    joined = place.joined if place.settled else x
    return place._replace(tensor=x, low=low, high=high, start=start, joined=joined)


def _cut(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    """Slice"""
    x, rank = node.inputs[0], len(place.tensor.shape)
    given: list[Any] = [constant_of(t) if t.name else None for t in node.inputs[1:]]
    if len(given) < 2 or any(v is None for v, t in zip(given, node.inputs[1:], strict=True) if t.name):
        return None
    starts, ends = given[0].ravel().tolist(), given[1].ravel().tolist()
    axes = given[2].ravel().tolist() if len(given) > 2 and given[2] is not None else range(len(starts))
    strides = given[3].ravel().tolist() if len(given) > 3 and given[3] is not None else [1] * len(starts)
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        if axis % rank == place.axis:
            if not fixed(x.shape[place.axis]) or stride != 1:
                return None
            first = range(int(x.shape[place.axis]))[slice(start, end)].start
            return [_split_off(place, x, place.low + first, place.high + first, place.start)]
    return [_split_off(place, x, place.low, place.high, place.start)]


def _parted(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    """Split"""
    x, axis = node.inputs[0], node.attrs.get("axis", 0) % len(place.tensor.shape)
    offset = 0
    if axis == place.axis:
        before = node.outputs[: next(i for i, t in enumerate(node.outputs) if t is place.tensor)]
        sizes = [_length(t, axis) for t in before]
        if None in sizes:
            return None
        offset = sum(size or 0 for size in sizes)
    return [_split_off(place, x, place.low + offset, place.high + offset, place.start)]


def _transposed(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    rank = len(place.tensor.shape)
    perm = node.attrs.get("perm") or list(range(rank))[::-1]
    return _through(place, node.inputs[0], perm[place.axis])


def _reshaped(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    """Reshape, Flatten, Squeeze, Unsqueeze, where an axis of the same length is there before, with the same around."""
    x = node.inputs[0]
    axis = None if x.shape is None else same_axis(x.shape, place.tensor.shape, place.axis)
    return None if axis is None else _through(place, x, axis)


def same_axis(before: Sequence[Any], after: Sequence[Any], axis: int) -> int | None:
    """The axis of `before` that is this axis of `after`: as long, and with as much before it or behind it."""
    size = after[axis]
    fitting = [a for a, d in enumerate(before) if d == size]
    for a in fitting:
        if _count(before[:a]) == _count(after[:axis]) is not None:
            return a
        if _count(before[a + 1 :]) == _count(after[axis + 1 :]) is not None:
            return a
    unknown = any(not fixed(d) for d in (*before, *after))
    return fitting[0] if unknown and len(fitting) == 1 and list(after).count(size) == 1 and size != 1 else None


def _count(dims: Sequence[Any]) -> tuple[int, list[str]] | None:
    """Numbers multiplied, and the names of open dimensions; None where one is not known."""
    product = 1
    for d in dims:
        product *= int(d) if fixed(d) else 1
    names = [d for d in dims if not fixed(d)]
    return None if None in names else (product, sorted(map(str, names)))


def _chosen(node: gs.Node, place: _Place, dependent: set[int]) -> list[_Place] | None:
    """Some positions; the channels stay where their axis is behind the axis that is chosen along."""
    x = node.inputs[0]
    if x.shape is None or place.tensor is not node.outputs[0]:
        return None
    rank, axis = len(x.shape), None
    if node.op in ("GatherElements", "TopK"):
        along = node.attrs.get("axis", -1 if node.op == "TopK" else 0) % rank
        axis = place.axis if along != place.axis else None
    else:
        back = len(place.tensor.shape) - place.axis
        depth = node.inputs[1].shape[-1] if node.op == "GatherND" and node.inputs[1].shape else None
        along = node.attrs.get("axis", 0) % rank if node.op == "Gather" else (depth or rank) - 1
        axis = rank - back if back < rank - along else None
    if axis is None or x.shape[axis] != place.tensor.shape[place.axis]:
        return None
    return _through(place._replace(settled=True), x, axis, Step("chosen", node, place.axis))


_STEPS: dict[str, Callable[[gs.Node, _Place, set[int]], list[_Place] | None]] = {
    **dict.fromkeys(UNCHANGED, _unchanged),
    **dict.fromkeys(ALIKE, _alike),
    **dict.fromkeys(SIGNS, _arithmetic),
    **dict.fromkeys(CHOICES, _chosen),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    "Concat": _joined,
    "Slice": _cut,
    "Split": _parted,
    "Transpose": _transposed,
}

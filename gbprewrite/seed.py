"""What is explained → the first dy.

A `Target` is what the user asked for; `seeds` turns it into cotangents of the score, one for each explained class.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.errors import UsageError
from gbprewrite.lowering import Builder
from gbprewrite.shapes import Dim, fixed
from gbprewrite.tensors import Tensor, numpy_dtype

SPELLINGS = "argmax, INDEX, INDEX,INDEX,..., topk:K, unit:C,H,W, channel:C, strongest, input, or seed"
WORDS = ("argmax", "strongest", "input", "seed")
STEPPED_OVER = ("Softmax", "LogSoftmax", "Sigmoid")
MOVED = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast")


class Target(NamedTuple):
    """kind is argmax, index, list, topk, unit, channel, strongest, input or seed; numbers are the indices, K, the unit,
    or the channel."""

    kind: str
    numbers: tuple[int, ...] = ()
    text: str = ""

    @property
    def many(self) -> bool:
        """Whether the maps get an axis of classes."""
        return self.kind in ("list", "topk")

    @property
    def one_unit(self) -> bool:
        """Whether one unit of the score is explained, so that the index has a coordinate for each axis."""
        return self.kind in ("unit", "channel", "strongest")

    @property
    def roles(self) -> tuple[str, ...]:
        """What the file gains besides the maps: explained_index, and the inputs `target` or `seed`."""
        if self.kind == "seed":
            return ("seed",)
        return ("explained_index", "target") if self.kind == "input" else ("explained_index",)


def parse(target: str | int | Sequence[int]) -> Target:
    """Read a target; raises UsageError that names the spellings."""
    text = target.strip() if isinstance(target, str) else ",".join(map(str, np.atleast_1d(target).tolist()))
    if np.ndim(target) == 1 and len(np.atleast_1d(target)) == 1:
        text += ","  # a list of one class, which keeps its axis
    if text in WORDS:
        return Target(text, (), text)
    match = re.fullmatch(r"(unit:|channel:|topk:|)(\d+(?:,\d+)*)(,?)", text)
    if match:
        prefix, numbers = match[1], tuple(map(int, match[2].split(",")))
        if prefix == "unit:" and not match[3]:
            return Target("unit", numbers, text)
        if prefix == "channel:" and len(numbers) == 1 and not match[3]:
            return Target("channel", numbers, text)
        if prefix == "topk:" and len(numbers) == 1 and numbers[0] > 0 and not match[3]:
            return Target("topk", numbers, text)
        if not prefix:
            return Target("index" if len(numbers) == 1 and not match[3] else "list", numbers, text)
    raise UsageError(f"--target {text!r} is not understood. Choose {SPELLINGS}; indices count from 0.")


def step_over(tensor: Tensor) -> tuple[Tensor, list[gs.Node], int | None]:
    """The score before a final Softmax, LogSoftmax or Sigmoid: (score, nodes stepped over, axis of the classes)."""
    current = tensor
    while isinstance(current, gs.Variable) and current.inputs:
        node = current.inputs[0]
        if node.op in STEPPED_OVER:
            return node.inputs[0], [node], node.attrs.get("axis", -1) if node.op != "Sigmoid" else None
        if node.op not in MOVED:
            break
        current = node.inputs[0]
    return tensor, [], None


class Seeds(NamedTuple):
    """`cotangents` of the score, one for each class; `indices` as they go out; `in_range` bool [N] where that must be
    asked at run time; `inputs` that the graph gains; `many` when the maps get an axis of classes."""

    cotangents: list[Tensor]
    indices: Tensor | None
    in_range: Tensor | None
    inputs: list[gs.Variable]
    many: bool = False


class Classes(NamedTuple):
    """The classes of a score: their axis, and their number where the graph fixes it."""

    score: Tensor
    axis: int
    number: Dim

    @property
    def rank(self) -> int:
        """Number of axes of the score."""
        return len(self.score.shape)


def seeds(op: Builder, score: Tensor, target: Target, class_axis: int, names: dict[str, str]) -> Seeds:
    """The cotangents that a target stands for.

    Raises UsageError when an index is out of range, or the unit has another rank than the score.
    """
    op.scope = "seed"
    if target.kind == "seed":
        given = gs.Variable(names["seed"], score.dtype, score.shape)
        return Seeds([given], None, None, [given])
    if target.kind == "unit":
        return _unit(op, score, target)
    if target.one_unit:
        return _strongest(op, score, target, class_axis)
    if len(score.shape) < 2:
        return _scores_themselves(op, score, target)
    classes = _classes(op, score, target, class_axis)
    if target.kind == "input":
        return _at_run_time(op, classes, names["target"])
    return CLASS_TARGETS[target.kind](op, classes, target)


def _scores_themselves(op: Builder, score: Tensor, target: Target) -> Seeds:
    """A score without a class axis: each value is one score, of class 0."""
    if target.kind not in ("argmax", "index") or not set(target.numbers) <= {0}:
        raise UsageError(
            f"--target {target.text}: the score {score.name!r} has rank {len(score.shape)} and so no class axis. "
            "Use --target argmax (each value is one score) or --target seed."
        )
    batch = op.shape_of(score) if score.shape else op.constant(np.array([1], np.int64))
    return Seeds([op.ones_like(score)], op.Expand(np.zeros(1, np.int64), batch), None, [])


def _classes(op: Builder, score: Tensor, target: Target, class_axis: int) -> Classes:
    rank = len(score.shape)
    if not -rank <= class_axis < rank or class_axis % rank == 0:
        raise UsageError(
            f"--class-axis {class_axis}: the score {score.name!r} has shape {score.shape}; axis 0 is the batch, so "
            f"choose 1 to {rank - 1}."
        )
    axis = class_axis % rank
    count = op.dim(score, axis)
    if isinstance(count, int) and any(n >= count + (target.kind == "topk") for n in target.numbers):
        named = "channels" if target.kind == "channel" else "classes"
        allowed = f"K is at most {count}" if target.kind == "topk" else f"indices run from 0 to {count - 1}"
        raise UsageError(
            f"--target {target.text}: out of range, the score {score.name!r} has {count} {named} (axis {axis} of "
            f"{score.shape}), so {allowed}."
        )
    return Classes(score, axis, count)


def _fixed_classes(op: Builder, classes: Classes, target: Target) -> Seeds:
    one = np.ones(classes.rank, np.int64)
    made = [_one_hot(op, classes, op.Reshape(np.array([n], np.int64), one)) for n in target.numbers]
    indices = _for_every_sample(op, classes.score, np.array(target.numbers, np.int64), target.many)
    in_range = None
    if not fixed(classes.number):
        inside = op.Less(np.array([max(target.numbers)], np.int64), classes.number)
        in_range = op.Expand(inside, op.vector([op.dim(classes.score, 0)]))
    return Seeds(made, indices, in_range, [], target.many)


def _at_run_time(op: Builder, classes: Classes, name: str) -> Seeds:
    batch = classes.score.shape[0]
    given = gs.Variable(name, np.dtype(np.int64), [batch])
    index = op.Reshape(given, np.array([-1] + [1] * (classes.rank - 1), np.int64))
    index.shape = [batch] + [1] * (classes.rank - 1)
    in_range = op.And(op.GreaterOrEqual(given, 0), op.Less(given, op.vector([classes.number])))
    return Seeds([_one_hot(op, classes, index)], given, in_range, [given])


def _summed_over_positions(op: Builder, classes: Classes) -> Tensor:
    rest = [a for a in range(1, classes.rank) if a != classes.axis and classes.score.shape[a] != 1]
    return op.ReduceSum(classes.score, np.array(rest, np.int64), keepdims=1) if rest else classes.score


def _winner(op: Builder, classes: Classes, target: Target) -> Seeds:
    index = op.ArgMax(_summed_over_positions(op, classes), axis=classes.axis, keepdims=1)
    flat = op.Reshape(index, np.array([-1], np.int64))
    flat.shape = [classes.score.shape[0]]
    return Seeds([_one_hot(op, classes, index)], flat, None, [])


def _first_k(op: Builder, classes: Classes, target: Target) -> Seeds:
    (count,) = target.numbers
    sums = _summed_over_positions(op, classes)
    found = op.TopK(sums, np.array([count], np.int64), outputs=2, axis=classes.axis)[1]
    made = [_one_hot(op, classes, op.slice(found, [classes.axis], [k], [1])) for k in range(count)]
    index = op.Reshape(found, np.array([-1, count], np.int64))
    index.shape = [classes.score.shape[0], count]
    return Seeds(made, index, None, [], many=True)


CLASS_TARGETS: dict[str, Callable[[Builder, Classes, Target], Seeds]] = {
    "index": _fixed_classes,
    "list": _fixed_classes,
    "argmax": _winner,
    "topk": _first_k,
}


def _for_every_sample(op: Builder, score: Tensor, numbers: Any, several: bool) -> Tensor:
    """The same numbers for each sample: [N, K] when there are several, else [N].

    Zeros of [N] carry the batch: a shape put together from N and K would be a node on the CPU.
    """
    batch = op.vector([op.dim(score, 0)])
    zeros = op.ConstantOfShape(batch, value=np.zeros(1, np.int64))
    made = op.Add(op.Unsqueeze(zeros, np.array([1], np.int64)), numbers) if several else op.Add(zeros, numbers)
    made.shape = [score.shape[0], len(numbers)] if several else [score.shape[0]]
    return made


def _one_hot(op: Builder, classes: Classes, index: Tensor) -> Tensor:
    """1 where the position along the class axis equals the index, in the shape of the score."""
    shape = [-1 if a == classes.axis else 1 for a in range(classes.rank)]
    places = op.Reshape(op.range(classes.number), np.array(shape, np.int64))
    return op.expand_like(op.cast_to(op.Equal(places, index), classes.score), classes.score)


def _unit(op: Builder, score: Tensor, target: Target) -> Seeds:
    rank = len(score.shape)
    if len(target.numbers) != rank - 1:
        raise UsageError(
            f"--target {target.text}: names {len(target.numbers)} coordinates, the score {score.name!r} of shape "
            f"{score.shape} needs {rank - 1} behind the batch."
        )
    in_range: Tensor | None = None
    batch_size = op.dim(score, 0)
    for axis, number in enumerate(target.numbers, 1):
        size = op.dim(score, axis)
        if isinstance(size, int) and number >= size:
            raise UsageError(
                f"--target {target.text}: out of range, axis {axis} of the score {score.name!r} has {size} positions."
            )
        if not isinstance(size, int):
            inside = op.Less(op.constant(np.array([number], np.int64)), size)
            in_range = inside if in_range is None else op.And(in_range, inside)
    index = _for_every_sample(op, score, np.array(target.numbers, np.int64), several=True)
    if in_range is not None:
        in_range = op.Expand(in_range, op.vector([batch_size]))
    places = [np.array(number, np.int64) for number in target.numbers]
    return Seeds([_one_at(op, score, places)], index, in_range, [])


def _one_at(op: Builder, score: Tensor, places: Sequence[Any]) -> Tensor:
    """1 at one position of each sample, in the shape of the score; for each axis behind the batch its coordinate, a
    number or int64 [N, 1, ..., 1]."""
    made: Tensor | None = None
    for axis, place in enumerate(places, 1):
        shape = np.array([-1 if a == axis else 1 for a in range(len(score.shape))], np.int64)
        here = op.Equal(op.Reshape(op.range(op.dim(score, axis)), shape), place)
        made = here if made is None else op.And(made, here)
    assert made is not None
    return op.expand_like(op.cast_to(made, score), score)


def _strongest(op: Builder, score: Tensor, target: Target, class_axis: int) -> Seeds:
    """The unit of the highest value in one channel, or in all of them; the first of several.

    Zeiler and Fergus 2013, section 2.1, hand the value itself down and set all others to zero. Here it is 1: every
    method gives a·map for a seed of a·1 with a > 0, so the pictures are the same.
    """
    if len(score.shape) < 2:
        raise UsageError(
            f"--target {target.text}: the score {score.name!r} has rank {len(score.shape)}, and so no units behind the "
            "batch to choose from. Use --target argmax (each value is one score) or --target seed."
        )
    searched, axis, in_range = score, None, None
    if target.kind == "channel":
        searched, axis, in_range = _channel(op, _classes(op, score, target, class_axis), *target.numbers)
    batch = score.shape[0]
    left = op.ArgMax(op.Flatten(searched, axis=1), axis=1, keepdims=1)  # [N,1], counted along the axes searched
    columns: list[Tensor] = []
    for at in range(len(score.shape) - 1, 0, -1):
        if at == axis:
            columns.append(_for_every_sample(op, score, np.array(target.numbers, np.int64), several=True))
            continue
        size = op.vector([op.dim(score, at)])
        columns.append(op.Mod(left, size))
        left = op.Div(left, size)
    index = op.Concat(*reversed(columns), axis=1)
    index.shape = [batch, len(columns)]
    ones = np.array([-1] + [1] * len(columns), np.int64)
    places = [op.Reshape(column, ones) for column in reversed(columns)]
    return Seeds([_one_at(op, score, places)], index, in_range, [])


def _channel(op: Builder, channels: Classes, number: int) -> tuple[Tensor, int, Tensor | None]:
    """One channel of the score, its axis, and bool [N] where only the run can tell whether it exists."""
    if isinstance(channels.number, int):
        return op.slice(channels.score, [channels.axis], [number], [1]), channels.axis, None
    last = op.calc("Sub", channels.number, 1)
    there = op.slice(channels.score, [channels.axis], [op.calc("Min", last, number)], [1])
    inside = op.Less(np.array([number], np.int64), channels.number)
    return there, channels.axis, op.Expand(inside, op.vector([op.dim(channels.score, 0)]))


class Stacked(NamedTuple):
    """The maps of one input in one tensor, [N, ...], of several classes [N, K, ...]; and its shape as far as known."""

    tensor: Tensor
    shape: list[int | str | None]


def stacked(op: Builder, x: Tensor, cotangents: Sequence[Tensor | None], seeds: Seeds) -> Stacked:
    """The maps of one input; several classes are stacked behind the batch.

    Samples whose target does not exist become NaN: an all-zero map would pass for an explanation.
    """
    made = [op.zeros_like(x) if c is None else c for c in cotangents]
    if seeds.in_range is not None:
        exists = seeds.in_range
        if not x.shape or x.shape[0] is None or exists.shape is None or exists.shape[0] != x.shape[0]:
            # The score's samples are not the input's, so that any of them may reach any map.
            kept = op.ReduceMin(op.Cast(exists, to=TensorProto.INT32), keepdims=1)
            exists = op.Cast(kept, to=TensorProto.BOOL)
        shape = np.array(([-1] + [1] * (len(x.shape) - 1)) if x.shape else [], np.int64)
        exists = op.Reshape(exists, shape)
        made = [op.Where(exists, c, np.full((), np.nan, numpy_dtype(c))) for c in made]
    if not seeds.many:
        return Stacked(made[0], list(x.shape))
    axis = 1 if len(x.shape) else 0
    parts = [op.Unsqueeze(c, np.array([axis], np.int64)) for c in made]
    return Stacked(op.Concat(*parts, axis=axis), [*x.shape[:1], len(made), *x.shape[1:]])

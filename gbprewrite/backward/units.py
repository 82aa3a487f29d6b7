"""One unit of a score, or several: which it is, and the cotangent that is 1 there and 0 elsewhere."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.errors import UsageError
from gbprewrite.model.tensors import Dim, Tensor
from gbprewrite.select.class_axis import Counting, words
from gbprewrite.select.target import Target


class Seeds(NamedTuple):
    """`cotangents` of the score, one for each class; `indices` as they go out; `in_range` bool [N] where that must be
    asked at run time; `inputs` that the graph gains; `many` when the maps get an axis of classes; `unbatched` when the
    model's inputs have no axis of samples."""

    cotangents: list[Tensor]
    indices: Tensor | None
    in_range: Tensor | None
    inputs: list[gs.Variable]
    many: bool = False
    unbatched: bool = False


class Classes(NamedTuple):
    """The classes of a score with the samples first: their axis, their number where the graph fixes it, how the score
    is counted, and those that are looked at where a target searches (None: all of them)."""

    score: Tensor
    axis: int
    number: Dim
    counting: Counting
    subset: Sequence[int] | None = None

    @property
    def rank(self) -> int:
        """Number of axes of the score."""
        return len(self.score.shape)

    def looked_at(self, op: Builder, values: Tensor) -> Tensor:
        """Of values [N, ..., classes, ...] those that are looked at."""
        if self.subset is None:
            return values
        first, count = self.subset[0], len(self.subset)
        if list(self.subset) == list(range(first, first + count)):
            return op.slice(values, [self.axis], [first], [count])
        return op.Gather(values, np.array(self.subset, np.int64), axis=self.axis)

    def numbered(self, op: Builder, index: Tensor) -> Tensor:
        """The classes that stand at these positions of what is looked at."""
        if self.subset is None:
            return index
        found = op.Gather(np.array(self.subset, np.int64), index, axis=0)
        return found if index.shape is None else op.declare(found, index.shape)


def for_every_sample(op: Builder, score: Tensor, numbers: Any, several: bool) -> Tensor:
    """The same numbers for each sample: [N, K] when there are several, else [N].

    Zeros of [N] carry the batch: a shape put together from N and K would be a node on the CPU.
    """
    batch = op.vector([op.dim(score, 0)])
    zeros = op.ConstantOfShape(batch, value=np.zeros(1, np.int64))
    made = op.Add(op.Unsqueeze(zeros, np.array([1], np.int64)), numbers) if several else op.Add(zeros, numbers)
    return op.declare(made, [score.shape[0], len(numbers)] if several else [score.shape[0]])


def unit(op: Builder, score: Tensor, target: Target, counting: Counting) -> Seeds:
    """The unit at a position of a score with the samples first."""
    rank = len(score.shape)
    if len(target.numbers) != rank - 1:
        raise UsageError(
            f"--target {target.text}: names {len(target.numbers)} coordinates, the score {counting.name!r} of shape "
            f"{words(counting.shape)} needs {rank - 1}, one for each axis but that of the samples."
        )
    in_range: Tensor | None = None
    batch_size = op.dim(score, 0)
    for axis, number in enumerate(target.numbers, 1):
        size = op.dim(score, axis)
        if isinstance(size, int) and number >= size:
            at = counting.order()[axis - (counting.batch_axis is None)]
            raise UsageError(
                f"--target {target.text}: out of range, axis {at} of the score {counting.name!r} has {size} positions."
            )
        if not isinstance(size, int):
            inside = op.Less(op.constant(np.array([number], np.int64)), size)
            in_range = inside if in_range is None else op.And(in_range, inside)
    index = for_every_sample(op, score, np.array(target.numbers, np.int64), several=True)
    if in_range is not None:
        in_range = op.Expand(in_range, op.vector([batch_size]))
    places = [np.array(number, np.int64) for number in target.numbers]
    return Seeds([one_at(op, score, places)], index, in_range, [])


def one_at(op: Builder, score: Tensor, places: Sequence[Any]) -> Tensor:
    """1 at one position of each sample, in the shape of the score; for each axis behind the batch its coordinate, a
    number or int64 [N, 1, ..., 1]."""
    made: Tensor | None = None
    for axis, place in enumerate(places, 1):
        shape = np.array([-1 if a == axis else 1 for a in range(len(score.shape))], np.int64)
        here = op.Equal(op.Reshape(op.range(op.dim(score, axis)), shape), place)
        made = here if made is None else op.And(made, here)
    assert made is not None
    return op.expand_like(op.cast_to(made, score), score)


def strongest(op: Builder, classes: Classes, target: Target) -> Seeds:
    """The unit of the highest value in one channel, or in all that are looked at; the first of several.

    Zeiler and Fergus 2013, section 2.1, hand the value itself down and set all others to zero. Here it is 1: every
    method gives a·map for a seed of a·1 with a > 0, so the pictures are the same.
    """
    score, axis, in_range = classes.score, None, None
    searched = classes.looked_at(op, score)
    if target.kind == "channel":
        axis = classes.axis
        searched, in_range = _channel(op, classes, *target.numbers)
    left = op.ArgMax(op.Flatten(searched, axis=1), axis=1, keepdims=1)  # [N,1], counted along the axes searched
    columns: list[Tensor] = []
    for at in range(classes.rank - 1, 0, -1):
        if at == axis:
            columns.append(for_every_sample(op, score, np.array(target.numbers, np.int64), several=True))
            continue
        narrowed = at == classes.axis and classes.subset is not None
        size = op.vector([len(classes.subset or ()) if narrowed else op.dim(score, at)])
        column = op.Mod(left, size)
        columns.append(classes.numbered(op, column) if narrowed else column)
        left = op.Div(left, size)
    index = op.Concat(*reversed(columns), axis=1)
    op.declare(index, [score.shape[0], len(columns)])
    return Seeds([_one_at_columns(op, score, columns[::-1])], index, in_range, [])


def strongest_places(op: Builder, classes: Classes, target: Target) -> Seeds:
    """The K highest units no two of which stand at the same position, highest first, each with its own cotangent.

    A position has a coordinate for every axis behind the batch but the classes', so that only the strongest class of a
    detector's anchor counts. Where values are equal the first position comes first (TopK says so), and at one position
    the first class.
    """
    score, counting, (count,) = classes.score, classes.counting, target.numbers
    others = [a for a in range(1, classes.rank) if a != classes.axis]
    sizes = [op.dim(score, a) for a in others]
    places = op.product(sizes)
    if isinstance(places, int) and count > places:
        raise UsageError(
            f"--target {target.text}: the score {counting.name!r} of shape {words(counting.shape)} has {places} "
            f"position{'s' * (places != 1)} beside its class axis {counting.class_axis}, so K is at most {places}."
            + (" For the K highest classes use --target topk:K." if places == 1 else "")
        )
    searched = classes.looked_at(op, score)
    best = op.Flatten(op.ReduceMax(searched, np.array([classes.axis], np.int64), keepdims=1), axis=1)
    winner = op.Flatten(op.ArgMax(searched, axis=classes.axis, keepdims=1), axis=1)
    left = op.TopK(best, np.array([count], np.int64), outputs=2, axis=1)[1]  # [N,K]
    columns = {classes.axis: classes.numbered(op, op.GatherElements(winner, left, axis=1))}
    for axis, size in zip(others[::-1], sizes[::-1], strict=True):
        columns[axis] = op.Mod(left, op.vector([size]))
        left = op.Div(left, op.vector([size]))
    ordered = [columns[a] for a in range(1, classes.rank)]
    index = op.Concat(*(op.Unsqueeze(c, np.array([2], np.int64)) for c in ordered), axis=2)
    op.declare(index, [score.shape[0], count, len(ordered)])
    made = [_one_at_columns(op, score, [op.slice(c, [1], [k], [1]) for c in ordered]) for k in range(count)]
    return Seeds(made, index, None, [], many=True)


def _one_at_columns(op: Builder, score: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """1 at one position of each sample, whose coordinates are int64 [N,1] each."""
    ones = np.array([-1] + [1] * len(columns), np.int64)
    return one_at(op, score, [op.Reshape(column, ones) for column in columns])


def _channel(op: Builder, channels: Classes, number: int) -> tuple[Tensor, Tensor | None]:
    """One channel of the score, and bool [N] where only the run can tell whether it exists."""
    if isinstance(channels.number, int):
        return op.slice(channels.score, [channels.axis], [number], [1]), None
    last = op.calc("Sub", channels.number, 1)
    there = op.slice(channels.score, [channels.axis], [op.calc("Min", last, number)], [1])
    inside = op.Less(np.array([number], np.int64), channels.number)
    return there, op.Expand(inside, op.vector([op.dim(channels.score, 0)]))

"""What is explained → the first dy.

A `Target` is what the user asked for; `seeds` turns it into cotangents of the score, one for each explained class.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.backward import units
from gbprewrite.backward.builder import Builder
from gbprewrite.backward.regions import region
from gbprewrite.backward.units import Classes, Seeds
from gbprewrite.errors import UsageError
from gbprewrite.model.tensors import Tensor, fixed, numpy_dtype
from gbprewrite.select import subset
from gbprewrite.select.class_axis import Counting, words
from gbprewrite.select.target import Target

LARGEST_SEED = 2.0**100  # what masks reckon with


def seeds(
    op: Builder, score: Tensor, target: Target, counting: Counting, names: dict[str, str], channels: str | None = None
) -> Seeds:
    """The cotangents that a target stands for; `channels` are those that a target that searches looks at.

    Raises UsageError when an index is out of range, when the unit has another rank than the score, or when it can't be
    told which axis holds the classes.
    """
    op.enter("seed")
    if channels is not None and not target.searches:
        raise UsageError(
            f"--channels {channels}: --target {target.text} says what is explained, and nothing is looked for. Leave "
            "--channels out, or use --target argmax, topk:K, strongest, strongest:K or region."
        )
    if target.kind == "seed":
        given = gs.Variable(names["seed"], score.dtype, score.shape)
        return Seeds([op.bounded(given, LARGEST_SEED)], None, None, [given])
    if target.searches or target.kind == "channel":
        counting.of_samples()
    counted = samples_first(op, score, counting)
    if target.one_unit:
        made = _of_units(op, counted, target, counting, channels)
    else:
        counted = _with_class_axis(op, counted, counting.known())
        classes = _looked_at(_classes(op, counted, target, counting), target, channels)
        made = CLASS_TARGETS[target.kind](op, classes, target, names)
    made = made._replace(unbatched=counting.unbatched)
    if counted is score:
        return made
    back = [op.pull_back(counted, dy, [score])[0] for dy in made.cotangents]
    return made._replace(cotangents=[op.zeros_like(score) if dy is None else dy for dy in back])


def samples_first(op: Builder, score: Tensor, counting: Counting) -> Tensor:
    """The score as it is counted: moved as the model moves it, with the axis of the samples first."""
    for node in counting.moves:
        (moved,) = op.emit(node.op, [score, *node.inputs[1:]], dict(node.attrs), 1)
        score = op.shaped_like(moved, node.outputs[0])
    if counting.batch_axis is None:
        return op.Unsqueeze(score, np.array([0], np.int64))
    return op.Transpose(score, perm=counting.order()) if counting.batch_axis else score


def _with_class_axis(op: Builder, counted: Tensor, counting: Counting) -> Tensor:
    """The score with an axis for its one class, where it has none."""
    return op.Unsqueeze(counted, np.array([1], np.int64)) if counting.class_axis is None else counted


def _of_units(op: Builder, counted: Tensor, target: Target, counting: Counting, channels: str | None) -> Seeds:
    """The cotangents of single units of a score with the samples first."""
    if target.kind == "unit":
        return units.unit(op, counted, target, counting)
    if len(counted.shape) < 2:
        raise UsageError(
            f"--target {target.text}: the score {counting.name!r} has rank {len(counting.shape)}, and so no units "
            "behind the batch to choose from. Use --target argmax (each value is one score) or --target seed."
        )
    if target.kind == "strongest" and not target.many and channels is None:  # needs no class axis
        return units.strongest(op, Classes(counted, 1, -1, counting), target)
    if counting.known().class_axis is None and (target.kind == "channel" or channels is not None):
        raise UsageError(
            f"--target {target.text}: the score {counting.name!r} {words(counting.shape)} has no axis of channels "
            f"({counting.why}). Use --target strongest."
        )
    with_axis = _with_class_axis(op, counted, counting)
    classes = _looked_at(_classes(op, with_axis, target, counting), target, channels)
    made = (units.strongest_places if target.many else units.strongest)(op, classes, target)
    if with_axis is counted:
        return made
    back = [op.pull_back(with_axis, dy, [counted])[0] for dy in made.cotangents]
    assert made.indices is not None
    last, behind = len(made.indices.shape) - 1, len(counted.shape) - 1
    return made._replace(cotangents=back, indices=op.slice(made.indices, [last], [1], [behind]))


def _looked_at(classes: Classes, target: Target, channels: str | None) -> Classes:
    """The classes, and which of them --channels leaves to look at."""
    if channels is None:
        return classes
    counting = classes.counting
    score = f"the score {counting.name!r} (axis {counting.class_axis} of {words(counting.shape)})"
    if not isinstance(classes.number, int):
        raise UsageError(
            f"--channels {channels}: {score} does not fix the length of its class axis. Choose another with "
            "--class-axis AXIS, or export the model with a fixed one."
        )
    found = subset.numbers_of(channels, classes.number, score)
    if target.kind == "topk" and target.numbers[0] > len(found):
        raise UsageError(
            f"--target {target.text}: --channels {channels} leaves {len(found)} classes, so K is at most {len(found)}."
        )
    return classes._replace(subset=found)


def _classes(op: Builder, score: Tensor, target: Target, counting: Counting) -> Classes:
    """The classes, or channels, of a score with the samples first."""
    at = counting.class_axis
    axis = 1 if at is None else counting.order().index(at) + (counting.batch_axis is None)
    count = op.dim(score, axis)
    bounded = () if target.kind == "strongest" else target.numbers  # the K of strongest:K counts positions
    if isinstance(count, int) and any(n >= count + (target.kind == "topk") for n in bounded):
        named = "channels" if target.kind == "channel" else "classes" if count != 1 else "class"
        allowed = f"K is at most {count}" if target.kind == "topk" else f"indices run from 0 to {count - 1}"
        where = f"axis {at} of {words(counting.shape)}" if at is not None else counting.why
        raise UsageError(
            f"--target {target.text}: out of range, the score {counting.name!r} has {count} {named} ({where}), so "
            f"{allowed}."
        )
    return Classes(score, axis, count, counting)


def _fixed_classes(op: Builder, classes: Classes, target: Target, names: dict[str, str]) -> Seeds:
    one = np.ones(classes.rank, np.int64)
    made = [_one_hot(op, classes, op.Reshape(np.array([n], np.int64), one)) for n in target.numbers]
    indices = units.for_every_sample(op, classes.score, np.array(target.numbers, np.int64), target.many)
    in_range = None
    if not fixed(classes.number):
        inside = op.Less(np.array([max(target.numbers)], np.int64), classes.number)
        in_range = op.Expand(inside, op.vector([op.dim(classes.score, 0)]))
    return Seeds(made, indices, in_range, [], target.many)


def _at_run_time(op: Builder, classes: Classes, target: Target, names: dict[str, str]) -> Seeds:
    batch = classes.score.shape[0]
    given = gs.Variable(names["target"], np.dtype(np.int64), [batch])
    index = op.Reshape(given, np.array([-1] + [1] * (classes.rank - 1), np.int64))
    op.declare(index, [batch] + [1] * (classes.rank - 1))
    in_range = op.And(op.GreaterOrEqual(given, 0), op.Less(given, op.vector([classes.number])))
    return Seeds([_one_hot(op, classes, index)], given, in_range, [given])


def _summed_over_positions(op: Builder, classes: Classes) -> Tensor:
    rest = [a for a in range(1, classes.rank) if a != classes.axis and classes.score.shape[a] != 1]
    return op.ReduceSum(classes.score, np.array(rest, np.int64), keepdims=1) if rest else classes.score


def _winner(op: Builder, classes: Classes, target: Target, names: dict[str, str]) -> Seeds:
    sums = classes.looked_at(op, _summed_over_positions(op, classes))
    index = classes.numbered(op, op.ArgMax(sums, axis=classes.axis, keepdims=1))
    flat = op.Reshape(index, np.array([-1], np.int64))
    op.declare(flat, [classes.score.shape[0]])
    return Seeds([_one_hot(op, classes, index)], flat, None, [])


def _first_k(op: Builder, classes: Classes, target: Target, names: dict[str, str]) -> Seeds:
    (count,) = target.numbers
    sums = classes.looked_at(op, _summed_over_positions(op, classes))
    found = classes.numbered(op, op.TopK(sums, np.array([count], np.int64), outputs=2, axis=classes.axis)[1])
    made = [_one_hot(op, classes, op.slice(found, [classes.axis], [k], [1])) for k in range(count)]
    index = op.Reshape(found, np.array([-1, count], np.int64))
    op.declare(index, [classes.score.shape[0], count])
    return Seeds(made, index, None, [], many=True)


CLASS_TARGETS: dict[str, Callable[[Builder, Classes, Target, dict[str, str]], Seeds]] = {
    "index": _fixed_classes,
    "list": _fixed_classes,
    "argmax": _winner,
    "topk": _first_k,
    "input": _at_run_time,
    "region": region,
}


def _one_hot(op: Builder, classes: Classes, index: Tensor) -> Tensor:
    """1 where the position along the class axis equals the index, in the shape of the score."""
    shape = [-1 if a == classes.axis else 1 for a in range(classes.rank)]
    places = op.Reshape(op.range(classes.number), np.array(shape, np.int64))
    return op.expand_like(op.cast_to(op.Equal(places, index), classes.score), classes.score)


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
    axis = 1 if len(x.shape) and not seeds.unbatched else 0
    parts = [op.Unsqueeze(c, np.array([axis], np.int64)) for c in made]
    return Stacked(op.Concat(*parts, axis=axis), [*x.shape[:axis], len(made), *x.shape[axis:]])

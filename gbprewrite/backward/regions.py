"""A class of a segmentation, summed over its own predicted region: the positions that say it.

A position says the class of its highest score. Where classes do not exclude each other, or where there is only one, it
says each class whose probability is above one half: behind a Sigmoid, and with a single class.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.units import Classes, Seeds
from gbprewrite.errors import UsageError
from gbprewrite.model.tensors import Tensor, numpy_dtype
from gbprewrite.select.class_axis import words
from gbprewrite.select.target import Target


def region(op: Builder, classes: Classes, target: Target, names: dict[str, str]) -> Seeds:
    """The cotangent that is 1 where a position says the class: the one of the target, or that of the largest region.

    Samples in which no position says it do not have it. Raises UsageError for a score without positions.
    """
    score, counting = classes.score, classes.counting
    positions = [a for a in range(1, classes.rank) if a != classes.axis]
    if all(score.shape[a] == 1 for a in positions):
        raise UsageError(
            f"--target {target.text}: the score {counting.name!r} {words(counting.shape)} has no positions, and so no "
            "region. Use --target argmax or the index of a class."
        )
    said = _said(op, classes)
    if target.numbers:
        index = op.Reshape(np.array(target.numbers, np.int64), np.ones(classes.rank, np.int64))
    else:
        sizes = op.ReduceSum(op.Cast(said, to=TensorProto.FLOAT), np.array(positions, np.int64), keepdims=1)
        index = classes.numbered(op, op.ArgMax(classes.looked_at(op, sizes), axis=classes.axis, keepdims=1))
    chosen = op.shaped_like(op.And(said, op.Equal(_numbers(op, classes), index)), score)
    size = op.ReduceSum(op.Cast(chosen, to=TensorProto.FLOAT), np.arange(1, classes.rank), keepdims=0)
    exists = op.Greater(size, np.array(0, np.float32))
    op.declare(exists, [score.shape[0]])
    return Seeds([op.cast_to(chosen, score)], _of_samples(op, classes, index, target), exists, [])


def _said(op: Builder, classes: Classes) -> Tensor:
    """Whether each position says each class, bool in the shape of the score."""
    above = classes.counting.said_above
    if above is not None:
        return op.Greater(classes.score, np.array(above, numpy_dtype(classes.score)))
    return op.Equal(_numbers(op, classes), op.ArgMax(classes.score, axis=classes.axis, keepdims=1))


def _numbers(op: Builder, classes: Classes) -> Tensor:
    """The numbers of the classes, along their axis."""
    shape = [-1 if a == classes.axis else 1 for a in range(classes.rank)]
    return op.Reshape(op.range(classes.number), np.array(shape, np.int64))


def _of_samples(op: Builder, classes: Classes, index: Tensor, target: Target) -> Tensor:
    """The class of each sample, [N]."""
    batch = op.vector([op.dim(classes.score, 0)])
    flat = op.Reshape(index, np.array([-1], np.int64))
    made = op.Expand(flat, batch) if target.numbers else flat
    return op.declare(made, [classes.score.shape[0]])


def said_by(values: NDArray[Any], above: float | None) -> NDArray[np.bool_]:
    """Of a score's values [samples, classes, ...] whether each position says each class, in the same shape."""
    if above is not None:
        return np.asarray(values > above)
    numbers = np.arange(values.shape[1]).reshape(1, -1, *[1] * (values.ndim - 2))
    return np.asarray(values.argmax(axis=1)[:, None] == numbers)

"""Products of a cotangent with a matrix along one axis."""

import numpy as np

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.masks import selection
from gbprewrite.model.tensors import Tensor, numpy_dtype, rank


def times_matrix(op: Builder, dy: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """dx = A dy along one axis, A of shape [inputs, outputs]."""
    last = rank(dy) - 1
    if axis == last:
        return op.MatMul(dy, op.Transpose(matrix, perm=[1, 0]))
    if axis == last - 1:
        return op.MatMul(matrix, dy)
    perm = list(range(last + 1))
    perm[axis], perm[last] = last, axis
    moved = op.MatMul(op.Transpose(dy, perm=perm), op.Transpose(matrix, perm=[1, 0]))
    return op.Transpose(moved, perm=perm)


def apply_matrix(op: Builder, dy: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """dx = A dy along one axis, A of shape [inputs, outputs], of a cotangent: what A has 0 for does not reach it.

    So an infinite dy leaves those places finite that it has no part in.
    """
    if op.finite(dy):
        return times_matrix(op, dy, matrix, axis)
    wide = op.wide(dy)
    finite = op.Less(op.Abs(wide), np.array(np.inf, numpy_dtype(wide)))
    bad = op.cast_to(op.Not(finite), wide)
    taken = op.cast_to(op.Not(op.Equal(op.wide(matrix), 0)), bad)
    reached = op.Greater(times_matrix(op, bad, taken, axis), 0)
    clean = times_matrix(op, selection(op, dy, finite), matrix, axis)
    made: Tensor = op.Where(reached, times_matrix(op, dy, matrix, axis), clean)
    return made

"""Reductions. Source: https://onnx.ai/onnx/operators/onnx__ReduceSum.html and its neighbours."""

from typing import Any, NamedTuple

import numpy as np

from gbprewrite.backward.rules.elementwise import zero
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import HALF, constant_of, onnx_type, rank


class Over(NamedTuple):
    """The axes of a reduction: non-negative numbers where they are known, else the tensor that holds them."""

    axes: Any
    noop: int = 1

    @property
    def known(self):
        return isinstance(self.axes, np.ndarray)


def reduction(formula):
    """Wrap a formula of (op, dy, y, x, over) so that dy and y have the rank of x and empty axes mean all."""

    def rule(op, dy, y, x, axes=None, *, keepdims, noop_with_empty_axes):
        over = axes_of(x, axes, noop_with_empty_axes)
        if not over.known:
            kept = op.Shape(summed(op, x, over))
            dy, y = (op.with_rank(op.Reshape(v, kept), rank(x)) for v in (dy, y))
        elif not keepdims:
            dims = [1 if axis in over.axes else dim for axis, dim in enumerate(op.dims(x))]
            dy, y = op.reshape(dy, dims), op.reshape(y, dims)
        return op.expand_like(formula(op, dy, y, x, over), x)

    rule.__doc__ = formula.__doc__
    return rule


def axes_of(x, axes, noop):
    """The axes a reduction runs over."""
    value = constant_of(axes)
    if axes is not None and value is None:
        return Over(axes, noop)
    if value is not None and value.size:
        return Over(np.sort(value.ravel() % rank(x)))
    return Over(np.arange(0 if noop else rank(x)))


def summed(op, v, over):
    """Sum over axes, which stay with length 1."""
    return op.ReduceSum(v, over.axes, keepdims=1, noop_with_empty_axes=over.noop)


@vjp("ReduceSum")
@reduction
def reduce_sum(op, dy, y, x, over):
    """dx = dy"""
    return dy


@vjp("ReduceMean")
@reduction
def reduce_mean(op, dy, y, x, over):
    """dx = dy / n"""
    if over.known:
        return op.divided(dy, op.product([op.dim(x, axis) for axis in over.axes]))
    return op.divided(dy, op.Div(op.Size(x), op.Size(dy)))


@vjp("ReduceMax")
@reduction
def reduce_max(op, dy, y, x, over):
    """dx = dy · (x = y) / number of elements equal to y"""
    return shared(op, dy, y, x, over, op.ReduceMax)


@vjp("ReduceMin")
@reduction
def reduce_min(op, dy, y, x, over):
    """dx = dy · (x = y) / number of elements equal to y"""
    return shared(op, dy, y, x, over, op.ReduceMin)


def shared(op, dy, y, x, over, extremum):
    """The cotangent of an extremum's elements; in half precision as for Max, in elementwise.py."""
    if onnx_type(x) in HALF:
        x = op.wide(x)
        y = extremum(x, over.axes, keepdims=1, noop_with_empty_axes=over.noop)
    equal = op.Equal(x, y)
    mask = op.cast_to(equal, x)
    share = op.Div(op.cast_to(dy, x), summed(op, mask, over))
    return op.cast_to(op.Mul(mask, share) if op.finite(dy) else op.Where(equal, share, zero(x)), dy)


@vjp("ReduceProd")
@reduction
def reduce_prod(op, dy, y, x, over):
    """dx = dy · product of the other elements (right where a single one is zero as well)"""
    is_zero = op.Equal(x, 0)
    rest = op.Where(is_zero, op.ones_like(x), x)
    zeros = summed(op, op.cast_to(is_zero, x), over)
    others = op.ReduceProd(rest, over.axes, keepdims=1, noop_with_empty_axes=over.noop)
    without_zero = op.Where(op.Equal(zeros, 0), op.Div(others, rest), zero(x))
    at_the_zero = op.Where(op.And(is_zero, op.Equal(zeros, 1)), others, zero(x))
    return op.Mul(dy, op.Add(without_zero, at_the_zero))


@vjp("ReduceL1")
@reduction
def reduce_l1(op, dy, y, x, over):
    """dx = dy · sign x"""
    return op.Mul(dy, op.Sign(x))


@vjp("ReduceL2")
@reduction
def reduce_l2(op, dy, y, x, over):
    """dx = dy · x / y (0 where y = 0)"""
    positive = op.Greater(y, 0)
    return op.Mul(x, op.Where(positive, op.Div(dy, op.Where(positive, y, op.ones_like(y))), zero(y)))


@vjp("ReduceSumSquare")
@reduction
def reduce_sum_square(op, dy, y, x, over):
    """dx = dy · 2x"""
    return op.Mul(dy, op.Add(x, x))


@vjp("ReduceLogSum")
@reduction
def reduce_log_sum(op, dy, y, x, over):
    """dx = dy / exp y"""
    return op.Mul(dy, op.Exp(op.Neg(y)))


@vjp("ReduceLogSumExp")
@reduction
def reduce_log_sum_exp(op, dy, y, x, over):
    """dx = dy · exp(x - y)"""
    return op.Mul(dy, op.Exp(op.Sub(x, y)))

"""Operators that pick values by index, and put them: the VJP of picking is adding, that of putting is picking.

Source: https://onnx.ai/onnx/operators/onnx__GatherElements.html, onnx__ScatterElements.html and their neighbours.
"""

import numpy as np

from gbprewrite.backward.rules.elementwise import zero
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import rank


@vjp("Gather")
def gather(op, dy, y, x, indices, *, axis):
    """dx[indices] += dy along the axis"""
    axis %= rank(x)
    before, size, after = op.dims(x)[:axis], op.dim(x, axis), op.dims(x)[axis + 1 :]
    flat = op.Reshape(indices, np.array([-1], np.int64))
    count = op.product(op.dims(indices))
    rows = op.reshape(dy, [*before, count, *after])
    return op.reshape_like(op.scatter_along(rows, flat, axis, size), x)


@vjp("GatherElements")
def gather_elements(op, dy, y, x, indices, *, axis):
    """dx[indices] += dy"""
    return op.scatter_add(op.zeros_like(x), indices, dy, axis=axis)


@vjp("GatherND")
def gather_nd(op, dy, y, x, indices, *, batch_dims):
    """dx[indices] += dy"""
    if batch_dims:  # each batch axis becomes one more coordinate
        lead = op.dims(indices)[:-1]
        grids = [
            op.Expand(op.reshape(op.range(lead[b]), [lead[b] if a == b else 1 for a in range(len(lead) + 1)]),
                      op.vector([*lead, 1]))
            for b in range(batch_dims)
        ]  # fmt: skip
        indices = op.Concat(*grids, op.cast_to(indices, grids[0]), axis=-1)
    return op.scatter_nd_add(op.zeros_like(x), indices, dy)


@vjp("ScatterElements", "Scatter")
def scatter_elements(op, dy, y, x, indices, updates, *, axis, reduction="none"):
    """dx = dy where nothing was put,  dupdates = dy at the indices; a product or extremum shares as Mul and Max do"""

    def pick(v):
        return op.GatherElements(v, indices, axis=axis)

    def put(onto, values, how):
        if how == "add":
            return op.scatter_add(onto, indices, values, axis=axis)
        return op.ScatterElements(onto, indices, values, axis=axis, reduction=how)

    return scattered(op, dy, y, x, updates, reduction, pick, put)


@vjp("ScatterND")
def scatter_nd(op, dy, y, x, indices, updates, *, reduction="none"):
    """dx = dy where nothing was put,  dupdates = dy at the indices; a product or extremum shares as Mul and Max do"""

    def put(onto, values, how):
        if how == "add":
            return op.scatter_nd_add(onto, indices, values)
        return op.ScatterND(onto, indices, values, reduction=how)

    return scattered(op, dy, y, x, updates, reduction, lambda v: op.GatherND(v, indices), put)


def scattered(op, dy, y, x, updates, reduction, pick, put):
    """The cotangents of x and updates, for each way in which a scatter treats what meets in one place."""
    if reduction == "none":
        return (lambda: put(dy, op.zeros_like(updates), "none")), None, lambda: pick(dy)
    if reduction == "add":
        return dy, None, lambda: pick(dy)
    if reduction == "mul":
        return product_scattered(op, dy, x, updates, pick, put)
    won = op.cast_to(op.Equal(updates, pick(y)), dy)
    kept = op.cast_to(op.Equal(x, y), dy)
    share = op.Div(dy, put(kept, won, "add"))
    return op.Mul(share, kept), None, lambda: op.Mul(pick(share), won)


def product_scattered(op, dy, x, updates, pick, put):
    """VJP of x · Π updates, right where a factor is zero as well: one zero leaves the product of the others."""
    is_zero = [op.Equal(v, 0) for v in (x, updates)]
    zeros = put(*(op.cast_to(z, dy) for z in is_zero), "add")
    rest = [op.Where(z, op.ones_like(v), v) for z, v in zip(is_zero, (x, updates), strict=True)]
    others = op.Mul(dy, put(*rest, "mul"))

    def share(zero_here, factor, zeros, others):
        none = op.Where(op.Equal(zeros, 0), op.Div(others, factor), zero(dy))
        one = op.Where(op.Equal(zeros, 1), others, zero(dy))
        return op.Where(zero_here, one, none)

    return (
        share(is_zero[0], rest[0], zeros, others),
        None,
        lambda: share(is_zero[1], rest[1], pick(zeros), pick(others)),
    )


@vjp("TopK", all_outputs=True)
def top_k(op, dys, ys, x, k, *, axis):
    """dx[indices] = dy"""
    return op.ScatterElements(op.zeros_like(x), ys[1], dys[0], axis=axis)


@vjp("Compress")
def compress(op, dy, y, x, condition, *, axis):
    """dx = dy where the condition held, zeros elsewhere"""
    places = op.with_rank(op.Reshape(op.NonZero(condition), np.array([-1], np.int64)), 1)
    if axis is None:
        return op.reshape_like(op.scatter_along(dy, places, 0, op.product(op.dims(x))), x)
    return op.scatter_along(dy, places, axis % rank(x), op.dim(x, axis))


@vjp("CumSum")
def cum_sum(op, dy, y, x, axis, *, exclusive, reverse):
    """dx = CumSum(dy) the other way round"""
    return op.CumSum(dy, axis, exclusive=exclusive, reverse=1 - reverse)


@vjp("CumProd")
def cum_prod(op, dy, y, x, axis, *, exclusive, reverse):
    """dx = Σ of dy·y from here on, / x; at the first zero the products without it"""
    back = {"exclusive": exclusive, "reverse": 1 - reverse}
    is_zero = op.Equal(x, 0)
    before = op.CumSum(op.cast_to(is_zero, dy), axis, exclusive=1, reverse=reverse)
    first = op.And(is_zero, op.Equal(before, 0))
    without = op.CumProd(op.Where(first, op.ones_like(x), x), axis, exclusive=exclusive, reverse=reverse)
    at_zero = op.CumSum(op.Mul(dy, without), axis, **back)
    elsewhere = op.Div(op.CumSum(op.Mul(dy, y), axis, **back), op.Where(is_zero, op.ones_like(x), x))
    return op.Where(is_zero, op.Where(first, at_zero, zero(dy)), elsewhere)


@vjp("ReverseSequence")
def reverse_sequence(op, dy, y, x, lengths, *, batch_axis, time_axis):
    """dx = dy, reversed back"""
    return op.ReverseSequence(dy, lengths, batch_axis=batch_axis, time_axis=time_axis)


@vjp("TensorScatter")
def tensor_scatter(op, dy, y, x, update, start=None, *, axis, mode):
    """dx = dy outside the window that was written, dupdate = dy inside it"""
    lead = op.dims(update)
    axis %= rank(x)
    ordered = op.range(lead[axis])
    shape = [-1 if a == axis else 1 for a in range(rank(x))]
    places = op.Reshape(ordered, np.array(shape, np.int64))
    if start is not None:
        batch = np.array([-1] + [1] * (rank(x) - 1), np.int64)
        places = op.Add(places, op.Reshape(start, batch))
    if mode == "circular":
        places = op.Mod(places, op.vector([op.dim(x, axis)]))
    places = op.Expand(places, op.vector(lead))
    return (
        lambda: op.ScatterElements(dy, places, op.zeros_like(update), axis=axis),
        lambda: op.GatherElements(dy, places, axis=axis),
    )

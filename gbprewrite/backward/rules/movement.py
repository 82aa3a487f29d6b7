"""Operators that move values without changing them: their VJP moves the cotangents back.

Pad with a copied border is linear and acts along one axis at a time; the matrix of that map is the operator itself
applied to an identity matrix, which is exact for every mode and in every runtime.
Source: the operator pages of https://onnx.ai/onnx/operators/.
"""

import numpy as np

from gbprewrite.backward.lowering.matrices import apply_matrix
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import constant_of, fixed, rank


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(op, dy, y, x, *shape_or_axes):
    """dx = dy, in the shape of x"""
    return op.reshape_like(dy, x)


@vjp("Transpose")
def transpose(op, dy, y, x, *, perm):
    """dx = dy, axes permuted back"""
    perm = perm or list(reversed(range(rank(x))))
    return op.Transpose(dy, perm=[int(a) for a in np.argsort(perm)])


@vjp("Expand")
def expand(op, dy, y, x, shape):
    """dx = dy, summed to the shape of x"""
    return dy


@vjp("Tile")
def tile(op, dy, y, x, repeats):
    """dx = Σ over the copies"""
    count = constant_of(repeats)
    if count is None:
        return moved_back(op, dy, x, lambda places: op.Tile(places, repeats))
    pairs = [d for n, dim in zip(count, op.dims(x), strict=True) for d in (int(n), dim)]
    return op.reshape_like(op.ReduceSum(op.reshape(dy, pairs), np.arange(0, len(pairs), 2), keepdims=0), x)


@vjp("Concat")
def concat(op, dy, y, *xs, axis):
    """dxᵢ = the part of dy that came from xᵢ"""
    sizes = [op.dim(x, axis) for x in xs]
    starts = [0]
    for size in sizes[:-1]:
        starts.append(op.calc("Add", starts[-1], size))
    return tuple(
        (lambda start=start, size=size: op.slice(dy, [axis % rank(y)], [start], [size]))
        for start, size in zip(starts, sizes, strict=True)
    )


@vjp("Split", all_outputs=True)
def split(op, dys, ys, x, sizes=None, *, axis):
    """dx = the parts' cotangents, joined (zeros where there is none)"""
    like = next(dy for dy in dys if dy is not None)
    parts = [op.zeros(op.dims(y), like) if dy is None else dy for dy, y in zip(dys, ys, strict=True)]
    return op.Concat(*parts, axis=axis)


@vjp("Slice")
def slice_(op, dy, y, x, starts, ends, axes=None, steps=None):
    """dx = dy in its place, zeros around it"""
    given = [constant_of(t) for t in (starts, ends, axes, steps)]
    if any(value is None and t is not None for value, t in zip(given, (starts, ends, axes, steps), strict=True)):
        return _slice_at_run_time(op, dy, x, starts, ends, axes, steps)
    begin, end, over, step = given
    over = np.arange(begin.size) if over is None else over
    step = np.ones(begin.size, np.int64) if step is None else step
    for b, e, axis, s in zip(begin.tolist(), end.tolist(), over.tolist(), step.tolist(), strict=True):
        size = x.shape[axis]
        if s == 1 and fixed(size):
            first, last, _ = slice(b, e).indices(size)
            dy = op.pad(dy, [axis % rank(x)], [first], [size - max(last, first)])
        elif s == 1 and b >= 0 and e < 0:
            dy = op.pad(dy, [axis % rank(x)], [b], [-e])
        else:
            index = op.Slice(op.range(op.dim(x, axis)), *(np.array([v], np.int64) for v in (b, e, 0, s)))
            dy = op.scatter_along(dy, index, axis % rank(x), op.dim(x, axis))
    return dy


def moved_back(op, dy, x, move):
    """dx of any y = move(x) that only moves values: move their positions, and add dy where these say.

    Positions count from 1. What comes from nowhere has position 0, and its dy goes there.
    """
    count = op.product(op.dims(x))
    places = op.reshape_like(op.Add(op.range(count), 1), x)
    places = op.with_rank(op.Reshape(move(places), np.array([-1], np.int64)), 1)
    flat = op.with_rank(op.Reshape(dy, np.array([-1], np.int64)), 1)
    dx = op.scatter_add(op.zeros([op.calc("Add", count, 1)], dy), places, flat, axis=0)
    return op.reshape_like(op.slice(dx, [0], [1], [count]), x)


def _slice_at_run_time(op, dy, x, starts, ends, axes, steps):
    over = constant_of(axes) if axes is not None else np.arange(starts.shape[0] if starts.shape else 1)
    if over is None:
        return moved_back(op, dy, x, lambda places: op.Slice(places, starts, ends, axes, steps))
    for i, axis in enumerate(over.tolist()):
        here = np.array([i], np.int64), np.array([i + 1], np.int64)
        start, end, step = (None if t is None else op.Slice(t, *here) for t in (starts, ends, steps))
        index = op.Slice(op.range(op.dim(x, axis)), start, end, np.array([0], np.int64), step)
        op.declare(index, [None])
        dy = op.scatter_along(dy, index, axis % rank(x), op.dim(x, axis))
    return dy


@vjp("Pad")
def pad(op, dy, y, x, pads, value=None, axes=None, *, mode):
    """dx = dy without the border (constant), or with the border added to where it came from"""
    widths, over = constant_of(pads), constant_of(axes)
    if (axes is not None and over is None) or (mode != "constant" and widths is None):
        return moved_back(op, dy, x, lambda places: op.Pad(places, pads, None, axes, mode=mode))
    over = [int(a) % rank(x) for a in over] if over is not None else list(range(rank(x)))
    count = len(over)
    if mode == "constant" and widths is not None:
        left, right = (-widths[:count]).tolist(), (-widths[count:]).tolist()
        return op.shaped_like(op.pad(dy, over, left, right), x)
    if mode == "constant":
        begin, end = (op.Slice(pads, np.array([i]), np.array([i + count])) for i in (0, count))
        sizes = op.Shape(dy) if axes is None else op.vector([op.dim(dy, axis) for axis in over])
        kept = op.Slice(dy, op.Max(begin, 0), op.Sub(sizes, op.Max(end, 0)), np.array(over))
        return op.shaped_like(op.Pad(kept, op.Max(op.Neg(pads), 0), None, axes), x)
    for i, axis in enumerate(over):
        if widths[i] or widths[i + count]:
            border = np.array([0, widths[i], 0, widths[i + count]], np.int64)
            dy = apply_matrix(op, dy, op.Pad(op.eye(op.dim(x, axis), dy), border, mode=mode), axis)
    return op.shaped_like(dy, x)


@vjp("DepthToSpace")
def depth_to_space(op, dy, y, x, *, blocksize, mode):
    """dx = SpaceToDepth(dy)"""
    if mode == "DCR":
        return op.SpaceToDepth(dy, blocksize=blocksize)
    n, c, h, w = op.dims(x)
    planes = op.calc("Div", c, blocksize * blocksize)
    blocks = op.reshape(dy, [n, planes, h, blocksize, w, blocksize])
    return op.reshape_like(op.Transpose(blocks, perm=[0, 1, 3, 5, 2, 4]), x)


@vjp("SpaceToDepth")
def space_to_depth(op, dy, y, x, *, blocksize, mode="DCR"):
    """dx = DepthToSpace(dy)"""
    return op.DepthToSpace(dy, blocksize=blocksize, mode=mode)

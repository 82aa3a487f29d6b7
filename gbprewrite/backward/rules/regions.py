"""Reading at free positions: GridSample, RoiAlign, MaxRoiPool, DeformConv.

A value between pixels is that of sampling.py; at free positions it is read by a gather (`sample`).

Sources: https://onnx.ai/onnx/operators/onnx__GridSample.html and its neighbours RoiAlign, MaxRoiPool and DeformConv;
Girshick 2015, section 2.1 (RoI pooling); He et al. 2017, section 3 (RoIAlign); Dai et al. 2017 (deformable
convolution).
"""

import itertools

import numpy as np
from onnx import TensorProto

from gbprewrite.backward.rules.elementwise import zero
from gbprewrite.backward.rules.sampling import TAPS, interpolation, polynomial, split
from gbprewrite.backward.rules.table import decomposed, vjp
from gbprewrite.model.bounds import check_constant
from gbprewrite.model.tensors import numpy_dtype, rank


def sample(op, x, positions, taps, padding):
    """Values of x [B, C, S...] at free positions, one [B, P] for each axis of S; [B, C, P].

    padding "zeros": beyond the border is 0; "border": the border goes on; or a function of (op, place, axis) that
    brings places back inside.
    """
    first, polynomials = taps
    sizes = op.dims(x)[2:]
    parts = [split(op, u) for u in positions]
    strides = [op.product(sizes[a + 1 :]) for a in range(len(sizes))]
    flat = op.reshape(x, [*op.dims(x)[:2], op.product(sizes)])
    count = op.dim(positions[0], 1)
    total = None
    for choice in itertools.product(range(len(polynomials)), repeat=len(sizes)):
        weight, index = None, None
        for axis, t in enumerate(choice):
            base, f = parts[axis]
            place = op.Add(base, t + first)
            factor = polynomial(op, polynomials[t], f)
            limit = op.vector([op.calc("Sub", sizes[axis], 1)])
            if padding == "zeros":
                inside = op.cast_to(op.And(op.GreaterOrEqual(place, 0), op.LessOrEqual(place, limit)), x)
                factor = inside if factor is None else op.Mul(factor, inside)
            elif padding != "border":
                place = padding(op, place, axis)
            place = op.Min(op.Max(place, 0), limit)
            step = op.Mul(place, op.vector([strides[axis]])) if axis + 1 < len(sizes) else place
            index = step if index is None else op.Add(index, step)
            weight = factor if weight is None or factor is None else op.Mul(weight, factor)
        picked = op.Expand(op.Unsqueeze(index, np.array([1])), op.vector([*op.dims(flat)[:2], count]))
        value = op.GatherElements(flat, picked, axis=2)
        part = value if weight is None else op.Mul(value, op.Unsqueeze(weight, np.array([1])))
        total = part if total is None else op.Add(total, part)
    return total


@decomposed("GridSample")
def grid_sample(op, x, grid, *, align_corners, mode, padding_mode):
    """dx, dgrid: the reverse walk over Σ of taps read at the grid's positions"""
    sizes = op.dims(x)[2:]
    n, *out, _ = op.dims(grid)
    mode = mode.removeprefix("bi")
    positions, reflections = [], []
    for axis, size in enumerate(sizes):
        g = op.Gather(grid, np.array(len(sizes) - 1 - axis), axis=rank(grid) - 1)
        g = op.reshape(g, [n, op.product(out)])
        half = op.Mul(op.Add(op.cast_to(g, x), 1), 0.5)
        low = 0.0 if align_corners else -0.5
        last = op.as_float(op.calc("Sub", size, 1), x)
        span = last if align_corners else op.as_float(size, x)  # from the first border to the last
        u = op.Add(op.Mul(half, span), low) if low else op.Mul(half, span)
        if mode == "nearest":
            u = op.Round(u)
        reflections.append((low, span))
        if padding_mode == "border":
            u = op.Min(op.Max(u, 0), last)
        elif padding_mode == "reflection":
            u = reflect(op, u, low, span)
        positions.append(u)

    def back_inside(op, place, axis):
        return op.Cast(op.Round(reflect(op, op.cast_to(place, x), *reflections[axis])), to=7)

    padding = back_inside if padding_mode == "reflection" else padding_mode
    return op.reshape(sample(op, x, positions, TAPS[mode], padding), [*op.dims(x)[:2], *out])


def reflect(op, u, low, span):
    """Positions folded back between low and low + span."""
    t = op.Sub(u, low) if low else u
    double = 2 * span if isinstance(span, float) else op.Mul(span, 2)
    t = op.Sub(t, op.Mul(op.Floor(op.Div(t, double)), double))
    folded = op.Min(t, op.Sub(double, t))
    return op.Add(folded, low) if low else folded


@vjp("AffineGrid")
def affine_grid(op, dy, y, theta, size, *, align_corners):
    """dθ = dyᵀ · (base grid, 1), where the base grid is that of the identity"""
    d = size.shape[0] - 2
    identity = op.expand_like(np.eye(d, d + 1, dtype=numpy_dtype(theta))[None], theta)
    rows = np.array([0, -1, d], np.int64)
    base = op.with_rank(op.Reshape(op.AffineGrid(identity, size, align_corners=align_corners), rows), 3)
    one = op.filled(op.Shape(op.Slice(base, np.array([0]), np.array([1]), np.array([2]))), 1, theta)
    points = op.Concat(base, one, axis=2)
    return op.MatMul(op.Transpose(op.with_rank(op.Reshape(dy, rows), 3), perm=[0, 2, 1]), points)


@decomposed("RoiAlign")
def roi_align(
    op, x, rois, batch, *, coordinate_transformation_mode, mode, output_height, output_width, sampling_ratio,
    spatial_scale,
):  # fmt: skip
    """dx, drois: the reverse walk over Σ of bins read as two matrices, Wy · x · Wxᵀ"""
    half = coordinate_transformation_mode == "half_pixel"
    axes = []
    for axis, bins in ((1, output_height), (0, output_width)):
        start, end = (
            op.Sub(op.Mul(op.Gather(rois, np.array([j]), axis=1), spatial_scale), 0.5 if half else 0.0)
            for j in (axis, axis + 2)
        )
        length = op.Sub(end, start) if half else op.Max(op.Sub(end, start), 1)
        axes.append(bin_samples(op, start, length, bins, sampling_ratio))  # [R, bins · samples] positions, and weights
    images = op.Gather(x, batch, axis=0)
    if mode == "max":
        return roi_max(op, images, axes, [output_height, output_width])
    y = images
    for (u, weight), size, axis, bins in zip(axes, op.dims(x)[2:], (2, 3), (output_height, output_width), strict=True):
        matrix = op.Mul(roi_interpolation(op, u, size), op.Unsqueeze(weight, np.array([2])))
        r, samples, _ = op.dims(matrix)
        bins_of = op.reshape(matrix, [r, bins, op.calc("Div", samples, bins), size])
        matrix = op.ReduceSum(bins_of, np.array([2], np.int64), keepdims=0)  # [R, bins, size]
        matrix = op.Unsqueeze(matrix, np.array([1]))
        y = op.MatMul(matrix, y) if axis == 2 else op.MatMul(y, op.Transpose(matrix, perm=[0, 1, 3, 2]))
    return y


def bin_samples(op, start, length, bins, ratio):
    """Positions [R, bins · samples] along one axis, and the weight of each in its bin's mean."""
    bin_length = op.Div(length, float(bins))
    if ratio > 0:
        samples, count = ratio, None
        number = op.range(ratio)
        step = op.Div(bin_length, float(ratio))
    else:  # as many as the region is long, which differs from region to region
        count = op.Max(op.Ceil(bin_length), 1)
        samples = op.Reshape(op.Cast(op.ReduceMax(count, keepdims=0), to=7), np.array([1]))
        samples = op.int64_vector(samples, 1)
        number = op.range(samples)
        step = op.Div(bin_length, count)
    i = op.cast_to(op.reshape(number, [1, 1, samples]), start)
    p = op.cast_to(op.reshape(op.range(bins), [1, bins, 1]), start)
    wide = np.array([2])
    bin_start = op.Add(op.Unsqueeze(start, wide), op.Mul(p, op.Unsqueeze(bin_length, wide)))
    u = op.Add(bin_start, op.Mul(op.Add(i, 0.5), op.Unsqueeze(step, wide)))
    if count is None:
        weight = op.filled(op.Shape(u), 1 / ratio, start)
    else:
        within = op.Less(i, op.Unsqueeze(count, wide))
        weight = op.Expand(op.Where(within, op.Reciprocal(op.Unsqueeze(count, wide)), zero(start)), op.Shape(u))
    shape = [op.dim(start, 0), op.calc("Mul", bins, samples)]
    return op.reshape(u, shape), op.reshape(weight, shape)


def roi_clamped(op, u, size):
    """Positions that are read, and whether they are at all: up to one pixel outside counts as the border."""
    valid = op.cast_to(op.And(op.GreaterOrEqual(u, -1), op.LessOrEqual(u, op.as_float(size, u))), u)
    return op.Min(op.Max(u, 0), op.as_float(op.calc("Sub", size, 1), u)), valid


def roi_interpolation(op, u, size):
    """[R, samples, size]"""
    inside, valid = roi_clamped(op, u, size)
    return op.Mul(interpolation(op, inside, size, TAPS["linear"]), op.Unsqueeze(valid, np.array([2])))


def roi_max(op, images, axes, bins):
    """The largest weighted corner of any sample of a bin, as the standard's mode "max" has it."""
    corners = []
    for (u, weight), size in zip(axes, op.dims(images)[2:], strict=True):
        inside, valid = roi_clamped(op, u, size)
        base, f = split(op, inside)
        first, polynomials = TAPS["linear"]
        taken = op.Greater(weight, 0)
        one_axis = []
        for t, coefficients in enumerate(polynomials, first):
            place = op.Min(op.Add(base, t), op.vector([op.calc("Sub", size, 1)]))
            here = op.cast_to(op.Equal(op.Unsqueeze(place, np.array([2])), op.range(size)), f)
            one_axis.append((here, op.Mul(polynomial(op, coefficients, f), valid)))
        corners.append((one_axis, taken))
    (rows, row_taken), (columns, column_taken) = corners
    best = []
    for (row, wy), (column, wx) in itertools.product(rows, columns):
        value = op.MatMul(op.Unsqueeze(row, np.array([1])), images)
        value = op.MatMul(value, op.Unsqueeze(op.Transpose(column, perm=[0, 2, 1]), np.array([1])))
        value = op.Mul(value, op.Unsqueeze(wy, np.array([1, 3])))
        best.append(op.Mul(value, op.Unsqueeze(wx, np.array([1, 2]))))
    top = op.Max(*best)
    taken = op.And(op.Unsqueeze(row_taken, np.array([1, 3])), op.Unsqueeze(column_taken, np.array([1, 2])))
    top = op.Where(taken, top, np.array(-np.inf).astype(zero(top).dtype))
    r, c, samples_y, samples_x = op.dims(top)
    shape = [r, c, bins[0], op.calc("Div", samples_y, bins[0]), bins[1], op.calc("Div", samples_x, bins[1])]
    return op.ReduceMax(op.reshape(top, shape), np.array([3, 5], np.int64), keepdims=0)


@vjp("MaxRoiPool")
def max_roi_pool(op, dy, y, x, rois, *, pooled_shape, spatial_scale):
    """dx[switch] += dy: every bin of a region gives its cotangent to its first maximum"""
    n, c, h, w = op.dims(x)
    image, *corners = (op.Gather(rois, np.array(j), axis=1) for j in range(5))
    image = op.Cast(image, to=TensorProto.INT64)
    left, top, right, bottom = (rounded(op, op.Mul(v, spatial_scale)) for v in corners)
    rows = in_bins(op, top, bottom, pooled_shape[0], h)  # [R, bins, H]
    columns = in_bins(op, left, right, pooled_shape[1], w)
    lowest = np.array(-np.inf).astype(zero(x).dtype)
    taken = op.Unsqueeze(op.Gather(x, image, axis=0), np.array([3]))  # [R, C, H, 1, W]
    strips = op.Where(op.Unsqueeze(columns, np.array([1, 2])), taken, lowest)
    best, column = first_maximum(op, strips, 4)  # [R, C, H, bins]
    bins = op.Where(op.Unsqueeze(rows, np.array([1, 4])), op.Unsqueeze(best, np.array([2])), lowest)
    best, row = first_maximum(op, bins, 3)  # [R, C, bins, bins]
    column = op.GatherElements(column, row, axis=2)
    place = op.Add(op.Mul(row, op.vector([w])), column)
    plane = op.Add(op.Mul(op.Unsqueeze(image, np.array([1])), op.vector([c])), op.range(c))
    place = op.Add(place, op.Mul(op.Unsqueeze(plane, np.array([2, 3])), op.vector([op.calc("Mul", h, w)])))
    given = op.Where(op.Greater(best, lowest), dy, zero(dy))  # an empty bin is 0 whatever x is
    flat = (op.with_rank(op.Reshape(v, np.array([-1], np.int64)), 1) for v in (place, given))
    dx = op.scatter_add(op.zeros([op.product([n, c, h, w])], dy), *flat, axis=0)
    return op.reshape_like(dx, x)


def rounded(op, v):
    """The nearest integer, halves away from zero."""
    return op.Mul(op.Sign(v), op.Floor(op.Add(op.Abs(v), 0.5)))


def in_bins(op, start, end, bins, size):
    """[R, bins, size]: whether a place belongs to a bin of the regions start [R] to end [R]; bins may overlap."""
    wide = np.array([1])
    length = op.Unsqueeze(op.Div(op.Max(op.Add(op.Sub(end, start), 1), 1), float(bins)), wide)
    number = op.cast_to(op.range(bins), start)
    low = op.Add(op.Floor(op.Mul(number, length)), op.Unsqueeze(start, wide))
    high = op.Add(op.Ceil(op.Mul(op.Add(number, 1), length)), op.Unsqueeze(start, wide))
    places, last = op.cast_to(op.range(size), start), np.array([2])
    return op.And(op.GreaterOrEqual(places, op.Unsqueeze(low, last)), op.Less(places, op.Unsqueeze(high, last)))


def first_maximum(op, v, axis):
    """(the maximum along an axis, the first place where it stands)"""
    return op.ReduceMax(v, np.array([axis], np.int64), keepdims=0), op.ArgMax(v, axis=axis, keepdims=0)


@decomposed("DeformConv")
def deform_conv(
    op, x, w, offset, b=None, mask=None, *, dilations, group, kernel_shape, offset_group, pads, strides
):  # fmt: skip
    """dx, dw, doffset, db, dmask: the reverse walk over a product of w with values read at the moved taps"""
    kernel = kernel_shape or list(w.shape[2:])
    n, c, *sizes = op.dims(x)
    d = len(kernel)
    outputs = op.dims(offset)[2:]
    taps = int(np.prod(kernel))
    check_constant(taps, "the taps of its kernel, a list")
    begin = list(pads or [0] * (2 * d))[:d]
    strides, dilations = strides or [1] * d, dilations or [1] * d
    images = op.calc("Mul", n, offset_group)
    moved = op.reshape(offset, [images, taps, d, *outputs])
    points = op.calc("Mul", taps, op.product(outputs))
    positions = []
    for axis in range(d):
        shape = [-1 if a == axis else 1 for a in range(d)]
        tap = np.arange(kernel[axis]).reshape(shape) * dilations[axis] - begin[axis]
        tap = np.broadcast_to(tap, kernel).reshape([1, taps] + [1] * d)
        output = op.Mul(op.Reshape(op.range(outputs[axis]), np.array([1, 1, *shape])), strides[axis])
        still = op.cast_to(op.Add(output, tap.astype(np.int64)), x)
        place = op.Add(op.Gather(moved, np.array(axis), axis=2), still)
        positions.append(op.reshape(place, [images, points]))
    planes = op.reshape(x, [images, op.calc("Div", c, offset_group), *sizes])
    read = sample(op, planes, positions, TAPS["linear"], "zeros")
    read = op.reshape(read, [n, offset_group, op.calc("Div", c, offset_group), taps, op.product(outputs)])
    if mask is not None:
        read = op.Mul(read, op.reshape(mask, [n, offset_group, 1, taps, op.product(outputs)]))
    columns = op.reshape(read, [n, group, op.calc("Mul", op.calc("Div", c, group), taps), op.product(outputs)])
    filters = op.reshape(w, [1, group, op.calc("Div", op.dim(w, 0), group), op.calc("Mul", op.dim(w, 1), taps)])
    y = op.reshape(op.MatMul(filters, columns), [n, op.dim(w, 0), *outputs])
    return y if b is None else op.Add(y, op.Reshape(b, np.array([1, -1] + [1] * d, np.int64)))

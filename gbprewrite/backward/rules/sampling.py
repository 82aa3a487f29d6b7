"""Reading between the pixels along an axis: Resize.

Between pixels a value is Σ over taps of a polynomial in the fractional position times the pixel there; `TAPS` holds
these polynomials. Along one axis that is a matrix (`interpolation`); free positions are in regions.py.

Sources: https://onnx.ai/onnx/operators/onnx__Resize.html; Keys 1981 (cubic convolution).
"""

import numpy as np
from onnx import TensorProto

from gbprewrite.backward.lowering.matrices import apply_matrix, times_matrix
from gbprewrite.backward.rules.elementwise import zero
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import Refused, constant_of, fixed, rank, same_shape


def cubic_taps(a):
    """Keys' four polynomials in the fraction, highest power first."""
    f = np.poly1d([1, 0])
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (f, 1 - f)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (f + 1, 2 - f)]
    return [p.coeffs.tolist() for p in (far[0], *near, far[1])]


# mode → (place of the first tap, polynomials of the fraction)
TAPS = {"nearest": (0, [[1.0]]), "linear": (0, [[-1.0, 1.0], [1.0, 0.0]]), "cubic": (-1, cubic_taps(-0.75))}


def polynomial(op, coefficients, f):
    """Horner's scheme; None stands for the constant 1."""
    if coefficients == [1.0]:
        return None
    value = op.Mul(f, coefficients[0])
    for c in coefficients[1:-1]:
        value = op.Mul(op.Add(value, c), f)
    return op.Add(value, coefficients[-1]) if coefficients[-1] else value


def split(op, u):
    """(int64 floor, fraction) of positions."""
    base = op.Floor(u)
    return op.Cast(base, to=7), op.Sub(u, base)


def interpolation(op, u, size, taps):
    """[..., outputs, size] matrix that reads at positions u [..., outputs]; beyond the border the border goes on."""
    first, polynomials = taps
    base, f = split(op, u)
    last = np.array([-1], np.int64)
    total = None
    for t, coefficients in enumerate(polynomials, first):
        place = op.Min(op.Max(op.Add(base, t), 0), op.vector([op.calc("Sub", size, 1)]))
        here = op.cast_to(op.Equal(op.Unsqueeze(place, last), op.range(size)), u)
        weight = polynomial(op, coefficients, f)
        part = here if weight is None else op.Mul(op.Unsqueeze(weight, last), here)
        total = part if total is None else op.Add(total, part)
    return total


@vjp("Resize")
def resize(op, dy, y, x, roi=None, scales=None, sizes=None, **mode):
    """dx = Aᵀ dy along every axis, A = the same Resize of an identity matrix"""
    axes = mode.pop("axes", None)
    over = [a % rank(x) for a in axes or range(rank(x))]
    policy = mode.pop("keep_aspect_ratio_policy", "stretch")
    if mode["coordinate_transformation_mode"] == "tf_crop_and_resize":
        return cropped(op, dy, y, x, roi, scales, over, mode)
    if sizes is not None and policy != "stretch":
        if any(a < 0 for a in axes or []):
            raise Refused(
                "onnxruntime does not apply keep_aspect_ratio_policy to axes that are counted from the end; export it "
                "with positive axes"
            )
        return in_proportion(op, dy, y, x, sizes, policy, over, mode)
    if same_shape(x, y) and all(fixed(d) for d in x.shape):
        return dy  # onnxruntime copies, whatever the scales are
    factors = constant_of(scales)
    given = scales is not None and (factors is None or factors.size > 0)
    scaled = [i for i in range(len(over)) if not given or factors is None or factors[i] != 1]
    little = given and factors is not None and all(1 < factors[i] < 1.5 for i in scaled)
    copied = everywhere(op, x, y) if little and not (_is_fixed(x) and _is_fixed(y)) else None
    for i in scaled:
        axis = over[i]
        if not given:
            if y.shape is None or x.shape[axis] is None or x.shape[axis] != y.shape[axis]:
                dy = apply_matrix(op, dy, _by_length(op, dy, op.dim(x, axis), op.dim(y, axis), mode), axis)
        elif factors is not None and 1 < factors[i] < 1.5 and _may_stay(x, y, axis):
            dy = apply_matrix(op, dy, _by_a_little(op, dy, op.dim(x, axis), factors[i], mode, copied), axis)
        else:
            factor = op.Slice(scales, np.array([i]), np.array([i + 1])) if factors is None else factors[i : i + 1]
            dy = apply_matrix(op, dy, _by_scale(op, dy, op.dim(x, axis), factor, mode), axis)
    return op.shaped_like(dy, x)


def _by_length(op, dy, size, outputs, mode):
    """[size, outputs] matrix of an axis whose length is given."""
    return op.Resize(op.eye(size, dy), None, None, op.vector([size, outputs]), **mode)


def _by_scale(op, dy, size, factor, mode):
    """[size, outputs] matrix of an axis that is scaled by a factor [1]."""
    one = np.ones(1, np.float32)
    is_known = isinstance(factor, np.ndarray)
    return op.Resize(op.eye(size, dy), None, np.r_[one, factor] if is_known else op.Concat(one, factor, axis=0), **mode)


def _by_a_little(op, dy, size, factor, mode, copied):
    """[size, outputs] matrix of an axis that is scaled by less than one pixel.

    onnxruntime copies what keeps its shape, as this matrix might where another axis of the model changes. So it gets a
    further axis of one pixel, which becomes two. `copied`: whether each axis of the model keeps its length, None where
    it is known that one does not.
    """
    planes = op.Unsqueeze(op.eye(size, dy), np.array([0, 2], np.int64))
    resized = op.Resize(planes, None, np.array([1, 1, 2, factor], np.float32), **mode)
    matrix = op.Squeeze(op.slice(resized, [2], [0], [1]), np.array([0, 2], np.int64))
    if copied is None:
        return matrix
    return op.Where(copied, _identity(op, size, op.dim(matrix, 1), dy), matrix)


def everywhere(op, x, y):
    """Whether no axis changes its length, bool []."""
    same = op.Cast(op.Equal(op.Shape(x), op.Shape(y)), to=TensorProto.INT32)
    return op.Cast(op.ReduceMin(same, keepdims=0), to=TensorProto.BOOL)


def _identity(op, rows, columns, like):
    """1 where row and column are the same number, else 0; the lengths may differ."""
    return op.cast_to(op.Equal(op.Unsqueeze(op.range(rows), np.array([1])), op.range(columns)), like)


def _is_fixed(x):
    return x.shape is not None and all(fixed(d) for d in x.shape)


def _may_stay(x, y, axis):
    """Whether the length of an axis may be the same before and after."""
    before, after = x.shape[axis], None if y.shape is None else y.shape[axis]
    return not (fixed(before) and fixed(after)) or before == after


def resize_matrix(op, u, size, scale, mode):
    """[outputs, size] matrix that reads at positions u [outputs]; `scale` [1] is outputs per input."""
    if mode["mode"] == "nearest":
        return interpolation(op, nearest(op, u, mode["nearest_mode"]), size, TAPS["nearest"])
    if mode["antialias"] or mode["exclude_outside"]:
        return filtered(op, u, size, scale, mode)
    taps = (-1, cubic_taps(mode["cubic_coeff_a"])) if mode["mode"] == "cubic" else TAPS["linear"]
    return interpolation(op, u, size, taps)


def filtered(op, u, size, scale, mode):
    """A resize matrix whose weights are normalised: a filter that a reduction stretches, or a border left out."""
    support = 2 if mode["mode"] == "cubic" else 1
    squeeze = op.Min(scale, 1) if mode["antialias"] else op.cast_to(op.constant(np.ones(1)), u)
    beyond = op.int64_vector(op.Cast(op.Ceil(op.Div(float(support), squeeze)), to=7), 1)
    count = op.calc("Add", size, op.calc("Mul", beyond, 2))
    places = op.Sub(op.range(count), beyond)
    distance = op.Abs(op.Sub(op.cast_to(places, u), op.Unsqueeze(u, np.array([1]))))
    weights = kernel(op, op.Mul(distance, squeeze), mode)
    inside = op.Min(op.Max(places, 0), op.vector([op.calc("Sub", size, 1)]))  # beyond the border the border goes on
    if mode["exclude_outside"]:
        weights = op.Mul(weights, op.cast_to(op.Equal(places, inside), u))
    weights = op.Div(weights, op.ReduceSum(weights, np.array([1], np.int64), keepdims=1))
    return op.MatMul(weights, op.cast_to(op.Equal(op.Unsqueeze(inside, np.array([1])), op.range(size)), u))


def kernel(op, d, mode):
    """The weight at a distance d ≥ 0: a triangle, or Keys' cubic."""
    if mode["mode"] == "linear":
        return op.Max(op.Sub(1, d), 0)
    a = mode["cubic_coeff_a"]
    near, far = (polynomial(op, c, d) for c in ([a + 2, -(a + 3), 0.0, 1.0], [a, -5 * a, 8 * a, -4 * a]))
    return op.Where(op.LessOrEqual(d, 1), near, op.Where(op.Less(d, 2), far, zero(d)))


def nearest(op, u, how):
    """Positions rounded as nearest_mode says. Fractions are exact where sums with a half are not."""
    if how == "ceil":
        return op.Ceil(u)
    below = op.Floor(u)
    if how == "floor":
        return below
    goes_up = op.Greater if how == "round_prefer_floor" else op.GreaterOrEqual
    return op.Add(below, op.cast_to(goes_up(op.Sub(u, below), 0.5), u))


def cropped(op, dy, y, x, roi, scales, over, mode):
    """VJP of tf_crop_and_resize, through the matrix of each axis and the region it reads.

    onnxruntime copies along an axis of scale 1, whatever the region is, and everything where no length changes.
    """
    factors, outputs = constant_of(scales), op.dims(y)
    given = scales is not None and (factors is None or factors.size > 0)
    known = factors is not None and factors.size > 0
    little = known and all(f == 1 or 1 < f < 1.5 for f in factors)
    if same_shape(x, y) and _is_fixed(x):
        return dy, None

    def matrix_of(roi, i, size, length):
        """[outputs, size]"""
        start, end = (op.Slice(roi, np.array([j]), np.array([j + 1])) for j in (i, i + len(over)))
        last, steps = op.as_float(op.calc("Sub", size, 1), roi), op.calc("Sub", length, 1)
        step = op.Div(op.Mul(op.Sub(end, start), last), op.as_float(op.calc("Max", steps, 1), roi))
        u = op.Add(op.Mul(start, last), op.Mul(op.cast_to(op.range(length), roi), step))
        if not fixed(steps) or steps == 0:  # one pixel is read in the middle
            u = op.Where(op.Equal(op.vector([steps]), 0), op.Mul(op.Mul(op.Add(start, end), 0.5), last), u)
        inside = op.And(op.GreaterOrEqual(u, 0), op.LessOrEqual(u, last))
        factor = factor_along(op, scales, i, length, size, roi)
        matrix = resize_matrix(op, u, size, factor, mode)
        matrix = op.Where(op.Unsqueeze(inside, np.array([1])), matrix, zero(matrix))
        if fixed(size) and fixed(length):
            return matrix
        copies = everywhere(op, x, y) if little else None if known else op.Equal(factor, 1)
        return matrix if copies is None else op.Where(copies, _identity(op, length, size, matrix), matrix)

    def forward(x, roi):
        made = x
        for i, axis in enumerate(over):
            stays = x.shape[axis] is not None and x.shape[axis] == y.shape[axis]
            if (factors[i] == 1) if known else (stays and not given):
                continue
            made = times_matrix(op, made, op.cast_to(matrix_of(roi, i, op.dim(x, axis), outputs[axis]), x), axis)
        return made

    dx, droi = op.pull_back(forward(x, roi), dy, [x, roi])
    return dx, droi


def factor_along(op, scales, i, outputs, size, like):
    """[1] outputs per input along one axis: the scale that was given, or the ratio of the sizes."""
    values = constant_of(scales)
    if scales is not None and (values is None or values.size):
        return op.cast_to(op.Slice(scales, np.array([i]), np.array([i + 1])), like)
    return op.Div(*(op.cast_to(op.vector([d]), like) for d in (outputs, size)))


def in_proportion(op, dy, y, x, sizes, policy, over, mode):
    """VJP of a Resize that keeps proportions: one scale for all axes, so the sizes are only bounds."""
    if mode["mode"] == "nearest":
        return _nearest_in_proportion(op, dy, x, sizes, policy, over, mode)
    lengths = [op.dim(x, a) for a in over]
    bounds, given = (op.Cast(v, to=TensorProto.DOUBLE) for v in (sizes, op.vector(lengths)))
    extreme = op.ReduceMin if policy == "not_larger" else op.ReduceMax
    scale = op.int64_vector(extreme(op.Div(bounds, given), keepdims=1), 1)
    scale.dtype = np.dtype(np.float64)
    for axis, size in zip(over, lengths, strict=True):
        outputs = op.dim(y, axis)
        i = op.Cast(op.range(outputs), to=TensorProto.DOUBLE)
        u = resized_positions(op, i, scale, *(op.cast_to(op.vector([n]), i) for n in (size, outputs)), mode)
        matrix = op.cast_to(resize_matrix(op, u, size, scale, mode), dy)
        if mode["antialias"] and not (fixed(size) and fixed(outputs) and size != outputs):
            # onnxruntime copies then along an axis that keeps its length.
            kept = op.Equal(op.vector([size]), op.vector([outputs]))
            matrix = op.Where(kept, _identity(op, outputs, size, dy), matrix)
        dy = apply_matrix(op, dy, op.Transpose(matrix, perm=[1, 0]), axis)
    return op.shaped_like(dy, x)


def _nearest_in_proportion(op, dy, x, sizes, policy, over, mode):
    """The same Resize of the pixels' own numbers says which pixel is read: its last digit decides between two."""
    ranks = range(rank(x))
    whole = op.vector([op.dim(x, a) if a in over else 1 for a in ranks])
    for axis in over:
        size, others = op.dim(x, axis), [a for a in ranks if a != axis]
        line = op.reshape(op.Cast(op.range(size), to=TensorProto.FLOAT), [size if a == axis else 1 for a in ranks])
        numbers = op.Expand(line, whole)
        read = op.Resize(numbers, None, None, sizes, axes=over, keep_aspect_ratio_policy=policy, **mode)
        read = op.slice(read, others, [0] * len(others), [1] * len(others))
        column = op.Reshape(op.Cast(read, to=TensorProto.INT64), np.array([-1, 1], np.int64))
        matrix = op.cast_to(op.Equal(column, op.range(size)), dy)
        dy = apply_matrix(op, dy, op.Transpose(matrix, perm=[1, 0]), axis)
    return op.shaped_like(dy, x)


def resized_positions(op, i, scale, inputs, outputs, mode):
    """Where output i reads its input, as the table on the Resize page says."""
    how = mode["coordinate_transformation_mode"]
    if how == "align_corners":
        return op.Div(op.Mul(i, op.Sub(inputs, 1)), op.Max(op.Sub(outputs, 1), 1))
    if how == "asymmetric":
        return op.Div(i, scale)
    centred = op.Sub(op.Div(op.Add(i, 0.5), scale), 0.5)
    if how == "half_pixel_symmetric":  # the centre stays where it is although lengths are rounded
        exact = op.Mul(scale, inputs)
        return op.Add(centred, op.Mul(op.Mul(inputs, 0.5), op.Sub(1, op.Div(outputs, exact))))
    return op.Where(op.Greater(outputs, 1), centred, zero(i)) if how == "pytorch_half_pixel" else centred

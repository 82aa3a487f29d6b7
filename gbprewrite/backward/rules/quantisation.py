"""Quantised operators, differentiated as their dequantised meaning.

The cotangent of a quantised tensor is that of the real number it stands for. Quantising passes it straight through
where it only rounds, and stops it where the level is cut off at an end of the type's range: the straight-through
estimator of Bengio et al. 2013, as in Jacob et al. 2018, section 3, and in torch.fake_quantize_per_tensor_affine. The
view splits every QLinear operator into the operator proper and a `Saturation` behind it, which looks at the real number
that was quantised, computed again for the purpose.

Sources: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, onnx__QLinearConv.html;
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (QLinearAdd and its kin).
"""

import numpy as np
from onnx import TensorProto

from gbprewrite.backward.lowering.convolutions import conv_input_grad
from gbprewrite.backward.lowering.masks import mask
from gbprewrite.backward.lowering.pools import average_pool_grad
from gbprewrite.backward.rules.linear import gemm, matmul
from gbprewrite.backward.rules.pooling import global_average_pool
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.qlinear import QLINEAR, real
from gbprewrite.model.tensors import Refused, numpy_dtype, quantised_range, rank

# operator → positions of the two scales whose product is the step of its accumulator
ACCUMULATES = {"QLinearConv": (1, 4), "QLinearMatMul": (1, 4), "QGemm": (1, 4)}


def per_axis(op, v, x, axis):
    """A scale or zero point, shaped so that it broadcasts over x."""
    if rank(v) == 0 or rank(x) == 0 or v.shape == [1]:
        return op.Reshape(v, np.array([], np.int64)) if rank(v) else v
    return op.Reshape(v, np.array([-1 if a == axis % rank(x) else 1 for a in range(rank(x))], np.int64))


@vjp("QuantizeLinear")
def quantize_linear(op, dy, y, x, scale, zero_point=None, *, axis, block_size=0, bottom="closed"):
    """dx = dy inside the representable range, 0 where x saturates; dy for a score given out"""
    if block_size:
        raise Refused("it quantises in blocks values that depend on the input")
    return inside(op, dy, y, x, scale, zero_point, axis, bottom)


@vjp("Saturation")
def saturation(op, dy, y, x, *, bottom="closed"):
    """dx = dy inside the representable range, 0 where y saturates; dy for a score given out"""
    # The level alone does not tell a value that rounds to the end of the range from one that lies beyond it.
    made = x.inputs[0]
    given = [t if t.name else None for t in made.inputs]
    value = real(op, made.op, *given, **made.attrs)
    scale, zero = (given[i] for i in QLINEAR[made.op])
    return inside(op, dy, y, value, scale, zero, rank(y) - 2, bottom, accumulator_step(op, made.op, given, value))


def accumulator_step(op, operator, inputs, value):
    """What a product of levels counts in, shaped like its value; None where there is no product."""
    if operator not in ACCUMULATES:
        return None
    first, second = ACCUMULATES[operator]
    step = op.Mul(inputs[first], inputs[second])
    return per_axis(op, step, value, 1 if operator == "QLinearConv" else -1)


def inside(op, dy, y, x, scale, zero_point, axis, bottom, accumulator=None):
    """dy where quantising x to y only rounds, 0 where it cuts off; `bottom` as in gbprewrite.view.quantised.

    A score that the graph gives out is not cut off: its range is that of the calibration pictures, and for a picture
    that the network is surer of the map would be empty. `accumulator` is the distance between neighbouring values of x,
    which tells 0 from a rounding error.
    """
    if bottom == "output":
        return dy
    if numpy_dtype(x).itemsize < 4:  # bounds of 16 bits overflow there
        x = op.Cast(x, to=TensorProto.FLOAT)
    low, high = quantised_range(y)
    step = op.cast_to(per_axis(op, scale, x, axis), x)
    kind = numpy_dtype(x)
    zero = np.zeros((), kind) if zero_point is None else op.cast_to(per_axis(op, zero_point, x, axis), x)
    lowest, top = (op.Mul(op.Sub(np.array(v).astype(kind), zero), step) for v in (low - 0.5, high + 0.5))
    below = op.Less(x, top)
    if bottom == "open":
        return mask(op, dy, below)
    if bottom == "closed":
        return mask(op, dy, op.And(op.GreaterOrEqual(x, lowest), below))
    return mask(op, dy, op.And(op.Greater(x, 0 if accumulator is None else op.Mul(accumulator, 0.5)), below))


@vjp("DequantizeLinear")
def dequantize_linear(op, dy, y, x, scale, zero_point=None, *, axis, block_size=0):
    """dx = dy,  dscale = Σ dy · (x - zero point)"""

    def dscale():
        if block_size:
            return blocked(op, dy, x, scale, zero_point, axis % rank(x), block_size)
        shifted = op.cast_to(x, dy)
        if zero_point is not None:
            shifted = op.Sub(shifted, op.cast_to(per_axis(op, zero_point, x, axis), dy))
        product = op.Mul(dy, shifted)
        if rank(scale) == 0 or rank(x) == 0:
            return op.sum_to(op.cast_to(product, scale), scale)
        axes = [a for a in range(rank(x)) if a != axis % rank(x)]
        return op.cast_to(op.ReduceSum(product, np.array(axes, np.int64), keepdims=0, noop_with_empty_axes=1), scale)

    return dy, dscale


def blocked(op, dy, x, scale, zero_point, axis, size):
    """dscale where each block along an axis has a scale of its own."""
    sizes = op.dims(scale)
    spread = [*sizes[: axis + 1], size, *sizes[axis + 1 :]]
    shifted = op.cast_to(op.reshape(x, spread), dy)
    if zero_point is not None:
        shifted = op.Sub(shifted, op.Unsqueeze(op.cast_to(zero_point, dy), np.array([axis + 1])))
    product = op.Mul(op.reshape(dy, spread), shifted)
    return op.cast_to(op.ReduceSum(product, np.array([axis + 1], np.int64), keepdims=0), scale)


@vjp("QLinearConv")
def qlinear_conv(op, dy, y, x, xs, xz, w, ws, wz, *more, **window):
    """dx = dy ⊛ᵀ w"""
    return lambda: conv_input_grad(op, dy, x, op.DequantizeLinear(w, ws, wz, axis=0), **window)


@vjp("QLinearMatMul")
def qlinear_matmul(op, dy, y, a, a_scale, az, b, bs, bz, *more):
    """da = dy · bᵀ,  db = aᵀ · dy"""
    da, db = matmul(op, dy, y, op.DequantizeLinear(a, a_scale, az), op.DequantizeLinear(b, bs, bz, axis=rank(b) - 1))
    return da, None, None, db


@vjp("QGemm")
def qgemm(op, dy, y, a, a_scale, az, b, bs, bz, *more, alpha=1.0, transA=0, transB=0):  # noqa: N803 (ONNX's own names)
    """da = α dy · bᵀ,  db = α aᵀ · dy, each transposed as transA and transB say"""
    left = op.DequantizeLinear(a, a_scale, az)
    right = op.DequantizeLinear(b, bs, bz, axis=0 if transB else 1)
    da, db, _ = gemm(op, dy, y, left, right, alpha=alpha, beta=1.0, transA=transA, transB=transB)
    return da, None, None, db


@vjp("QLinearAdd")
def qlinear_add(op, dy, y, a, a_scale, az, b, *more):
    """da = dy,  db = dy"""
    return dy, None, None, dy


@vjp("QLinearMul")
def qlinear_mul(op, dy, y, a, a_scale, az, b, bs, bz, *more):
    """da = dy · b,  db = dy · a"""
    return (
        lambda: op.Mul(dy, op.DequantizeLinear(b, bs, bz)),
        *(None, None),
        lambda: op.Mul(dy, op.DequantizeLinear(a, a_scale, az)),
    )


@vjp("QLinearGlobalAveragePool")
def qlinear_global_average_pool(op, dy, y, x, *more):
    """dx = dy / number of positions"""
    return global_average_pool(op, dy, y, x)


@vjp("QLinearAveragePool")
def qlinear_average_pool(op, dy, y, x, *more, count_include_pad=0, kernel_shape=None, **window):
    """dx = Σ over the windows that cover x, dy / number of elements counted"""
    return average_pool_grad(op, dy, x, count_include_pad=count_include_pad, kernel_shape=kernel_shape, **window)


@vjp("QLinearConcat")
def qlinear_concat(op, dy, y, scale, zero, *parts, axis):
    """dxᵢ = the part of dy that came from xᵢ"""
    made, start = [], 0
    for x in parts[::3]:
        size = op.dim(x, axis)
        made += [op.slice(dy, [axis % rank(y)], [start], [size]), None, None]
        start = op.calc("Add", start, size)
    return None, None, *made


@vjp("QLinearSigmoid")
def qlinear_sigmoid(op, dy, y, x, xs, xz, *more):
    """dx = dy · s (1 - s),  s = sigmoid x"""
    s = op.Sigmoid(op.DequantizeLinear(x, xs, xz))
    return op.Mul(dy, op.Mul(s, op.Sub(1, s)))


@vjp("QLinearLeakyRelu")
def qlinear_leaky_relu(op, dy, y, x, xs, xz, *more, alpha=0.01):
    """dx = dy · (1 if x > 0 else α)"""
    positive = op.Greater(op.DequantizeLinear(x, xs, xz), 0)
    return op.Where(positive, dy, op.Mul(dy, alpha))

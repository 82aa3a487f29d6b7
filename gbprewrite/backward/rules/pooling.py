"""Pooling. Switch-unpooling (Zeiler and Fergus 2013, section 2.1) is the adjoint of max pooling, provided that
overlapping windows add.

Source: https://onnx.ai/onnx/operators/onnx__MaxPool.html, onnx__AveragePool.html, onnx__LpPool.html.
"""

import numpy as np

from gbprewrite.backward.lowering.pools import average_pool_grad, unpool, window_sum_grad
from gbprewrite.backward.rules.elementwise import zero
from gbprewrite.backward.rules.table import Rule, vjp
from gbprewrite.model.tensors import rank


@vjp("MaxPool")
def max_pool(op, dy, y, x, **window):
    """dx[switch] += dy: every window gives its cotangent to its first maximum"""
    return unpool(op, dy, x, y, **window)


@vjp("AveragePool")
def average_pool(op, dy, y, x, **window):
    """dx = Σ over the windows that cover x, dy / number of elements counted"""
    return average_pool_grad(op, dy, x, **window)


@vjp("LpPool")
def lp_pool(op, dy, y, x, *, p, **window):
    """dx = sign x · |x|^(p-1) · Σ over the windows that cover x, dy · y^(1-p)"""
    scaled = op.Where(op.Greater(y, 0), op.Mul(dy, op.Pow(y, float(1 - p))), zero(y))
    return op.Mul(signed_power(op, x, p), window_sum_grad(op, scaled, x, **window))


@vjp("GlobalAveragePool")
def global_average_pool(op, dy, y, x):
    """dx = dy / number of positions"""
    positions = op.product(op.dims(x)[2:])
    return op.expand_like(op.divided(dy, positions), x)


@vjp("GlobalMaxPool")
def global_max_pool(op, dy, y, x):
    """dx = dy at the first maximum of every plane"""
    n, c, *space = op.dims(x)
    flat = op.reshape(x, [n, c, op.product(space)])
    first = op.ArgMax(flat, axis=2, keepdims=1)
    chosen = op.Equal(op.range(op.product(space)), first)
    return op.reshape_like(op.Where(chosen, op.reshape(dy, [n, c, 1]), zero(dy)), x)


def spread(op, dy, y, x, **window):
    """dx = every window spreads dy evenly over what it sees of x: no switches"""
    window.pop("storage_order")
    return average_pool_grad(op, dy, x, count_include_pad=0, **window)


# Max pools, when nothing is to be remembered of the image: their cotangent as if they were average pools.
SWITCHLESS = {"MaxPool": Rule(spread), "GlobalMaxPool": Rule(global_average_pool)}


@vjp("GlobalLpPool")
def global_lp_pool(op, dy, y, x, *, p):
    """dx = dy · sign x · |x|^(p-1) · y^(1-p)"""
    scaled = op.Where(op.Greater(y, 0), op.Mul(dy, op.Pow(y, float(1 - p))), zero(y))
    return op.Mul(signed_power(op, x, p), scaled)


@vjp("MaxUnpool")
def max_unpool(op, dy, y, x, indices, shape=None, *, kernel_shape, strides, pads):
    """dx = dy at the indices"""
    if shape is not None:  # indices count within the size that MaxUnpool would have chosen itself
        d = rank(x) - 2
        strides, pads = strides or [1] * d, pads or [0] * (2 * d)
        sizes = []
        for a in range(d):
            span = op.calc("Mul", op.calc("Sub", op.dim(x, a + 2), 1), strides[a])
            sizes.append(op.calc("Add", span, kernel_shape[a] - pads[a] - pads[a + d]))
        dy = op.slice(dy, list(range(2, rank(x))), [0] * d, sizes)
    flat = op.Reshape(dy, np.array([-1], np.int64))
    return op.reshape_like(op.Gather(flat, op.Reshape(indices, np.array([-1], np.int64))), x)


def signed_power(op, x, p):
    """sign x · |x|^(p-1)"""
    if p == 2:
        return x
    return op.Sign(x) if p == 1 else op.Mul(op.Sign(x), op.Pow(op.Abs(x), float(p - 1)))

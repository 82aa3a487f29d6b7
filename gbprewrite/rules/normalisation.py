"""Normalisations, in inference mode.

Sources: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, onnx__InstanceNormalization.html,
onnx__LayerNormalization.html, onnx__LRN.html; Krizhevsky et al. 2012, section 3.3 (LRN).
"""

import numpy as np

from gbprewrite.rules import vjp
from gbprewrite.shapes import Refused, rank


@vjp("BatchNormalization")
def batch_normalization(op, dy, y, x, scale, bias, mean, variance, *, epsilon, training_mode):
    """dx = dy · scale / σ,  dscale = Σ dy · z,  z = (x - mean) / σ,  σ = √(variance + ε)"""
    if training_mode:
        raise Refused("it is in training mode: export the model in inference mode")
    deviation = op.Sqrt(op.Add(variance, epsilon))
    slope = op.cast_to(op.Div(scale, deviation), dy)

    def summed_z():
        centred = op.Sub(x, per_channel(op, op.cast_to(mean, x), x))
        return op.Div(op.sum_but_channels(op.Mul(dy, centred)), op.cast_to(deviation, dy))

    return (
        op.Mul(dy, per_channel(op, slope, x)),
        lambda: op.cast_to(summed_z(), scale),
        lambda: op.cast_to(op.sum_but_channels(dy), bias),
        lambda: op.cast_to(op.Neg(op.Mul(op.sum_but_channels(dy), slope)), mean),
        lambda: op.cast_to(op.Mul(op.Mul(summed_z(), slope), op.Div(-0.5, op.cast_to(deviation, dy))), variance),
    )


@vjp("InstanceNormalization")
def instance_normalization(op, dy, y, x, scale, bias, *, epsilon):
    """dx = (g - mean g - z · mean(g·z)) / σ,  g = dy · scale,  z = (x - mean x) / σ, means over space"""
    z, dx_of = standardised(op, x, list(range(2, rank(x))), epsilon)
    return (
        dx_of(op.Mul(dy, per_channel(op, scale, x))),
        lambda: op.sum_but_channels(op.Mul(dy, z)),
        lambda: op.sum_but_channels(dy),
    )


@vjp("LayerNormalization")
def layer_normalization(op, dy, y, x, scale, bias=None, *, axis, epsilon):
    """dx = (g - mean g - z · mean(g·z)) / σ,  g = dy · scale,  z = (x - mean x) / σ, means over the last axes"""
    z, dx_of = standardised(op, x, list(range(axis % rank(x), rank(x))), epsilon)
    return dx_of(op.Mul(dy, scale)), lambda: op.Mul(dy, z), lambda: dy


def standardised(op, x, axes, epsilon):
    """z = (x - mean x) / √(var x + ε) over axes, and its VJP as a function of the cotangent of z."""

    def mean(v):
        return op.ReduceMean(v, np.array(axes, np.int64), keepdims=1)

    centred = op.Sub(x, mean(x))
    deviation = op.Sqrt(op.Add(mean(op.Mul(centred, centred)), epsilon))
    z = op.Div(centred, deviation)
    return z, lambda g: op.Div(op.Sub(op.Sub(g, mean(g)), op.Mul(z, mean(op.Mul(g, z)))), deviation)


@vjp("LRN")
def lrn(op, dy, y, x, *, alpha, beta, bias, size):
    """dx = dy·D^-β - 2αβ/n · x · Σ window of dy·x·D^(-β-1),  D = bias + α/n · Σ window of x²"""
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    norm = op.Add(op.Mul(channel_sum(op, op.Mul(x, x), before, after), alpha / size), bias)
    scaled = op.Mul(dy, op.Pow(norm, float(-beta)))
    inner = channel_sum(op, op.Mul(op.Mul(scaled, x), op.Reciprocal(norm)), after, before)
    return op.Sub(scaled, op.Mul(op.Mul(x, inner), 2 * alpha * beta / size))


def channel_sum(op, x, before, after):
    """Sum over a window of channels around each: a one-dimensional average pool, times its size."""
    n, c, *space = op.dims(x)
    plane = op.reshape(x, [n, 1, c, op.product(space)])
    size = before + 1 + after
    pooled = op.AveragePool(plane, kernel_shape=[size, 1], pads=[before, 0, after, 0], count_include_pad=1)
    return op.reshape_like(op.Mul(pooled, float(size)), x)


def per_channel(op, v, x):
    """A vector over channels, shaped so that it broadcasts over x."""
    return op.Reshape(v, np.array([1, -1] + [1] * (rank(x) - 2), np.int64))


@vjp("LpNormalization")
def lp_normalization(op, dy, y, x, *, axis, p):
    """dx = (dy - u · Σ dy·y) / ‖x‖,  u = y (p = 2) or sign x (p = 1)"""
    over = np.array([axis], np.int64)
    norm = op.ReduceL2(x, over, keepdims=1) if p == 2 else op.ReduceL1(x, over, keepdims=1)
    inner = op.ReduceSum(op.Mul(dy, y), over, keepdims=1)
    return op.Div(op.Sub(dy, op.Mul(y if p == 2 else op.Sign(x), inner)), norm)

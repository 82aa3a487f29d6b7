"""Normalisations, in inference mode.

Sources: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, onnx__InstanceNormalization.html,
onnx__LayerNormalization.html, onnx__LRN.html; Krizhevsky et al. 2012, section 3.3 (LRN).
"""

import functools

import numpy as np

from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import HALF, onnx_type, rank


def in_float32(rule):
    """Let a rule work in float32 where x has half precision: its squares and sums overflow 16 bits."""

    @functools.wraps(rule)
    def wide_rule(op, dy, y, x, *weights, **attributes):
        if onnx_type(x) not in HALF:
            return rule(op, dy, y, x, *weights, **attributes)

        def wide(v):
            return [wide(w) for w in v] if isinstance(v, (list, tuple)) else None if v is None else op.wide(v)

        made = rule(op, wide(dy), wide(y), *wide([x, *weights]), **attributes)
        made = made if isinstance(made, tuple) else (made,)
        return tuple(back(op, dx, like) for dx, like in zip(made, (x, *weights), strict=False))

    return wide_rule


def back(op, dx, like):
    """A cotangent in the type of what it belongs to; one that is only computed if wanted stays so."""
    if dx is None:
        return None
    return (lambda: op.cast_to(dx(), like)) if callable(dx) else op.cast_to(dx, like)


@vjp("BatchNormalization", all_outputs=True)
def batch_normalization(op, dys, ys, x, scale, bias, mean, variance, *, epsilon, training_mode, momentum):
    """dx = dy · scale / σ,  dscale = Σ dy · z,  z = (x - mean) / σ,  σ = √(variance + ε)"""
    if training_mode:
        return trained(op, dys, ys, x, scale, bias, mean, variance, epsilon=epsilon, momentum=momentum)
    dy = dys[0]
    deviation = op.Sqrt(op.Add(op.wide(variance), epsilon))
    slope = op.cast_to(op.Div(op.cast_to(scale, deviation), deviation), dy)

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


@in_float32
def trained(op, dys, ys, x, scale, bias, mean, variance, *, epsilon, momentum):
    """Training mode: mean and variance are the batch's own, and the running ones are outputs too."""
    dy, drunning_mean, drunning_variance = (*dys, None, None)[:3]
    axes = [0, *range(2, rank(x))]
    n = op.as_float(op.product([op.dim(x, a) for a in axes]), x)
    z, dx_of = standardised(op, x, axes, epsilon)
    parts = [] if dy is None else [dx_of(op.Mul(dy, per_channel(op, scale, x)))]
    if drunning_mean is not None:
        share = op.Div(op.Mul(op.cast_to(drunning_mean, x), 1 - momentum), n)
        parts.append(op.expand_like(per_channel(op, share, x), x))
    if drunning_variance is not None:  # of the batch's variance: 2 (x - mean) / n
        centred = op.Sub(x, op.ReduceMean(x, np.array(axes, np.int64), keepdims=1))
        share = op.Div(op.Mul(op.cast_to(drunning_variance, x), 2 * (1 - momentum)), n)
        parts.append(op.Mul(per_channel(op, share, x), centred))
    dx = parts[0]
    for part in parts[1:]:
        dx = op.Add(dx, part)
    return (
        dx,
        None if dy is None else lambda: op.sum_but_channels(op.Mul(dy, z)),
        None if dy is None else lambda: op.sum_but_channels(dy),
        None if drunning_mean is None else lambda: op.Mul(drunning_mean, momentum),
        None if drunning_variance is None else lambda: op.Mul(drunning_variance, momentum),
    )


@vjp("InstanceNormalization")
@in_float32
def instance_normalization(op, dy, y, x, scale, bias, *, epsilon):
    """dx = (g - mean g - z · mean(g·z)) / σ,  g = dy · scale,  z = (x - mean x) / σ, means over space"""
    z, dx_of = standardised(op, x, list(range(2, rank(x))), epsilon)
    return (
        dx_of(op.Mul(dy, per_channel(op, scale, x))),
        lambda: op.sum_but_channels(op.Mul(dy, z)),
        lambda: op.sum_but_channels(dy),
    )


@vjp("LayerNormalization", all_outputs=True)
@in_float32
def layer_normalization(op, dys, ys, x, scale, bias=None, *, axis, epsilon):
    """dx = (g - mean g - z · mean(g·z)) / σ,  g = dy · scale,  z = (x - mean x) / σ, means over the last axes"""
    dy, dmean, dinverse = (*dys, None, None)[:3]
    axes = list(range(axis % rank(x), rank(x)))
    z, dx_of = standardised(op, x, axes, epsilon)
    n = op.as_float(op.product([op.dim(x, a) for a in axes]), x)
    parts = [] if dy is None else [dx_of(op.Mul(dy, scale))]
    if dmean is not None:
        parts.append(op.expand_like(op.Div(op.cast_to(dmean, x), n), x))
    if dinverse is not None:  # of 1/σ: -z / nσ²
        inverse = op.cast_to(ys[2], x)
        parts.append(op.Neg(op.Mul(op.Div(op.Mul(op.cast_to(dinverse, x), op.Mul(inverse, inverse)), n), z)))
    dx = parts[0]
    for part in parts[1:]:
        dx = op.Add(dx, part)
    if dy is None:
        return dx, None, None
    return dx, lambda: op.Mul(dy, z), lambda: dy


@vjp("RMSNormalization")
@in_float32
def rms_normalization(op, dy, y, x, scale, *, axis, epsilon):
    """dx = (g - z · mean(g·z)) / r,  g = dy · scale,  z = x / r,  r = √(mean x² + ε)"""
    axes = np.arange(axis % rank(x), rank(x))
    root = op.Sqrt(op.Add(op.ReduceMean(op.Mul(x, x), axes, keepdims=1), epsilon))
    z, g = op.Div(x, root), op.Mul(dy, scale)
    dx = op.Div(op.Sub(g, op.Mul(z, op.ReduceMean(op.Mul(g, z), axes, keepdims=1))), root)
    return dx, lambda: op.Mul(dy, z)


def standardised(op, x, axes, epsilon):
    """z = (x - mean x) / √(var x + ε) over axes, and its VJP as a function of the cotangent of z."""

    def mean(v):
        return op.ReduceMean(v, np.array(axes, np.int64), keepdims=1)

    centred = op.Sub(x, mean(x))
    deviation = op.Sqrt(op.Add(mean(op.Mul(centred, centred)), epsilon))
    z = op.Div(centred, deviation)
    return z, lambda g: op.Div(op.Sub(op.Sub(g, mean(g)), op.Mul(z, mean(op.Mul(g, z)))), deviation)


@vjp("LRN")
@in_float32
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
@in_float32
def lp_normalization(op, dy, y, x, *, axis, p):
    """dx = (dy - u · Σ dy·y) / ‖x‖,  u = y (p = 2) or sign x (p = 1)"""
    over = np.array([axis], np.int64)
    norm = op.ReduceL2(x, over, keepdims=1) if p == 2 else op.ReduceL1(x, over, keepdims=1)
    inner = op.ReduceSum(op.Mul(dy, y), over, keepdims=1)
    return op.Div(op.Sub(dy, op.Mul(y if p == 2 else op.Sign(x), inner)), norm)

"""Activations: dx = dy · f'(x). The rectifiers' masks come from the output y, which leaves Conv+Relu fusions alone.

Sources: the operator pages of https://onnx.ai/onnx/operators/; `methods.combinators` lie over these rules.
"""

import math

import numpy as np

from gbprewrite.backward.lowering.masks import gate, mask
from gbprewrite.backward.rules.elementwise import one, zero
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import constant_of, numpy_dtype


@vjp("Relu")
def relu(op, dy, y, x):
    """dx = dy · (x > 0)"""
    return gate(op, dy, y)


@vjp("ThresholdedRelu")
def thresholded_relu(op, dy, y, x, *, alpha):
    """dx = dy · (x > α)"""
    return mask(op, dy, op.Greater(x, alpha))


@vjp("Clip")
def clip(op, dy, y, x, low=None, high=None, *, in_view=0):
    """dx = dy · (low < x < high)"""
    if in_view:  # written in another way, so that the file has no such limit
        high = constant_of(high)
    bottom = constant_of(low)
    if bottom is not None and bottom.size == 1 and bottom.ravel()[0] == 0:
        return gate(op, dy, y, high)
    gates = [op.Greater(y, low)] if low is not None else []
    gates += [op.Less(y, high)] if high is not None else []
    if not gates:
        return dy
    return mask(op, dy, gates[0] if len(gates) == 1 else op.And(*gates))


@vjp("Shrink")
def shrink(op, dy, y, x, *, bias, lambd):
    """dx = dy · (|x| > λ)"""
    return mask(op, dy, op.Greater(op.Abs(x), lambd))


@vjp("LeakyRelu")
def leaky_relu(op, dy, y, x, *, alpha):
    """dx = dy · (1 if x > 0 else α)"""
    return op.Mul(dy, op.Where(op.Greater(x, 0), one(x), numpy_dtype(x).type(alpha)))


@vjp("PRelu")
def prelu(op, dy, y, x, slope, *, negated=0):
    """dx = dy · (1 if x > 0 else slope),  dslope = dy · min(x, 0)"""
    if negated:  # the source has max(x, 0) + slope · max(-x, 0)
        return prelu(op, dy, y, x, op.Neg(slope))[0], None
    positive = op.Greater(x, 0)
    return op.Mul(dy, op.Where(positive, one(x), slope)), lambda: op.Mul(dy, op.Where(positive, zero(x), x))


@vjp("Elu")
def elu(op, dy, y, x, *, alpha):
    """dx = dy · (1 if x > 0 else y + α)"""
    return op.Mul(dy, op.Where(op.Greater(x, 0), one(x), op.Add(y, alpha)))


@vjp("Celu")
def celu(op, dy, y, x, *, alpha):
    """dx = dy · (1 if x > 0 else y/α + 1)"""
    return op.Mul(dy, op.Where(op.Greater(x, 0), one(x), op.Add(op.Div(y, alpha), 1)))


@vjp("Selu")
def selu(op, dy, y, x, *, alpha, gamma):
    """dx = dy · (γ if x > 0 else y + αγ)"""
    return op.Mul(dy, op.Where(op.Greater(x, 0), numpy_dtype(x).type(gamma), op.Add(y, alpha * gamma)))


@vjp("Sigmoid")
def sigmoid(op, dy, y, x):
    """dx = dy · y (1 - y)"""
    return op.Mul(dy, op.Mul(y, op.Sub(1, y)))


@vjp("Tanh")
def tanh(op, dy, y, x):
    """dx = dy · (1 - y²)"""
    return op.Mul(dy, op.Sub(1, op.Mul(y, y)))


@vjp("HardSigmoid")
def hard_sigmoid(op, dy, y, x, *, alpha, beta, from_x=0):
    """dx = dy · α · (0 < y < 1)"""
    if from_x:  # y was put together from several nodes, and may miss 1 by a rounding
        y = op.Add(op.Mul(x, alpha), beta)
    return mask(op, op.Mul(dy, alpha), op.And(op.Greater(y, 0), op.Less(y, 1)))


@vjp("HardSwish")
def hard_swish(op, dy, y, x):
    """dx = dy · clip(x/3 + 1/2 between -3 and 3; 0 below; 1 above)"""
    slope = op.Add(op.Mul(x, 1 / 3), 0.5)
    above = op.Greater(x, -3)
    slope = op.bounded(op.Where(above, op.Where(op.Less(x, 3), slope, one(x)), zero(x)), 1.5)
    return op.Mul(dy, slope) if op.finite(dy) else op.Where(above, op.Mul(dy, slope), zero(dy))


@vjp("Swish")
def swish(op, dy, y, x, *, alpha):
    """dx = dy · (s + αx·s·(1 - s)),  s = sigmoid(αx)"""
    scaled = x if alpha == 1 else op.Mul(x, alpha)
    s = op.Sigmoid(scaled)
    return op.Mul(dy, op.Mul(s, op.Add(op.Mul(scaled, op.Sub(1, s)), 1)))


@vjp("Gelu")
def gelu(op, dy, y, x, *, approximate):
    """dx = dy · (Φ(x) + x φ(x)), or the derivative of its tanh approximation"""
    if approximate == "tanh":
        a, c = 0.044715, math.sqrt(2 / math.pi)
        x = op.Clip(x, -100.0, 100.0)  # squares overflow where the slope has long been 0 or 1
        square = op.Mul(x, x)
        t = op.Tanh(op.Mul(op.Mul(x, op.Add(op.Mul(square, a), 1)), c))
        inner = op.Mul(op.Add(op.Mul(square, 3 * a), 1), c)
        tail = op.Mul(op.Mul(op.Sub(1, op.Mul(t, t)), inner), x)
        return op.Mul(dy, op.Mul(op.Add(op.Add(t, 1), tail), 0.5))
    cumulative = op.Mul(op.Add(op.Erf(op.Mul(x, math.sqrt(0.5))), 1), 0.5)
    density = op.Mul(op.Exp(op.Mul(op.Mul(x, x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return op.Mul(dy, op.Add(cumulative, op.Mul(x, density)))


@vjp("Mish")
def mish(op, dy, y, x):
    """dx = dy · (t + x (1 - t²) sigmoid x),  t = tanh(softplus x)"""
    t = op.Tanh(op.Softplus(x))
    return op.Mul(dy, op.Add(t, op.Mul(op.Mul(x, op.Sub(1, op.Mul(t, t))), op.Sigmoid(x))))


@vjp("Softplus")
def softplus(op, dy, y, x):
    """dx = dy · sigmoid x"""
    return op.Mul(dy, op.Sigmoid(x))


@vjp("Softsign")
def softsign(op, dy, y, x):
    """dx = dy / (1 + |x|)²"""
    grown = op.Add(op.Abs(x), 1)
    return op.Div(dy, op.Mul(grown, grown))


@vjp("Softmax")
def softmax(op, dy, y, x, *, axis):
    """dx = y · (dy - Σ dy·y)"""
    return op.Mul(y, op.Sub(dy, op.ReduceSum(op.Mul(dy, y), np.array([axis], np.int64), keepdims=1)))


@vjp("LogSoftmax")
def log_softmax(op, dy, y, x, *, axis):
    """dx = dy - exp(y) · Σ dy"""
    return op.Sub(dy, op.Mul(op.Exp(y), op.ReduceSum(dy, np.array([axis], np.int64), keepdims=1)))

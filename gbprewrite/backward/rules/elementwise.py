"""Arithmetic and elementary functions, element by element.

Source: the operator pages of https://onnx.ai/onnx/operators/.
"""

import math

import numpy as np

from gbprewrite.backward.lowering.masks import mask
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.tensors import HALF, Refused, constant_of, is_float, numpy_dtype, onnx_type
from gbprewrite.view.quantised import scale_of


@vjp("Add")
def add(op, dy, y, a, b):
    """da = dy,  db = dy"""
    return dy, dy


@vjp("Sub")
def sub(op, dy, y, a, b):
    """da = dy,  db = -dy"""
    return dy, lambda: op.Neg(dy)


@vjp("Mul")
def mul(op, dy, y, a, b):
    """da = dy · b,  db = dy · a"""
    return lambda: op.Mul(dy, b), lambda: op.Mul(dy, a)


@vjp("Div")
def div(op, dy, y, a, b):
    """da = dy / b,  db = -dy · y / b"""
    return lambda: op.Div(dy, b), lambda: op.Neg(op.Div(op.Mul(dy, y), b))


@vjp("Pow")
def power(op, dy, y, a, b):
    """da = dy · b · a^(b-1),  db = dy · y · log a (0 where a = 0)"""

    def base():
        exponent = op.cast_to(b, a)
        return op.Mul(dy, op.Mul(exponent, op.Pow(a, op.Sub(exponent, 1))))

    def exponent():
        positive = op.Greater(a, 0)
        return op.Mul(dy, op.Mul(y, op.Where(positive, op.Log(op.Where(positive, a, one(a))), zero(a))))

    return base, exponent


@vjp("Sum")
def sum_(op, dy, y, *xs):
    """dxᵢ = dy"""
    return (dy,) * len(xs)


@vjp("Mean")
def mean(op, dy, y, *xs):
    """dxᵢ = dy / n"""
    return (op.Div(dy, float(len(xs))),) * len(xs)


@vjp("Max")
def maximum(op, dy, y, *xs):
    """dxᵢ = dy · (xᵢ = y) / number of inputs equal to y"""
    return shared(op, dy, y, xs, op.Max)


@vjp("Min")
def minimum(op, dy, y, *xs):
    """dxᵢ = dy · (xᵢ = y) / number of inputs equal to y"""
    return shared(op, dy, y, xs, op.Min)


def shared(op, dy, y, xs, extremum):
    """The cotangents of an extremum's inputs.

    In half precision it is computed again: onnxruntime's CPU computes in float32 and may round y where it leaves x
    unrounded, so that no input would equal y.
    """
    if len(xs) == 1:
        return (dy,)
    if onnx_type(y) in HALF:
        xs = [op.wide(x) for x in xs]
        y = extremum(*xs)
    equal = [op.Equal(x, y) for x in xs]
    chosen = [op.cast_to(condition, dy) for condition in equal]
    total = chosen[0]
    for one_more in chosen[1:]:
        total = op.Add(total, one_more)
    share, finite = op.Div(dy, total), op.finite(dy)
    if finite:
        return tuple(op.Mul(share, mask) for mask in chosen)
    return tuple(op.Where(condition, share, zero(dy)) for condition in equal)


@vjp("Where")
def where(op, dy, y, condition, a, b):
    """da = dy where the condition holds, db = dy elsewhere"""
    nothing = zero(dy)
    return None, lambda: op.Where(condition, dy, nothing), lambda: op.Where(condition, nothing, dy)


@vjp("Neg")
def neg(op, dy, y, x):
    """dx = -dy"""
    return op.Neg(dy)


@vjp("Abs")
def abs_(op, dy, y, x):
    """dx = dy · sign x"""
    return op.Mul(dy, op.Sign(x))


@vjp("Reciprocal")
def reciprocal(op, dy, y, x):
    """dx = -dy · y²"""
    return op.Neg(op.Mul(dy, op.Mul(y, y)))


@vjp("Sqrt")
def sqrt(op, dy, y, x):
    """dx = dy / 2y"""
    return op.Div(dy, op.Add(y, y))


@vjp("Exp")
def exp(op, dy, y, x):
    """dx = dy · y"""
    return op.Mul(dy, y)


@vjp("Log")
def log(op, dy, y, x):
    """dx = dy / x"""
    return op.Div(dy, x)


@vjp("Erf")
def erf(op, dy, y, x):
    """dx = dy · 2/√π · exp(-x²)"""
    return op.Mul(dy, op.Mul(op.Exp(op.Neg(op.Mul(x, x))), 2 / math.sqrt(math.pi)))


@vjp("Sin")
def sin(op, dy, y, x):
    """dx = dy · cos x"""
    return op.Mul(dy, op.Cos(x))


@vjp("Cos")
def cos(op, dy, y, x):
    """dx = -dy · sin x"""
    return op.Neg(op.Mul(dy, op.Sin(x)))


@vjp("Tan")
def tan(op, dy, y, x):
    """dx = dy · (1 + y²)"""
    return op.Mul(dy, op.Add(op.Mul(y, y), 1))


@vjp("Asin")
def asin(op, dy, y, x):
    """dx = dy / √(1 - x²)"""
    return op.Div(dy, op.Sqrt(op.Sub(1, op.Mul(x, x))))


@vjp("Acos")
def acos(op, dy, y, x):
    """dx = -dy / √(1 - x²)"""
    return op.Neg(asin(op, dy, y, x))


@vjp("Atan")
def atan(op, dy, y, x):
    """dx = dy / (1 + x²)"""
    return op.Div(dy, op.Add(op.Mul(x, x), 1))


@vjp("Sinh")
def sinh(op, dy, y, x):
    """dx = dy · cosh x"""
    return op.Mul(dy, op.Cosh(x))


@vjp("Cosh")
def cosh(op, dy, y, x):
    """dx = dy · sinh x"""
    return op.Mul(dy, op.Sinh(x))


@vjp("Asinh")
def asinh(op, dy, y, x):
    """dx = dy / √(x² + 1)"""
    return op.Div(dy, op.Sqrt(op.Add(op.Mul(x, x), 1)))


@vjp("Acosh")
def acosh(op, dy, y, x):
    """dx = dy / √(x² - 1)"""
    return op.Div(dy, op.Sqrt(op.Sub(op.Mul(x, x), 1)))


@vjp("Atanh")
def atanh(op, dy, y, x):
    """dx = dy / (1 - x²)"""
    return op.Div(dy, op.Sub(1, op.Mul(x, x)))


@vjp("Mod")
def mod(op, dy, y, a, b, *, fmod):
    """da = dy,  db = -dy · (a - y) / b (the quotient that Mod cut to an integer)"""
    return dy, lambda: op.Neg(op.Mul(dy, op.Div(op.Sub(a, y), b)))


@vjp("Identity")
def identity(op, dy, y, x):
    """dx = dy"""
    return dy


@vjp("Dropout", all_outputs=True)
def dropout(op, dys, ys, x, ratio=None, training=None):
    """dx = dy (inference), or dy · mask / (1 - ratio) with the mask of this run"""
    dy, on, dropped = dys[0], constant_of(training), constant_of(ratio)
    if training is None or (on is not None and not on.any()):
        return dy
    if len(ys) < 2 or not ys[1].name:
        raise Refused("it drops at random inside a branch, and what it dropped can't be seen from outside")
    if ratio is None or dropped is not None:
        kept = np.array(1 / (1 - (0.5 if dropped is None else float(dropped.ravel()[0]))), numpy_dtype(dy))
    else:
        kept = op.Reciprocal(op.Sub(1, op.cast_to(ratio, dy)))
    return op.Mul(mask(op, dy, ys[1]), kept if on is not None else op.Where(training, kept, one(dy)))


@vjp("Cast", "CastLike")
def cast(op, dy, y, x, *like):
    """dx = dy, cast back to the type of x; dx = dy / scale where levels become plain numbers"""
    if is_float(x):
        return op.Cast(dy, to=onnx_type(x))
    if not is_float(y):  # between quantised types the value stays
        return dy
    scale = scale_of(x)
    if scale is None:
        raise Refused("it makes plain numbers of quantised ones, whose scale is not one number")
    return op.Div(dy, op.cast_to(scale, dy))


def zero(like):
    """0 as a scalar of the type of `like`."""
    return np.zeros((), numpy_dtype(like))


def one(like):
    """1 as a scalar of the type of `like`."""
    return np.ones((), numpy_dtype(like))

"""What each operator that works element by element does to functions in pieces. Source: https://onnx.ai/onnx/operators/."""

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import is_float, numpy_dtype
from gbprewrite.view import piecewise
from gbprewrite.view.piecewise import Part, Pieces, Unknown, constant

Function: TypeAlias = Callable[..., Pieces]


def _cast(x: Pieces, node: gs.Node) -> Pieces:
    """Between floats nothing changes; to Boolean all but 0 becomes 1; to integers constants are cut."""
    kind = numpy_dtype(node.outputs[0])
    if kind == np.bool_:
        return piecewise.tested(x, bool)
    return x if is_float(node.outputs[0]) else piecewise.rounded(x, math.trunc)


def _clip(node: gs.Node, x: Pieces, low: Pieces | None = None, high: Pieces | None = None) -> Pieces:
    x = x if low is None else piecewise.largest(x, low)
    return x if high is None else piecewise.smallest(x, high)


def _power(node: gs.Node, x: Pieces, exponent: Pieces) -> Pieces:
    number = exponent.number()
    if number == 0.5:
        return piecewise.root(x)
    if number not in (1, 2):
        raise Unknown
    return x if number == 1 else piecewise.multiplied(x, x)


def _quotient(node: gs.Node, a: Pieces, b: Pieces) -> Pieces:
    number = b.number()
    if not number or not is_float(node.outputs[0]):
        raise Unknown
    return piecewise.combined(
        lambda parts: Part({name: tuple(c / number for c in p) for name, p in parts[0].items()}), a
    )


def _leaky(node: gs.Node, x: Pieces, slope: Pieces) -> Pieces:
    return piecewise.chosen(piecewise.tested(x, piecewise.is_positive), x, piecewise.multiplied(x, slope))


def _elu(node: gs.Node, x: Pieces) -> Pieces:
    if node.attrs.get("alpha", 1.0) != 0:
        raise Unknown
    return piecewise.largest(x, constant(0.0))


def _mean(node: gs.Node, *xs: Pieces) -> Pieces:
    return piecewise.multiplied(reduce(piecewise.added, xs), constant(1 / len(xs)))


def _comparison(holds: Callable[[float], bool]) -> Function:
    return lambda node, a, b: piecewise.tested(piecewise.added(a, piecewise.negated(b)), holds)


def _folded(two: Callable[[Pieces, Pieces], Pieces]) -> Function:
    return lambda node, *xs: reduce(two, xs)


def _rounded(to: Callable[[float], float]) -> Function:
    return lambda node, x: piecewise.rounded(x, to)


ELEMENTWISE: dict[str, Function] = {
    **dict.fromkeys(("Identity", "Dropout", "Expand"), lambda node, x, *_: x),
    **dict.fromkeys(("IsInf", "IsNaN"), lambda node, x: constant(0.0)),  # x is a number
    **dict.fromkeys(("Cast", "CastLike"), lambda node, x, *_: _cast(x, node)),
    "Add": _folded(piecewise.added),
    "Sum": _folded(piecewise.added),
    "Mean": _mean,
    "Sub": lambda node, a, b: piecewise.added(a, piecewise.negated(b)),
    "Mul": _folded(piecewise.multiplied),
    "Div": _quotient,
    "Neg": lambda node, x: piecewise.negated(x),
    "Abs": lambda node, x: piecewise.magnitude(x),
    "Sign": lambda node, x: piecewise.signs(x),
    "Sqrt": lambda node, x: piecewise.root(x),
    "Exp": lambda node, x: piecewise.exponential(x),
    "Pow": _power,
    "Max": _folded(piecewise.largest),
    "Min": _folded(piecewise.smallest),
    "Relu": lambda node, x: piecewise.largest(x, constant(0.0)),
    "LeakyRelu": lambda node, x: _leaky(node, x, constant(node.attrs.get("alpha", 0.01))),
    "PRelu": _leaky,
    "Elu": _elu,
    "Clip": _clip,
    "Where": lambda node, condition, a, b: piecewise.chosen(condition, a, b),
    "Greater": _comparison(piecewise.is_positive),
    "GreaterOrEqual": _comparison(lambda sign: sign >= 0),
    "Less": _comparison(lambda sign: sign < 0),
    "LessOrEqual": _comparison(lambda sign: sign <= 0),
    "Equal": _comparison(lambda sign: sign == 0),
    "Not": lambda node, x: piecewise.tested(x, operator.not_),
    "And": lambda node, a, b: piecewise.tested(piecewise.multiplied(a, b), bool),
    "Or": lambda node, a, b: piecewise.tested(piecewise.added(a, b), bool),
    "Xor": lambda node, a, b: piecewise.tested(piecewise.added(a, piecewise.negated(b)), bool),
    "Ceil": _rounded(math.ceil),
    "Floor": _rounded(math.floor),
    "Round": _rounded(round),
}

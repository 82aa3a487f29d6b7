"""Rectifiers and their relatives in any spelling: their name is what a tensor is as a function of an earlier one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, numpy_dtype, onnx_type, producer
from gbprewrite.view.forms import Forms
from gbprewrite.view.piecewise import EXP, IDENTITY, ONE, Part, Pieces, magnitude, negated, number_of
from gbprewrite.view.raising import RAISED, Readers

Named = tuple[str, dict[str, Any]]
MINUS_ABS = negated(magnitude(IDENTITY))
KEPT = frozenset(
    (
        *("Relu", "ThresholdedRelu", "HardSwish", "HardSigmoid", "Swish", "Gelu", "Mish", "Selu", "Celu", "Identity"),
        *("Cast", "CastLike", "Dropout"),
    )
)
SLOPED = ("Elu", "LeakyRelu", "PRelu")  # which have a name already, but where their slope is 0

LINEAR = ("Add", "Cast", "Div", "Identity", "Mean", "Mul", "Neg", "Sub", "Sum")  # with a constant factor or divisor
MOST_PARTS = 32
PRELU = "max(x, 0) + a min(x, 0)"


class Raised(NamedTuple):
    """What a node is: an operator of one input x, with these attributes, `more` inputs, and a formula for reports."""

    operator: str
    x: Tensor
    attributes: dict[str, Any]
    formula: str
    more: tuple[Tensor, ...] = ()


def close(a: float, b: float) -> bool:
    """Equal to float32's rounding: what is only similar keeps its own derivative."""
    return abs(a - b) <= 1e-6 * abs(b)


def recognised(node: gs.Node, forms: Forms, readers: Readers) -> Raised | None:
    """The activation that a node computes of an earlier tensor, None for a node that has its name or is none."""
    if node.op in KEPT or not node.outputs or node.outputs[0].dtype is None:
        return None
    found = list(_nonlinear(forms.of(node.outputs[0])))
    for name in (_hard_swish, _hard_sigmoid, _relu, _leaky, _elu, _shrink, _relu6):
        for base, pieces in found:
            named = name(pieces)
            x = _like(node, base, forms) if named else None
            if named is None or x is None or named[0] == node.op or (node.op in SLOPED and named[0] != "Relu"):
                continue
            if _has_already(node, base, pieces, forms):
                continue
            if named[0] in ("Relu", "Clip") and (_adds_rectifiers(node, forms) or _caps_another(node, forms, readers)):
                return None
            if named[0] == "LeakyRelu" and node.op == "Mean" and any(map(_is_plain_relu, node.inputs)):
                return None  # an average over branches: the Relu in one of them stays one
            if named[0] == "LeakyRelu" and (factor := _factor(node, named[1]["alpha"], forms)) is not None:
                turned = {"negated": 1} if forms.number(factor) != named[1]["alpha"] else {}
                return Raised("PRelu", x, turned, PRELU, (factor,))
            more = tuple(gs.Constant(f"{node.name}/{v}", np.array(v, numpy_dtype(x))) for v in named[1].pop("more", ()))
            return Raised(named[0], x, named[1], named[1].pop("formula"), more)
    return _one_sided(node, found, forms) or _prelu(node, found, forms)


def _factor(node: gs.Node, slope: float, forms: Forms) -> Tensor | None:
    """The constant by which a PRelu, written as the sum of two rectifiers, multiplies one of them."""
    parts = [producer(t) for t in node.inputs] if node.op in ("Add", "Sub", "Sum") else []
    if not any(part is not None and _is_rectifier(part, forms) for part in parts):
        return None
    factors = [t for part in parts if part is not None and part.op == "Mul" for t in part.inputs]
    return next((t for t in factors if forms.number(t) in (slope, -slope) and forms.is_weight(t)), None)


def softplus(node: gs.Node, forms: Forms) -> Tensor | None:
    """x of max(x, 0) + log(1 + exp(-|x|)), which is log(1 + exp x) without an overflow."""
    if node.op != "Add":
        return None
    for a, b in (node.inputs, node.inputs[::-1]):
        top, log = producer(a), producer(b)
        total = producer(log.inputs[0]) if log is not None and log.op == "Log" else None
        if top is None or top.op != "Relu" or total is None or total.op != "Add":
            continue
        powers = [producer(t) for t in total.inputs if forms.number(t) != 1]
        if len(powers) == 1 and powers[0] is not None and powers[0].op == "Exp":
            base, exponent = top.inputs[0], forms.of(powers[0].inputs[0])
            if len(total.inputs) == 2 and any(t is base and f == MINUS_ABS for t, f in exponent):
                return base
    return None


def _has_already(node: gs.Node, base: Tensor, pieces: Pieces, forms: Forms) -> bool:
    """Whether an input of the node is that function of the base by itself, and a rectifier that stays one.

    A Relu is, whatever comes behind it. Of others, such as x · mask, that is so where the node is a function of nothing
    else, and so the identity behind them, as Abs is; what masks x once more by the sign of x has the name for both.
    """
    alone = {id(b) for b, _ in forms.of(node.outputs[0])}
    return any(
        b is base and f == pieces and (id(t) in alone or _is_plain_relu(t)) for t in node.inputs for b, f in forms.of(t)
    )


def _is_plain_relu(t: Tensor) -> bool:
    maker = producer(t)
    return maker is not None and maker.op == "Relu" and RAISED not in maker.attrs


def _nonlinear(forms: list[tuple[Tensor, Pieces]]) -> Iterator[tuple[Tensor, Pieces]]:
    """Forms until one says that the tensor is a copy of another."""
    for i, (base, pieces) in enumerate(forms):
        if i and pieces == IDENTITY:
            return
        if pieces.breaks:
            yield base, pieces


def _like(node: gs.Node, base: Tensor, forms: Forms) -> Tensor | None:
    """A tensor that holds the base's values in the type of the node's output."""
    for t in (base, *node.inputs):
        same = t is base or any(b is base and pieces == IDENTITY for b, pieces in forms.of(t))
        if same and t.dtype is not None and onnx_type(t) == onnx_type(node.outputs[0]):
            return t
    return None


def _adds_rectifiers(node: gs.Node, forms: Forms) -> bool:
    """Whether a sum has nothing but rectifiers for its parts: each of them has its own cotangent, and stays one."""
    todo, count = [node], 0
    while todo:
        current = todo.pop()
        if current.op not in LINEAR or count > MOST_PARTS:
            return False
        for t in (v for v in current.inputs if forms.number(v) is None):
            part, count = producer(t), count + 1
            if part is None:
                return False
            if not _is_rectifier(part, forms):
                todo.append(part)
    return True


def _caps_another(node: gs.Node, forms: Forms, readers: Readers) -> bool:
    """Whether a Min caps a rectifier that others read too: it stays one, for the sum of all cotangents."""
    inner = [n for n in map(producer, node.inputs) if node.op == "Min" and n is not None and _is_rectifier(n, forms)]
    return any(readers.beside(n, node) for n in inner)


def _is_rectifier(node: gs.Node, forms: Forms) -> bool:
    return node.op == "Relu" or (node.op == "Clip" and len(node.inputs) > 1 and forms.is_zero(node.inputs[1]))


def _slope(part: Part) -> float | None:
    """k of k · x, else None."""
    polynomial = part.get(ONE, ())
    return polynomial[1] if set(part) == {ONE} and len(polynomial) == 2 and polynomial[0] == 0 else None


def _is_x(part: Part) -> bool:
    slope = _slope(part)
    return slope is not None and close(slope, 1)


def _relu(f: Pieces) -> Named | None:
    """0 below 0, x above"""
    if f.breaks == (0,) and not f.parts[0] and not f.parts[1] and _is_x(f.parts[2]):
        return "Relu", {"formula": "max(x, 0)"}
    return None


def _relu6(f: Pieces) -> Named | None:
    """0 below 0, x between 0 and top, top above"""
    top = number_of(f.parts[-1])
    if not top or len(f.breaks) != 2 or f.breaks[0] != 0 or not close(top, f.breaks[1]):
        return None
    if f.parts[0] or f.parts[1] or not _is_x(f.parts[2]) or number_of(f.parts[3]) != top:
        return None
    return "Clip", {"formula": f"min(max(x, 0), {top:g})", "more": (0.0, top), "in_view": 1}


def _leaky(f: Pieces) -> Named | None:
    """αx below 0, x above"""
    slope = _slope(f.parts[0])
    if f.breaks == (0,) and slope not in (None, -1) and not f.parts[1] and _is_x(f.parts[2]):
        return "LeakyRelu", {"formula": f"max(x, 0) + {slope:g} min(x, 0)", "alpha": slope}
    return None


def _elu(f: Pieces) -> Named | None:
    """α(exp x - 1) below 0, x above; times γ it is a Selu"""
    steepness = _slope(f.parts[-1])
    below = f.parts[0]
    if f.breaks != (0,) or f.parts[1] or not steepness or set(below) != {EXP, ONE}:
        return None
    scale = below[EXP][0]
    if len(below[EXP]) > 1 or below[ONE] != (-scale,):
        return None
    if close(steepness, 1):
        return "Elu", {"formula": "x, or α(exp x - 1) below 0", "alpha": scale}
    return "Selu", {"formula": "γx, or γα(exp x - 1) below 0", "alpha": scale / steepness, "gamma": steepness}


def _hard_sigmoid(f: Pieces) -> Named | None:
    """0 below, αx + β between, 1 above, with 0 < β < 1"""
    line = f.parts[2].get(ONE, ()) if len(f.breaks) == 2 else ()
    if len(line) != 2 or f.parts[0] or set(f.parts[2]) != {ONE} or not f.breaks[0] < 0 < f.breaks[1]:
        return None
    if number_of(f.parts[4]) is None or not close(number_of(f.parts[4]) or 0.0, 1):
        return None
    return "HardSigmoid", {"formula": "clip(αx + β, 0, 1)", "alpha": line[1], "beta": line[0], "from_x": 1}


def _hard_swish(f: Pieces) -> Named | None:
    """0 below -3, x (x + 3) / 6 between, x above 3"""
    curve = f.parts[2].get(ONE, ()) if len(f.breaks) == 2 else ()
    if len(curve) != 3 or f.parts[0] or not _is_x(f.parts[4]) or not all(map(close, f.breaks, (-3, 3))):
        return None
    if curve[0] == 0 and close(curve[1], 1 / 2) and close(curve[2], 1 / 6):
        return "HardSwish", {"formula": "x · clip(x + 3, 0, 6) / 6"}
    return None


def _one_sided(node: gs.Node, found: list[tuple[Tensor, Pieces]], forms: Forms) -> Raised | None:
    """max(t, 0) of a tensor t = ax + b that the graph has, as -x is in Where(x < 0, -x, 0)"""
    for base, f in found:
        if len(f.breaks) != 1 or f.parts[1] or bool(f.parts[0]) == bool(f.parts[2]):
            continue
        line = f.parts[2] or f.parts[0]
        offset, slope = (*line.get(ONE, ()), 0.0, 0.0)[:2]
        straight = set(line) == {ONE} and slope != 0
        meets = abs(offset + slope * f.breaks[0]) <= 1e-6 * abs(offset) and (slope > 0) == bool(f.parts[2])
        for t in node.inputs if straight and meets else []:
            same = any(b is base and pieces == Pieces((line,)) for b, pieces in forms.of(t))
            if same and onnx_type(t) == onnx_type(node.outputs[0]):
                return Raised("Relu", t, {}, "max(x, 0)")
    return None


def _shrink(f: Pieces) -> Named | None:
    """0 between -λ and λ, x - bias above, x + bias below; without a bias x above and below"""
    if len(f.breaks) != 2 or f.parts[2] or not close(f.breaks[0], -f.breaks[1]):
        return None
    (below, *slopes), (above, *others) = ((*part.get(ONE, ()), 0.0)[:2] for part in (f.parts[0], f.parts[4]))
    if slopes != [1.0] or others != [1.0] or below != -above:
        return None
    return "Shrink", {"formula": "x moved towards 0 by a bias, and 0 near 0", "lambd": f.breaks[1], "bias": below}


def _prelu(node: gs.Node, found: list[tuple[Tensor, Pieces]], forms: Forms) -> Raised | None:
    """ax below 0, x above, of a weight a, or of one that the source writes with its sign turned"""
    for base, f in found:
        if node.op == "PRelu" or f.breaks != (0,) or f.parts[1] or not _is_x(f.parts[2]) or len(f.parts[0]) != 1:
            continue
        ((symbol, polynomial),) = f.parts[0].items()
        weight = forms.weight(symbol)
        x = _like(node, base, forms)
        if weight is None or x is None or polynomial not in ((0.0, 1.0), (0.0, -1.0)):
            continue
        attributes = {"negated": 1} if polynomial[1] < 0 else {}
        return Raised("PRelu", x, attributes, PRELU, (weight,))
    return None

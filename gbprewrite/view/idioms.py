"""Activations that are written as several nodes, or under another operator's name, become one node of the view."""

from collections.abc import Iterable
from functools import partial
from itertools import count

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import constant_of, numpy_dtype, same_shape
from gbprewrite.model.tensors import producer as producer  # which further modules take from here
from gbprewrite.view.forms import Forms
from gbprewrite.view.gatelike import GATE_LIKE, is_gate_like
from gbprewrite.view.hard_idioms import raise_hard
from gbprewrite.view.raising import RAISED as RAISED
from gbprewrite.view.raising import RAMP as RAMP
from gbprewrite.view.raising import Readers, become, with_scalar
from gbprewrite.view.raising import scalar as scalar
from gbprewrite.view.rectifier_idioms import recognised, softplus

FACTORS = 16  # nodes of one product that are looked at: GELU, however grouped, has fewer
SPELLINGS = {"Max": "Max(x, 0)", "Where": "Where(x > 0, x, 0)"}  # of a ReLU


def raise_idioms(graph: gs.Graph, weights: Iterable[str] = ()) -> None:
    """Recognise activations that are written as several nodes, or under another operator's name.

    Larger idioms come first: the Clip inside a hard-swish must be gone before a Clip is asked whether it is a ReLU6.
    `weights` are names of initializers that the graph lists as inputs.
    """
    readers = Readers(graph.outputs)
    raise_hard(graph, readers)
    for recognise in (_silu, _gelu_erf, _gelu_tanh, _mish, partial(_relu6, readers=readers)):
        for node in graph.nodes:
            recognise(node)
    _raise_pieces(graph, Forms(frozenset(weights)), readers)
    for node in graph.nodes:
        _softmax(node)


def _raise_pieces(graph: gs.Graph, forms: Forms, readers: Readers) -> None:
    """Name what is a rectifier, or a relative of one, as a function of an earlier tensor; mark what looks like one."""
    for node in graph.nodes:
        forms.look_at(node)
        if RAMP in node.attrs:
            continue
        raised = recognised(node, forms, readers)
        if raised is not None:
            spelling = SPELLINGS.get(node.op) if raised.operator == "Relu" else None
            formula = spelling or f"{raised.formula} by {node.op}"
            become(node, raised.operator, raised.x, formula, *raised.more, **raised.attributes)
            node.outputs = node.outputs[:1]
            node.outputs[0].shape = raised.x.shape
    for node in graph.nodes:
        x = softplus(node, forms)
        if x is not None:
            become(node, "Softplus", x, "max(x, 0) + log(1 + exp(-|x|))")
        if RAMP not in node.attrs and RAISED not in node.attrs and is_gate_like(node, forms):
            node.attrs[GATE_LIKE] = True


def _silu(node: gs.Node) -> None:
    """x · sigmoid(x)"""
    if node.op != "Mul" or len(node.inputs) != 2:
        return
    for x, gate in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        inner = producer(gate)
        if inner is not None and inner.op == "Sigmoid" and inner.inputs[0] is x:
            return become(node, "Swish", x, "x · sigmoid(x)", alpha=1.0)
    return None


def _factors(t: gs.Tensor) -> tuple[list[gs.Tensor], float]:
    """A product (Mul, and Div by a constant) taken apart: its variable factors and its constant one.

    Not further than FACTORS, so that a long chain of products is not walked from each of its nodes.
    """
    scale, todo = 1.0, [t]
    found: list[gs.Tensor] = []
    for taken in count():
        if not todo:
            break
        current = todo.pop()
        node = producer(current) if taken < FACTORS else None
        value = scalar(current)
        if value is not None:
            scale *= value
        elif node is not None and node.op == "Mul" and len(found) + len(todo) < 6:
            todo += list(node.inputs)
        elif node is not None and node.op == "Div" and scalar(node.inputs[1]):
            scale /= scalar(node.inputs[1])  # type: ignore[operator]
            todo.append(node.inputs[0])
        else:
            found.append(current)
    return found, scale


def _half_one_plus(node: gs.Node, inner_op: str) -> tuple[gs.Tensor, gs.Node] | None:
    """(x, inner) when the node computes x/2 · (1 + inner(...)), in any grouping."""
    if node.op not in ("Mul", "Div"):
        return None
    factors, scale = _factors(node.outputs[0])
    if len(factors) != 2 or abs(scale - 0.5) > 1e-6:
        return None
    for x, sum_ in ((factors[0], factors[1]), (factors[1], factors[0])):
        plus_one = with_scalar(producer(sum_), "Add")
        inner = producer(plus_one[0]) if plus_one and plus_one[1] == 1 else None
        if inner is not None and inner.op == inner_op:
            return x, inner
    return None


def _gelu_erf(node: gs.Node) -> None:
    """x/2 · (1 + erf(x/√2))"""
    found = _half_one_plus(node, "Erf")
    if found:
        x, inner = found
        factors, scale = _factors(inner.inputs[0])
        if len(factors) == 1 and factors[0] is x and abs(scale - 0.5**0.5) < 1e-5:
            become(node, "Gelu", x, "x/2 · (1 + erf(x/√2))", approximate="none")


def _gelu_tanh(node: gs.Node) -> None:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))"""
    found = _half_one_plus(node, "Tanh")
    if not found:
        return
    x, inner = found
    factors, scale = _factors(inner.inputs[0])
    if len(factors) != 1 or abs(scale - (2 / np.pi) ** 0.5) > 1e-5:
        return
    total = producer(factors[0])
    if total is None or total.op != "Add":
        return
    for linear, cubic in ((total.inputs[0], total.inputs[1]), (total.inputs[1], total.inputs[0])):
        powers, weight = _factors(cubic)
        cube = with_scalar(producer(powers[0]), "Pow") if len(powers) == 1 else None
        is_cube = (cube and cube[0] is x and cube[1] == 3) or (len(powers) == 3 and all(p is x for p in powers))
        if linear is x and is_cube and abs(weight - 0.044715) < 1e-6:
            return become(node, "Gelu", x, "x/2 · (1 + tanh(√(2/π)(x + 0.044715x³)))", approximate="tanh")


def _mish(node: gs.Node) -> None:
    """x · tanh(softplus(x))"""
    if node.op != "Mul" or len(node.inputs) != 2:
        return
    for x, gate in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        inner = producer(gate)
        soft = producer(inner.inputs[0]) if inner is not None and inner.op == "Tanh" else None
        if soft is not None and soft.op == "Softplus" and soft.inputs[0] is x:
            return become(node, "Mish", x, "x · tanh(softplus(x))")
    return None


def _relu6(node: gs.Node, readers: Readers) -> None:
    """min(max(x, 0), 6), max(min(x, 6), 0) and min(relu(x), 6), with any positive constant for 6.

    A ReLU that others read too stays one, for the sum of all cotangents.
    """
    outer = with_scalar(node, "Min", "Max")
    inner = producer(outer[0]) if outer else None
    if outer is None or inner is None or RAMP in node.attrs or readers.beside(inner, node):
        return
    if node.op == "Min" and inner.op == "Relu":
        x, least, most = inner.inputs[0], 0.0, outer[1]
    else:
        x, bound = with_scalar(inner, "Max" if node.op == "Min" else "Min") or (None, 0.0)
        least, most = (bound, outer[1]) if node.op == "Min" else (outer[1], bound)
    if x is not None and least == 0 < most and same_shape(x, node.outputs[0]):
        zero = gs.Constant(f"{node.name}/zero", np.zeros((), numpy_dtype(x)))
        top = next(c for c in (node if node.op == "Min" else inner).inputs if scalar(c) is not None)
        become(node, "Clip", x, f"{node.op} of {inner.op}", zero, top)


def _softmax(node: gs.Node) -> None:
    """e / Σ e, or z - log Σ e, of e = exp(z) and z = x - m with any m that all classes share, or z = x"""
    if node.op not in ("Div", "Sub") or len(node.inputs) != 2:
        return
    total = producer(_unstretched(node.inputs[1]))
    if node.op == "Sub":
        total = producer(_unstretched(total.inputs[0])) if total is not None and total.op == "Log" else None
    axes = constant_of(total.inputs[1]) if total is not None and total.op == "ReduceSum" and total.inputs[1:] else None
    summed = producer(total.inputs[0]) if total is not None and axes is not None and axes.size == 1 else None
    if axes is None or summed is None or summed.op != "Exp" or summed.outputs[0].shape is None:
        return
    x, axis = summed.inputs[0], int(axes.ravel()[0]) % len(summed.outputs[0].shape)
    above = summed.outputs[0] if node.op == "Div" else x
    if node.inputs[0] is not above or not _same_along(node.inputs[1], axis, above):
        return
    shifted = producer(x)
    if shifted is not None and shifted.op == "Sub" and _same_along(shifted.inputs[1], axis, x):
        x = shifted.inputs[0]
    if same_shape(x, node.outputs[0]):
        name, idiom = {"Div": ("Softmax", "exp / Σ exp"), "Sub": ("LogSoftmax", "x - log Σ exp")}[node.op]
        become(node, name, x, idiom, axis=axis)


def _unstretched(t: gs.Tensor) -> gs.Tensor:
    """The tensor before what only repeats it or gives it axes of size 1 (and before stop_gradient, an Identity)."""
    node = producer(t)
    while node is not None and node.op in ("Expand", "Identity", "Reshape", "Unsqueeze"):
        t, node = node.inputs[0], producer(node.inputs[0])
    return t


def _same_along(t: gs.Tensor, axis: int, x: gs.Tensor) -> bool:
    """Whether t, stretched to the shape of x, has one value along an axis."""
    while t.shape is not None and x.shape is not None and len(t.shape) == len(x.shape):
        if t.shape[axis] == 1:
            return True
        node = producer(t)
        if node is None or node.op not in ("Expand", "Identity"):
            return False
        t = node.inputs[0]
    return False

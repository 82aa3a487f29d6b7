"""Hard-swish and hard-sigmoid in their groupings, and the ramp clip(x + c, 0, top) inside them, which is no ReLU."""

from collections.abc import Iterator
from typing import TypeAlias

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import producer
from gbprewrite.view.raising import RAMP, Readers, become, scalar, with_scalar
from gbprewrite.view.rectifier_idioms import close

Copies: TypeAlias = dict[int, list[gs.Node]]  # id() of a node: parts of ramps that have its values


def raise_hard(graph: gs.Graph, readers: Readers) -> None:
    """Name hard-swish and hard-sigmoid, in place, and mark other ramps."""
    copies: Copies = {}
    for node in graph.nodes:
        hard(node, readers, copies)
    if copies:  # before the originals, so that a name leads to the original
        graph.nodes = list(_with_copies(graph, copies))


def _with_copies(graph: gs.Graph, copies: Copies) -> Iterator[gs.Node]:
    for node in graph.nodes:
        yield from copies.get(id(node), ())
        yield node


def _ramp(t: gs.Tensor) -> tuple[gs.Tensor, float, float] | None:
    """(x, c, top) when t = clip(x + c, 0, top) with 0 < c < top: the ramp inside a hard-sigmoid."""
    node = producer(t)
    if node is None:
        return None
    if node.op == "Clip" and len(node.inputs) == 3:
        low, top, source = scalar(node.inputs[1]), scalar(node.inputs[2]), node.inputs[0]
    else:
        bounded = with_scalar(node, "Min")
        inner = producer(bounded[0]) if bounded else None
        if bounded is None or inner is None:
            return None
        zero = with_scalar(inner, "Max")
        if inner.op == "Relu":
            low, top, source = 0.0, bounded[1], inner.inputs[0]
        elif zero is not None:
            low, top, source = zero[1], bounded[1], zero[0]
        else:
            return None
    shifted = with_scalar(producer(source), "Add")
    if shifted is None or low != 0 or top is None or not 0 < shifted[1] < top:
        return None
    return shifted[0], shifted[1], top


def _scaled_ramp(t: gs.Tensor) -> tuple[gs.Tensor, float, float, float] | None:
    """(x, α, β, top) when t = clip(αx + β, 0, top) with top near 1: a hard-sigmoid in any of its spellings."""
    node = producer(t)
    if node is not None and node.op == "HardSigmoid":
        return node.inputs[0], node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5), 1.0
    ramp = _ramp(t)
    if ramp and abs(ramp[2] - 1) < 1e-3:
        x, times = _multiple(producer(ramp[0])) or (ramp[0], 1.0)
        return x, times, ramp[1], ramp[2]
    multiple = _multiple(node)
    if multiple:
        inner, scale = multiple
        ramp = _ramp(inner)
        if ramp and abs(scale * ramp[2] - 1) < 1e-3:
            return ramp[0], scale, ramp[1] * scale, ramp[2] * scale
    return None


def _multiple(node: gs.Node | None) -> tuple[gs.Tensor, float] | None:
    """(x, c) when the node computes x · c or x / (1/c) with a scalar constant; not x / 0."""
    found = with_scalar(node, "Mul", "Div")
    if found is None or node is None or node.op == "Mul":
        return found
    return (found[0], 1 / found[1]) if found[1] else None


def hard(node: gs.Node, readers: Readers, copies: Copies) -> None:
    """Hard-swish x·clip(x+3, 0, 6)/6 in its groupings, then hard-sigmoid."""
    if node.op not in ("Mul", "Div", "Clip", "Min"):
        return
    if node.op == "Mul" and len(node.inputs) == 2:
        for x, gate in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            found = _scaled_ramp(gate)
            if found and found[0] is x and close(found[1], 1 / 6) and close(found[2], 0.5):
                return become(node, "HardSwish", x, "x · hard-sigmoid(x)")
    multiple = _multiple(node)
    if multiple:
        inner, scale = multiple
        product = producer(inner)
        if product is not None and product.op == "Mul" and len(product.inputs) == 2:
            for x, gate in ((product.inputs[0], product.inputs[1]), (product.inputs[1], product.inputs[0])):
                ramp = _ramp(gate)
                if ramp and ramp[0] is x and ramp[1] == 3 and ramp[2] == 6 and close(scale, 1 / 6):
                    return become(node, "HardSwish", x, "x · clip(x + 3, 0, 6) / 6")
    found = _scaled_ramp(node.outputs[0])
    if found and node.op != "HardSigmoid":
        x, alpha, beta, top = found
        if close(top, 1):
            become(node, "HardSigmoid", x, "clip(αx + β, 0, 1)", alpha=alpha, beta=beta, from_x=1)
        else:
            _mark_ramp(node, readers, copies)
    return None


def _mark_ramp(node: gs.Node | None, readers: Readers, copies: Copies) -> None:
    """A ramp with constants that are a little off is no HardSigmoid; its parts keep their rules, and are no ReLU.

    What reads a part beside the ramp still reads a ReLU: the ramp gets a part of its own, which has the same values.
    """
    reader = None
    while node is not None and node.op in ("Mul", "Div", "Min", "Max", "Relu", "Clip"):
        if node.op in ("Min", "Max", "Relu", "Clip"):
            node = node if reader is None else _own(node, reader, readers, copies)
            node.attrs[RAMP] = True
        reader = node
        node = next((p for p in map(producer, node.inputs) if p is not None), None)


def _own(node: gs.Node, reader: gs.Node, readers: Readers, copies: Copies) -> gs.Node:
    """The node, or where it has more readers than one a copy that only this one reads."""
    if not readers.beside(node, reader):
        return node
    y = node.outputs[0]
    made = gs.Variable(y.name, y.dtype, y.shape)
    copy = gs.Node(node.op, node.name, dict(node.attrs), list(node.inputs), [made], domain=node.domain)
    reader.inputs = [made if t is y else t for t in reader.inputs]
    copies.setdefault(id(node), []).append(copy)
    return copy

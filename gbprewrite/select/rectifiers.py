"""Which nodes of the graph are nonlinearities, what part each plays, and which of them a method rectifies."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.errors import UsageError
from gbprewrite.model.qlinear import operands
from gbprewrite.model.tensors import constant_of
from gbprewrite.view.gatelike import GATE_LIKE
from gbprewrite.view.idioms import RAISED, RAMP
from gbprewrite.view.meaning import MEANT
from gbprewrite.view.operators import ACTIVATIONS, GATES, MOVES, OTHERS, RECTIFIERS
from gbprewrite.view.quantised import STAND_INS, is_weight

UNNAMED = "gate-like, left plain"  # the role of what masks a tensor by its own sign and is no rectifier that is known


class Nonlinearity(NamedTuple):
    """One nonlinearity of the graph. `role` is rectifier, activation, gate, other, or UNNAMED."""

    node: gs.Node
    kind: str
    role: str


def nonlinearity(node: gs.Node) -> Nonlinearity | None:
    """What part a node plays, or None when it is no nonlinearity."""
    kind = node.op
    spelling = node.attrs.get(RAISED)
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if MEANT in node.attrs:
        return None
    if RAMP in node.attrs:
        return Nonlinearity(node, f"{kind} of a hard-sigmoid", "other")
    if GATE_LIKE in node.attrs:
        return Nonlinearity(node, kind, UNNAMED)
    if kind == "Clip":
        low = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        rectifies = low is not None and low.size == 1 and float(low.ravel()[0]) == 0
        high = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
        name = "Clip(x, 0)" if high is None else f"Clip(x, 0, {float(high.ravel()[0]):g})"
        return Nonlinearity(node, name if rectifies else "Clip", "rectifier" if rectifies else "other")
    if kind in ("QuantizeLinear", "Saturation"):
        hidden = node.attrs["bottom"] == "relu"
        return Nonlinearity(node, f"ReLU in {kind}" if hidden else kind, "rectifier" if hidden else "other")
    name = f"{kind} as {spelling}" if spelling else kind
    kind = kind.removeprefix("QLinear")
    if kind in RECTIFIERS:
        return Nonlinearity(node, name, "rectifier")
    if kind in GATES and is_gate(node):
        return Nonlinearity(node, name, "gate")
    if kind in ACTIVATIONS:
        return Nonlinearity(node, name, "activation")
    return Nonlinearity(node, name, "other") if kind in OTHERS else None


def is_gate(node: gs.Node) -> bool:
    """Whether an output multiplies another value: a squeeze-and-excitation gate rather than an activation."""
    seen: set[int] = set()
    todo = [node.outputs[0]]
    while todo:
        tensor = todo.pop()
        for consumer in tensor.outputs:
            if id(consumer) in seen:
                continue
            seen.add(id(consumer))
            if consumer.op in ("Mul", "QLinearMul") and not any(is_weight(t) for t, *_ in operands(consumer)):
                return True
            if consumer.op in MOVES or consumer.op in STAND_INS:
                todo += consumer.outputs
    return False


def rectified(found: Iterable[Nonlinearity], rectify: Sequence[str] = ()) -> set[int]:
    """id() of the nodes that guided and deconvnet act on.

    `rectify` extends the rectifiers: "all" to every activation, an operator name to the activations of that kind.
    Raises UsageError for a name that is no activation.
    """
    unknown = sorted(set(rectify) - {"all", *ACTIVATIONS, *RECTIFIERS})
    if unknown:
        raise UsageError(
            f"--rectify {', '.join(unknown)}: not an activation. Choose 'all' or from: {', '.join(ACTIVATIONS)}."
        )
    return {
        id(n.node)
        for n in found
        if n.role == "rectifier" or (n.role == "activation" and ("all" in rectify or n.node.op in rectify))
    }

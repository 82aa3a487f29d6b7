"""A method is a table of rules.

`METHODS` names them: plain gradient, guided backpropagation, deconvnet. The last two are three-line combinators laid
over the rules of the *rectifiers*, which are instances (marked in the view), not operator types.

Sources: Simonyan et al. 2013 (gradient); Zeiler and Fergus 2013, section 2.1 (deconvnet: rectify the signal on its way
back); Springenberg et al. 2014, section 3.4 and figure 1 (guided: both masks).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.errors import UsageError
from gbprewrite.rules import VJP, Formula, Rule
from gbprewrite.shapes import constant_of
from gbprewrite.view import RAISED, RAMP

Combinator = Callable[[Formula], Formula]


def gradient(rule: Formula) -> Formula:
    """dx = dy · f'(x)"""
    return rule


def guided(rule: Formula) -> Formula:
    """dx = max(dy, 0) · f'(x); behind a ReLU dy·(x>0)·(dy>0)"""
    return lambda op, dy, *args, **attributes: rule(op, op.Relu(dy), *args, **attributes)


def deconvnet(rule: Formula) -> Formula:
    """dx = max(dy, 0), whatever x was"""
    return lambda op, dy, *args, **attributes: op.Relu(dy)


METHODS: dict[str, Combinator] = {"gradient": gradient, "guided": guided, "deconvnet": deconvnet}

RECTIFIERS = ("Relu", "Clip", "ThresholdedRelu")
ACTIVATIONS = (
    *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Selu", "Sigmoid", "Softplus"),
    *("Softsign", "Swish", "Tanh"),
)
GATES = ("HardSigmoid", "Sigmoid", "Tanh")
OTHERS = ("Abs", "Hardmax", "LogSoftmax", "Max", "Min", "Softmax", "Where")  # never activations in this sense
MOVES = (
    *("Cast", "Expand", "Gather", "Identity", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose"),
    "Unsqueeze",
)
POOLS = (
    *("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxRoiPool"),
    "MaxUnpool",
)


class Nonlinearity(NamedTuple):
    """One nonlinearity of the graph. `role` is rectifier, activation, gate or other."""

    node: gs.Node
    kind: str
    role: str


def nonlinearity(node: gs.Node) -> Nonlinearity | None:
    """What part a node plays, or None when it is no nonlinearity."""
    kind = node.op
    spelling = node.attrs.get(RAISED)
    if node.domain not in (None, "", "ai.onnx"):
        return None
    if RAMP in node.attrs:
        return Nonlinearity(node, f"{kind} of a hard-sigmoid", "other")
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
            if consumer.op == "Mul" and not any(isinstance(t, gs.Constant) for t in consumer.inputs):
                return True
            if consumer.op in MOVES:
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


def rule_of(node: gs.Node, combine: Combinator, marked: set[int]) -> Rule:
    """The rule that one node meets under a method."""
    rule = VJP[node.op]
    return rule._replace(formula=combine(rule.formula)) if id(node) in marked else rule


def description(node: gs.Node, method: str, marked: set[int]) -> str:
    """What a method does at a node, in a formula."""
    plain = VJP[node.op].text if node.op in VJP else "no rule"
    if id(node) not in marked or method == "gradient":
        return plain
    if method == "deconvnet":
        return "dx = max(dy, 0)"
    return plain.replace("dy", "max(dy, 0)", 1) if "dy" in plain else plain

"""How a node of the view becomes another one, and what is asked of the nodes around it first."""

from collections.abc import Iterable
from typing import Any

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import constant_of

RAMP = "gbprewrite_ramp"  # attribute of a Clip, Max or Relu that is the ramp inside a hard-sigmoid
RAISED = "gbprewrite_idiom"  # attribute of a raised node: how the source spells it
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "NonZero", "Sign")
WITHOUT_VALUES = (*COMPARISONS, "Shape", "Size")  # which read no more than signs, order and shapes


class Readers:
    """Who reads what in a graph with these outputs."""

    def __init__(self, outputs: Iterable[gs.Tensor]) -> None:
        self._given_out = {id(t) for t in outputs}

    def beside(self, node: gs.Node, reader: gs.Node) -> bool:
        """Whether the values of one node go on by another way than through a reader."""
        y = node.outputs[0]
        others = [n for n in y.outputs if n is not reader and n.op not in WITHOUT_VALUES]
        return id(y) in self._given_out or any(t.outputs or id(t) in self._given_out for n in others for t in n.outputs)


def become(node: gs.Node, op: str, x: gs.Tensor, idiom: str, *more: gs.Tensor, **attrs: Any) -> None:
    """Turn a node, in place, into an operator of x (and `more`), whose reports say how the source spells it."""
    node.op, node.attrs = op, {**attrs, RAISED: idiom}
    node.inputs = [x, *more]


def scalar(t: gs.Tensor) -> float | None:
    """The value of a constant of one element, else None."""
    value = constant_of(t)
    return float(value.ravel()[0]) if value is not None and value.size == 1 else None


def with_scalar(node: gs.Node | None, *ops: str) -> tuple[gs.Tensor, float] | None:
    """(x, c) when the node computes x ∘ c, or c ∘ x, with a scalar constant c; Div only as x / c."""
    if node is None or node.op not in ops or len(node.inputs) != 2:
        return None
    for x, c in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        value = scalar(c)
        if value is not None and not isinstance(x, gs.Constant):
            return x, value
        if node.op in ("Div", "Pow", "Sub"):
            break
    return None

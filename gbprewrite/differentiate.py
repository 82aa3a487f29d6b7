"""The reverse walk: from the cotangent of the score to the cotangents of the inputs."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs

from gbprewrite.errors import Obstacle, UnsupportedOperators
from gbprewrite.lowering import Builder
from gbprewrite.rules import NO_GRADIENT, VJP, Rule
from gbprewrite.shapes import Refused
from gbprewrite.tensors import Tensor, is_float

if TYPE_CHECKING:
    from gbprewrite.select import Selection

RuleOf = Callable[[gs.Node], Rule]


def path(graph: gs.Graph, inputs: Sequence[Tensor], score: Tensor) -> list[gs.Node]:
    """Nodes through which the inputs reach the score by floats, in the graph's order."""
    reached = {id(t) for t in inputs}
    forward: list[gs.Node] = []
    for node in graph.nodes:
        if node.op not in NO_GRADIENT and any(id(t) in reached for t in node.inputs):
            carried = [t for t in node.outputs if t.dtype is None or is_float(t)]
            reached.update(id(t) for t in carried)
            if carried:
                forward.append(node)
    needed = {id(score)}
    found: list[gs.Node] = []
    for node in reversed(forward):
        if any(id(t) in needed for t in node.outputs):
            found.append(node)
            needed.update(id(t) for t in node.inputs)
    return found[::-1]


def missing(nodes: Iterable[gs.Node], opset: int) -> list[Obstacle]:
    """Every node without a rule."""
    return [
        Obstacle(n.name, f"{n.domain}::{n.op}" if n.domain else n.op, why(n, opset))
        for n in nodes
        if n.op not in VJP or n.domain not in (None, "", "ai.onnx")
    ]


def why(node: gs.Node, opset: int) -> str:
    """The reason for which an operator has no rule."""
    if node.domain not in (None, "", "ai.onnx"):
        return f"a custom operator of the domain {node.domain!r}"
    try:
        onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:
        return "no current opset has this operator; it was removed from ONNX, so the result could not run"
    return "no rule yet"


def pull_back(
    op: Builder, chosen: "Selection", rule_of: RuleOf, seeds: Sequence[Tensor], tag: str
) -> list[list[Tensor | None]]:
    """Cotangents of each chosen input, one for each seed (a cotangent of the score).

    Raises UnsupportedOperators that lists every node whose rule refuses it.
    """
    pulled = [_pull_one(op, chosen, rule_of, seed, tag) for seed in seeds]
    return [list(of_one_input) for of_one_input in zip(*pulled, strict=True)]


def _pull_one(op: Builder, chosen: "Selection", rule_of: RuleOf, seed: Tensor, tag: str) -> list[Tensor | None]:
    wanted = {id(t) for t in chosen.inputs} | {id(t) for n in chosen.nodes for t in n.outputs}
    cotangents: dict[int, list[Tensor]] = {id(chosen.score): [seed]}
    obstacles: list[Obstacle] = []

    def total(tensor: Tensor) -> Tensor | None:
        parts = cotangents.get(id(tensor))
        if not parts:
            return None
        while len(parts) > 1:
            parts[:2] = [op.Add(parts[0], parts[1])]
        return op.name(parts[0], f"{tensor.name}_{tag}")

    for node in reversed(chosen.nodes):
        dys = [total(t) for t in node.outputs]
        if all(dy is None for dy in dys):
            continue
        op.scope = f"{tag}/{node.name}"
        try:
            for x, dx in zip(node.inputs, _apply(op, node, rule_of(node), dys), strict=False):
                if dx is not None and id(x) in wanted:
                    dx = op.sum_to(dx() if callable(dx) else dx, x)
                    cotangents.setdefault(id(x), []).append(dx)
        except Refused as refusal:
            obstacles.append(Obstacle(node.name, node.op, str(refusal)))
    if obstacles:
        raise UnsupportedOperators(obstacles)
    op.scope = tag
    return [total(t) for t in chosen.inputs]


def _apply(op: Builder, node: gs.Node, rule: Rule, dys: list[Tensor | None]) -> Sequence[Any]:
    inputs = [t if t.name else None for t in node.inputs]
    attributes = attributes_of(node, op.opset)
    plain = VJP[node.op].formula
    taken = inspect.signature(plain).parameters.values()
    names = {p.name for p in taken if p.kind is p.KEYWORD_ONLY}
    if not any(p.kind is p.VAR_KEYWORD for p in taken):
        attributes = {k: v for k, v in attributes.items() if k in names}
    if rule.all_outputs:
        made = rule.formula(op, dys, node.outputs, *inputs, **attributes)
    elif dys[0] is None:
        raise Refused("only its further outputs are used, and these have no gradient rule")
    else:
        made = rule.formula(op, dys[0], node.outputs[0], *inputs, **attributes)
    return made if isinstance(made, tuple) else (made,)


def attributes_of(node: gs.Node, opset: int) -> dict[str, Any]:
    """The node's attributes with the standard's defaults filled in; None where there is none."""
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:  # a raised idiom may be of a later opset; it brings all its attributes
        return dict(node.attrs)
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        value = onnx.helper.get_attribute_value(default) if default.name else None
        found[name] = value.decode() if isinstance(value, bytes) else value
    return {**found, **node.attrs}

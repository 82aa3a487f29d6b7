"""The reverse walk: from the cotangent of the score to the cotangents of the inputs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder, Walk
from gbprewrite.backward.rules.table import VJP, Rule
from gbprewrite.errors import Obstacle, UnsupportedOperators
from gbprewrite.model.tensors import Refused, Tensor, is_quantised
from gbprewrite.select.selection import Selection
from gbprewrite.view.paths import CASTS, between, carriers, operands, through
from gbprewrite.view.quantised import PICKED

RuleOf = Callable[[gs.Node], Rule]


def pull_back(
    op: Builder, chosen: Selection, rule_of: RuleOf, seeds: Sequence[Tensor], tag: str
) -> list[list[Tensor | None]]:
    """Cotangents of each chosen input, one for each seed (a cotangent of the score).

    Raises UnsupportedOperators that lists every node whose rule refuses it.
    """
    pulled = []
    for seed in seeds:
        walk = _Walk(op, rule_of, [(chosen.score, seed)], tag)
        pulled.append(walk.back(chosen.nodes, chosen.inputs))
    return [list(of_one_input) for of_one_input in zip(*pulled, strict=True)]


def pull_back_built(op: Builder, y: Tensor, dy: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Cotangents of the inputs of a value that was itself built with `op`; for rules that are decompositions."""
    return _Walk(op, lambda node: VJP[node.op], [(y, dy)]).back(_producers(y, inputs), inputs)


def pull_back_branch(
    op: Builder, branch: gs.Graph, dys: Sequence[Tensor | None], inputs: Sequence[Tensor], rule_of: RuleOf
) -> list[Tensor]:
    """Cotangents of what a branch captures, as outputs of its own; zeros where it does not depend on a value.

    `op` builds inside the branch; `dys` are the cotangents of the If's outputs.
    """
    given = [(y, dy) for y, dy in zip(branch.outputs, dys, strict=True) if dy is not None]
    seeds = [(y, op.shaped_like(op.Identity(dy), y)) for y, dy in given]
    tag = op.scope.tag
    found = _Walk(op, rule_of, seeds, tag).back(through(branch, inputs, [y for y, _ in seeds]), inputs)
    return [
        op.output(op.zeros_like(x) if dx is None else dx, op.unique(f"{op.prefix}{x.name}_{tag}"), x.shape)
        for x, dx in zip(inputs, found, strict=True)
    ]


WALK = Walk(pull_back_built, pull_back_branch)


def _producers(y: Tensor, inputs: Sequence[Tensor]) -> list[gs.Node]:
    """The nodes between the inputs and y that carry floats, in an order that runs."""
    ends, done = {id(t) for t in inputs}, set()
    ordered: list[gs.Node] = []
    todo: list[tuple[gs.Node, bool]] = [(n, False) for n in y.inputs if id(y) not in ends]
    while todo:
        node, ready = todo.pop()
        if ready:
            ordered.append(node)
        elif id(node) not in done:
            done.add(id(node))
            todo.append((node, True))
            todo += [(n, False) for t in node.inputs if id(t) not in ends for n in t.inputs]
    return between(ordered, inputs, y)


class _Walk:
    """One reverse walk: gathers the cotangents of every tensor until its producer asks for their sum."""

    def __init__(self, op: Builder, rule_of: RuleOf, seeds: Sequence[tuple[Tensor, Tensor]], tag: str = "") -> None:
        self.op, self.rule_of, self.tag = op, rule_of, tag
        self.cotangents: dict[int, list[Tensor]] = {}
        for y, dy in seeds:
            self.cotangents.setdefault(id(y), []).append(dy)

    def back(self, nodes: Sequence[gs.Node], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Walk the nodes from the last to the first; the cotangents of the inputs."""
        wanted = carriers(nodes, inputs)
        obstacles: list[Obstacle] = []
        for node in reversed(nodes):
            dys = [self.total(t) for t in node.outputs]
            if all(dy is None for dy in dys):
                continue
            if self.tag:
                self.op.enter(self.tag, node.name)
            try:
                xs = operands(node, wanted)
                for x, dx in zip(xs, _apply(self.op, node, xs, self.rule_of(node), dys), strict=False):
                    if dx is not None and id(x) in wanted:
                        dx = self.op.sum_to(dx() if callable(dx) else dx, x)
                        self.cotangents.setdefault(id(x), []).append(dx)
            except Refused as refusal:
                obstacles.append(Obstacle(node.name, node.op, str(refusal)))
            except UnsupportedOperators as inner:  # of a branch
                obstacles += inner.obstacles
        if obstacles:
            raise UnsupportedOperators(obstacles)
        return [self.total(t) for t in inputs]

    def total(self, tensor: Tensor) -> Tensor | None:
        """The sum of what has arrived at a tensor, under a telling name."""
        parts = self.cotangents.get(id(tensor))
        if not parts:
            return None
        # Those of convolutions first: onnxruntime adds in its blocked layout what it finds there.
        parts.sort(key=lambda t: not t.inputs or t.inputs[0].op != "Conv")
        while len(parts) > 1:
            parts[:2] = [self.op.Add(parts[0], parts[1])]
        return self.op.name(parts[0], f"{tensor.name}_{self.tag}") if self.tag else parts[0]


def _apply(op: Builder, node: gs.Node, xs: Sequence[Tensor], rule: Rule, dys: list[Tensor | None]) -> Sequence[Any]:
    inputs = [t if t.name else None for t in xs]
    outputs = list(node.outputs)
    if node.op in PICKED:  # their rules compare and copy numbers; levels of one scale compare like these
        like = next(dy for dy in dys if dy is not None)
        inputs, outputs = ([_as_number(op, node.op, t, like) for t in ts] for ts in (inputs, outputs))
    attributes = attributes_of(node, op.opset)
    names = rule.attributes
    if names is not None:
        attributes = {k: v for k, v in attributes.items() if k in names}
    if rule.all_outputs:
        made = rule.formula(op, dys, outputs, *inputs, **attributes)
    elif dys[0] is None:
        raise Refused("only its further outputs are used, and these have no gradient rule")
    else:
        made = rule.formula(op, dys[0], outputs[0], *inputs, **attributes)
    return made if isinstance(made, tuple) else (made,)


def _as_number(op: Builder, operator: str, tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """Levels as numbers of the cotangent's type; anything else as it is."""
    if tensor is None or operator in CASTS or not is_quantised(tensor):
        return tensor
    return op.shaped_like(op.cast_to(tensor, like), tensor)


def attributes_of(node: gs.Node, opset: int) -> dict[str, Any]:
    """The node's attributes with the standard's defaults filled in; None where there is none."""
    standard = node.domain in (None, "", "ai.onnx")
    return {**(_defaults(node.op, opset) if standard else {}), **node.attrs}


@functools.cache
def _defaults(operator: str, opset: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:  # a raised idiom may be of a later opset; it brings all its attributes
        return found
    for name, attribute in schema.attributes.items():
        default = attribute.default_value
        value = onnx.helper.get_attribute_value(default) if default.name else None
        found[name] = value.decode() if isinstance(value, bytes) else value
    return found

"""The reverse walk: from the cotangent of the score to the cotangents of the inputs."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Refused
from gbprewrite.backward.lowering import Builder
from gbprewrite.backward.rules import NO_GRADIENT, VJP, Rule
from gbprewrite.errors import Obstacle, UnsupportedOperators
from gbprewrite.model.tensors import Tensor, is_float, is_integer, is_quantised
from gbprewrite.view.quantised import CARRIERS, PICKED

if TYPE_CHECKING:
    from gbprewrite.select.selection import Selection

RuleOf = Callable[[gs.Node], Rule]
INTEGER_SUMS = ("ConvInteger", "MatMulInteger")
# Operator → positions of its inputs that are indices, sizes or axes where they are integers.
PLACES = {
    **dict.fromkeys(
        (
            *("Compress", "CumSum", "Expand", "Gather", "GatherElements", "GatherND", "OneHot", "Reshape", "Scatter"),
            *("ReverseSequence", "ScatterElements", "ScatterND", "Split", "Squeeze", "Tile", "TopK", "Trilu"),
            *("Unsqueeze", "CenterCropPad", "AffineGrid", "DFT"),
            *(f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")),
            "ReduceSumSquare",
        ),
        (1,),
    ),
    **dict.fromkeys(("Slice", "Resize", "MaxUnpool"), (1, 2, 3, 4)),
    **dict.fromkeys(("RoiAlign", "TensorScatter"), (2,)),
    "Pad": (1, 3),
}
CASTS = ("Cast", "CastLike")  # of levels into integers of another width


def path(graph: gs.Graph, inputs: Sequence[Tensor], *scores: Tensor) -> list[gs.Node]:
    """Nodes through which the inputs reach any of the scores by real numbers (quantised ones too), in their order."""
    return between(graph.nodes, inputs, *scores)


def made_on_the_way(graph: gs.Graph, inputs: Sequence[Tensor]) -> set[int]:
    """id() of what is made by nodes that the inputs reach by real numbers; a path to each of them is not empty."""
    return {id(t) for n in _reached(graph.nodes, inputs) for t in n.outputs}


def _reached(nodes: Sequence[gs.Node], inputs: Sequence[Tensor]) -> list[gs.Node]:
    reached = {id(t) for t in inputs}
    forward: list[gs.Node] = []
    for node in nodes:
        if node.op not in NO_GRADIENT and any(id(t) in reached for t in valued(node)):
            carried = [t for t in node.outputs if t.dtype is None or is_float(t) or _stands_for_real(node, t, reached)]
            reached.update(id(t) for t in carried)
            if carried:
                forward.append(node)
    return forward


def between(nodes: Sequence[gs.Node], inputs: Sequence[Tensor], *scores: Tensor) -> list[gs.Node]:
    """Of nodes in an order that runs, those through which the inputs reach any of the scores by real numbers."""
    needed = {id(score) for score in scores}
    found: list[gs.Node] = []
    for node in reversed(_reached(nodes, inputs)):
        if any(id(t) in needed for t in node.outputs):
            found.append(node)
            needed.update(id(t) for t in valued(node))
    return found[::-1]


def valued(node: gs.Node) -> list[Tensor]:
    """What a node reads for its numbers: not the integers that only say where or how much of it."""
    places = PLACES.get(node.op)
    if places is None:
        return read_by(node)
    return [t for i, t in enumerate(node.inputs) if i not in places or t.dtype is None or is_float(t)]


def read_by(node: gs.Node) -> list[Tensor]:
    """What a node reads: its inputs, and what the bodies of an If, Loop or Scan take from around them."""
    found = list(node.inputs)
    for body in (a for a in node.attrs.values() if isinstance(a, gs.Graph)):
        own = {id(t) for n in body.nodes for t in n.outputs} | {id(t) for t in body.inputs}
        inner = [t for n in body.nodes for t in read_by(n)] + list(body.outputs)
        found += [t for t in inner if id(t) not in own]
    return found


def _stands_for_real(node: gs.Node, output: Tensor, reached: set[int]) -> bool:
    """Whether an integer output is a quantised real number, or is computed from one.

    So are the numbers that an operator makes of levels: `missing` names those that have no such meaning.
    """
    if node.op in ("QuantizeLinear", "Saturation"):
        return is_quantised(output)
    if node.op in CARRIERS and node.op not in CASTS and not is_quantised(output):  # the indices of a TopK
        return False
    return is_integer(output) and any(id(t) in reached and is_integer(t) for t in valued(node))


def _computes_with_levels(node: gs.Node) -> bool:
    """Whether a node on the way makes integers in another manner than by handing on what they stand for."""
    made = [t for t in node.outputs if t.dtype is not None]
    handed_on = node.op in ("QuantizeLinear", "Saturation", "If", *CARRIERS)
    return bool(made) and not handed_on and not any(map(is_float, made))


def operands(node: gs.Node, wanted: set[int]) -> list[Tensor]:
    """The tensors to which a node's rule gives cotangents: its inputs, and of an If what its branches capture too."""
    if node.op != "If":
        return list(node.inputs)
    inner = {id(t): t for t in read_by(node)[1:] if id(t) in wanted}
    return [node.inputs[0], *inner.values()]


def _carriers(nodes: Iterable[gs.Node], inputs: Sequence[Tensor]) -> set[int]:
    """id() of the tensors whose cotangents a walk over the nodes asks for."""
    return {id(t) for t in inputs} | {id(t) for n in nodes for t in n.outputs}


def with_branches(nodes: Sequence[gs.Node], inputs: Sequence[Tensor]) -> Iterator[gs.Node]:
    """The nodes of a path, and those on it inside the branches of an If."""
    wanted = _carriers(nodes, inputs)
    for node in nodes:
        yield node
        for branch in (a for a in node.attrs.values() if node.op == "If" and isinstance(a, gs.Graph)):
            taken = operands(node, wanted)[1:]
            yield from with_branches(_through(branch, taken, branch.outputs), taken)


def _through(branch: gs.Graph, inputs: Sequence[Tensor], outputs: Iterable[Tensor]) -> list[gs.Node]:
    """The nodes of a branch through which the inputs reach any of its outputs."""
    return between(branch.nodes, inputs, *outputs)


def missing(nodes: Iterable[gs.Node], opset: int) -> list[Obstacle]:
    """Every node without a rule."""
    return [
        Obstacle(n.name, f"{n.domain}::{n.op}" if n.domain else n.op, why(n, opset))
        for n in nodes
        if n.op not in VJP or n.domain not in (None, "", "ai.onnx") or _computes_with_levels(n)
    ]


REFUSED = {
    **dict.fromkeys(("Loop", "Scan"), "a loop; export the model unrolled"),
    "LinearAttention": "its body is a loop",
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "a recurrent cell; these are not differentiated"),
    **dict.fromkeys(
        (
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
        ),
        "a sequence; export the model with tensors alone",
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        "an optional value; export the model with the value, or without",
    ),
    **dict.fromkeys(
        INTEGER_SUMS, "sums of integers whose scale stands elsewhere; use the model before it was quantised"
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        "strings are no real numbers",
    ),
}


def why(node: gs.Node, opset: int) -> str:
    """The reason for which an operator has no rule."""
    if node.op in REFUSED:
        return REFUSED[node.op]
    if node.op in VJP and node.domain in (None, "", "ai.onnx"):
        return "it computes with the levels of quantised numbers; dequantise before it, or use the float model"
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
    tag = op.scope.split("/")[0]
    found = _Walk(op, rule_of, seeds, tag).back(_through(branch, inputs, [y for y, _ in seeds]), inputs)
    return [
        op.output(op.zeros_like(x) if dx is None else dx, op.unique(f"{op.prefix}{x.name}_{tag}"), x.shape)
        for x, dx in zip(inputs, found, strict=True)
    ]


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
        wanted = _carriers(nodes, inputs)
        obstacles: list[Obstacle] = []
        for node in reversed(nodes):
            dys = [self.total(t) for t in node.outputs]
            if all(dy is None for dy in dys):
                continue
            if self.tag:
                self.op.scope = f"{self.tag}/{node.name}"
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
    names = _keywords(VJP[node.op].formula)
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


@functools.cache
def _keywords(formula: Callable[..., Any]) -> frozenset[str] | None:
    """The attributes that a formula takes; None when it takes any."""
    taken = inspect.signature(formula).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return None
    return frozenset(p.name for p in taken if p.kind is p.KEYWORD_ONLY)


def attributes_of(node: gs.Node, opset: int) -> dict[str, Any]:
    """The node's attributes with the standard's defaults filled in; None where there is none."""
    return {**_defaults(node.op, opset), **node.attrs}


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

"""Questions to the forward graph: through which nodes real numbers flow, and what each node reads of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, is_float, is_integer, is_quantised
from gbprewrite.view.operators import NO_GRADIENT
from gbprewrite.view.quantised import CARRIERS

if TYPE_CHECKING:
    pass


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


def computes_with_levels(node: gs.Node) -> bool:
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


def carriers(nodes: Iterable[gs.Node], inputs: Sequence[Tensor]) -> set[int]:
    """id() of the tensors whose cotangents a walk over the nodes asks for."""
    return {id(t) for t in inputs} | {id(t) for n in nodes for t in n.outputs}


def with_branches(nodes: Sequence[gs.Node], inputs: Sequence[Tensor]) -> Iterator[gs.Node]:
    """The nodes of a path, and those on it inside the branches of an If."""
    wanted = carriers(nodes, inputs)
    for node in nodes:
        yield node
        for branch in (a for a in node.attrs.values() if node.op == "If" and isinstance(a, gs.Graph)):
            taken = operands(node, wanted)[1:]
            yield from with_branches(through(branch, taken, branch.outputs), taken)


def through(branch: gs.Graph, inputs: Sequence[Tensor], outputs: Iterable[Tensor]) -> list[gs.Node]:
    """The nodes of a branch through which the inputs reach any of its outputs."""
    return between(branch.nodes, inputs, *outputs)

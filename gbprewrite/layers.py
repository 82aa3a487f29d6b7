"""What can be named inside a model: the tensors between its inputs and its score, in order."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite.backward.coverage import known
from gbprewrite.graft.restore import blaming, load, restore
from gbprewrite.model.input_shapes import Shapes, fix
from gbprewrite.model.symbols import UNKNOWN
from gbprewrite.model.tensors import Tensor, is_float
from gbprewrite.normalise.dialect import normalise
from gbprewrite.select import rectifiers, starts
from gbprewrite.select.ends import ends
from gbprewrite.select.score import named
from gbprewrite.view import operators, paths
from gbprewrite.view.forward import view
from gbprewrite.view.quantised import only_in_view

# These hand on the units that they are given, in another place or type.
MOVES = (*operators.MOVES, "Dropout", "Flatten", "Pad")
NORMALISATIONS = (
    *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *("LpNormalization", "RMSNormalization"),
)
AFFINE = ("Add", "Div", "Mul", "Sub")


class Layer(NamedTuple):
    """A tensor that can be explained: its name, the operator and the name of the node that makes it, and its shape, "?"
    where the model does not name a dimension."""

    name: str
    operator: str
    node: str
    shape: tuple[int | str, ...]


def layers(
    model: str | os.PathLike[str] | ModelProto,
    score: str | None = None,
    *,
    every: bool = False,
    input_shapes: Shapes | None = None,
) -> list[Layer]:
    """The float tensors of two axes or more on the way from the inputs to the score, from input to output.

    Args:
        model: an ONNX file or a ModelProto; of a converted one the source part is looked at.
        score: the output or inner tensor that the way leads to; by default every output.
        every: also what another row stands for: tensors that only a normalisation, a bias or an activation reads (the
            stage's end is listed), and those that are moved units of an earlier one (Reshape, Transpose, Pad).
        input_shapes: as for `gbprewrite.convert`.

    Raises:
        UsageError: an unknown score, or a shape that contradicts the model.
        ModelError: no ONNX model, or one that has no float input.
    """
    with blaming(model):
        source = restore(load(model, replace=None))
        fix(source, input_shapes or {})
        normal = normalise(source, known())
        graph = view(normal, known(), rearrange=False)
        inputs = starts.input_tensors(graph, normal, optional=True)
        inputs = inputs or [t for x in starts.real_inputs(graph, normal) for t in starts.behind(x, by_index=True)]
        inputs = inputs or starts.input_tensors(graph, normal)  # says what is wrong
        wanted = graph.outputs if score is None else [named(graph, score)]
        scores = ends(graph, inputs, wanted)  # of a class number those that it is the highest of
        path = paths.path(graph, inputs, *scores)
        first = {id(n) for x in inputs for n in x.inputs}
        way = [*(n for n in graph.nodes if id(n) in first), *(n for n in path if id(n) not in first)]
        nodes = {id(n): n for n in way}
        return [
            Layer(t.name, n.op, n.name, tuple(map(_dimension, t.shape)))
            for n, t in _tensors(way, nodes, scores)
            if every or id(n) in first or not (_moved(n) or _goes_on(t, nodes))
        ]


def _tensors(
    way: Sequence[gs.Node], nodes: Mapping[int, gs.Node], scores: Sequence[Tensor]
) -> Iterator[tuple[gs.Node, Tensor]]:
    """Each node on the way with each of its outputs that has units and leads further, or is an end."""
    wanted = {id(t) for t in scores}
    for node in way:
        for tensor in node.outputs:
            needed = id(tensor) in wanted or any(id(c) in nodes for c in tensor.outputs)
            if (
                needed
                and is_float(tensor)
                and not only_in_view(tensor)
                and tensor.shape is not None
                and len(tensor.shape) >= 2
            ):
                yield node, tensor


def _dimension(size: int | str | None) -> int | str:
    """A number, the model's own name, or "?"; "unk__0" and so on are shape inference's names."""
    return size if isinstance(size, int) else "?" if size is None or size.startswith(UNKNOWN) else size


def _moved(node: gs.Node) -> bool:
    """Whether a node's units are those of an input, or of a tensor that can be named itself."""
    return node.op in MOVES and is_float(node.inputs[0])


def _goes_on(tensor: Tensor, nodes: Mapping[int, gs.Node]) -> bool:
    """Whether everything that reads a tensor belongs to the stage that it begins."""
    todo, seen = [tensor], set()
    while todo:
        current = todo.pop()
        readers = [n for n in current.outputs if id(n) in nodes]
        if not readers:
            return False
        for node in readers:
            if node.op == "DequantizeLinear" and not is_float(current):
                continue  # a network that computes in floats reads what is dequantised
            if not is_float(node.outputs[0]) or node.op in MOVES:
                if id(node) not in seen:
                    seen.add(id(node))
                    todo.append(node.outputs[0])
            elif not _belongs(node):
                return False
    return True


def _belongs(node: gs.Node) -> bool:
    found = rectifiers.nonlinearity(node)
    return (
        node.op in NORMALISATIONS
        or (node.op in AFFINE and any(isinstance(t, gs.Constant) for t in node.inputs))
        or (found is not None and found.role in ("rectifier", "activation", "gate"))
    )

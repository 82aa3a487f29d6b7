"""Handling ONNX messages: copies, lists of nodes, the graphs inside nodes, sizes."""

import math
from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto


def copied(model: ModelProto) -> ModelProto:
    """A copy to work on."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def put_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Make these the nodes of the graph; those that are its own already are copied before it is emptied."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs inside its nodes."""
    yield graph
    for attribute in (a for node in graph.node for a in node.attribute if a.HasField("g")):
        yield from graphs(attribute.g)


def elements(dims: Iterable[int]) -> int:
    """Number of elements of a tensor with these dimensions."""
    return math.prod(dims)

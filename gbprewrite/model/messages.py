"""Handling ONNX messages: copies, lists of nodes, the graphs inside nodes, sizes."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto


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


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: weights, what nodes hold, and the values and indices of sparse ones."""
    scopes: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while scopes:
        scope = scopes.pop()
        attributes = [attribute for node in scope.node for attribute in node.attribute]
        scopes += [graph for a in attributes for graph in (*([a.g] if a.HasField("g") else ()), *a.graphs)]
        sparse = [tensor for a in attributes for tensor in (*_held(a, "sparse_tensor"), *a.sparse_tensors)]
        yield from (tensor for a in attributes for tensor in (*_held(a, "t"), *a.tensors))
        if isinstance(scope, GraphProto):
            yield from scope.initializer
            sparse += scope.sparse_initializer
        yield from (tensor for one in sparse for tensor in (one.values, one.indices))


def texts(model: ModelProto) -> Iterator[Any]:
    """What nodes, weights and operator sets are called, and where weights lie; bytes for what is not UTF-8."""
    yield from (entry.domain for entry in model.opset_import)
    for body in (model.graph, *model.functions):
        for graph in graphs(body):
            for node in graph.node:
                yield from (node.op_type, node.domain, node.name, node.overload, *node.input, *node.output)
                yield from (attribute.name for attribute in node.attribute)
    for tensor in tensors(model):
        yield tensor.name
        yield from (text for entry in tensor.external_data for text in (entry.key, entry.value))


def _held(attribute: AttributeProto, field: str) -> list[Any]:
    return [getattr(attribute, field)] if attribute.HasField(field) else []


def elements(dims: Iterable[int]) -> int:
    """Number of elements of a tensor with these dimensions."""
    return math.prod(dims)


def rename(graph: GraphProto, names: dict[str, str], prefix: str = "") -> None:
    """New names for values, wherever the graph and the graphs inside it use them; a prefix for its own nodes."""
    for tensor in [*graph.initializer, *graph.output]:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        if prefix and not node.name.startswith(prefix) and node.output:
            node.name = f"{prefix}/{node.name or node.output[0]}"
        node.input[:] = [names.get(v, v) for v in node.input]
        node.output[:] = [names.get(v, v) for v in node.output]
        for inner in _graphs_of(node):
            own = _made_in(inner)
            rename(inner, {old: new for old, new in names.items() if old not in own})


def reads(node: NodeProto) -> list[str]:
    """The names that a node reads: its inputs, and what the graphs inside it capture."""
    return [name for name in node.input if name] + [name for g in _graphs_of(node) for name in captured(g)]


def captured(graph: GraphProto) -> list[str]:
    """The names that a graph inside a node takes from around it, each once."""
    own = _made_in(graph)
    read = [name for node in graph.node for name in reads(node)] + [o.name for o in graph.output]
    return [name for name in dict.fromkeys(read) if name not in own]


def names_inside(graph: GraphProto) -> set[str]:
    """Every name that the graphs inside a graph's nodes make."""
    inner = [g for node in graph.node for g in _graphs_of(node)]
    return {name for g in inner for name in _made_in(g) | names_inside(g)}


def _made_in(graph: GraphProto) -> set[str]:
    made = {name for node in graph.node for name in node.output}
    return made | {t.name for t in graph.initializer} | {i.name for i in graph.input}


def _graphs_of(node: NodeProto) -> list[GraphProto]:
    return [a.g for a in node.attribute if a.HasField("g")]

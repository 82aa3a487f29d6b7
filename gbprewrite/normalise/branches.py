"""Branches that the model itself decides: an If with a constant condition gives way to the branch that it takes."""

from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from gbprewrite.model.inference import infer
from gbprewrite.model.messages import _graphs_of, _made_in, elements, put_nodes, rename
from gbprewrite.model.tensors import SMALL


def settle_branches(model: ModelProto) -> None:
    """Replace, in place, every If whose condition weights and shapes alone decide by the nodes of its branch."""
    while any(node.op_type == "If" for node in model.graph.node):
        # A default that the caller may override decides nothing.
        given = {i.name for i in model.graph.input}
        known = {t.name: t for t in infer(model).graph.initializer if t.name not in given}
        nodes, found = [], False
        for node in model.graph.node:
            if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.input[0] in known:
                taken = bool(numpy_helper.to_array(known[node.input[0]]).ravel()[0])
                nodes += _inlined(model, node, "then_branch" if taken else "else_branch")
                found = True
            else:
                nodes.append(node)
        if not found:
            return
        put_nodes(model.graph, nodes)


def _inlined(model: ModelProto, node: NodeProto, name: str) -> list[NodeProto]:
    """The nodes of one branch; its inner names get the If's name before them, its outputs become the If's."""
    branch = GraphProto()
    branch.CopyFrom(next(a.g for a in node.attribute if a.name == name))
    prefix = node.name or node.output[0]
    inner = [t.name for t in branch.initializer] + [o for n in branch.node for o in n.output if o]
    renamed = {old: f"{prefix}/{old}" for old in inner}
    rename(branch, renamed, prefix)
    model.graph.initializer.extend(branch.initializer)
    ends = [
        NodeProto(op_type="Identity", name=f"{prefix}/{mine}", input=[theirs.name], output=[mine])
        for theirs, mine in zip(branch.output, node.output, strict=False)
        if mine
    ]
    return [*branch.node, *ends]


def hoist_weights(model: ModelProto) -> None:
    """Move large weights, in place, out of the branches of an If: what differentiates a branch reads them too."""
    taken = _made_in(model.graph)
    for graph in _branches(model.graph):
        for tensor in [*filter(_is_large, graph.initializer), *_large_constants(graph)]:
            name = tensor.name
            while name in taken:
                name += "_"
            taken.add(name)
            rename(graph, {tensor.name: name})
            model.graph.initializer.append(tensor)
            model.graph.initializer[-1].name = name
            kept = [t for t in graph.initializer if t.name != name]
            del graph.initializer[:]
            graph.initializer.extend(kept)


def _branches(graph: GraphProto) -> Iterator[GraphProto]:
    """Every branch of an If, the innermost first."""
    for node in graph.node:
        for inner in _graphs_of(node) if node.op_type == "If" else []:
            yield from _branches(inner)
            yield inner


def _is_large(tensor: TensorProto) -> bool:
    return elements(tensor.dims) > SMALL


def _large_constants(graph: GraphProto) -> list[TensorProto]:
    """Weights in Constant nodes, taken out of them, but for what a branch gives away as it is."""
    outputs, found = {o.name for o in graph.output}, []
    for node in list(graph.node):
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None and _is_large(value) and node.output[0] not in outputs:
            found.append(TensorProto.FromString(value.SerializeToString()))
            found[-1].name = node.output[0]
            graph.node.remove(node)
    return found

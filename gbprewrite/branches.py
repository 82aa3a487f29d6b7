"""Branches that the model itself decides: an If with a constant condition gives way to the branch that it takes."""

from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from gbprewrite.inference import infer


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
        copies = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)


def _inlined(model: ModelProto, node: NodeProto, name: str) -> list[NodeProto]:
    """The nodes of one branch; its inner names get the If's name before them, its outputs become the If's."""
    branch = GraphProto()
    branch.CopyFrom(next(a.g for a in node.attribute if a.name == name))
    prefix = node.name or node.output[0]
    inner = [t.name for t in branch.initializer] + [o for n in branch.node for o in n.output if o]
    renamed = {old: f"{prefix}/{old}" for old in inner}
    _rename(branch, renamed)
    model.graph.initializer.extend(branch.initializer)
    ends = [
        NodeProto(op_type="Identity", name=f"{prefix}/{mine}", input=[theirs.name], output=[mine])
        for theirs, mine in zip(branch.output, node.output, strict=False)
        if mine
    ]
    return [*branch.node, *ends]


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """New names for values, wherever the graph and the graphs inside it use them."""
    for tensor in [*graph.initializer, *graph.output]:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.name = names.get(node.output[0], node.name) if node.output else node.name
        node.input[:] = [names.get(v, v) for v in node.input]
        node.output[:] = [names.get(v, v) for v in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                own = {v for n in attribute.g.node for v in n.output} | {t.name for t in attribute.g.initializer}
                own |= {i.name for i in attribute.g.input}
                _rename(attribute.g, {old: new for old, new in names.items() if old not in own})

"""If nodes whose condition is computed at run time: their branches in the view, and back into a file.

In the view a branch is a graph like any other: shapes inferred, idioms raised, and what it captures from around it is
the very tensor that the outer graph has. Its backward pass is a branch of an If of its own, which computes again what
it needs of the forward values: a value inside a branch cannot be seen from outside, and the source stays as it is.
"""

from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from gbprewrite.backward.lowering import Builder
from gbprewrite.model.inference import types_of
from gbprewrite.model.symbols import UNKNOWN
from gbprewrite.model.tensors import Tensor, node_proto, onnx_type
from gbprewrite.normalise.branches import captured, reads, rename
from gbprewrite.normalise.dialect import settle
from gbprewrite.view.forward import view


class Branch(gs.Graph):  # type: ignore[misc]  # graphsurgeon comes without types
    """A branch of an If in the view; `forward` is what it computes, in the spelling of the source."""

    def __init__(self, viewed: gs.Graph, forward: GraphProto) -> None:
        super().__init__(nodes=viewed.nodes, outputs=viewed.outputs, opset=viewed.opset)
        self.forward = forward


def open_branches(skeleton: ModelProto, graph: gs.Graph, farther: Mapping[str, Tensor]) -> None:
    """View, in place, the branches of every If of a view that was imported from the skeleton.

    `farther` are the tensors around the graph, where it is a branch itself.
    """
    bodies = {p.output[0]: p for p in skeleton.graph.node if p.op_type == "If"}
    if not bodies:
        return
    around = {t.name: t for n in graph.nodes for t in [*n.inputs, *n.outputs]} | {t.name: t for t in graph.inputs}
    around |= farther
    for node in [n for n in graph.nodes if n.op == "If"]:
        for attribute in bodies[node.outputs[0].name].attribute:
            for raw in node.attrs[attribute.name].nodes:  # as imported; else it would still read what it captures
                raw.inputs.clear()
            prefix = f"{node.name}/{attribute.name}"
            while any(name.startswith(prefix) for name in around):
                prefix += "_"
            node.attrs[attribute.name] = _opened(_alone(skeleton, attribute.g, prefix), prefix, around)


def _alone(skeleton: ModelProto, body: GraphProto, prefix: str) -> ModelProto:
    """A branch as a model: what it captures becomes initializers where it is known, else inputs."""
    made = ModelProto(ir_version=skeleton.ir_version, opset_import=skeleton.opset_import)
    made.graph.CopyFrom(body)
    _own_names(made.graph, prefix)
    types, given = types_of(skeleton), {i.name for i in skeleton.graph.input}
    known = {t.name: t for t in skeleton.graph.initializer if t.name not in given}
    for name in captured(body):
        if name in known:
            made.graph.initializer.append(known[name])
        elif name in types:
            made.graph.input.append(helper.make_value_info(name, types[name]))
        else:
            made.graph.input.append(helper.make_empty_tensor_value_info(name))
    return made


def _own_names(graph: GraphProto, prefix: str, kept: Iterable[str] = ()) -> None:
    """Names that say whose they are, and that no graph around it uses."""
    inner = {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output if o}
    rename(graph, {n: f"{prefix}/{n}" for n in inner - {*kept} if not n.startswith(prefix)}, prefix)


def _opened(alone: ModelProto, prefix: str, around: Mapping[str, Tensor]) -> Branch:
    captures = {i.name: i for i in alone.graph.input}
    constants = {t.name for t in alone.graph.initializer if not t.name.startswith(prefix)}
    settle(alone)
    _own_names(alone.graph, prefix, constants)
    graph = view(alone, {n: t for n, t in around.items() if n in captures or n in constants})
    known = {d.dim_param for i in captures.values() for d in i.type.tensor_type.shape.dim}
    for tensor in (t for n in graph.nodes for t in n.outputs if t.shape is not None):
        # Inference counts its own names in every graph from zero.
        tensor.shape = [
            f"{prefix}:{d}" if isinstance(d, str) and d.startswith(UNKNOWN) and d not in known else d
            for d in tensor.shape
        ]
    forward = GraphProto(node=alone.graph.node)
    forward.initializer.extend(t for t in alone.graph.initializer if t.name not in constants)
    return Branch(graph, forward)


def share(branch: gs.Graph, around: Mapping[str, Tensor]) -> None:
    """Put the tensors around a branch in the place of its own for them."""
    for node in branch.nodes:
        for i, tensor in enumerate(node.inputs):
            if tensor.name in around and not tensor.inputs:
                node.inputs[i] = around[tensor.name]
    for i, tensor in enumerate(branch.outputs):
        if tensor.name in around and not tensor.inputs:
            branch.outputs[i] = around[tensor.name]


def written(op: Builder, branch: Branch, outputs: Sequence[Tensor]) -> GraphProto:
    """What was built in a branch as a graph that runs: the built nodes and the forward ones that the outputs need."""
    needed = {t.name for t in outputs}
    nodes: list[NodeProto] = []
    for node in [*map(node_proto, reversed(op.nodes)), *reversed(branch.forward.node)]:
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(reads(node))
    made = helper.make_graph(
        nodes[::-1],
        branch.forward.name or "branch",
        [],
        [helper.make_tensor_value_info(t.name, onnx_type(t), None) for t in outputs],
        [t for t in branch.forward.initializer if t.name in needed],
    )
    made.initializer.extend(numpy_helper.from_array(c.values, c.name) for c in op.constants() if c.name in needed)
    return made

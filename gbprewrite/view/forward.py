"""The forward graph as the rules see it: a graphsurgeon graph with shapes, known constants and idioms raised.

The view never goes back into the file. What it raises (a hard-sigmoid written as Add, Clip, Div; a ReLU written as
Max) is one node here, with a rule of its own, while the source keeps its own spelling.

A branch of an If whose condition is computed at run time is viewed as its graph is: shapes inferred, idioms raised, and
what it captures from around it is the very tensor that the outer graph has.
"""

from collections.abc import Container, Iterable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from gbprewrite.errors import ModelError
from gbprewrite.model.attributes import check_ranks
from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import captured, elements, rename
from gbprewrite.model.symbols import UNKNOWN
from gbprewrite.model.tensors import SMALL, Tensor
from gbprewrite.normalise.dialect import settle
from gbprewrite.view import quantised
from gbprewrite.view.element_functions import ELEMENTWISE
from gbprewrite.view.forms import HANDED_ON, number_in
from gbprewrite.view.idioms import raise_idioms
from gbprewrite.view.meaning import show_meaning
from gbprewrite.view.rearrange import absorb_padding, nest_concatenations


def view(
    model: ModelProto, known: Container[str], around: Mapping[str, Tensor] | None = None, rearrange: bool = True
) -> gs.Graph:
    """The normalised model as a graphsurgeon graph, ready for look-ups; or a branch, with the tensors around it.

    `known` operators keep their nodes, in branches as in `normalise`. `rearrange` regroups padding and concatenations,
    so that the way back to the inputs is shorter; the cotangents of inner tensors need the graph as it is written.

    Raises ModelError when shape inference finds a contradiction in the model.
    """
    try:
        skeleton = infer(model)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(
            f"the model contradicts itself, says ONNX shape inference: {str(error).splitlines()[0]}. "
            "Check it with onnx.checker and export it again."
        ) from None
    check_ranks(skeleton.graph, types_of(skeleton))
    graph = gs.import_onnx(skeleton)
    for i, node in enumerate(graph.nodes):
        node.name = node.name or f"{node.op}_{i}"
    if around is not None:
        share(graph, around)
    know_single_numbers(graph, model)
    quantised.split(graph)
    if around is None:
        show_meaning(graph, {i.name for i in model.graph.input} - {t.name for t in model.graph.initializer})
    open_branches(skeleton, graph, around or {}, known)
    raise_idioms(graph, (t.name for t in model.graph.initializer))
    quantised.mark(graph, graph.outputs if around is None else [])
    if rearrange:
        nest_concatenations(graph)
        absorb_padding(graph)
    return graph


def know_single_numbers(graph: gs.Graph, model: ModelProto) -> None:
    """Make constants of large weights that hold one number, stored once: the zeros of max(x, 0) at a fixed batch."""
    given = {i.name for i in model.graph.input}
    left_out = {t.name: t for t in model.graph.initializer if elements(t.dims) > SMALL and t.name not in given}
    found: dict[str, gs.Constant | None] = {}
    for node in graph.nodes:
        for i, t in enumerate(node.inputs if node.op in (*ELEMENTWISE, *HANDED_ON, "Concat") else []):
            if t.name not in found and t.name in left_out and not uses_external_data(left_out[t.name]):
                array = numpy_helper.to_array(left_out[t.name])
                whole = number_in(array) is not None
                found[t.name] = gs.Constant(t.name, np.broadcast_to(array.flat[0], array.shape)) if whole else None
            if (constant := found.get(t.name)) is not None:
                node.inputs[i] = constant


class Branch(gs.Graph):  # type: ignore[misc]  # graphsurgeon comes without types
    """A branch of an If in the view; `forward` is what it computes, in the spelling of the source."""

    def __init__(self, viewed: gs.Graph, forward: GraphProto) -> None:
        super().__init__(nodes=viewed.nodes, outputs=viewed.outputs, opset=viewed.opset)
        self.forward = forward


def open_branches(skeleton: ModelProto, graph: gs.Graph, farther: Mapping[str, Tensor], known: Container[str]) -> None:
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
            node.attrs[attribute.name] = _opened(_alone(skeleton, attribute.g, prefix), prefix, around, known)


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


def _opened(alone: ModelProto, prefix: str, around: Mapping[str, Tensor], known: Container[str]) -> Branch:
    captures = {i.name: i for i in alone.graph.input}
    constants = {t.name for t in alone.graph.initializer if not t.name.startswith(prefix)}
    settle(alone, known)
    _own_names(alone.graph, prefix, constants)
    graph = view(alone, known, {n: t for n, t in around.items() if n in captures or n in constants})
    symbols = {d.dim_param for i in captures.values() for d in i.type.tensor_type.shape.dim}
    for tensor in (t for n in graph.nodes for t in n.outputs if t.shape is not None):
        # Inference counts its own names in every graph from zero.
        tensor.shape = [
            f"{prefix}:{d}" if isinstance(d, str) and d.startswith(UNKNOWN) and d not in symbols else d
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

"""The forward graph as the rules see it: a graphsurgeon graph with shapes, known constants and idioms raised.

The view never goes back into the file. What it raises (a hard-sigmoid written as Add, Clip, Div; a ReLU written as
Max) is one node here, with a rule of its own, while the source keeps its own spelling.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from gbprewrite.backward.builder import constant_of, producer
from gbprewrite.errors import ModelError
from gbprewrite.model.attributes import check_ranks
from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import elements
from gbprewrite.model.tensors import SMALL
from gbprewrite.view import quantised
from gbprewrite.view.element_functions import ELEMENTWISE
from gbprewrite.view.forms import HANDED_ON, number_in
from gbprewrite.view.idioms import raise_idioms, scalar
from gbprewrite.view.meaning import show_meaning


def view(model: ModelProto, around: Mapping[str, gs.Tensor] | None = None, rearrange: bool = True) -> gs.Graph:
    """The normalised model as a graphsurgeon graph, ready for look-ups; or a branch, with the tensors around it.

    `rearrange` regroups padding and concatenations, so that the way back to the inputs is shorter. The cotangents of
    inner tensors need the graph as it is written.

    Raises ModelError when shape inference finds a contradiction in the model.
    """
    from gbprewrite.view.conditional import open_branches, share  # which views the branches

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
    open_branches(skeleton, graph, around or {})
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


def nest_concatenations(graph: gs.Graph) -> None:
    """A concatenation that starts with all the parts of an earlier one reads that one.

    The layers of a DenseNet concatenate everything before them. Differentiated as they stand, each hands a sliver to
    each of its predecessors, and the number of sums grows with the square of the depth.
    """
    earlier: dict[int, gs.Tensor] = {}
    begun: dict[tuple[int, Any], int] = {}  # the first parts of any concatenation, each with one more, are numbered
    for node in graph.nodes:
        if node.op != "Concat" or node.domain not in (None, "", "ai.onnx"):
            continue
        parts = list(node.inputs)
        keys = [begun.setdefault((0, node.attrs.get("axis")), len(begun) + 1)]
        for part in parts:
            keys.append(begun.setdefault((keys[-1], id(part)), len(begun) + 1))
        longest = next((n for n in range(len(parts) - 1, 1, -1) if keys[n] in earlier), None)
        if longest is not None:
            node.inputs = [earlier[keys[longest]], *parts[longest:]]
        earlier.setdefault(keys[-1], node.outputs[0])


def absorb_padding(graph: gs.Graph) -> None:
    """A Conv behind a Pad with zeros pads for itself, so that nothing has to be cut off on the way back.

    Keras and TensorFlow write the padding of strided convolutions in this way.
    """
    for node in graph.nodes:
        pad = producer(node.inputs[0]) if node.op == "Conv" and node.inputs else None
        widths = _zeros_around(pad) if pad is not None else None
        if pad is None or widths is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        own = node.attrs.get("pads") or [0] * len(widths)
        if node.attrs.pop("auto_pad", "NOTSET") == "VALID":
            own = [0] * len(widths)
        node.attrs["pads"] = [a + b for a, b in zip(own, widths, strict=True)]
        node.inputs = [pad.inputs[0], *node.inputs[1:]]


def _zeros_around(pad: gs.Node) -> list[int] | None:
    """The spatial widths of a Pad with zeros, as a Conv's pads; None for any other node."""
    if pad.op != "Pad" or pad.attrs.get("mode", "constant") != "constant" or len(pad.inputs) > 3:
        return None  # with axes is rare
    given = constant_of(pad.inputs[1])
    zero = len(pad.inputs) < 3 or not pad.inputs[2].name or scalar(pad.inputs[2]) == 0
    if given is None or not zero or pad.inputs[0].shape is None or len(given) != 2 * len(pad.inputs[0].shape):
        return None
    half = len(given) // 2
    widths = [int(n) for n in given]
    if any(widths[:2]) or any(widths[half : half + 2]) or min(widths) < 0:
        return None
    return widths[2:half] + widths[half + 2 :]

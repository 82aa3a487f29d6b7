"""Maps of inner tensors: what the record says of them, and what can't be had there."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_graphsurgeon as gs
from onnx import ModelProto, ValueInfoProto, helper

from gbprewrite.errors import UsageError
from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import copied
from gbprewrite.select import channels
from gbprewrite.select.selection import Selection
from gbprewrite.select.starts import real_inputs, sources_of
from gbprewrite.view.randomness import RUN_AGAIN

LAST = 3  # the axis of the channels of channels-last images


def rows(graph: gs.Graph, model: ModelProto, chosen: Selection) -> list[dict[str, Any]]:
    """A row for each explained tensor that is no input of the model: the inputs that it is made of, and the axis of
    its channels, None where nothing tells it."""
    real = {t.name for t in real_inputs(graph, model)}
    axes = channels.known_axes(chosen.nodes)
    return [
        {"name": t.name, "inputs": sorted(real & sources_of(t)), "channel_axis": axes.get(id(t))}
        for t in chosen.inputs
        if t.name not in real
    ]


def layout(record: Mapping[str, Any]) -> str:
    """How a map of an inner tensor is laid out, "" where maps are laid out as the input is."""
    axes = {row["name"]: row["channel_axis"] for row in record["inner_inputs"]}
    named = [axes[m["input"]] for m in record["maps"] if m["input"] in axes]
    return "" if not named else "nhwc" if named[0] == LAST else "nchw"


def refuse(model: ModelProto, found: Sequence[Mapping[str, Any]], methods: Iterable[str], photographs: bool) -> None:
    """Raise UsageError where what was asked for begins at an input of the model, and the maps are of inner tensors.

    SmoothGrad's noise is made for an input's range, and integrated gradients need a model that begins at the tensor.
    """
    needing = ["smoothgrad"] if is_made(model, [row["name"] for row in found]) else RUN_AGAIN
    again = [f"--method {m}" for m in methods if m in needing]
    if found and (again or photographs):
        what = again[0] if again else "--embed-preprocessing and --as overlay"
        name, made_of = found[0]["name"], ", ".join(found[0]["inputs"]) or "weights alone"
        raise UsageError(
            f"{what}: it begins at an input of the model, and {name!r} is computed from {made_of}. Name an input of "
            "floats with --input, or use a method of one run, such as gradient or guided."
        )


def cut(model: ModelProto, names: Sequence[str]) -> ModelProto | None:
    """A model that takes these inner tensors as inputs; None where one of them is none of its own.

    Nodes behind which nothing is left stay, so that the other inputs are the same.
    """
    types = types_of(infer(model))
    if not is_made(model, names) or any(name not in types for name in names):
        return None
    made = copied(model)
    for node in made.graph.node:
        for i, name in enumerate(node.output):
            if name in names:
                node.output[i] = f"{name}/before"
    kept = [v for v in made.graph.value_info if v.name not in names]
    del made.graph.value_info[:]
    made.graph.value_info.extend(kept)
    made.graph.input.extend(helper.make_value_info(name, types[name]) for name in names)
    return made


def is_made(model: ModelProto, names: Sequence[str]) -> bool:
    """Whether nodes of the model compute all of these tensors."""
    return set(names) <= {name for node in model.graph.node for name in node.output}


def shown(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with these inner tensors among its outputs."""
    made = copied(model)
    there = {o.name for o in made.graph.output}
    made.graph.output.extend(ValueInfoProto(name=name) for name in names if name not in there)
    return made

"""Resizes whose lengths inference and onnxruntime work out differently, told as lengths, which leave no doubt.

A scale of 13/7 is rounded to float32. onnxruntime multiplies it with the length in float32 and cuts off: 7 becomes 13.
ONNX's shape inference multiplies the same number in double precision: 12.9999998 becomes 12. What onnxruntime does
decides. Given the length instead, onnxruntime divides 13 by 7 in float32 and has the same scale again.

Sources: https://onnx.ai/onnx/operators/onnx__Resize.html ("output_dimension = floor(input_dimension * scale)") and
onnxruntime's upsamplebase.h (ComputeOutputShape).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import put_nodes, reads
from gbprewrite.model.tensors import read_type

Floats = npt.NDArray[np.float32]


class _Scaled(NamedTuple):
    """A Resize by known scales: the axes that it scales, their lengths (None: open) and scales, all axes' lengths."""

    axes: list[int]
    lengths: list[int | None]
    scales: Floats
    shape: list[int | None]


def settle_resizes(model: ModelProto) -> None:
    """Give, in place, every Resize the lengths that onnxruntime computes, where ONNX's inference finds others."""
    while any(node.op_type == "Resize" and len(node.input) == 3 for node in model.graph.node):
        inferred = infer(model)
        types = types_of(inferred)
        overridable = {i.name for i in inferred.graph.input}
        known = {t.name: t for t in inferred.graph.initializer if t.name not in overridable}
        nodes: list[NodeProto] = []
        wrong: set[str] = set()  # values of which inference said what will not be
        for node in model.graph.node:
            behind = bool(wrong.intersection(reads(node)))
            made = None if behind else _settled(model, node, types, known)
            if made is not None or behind:
                wrong.update(node.output)
            nodes += made or [node]
        if not wrong:
            return
        put_nodes(model.graph, nodes)
        for value in [*model.graph.value_info, *model.graph.output]:
            if value.name in wrong and value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


def length(size: int, scale: np.float32) -> int:
    """What onnxruntime makes of a length."""
    return int(np.float32(size) * scale)


def _moves(size: int | None, scale: np.float32) -> bool:
    """Whether an axis surely gets another length."""
    return bool(scale < 1 or scale >= 1.5) if size is None else length(size, scale) != size


def _settled(
    model: ModelProto, node: NodeProto, types: Mapping[str, TypeProto], known: Mapping[str, TensorProto]
) -> list[NodeProto] | None:
    """The nodes that take a Resize's place; None where all agree, or nothing can be said."""
    found = _scaled(node, types, known)
    if found is None:
        return None
    doubtful = [
        size is not None and length(size, scale) != int(size * float(scale))
        for size, scale in zip(found.lengths, found.scales, strict=True)
    ]
    if not any(doubtful):
        return None
    # What a length says as well as its scale may go with it; another axis keeps its scale, in a Resize of its own.
    told = [
        size is not None and np.float32(length(size, scale)) / np.float32(size) == scale
        for size, scale in zip(found.lengths, found.scales, strict=True)
    ]
    nearest = all(a.s == b"nearest" for a in node.attribute if a.name == "mode")
    if nearest and any(a and not b for a, b in zip(doubtful, told, strict=True)):
        return None  # the last digit of the scale may choose another pixel
    by_length = [a or b for a, b in zip(doubtful, told, strict=True)]
    return _by_length(model, node, found, by_length)


def _scaled(node: NodeProto, types: Mapping[str, TypeProto], known: Mapping[str, TensorProto]) -> _Scaled | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    x = types.get(node.input[0]) if node.op_type == "Resize" and node.domain == "" and len(node.input) == 3 else None
    cropped = attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    shape = None if x is None or cropped else read_type(x)[1]
    if shape is None or node.input[2] not in known:
        return None
    scales = numpy_helper.to_array(known[node.input[2]]).ravel()
    axes = [a % len(shape) for a in attributes.get("axes", range(len(shape)))]
    if len(axes) != len(scales) or scales.dtype != np.float32 or not (np.isfinite(scales) & (scales > 0)).all():
        return None
    numbers = [d if isinstance(d, int) else None for d in shape]
    return _Scaled(axes, [numbers[a] for a in axes], scales, numbers)


def _by_length(model: ModelProto, node: NodeProto, found: _Scaled, by_length: Sequence[bool]) -> list[NodeProto] | None:
    """The Resize with lengths for some axes; one by scales before it, where others are not 1."""
    name = node.output[0]
    made: list[NodeProto] = []
    last = NodeProto.FromString(node.SerializeToString())
    alone = [size == 1 and length(1, scale) == 1 for size, scale in zip(found.lengths, found.scales, strict=True)]
    kept = np.where([a or b for a, b in zip(by_length, alone, strict=True)], np.float32(1), found.scales)
    shape = list(found.shape)
    if (kept != 1).any():
        first = NodeProto.FromString(node.SerializeToString())
        first.name = first.output[0] = f"{name}/by_scales"
        first.input[2] = _constant(model, f"{name}/scales", kept)
        last.input[0] = first.output[0]
        made.append(first)
        for axis, size, scale in zip(found.axes, found.lengths, kept, strict=True):
            shape[axis] = None if size is None else length(size, scale)
        if not any(map(_moves, found.lengths, kept)):  # then onnxruntime may only copy
            return None
    for axis, size, scale, is_told in zip(found.axes, found.lengths, found.scales, by_length, strict=True):
        if is_told and size is not None:
            shape[axis] = length(size, scale)
    axes = [a for a, is_told in zip(found.axes, by_length, strict=True) if is_told]
    others = [a for a in last.attribute if a.name != "axes"]
    del last.attribute[:]
    last.attribute.extend(others)
    if None in shape:
        last.attribute.append(helper.make_attribute("axes", axes))
    else:
        axes = list(range(len(shape)))
    lengths = _constant(model, f"{name}/sizes", np.array([shape[a] for a in axes], np.int64))
    last.input[:] = [last.input[0], "", "", lengths]
    return [*made, last]


def _constant(model: ModelProto, name: str, value: npt.NDArray[np.float32 | np.int64]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name

"""Pools whose output length ONNX and runtimes work out differently: told as padding."""

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import reads
from gbprewrite.model.tensors import read_type

POOLS = ("AveragePool", "LpPool", "MaxPool")


def settle_ceil_mode(model: ModelProto) -> None:
    """Write pools with ceil_mode of fixed sizes without it where their last window would start in the padding.

    Such a window does not count, says the standard; shape inference, onnxruntime's too, counts it (onnx 1.23), and
    memory is then planned for shapes that are wrong. Sizes that are fixed say how much padding means the same.
    """
    while any(node.op_type in POOLS and _attribute(node, "ceil_mode", 0) for node in model.graph.node):
        types = types_of(infer(model))
        wrong: set[str] = set()  # values of which inference said what will not be
        for node in list(model.graph.node):
            rounds_up = node.op_type in POOLS and _attribute(node, "ceil_mode", 0)
            if wrong.intersection(reads(node)) or (rounds_up and _settle(model, node, types)):
                wrong.update(node.output)
        if not wrong:
            return
        for value in [*model.graph.value_info, *model.graph.output]:
            if value.name in wrong and value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


def _settle(model: ModelProto, pool: NodeProto, types: dict[str, onnx.TypeProto]) -> bool:
    shape = read_type(types[pool.input[0]])[1] if pool.input[0] in types else None
    kernel = _attribute(pool, "kernel_shape", [])
    n = len(kernel)
    padded_by_hand = _attribute(pool, "auto_pad", b"NOTSET") in (b"NOTSET", b"")
    if shape is None or not all(isinstance(d, int) for d in shape[2:]) or not padded_by_hand:
        return False
    strides, dilations = (_attribute(pool, name, [1] * n) for name in ("strides", "dilations"))
    own = list(_attribute(pool, "pads", [0] * (2 * n)))
    pads, void = own.copy(), False
    for axis, size in enumerate(shape[2:]):
        stride, reach = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
        span = size + own[axis] + own[axis + n]
        windows = -(-(span - reach) // stride) + 1
        if (windows - 1) * stride >= size + own[axis]:
            windows, void = windows - 1, True
        pads[axis + n] += max((windows - 1) * stride + reach - span, 0)
    if void:
        _replace_ceil_mode(model, pool, own, pads)
    return void


def _replace_ceil_mode(model: ModelProto, pool: NodeProto, own: list[int], pads: list[int]) -> None:
    """The pool with padding in place of ceil_mode. What a window overhangs does not count, its own padding may."""
    counted = _attribute(pool, "count_include_pad", 0) and pads != own
    if counted and any(own):  # its own padding becomes zeros of the input, which always count
        name, n = f"{pool.name or pool.output[0]}/padded", len(own) // 2
        widths = np.array([0, 0, *own[:n], 0, 0, *own[n:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(widths, f"{name}/pads"))
        padded = helper.make_node("Pad", [pool.input[0], f"{name}/pads"], [name], name)
        model.graph.node.insert(list(model.graph.node).index(pool), padded)
        pool.input[0] = name
        pads = [p - o for p, o in zip(pads, own, strict=True)]
    dropped = ("ceil_mode", "pads", "count_include_pad") if counted else ("ceil_mode", "pads")
    kept = [a for a in pool.attribute if a.name not in dropped]
    del pool.attribute[:]
    pool.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)

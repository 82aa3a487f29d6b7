"""Quantised graphs in the view: which integers stand for real numbers, and which saturation hides a ReLU."""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.errors import ModelError
from gbprewrite.qlinear import DOMAIN, QLINEAR
from gbprewrite.shapes import constant_of
from gbprewrite.tensors import Tensor, is_quantised, quantised_range

# Operators that hand the meaning of quantised values on
CARRIERS = frozenset(
    (
        *("Cast", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"),
        *("Concat", "Split", "Slice", "Gather", "Pad", "DepthToSpace", "SpaceToDepth", "MaxPool"),
    )
)
GIVES_OUT = CARRIERS - {"MaxPool"} | {"DequantizeLinear", "Softmax", "LogSoftmax", "Sigmoid"}
NEVER_NEGATIVE = frozenset(("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "QLinearSigmoid"))
KEEPS_SIGN = CARRIERS | {
    *("Add", "Mul", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"),
    *("QuantizeLinear", "DequantizeLinear", "Saturation"),
    *("QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearConcat", "QLinearAdd", "QLinearMul"),
}


def prepare(graph: gs.Graph, given_out: Sequence[Tensor]) -> None:
    """Put a Saturation behind every QLinear operator, so that each of the two has a rule of its own.

    The attribute `bottom` says what the lower end of a range is: "relu" where it cuts computed values off at zero,
    "open" where nothing can lie below it, "output" where computed values only leave the model as those `given_out`,
    else "closed".
    """
    _split(graph)
    outputs = {id(t) for t in given_out}
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "Saturation") and node.domain in (None, "", "ai.onnx"):
            node.attrs["bottom"] = _bottom(node, outputs)


def _split(graph: gs.Graph) -> None:
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op not in QLINEAR or node.domain not in (None, "", "ai.onnx", DOMAIN):
            continue
        if node.attrs.pop("channels_last", 0):
            raise ModelError(
                f"onnxruntime optimised the model for this kind of processor: {node.op} {node.name!r} has its channels "
                "last. Convert the source model instead, or save it again at the level ORT_ENABLE_EXTENDED."
            )
        node.domain = ""
        y = node.outputs[0]
        zero = QLINEAR[node.op][1]
        if len(node.inputs) <= zero or not is_quantised(y):  # QGemm may give its floats away
            continue
        real = gs.Variable(f"{y.name}/real", np.dtype(np.float32), y.shape)
        node.outputs = [real]
        saturation = gs.Node("Saturation", f"{node.name}/Saturation", {}, [real], [y])
        saturation.attrs["zero_point"] = zero_point(node.inputs[zero])
        nodes.append(saturation)
    graph.nodes = nodes


def zero_point(tensor: Tensor) -> float | None:
    """The zero point when it is one known number."""
    value = constant_of(tensor)
    if value is None or value.size == 0 or (value != value.ravel()[0]).any():
        return None
    return float(value.ravel()[0])


def _given_out(tensor: Tensor, outputs: set[int]) -> bool:
    """Whether values only leave the graph: dequantised, moved, or as probabilities."""
    todo, seen = [tensor], set()
    while todo:
        current = todo.pop()
        if not current.outputs and id(current) not in outputs:
            return False
        for node in current.outputs:
            if node.op not in GIVES_OUT:
                return False
            if id(node) not in seen:
                seen.add(id(node))
                todo += node.outputs
    return True


def _bottom(node: gs.Node, outputs: set[int]) -> str:
    if not node.inputs[0].inputs:  # an input's range is the user's choice, not a ReLU
        return "closed"
    if _saturates_at_zero(node):
        return "open" if never_negative(node.inputs[0]) else "relu"
    return "output" if _given_out(node.outputs[0], outputs) else "closed"


def _saturates_at_zero(node: gs.Node) -> bool:
    if node.op == "Saturation":
        zero = node.attrs["zero_point"]
    else:
        zero = zero_point(node.inputs[2]) if len(node.inputs) > 2 else 0.0
    return zero is not None and zero == quantised_range(node.outputs[0])[0]


def never_negative(tensor: Tensor) -> bool:
    """Whether the graph proves that a value, or what a quantised value stands for, is never below zero."""
    seen: set[int] = set()
    todo = [tensor]
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, gs.Constant):
            if current.values.dtype.kind == "f" and (current.values < 0).any():
                return False
            continue
        node = current.inputs[0] if current.inputs else None
        if node is None:
            return False
        if node.op in NEVER_NEGATIVE or (node.op in ("QuantizeLinear", "Saturation") and _saturates_at_zero(node)):
            continue
        if node.op == "Clip" and len(node.inputs) > 1 and (constant_of(node.inputs[1]) is not None):
            if float(np.min(constant_of(node.inputs[1]))) >= 0:  # type: ignore[arg-type]
                continue
            return False
        if node.op not in KEEPS_SIGN:
            return False
        many = node.op in ("Add", "Mul", "Concat", "QLinearAdd", "QLinearMul", "QLinearConcat")
        todo += [t for t in (node.inputs if many else node.inputs[:1]) if _is_value(node, t)]
    return True


def _is_value(node: gs.Node, tensor: Tensor) -> bool:
    """Whether an input is a value rather than a scale or zero point."""
    if node.op == "QLinearConcat":
        return any(tensor is t for t in node.inputs[2::3])
    if node.op in ("QLinearAdd", "QLinearMul"):
        return any(tensor is t for t in (node.inputs[0], node.inputs[3]))
    return True

"""Graphs that onnxruntime optimised and saved: its fused operators taken apart into the standard's own.

The activation inside a FusedConv is a node again, so that it can be a rectifier.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from gbprewrite.errors import ModelError
from gbprewrite.model.inference import infer, types_of
from gbprewrite.model.messages import put_nodes
from gbprewrite.model.tensors import read_type

DOMAIN = "com.microsoft"
# activation of a fused operator → names of its parameters, in the order of activation_params
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
    "Softplus": (),
    "LeakyRelu": ("alpha",),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


class _Parts:
    """The nodes that one fused node becomes; the last of them writes the fused node's output."""

    def __init__(self, model: ModelProto, node: NodeProto, types: dict[str, onnx.TypeProto]) -> None:
        self.model, self.node, self.types = model, node, types
        self.nodes: list[NodeProto] = []
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.inputs = [*node.input, *[""] * 6]

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; the name of its output."""
        name = f"{self.node.name or self.node.output[0]}/{operator}_{len(self.nodes)}"
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        self.nodes.append(helper.make_node(operator, given, [name], name, **attributes))
        return name

    def constant(self, value: float) -> str:
        """A scalar of the type of the node's first input."""
        name = f"{self.node.name or self.node.output[0]}/constant_{len(self.model.graph.initializer)}"
        dtype = self.type_of(self.inputs[0])[0] or np.float32
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def type_of(self, name: str) -> tuple[Any, list[Any] | None]:
        """(dtype, shape) of a value; None where they are not known."""
        return read_type(self.types[name]) if name in self.types else (None, None)

    def activate(self, x: str) -> str:
        """The fused node's activation, as a node of its own."""
        kind = self.attributes.pop("activation", b"").decode()
        parameters = self.attributes.pop("activation_params", None) or [
            self.attributes.pop(f"activation_{role}")
            for role in ("alpha", "beta", "gamma")
            if f"activation_{role}" in self.attributes
        ]
        if not kind:
            return x
        if kind == "Clip":
            low, high = parameters
            return self.emit("Clip", x, self.constant(low), self.constant(high))
        if kind not in ACTIVATIONS:
            raise ModelError(
                f"{self.node.op_type} node {self.node.name!r} fuses the activation {kind!r}, which gbprewrite does not "
                "know. Convert the model as it was before onnxruntime optimised it."
            )
        return self.emit(kind, x, **dict(zip(ACTIVATIONS[kind], parameters, strict=False)))


def _conv(p: _Parts) -> None:
    x, w, b, z = p.inputs[:4]
    kept = {k: v for k, v in p.attributes.items() if not k.startswith("activation")}
    y = p.emit("Conv", x, w, b, **kept)
    p.activate(p.emit("Add", y, z) if z else y)


def _gemm(p: _Parts) -> None:
    kept = {k: v for k, v in p.attributes.items() if not k.startswith("activation")}
    p.activate(p.emit("Gemm", *p.inputs[:3], **kept))


def _matmul(p: _Parts) -> None:
    operands = []
    for name, side in zip(p.inputs[:2], "AB", strict=True):
        if p.attributes.get(f"transBatch{side}"):
            raise ModelError(
                f"FusedMatMul node {p.node.name!r} transposes batch axes, which gbprewrite does not know. Convert the "
                "model as it was before onnxruntime optimised it."
            )
        shape = p.type_of(name)[1]
        if p.attributes.get(f"trans{side}") and shape is not None:
            axes = list(range(len(shape)))
            name = p.emit("Transpose", name, perm=[*axes[:-2], *axes[:-3:-1]])
        operands.append(name)
    y = p.emit("MatMul", *operands)
    alpha = p.attributes.get("alpha", 1.0)
    if alpha != 1:
        p.emit("Mul", y, p.constant(alpha))


def _gelu(p: _Parts) -> None:
    """x/2 · (1 + erf(x/√2)), of x + bias where there is one"""
    x = p.emit("Add", *p.inputs[:2]) if p.inputs[1] else p.inputs[0]
    inner = p.emit("Erf", p.emit("Mul", x, p.constant(0.5**0.5)))
    p.emit("Mul", p.emit("Mul", x, p.emit("Add", inner, p.constant(1.0))), p.constant(0.5))


def _fast_gelu(p: _Parts) -> None:
    """x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))), of x + bias where there is one"""
    x = p.emit("Add", *p.inputs[:2]) if p.inputs[1] else p.inputs[0]
    cube = p.emit("Mul", p.emit("Pow", x, p.constant(3.0)), p.constant(0.044715))
    inner = p.emit("Tanh", p.emit("Mul", p.emit("Add", x, cube), p.constant((2 / np.pi) ** 0.5)))
    p.emit("Mul", p.emit("Mul", x, p.constant(0.5)), p.emit("Add", inner, p.constant(1.0)))


def _quick_gelu(p: _Parts) -> None:
    """x · sigmoid(αx)"""
    x, alpha = p.inputs[0], p.attributes.get("alpha", 1.702)
    scaled = x if alpha == 1 else p.emit("Mul", x, p.constant(alpha))
    p.emit("Mul", x, p.emit("Sigmoid", scaled))


def _skip_layer_normalization(p: _Parts) -> None:
    x, skip, gamma, beta, bias = p.inputs[:5]
    total = p.emit("Add", x, skip)
    total = p.emit("Add", total, bias) if bias else total
    p.emit("LayerNormalization", total, gamma, beta, axis=-1, epsilon=p.attributes.get("epsilon", 1e-12))


def _nhwc_max_pool(p: _Parts) -> None:
    y = p.emit("MaxPool", p.emit("Transpose", p.inputs[0], perm=[0, 3, 1, 2]), **p.attributes)
    p.emit("Transpose", y, perm=[0, 2, 3, 1])


FUSED: dict[str, Callable[[_Parts], None]] = {
    "FusedConv": _conv,
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "Gelu": _gelu,
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_normalization,
    "NhwcMaxPool": _nhwc_max_pool,
}


def take_apart(model: ModelProto) -> None:
    """Replace, in place, onnxruntime's fused operators by the standard's.

    Raises ModelError for layout-blocked graphs, and for an activation that isn't known.
    """
    blocked = [n for n in model.graph.node if n.domain == f"{DOMAIN}.nchwc"]
    if blocked:
        raise ModelError(
            f"the model was optimised for this kind of processor by onnxruntime: {len(blocked)} node(s) such as "
            f"{blocked[0].op_type} {blocked[0].name!r} work in its blocked layout. Convert the source model instead, "
            "or save it again at the level ORT_ENABLE_EXTENDED."
        )
    while any(map(_is_fused, model.graph.node)):
        types = types_of(infer(model))
        nodes: list[NodeProto] = []
        found = False
        for node in model.graph.node:
            parts = _Parts(model, node, types)
            if _is_fused(node) and not _waits(parts):
                FUSED[node.op_type](parts)
                parts.nodes[-1].output[0] = node.output[0]
                nodes += parts.nodes
                found = True
            else:
                nodes.append(node)
        if not found:
            return
        put_nodes(model.graph, nodes)


def _is_fused(node: NodeProto) -> bool:
    extra = node.op_type == "SkipLayerNormalization" and any(node.output[1:])
    return node.domain == DOMAIN and node.op_type in FUSED and not extra


def _waits(parts: _Parts) -> bool:
    """Whether a transposed operand's rank is not known yet: another fused node must go first."""
    transposed = [parts.inputs[i] for i, side in enumerate("AB") if parts.attributes.get(f"trans{side}")]
    return parts.node.op_type == "FusedMatMul" and any(parts.type_of(name)[1] is None for name in transposed)

"""QLinear operators in real numbers: what each computes from its dequantised operands, before it quantises.

Two readers: the rules, which need the number that was quantised, and shape inference, which knows only the standard's
own of these operators. Sources: https://onnx.ai/onnx/operators/onnx__QLinearConv.html, onnx__QLinearMatMul.html;
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md (QLinearAdd and its kin, QGemm).
"""

from collections.abc import Callable
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from gbprewrite.model.messages import put_nodes

DOMAIN = "com.microsoft"
# QLinear operator → positions of the scale and the zero point of its output
QLINEAR = {
    "QLinearConv": (6, 7),
    "QLinearMatMul": (6, 7),
    "QLinearAdd": (6, 7),
    "QLinearMul": (6, 7),
    "QGemm": (7, 8),
    "QLinearGlobalAveragePool": (3, 4),
    "QLinearAveragePool": (3, 4),
    "QLinearSigmoid": (3, 4),
    "QLinearLeakyRelu": (3, 4),
    "QLinearConcat": (0, 1),
}
# QLinear operator → positions of its operands' levels; scale and zero point stand behind each.
OPERANDS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QLinearAdd", "QLinearMul", "QGemm"), (0, 3)),
    **dict.fromkeys(("QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearSigmoid", "QLinearLeakyRelu"), (0,)),
}


def operands(node: Any) -> list[tuple[Any, ...]]:
    """What a node of the view computes with: each operand, and of a QLinear operator's its scale and zero point too."""
    if node.op == "QLinearConcat":
        return [tuple(node.inputs[i : i + 3]) for i in range(2, len(node.inputs), 3)]
    if node.op in OPERANDS:
        return [tuple(node.inputs[i : i + 3]) for i in OPERANDS[node.op]]
    return [(t,) for t in node.inputs if t.name]


def real(op: Any, operator: str, *inputs: Any, **attributes: Any) -> Any:
    """The real number that a QLinear operator quantises, built with `op` (a Builder, or _Nodes)."""
    return _MEANING[operator](op, *inputs, **{k: v for k, v in attributes.items() if k != "channels_last"})


def _conv(
    op: Any, x: Any, xs: Any, xz: Any, w: Any, ws: Any, wz: Any, ys: Any, yz: Any, b: Any = None, **a: Any
) -> Any:
    return op.Conv(op.DequantizeLinear(x, xs, xz), op.DequantizeLinear(w, ws, wz, axis=0), _bias(op, b, xs, ws), **a)


def _gemm(
    op: Any, a: Any, a_scale: Any, az: Any, b: Any, b_scale: Any, bz: Any, c: Any = None, *y: Any, **attributes: Any
) -> Any:
    right = op.DequantizeLinear(b, b_scale, bz, axis=0 if attributes.get("transB") else 1)
    return op.Gemm(op.DequantizeLinear(a, a_scale, az), right, _bias(op, c, a_scale, b_scale), **attributes)


def _bias(op: Any, b: Any, a_scale: Any, b_scale: Any) -> Any:
    """A bias counts in steps of the product of both scales."""
    return None if b is None else op.Mul(op.Cast(b, to=TensorProto.FLOAT), op.Mul(a_scale, b_scale))


def _matmul(op: Any, a: Any, a_scale: Any, az: Any, b: Any, b_scale: Any, bz: Any, *y: Any) -> Any:
    return op.MatMul(op.DequantizeLinear(a, a_scale, az, axis=-2), op.DequantizeLinear(b, b_scale, bz, axis=-1))


def _binary(operator: str) -> Callable[..., Any]:
    def meaning(op: Any, a: Any, a_scale: Any, az: Any, b: Any, b_scale: Any, bz: Any, *y: Any) -> Any:
        left, right = op.DequantizeLinear(a, a_scale, az), op.DequantizeLinear(b, b_scale, bz)
        return getattr(op, operator)(left, right)

    return meaning


def _unary(operator: str) -> Callable[..., Any]:
    def meaning(op: Any, x: Any, scale: Any, zero: Any, *y: Any, **attributes: Any) -> Any:
        return getattr(op, operator)(op.DequantizeLinear(x, scale, zero), **attributes)

    return meaning


def _concat(op: Any, scale: Any, zero: Any, *parts: Any, axis: int) -> Any:
    values = zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    return op.Concat(*(op.DequantizeLinear(*value) for value in values), axis=axis)


_MEANING: dict[str, Callable[..., Any]] = {
    "QLinearConv": _conv,
    "QLinearMatMul": _matmul,
    "QGemm": _gemm,
    "QLinearConcat": _concat,
    **{f"QLinear{name}": _binary(name) for name in ("Add", "Mul")},
    **{f"QLinear{name}": _unary(name) for name in ("GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu")},
}


class _Nodes:
    """A builder of plain nodes: op.Add("a", "b") is the name of the sum."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[NodeProto] = []

    def __getattr__(self, operator: str) -> Callable[..., str]:
        def emit(*inputs: str | None, **attributes: Any) -> str:
            made = f"{self.name}/{operator}_{len(self.nodes)}"
            self.nodes.append(helper.make_node(operator, [i or "" for i in inputs], [made], made, **attributes))
            return made

        return emit


class SpeltOut:
    """onnxruntime's own QLinear operators written as the standard's, in a model and in place; `put_back` undoes it."""

    def __init__(self, model: ModelProto) -> None:
        self.sources: dict[str, NodeProto] = {}  # output → the operator that was there
        self.between: set[str] = set()
        made: list[NodeProto] = []
        for node in model.graph.node:
            made += self._spell(node) if node.domain == DOMAIN and node.op_type in QLINEAR else [node]
        self._set(model, made)

    def _spell(self, node: NodeProto) -> list[NodeProto]:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("channels_last"):
            return [node]
        y = node.output[0]
        op = _Nodes(f"{y}/real")
        inputs = [name or None for name in node.input]
        value = real(op, node.op_type, *inputs, **attributes)
        scale, zero = ([*inputs, None, None, None][i] for i in QLINEAR[node.op_type])
        if scale is None:  # QGemm may give its floats away
            op.Identity(value)
        else:
            op.QuantizeLinear(value, scale, zero)
        op.nodes[-1].output[0] = y
        self.between.update(n.output[0] for n in op.nodes[:-1])
        self.sources[y] = NodeProto.FromString(node.SerializeToString())
        return op.nodes

    def put_back(self, model: ModelProto) -> None:
        """The operators in their places again; what inference said of their outputs stays."""
        kept = [self.sources.get(n.output[0], n) for n in model.graph.node if n.output[0] not in self.between]
        self._set(model, kept)
        said = [v for v in model.graph.value_info if v.name not in self.between]
        del model.graph.value_info[:]
        model.graph.value_info.extend(said)

    def _set(self, model: ModelProto, nodes: list[NodeProto]) -> None:
        if self.sources:
            put_nodes(model.graph, nodes)

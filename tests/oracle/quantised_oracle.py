"""Maps of a network with QuantizeLinear and DequantizeLinear: the ONNX oracle with a straight-through estimator.

Quantised tensors are their levels, as floats; QuantizeLinear is PyTorch's own fake-quantise operator, whose gradient
passes where quantising only rounds and is zero where it cuts off. Nothing here knows of gbprewrite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.oracle.onnx_operators import Node
from tests.oracle.onnx_oracle import Oracle

MOVES = {"Cast", "Identity", "Flatten", "Reshape", "Transpose", "MaxPool", "Concat"}  # levels stay levels
KEEPS_SIGN = {"AveragePool", "GlobalAveragePool", "Add", "QuantizeLinear", "DequantizeLinear", *MOVES}


class HiddenRelu(torch.autograd.Function):
    """The ReLU that hides where a quantiser cuts computed values off at zero, by the rule of a method."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, method: str) -> Tensor:
        ctx.save_for_backward(x > 0)
        ctx.method = method
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (positive,) = ctx.saved_tensors
        dx = dy if ctx.method == "gradient" else dy.clamp(min=0)
        return dx if ctx.method == "deconvnet" else dx * positive, None


def fake_quantised(x: Tensor, scale: Tensor, zero: Tensor, kind: torch.dtype, axis: int) -> Tensor:
    """x rounded to what levels of this type stand for, with PyTorch's own straight-through estimator."""
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    if scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)
    return torch.fake_quantize_per_channel_affine(x, scale, zero.to(torch.int32), axis, low, high)


class QuantisedOracle(Oracle):
    """An Oracle of a QDQ file. `hidden` is the outputs of QuantizeLinear that cut computed values off at zero."""

    def __init__(self, model: Any) -> None:
        self.method = "gradient"
        self.levels: set[str] = set()
        self.hidden: set[str] = set()
        super().__init__(model)
        for n in self.varying:
            if n.proto.op_type == "QuantizeLinear" and self._cuts_at_zero(n) and self._signed(n.proto.input[0]):
                self.hidden.add(n.proto.output[0])
        self.hidden -= {n.proto.output[0] for n in self.varying if n.proto.input[0] in self.inputs}

    def _cuts_at_zero(self, n: Node) -> bool:
        zero = self.constants[n.proto.input[2]]
        return bool((zero == torch.iinfo(zero.dtype).min).all())

    def _signed(self, name: str) -> bool:
        """Whether a value may be negative."""
        n = self.maker.get(name)
        if n is None or n.proto.op_type == "Relu" or name in self.hidden:
            return n is None
        if n.proto.op_type == "QuantizeLinear" and self._cuts_at_zero(n):
            return False
        many = n.proto.op_type in ("Add", "Concat")
        parts = n.proto.input if many else n.proto.input[:1]
        return n.proto.op_type not in KEEPS_SIGN or any(map(self._signed, parts))

    def _per_axis(self, n: Node, v: Tensor, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        if v.numel() > 1:
            shape[n.get("axis", 1) % x.dim()] = -1
        return v.reshape(shape).to(n.float_type)

    def _run(self, n: Node, values: dict[str, Tensor]) -> None:
        kind, name = n.proto.op_type, n.proto.output[0]
        x, *rest = (values[i] for i in n.proto.input if i)
        if kind == "QuantizeLinear":
            x = HiddenRelu.apply(x, self.method) if name in self.hidden else x
            real = fake_quantised(x, *rest, rest[1].dtype, n.get("axis", 1))
            scale, zero = (self._per_axis(n, v, x) for v in rest)
            values[name] = real / scale + zero
            self.levels.add(name)
        elif kind == "DequantizeLinear":
            scale, *zero = (self._per_axis(n, v, x) for v in rest)
            values[name] = (x.to(n.float_type) - (zero[0] if zero else 0)) * scale
        elif kind in MOVES and n.proto.input[0] in self.levels:
            if kind in ("Cast", "Identity"):
                values[name] = x
            else:
                super()._run(n, values)
            self.levels.add(name)
        else:
            super()._run(n, values)
            if kind in ("Conv", "Gemm", "MatMul"):  # a sum that is zero in integers is zero, and no rounding error
                y = values[name]
                values[name] = y - torch.where(y.abs() > 1e-6 * y.abs().max(), 0.0, y).detach()

    def forward(self, feeds: Any, method: str = "gradient", *more: Any, **options: Any) -> dict[str, Tensor]:
        """As Oracle.forward; the ReLU hidden in a saturation acts by the rule of `method` too."""
        self.method = method
        return super().forward(feeds, method, *more, **options)

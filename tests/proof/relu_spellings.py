"""ReLU in other words: what people write in PyTorch, and files of a small CNN with each spelling by both exporters."""

from __future__ import annotations

import functools
import io
import warnings
from typing import Any

import onnx
import torch
from onnx.utils import Extractor
from torch import nn
from torch.nn import functional

CHANNELS = 4


def by_index_from_zeros(x: Any) -> Any:
    """Zeros, into which the positive values are written."""
    y = torch.zeros_like(x)
    y[x > 0] = x[x > 0]
    return y


def by_index(x: Any) -> Any:
    """Negative values set to zero in place."""
    y = x.clone()
    y[y < 0] = 0
    return y


SPELLINGS: dict[str, Any] = {
    "relu": functional.relu,
    "maximum(x, zeros_like)": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "maximum(zeros_like, x)": lambda x: torch.maximum(torch.zeros_like(x), x),
    "maximum(x, 0)": lambda x: torch.maximum(x, torch.tensor(0.0)),
    "maximum(x, 0x)": lambda x: torch.maximum(x, x * 0),
    "maximum(x, x - x)": lambda x: torch.maximum(x, x - x),
    "maximum(x, new_zeros)": lambda x: torch.maximum(x, x.new_zeros(x.shape)),
    "maximum(x, zeros(shape))": lambda x: torch.maximum(x, torch.zeros(x.shape)),
    "maximum(x, zeros.expand_as)": lambda x: torch.maximum(x, torch.zeros(1, 1, 1, 1).expand_as(x)),
    "maximum(x, full_like)": lambda x: torch.maximum(x, torch.full_like(x, 0)),
    "where(x > 0, x, 0)": lambda x: torch.where(x > 0, x, 0.0),
    "where(x >= 0, x, tensor)": lambda x: torch.where(x >= 0, x, torch.tensor(0.0)),
    "where(x > 0, x, zeros_like)": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "where(x < 0, 0, x)": lambda x: torch.where(x < 0, 0.0, x),
    "where(x <= 0, zeros_like, x)": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "where(zeros_like < x, x, 0)": lambda x: torch.where(torch.zeros_like(x) < x, x, 0.0),
    "where(x > zeros_like, x, zeros_like)": lambda x: torch.where(x > torch.zeros_like(x), x, torch.zeros_like(x)),
    "where(~(x < 0), x, 0)": lambda x: torch.where(~(x < 0), x, 0.0),
    "where(x > 0, x, where(x > 0, x, 0))": lambda x: torch.where(x > 0, x, torch.where(x > 0, x, 0.0)),
    "where in float64": lambda x: torch.where(x.double() > 0, x.double(), 0.0).float(),
    "masked_fill(x < 0)": lambda x: x.masked_fill(x < 0, 0),
    "masked_fill(~(x > 0))": lambda x: x.masked_fill(~(x > 0), 0.0),
    "x[x < 0] = 0": by_index,
    "zeros[x > 0] = x[x > 0]": by_index_from_zeros,
    "where(isnan | x < 0, 0, x)": lambda x: torch.where(x.isnan() | (x < 0), 0.0, x),
    "lerp(zeros, x, x > 0)": lambda x: torch.lerp(torch.zeros_like(x), x, (x > 0).float()),
    "x - x * (x < 0)": lambda x: x - x * (x < 0),
    "threshold": lambda x: functional.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
    "x * (x > 0)": lambda x: x * (x > 0),
    "x * (x > 0).float()": lambda x: x * (x > 0).float(),
    "(x >= 0).type_as(x) * x": lambda x: (x >= 0).type_as(x) * x,
    "x * (x > 0).int()": lambda x: x * (x > 0).int(),
    "x * where(x > 0, 1, 0)": lambda x: x * torch.where(x > 0, 1.0, 0.0),
    "x * where(x > 0, ones_like, zeros_like)": lambda x: (
        x * torch.where(x > 0, torch.ones_like(x), torch.zeros_like(x))
    ),
    "x * heaviside(x)": lambda x: x * torch.heaviside(x, torch.tensor(0.0)),
    "x * (1 - (x < 0))": lambda x: x * (1 - (x < 0).float()),
    "x * (sign + 1) / 2": lambda x: x * (torch.sign(x) + 1) / 2,
    "x * relu(sign)": lambda x: x * torch.sign(x).clamp(min=0),
    "(x + |x|) / 2": lambda x: (x + x.abs()) / 2,
    "0.5 * (x + |x|)": lambda x: 0.5 * (x + torch.abs(x)),
    "0.5 * x + 0.5 * |x|": lambda x: 0.5 * x + 0.5 * x.abs(),
    "(x + sqrt(x²)) / 2": lambda x: (x + torch.sqrt(x * x)) / 2,
    "x - minimum(x, zeros_like)": lambda x: x - torch.minimum(x, torch.zeros_like(x)),
    "x - clamp(max=0)": lambda x: x - x.clamp(max=0),
    "x + relu(-x)": lambda x: x + functional.relu(-x),
    "-minimum(-x, zeros_like)": lambda x: -torch.minimum(-x, torch.zeros_like(x)),
    "-clamp(-x, max=0)": lambda x: -torch.clamp(-x, max=0),
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp_min(0)": lambda x: torch.clamp_min(x, 0),
    "clamp(0, inf)": lambda x: torch.clamp(x, 0, float("inf")),
    "clamp(0, FLT_MAX)": lambda x: torch.clamp(x, 0.0, torch.finfo(torch.float32).max),
    "clamp(min=zeros_like)": lambda x: torch.clamp(x, min=torch.zeros_like(x)),
    "hardtanh(0, 1e30)": lambda x: functional.hardtanh(x, 0.0, 1e30),
    "leaky_relu(0)": lambda x: functional.leaky_relu(x, 0.0),
    "rrelu(0, 0)": lambda x: functional.rrelu(x, 0.0, 0.0),
    "elu(0)": lambda x: functional.elu(x, 0.0),
    "prelu(0)": lambda x: functional.prelu(x, torch.zeros(1)),
    "prelu(zeros)": lambda x: functional.prelu(x, torch.zeros(CHANNELS)),
    "stack.amax": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0),
    "stack.max(-1)": lambda x: torch.stack([x, torch.zeros_like(x)], -1).max(-1)[0],
    "cat.max": lambda x: torch.cat([torch.zeros_like(x)[None], x[None]]).max(0).values,
    "-neg(relu)": lambda x: -torch.neg(functional.relu(x)),
}
# PyTorch 2.13 can't export these.
NOT_BY = {"torchscript": ("x * heaviside(x)",), "dynamo": ("clamp(0, inf)", "rrelu(0, 0)")}
EXPORTS = [(exporter, batch) for exporter in NOT_BY for batch in ("open", "fixed")]


class Network(nn.Module):
    """Conv, f, Conv, f, mean, Linear for each of some f, all with the same weights: one output [N, 3] each."""

    def __init__(self, functions: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.functions = list(functions)
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.last = nn.Linear(CHANNELS, 3)

    def forward(self, x: Any) -> Any:
        hidden = [f(self.second(f(self.first(x)))) for f in self.functions]
        # Something of its own, which no map depends on, keeps the exporter from merging two spellings.
        scores = tuple(self.last(h.mean((2, 3))) + k for k, h in enumerate(hidden))
        return scores if len(scores) > 1 else scores[0]


def spellings(exporter: str) -> list[str]:
    """Those that an exporter can write."""
    return [name for name in SPELLINGS if name not in NOT_BY[exporter]]


def picture() -> Any:
    """[2, 3, 6, 6]"""
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@functools.cache
def _exported(exporter: str, batch: str) -> onnx.ModelProto:
    """Every spelling in one file: exporting takes a second."""
    names = spellings(exporter)
    network = Network(SPELLINGS[name] for name in names).eval()
    outputs = [f"score of {name}" for name in names]
    labels: dict[str, Any] = {"input_names": ["x"], "output_names": outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("n")},) if batch == "open" else None
            program = torch.onnx.export(
                network, (picture(),), dynamo=True, dynamic_shapes=shapes, verbose=False, **labels
            )
            return program.model_proto
        file = io.BytesIO()
        axes = {name: {0: "n"} for name in ("x", *outputs)} if batch == "open" else None
        torch.onnx.export(network, (picture(),), file, dynamo=False, opset_version=17, dynamic_axes=axes, **labels)
        return onnx.load_from_string(file.getvalue())


def source(spelling: str, exporter: str, batch: str) -> onnx.ModelProto:
    """The file of one spelling: x [n or 2, 3, 6, 6] to scores [n, 3]."""
    return Extractor(_exported(exporter, batch)).extract_model(["x"], [f"score of {spelling}"])

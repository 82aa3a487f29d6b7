"""Networks that choose their way at run time, exported with an If: their maps are PyTorch's on either way."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest

from tests.proof import torch_setup  # noqa: F401  (torch, or a skip)

import torch  # isort: skip
from torch import Tensor, nn  # isort: skip

import gbprewrite  # isort: skip
from tests.oracle.torch_oracle import METHODS, explain, relative_l2  # isort: skip
from tests.proof.files import one_thread  # isort: skip  # noqa: F401
from tests.small import run  # isort: skip


class Adaptive(nn.Module):
    """Bright images take the pooled way, dark ones the gated one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def pooled(self, h: Tensor) -> Tensor:
        return torch.max_pool2d(torch.relu(self.deep(h)), 2).mean([2, 3])

    def gated(self, h: Tensor) -> Tensor:
        return (torch.relu(self.gate(h)) * h).mean([2, 3])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if bool(h.mean() > 0.3):  # noqa: SIM108  (a scripted module's If comes of a statement)
            y = self.pooled(h)
        else:
            y = self.gated(h)
        return self.last(y)


class Conditional(Adaptive):
    """The same in the words of the dynamo exporter."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.last(torch.cond(h.mean() > 0.3, self.pooled, self.gated, (h,)))


def by_torchscript(x: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        torch.jit.script(Adaptive().eval()), (x,), file, dynamo=False, input_names=["x"], output_names=["y"],
        dynamic_axes={"x": {0: "N"}}, opset_version=17,
    )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def by_dynamo(x: Tensor) -> onnx.ModelProto:
    shapes = {"x": {0: torch.export.Dim("N")}}
    made = torch.onnx.export(
        Conditional().eval(), (x,), dynamo=True, input_names=["x"], output_names=["y"], dynamic_shapes=shapes,
        opset_version=18, verbose=False,
    )  # fmt: skip
    return made.model_proto


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("export", [by_torchscript, by_dynamo])
def test_maps_of_both_ways(export):
    source = export(torch.zeros(2, 3, 8, 8))
    assert any(n.op_type == "If" for n in source.graph.node)
    built = gbprewrite.convert(source, METHODS)
    network = Adaptive().eval()
    for scale, bright in ((0.1, False), (3.0, True)):
        x = scale * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        assert bool(torch.relu(network.first(x)).mean() > 0.3) is bright
        found = run(built, x=x.numpy())
        for method in METHODS:
            truth = explain(network, x).maps[method]
            assert relative_l2(found[f"x_{method}"], truth) < 1e-5, (method, bright)
            assert np.abs(found[f"x_{method}"]).max() > 0

"""Mobile networks in float and as onnxruntime's own quantiser writes them: the same rectifiers at the same places."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.proof.torch_setup import torch, torchvision

import gbprewrite  # isort: skip

timm = pytest.importorskip("timm", reason="these proofs need timm: pip install -e '.[proof]'")
quantization = pytest.importorskip("onnxruntime.quantization")

PICTURE = (1, 3, 64, 64)
NETWORKS = {
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), 35),
    "torchvision mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(weights=None), 14),
    "torchvision mobilenet_v3_large": (lambda: torchvision.models.mobilenet_v3_large(weights=None), 19),
    "timm mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100"), 35),
    "timm mobilenetv3_small_100": (lambda: timm.create_model("mobilenetv3_small_100"), 14),
    "timm mobilenetv3_large_100": (lambda: timm.create_model("mobilenetv3_large_100"), 19),
    "timm efficientnet_b0 (SiLU)": (lambda: timm.create_model("efficientnet_b0"), 0),
}
WAYS = {
    "QDQ": {"quant_format": quantization.QuantFormat.QDQ, "per_channel": False},
    "QDQ by channel": {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True},
    "QOperator": {"quant_format": quantization.QuantFormat.QOperator, "per_channel": False},
}


def shaken(net: torch.nn.Module) -> torch.nn.Module:
    """Random weights behind which values of both signs and many sizes go through every layer."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.normal_(layer.bias, 0, 0.5)
            torch.nn.init.normal_(layer.running_mean, 0, 0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return net.eval()


class Pictures(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Three random pictures."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batches = iter([{"x": rng.normal(size=PICTURE).astype(np.float32)} for _ in range(3)])

    def get_next(self):
        return next(self.batches, None)


def rectified(path: Path) -> set[str]:
    """Names of the nodes (of the float network) that make what a rectifier of the file takes."""
    model = onnx.load(path)
    nodes = {n.name: n for n in model.graph.node}
    made_by = {output: n.name for n in model.graph.node for output in n.output}
    found = gbprewrite.inspect(model)
    assert found.missing == []
    rows = [row["node"] for row in found.nonlinearities if row["role"] == "rectifier"]
    made = [made_by[nodes[r].input[0]] if r in nodes else r.removesuffix("/Saturation") for r in rows]
    return {name.removesuffix("_quant") for name in made}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_quantised_network_has_the_rectifiers_of_its_float_twin(name, opset, tmp_path):
    make, count = NETWORKS[name]
    twin, ready, quantised = (tmp_path / f"{part}.onnx" for part in ("twin", "ready", "quantised"))
    options = {"input_names": ["x"], "output_names": ["y"], "opset_version": opset, "dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own future
        torch.onnx.export(shaken(make()), (torch.zeros(PICTURE),), twin, **options)
    quantization.shape_inference.quant_pre_process(str(twin), str(ready))
    expected = rectified(ready)
    assert len(expected) == count
    for way, settings in WAYS.items():
        for levels in (quantization.QuantType.QUInt8, quantization.QuantType.QInt8):
            weights = {"activation_type": levels, "weight_type": quantization.QuantType.QInt8}
            quantization.quantize_static(str(ready), str(quantised), Pictures(), **weights, **settings)
            assert rectified(quantised) == expected, (way, levels)

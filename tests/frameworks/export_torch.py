"""PyTorch's two exporters: python -m tests.frameworks.export_torch WEIGHTS.npz FOLDER [NAME]..."""

import warnings
from pathlib import Path
from typing import Any

import torch

from tests.frameworks.network import Network, pictures
from tests.frameworks.shapes import Weights, write

NAMES: dict[str, Any] = {"input_names": ["image"], "output_names": ["probabilities"]}


def network(weights: Weights) -> Any:
    module = Network()
    missing, unexpected = module.load_state_dict({n: torch.from_numpy(v) for n, v in weights.items()}, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return torch.nn.Sequential(module, torch.nn.Softmax(1)).eval()


def torchscript(weights: Weights, path: Path) -> None:
    axes = {"image": {0: "N"}, "probabilities": {0: "N"}}
    torch.onnx.export(network(weights), (pictures(),), path, dynamo=False, dynamic_axes=axes, **NAMES)


def torchscript_unfolded(weights: Weights, path: Path) -> None:
    """Batch norms and constants as they stand in the module, oldest opset that the exporter writes."""
    training = torch.onnx.TrainingMode.PRESERVE
    options: dict[str, Any] = {"do_constant_folding": False, "training": training, "opset_version": 9}
    torch.onnx.export(network(weights), (pictures(),), path, dynamo=False, **options, **NAMES)


def dynamo(weights: Weights, path: Path) -> None:
    shapes = ({0: torch.export.Dim("N")},)
    torch.onnx.export(network(weights), (pictures(),), path, dynamo=True, dynamic_shapes=shapes, **NAMES)


def dynamo_unoptimised(weights: Weights, path: Path) -> None:
    torch.onnx.export(network(weights), (pictures(),), path, dynamo=True, optimize=False, **NAMES)


EXPORTERS = {f.__name__: f for f in (torchscript, torchscript_unfolded, dynamo, dynamo_unoptimised)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    write(EXPORTERS, f"PyTorch {torch.__version__}")

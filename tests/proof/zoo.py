"""torchvision's classifiers with shaken random weights: built, exported, converted, and measured against PyTorch.

Prints the table of errors as Markdown: python -m tests.proof.zoo --help
"""

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, TextIO

import click
import numpy as np
import onnx
import onnxruntime

import gbprewrite
from gbprewrite.graft.record import read_record
from tests.oracle.torch_oracle import METHODS, Maps, explain, relative_l2
from tests.proof.kinks import AwayFromKinks
from tests.proof.torch_setup import torch, torchvision

nn = torch.nn
SIZES = {"alexnet": 224, "vgg11": 224, "vgg16_bn": 224, "inception_v3": 128}  # the others: 96
PLAIN_INCEPTION = {"aux_logits": False, "transform_input": False, "init_weights": False}
OPTIONS = dict.fromkeys(("googlenet", "inception_v3"), PLAIN_INCEPTION)
WITHOUT_RELU = ("convnext_tiny", "efficientnet_b0", "efficientnet_v2_s")
NETWORKS = (
    *("alexnet", "densenet121", "densenet169", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "vgg11", "vgg16_bn"),
    *("wide_resnet50_2", *WITHOUT_RELU),
)
LIMIT = 1e-4
# Weights and pictures without near ties in max-pools, which no bias could part (test_no_activation_is_near_a_kink).
SEEDS = {"alexnet": 3, "densenet121": 8, "densenet169": 3, "googlenet": 1, "inception_v3": 7, "resnet50": 4}
SEEDS |= {"resnext50_32x4d": 7, "shufflenet_v2_x1_0": 5, "squeezenet1_0": 5, "squeezenet1_1": 7, "vgg11": 3}
SEEDS |= {"vgg16_bn": 28, "wide_resnet50_2": 8}  # the others: 0
BATCH, TRACED = 2, 3  # the batch that is proved, and another one for the exporters: the file's batch must be dynamic


# --- networks -------------------------------------------------------------------------------------------------------


def rectify(name: str) -> tuple[str, ...]:
    """What `rectify` guided and deconvnet need on this network."""
    return ("all",) if name in WITHOUT_RELU else ()


def pictures(name: str, batch: int) -> Any:
    """Random pictures [batch, 3, size, size] in float32: coarse blobs with noise over them."""
    size = SIZES.get(name, 96)
    generator = torch.Generator().manual_seed(SEEDS.get(name, 0))
    coarse = torch.randn(batch, 3, 6, 6, generator=generator)
    blobs = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return blobs + torch.randn(batch, 3, size, size, generator=generator)


def build(name: str, x: Any) -> Any:
    """The network in evaluation mode, float32, with random weights.

    They are scaled so that at x no layer dies or explodes, and no activation comes near a kink.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEEDS.get(name, 0))
        module = getattr(torchvision.models, name)(weights=None, **OPTIONS.get(name, {})).double().eval()
        for part in module.modules():
            _shake(part)
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        hooks = [norm.register_forward_pre_hook(_calibrate) for norm in norms]
        with AwayFromKinks():
            module(x.double())
        for hook in hooks:
            hook.remove()
    return module.float()


def _shake(part: Any) -> None:
    """Weights that keep the scale of the signal; norm layers away from the identity they are born as."""
    if isinstance(part, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
    elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
        nn.init.uniform_(part.weight, 0.5, 1.5)
        nn.init.normal_(part.bias, std=0.2)
    elif hasattr(part, "layer_scale"):  # convnext: born as 1e-6, which hides everything behind it
        nn.init.uniform_(part.layer_scale, 0.2, 0.8)


def _calibrate(norm: Any, inputs: tuple[Any]) -> None:
    """Running statistics for this input: its scale over all channels, shaken.

    Per channel, as training finds them, they would make a deep random network chaotic: every layer would blow up what
    is left of the differences between pictures, and rounding errors with them.
    """
    scale = inputs[0].square().mean().sqrt()
    norm.running_mean = 0.2 * scale * torch.randn_like(norm.running_mean)
    norm.running_var = scale.square() * torch.empty_like(norm.running_var).uniform_(-0.4, 0.4).exp()


# --- exporters ------------------------------------------------------------------------------------------------------

QUIET = (
    ("You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    ("The feature will be removed", DeprecationWarning),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
)


@contextmanager
def _quiet() -> Iterator[None]:
    """What PyTorch says about its own future is nothing that this project could change."""
    with warnings.catch_warnings():
        for message, category in QUIET:
            warnings.filterwarnings("ignore", message, category)
        yield


def by_torchscript(module: Any, x: Any) -> onnx.ModelProto:
    """opset 17, dynamic batch"""
    file = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    return onnx.load_from_string(file.getvalue())


def by_dynamo(module: Any, x: Any) -> onnx.ModelProto:
    """The exporter's own opset, dynamic batch"""
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    return program.model_proto


EXPORTERS: dict[str, Callable[[Any, Any], onnx.ModelProto]] = {"torchscript": by_torchscript, "dynamo": by_dynamo}


def export(name: str, exporter: str) -> onnx.ModelProto:
    """The network as one of PyTorch's two exporters writes it: input x [N, 3, size, size], output y [N, classes]."""
    with _quiet():
        return EXPORTERS[exporter](truth(name).module, pictures(name, TRACED))


# --- measurements ---------------------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """A network (float32) with its input, PyTorch's maps in float64, and PyTorch's own errors in float32."""

    module: Any
    x: Any
    exact: Maps
    torch_error: dict[str, float]


class Row(NamedTuple):
    """One line of the table: relative L2 errors of a map against PyTorch in float64."""

    network: str
    exporter: str
    method: str
    error: float
    torch_error: float

    @property
    def limit(self) -> float:
        """1e-4, or ten times PyTorch's own error in float32 where that is more."""
        return max(LIMIT, 10 * self.torch_error)


@lru_cache(maxsize=1)
def truth(name: str) -> Truth:
    """What the maps of this network are."""
    x = pictures(name, BATCH)
    module, rectify_all = build(name, x), bool(rectify(name))
    exact = explain(module.double(), x.double(), rectify_all=rectify_all)
    rounded = explain(module.float(), x, rectify_all=rectify_all, target=exact.target)
    errors = {method: relative_l2(rounded.maps[method], exact.maps[method]) for method in METHODS}
    return Truth(module, x, exact, errors)


def run(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs of a model with one input, computed by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


class Result(NamedTuple):
    """A converted network: its record, its outputs, and a row of the table for each map."""

    record: Mapping[str, Any]
    outputs: dict[str, np.ndarray]
    rows: list[Row]


def prove(name: str, exporter: str) -> Result:
    """Export, convert, run in float32, compare."""
    _, x, exact, own = truth(name)
    model = gbprewrite.convert(export(name, exporter), METHODS, rectify=rectify(name))
    outputs = run(model, x.numpy())
    rows = [Row(name, exporter, m, relative_l2(outputs[f"x_{m}"], exact.maps[m]), own[m]) for m in METHODS]
    return Result(read_record(model) or {}, outputs, rows)


# --- table ----------------------------------------------------------------------------------------------------------

HEADER = (
    "| network | exporter | method | error | PyTorch float32 | limit |",
    "|---|---|---|--:|--:|--:|",
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NETWORKS), metavar="[NETWORK]...")
@click.option("-o", "--output", type=click.File("w"), default="-", help="Write here instead of to the terminal.")
def main(names: tuple[str, ...], output: TextIO) -> None:
    """Relative L2 errors of the maps against PyTorch in float64, for NETWORKs or all of them, as a Markdown table."""
    print(*HEADER, sep="\n", file=output, flush=True)
    rows = []
    for name, exporter in product(names or NETWORKS, EXPORTERS):
        for row in prove(name, exporter).rows:
            rows.append(row)
            label = f"{row.method}, rectify all" if rectify(name) and row.method != "gradient" else row.method
            error = f"{row.error:.1e}" if row.error <= row.limit else f"**{row.error:.1e}**"
            cells = name, exporter, label, error, f"{row.torch_error:.1e}", f"{row.limit:.0e}"
            print("|", " | ".join(cells), "|", file=output, flush=True)
    worst = max(rows, key=lambda row: row.error / row.limit)
    failed = sum(row.error > row.limit for row in rows)
    versions = (
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    print(f"\n{len(rows)} maps, {failed} over their limit; nearest to it {worst.network} {worst.method} with "
          f"{worst.error:.1e} of {worst.limit:.0e}. {versions}.", file=output)  # fmt: skip
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

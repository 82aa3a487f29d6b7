"""Networks of any family and rank with shaken random weights: exported, converted, measured against PyTorch in float64.

The families are tables of `Network`: tests.proof.timm_zoo, tests.proof.dense_zoo. The table of errors:
python -m tests.proof.network_table
"""

import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import onnx

import gbprewrite
from gbprewrite.graft.record import read_record
from tests.oracle.torch_oracle import METHODS, Maps, explain, relative_l2
from tests.proof.kinks import AwayFromKinks
from tests.proof.torch_setup import torch
from tests.proof.zoo import Result, Row, _quiet, run

nn = torch.nn


@dataclass(frozen=True, eq=False)  # one object, one network: the caches below go by identity
class Network:
    """A family's member: `make` builds it with random weights; `shape` is its input's, `traced` the exporters'.

    `dynamic` names the axes that the file must leave open: there, `traced` differs from `shape`.
    """

    name: str
    make: Callable[[], Any]
    shape: tuple[int, ...]
    traced: tuple[int, ...]
    dynamic: Mapping[int, str]
    seed: int = 0


# --- weights --------------------------------------------------------------------------------------------------------


def pictures(shape: tuple[int, ...], seed: int) -> Any:
    """Random pictures or clips of this shape in float32: coarse blobs with noise over them."""
    generator = torch.Generator().manual_seed(seed)
    sizes, mode = shape[2:], {4: "bilinear", 5: "trilinear"}[len(shape)]
    coarse = torch.randn(*shape[:2], *(min(6, size) for size in sizes), generator=generator)
    return nn.functional.interpolate(coarse, sizes, mode=mode) + torch.randn(shape, generator=generator)


def build(network: Network, x: Any) -> Any:
    """The network in evaluation mode, float32, with random weights.

    They are scaled so that at x no layer dies or explodes, and as few activations as possible come near a kink.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(network.seed)
        module = network.make().double().eval()
        for part in module.modules():
            _shake(part)
        norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        hooks = [norm.register_forward_pre_hook(_calibrate) for norm in norms]
        with FurtherFromKinks():
            module(x.double())
        for hook in hooks:
            hook.remove()
    return module.float()


def _shake(part: Any) -> None:
    """Weights that keep the scale of the signal; norm layers away from the identity they are born as."""
    if isinstance(part, nn.modules.conv._ConvNd | nn.Linear):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)
    elif isinstance(part, nn.modules.batchnorm._BatchNorm | nn.LayerNorm | nn.GroupNorm):
        if part.weight is not None:
            nn.init.uniform_(part.weight, 0.5, 1.5)
        if part.bias is not None:
            nn.init.normal_(part.bias, std=0.2)


def _calibrate(norm: Any, inputs: tuple[Any]) -> None:
    """Running statistics for this input, shaken: one scale for all channels, or rounding errors would blow up."""
    scale = inputs[0].square().mean().sqrt()
    norm.running_mean = 0.2 * scale * torch.randn_like(norm.running_mean)
    norm.running_var = scale.square() * torch.empty_like(norm.running_var).uniform_(-0.4, 0.4).exp()


class FurtherFromKinks(AwayFromKinks):
    """The same for convolutions of any rank, and for biases that reach a kink through an enlargement by repetition."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = super().__torch_function__(func, types, args, kwargs)
        if func.__name__ in ("conv1d", "conv3d"):
            y.bias_before = args[2]  # as nn.Conv1d and nn.Conv3d call them
        elif func.__name__ == "interpolate" and (kwargs or {}).get("mode", "nearest") == "nearest":
            y.bias_before = getattr(args[0], "bias_before", None)
        return y


# --- exporters ------------------------------------------------------------------------------------------------------


def by_torchscript(module: Any, x: Any, dynamic: Mapping[int, str]) -> onnx.ModelProto:
    """opset 17"""
    file = io.BytesIO()
    with torch.no_grad():
        rank = module(x).dim()
    axes = {"x": dict(dynamic), "y": {axis: name for axis, name in dynamic.items() if axis < rank}}
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(module, (x,), file, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
    return onnx.load_from_string(file.getvalue())


def by_dynamo(module: Any, x: Any, dynamic: Mapping[int, str]) -> onnx.ModelProto:
    """The exporter's own opset"""
    shapes = (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),)
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
    return program.model_proto


EXPORTERS: dict[str, Callable[[Any, Any, Mapping[int, str]], onnx.ModelProto]] = {
    "torchscript": by_torchscript,
    "dynamo": by_dynamo,
}


def export(network: Network, exporter: str) -> onnx.ModelProto:
    """The network as one of PyTorch's two exporters writes it: input x, output y [N, classes, ...]."""
    with _quiet():
        # timm asserts on shapes, tensors while TorchScript traces; a branch taken wrongly would show in the maps.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        example = pictures(network.traced, network.seed)
        model = EXPORTERS[exporter](module_and_input(network)[0], example, network.dynamic)
    shape = model.graph.input[0].type.tensor_type.shape
    assert [axis for axis, dim in enumerate(shape.dim) if dim.dim_param] == sorted(network.dynamic)
    return model


# --- measurements ---------------------------------------------------------------------------------------------------


class Summed(nn.Module):
    """The scores [N, classes] of a network with output [N, classes, ...]: its sums over space."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        y = self.module(x)
        return y.flatten(2).sum(2) if y.dim() > 2 else y


class Truth(NamedTuple):
    """PyTorch's maps in float64, and its own errors in float32."""

    exact: Maps
    torch_error: dict[str, float]


@lru_cache(maxsize=1)
def module_and_input(network: Network) -> tuple[Any, Any]:
    """The network (float32) and what it is proved at."""
    x = pictures(network.shape, network.seed)
    return build(network, x), x


@lru_cache(maxsize=2)
def truth(network: Network, rectify_all: bool = False) -> Truth:
    """What the maps of this network are."""
    module, x = module_and_input(network)
    exact = explain(Summed(module.double()), x.double(), rectify_all=rectify_all)
    rounded = explain(Summed(module.float()), x, rectify_all=rectify_all, target=exact.target)
    return Truth(exact, {method: relative_l2(rounded.maps[method], exact.maps[method]) for method in METHODS})


def prove(network: Network, model: onnx.ModelProto, exporter: str, rectify_all: bool = False) -> Result:
    """Convert, run in float32, compare."""
    exact, own = truth(network, rectify_all)
    converted = gbprewrite.convert(model, METHODS, rectify=("all",) if rectify_all else ())
    outputs = run(converted, module_and_input(network)[1].numpy())
    rows = [
        Row(network.name, exporter, method, relative_l2(outputs[f"x_{method}"], exact.maps[method]), own[method])
        for method in METHODS
    ]
    return Result(read_record(converted) or {}, outputs, rows)


def check(network: Network, exporter: str, rectify_all: bool = False) -> None:
    """The test of every family."""
    record, outputs, rows = prove(network, export(network, exporter), exporter, rectify_all)
    exact = truth(network, rectify_all).exact
    assert outputs["explained_index"].tolist() == exact.target.tolist()
    # Every rectifier that the oracle intercepted is a node that the converter rewrote, and no other node is.
    assert len(record["rectifiers"]) == len(exact.rectified["guided"]) == len(exact.rectified["deconvnet"]) > 0
    assert [row for row in rows if not row.error <= row.limit] == []
    for row in rows:
        values = outputs[f"x_{row.method}"]
        assert np.count_nonzero(values) > values.size / 2

"""The nine light_* networks of the onnx wheel, with random weights.

As shipped the large weights are ConstantOfShape of 0.02, which proves structure but no values. Here every weight is an
initializer of random values, scaled on a random picture layer by layer, so that no activation dies or explodes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor

from tests.oracle.onnx_operators import Node
from tests.oracle.onnx_oracle import Oracle

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SEED = 20131112
# Of 32 pictures the one on which activations keep farthest from the kinks of their rectifiers, where float32 and
# float64 could take different sides.
PICTURES = {
    "bvlc_alexnet": 30,
    "densenet121": 6,
    "inception_v1": 8,
    "inception_v2": 29,
    "resnet50": 7,
    "shufflenet": 19,
    "squeezenet": 26,
    "vgg19": 4,
    "zfnet512": 2,
}


def light(name: str) -> ModelProto:
    """The file as it is shipped."""
    return onnx.load(FOLDER / f"light_{name}.onnx")


def picture(name: str, seed: int | None = None) -> Mapping[str, np.ndarray]:
    """Coarse blobs with noise over them, [1, 3, 224, 224]."""
    rng = np.random.default_rng(PICTURES[name] if seed is None else seed)
    blobs = np.repeat(np.repeat(rng.standard_normal((1, 3, 7, 7)), 32, axis=2), 32, axis=3)
    x = blobs + 0.5 * rng.standard_normal((1, 3, 224, 224))
    return {Oracle(light(name)).inputs[0]: x.astype(np.float32)}


def filled(name: str) -> ModelProto:
    """The network with random weights, the same ones every time."""
    model = _randomised(light(name))
    values = Calibration(model).forward(picture(name, SEED))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].numpy(), tensor.name))
    return model


def _randomised(model: ModelProto) -> ModelProto:
    """Every weight a random initializer, which IR 3 lists among the inputs."""
    rng, graph = np.random.default_rng(SEED), model.graph
    filling = [n for n in graph.node if n.op_type == "ConstantOfShape"]
    nodes = [n for n in graph.node if n.op_type != "ConstantOfShape"]
    read = {name for n in nodes for name in n.input}
    kept = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64 and t.name in read]
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes = {name: list(value.shape) for name, value in known.items() if value.dtype == np.float32 and name in read}
    shapes |= {n.output[0]: known[n.input[0]].tolist() for n in filling}
    weights = [numpy_helper.from_array(_draw(rng, shape, _role(nodes, n)), n) for n, shape in shapes.items()]
    inputs = [i for i in graph.input if i.name not in known or i.name in {t.name for t in kept}]
    inputs += [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n, shape in shapes.items()]
    for field, values in ((graph.node, nodes), (graph.initializer, kept + weights), (graph.input, inputs)):
        copies = [type(v).FromString(v.SerializeToString()) for v in values]
        del field[:]
        field.extend(copies)
    return model


def _role(nodes: list[onnx.NodeProto], name: str) -> tuple[str, int]:
    """(operator, input) that reads a weight, through Unsqueeze."""
    reader = next(n for n in nodes if name in n.input)
    if reader.op_type == "Unsqueeze":
        return _role(nodes, reader.output[0])
    return reader.op_type, list(reader.input).index(name)


def _draw(rng: np.random.Generator, shape: list[int], role: tuple[str, int]) -> np.ndarray:
    """Kernels after He et al. 2015; norm layers away from the identity."""
    if role in (("Conv", 1), ("Gemm", 1)):
        drawn = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / np.prod(shape[1:])))
    elif role in (("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)):
        drawn = rng.uniform(0.5, 1.5, shape)  # scales and variances
    else:
        drawn = 0.2 * rng.standard_normal(shape)  # biases, shifts and means
    return drawn.astype(np.float32)


class Calibration(Oracle):
    """A forward pass in float32 that changes the weights it meets."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__(model, torch.float32)
        norms = [n for n in self.varying if n.proto.op_type == "BatchNormalization"]
        self.before_norm = {n.proto.input[0] for n in norms}

    def _run(self, n: Node, values: dict[str, Tensor]) -> None:
        kind, names = n.proto.op_type, n.proto.input
        if kind == "BatchNormalization":
            x, mean, variance = values[names[0]], values[names[3]], values[names[4]]
            spread = x.var((0, 2, 3))
            values[names[3]] = x.mean((0, 2, 3)) + mean * spread.sqrt()
            values[names[4]] = spread * variance
        super()._run(n, values)
        name = n.proto.output[0]
        if kind in ("Conv", "Gemm") and name not in self.before_norm:
            scale = 1 / values[name].std()
            for changed in (*names[1:], name):
                values[changed] = values[changed] * scale

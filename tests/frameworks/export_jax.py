"""JAX by jax2onnx, the CNN written with Flax and with Equinox.

python -m tests.frameworks.export_jax WEIGHTS.npz FOLDER [NAME]...
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import onnx
from flax import nnx
from jax2onnx import to_onnx

from tests.frameworks.shapes import BATCH, CHANNELS, EPSILON, SIZE, Weights, channels_last, write


class Network(nnx.Module):  # type: ignore[misc]
    """Flax's layers, channels last."""

    def __init__(self, weights: Weights) -> None:
        self.rngs = nnx.Rngs(0)
        self.weights = nnx.data(weights)
        self.stem = self.conv("stem", CHANNELS, 8, 3, strides=2, padding=1)
        self.stem_norm = self.norm("stem_norm", 8)
        self.first = self.conv("first", 8, 8, 3)
        self.first_norm = self.norm("first_norm", 8)
        self.second = self.conv("second", 8, 8, 3)
        self.second_norm = self.norm("second_norm", 8)
        self.depthwise = self.conv("depthwise", 8, 16, 3, strides=2, feature_group_count=8)
        self.pointwise = self.conv("pointwise", 16, 12, 1)
        self.pointwise_norm = self.norm("pointwise_norm", 12)
        self.dense = nnx.Linear(12, 6, rngs=self.rngs)
        self.dense.kernel[...] = jnp.asarray(weights["dense.weight"].T)
        self.dense.bias[...] = jnp.asarray(weights["dense.bias"])
        del self.weights, self.rngs

    def conv(self, name: str, inputs: int, outputs: int, size: int, **options: Any) -> Any:
        bias = self.weights.get(f"{name}.bias")
        layer = nnx.Conv(inputs, outputs, (size, size), use_bias=bias is not None, rngs=self.rngs, **options)
        layer.kernel[...] = jnp.asarray(channels_last(self.weights[f"{name}.weight"]))
        if bias is not None:
            layer.bias[...] = jnp.asarray(bias)
        return layer

    def norm(self, name: str, channels: int) -> Any:
        layer = nnx.BatchNorm(channels, epsilon=EPSILON, use_running_average=True, rngs=self.rngs)
        for theirs, ours in (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            getattr(layer, theirs)[...] = jnp.asarray(self.weights[f"{name}.{ours}"])
        return layer

    def __call__(self, image: Any) -> Any:
        x = nnx.max_pool(
            nnx.relu(self.stem_norm(self.stem(image))), window_shape=(3, 3), strides=(2, 2), padding="SAME"
        )
        branch = nnx.relu(self.first_norm(self.first(x)))
        x = nnx.max_pool(nnx.relu(self.second_norm(self.second(branch)) + x), window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu6(self.depthwise(x))
        x = nnx.relu(self.pointwise_norm(self.pointwise(x)))
        return nnx.softmax(self.dense(x.mean((1, 2))))


class Single(eqx.Module):  # type: ignore[misc]
    """Equinox's layers, for one picture, channels first. Batch norms are arithmetic: Equinox's carry a state."""

    weights: dict[str, jax.Array]
    layers: dict[str, Any]

    def __init__(self, weights: Weights) -> None:
        self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
        self.layers = {
            "stem": self.conv("stem", stride=2, padding=1),
            "first": self.conv("first", padding=1),
            "second": self.conv("second", padding=1),
            "depthwise": self.conv("depthwise", stride=2, padding=((0, 1), (0, 1)), groups=8),
            "pointwise": self.conv("pointwise"),
        }

    def conv(self, name: str, groups: int = 1, **options: Any) -> Any:
        kernel, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        outputs, inputs, size, _ = kernel.shape
        options |= {"groups": groups, "use_bias": bias is not None, "key": jax.random.key(0)}
        layer = eqx.nn.Conv2d(inputs * groups, outputs, size, **options)
        given = (kernel,) if bias is None else (kernel, bias[:, None, None])
        return eqx.tree_at(lambda c: (c.weight, c.bias)[: len(given)], layer, given)

    def norm(self, x: Any, name: str) -> Any:
        names = ("weight", "bias", "running_mean", "running_var")
        scale, bias, mean, variance = (self.weights[f"{name}.{n}"][:, None, None] for n in names)
        return (x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias

    def __call__(self, image: Any) -> Any:
        layers = self.layers
        x = jax.nn.relu(self.norm(layers["stem"](image), "stem_norm"))
        x = eqx.nn.MaxPool2d(3, stride=2, padding=1)(x)
        branch = jax.nn.relu(self.norm(layers["first"](x), "first_norm"))
        branch = self.norm(layers["second"](branch), "second_norm")
        x = eqx.nn.MaxPool2d(2, stride=2)(jax.nn.relu(branch + x))
        x = jax.nn.relu6(layers["depthwise"](x))
        x = jax.nn.relu(self.norm(layers["pointwise"](x), "pointwise_norm"))
        x = eqx.nn.AdaptiveAvgPool2d(1)(x).ravel()
        return jax.nn.softmax(self.weights["dense.weight"] @ x + self.weights["dense.bias"])


def export(network: Any, path: Path, shape: tuple[int | str, ...], **options: Any) -> None:
    onnx.save(to_onnx(network, [shape], input_names=["image"], **options), path)


def flax(weights: Weights, path: Path) -> None:
    export(Network(weights), path, ("N", SIZE, SIZE, CHANNELS))


def flax_nchw(weights: Weights, path: Path) -> None:
    export(Network(weights), path, (BATCH, SIZE, SIZE, CHANNELS), inputs_as_nchw=[0])


def equinox(weights: Weights, path: Path) -> None:
    export(jax.vmap(Single(weights)), path, ("N", CHANNELS, SIZE, SIZE))


EXPORTERS = {f.__name__: f for f in (flax, flax_nchw, equinox)}

if __name__ == "__main__":
    write(EXPORTERS, ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "equinox", "jax2onnx")))

"""Keras 3 on the backend that KERAS_BACKEND names.

python -m tests.frameworks.export_keras WEIGHTS.npz FOLDER [NAME]...
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tests.frameworks.shapes import BATCH, CHANNELS, EPSILON, SIZE, Weights, channels_last, depthwise_last, write

EXPORTER = {"tensorflow": "tf2onnx", "torch": "torch"}[keras.backend.backend()]


def network(weights: Weights) -> Any:
    """The functional model, channels last."""

    def conv(name: str, channels: int, size: int, **options: Any) -> Any:
        return layers.Conv2D(channels, size, padding="same", use_bias=f"{name}.bias" in weights, name=name, **options)

    def norm(name: str) -> Any:
        return layers.BatchNormalization(epsilon=EPSILON, name=name)

    image = keras.Input((SIZE, SIZE, CHANNELS), name="image")
    x = layers.ReLU()(norm("stem_norm")(conv("stem", 8, 3, strides=2)(image)))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    branch = layers.ReLU()(norm("first_norm")(conv("first", 8, 3)(x)))
    branch = norm("second_norm")(conv("second", 8, 3)(branch))
    x = layers.MaxPooling2D(2)(layers.Activation("relu")(layers.Add()([branch, x])))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2, name="depthwise")(x)
    x = layers.ReLU(max_value=6)(x)
    x = layers.ReLU()(norm("pointwise_norm")(conv("pointwise", 12, 1)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(6, activation="softmax", name="dense")(x))
    for layer in model.layers:
        if f"{layer.name}.weight" in weights:
            layer.set_weights(values(layer, weights))
    model(np.zeros((BATCH, SIZE, SIZE, CHANNELS), np.float32))  # `export` wants a model that was called
    return model


def values(layer: Any, weights: Weights) -> list[Any]:
    """The layer's weights in Keras's order and layouts."""
    names = ("weight", "bias", "running_mean", "running_var")
    kernel, *others = (weights[f"{layer.name}.{n}"] for n in names if f"{layer.name}.{n}" in weights)
    if isinstance(layer, layers.DepthwiseConv2D):
        kernel = depthwise_last(kernel)
    elif isinstance(layer, layers.Conv2D):
        kernel = channels_last(kernel)
    elif isinstance(layer, layers.Dense):
        kernel = kernel.T
    return [kernel, *others]


def dynamic(weights: Weights, path: Path) -> None:
    network(weights).export(path, format="onnx", verbose=False)


def fixed(weights: Weights, path: Path) -> None:
    signature = [keras.InputSpec(shape=(BATCH, SIZE, SIZE, CHANNELS), dtype="float32", name="image")]
    network(weights).export(path, format="onnx", verbose=False, input_signature=signature)


def dynamic_by_dynamo(weights: Weights, path: Path) -> None:
    """PyTorch's exporter called on the model: Keras 3.15 itself exports no dynamic batch through padded pools."""
    import torch

    example, shapes = torch.zeros(BATCH, SIZE, SIZE, CHANNELS), (({0: torch.export.Dim("N")},),)  # of *args
    model = network(weights).eval()
    torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=shapes, input_names=["image"])


EXPORTERS = {f.__name__: f for f in (dynamic, fixed, dynamic_by_dynamo)}

if __name__ == "__main__":
    write(EXPORTERS, f"Keras {keras.__version__} on {keras.backend.backend()}, {EXPORTER} {version(EXPORTER)}")

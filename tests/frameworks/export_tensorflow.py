"""TensorFlow by tf2onnx: python -m tests.frameworks.export_tensorflow WEIGHTS.npz FOLDER [NAME]..."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tensorflow as tf
import tf2onnx

from tests.frameworks.shapes import BATCH, CHANNELS, EPSILON, SIZE, Weights, channels_last, depthwise_last, write


class Network(tf.Module):  # type: ignore[misc]
    """Plain operators of tf.nn, channels last."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.w = {name.replace(".", "_"): tf.Variable(value) for name, value in weights.items()}
        for name in ("stem", "first", "second", "pointwise"):
            self.w[f"{name}_weight"] = tf.Variable(channels_last(weights[f"{name}.weight"]))
        self.w["depthwise_weight"] = tf.Variable(depthwise_last(weights["depthwise.weight"]))

    def norm(self, x: Any, name: str) -> Any:
        names = ("weight", "bias", "running_mean", "running_var")
        values = (self.w[f"{name}_{n}"] for n in names)
        return tf.compat.v1.nn.fused_batch_norm(x, *values, epsilon=EPSILON, is_training=False)[0]

    def __call__(self, image: Any) -> Any:
        w = self.w
        x = tf.nn.bias_add(tf.nn.conv2d(image, w["stem_weight"], 2, [[0, 0], [1, 1], [1, 1], [0, 0]]), w["stem_bias"])
        x = tf.nn.max_pool2d(tf.nn.relu(self.norm(x, "stem_norm")), 3, 2, "SAME")
        branch = tf.nn.relu(self.norm(tf.nn.conv2d(x, w["first_weight"], 1, "SAME"), "first_norm"))
        branch = self.norm(tf.nn.conv2d(branch, w["second_weight"], 1, "SAME"), "second_norm")
        x = tf.nn.max_pool2d(tf.nn.relu(branch + x), 2, 2, "VALID")
        x = tf.nn.depthwise_conv2d(x, w["depthwise_weight"], [1, 2, 2, 1], "SAME") + w["depthwise_bias"]
        x = tf.nn.conv2d(tf.nn.relu6(x), w["pointwise_weight"], 1, "VALID")
        x = tf.reduce_mean(tf.nn.relu(self.norm(x, "pointwise_norm")), [1, 2])
        logits = tf.matmul(x, w["dense_weight"], transpose_b=True) + w["dense_bias"]
        return tf.nn.softmax(logits)


def spec(batch: int | None) -> Any:
    return tf.TensorSpec((batch, SIZE, SIZE, CHANNELS), tf.float32, name="image")


def from_function(weights: Weights, path: Path, batch: int | None, **options: Any) -> None:
    network = Network(weights)
    tf2onnx.convert.from_function(tf.function(network), [spec(batch)], output_path=path, **options)


def function(weights: Weights, path: Path) -> None:
    from_function(weights, path, None)


def function_nchw(weights: Weights, path: Path) -> None:
    from_function(weights, path, BATCH, opset=18, inputs_as_nchw=["image:0"])


def function_opset9(weights: Weights, path: Path) -> None:
    from_function(weights, path, BATCH, opset=9)


def saved_model(weights: Weights, path: Path) -> None:
    """Through a SavedModel on disk and tf2onnx's command line."""
    network = Network(weights)
    with TemporaryDirectory() as folder:
        signature = tf.function(network).get_concrete_function(spec(None))
        tf.saved_model.save(network, folder, signatures=signature)
        subprocess.run([sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--output", path], check=True)


EXPORTERS = {f.__name__: f for f in (function, function_nchw, function_opset9, saved_model)}

if __name__ == "__main__":
    write(EXPORTERS, f"TensorFlow {tf.__version__}, tf2onnx {tf2onnx.__version__}")

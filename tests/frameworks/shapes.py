"""What the exporters' scripts share, whatever framework they import: sizes, weights, and where files go."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

BATCH, CHANNELS, SIZE = 2, 3, 49  # the batch of the files whose batch is fixed
EPSILON = 1e-5  # of every batch normalisation
Weights = Mapping[str, np.ndarray]  # PyTorch's names and layouts: kernels [out, in, height, width]
Exporter = Callable[[Weights, Path], None]  # weights, the .onnx to write


def channels_last(kernel: np.ndarray) -> np.ndarray:
    """[out, in, height, width] → [height, width, in, out], as TensorFlow, Keras and Flax lay kernels out."""
    return kernel.transpose(2, 3, 1, 0)


def depthwise_last(kernel: np.ndarray) -> np.ndarray:
    """[in · multiplier, 1, height, width] of 8 groups → [height, width, in, multiplier]."""
    return kernel[:, 0].reshape(8, -1, *kernel.shape[2:]).transpose(2, 3, 0, 1)


def write(exporters: Mapping[str, Exporter], versions: str) -> None:
    """The scripts' command line: WEIGHTS.npz FOLDER [NAME]... writes FOLDER/NAME.onnx, and what wrote them."""
    weights, folder, *names = sys.argv[1:]
    for name in names:
        exporters[name](dict(np.load(weights)), Path(folder) / f"{name}.onnx")
    (Path(folder) / "versions.txt").write_text(versions)

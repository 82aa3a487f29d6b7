"""The files of ../shared/models with an input for each: real photographs where the network takes pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODELS = SHARED / "models"
needs_shared = pytest.mark.skipif(not MODELS.is_dir(), reason=f"the models of others are not here: {MODELS}")

Feeds = Mapping[str, np.ndarray]


def model(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


def photo(name: str, width: int, height: int) -> np.ndarray:
    """float32 [height, width, RGB] of 0..255: the photograph, its middle cut to the shape asked for.

    "coffee*1.04" looks closer. Where a zoom is given, it is the one of 13 at which activations keep farthest from the
    kinks of their rectifiers: a ReLU that float32 and float64 see on different sides says nothing about the converter.
    """
    name, _, zoom = name.partition("*")
    with Image.open(SHARED / "photos" / f"{name}.png") as opened:
        image = opened.convert("RGB")
    scale = max(width / image.width, height / image.height) * float(zoom or 1)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)), np.float32)


def images(name: str, width: int, height: int, photos: str, mean: float, deviation: float) -> Feeds:
    """RGB [N, 3, height, width], normalised."""
    made = np.stack([photo(p, width, height) for p in photos.split()])
    return {name: np.ascontiguousarray((made.transpose(0, 3, 1, 2) - np.float32(mean)) / np.float32(deviation))}


def squeezenet(name: str = "coffee") -> Feeds:
    """Caffe's preprocessing: the shorter side to 256, the middle 224, BGR minus the mean."""
    wide = photo(name, 384 if name == "coffee" else 385, 256)
    left, top = (wide.shape[1] - 224) // 2, 16
    x = wide[top : top + 224, left : left + 224, ::-1] - np.array([104, 117, 123], np.float32)
    return {"data_0": np.ascontiguousarray(x.transpose(2, 0, 1)[None])}


def open_nsfw() -> Feeds:
    """Caffe's preprocessing, channels last."""
    made = np.stack([photo(p, 224, 224) for p in ("chelsea*1.24", "chelsea*1.12")])
    return {"input:0": np.ascontiguousarray(made[..., ::-1] - np.array([104, 117, 123], np.float32))}


def mtcnn() -> Feeds:
    made = np.stack([photo(p, 48, 48) for p in ("astronaut", "chelsea", "coffee")])
    return {"input_3": (made - np.float32(127.5)) / np.float32(128)}


def digit() -> Feeds:
    """A seven in two strokes, with noise so that no two values of a window are equal."""
    x = np.random.default_rng(7).uniform(0, 30, (1, 1, 28, 28)).astype(np.float32)
    x[..., 6:9, 6:22] += 200
    for row in range(9, 24):
        x[..., row, 24 - row // 2 - 4 : 24 - row // 2] += 200
    return {"Input3": x}


INPUTS: dict[str, Callable[[], Feeds]] = {
    "cifar10_pytorch17": partial(images, "modelInput", 32, 32, "chelsea coffee astronaut", 127.5, 127.5),
    "efficientnet_lite0": partial(images, "image", 224, 224, "coffee*1.04 chelsea*1.12", 127.5, 127.5),
    "mnist_cntk": digit,
    "mtcnn_onet": mtcnn,
    "open_nsfw": open_nsfw,
    "squeezenet11": squeezenet,
    "textline_direction": partial(images, "x", 192, 48, "coffee chelsea", 127.5, 127.5),
    "ultraface_rfb320": partial(images, "input", 320, 240, "astronaut", 127, 128),
}

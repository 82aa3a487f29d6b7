"""The CNN's files, one framework after the other, and how far the maps of each are from PyTorch's.

Prints the table of errors as Markdown: GBPREWRITE_FRAMEWORKS=FOLDER python -m tests.frameworks.exports
"""

import os
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto

import gbprewrite
from tests.frameworks import network  # or a skip that gives the reason

from gbprewrite.graft.record import read_record  # isort: skip
from tests.frameworks.environments import interpreter
from tests.frameworks.shapes import CHANNELS
from tests.oracle.torch_oracle import METHODS, relative_l2
from tests.proof.files import run

ROOT = Path(__file__).parents[2]
QUIET = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}


class Framework(NamedTuple):
    """`script` writes `files` (name -> whether the batch is dynamic) with the Python of `environment`."""

    environment: str
    script: str
    files: dict[str, bool]
    backend: str = ""


FRAMEWORKS = {
    "pytorch": Framework(
        "torch",
        "export_torch",
        {"torchscript": True, "torchscript_unfolded": False, "dynamo": True, "dynamo_unoptimised": False},
    ),
    "keras_tensorflow": Framework("tensorflow", "export_keras", {"dynamic": True, "fixed": False}, "tensorflow"),
    "keras_torch": Framework("keras_torch", "export_keras", {"dynamic_by_dynamo": True, "fixed": False}, "torch"),
    "tensorflow": Framework(
        "tensorflow",
        "export_tensorflow",
        {"function": True, "function_nchw": False, "function_opset9": False, "saved_model": True},
    ),
    "jax": Framework("jax", "export_jax", {"flax": True, "flax_nchw": False, "equinox": True}),
    "paddle": Framework("paddle", "export_paddle", {"dynamic": True, "fixed": False}),
}


class ExportError(Exception):
    """A framework's own exporter failed; the message is what its process said last."""


class Export(NamedTuple):
    """The files that a framework wrote, and the versions that wrote them."""

    files: dict[str, ModelProto]
    versions: str


@lru_cache
def export(name: str) -> Export | None:
    """All files of one framework; None where its environment is absent. Raises ExportError."""
    framework = FRAMEWORKS[name]
    python = interpreter(framework.environment)
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        network.save_weights(weights)
        variables = os.environ | QUIET | ({"KERAS_BACKEND": framework.backend} if framework.backend else {})
        command = [python, "-m", f"tests.frameworks.{framework.script}", weights, folder, *framework.files]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ExportError(f"{name}: {done.stderr[-2000:]}")
        files = {f: onnx.load(Path(folder) / f"{f}.onnx") for f in framework.files}
        return Export(files, (Path(folder) / "versions.txt").read_text())


def shape_of(model: ModelProto) -> list[int | None]:
    """The shape of the only input, None for an open dimension."""
    (x,) = model.graph.input
    return [dim.dim_value if dim.dim_value > 0 else None for dim in x.type.tensor_type.shape.dim]


def channels_are_last(model: ModelProto) -> bool:
    """Whether the only input is [N, 49, 49, 3]."""
    return shape_of(model)[3] == CHANNELS


def feeds(model: ModelProto, pictures: np.ndarray) -> dict[str, np.ndarray]:
    """Pictures [N, 3, 49, 49] as the model wants them."""
    (x,) = model.graph.input
    return {x.name: pictures.transpose(0, 2, 3, 1) if channels_are_last(model) else pictures}


class Result(NamedTuple):
    """What a converted file gives: its record, its maps [N, 3, 49, 49] by method, and the classes explained."""

    record: Any
    maps: dict[str, np.ndarray]
    classes: list[int]


def explain(source: ModelProto, pictures: np.ndarray) -> Result:
    """Convert, run on pictures [N, 3, 49, 49]."""
    converted = gbprewrite.convert(source, METHODS)
    outputs = run(converted, feeds(source, pictures))
    maps = {m: outputs[f"{source.graph.input[0].name}_{m}"] for m in METHODS}
    if channels_are_last(source):
        maps = {m: v.transpose(0, 3, 1, 2) for m, v in maps.items()}
    return Result(read_record(converted), maps, outputs["explained_index"].tolist())


def errors(maps: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 error of each map against PyTorch in float64."""
    return {m: relative_l2(v, network.truth().maps[m]) for m, v in maps.items()}


def main() -> None:
    print(
        "| framework | file | opset | nodes | " + " | ".join(METHODS) + " |", "|---|---|--:|--:|--:|--:|--:|", sep="\n"
    )
    for name in FRAMEWORKS:
        made = export(name)
        if made is None:
            print(f"| {name} | environment absent |" + " |" * 5)
            continue
        for file, source in made.files.items():
            found = errors(explain(source, network.pictures().numpy()).maps)
            opset = max(entry.version for entry in source.opset_import if entry.domain in ("", "ai.onnx"))
            cells = (made.versions, file, opset, len(source.graph.node), *(f"{e:.1e}" for e in found.values()))
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()

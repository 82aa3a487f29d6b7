"""One virtual environment per framework, since their pins contradict each other.

python -m tests.frameworks.environments FOLDER [NAME]...
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import click

VARIABLE = "GBPREWRITE_FRAMEWORKS"  # the folder in which the tests look for the environments
PACKAGES = {
    "tensorflow": ("tensorflow-cpu==2.21.0", "keras==3.15.1", "tf2onnx==1.17.0", "onnx==1.23.2"),
    "keras_torch": ("keras==3.15.1", "torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2"),
    "jax": ("jax==0.10.2", "flax==0.12.8", "equinox==0.13.8", "jax2onnx==0.17.1", "onnx==1.23.2"),
    "paddle": ("paddlepaddle==3.3.1", "paddle2onnx==2.1.0", "onnx==1.17.0", "packaging"),  # the last: undeclared
}


def interpreter(name: str) -> Path | None:
    """The Python of an environment, None where it is absent. PyTorch's ("torch") is the one that runs the tests."""
    if name == "torch":
        return Path(sys.executable)
    python = Path(os.environ.get(VARIABLE, "")) / name / "bin" / "python"
    return python if VARIABLE in os.environ and python.exists() else None


def make(folder: Path) -> None:
    """A new environment in `folder`, with the packages that its name stands for."""
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", *PACKAGES[folder.name]], check=True)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("names", nargs=-1, type=click.Choice(list(PACKAGES)), metavar="[NAME]...")
def main(folder: Path, names: tuple[str, ...]) -> None:
    """Make the environments NAMEs, or all, in FOLDER (about 1 GB each)."""
    for name in names or PACKAGES:
        make(folder / name)
    print(f"export {VARIABLE}={folder.resolve()}")


if __name__ == "__main__":
    main()

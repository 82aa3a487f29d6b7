"""The networks that are timed: an ONNX file and, where there is one, the PyTorch module that it came from.

They are made once, each in a process of its own (python -m tests.bench.networks NAME FOLDER), and kept in a folder.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

SIZE, TRACED = 224, 3  # TRACED: the batch that the exporter sees; the file's is dynamic
TORCHVISION = (
    *("vgg16", "vgg16_bn", "resnet18", "resnet50", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2"),
    *("resnet152", "densenet201"),
)
LITE = "efficientnet_lite0"
DEFAULT = (*TORCHVISION[:-2], LITE)  # the last two of torchvision's only show how long converting takes
NAMES = (*TORCHVISION, LITE)
ROOT = Path(__file__).resolve().parents[2]
LITE_FILES = ROOT / "models/public/efficientnet_lite0.onnx", ROOT.parent / "shared/models/efficientnet_lite0.onnx"
CONSTANTS = ("zero", "six")  # of that file: initializers that are no weights


class Unavailable(Exception):
    """This network or contender can't be had here; the message says why."""


class Network(NamedTuple):
    """`source` is the ONNX file; `module` a pickled torch.nn.Module of the same weights, which need not exist."""

    name: str
    source: Path
    module: Path


def network(name: str, folder: Path) -> Network:
    """The network of this name, made if need be; any path of an ONNX file is a network too. Raises Unavailable."""
    if name.endswith(".onnx"):
        path = Path(name)
        if not path.exists():
            raise Unavailable(f"{path} does not exist")
        return Network(path.stem, path, path.with_suffix(".absent"))
    source = _lite_file() if name == LITE else folder / f"{name}.onnx"
    module = folder / f"{name}.pt"
    if not module.exists() or not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.bench.networks", name, str(folder)]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if made.returncode and not source.exists():
            raise Unavailable(f"could not be exported: {made.stderr.strip().splitlines()[-1]}")
    return Network(name, source, module)


def _lite_file() -> Path:
    found = [path for path in LITE_FILES if path.exists()]
    if not found:
        raise Unavailable("no file: python models/get.py efficientnet_lite0 brings it")
    return found[0]


# --- in the process that makes one -----------------------------------------------------------------------------------


def make(name: str, folder: Path) -> None:
    """Write NAME.pt, and NAME.onnx unless it exists (both whole or not at all)."""
    import torch

    module = lite() if name == LITE else torchvision(name, folder)
    part = folder / f"{name}.part"
    torch.save(module, part)
    part.replace(folder / f"{name}.pt")


def torchvision(name: str, folder: Path) -> Any:
    """Shaken random weights, exported by TorchScript with a dynamic batch."""
    import onnx

    from tests.proof import networks, zoo

    def build() -> Any:
        return getattr(zoo.torchvision.models, name)(weights=None, **zoo.OPTIONS.get(name, {}))

    made = networks.Network(name, build, (1, 3, SIZE, SIZE), (TRACED, 3, SIZE, SIZE), {0: "N"})
    part = folder / f"{name}.onnx.part"
    onnx.save(networks.export(made, "torchscript"), part)
    part.replace(folder / f"{name}.onnx")
    return networks.module_and_input(made)[0]


def lite() -> Any:
    """timm's module of EfficientNet-Lite0 with the weights of the file: both list their layers in the same order."""
    import onnx
    from onnx import numpy_helper

    from tests.proof.timm_zoo import timm
    from tests.proof.torch_setup import torch

    module = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    tensors = [t for t in onnx.load(_lite_file()).graph.initializer if t.name not in CONSTANTS]
    names = [name for name in module.state_dict() if not name.endswith("num_batches_tracked")]
    weights = {k: torch.tensor(numpy_helper.to_array(t)) for k, t in zip(names, tensors, strict=True)}
    counters = {k: v for k, v in module.state_dict().items() if k not in weights}
    module.load_state_dict(weights | counters)
    return module


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))

"""torch and torchvision, or a skip that gives the reason.

torchvision's wheel on PyPI is compiled for CUDA. Beside the CPU build of torch its compiled operators can't be loaded,
and then torchvision can't even be imported, since it describes the shapes of two of them. Declaring these two is
enough for the classifiers, which call neither.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

PROOF = "the proofs need PyTorch: pip install -e '.[proof]' and pip install --no-deps torchvision==0.28.0"

torch = pytest.importorskip("torch", reason=PROOF)
pytest.importorskip("onnxscript", reason=PROOF)  # the dynamo exporter needs it

MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def compiled_operators_load(folders: list[str]) -> bool:
    """Whether torchvision's own library of operators, in one of these folders, fits this PyTorch."""
    for library in (path for folder in folders for path in Path(folder).glob("_C*.so")):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False


def declare() -> Any:
    """Declare the operators that `import torchvision` describes; they live as long as the library returned here."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in MISSING:
        library.define(operator)
    return library


spec = importlib.util.find_spec("torchvision")
if spec is None:
    pytest.skip(PROOF, allow_module_level=True)
LIBRARY = None if compiled_operators_load(list(spec.submodule_search_locations or ())) else declare()

import torchvision  # noqa: E402, F401

"""Where onnxruntime would run converted networks on CUDA, on a machine without a GPU.

`place.py` (../shared/cuda_placement) loads onnxruntime-gpu over stub CUDA libraries and tells what the session did with
a model. Weights don't matter to it: networks are exported with those that they are born with. The source is placed too,
since what it can't do alone is not the backward part's fault.
"""

import json
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest

import gbprewrite
from gbprewrite.backward.rules.table import VJP
from gbprewrite.errors import GbprewriteError
from gbprewrite.methods.table import METHODS
from tests.bench.networks import ROOT, Unavailable

PLACE = ROOT.parent / "shared/cuda_placement/place.py"
SHARED = ROOT.parent / "shared/models"
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
BASE = ("gradient", "guided", "deconvnet")
# The methods of one file each; without switches, where there are max pools, walks differ in an AveragePool's adjoint.
FILES = {"base": BASE, "companions": tuple(n for n, m in METHODS.items() if n not in BASE and m.rules is VJP)}
COPIES = {"base": 1, "companions": 5}  # of the network in a file: one more for each point where its batch is fixed
SHORT = {"samples": 2, "steps": 2}  # of smoothgrad and integrated gradients: more are a larger batch, not more nodes
ALL = {"rectify": ("all",)}
SIZES = {"alexnet": 224, "inception_v3": 128}  # torchvision's that take no picture of 64
# What conversion must be told of these.
OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("convnext_tiny", "efficientnet_b0", "efficientnet_v2_s"), ALL),
    "shared/mtcnn_onet": {"score": "softmax_2", **ALL},
    "shared/ultraface_rfb320": {"score": "scores", "target": "1"},
}
REFUSED = ("candy_style", "ir1_super_resolution")  # those of shared/models that conversion refuses
COLUMNS = ("network", "opset", "methods", "on CUDA", "CPU nodes", "Memcpy", "CUDA graph", "strict", "source alone")
TIMEOUT = 900  # seconds for all files of one network


class Placed(NamedTuple):
    """What place.py tells of one file.

    `cpu_nodes` and `memcpy` count operators; `strict`: accepted without fallback to the CPU.
    """

    cuda_nodes: int
    cpu_nodes: Mapping[str, int]
    memcpy: Mapping[str, int]
    cuda_graph: bool
    strict: bool

    @property
    def clean(self) -> bool:
        """No CPU node, no copy, and CUDA graphs are accepted."""
        return not self.cpu_nodes and not self.memcpy and self.cuda_graph

    @property
    def cells(self) -> list[str]:
        """From `on CUDA` to `strict`."""
        counts = (" ".join(f"{n} {kind}" for kind, n in found.items()) for found in (self.cpu_nodes, self.memcpy))
        said = ("yes" if accepted else "refused" for accepted in (self.cuda_graph, self.strict))
        return [str(self.cuda_nodes), *(text or "none" for text in counts), *said]


class Row(NamedTuple):
    """One converted file, or the reason why there is none."""

    network: str
    opset: int
    methods: str
    placed: Placed | None
    source: Placed | None
    reason: str = ""

    @property
    def ours(self) -> bool:
        """Whether it falls short of what its source reaches alone."""
        if self.placed is None or self.source is None:
            return True
        pairs = ((self.placed.cpu_nodes, self.source.cpu_nodes), (self.placed.memcpy, self.source.memcpy))
        more = [n > COPIES[self.methods] * alone.get(kind, 0) for made, alone in pairs for kind, n in made.items()]
        return any(more) or (self.source.cuda_graph, self.source.strict) > (self.placed.cuda_graph, self.placed.strict)

    @property
    def cells(self) -> list[str]:
        """A line of the table."""
        cells = self.placed.cells if self.placed else [self.reason or "could not be checked", *[""] * 4]
        alone = "not checked" if self.source is None else "clean" if self.source.clean else _brief(self.source)
        return [self.network, str(self.opset), self.methods, *cells, alone]


def _brief(placed: Placed) -> str:
    cpu, memcpy, graph = placed.cells[1:4]
    return f"CPU {cpu}, Memcpy {memcpy}, CUDA graph {graph}"


# --- networks --------------------------------------------------------------------------------------------------------

Make = Callable[[Path], None]  # writes the source


def networks(exporter: str) -> dict[str, Make]:
    """Every network that is here: the zoo, where PyTorch is, the files of ../shared/models and of the onnx wheel."""
    files = {f"shared/{path.stem}": path for path in sorted(SHARED.glob("*.onnx")) if path.stem not in REFUSED}
    files |= {f"onnx/{path.stem}": path for path in sorted(LIGHT.glob("light_*.onnx"))}
    return _of_torch(exporter) | {name: partial(_copy, path) for name, path in files.items()}


def _copy(path: Path, to: Path) -> None:
    onnx.save(onnx.load(path), to)


def _of_torch(exporter: str) -> dict[str, Make]:
    """torchvision's classifiers, segmentation and video networks, and timm's, as tests.proof has them."""
    try:
        from tests.proof import dense_zoo, zoo
        from tests.proof.networks import Network
        from tests.proof.timm_zoo import NETWORKS as FROM_TIMM
    except (ImportError, pytest.skip.Exception):
        return {}
    made = {}
    for name in zoo.NETWORKS:
        build = partial(getattr(zoo.torchvision.models, name), weights=None, **zoo.OPTIONS.get(name, {}))
        size = (3, *[224 if name.startswith("vgg") else SIZES.get(name, 64)] * 2)
        made[name] = Network(name, build, (2, *size), (3, *size), {0: "N"})
    made |= dense_zoo.NETWORKS | {f"timm/{name}": found for name, found in FROM_TIMM.items()}
    return {name: partial(_export, found, exporter) for name, found in made.items()}


def _export(network: Any, exporter: str, to: Path) -> None:
    """With the weights that it is born with."""
    from tests.proof.networks import EXPORTERS, torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        module, example = network.make().eval(), torch.randn(network.traced)
        onnx.save(EXPORTERS[exporter](module, example, network.dynamic), to)


# --- one network -----------------------------------------------------------------------------------------------------


def rows(name: str, make: Make, opsets: Sequence[int], files: Sequence[str], place: Sequence[str]) -> list[Row]:
    """Convert it to every opset with the methods of each of `files`; place source and results, then delete them.

    `place` is the command line of place.py. Raises Unavailable when it can't run.
    """
    with tempfile.TemporaryDirectory(prefix="gbprewrite-placement-") as folder:
        source = Path(folder) / "source.onnx"
        make(source)
        reasons = {(opset, kind): _convert(source, name, opset, kind) for opset in opsets for kind in files}
        paths = [source, *(_path(source, *key) for key, reason in reasons.items() if not reason)]
        found = _place(place, paths)
        alone = found.get(source.name)
        return [
            Row(name, opset, kind, found.get(_path(source, opset, kind).name), alone, reason)
            for (opset, kind), reason in reasons.items()
        ]


def _path(source: Path, opset: int, kind: str) -> Path:
    return source.with_name(f"{kind}-{opset}.onnx")


def _convert(source: Path, name: str, opset: int, kind: str) -> str:
    """Write the converted file; the reason when conversion refuses."""
    options = OPTIONS.get(name, {}) | (SHORT if kind == "companions" else {})
    try:
        model = gbprewrite.convert(str(source), FILES[kind], opset=opset, optimize_for="cuda", **options)
    except GbprewriteError as error:
        return f"{type(error).__name__}: {error}"
    onnx.save(model, _path(source, opset, kind))
    return ""


def _place(command: Sequence[str], paths: Iterable[Path]) -> dict[str, Placed]:
    """File name -> what place.py tells of it; a file that onnxruntime does not load is missing."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [*command, "--json", *map(str, paths)]
    done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=TIMEOUT)
    found = {told.pop("model"): Placed(**told) for told in map(json.loads, done.stdout.splitlines())}
    if not found:
        raise Unavailable(f"place.py could not check anything: {' '.join(done.stderr.split()) or done.returncode}")
    return found


# --- all of them -----------------------------------------------------------------------------------------------------


def every_row(
    chosen: Sequence[str], exporter: str, opsets: Sequence[int], files: Sequence[str], place: Sequence[str]
) -> Iterator[list[Row]]:
    """The rows of one network after another; `chosen` names some, or paths of .onnx files, nothing is everything.

    Raises Unavailable for names that are not here.
    """
    known = networks(exporter)
    known |= {name: partial(_copy, Path(name)) for name in chosen if name not in known and Path(name).is_file()}
    for name in chosen or known:
        if name not in known:
            raise Unavailable(f"{name}: no such network or file here; there are {', '.join(known)}")
        yield rows(name, known[name], opsets, files, place)


def summary(found: Sequence[Row]) -> str:
    """How many files are clean, how many are no worse than their source, and how many fail."""
    clean = sum(bool(row.placed and row.placed.clean) for row in found)
    failed = sum(row.ours for row in found)
    strict = sum(bool(row.placed and row.placed.strict) for row in found)
    return (
        f"{len(found)} converted files of {len({row.network for row in found})} networks: {clean} with no CPU node, no "
        f"Memcpy and CUDA graphs accepted ({strict} strictly), {len(found) - clean - failed} as their source alone, "
        f"{failed} worse than it"
    )

"""Packages are the pipeline, in its order: a module imports its own package and earlier ones only."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import gbprewrite

PACKAGE = Path(gbprewrite.__file__).parent
# Stages in the order of the pipeline; those in one line stand beside each other, and know nothing of each other.
ORDER = (
    ("plaintext",),
    ("errors",),
    ("version", "files"),
    ("photos",),
    ("model",),
    ("normalise",),
    ("view",),
    ("select",),
    ("backward",),
    ("methods",),
    ("extend", "graft"),
    ("options", "inspect", "layers"),
    ("convert",),
    ("runtime",),
    ("pictures",),
    ("checks",),
    ("cli",),
)
RANK = {stage: rank for rank, stages in enumerate(ORDER) for stage in stages}
# The same inside the package of the backward part.
BACKWARD = (
    ("magnitudes", "emitter"),
    ("builder",),
    ("lowering",),
    ("rules",),
    ("walk", "coverage"),
    ("units",),
    ("regions",),
    ("cotangents",),
)
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in RANK)


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports from the package, wherever in it, and for types alone too.

    `import gbprewrite`, the public face, is for the command line alone.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: write out {ast.unparse(node)}"
            yield from (f"{node.module}.{a.name}" for a in node.names if f"{node.module}.".startswith("gbprewrite."))
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("gbprewrite."))


def dotted(path: Path) -> str:
    parts = ["gbprewrite", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_lead_to_earlier_stages(path: Path) -> None:
    own = dotted(path).split(".")[1]
    stages = {name.split(".")[1] for name in imported(path)} - {own}
    assert {stage for stage in stages if RANK[stage] >= RANK[own]} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "backward").rglob("*.py")), ids=lambda p: p.stem)
def test_inside_backward(path: Path) -> None:
    """A rule asks the builder for a walk, since the walk reads the rules; the builder knows none of its users."""
    if path == PACKAGE / "backward" / "__init__.py":
        return
    rank = {part: rank for rank, parts in enumerate(BACKWARD) for part in parts}
    own = dotted(path).split(".")[2]
    parts = {name.split(".")[2] for name in imported(path) if name.startswith("gbprewrite.backward.")} - {own}
    assert {part for part in parts if rank[part] >= rank[own]} == set()


def test_every_module_has_a_stage() -> None:
    stages = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert stages - {"__init__", "__main__"} - RANK.keys() == set()


def test_no_circles() -> None:
    paths = {dotted(p): p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"}
    reads = {
        own: {name if name in paths else name.rpartition(".")[0] for name in imported(path)} & paths.keys() - {own}
        for own, path in paths.items()
    }
    graphlib.TopologicalSorter(reads).prepare()  # raises CycleError

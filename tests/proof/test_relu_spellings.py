"""Every spelling of ReLU, from both exporters of PyTorch, at an open and at a fixed batch: each meets the rules."""

from __future__ import annotations

import collections

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")
pytest.importorskip("onnxscript", reason="the dynamo exporter needs it: pip install -e '.[proof]'")

import gbprewrite  # noqa: E402
from gbprewrite.select.rectifiers import UNNAMED  # noqa: E402
from tests.oracle.torch_oracle import METHODS, explain, relative_l2  # noqa: E402
from tests.proof.files import one_thread  # noqa: E402, F401
from tests.proof.relu_spellings import EXPORTS, SPELLINGS, Network, picture, source, spellings  # noqa: E402
from tests.small import run  # noqa: E402

CASES = [(name, *export) for export in EXPORTS for name in spellings(export[0])]


@pytest.fixture(scope="module")
def truth():
    """PyTorch's maps in float64 with F.relu: all spellings are one function, so this holds for all."""
    return explain(Network([torch.nn.functional.relu]).double(), picture().double())


@pytest.mark.parametrize(("spelling", "exporter", "batch"), CASES)
def test_maps(truth, spelling, exporter, batch):
    built = gbprewrite.convert(source(spelling, exporter, batch), METHODS)
    found = run(built, x=picture().numpy())
    np.testing.assert_array_equal(found["explained_index"], truth.target.numpy())
    for method in METHODS:
        assert relative_l2(found[f"x_{method}"], truth.maps[method]) < 2e-6


def table() -> dict[str, collections.Counter]:
    """For each spelling how many of its files have both ReLUs recognised, listed as gate-like, or missed."""
    counts: dict[str, collections.Counter] = {name: collections.Counter() for name in SPELLINGS}
    for name, exporter, batch in CASES:
        roles = [row["role"] for row in gbprewrite.inspect(source(name, exporter, batch)).nonlinearities]
        whole = roles == ["rectifier"] * 2
        counts[name]["recognised" if whole else "gate-like" if roles.count(UNNAMED) == 2 else "missed"] += 1
    return counts


def test_table():
    """Both ReLUs of each file are recognised, and nothing else of it is listed as a nonlinearity."""
    counts = table()
    assert all(set(row) == {"recognised"} for row in counts.values()), counts
    assert sum(row["recognised"] for row in counts.values()) == len(CASES)


if __name__ == "__main__":
    for spelling, row in table().items():
        print(f"{spelling:44s}", *(f"{row[kind]:3d} {kind}" for kind in ("recognised", "gate-like", "missed")))

"""Random CNNs: the maps of the converted file, run by onnxruntime in float32, against PyTorch in float64.

The oracle reads the source file and decides by itself which nodes are rectifiers. Graphs are left out whose activations
or pools come too near to a kink, and those that float32 can't compute: where PyTorch's own float32 maps differ from its
float64 ones.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

from hypothesis import HealthCheck, Phase, assume, given, settings  # noqa: E402
from onnxruntime.capi.onnxruntime_pybind11_state import Fail  # noqa: E402

import gbprewrite  # noqa: E402
from gbprewrite.report import read_record  # noqa: E402
from tests.oracle.onnx_oracle import Oracle  # noqa: E402
from tests.oracle.torch_oracle import METHODS, relative_l2  # noqa: E402
from tests.proof.files import one_thread, run  # noqa: E402, F401
from tests.proof.node_kinks import nearest  # noqa: E402
from tests.proof.random_graphs import Graph, graphs  # noqa: E402

LIMIT = 1e-4  # relative L2 error of a map
MARGIN = 1e-4  # distance to a kink, in units of the root mean square of what comes near it
STABLE = 1e-5  # relative L2 difference between the oracle in float32 and in float64

Maps = dict[tuple[str, str], torch.Tensor]


def error(found: object, exact: torch.Tensor) -> float:
    """Relative L2; of a map that is zero, the greatest absolute value."""
    found = torch.as_tensor(found)
    assert found.shape == exact.shape
    return relative_l2(found, exact) if exact.any() else float(found.abs().max())


class Expected(NamedTuple):
    """What the oracle says about a graph; without rectifiers there are maps of the plain gradient alone."""

    outputs: dict[str, torch.Tensor]
    maps: Maps
    rectifiers: set[str]
    distance: tuple[float, str]


def expected(graph: Graph, float_type: torch.dtype = torch.float64) -> Expected:
    oracle = Oracle(graph.model, float_type)
    path = oracle.path(graph.score)
    assume(path.issuperset(graph.feeds))
    with torch.no_grad():
        values = oracle.forward(graph.feeds)
    marked = set(oracle.rectifiers)
    if graph.rectify_all:
        marked |= oracle.activations | set(oracle.hard_swishes)
    maps = {}
    for method in METHODS if marked & path else METHODS[:1]:
        made = oracle.explain(
            graph.feeds, graph.score, method, cotangent=graph.cotangent, rectify_all=graph.rectify_all
        ).maps
        maps.update({(x, method): value for x, value in made.items()})
    outputs = {name: values[name] for name in oracle.outputs}
    return Expected(outputs, maps, marked & path, nearest(oracle, values, graph.score))


def is_stable(exact: Expected, rounded: Expected) -> bool:
    """Whether float32 is enough for this graph, as far as PyTorch can tell."""
    return all(map_.isfinite().all() and error(rounded.maps[k], map_) <= STABLE for k, map_ in exact.maps.items())


def check(graph: Graph, exact: Expected) -> None:
    """The file converted with every method gives the oracle's maps and the source's outputs."""
    methods = sorted({method for _, method in exact.maps})
    if not exact.rectifiers:
        with pytest.raises(gbprewrite.ModelError, match="rectif"):
            gbprewrite.convert(graph.model, "guided", **graph.options)
    converted = gbprewrite.convert(graph.model, methods, class_axis=1, **graph.options)
    record = read_record(converted)
    assert record is not None
    assert record["score"] == graph.score
    assert len(record["rectifiers"]) == len(exact.rectifiers)
    results = run(converted, {**graph.feeds, **graph.more})
    errors = {name: error(results[name], value) for name, value in exact.outputs.items()}
    errors |= {f"{x}_{method}": error(results[f"{x}_{method}"], map_) for (x, method), map_ in exact.maps.items()}
    assert {name: e for name, e in errors.items() if not e <= LIMIT} == {}


def source_runs(graph: Graph) -> bool:
    """onnxruntime loads no file in which its shape inference, which knows ceil_mode only roughly, meets a constant."""
    try:
        run(graph.model, graph.feeds)
    except Fail:
        return False
    return True


def prove(graph: Graph) -> None:
    exact = expected(graph)
    assume(exact.distance[0] > MARGIN)
    assume(is_stable(exact, expected(graph, torch.float32)))
    assume(source_runs(graph))
    check(graph, exact)


# The same graphs at every run; without a database and without explaining, a failure is shrunk and printed.
common = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@given(graphs())
@settings(common, max_examples=20)
def test_some_random_graphs(graph):
    prove(graph)


@pytest.mark.slow
@given(graphs(most_layers=16))
@settings(common, max_examples=1000)
def test_1000_random_graphs(graph):
    prove(graph)

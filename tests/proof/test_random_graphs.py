"""Random CNNs: the maps of the converted file, run by onnxruntime in float32, against PyTorch in float64.

The oracle reads the source file and decides by itself which nodes are rectifiers. Graphs are left out whose activations
or pools come too near to a kink, and those that float32 can't compute: where PyTorch's own float32 maps differ from its
float64 ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

from hypothesis import HealthCheck, Phase, assume, given, settings  # noqa: E402
from onnx import ModelProto  # noqa: E402
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument  # noqa: E402

import gbprewrite  # noqa: E402
from gbprewrite.graft.record import read_record  # noqa: E402
from tests.oracle.onnx_oracle import Oracle  # noqa: E402
from tests.oracle.torch_oracle import METHODS, relative_l2  # noqa: E402
from tests.proof.files import one_thread, run  # noqa: E402, F401
from tests.proof.node_kinks import nearest  # noqa: E402
from tests.proof.random_graphs import Graph, graphs  # noqa: E402
from tests.proof.random_net import Array  # noqa: E402
from tests.small import model, normal  # noqa: E402

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


def results_of(converted: ModelProto, graph: Graph) -> dict[str, Array]:
    """What the file gives; not optimised where onnxruntime spoils the source as well (of two equal GELUs of one tensor
    its fusion loses a node)."""
    feeds = {**graph.feeds, **graph.more}
    try:
        return run(converted, feeds)
    except InvalidArgument:
        with pytest.raises(InvalidArgument):
            run(graph.model, graph.feeds)
        return run(converted, feeds, optimised=False)


def check(graph: Graph, exact: Expected) -> None:
    """The file converted with every method gives the oracle's maps and the source's outputs."""
    methods = sorted({method for _, method in exact.maps})
    if not exact.rectifiers:
        with pytest.raises(gbprewrite.ModelError, match="rectif"):
            gbprewrite.convert(graph.model, "guided", **graph.options)
    converted = gbprewrite.convert(graph.model, methods, **graph.options)
    record = read_record(converted)
    assert record is not None
    assert record["score"] == graph.score
    assert len(record["rectifiers"]) == len(exact.rectifiers)
    results = results_of(converted, graph)
    for name, value in exact.outputs.items():
        np.testing.assert_allclose(results[name], value, rtol=LIMIT, atol=LIMIT)
    errors = {(x, method): error(results[f"{x}_{method}"], map_) for (x, method), map_ in exact.maps.items()}
    assert {name: e for name, e in errors.items() if not e <= LIMIT} == {}


def prove(graph: Graph) -> None:
    assume(Oracle(graph.model).path(graph.score).issuperset(graph.feeds))
    exact = expected(graph)
    assume(exact.distance[0] > MARGIN)
    assume(is_stable(exact, expected(graph, torch.float32)))
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
@settings(common, max_examples=50)
def test_some_random_graphs(graph):
    prove(graph)


@pytest.mark.slow
@given(graphs(most_layers=16))
@settings(common, max_examples=2000)  # hypothesis varies each structure: more than 1,000 different ones
def test_many_random_graphs(graph):
    prove(graph)


# --- what random graphs have found ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A small model that was once converted wrongly, the shapes to feed it, and the target: a seed, or class 0."""

    text: str
    shapes: dict[str, tuple[int, ...]]
    target: str = "seed"
    opset: int = 18

    def graph(self) -> Graph:
        source = model(self.text, self.opset)
        feeds = {name: normal(*shape, seed=i) for i, (name, shape) in enumerate(self.shapes.items())}
        score = source.graph.output[0].name
        oracle = Oracle(source)
        shape = tuple(oracle.forward(feeds)[score].shape)
        cotangent = normal(*shape, seed=9)
        if self.target != "seed":
            cotangent = np.zeros(shape, np.float32)
            cotangent[:, 0] = 1
        options = {"score": score, "target": self.target, "through_softmax": True, "rectify": []}
        if self.target != "seed":
            options["class_axis"] = 1
        more = {"seed": cotangent, "target": np.zeros(shape[:1], np.int64)}
        return Graph(source, feeds, score, cotangent, options, more)


FOUND = {
    "a kernel that the network computes, its size in the attribute alone": Found(
        """g (float[N, C, L] x) => (float[N, K, M] y) {
            starts = Constant <value = int64[2] {0, 0}> ()
            ends = Constant <value = int64[2] {1, 2}> ()
            axes = Constant <value = int64[2] {0, 2}> ()
            kernel = Slice (x, starts, ends, axes)
            a = Conv <kernel_shape = [2], strides = [2]> (x, kernel)
            y = Relu (a)
        }""",
        {"x": (2, 3, 7)},
    ),
    "a scalar input, target checked at run time": Found(
        "g (float[2, 3, 4] x, float s) => (float[2, 3, 4] y) { a = Mul (x, s)  y = Relu (a) }",
        {"x": (2, 3, 4), "s": ()},
        "input",
    ),
    "ceil_mode, a max-pool's last window behind the input": Found(
        """g (float[1, 2, 5] x) => (float[1, 2, M] y) {
            a = MaxPool <ceil_mode = 1, kernel_shape = [2], strides = [2], pads = [1, 1]> (x)
            b = Relu (a)
            y = Mul (b, b)
        }""",
        {"x": (1, 2, 5)},
    ),
    "ceil_mode, an average's last window behind the input": Found(
        """g (float[1, 2, 3, 6] x) => (float[1, 2, M, K] y) {
            a = AveragePool <ceil_mode = 1, kernel_shape = [2, 3], strides = [3, 2]> (x)
            b = Relu (a)
            y = Mul (b, b)
        }""",
        {"x": (1, 2, 3, 6)},
    ),
    "ceil_mode, a counted average that overhangs along one axis and drops a window along another": Found(
        """g (float[1, 1, 2, 3] x) => (float[1, 1, M, K] y) {
            a = AveragePool <ceil_mode = 1, count_include_pad = 1, kernel_shape = [1, 2], strides = [2, 2]> (x)
            y = Relu (a)
        }""",
        {"x": (1, 1, 2, 3)},
    ),
    "the same with pads": Found(
        """g (float[1, 1, 2, 4] x) => (float[1, 1, M, K] y) {
            a = AveragePool <ceil_mode = 1, count_include_pad = 1, kernel_shape = [1, 2], strides = [2, 2],
                             pads = [0, 1, 0, 0]> (x)
            y = Relu (a)
        }""",
        {"x": (1, 1, 2, 4)},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_cases(name):
    graph = FOUND[name].graph()
    check(graph, expected(graph))

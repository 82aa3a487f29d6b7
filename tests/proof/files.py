"""The proof of one network that comes as a file: its maps against the oracle, its own outputs against the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper

import gbprewrite
from gbprewrite.graft.record import read_record
from tests.oracle.onnx_oracle import Explanation, Oracle
from tests.oracle.torch_oracle import METHODS, relative_l2

Arrays = Mapping[str, np.ndarray]
LIMIT = 1e-4


class Case(NamedTuple):
    """One way to explain one network.

    `score` is the output asked for, None where the model has only one. `rectifiers`: how many the network has (counted
    by hand from the source), also those that `rectify` adds.
    """

    name: str
    source: Callable[[], ModelProto]
    feeds: Callable[[], Arrays]
    rectifiers: int
    score: str | None = None
    target: str = "argmax"
    methods: Sequence[str] = METHODS
    rectify: Sequence[str] = ()


class Row(NamedTuple):
    """Relative L2 errors of a map against the oracle in float64.

    `error` of the converted file, `torch_error` of the oracle in float32, and `error_at`: graph optimisations off, and
    the oracle differentiating at the activations that onnxruntime found in the source, so that no kink can flip.
    """

    method: str
    error: float
    torch_error: float
    error_at: float

    @property
    def limit(self) -> float:
        return max(LIMIT, 10 * self.torch_error)


def run(model: ModelProto, feeds: Arrays, optimised: bool = True) -> dict[str, np.ndarray]:
    """All outputs, computed by onnxruntime on the CPU; feeds that the model does not ask for are left out."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the sources give warnings enough
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    asked = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, asked), strict=True))


def activations(model: ModelProto, feeds: Arrays, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Inner values of the source, as onnxruntime computes them without optimising the graph."""
    watched = ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return {n: v for n, v in run(watched, feeds, optimised=False).items() if v.dtype.kind == "f"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The oracle's many small operators lose more to threads that wait for each other than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_values(source: ModelProto, feeds: Arrays) -> None:
    """The oracle's value of every inner tensor is onnxruntime's."""
    oracle = Oracle(source)
    with torch.no_grad():
        values = oracle.forward(feeds)
    found = activations(source, feeds, [name for n in oracle.varying for name in n.proto.output[:1]])
    assert oracle.outputs[0] in found
    errors = {name: relative_l2(value, values[name]) for name, value in found.items()}
    assert {name: error for name, error in errors.items() if not error <= LIMIT} == {}
    assert [tuple(values[name].shape) for name in found] == [value.shape for value in found.values()]


def cotangent_of(target: str, shape: Sequence[int], class_axis: int) -> np.ndarray:
    """What a target that is no argmax stands for; a seed is random."""
    kind, _, numbers = target.rpartition(":")
    if target == "seed":
        return np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    made = np.zeros(shape, np.float32)
    place = tuple(map(int, numbers.split(",")))
    where: list[Any] = [slice(None)] * len(shape)
    where[1:] = (
        place if kind == "unit" else [place[0] if a == class_axis else slice(None) for a in range(1, len(shape))]
    )
    made[tuple(where)] = 1
    return made


class Proof:
    """What the tests ask about one case; everything is computed once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.source = case.source()
        self.feeds = dict(case.feeds())

    def convert(self, methods: Sequence[str] = ()) -> ModelProto:
        case = self.case
        return gbprewrite.convert(
            self.source, methods or case.methods, case.target, score=case.score, rectify=case.rectify
        )

    @cached_property
    def converted(self) -> ModelProto:
        return self.convert()

    @cached_property
    def record(self) -> Mapping[str, Any]:
        record = read_record(self.converted)
        assert record is not None
        return record

    @cached_property
    def oracle(self) -> Oracle:
        return Oracle(self.source)

    @cached_property
    def score(self) -> tuple[str, int]:
        return self.oracle.before_softmax(self.case.score or self.oracle.outputs[0])

    @cached_property
    def cotangent(self) -> np.ndarray | None:
        name, axis = self.score
        if self.case.target == "argmax":
            return None
        with torch.no_grad():
            shape = self.oracle.forward(self.feeds)[name].shape
        return cotangent_of(self.case.target, shape, axis)

    @property
    def seeded_feeds(self) -> Arrays:
        return self.feeds | ({"seed": self.cotangent} if self.case.target == "seed" else {})

    @cached_property
    def results(self) -> dict[str, np.ndarray]:
        """All outputs of the converted file, graph optimisations on."""
        return run(self.converted, self.seeded_feeds)

    @cached_property
    def plain_results(self) -> dict[str, np.ndarray]:
        """All outputs of the converted file, graph optimisations off."""
        return run(self.converted, self.seeded_feeds, optimised=False)

    def explain(self, oracle: Oracle, method: str, at: Arrays = MappingProxyType({})) -> Explanation:
        name, axis = self.score
        options = {"class_axis": axis, "cotangent": self.cotangent, "rectify_all": bool(self.case.rectify)}
        return oracle.explain(self.feeds, name, method, at=at, **options)

    @cached_property
    def exact(self) -> dict[str, Explanation]:
        """The oracle's maps in float64."""
        return {m: self.explain(self.oracle, m) for m in self.case.methods}

    @cached_property
    def rows(self) -> list[Row]:
        single, ((x, _),) = Oracle(self.source, torch.float32), self.feeds.items()
        varying = [name for n in self.oracle.varying for name in n.proto.output[:1]]
        at = activations(self.source, self.feeds, varying)
        rows = []
        for method, explanation in self.exact.items():
            exact, name = explanation.maps[x], f"{x}_{method}"
            error = relative_l2(self.results[name], exact)
            rounded = self.explain(single, method).maps[x]
            there = self.explain(self.oracle, method, at).maps[x]
            row = Row(method, error, relative_l2(rounded, exact), relative_l2(self.plain_results[name], there))
            rows.append(row)
        return rows

    def original_outputs(self, optimised: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """(from the source, from the converted file) for every output of the source."""
        before = run(self.source, self.feeds, optimised)
        after = self.results if optimised else self.plain_results
        return [(value, after[name]) for name, value in before.items()]


# --- the checks that every network passes -----------------------------------------------------------------------------


def check_maps(proof: Proof) -> None:
    """Every map is the oracle's, and so is the class that it explains."""
    assert [r for r in proof.rows if not (r.error <= r.limit and r.error_at <= LIMIT)] == []
    for explanation in proof.exact.values():
        if explanation.index is not None:
            assert proof.results["explained_index"].tolist() == explanation.index.tolist()


def check_rectifiers(proof: Proof) -> None:
    """Converter, oracle and the count by hand agree on how many nodes the methods act on."""
    marked = set(proof.oracle.rectifiers)
    if proof.case.rectify:
        marked |= proof.oracle.activations | set(proof.oracle.hard_swishes)
    found = len(proof.record["rectifiers"]), len(marked & proof.oracle.path(proof.score[0]))
    assert found == (proof.case.rectifiers, proof.case.rectifiers)


def check_original_outputs(proof: Proof) -> None:
    """Bit for bit with graph optimisations off, to rounding with them on."""
    assert all(np.array_equal(before, after) for before, after in proof.original_outputs(optimised=False))
    assert max(relative_l2(after, before) for before, after in proof.original_outputs(optimised=True)) <= 1e-5


def check_file(proof: Proof) -> None:
    """The same bytes again, and the weights stored once: what is added is the text of the nodes, and the record.

    From 1.5 MB on that is at most 2 % for one method.
    """
    data = proof.converted.SerializeToString(deterministic=True)
    assert proof.convert().SerializeToString(deterministic=True) == data
    size, nodes = proof.source.ByteSize(), proof.record["added"]["nodes"]
    record = sum(entry.ByteSize() for entry in proof.converted.metadata_props)
    assert len(data) - size <= 192 * nodes + record
    assert size < 1_500_000 or proof.convert(proof.case.methods[:1]).ByteSize() <= 1.02 * size

"""A short campaign with every run of the tests, a longer one with the slow ones; and that the judge sees each fault."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import gbprewrite
from gbprewrite.graft import record as report
from tests.fuzz import campaign
from tests.fuzz.campaign import cases, line
from tests.fuzz.judge import FAULTS, Outcome, judge
from tests.fuzz.models import MODELS, written

SHORT, LONG = 100, 1000


def _faults(count: int) -> list[str]:
    judged = list(campaign.campaign(cases(count), jobs=2))
    assert len(judged) == count
    assert {"right", "refused"} <= {outcome.kind for _, outcome in judged}
    return [line(case, outcome) for case, outcome in judged if outcome.kind in FAULTS]


def test_no_file_leads_to_a_fault() -> None:
    assert _faults(SHORT) == []


@pytest.mark.slow
def test_nor_do_many_more() -> None:
    assert _faults(LONG) == []


@pytest.mark.parametrize("name", MODELS)
def test_the_models_themselves_are_right(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(written(name, tmp_path).SerializeToString())
    outcome = judge(file)
    wanted = "no differences: random, quantised, or not finite" if name == "quantised" else "agrees with differences"
    assert (outcome.kind, outcome.words) == ("right", wanted)


def _raises(model: ModelProto) -> None:
    raise ZeroDivisionError


def _blames(model: ModelProto) -> None:
    raise gbprewrite.ModelError("this is a defect of gbprewrite")


def _does_not_load(model: ModelProto) -> None:
    model.graph.node[-1].domain = "com.example"


def _other_outputs(model: ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.name == "b3")
    weight.CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), "b3"))


def _turned_gradient(model: ModelProto) -> None:
    record = report.read_record(model)
    assert record is not None
    name = next(m["output"] for m in record["maps"] if m["method"] == "gradient")
    node = next(n for n in model.graph.node if name in n.output)
    node.output[list(node.output).index(name)] = "turned"
    model.graph.node.append(helper.make_node("Neg", ["turned"], [name]))
    record["nodes"] += 1
    record["added"]["nodes"] += 1
    report.write_record(model, record)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_raises, "traceback"),
        (_blames, "blames"),
        (_does_not_load, "no load"),
        (_other_outputs, "own outputs"),
        (_turned_gradient, "gradient"),
    ],
)
def test_the_judge_sees(
    change: Callable[[ModelProto], None], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = gbprewrite.convert

    def changed(*args: Any, **options: Any) -> ModelProto:
        model = convert(*args, **options)
        change(model)
        return model

    monkeypatch.setattr(gbprewrite, "convert", changed)
    onnx.save(MODELS["cnn"](), tmp_path / "model.onnx")
    assert judge(tmp_path / "model.onnx").kind == kind


class _Deaf:
    """A pipe on which nothing ever comes, or whose other end is gone."""

    def __init__(self, gone: bool) -> None:
        self.gone = gone

    def send(self, value: Any) -> None:
        """Nobody hears it."""

    def poll(self, seconds: float) -> bool:
        return self.gone

    def recv(self) -> Any:
        raise EOFError


def _sleep() -> None:
    multiprocessing.Event().wait(60)


@pytest.mark.parametrize(
    ("limits", "gone", "wanted"),
    [
        ({"SECONDS": 0.0}, False, Outcome("hung", "more than 0 s")),
        ({"MEGABYTES": 0.0}, False, Outcome("memory", "more than 0 MB")),
        ({}, True, Outcome("aborted", "exit status 0")),
    ],
)
def test_a_worker_that_does_not_answer(
    limits: dict[str, float], gone: bool, wanted: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(campaign, name, value)
    worker = campaign.Worker.__new__(campaign.Worker)
    process = multiprocessing.get_context("fork").Process(target=int if gone else _sleep, daemon=True)
    process.start()
    vars(worker).update(pipe=_Deaf(gone), process=process, at_rest=0.0, alive=True)
    assert worker.judged(cases(1)[0]) == wanted
    assert not worker.alive

"""`verify` passes what is right and fails what is not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import gbprewrite
from gbprewrite import ModelError, UsageError, modelfile, trial
from tests.small import cnn, model, normal

METHODS = ["guided", "deconvnet", "gradient"]
BIT_FOR_BIT, OPTIMISED, DERIVATIVES = (
    "original outputs, bit for bit",
    "original outputs, optimised",
    "directional derivatives of image",
)


def results(found: gbprewrite.Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def scaled(converted: ModelProto, output: str, factor: float) -> ModelProto:
    """A converted model whose map is wrong by a factor."""
    for node in converted.graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = "right"
    converted.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    converted.graph.node.append(helper.make_node("Mul", ["right", "factor"], [output]))
    return converted


def other_weights() -> ModelProto:
    changed = cnn()
    for tensor in changed.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(numpy_helper.from_array(normal(4, seed=77), "b1"))
    return changed


@pytest.mark.parametrize("target", ["argmax", 3, [4, 1], "topk:2", "input", "seed", "unit:2"])
def test_right_models_pass(target: Any) -> None:
    found = gbprewrite.verify(gbprewrite.convert(cnn(), METHODS, target), cnn(), providers="cpu")
    assert len(found.checks) == 6
    assert set(results(found).values()) == {"passed"}
    assert found.ok


@pytest.mark.parametrize("options", [{"prefix": "my_"}, {"through_softmax": True}, {"score": "e", "target": "argmax"}])
def test_gradient_is_made_where_the_file_holds_none(options: dict[str, Any]) -> None:
    found = gbprewrite.verify(gbprewrite.convert(cnn(), "guided", **options), providers="cpu")
    assert results(found)[DERIVATIVES] == "passed"
    assert "holds no gradient" in found.checks[2].note


def test_several_inputs() -> None:
    text = """g (float[N, 3, H, W] a, float[N, 3, H, W] b) => (float[N, 3, H, W] y) {
        s = Mul (a, b)
        y = Relu (s)
    }"""
    found = gbprewrite.verify(gbprewrite.convert(model(text), "gradient"), providers="cpu")
    assert found.inputs == {"a": [2, 3, 64, 64], "b": [2, 3, 64, 64]}
    assert [c.name for c in found.checks[2:4]] == ["directional derivatives of a", "directional derivatives of b"]
    assert found.ok


def test_given_inputs() -> None:
    converted = gbprewrite.convert(cnn(), target="input")
    inputs = {"image": normal(3, 3, 12, 12), "target": np.arange(3)}
    assert gbprewrite.verify(converted, inputs=inputs, providers="cpu").inputs == {
        "image": [3, 3, 12, 12],
        "target": [3],
    }


@pytest.mark.parametrize("factor", [0.999, 1.001, -1.0, 0.0])
def test_wrong_gradient_fails(factor: float) -> None:
    converted = gbprewrite.convert(cnn(), "gradient")
    found = gbprewrite.verify(scaled(converted, "image_gradient", factor), providers="cpu")
    assert results(found) == {
        BIT_FOR_BIT: "passed",
        OPTIMISED: "passed",
        DERIVATIVES: "failed",
        "gradient map of image": "passed",  # it is what the file says
    }
    assert not found.ok


@pytest.mark.parametrize("method", METHODS)
def test_wrong_run_fails(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that computes another map than the file says."""
    right = trial.Trial.found.func

    def wrong(self: trial.Trial) -> dict[str, Any]:
        return {name: value * 1.1 if name == f"image_{method}" else value for name, value in right(self).items()}

    monkeypatch.setattr(trial.Trial, "found", property(wrong))
    found = gbprewrite.verify(gbprewrite.convert(cnn(), METHODS), providers="cpu")
    assert [name for name, status in results(found).items() if status != "passed"] == [f"{method} map of image"]


def test_other_source_fails() -> None:
    found = gbprewrite.verify(gbprewrite.convert(cnn()), other_weights(), providers="cpu")
    assert (results(found)[BIT_FOR_BIT], results(found)[OPTIMISED]) == ("failed", "failed")
    assert "sha256 differs" in found.checks[0].note


def test_outputs_that_vanished_fail() -> None:
    converted = gbprewrite.convert(cnn())
    more = cnn()
    more.graph.output.append(onnx.ValueInfoProto(name="logits"))
    found = gbprewrite.verify(converted, more, providers="cpu")
    assert results(found)[BIT_FOR_BIT] == "failed"
    assert "outputs are missing: logits" in found.checks[0].note


def test_model_of_other_inputs() -> None:
    other = model("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
    with pytest.raises(UsageError, match="it is another model"):
        gbprewrite.verify(gbprewrite.convert(cnn()), other, providers="cpu")


@pytest.mark.parametrize(("factor", "status"), [(1.0, "passed"), (1.2, "failed")])
def test_where_float64_is_too_slow(factor: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 by onnxruntime then, and that is said."""
    monkeypatch.setattr(trial, "SECONDS_A_PASS", -1.0)
    converted = scaled(gbprewrite.convert(cnn(), ["gradient", "guided"]), "image_gradient", factor)
    found = gbprewrite.verify(converted, providers="cpu")
    assert results(found)[DERIVATIVES] == status
    assert "in float32 by onnxruntime, since a forward pass" in found.checks[2].note
    assert results(found)["guided map of image"] == "skipped"
    assert "forward pass" in found.checks[-1].note


def test_flat_score_is_skipped_and_said() -> None:
    dead = gbprewrite.convert(model("g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) b = Neg (a) y = Relu (b) }"))
    found = gbprewrite.verify(dead, providers="cpu")
    assert found.checks[2].status == "skipped"
    assert "--input" in found.checks[2].note


def test_source_is_no_converted_model(tmp_path: Path) -> None:
    modelfile.save(cnn(), tmp_path / "source.onnx")
    with pytest.raises(ModelError, match="no converted model"):
        gbprewrite.verify(tmp_path / "source.onnx")

"""`verify` passes what is right and fails what is not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import gbprewrite
from gbprewrite import ModelError, UsageError
from gbprewrite.checks import trial
from gbprewrite.graft import record as report
from gbprewrite.model import file as modelfile
from tests.small import cnn, model, normal

METHODS = ["guided", "deconvnet", "gradient"]
BIT_FOR_BIT, OPTIMISED, BACKWARD, DERIVATIVES = (
    "original outputs, bit for bit",
    "original outputs, optimised",
    "backward part, as this version writes it",
    "directional derivatives of image",
)


def results(found: gbprewrite.Verification) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def note(found: gbprewrite.Verification, name: str) -> str:
    return next(check.note for check in found.checks if check.name == name)


def scaled(converted: ModelProto, output: str, factor: float) -> ModelProto:
    """A converted model whose map is wrong by a factor."""
    for node in converted.graph.node:
        for i, name in enumerate(node.output):
            if name == output:
                node.output[i] = "right"
    converted.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    converted.graph.node.append(helper.make_node("Mul", ["right", "factor"], [output]))
    record = report.read_record(converted)
    added = {what: number + 1 for what, number in record["added"].items()}
    report.write_record(converted, {**record, "nodes": record["nodes"] + 1, "added": added})
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
    assert len(found.checks) == 7
    assert set(results(found).values()) == {"passed"}
    assert found.ok


@pytest.mark.parametrize("options", [{"prefix": "my_"}, {"through_softmax": True}, {"score": "e", "target": "argmax"}])
def test_gradient_is_made_where_the_file_holds_none(options: dict[str, Any]) -> None:
    found = gbprewrite.verify(gbprewrite.convert(cnn(), "guided", **options), providers="cpu")
    assert results(found)[DERIVATIVES] == "passed"
    assert "holds no gradient" in note(found, DERIVATIVES)


def test_several_inputs() -> None:
    text = """g (float[N, 3, H, W] a, float[N, 3, H, W] b) => (float[N, 3, H, W] y) {
        s = Mul (a, b)
        y = Relu (s)
    }"""
    found = gbprewrite.verify(gbprewrite.convert(model(text), "gradient", class_axis=1), providers="cpu")
    assert found.inputs == {"a": [2, 3, 64, 64], "b": [2, 3, 64, 64]}
    assert [c.name for c in found.checks[3:5]] == ["directional derivatives of a", "directional derivatives of b"]
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
        BACKWARD: "failed",
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
    assert "sha256 differs" in note(found, BIT_FOR_BIT)


def test_outputs_that_vanished_fail() -> None:
    converted = gbprewrite.convert(cnn())
    more = cnn()
    more.graph.output.append(onnx.ValueInfoProto(name="logits"))
    found = gbprewrite.verify(converted, more, providers="cpu")
    assert results(found)[BIT_FOR_BIT] == "failed"
    assert "outputs are missing: logits" in note(found, BIT_FOR_BIT)


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
    assert "in float32 by onnxruntime, since a forward pass" in note(found, DERIVATIVES)
    assert results(found)["guided map of image"] == "passed"
    assert results(found)["gradient map of image"] == status
    words = ("the same rules spelled for 'portable'", "in float32", "no float64 kernel", "since a forward pass")
    assert all(word in note(found, "guided map of image") for word in words)


@pytest.mark.parametrize("how", ["auto", "portable"])
@pytest.mark.parametrize(("factor", "status"), [(1.0, "passed"), (1.05, "failed")])
def test_another_spelling_in_float64(how: str, factor: float, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime has the kernels."""
    monkeypatch.setattr(trial, "SECONDS_A_PASS", -1.0)
    source = model("g (float[N, 6] x) => (float[N, 4] y) { a = MatMul (x, v) b = Relu (a) y = MatMul (b, w) }",
                   v=normal(6, 5), w=normal(5, 4, seed=1))  # fmt: skip
    converted = scaled(gbprewrite.convert(source, "guided", optimize_for=how), "x_guided", factor)
    found = gbprewrite.verify(converted, providers="cpu")
    assert results(found)["guided map of x"] == status
    words = f"the same rules spelled for '{'cpu' if how == 'portable' else 'portable'}'"
    assert f"{words}, by onnxruntime without optimisations, in float64, since" in note(found, "guided map of x")


def test_an_evaluator_that_stops_leaves_no_map_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(model: ModelProto) -> None:
        raise NotImplementedError("no such operator")

    converted = gbprewrite.convert(cnn(), METHODS)
    monkeypatch.setattr(trial.reference, "evaluator", stop)
    found = gbprewrite.verify(converted, providers="cpu")
    assert found.ok
    assert set(results(found).values()) == {"passed"}
    assert "since the reference evaluator stops: NotImplementedError: no such operator" in found.checks[-1].note


def test_where_nothing_computes_the_maps_again_the_verdict_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(trial: Any) -> None:
        raise ModelError("it does not load")

    converted = gbprewrite.convert(cnn(), "guided")
    monkeypatch.setattr(trial, "SECONDS_A_PASS", -1.0)
    monkeypatch.setattr("gbprewrite.checks.other_lowering.maps", stop)
    found = gbprewrite.verify(converted, providers="cpu")
    assert not found.ok
    assert not found.failed
    assert found.unchecked == ("guided map of image",)
    assert "the other spelling stops: it does not load" in note(found, "guided map of image")


@pytest.mark.parametrize("options", [{}, {"maps_only": True}])
def test_quick_says_what_it_left_out(options: dict[str, bool]) -> None:
    converted = gbprewrite.convert(cnn(), ["guided", "gradient"], **options)  # type: ignore[arg-type]
    found = gbprewrite.verify(converted, cnn(), providers="cpu", quick=True)
    left = ("directional derivatives", "guided map of image", "gradient map of image")
    assert found.unchecked == left
    assert {results(found)[name] for name in left} == {"skipped"}
    assert {results(found)[name] for name in (BIT_FOR_BIT, OPTIMISED, BACKWARD)} == {"passed"}
    assert not found.ok
    assert found.to_json()["ok"] is False
    assert found.verdict == f"nothing failed, but not checked: {', '.join(left)}"


def test_quick_still_fails_what_is_wrong() -> None:
    found = gbprewrite.verify(gbprewrite.convert(cnn()), other_weights(), providers="cpu", quick=True)
    assert found.verdict == "failed"


def test_progress_grows_to_the_end() -> None:
    told: list[tuple[str, float]] = []
    gbprewrite.verify(gbprewrite.convert(cnn(), METHODS), providers="cpu", progress=lambda *said: told.append(said))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] <= 1
    assert {"original outputs", "directional derivatives of image", "maps"} <= {what for what, _ in told}


def test_flat_score_is_skipped_and_said() -> None:
    dead = gbprewrite.convert(model("g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) b = Neg (a) y = Relu (b) }"))
    found = gbprewrite.verify(dead, providers="cpu")
    assert results(found)["directional derivatives of x"] == "skipped"
    assert "--input" in note(found, "directional derivatives of x")


def test_source_is_no_converted_model(tmp_path: Path) -> None:
    modelfile.save(cnn(), tmp_path / "source.onnx")
    with pytest.raises(ModelError, match="no converted model"):
        gbprewrite.verify(tmp_path / "source.onnx")


def without_rectifying(converted: ModelProto) -> None:
    """The Relu nodes of guided backpropagation do nothing: the maps are plain gradients then."""
    (count,) = {report.read_record(converted)["added"]["nodes"]}
    for node in converted.graph.node[-count:]:
        if node.op_type == "Relu":
            node.op_type = "Identity"


def other_constant(converted: ModelProto) -> None:
    """The number of positions that the pool averages."""
    floats = (t for t in converted.graph.initializer[5:] if t.data_type == onnx.TensorProto.FLOAT)
    (tensor,) = (t for t in floats if np.isfinite(numpy_helper.to_array(t)).all())
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))


def other_shape(converted: ModelProto) -> None:
    converted.graph.output[-1].type.tensor_type.shape.dim[0].dim_param = "M"


def other_method(converted: ModelProto) -> None:
    """The record calls a guided map a gradient."""
    record = report.read_record(converted)
    (row,) = record["maps"]
    rows = [{**one, "rules": {"deconvnet": "dx = max(dy, 0)"}} for one in record["rectifiers"]]
    changed = {"methods": ["deconvnet"], "maps": [{**row, "method": "deconvnet"}], "rectifiers": rows}
    report.write_record(converted, {**record, **changed})


def impossible_option(converted: ModelProto) -> None:
    record = report.read_record(converted)
    report.write_record(converted, {**record, "options": {**record["options"], "score": "nose"}})


@pytest.mark.parametrize("given", [False, True], ids=["source part", "source given"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_rectifying, "other nodes come out"),
        (other_constant, "other constants come out"),
        (other_shape, "other inputs and outputs come out"),
        (other_method, "other entries of the record come out"),
        (impossible_option, "no such tensor"),
    ],
)
def test_changed_files_fail(change: Callable[[ModelProto], None], words: str, given: bool) -> None:
    converted = gbprewrite.convert(cnn(), "guided")
    change(converted)
    found = gbprewrite.verify(converted, cnn() if given else None, providers="cpu")
    assert {name for name, status in results(found).items() if status == "failed"} == {BACKWARD}
    assert words in note(found, BACKWARD)
    assert ("source given" if given else "source part") in note(found, BACKWARD)


def test_lost_output_fails() -> None:
    """The only output of the source: nothing is left to compare then, and that must not pass."""
    converted = gbprewrite.convert(cnn(), "guided")
    del converted.graph.output[0]
    found = gbprewrite.verify(converted, providers="cpu")
    assert results(found)[BACKWARD] == "failed"
    assert "no output depends on a float input" in note(found, BACKWARD)


@pytest.mark.parametrize(
    ("entries", "words"),
    [({"class_axis": 5}, "no such axis"), ({"options": {"colour": "red"}}, "options that this version does not have")],
)
def test_a_record_that_contradicts_the_model(entries: dict[str, Any], words: str) -> None:
    converted = gbprewrite.convert(cnn(), "gradient")
    report.write_record(converted, {**report.read_record(converted), **entries})
    with pytest.raises(ModelError, match=words):
        gbprewrite.verify(converted, providers="cpu")


def test_another_version_is_not_held_to_this_one() -> None:
    converted = gbprewrite.convert(cnn(), "guided")
    report.write_record(converted, {**report.read_record(converted), "version": "0.0.9"})
    found = gbprewrite.verify(converted, providers="cpu")
    assert results(found)[BACKWARD] == "skipped"
    assert "written by gbprewrite 0.0.9" in note(found, BACKWARD)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (cnn(9), {}),
        (cnn(11), {"prefix": "my_", "target": "topk:2", "method": METHODS, "optimize_for": "portable"}),
        (
            cnn(13),
            {"opset": 20, "class_axis": 1, "through_softmax": True, "inputs": ["image"], "score": "probabilities"},
        ),
        (
            model(
                """g (float[N, 3] x, float[3] w) => (float[N, 3] y) {
                    a = BatchNormalization (x, s, s, s, s)
                    b = Upsample <mode = "nearest"> (a, scales)
                    c = Elu (b)
                    d = Mul (c, w)
                    y = Relu (d)
                }""",
                9,
                3,
                w=normal(3),
                s=np.ones(3, np.float32),
                scales=np.float32([1, 1]),
            ),
            {"method": METHODS, "rectify": ["Elu"], "target": "input"},
        ),
    ],
    ids=["opset 9", "portable, with a prefix", "higher opset", "IR 3, with upgraded operators"],
)
@pytest.mark.parametrize("given", [False, True], ids=["source part", "source given"])
def test_normalised_sources_convert_to_the_same(source: ModelProto, options: dict[str, Any], given: bool) -> None:
    found = gbprewrite.verify(gbprewrite.convert(source, **options), source if given else None, providers="cpu")
    assert results(found)[BACKWARD] == "passed"
    assert found.ok


@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("perm", [[0, 1, 2, 3], [0, 3, 1, 2]], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dims", ["N, H, W, C", "?, ?, ?, ?"])
def test_open_dimensions_of_any_layout(dims: str, perm: list[int], channels: int) -> None:
    text = f"""g (float[N, H, W, C] x) => (float[N, 4] y) {{
        t = Transpose <perm = {perm}> (x)
        a = Conv (t, w)
        b = Relu (a)
        p = GlobalAveragePool (b)
        y = Flatten (p)
    }}"""
    source = model(text, w=normal(4, channels, 2, 2))
    for dim, name in zip(source.graph.input[0].type.tensor_type.shape.dim, dims.split(", "), strict=True):
        dim.Clear() if name == "?" else dim.CopyFrom(onnx.TensorShapeProto.Dimension(dim_param=name))
    converted = gbprewrite.convert(source)
    tried = trial.Trial(converted, report.read_record(converted), {}, "cpu")
    assert tried.own["x"].shape[perm[1]] == channels

"""What convert writes is loaded once: a file that onnxruntime refuses is never reported as a success."""

import importlib.util
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.model import file as modelfile
from gbprewrite.model import loading
from tests.small import cnn, model, normal, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(cnn(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def _convert(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["convert", str(path), "-o", str(path.with_name("out.onnx")), *options])


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion whose result has a node that onnxruntime refuses."""
    real = gbprewrite.convert

    def convert(*arguments: Any, **options: Any) -> onnx.ModelProto:
        result = real(*arguments, **options)
        result.graph.node.append(helper.make_node("MatMul", ["image", "w3"], ["m"], "wrong"))
        return result

    monkeypatch.setattr(gbprewrite, "convert", convert)


@pytest.mark.usefixtures("faulty")
def test_a_result_that_does_not_load_is_an_error_and_nothing_is_written(path: Path) -> None:
    result = _convert(path)
    assert result.exit_code == 1
    for words in (f"onnxruntime {ort.__version__} loads the source", "wrong", "Nothing was written", "--no-check"):
        assert words in result.output
    assert ".gbprewrite-part" not in result.output
    assert list(path.parent.iterdir()) == [path]
    assert _convert(path, "--no-check").exit_code == 0
    assert path.with_name("out.onnx").exists()


@pytest.mark.usefixtures("faulty")
def test_without_an_engine_the_file_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _convert(path).exit_code == 0


def test_a_source_that_does_not_load_either_is_a_note(path: Path) -> None:
    source = cnn()
    source.graph.node.append(helper.make_node("TheirOp", ["image"], ["other"], domain="com.example"))
    source.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N"]))
    source.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(source, path)
    result = _convert(path, "--score", "probabilities", "--json")
    assert result.exit_code == 0
    note = json.loads(result.stdout)["load_note"]
    assert "loads neither the source nor this file" in note
    assert "TheirOp" in note
    shown = _convert(path, "--score", "probabilities", "--force").output
    assert "not loaded" in shown
    assert json.loads(_convert(path, "--score", "probabilities", "--json", "--force", "--no-check").stdout)[
        "load_note"
    ] is None  # fmt: skip


def test_a_good_result_has_no_note(path: Path) -> None:
    assert json.loads(_convert(path, "--json").stdout)["load_note"] is None


def test_an_engine_that_is_brought_down_is_a_reason(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PROGRAM", "import os; os.abort()")
    answer = loading.load_once(path)
    assert answer is not None
    assert answer.reason == "onnxruntime itself was brought down (signal 6)"


def test_weights_in_another_file_are_loaded_before_both_are_moved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr(modelfile, "APART", 100)
    result = _convert(path)
    assert result.exit_code == 0, result.output
    assert path.with_name("out.onnx.data").exists()
    assert loading.load_once(path.with_name("out.onnx")) == (ort.__version__, None)
    path.with_name("out.onnx.data").unlink()
    answer = loading.load_once(path.with_name("out.onnx"))
    assert answer is not None
    assert answer.reason is not None


def test_constants_that_the_file_only_describes_are_not_worked_out(tmp_path: Path) -> None:
    doubled = " ".join(f"d{i + 1} = Concat <axis = 0> (d{i}, d{i})" for i in range(30))
    used = "s = ReduceMax <keepdims = 0> (d30) a = Mul (x, s) y = Relu (a)"
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ {doubled} {used} }}"
    onnx.save(model(text, d0=np.float32([2])), tmp_path / "m.onnx")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    answer = loading.load_once(tmp_path / "m.onnx")
    assert answer is not None
    assert answer.reason is None
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < before + 2_000_000  # kB; all of d30 are 4 GB


def test_a_result_that_memory_does_not_suffice_for_is_nobodys_defect(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"m.onnx": None, "out.onnx": "[ONNXRuntimeError] : 6 : Exception during initialization: std::bad_alloc"}
    monkeypatch.setattr(loading, "load_once", lambda file: loading.Answer("1", said[file.name]))
    with pytest.raises(gbprewrite.ModelError, match="needs more memory than there is") as raised:
        loading.check_loads(path.with_name("out.onnx"), path)
    assert "defect" not in str(raised.value)


def test_sizes_count_weights_in_other_files_under_any_name_and_no_file_of_another_model(tmp_path: Path) -> None:
    path = _external(tmp_path)
    (tmp_path / "out.onnx.data").write_bytes(b"of another model")
    said = json.loads(_convert(path, "--json").stdout)["bytes"]
    assert said == {
        "before": sum((tmp_path / name).stat().st_size for name in ("e.onnx", "weights.bin")),
        "after": (tmp_path / "out.onnx").stat().st_size,
    }


def _external(folder: Path) -> Path:
    source = model("g (float[N, 20] x) => (float[N, 4] y) { a = MatMul (x, w) b = MatMul (a, v) y = Relu (b) }",
                   w=normal(20, 30), v=normal(30, 4, seed=1))  # fmt: skip
    convert_model_to_external_data(source, location="weights.bin", size_threshold=0)
    onnx.save(source, folder / "e.onnx")
    return folder / "e.onnx"


@pytest.mark.parametrize("length", [None, "0"])
def test_external_data_whose_length_is_left_out(tmp_path: Path, length: str | None) -> None:
    path = _external(tmp_path)
    source = onnx.load(path, load_external_data=False)
    for tensor in source.graph.initializer:
        kept = [e for e in tensor.external_data if e.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        if length is not None:
            tensor.external_data.add(key="length", value=length)
    path.write_bytes(source.SerializeToString())
    result = _convert(path, "--method", "gradient", "--target", "1")
    assert result.exit_code == 0, result.output
    x, w, v = normal(3, 20), normal(20, 30).astype(np.float64), normal(30, 4, seed=1)
    found = run(onnx.load(tmp_path / "out.onnx"), x=x)
    want = (x @ w @ v > 0)[:, [1]] * (w @ v)[:, 1]
    np.testing.assert_allclose(found["x_gradient"], want, rtol=1e-4, atol=1e-5)


def test_external_data_of_another_size(tmp_path: Path) -> None:
    path = _external(tmp_path)
    source = onnx.load(path, load_external_data=False)
    next(e for e in source.graph.initializer[1].external_data if e.key == "length").value = "472"
    path.write_bytes(source.SerializeToString())
    result = _convert(path)
    assert result.exit_code == 1
    for words in ("keeps the weight 'v' in a separate file", "472 bytes", "in place of 480", "download them again"):
        assert words in result.output


@pytest.mark.parametrize("taken", [True, False])
def test_stale_shapes_inside_a_branch(taken: bool) -> None:
    """onnxruntime warns of them, and runs the model; so do the maps."""
    stale = model("""g (float[N, 4, 8, 10] x, bool c) => (float[a, b, d, e] y) {
        r = Relu (x)
        z = If (c) <
            then_branch = t () => (float[N, 4, 8, 8] p) <float[N, 4, 8, 8] q> { q = Mul (r, two) p = Relu (q) },
            else_branch = f () => (float[N, 4, 8, 8] n) { n = Neg (r) }>
        y = Mul (z, z)
    }""", two=np.array(2, np.float32))  # fmt: skip
    x, seed = normal(2, 4, 8, 10), normal(2, 4, 8, 10, seed=1)
    found = run(gbprewrite.convert(stale, "gradient", "seed"), x=x, seed=seed, c=np.array(taken))
    factor = 4 if taken else 1  # y = (2 relu(x))², or relu(x)²
    np.testing.assert_allclose(found["x_gradient"], 2 * factor * np.maximum(x, 0) * seed, rtol=1e-5, atol=1e-6)

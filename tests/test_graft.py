"""What a conversion leaves alone (the source's outputs, names, documents, symbols, size), and that it is repeatable."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import restore
from gbprewrite.model.file import save
from tests.small import cnn, model, normal, run

METHODS = ("gradient", "guided", "deconvnet")


def documented() -> onnx.ModelProto:
    """A model with everything that an import into graphsurgeon would lose."""
    source = cnn()
    source.producer_name, source.domain, source.model_version, source.doc_string = "us", "org.us", 7, "the model"
    source.metadata_props.add(key="author", value="us")
    source.graph.doc_string = "the graph"
    source.graph.node[0].doc_string = "the node"
    source.graph.input[0].doc_string = "the input"
    source.graph.input[0].type.denotation = "IMAGE"
    source.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    source.opset_import.add(domain="com.unused", version=3)
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "unused"))
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("b", 1, ["N", 4, 12, 12]))
    return source


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("target", ["argmax", "seed"])
def test_original_outputs(optimise: bool, target: str) -> None:
    x = normal(2, 3, 12, 12)
    feeds = {"seed": normal(2, 5)} if target == "seed" else {}
    before = run(cnn(), optimise, image=x)["probabilities"]
    after = run(gbprewrite.convert(cnn(), METHODS, target), optimise, image=x, **feeds)["probabilities"]
    if optimise:
        assert np.linalg.norm(after - before) / np.linalg.norm(before) < 1e-5
    else:
        np.testing.assert_array_equal(after, before)


def test_source_survives() -> None:
    source = documented()
    given = source.SerializeToString(deterministic=True)
    built = gbprewrite.convert(source, METHODS)
    assert source.SerializeToString(deterministic=True) == given, "convert must not touch its argument"
    for field in ("producer_name", "domain", "model_version", "doc_string", "opset_import"):
        assert getattr(built, field) == getattr(source, field), field
    assert built.metadata_props[0] == source.metadata_props[0]
    for field in ("node", "initializer", "input", "output", "value_info"):
        mine, theirs = getattr(built.graph, field), getattr(source.graph, field)
        assert list(mine[: len(theirs)]) == list(theirs), field
    assert built.graph.doc_string == "the graph"


def test_maps_are_declared_like_the_input() -> None:
    built = gbprewrite.convert(cnn(), METHODS, "input")
    for output in built.graph.output[1:4]:
        assert output.type.tensor_type == built.graph.input[0].type.tensor_type
    assert report.value_row(built.graph.input[1]) == {"name": "target", "dtype": "int64", "shape": ["N"]}
    assert report.value_row(built.graph.output[4]) == {"name": "explained_index", "dtype": "int64", "shape": ["N"]}


def test_same_bytes() -> None:
    one, two = (gbprewrite.convert(cnn(), METHODS, "topk:2").SerializeToString(deterministic=True) for _ in range(2))
    assert one == two


def test_backward_nodes_tell_what_they_undo() -> None:
    built = gbprewrite.convert(cnn(), "guided")
    names = [n.name for n in built.graph.node[len(cnn().graph.node) :]]
    assert any(n.startswith("guided/Conv_0/") for n in names)
    assert any(n.startswith("guided/MaxPool_2/Equal") for n in names)
    values = {v for n in built.graph.node for v in n.output}
    assert {"c_guided", "b_guided", "image_guided"} <= values


def test_standard_operators_only() -> None:
    built = gbprewrite.convert(cnn(), METHODS)
    assert {n.domain for n in built.graph.node} == {""}
    onnx.checker.check_model(built, full_check=True)


def test_record() -> None:
    built = gbprewrite.convert(cnn(), ("gradient", "guided"))
    record: Any = report.read_record(built)
    assert record["methods"] == ["gradient", "guided"]
    assert record["target"] == "argmax"
    assert (record["output"], record["score"]) == ("probabilities", "logits")
    assert [r["kind"] for r in record["rectifiers"]] == ["Relu", "Relu"]
    assert record["rectifiers"][0]["rules"] == {"gradient": "dx = dy · (x > 0)", "guided": "dx = max(dy, 0) · (x > 0)"}
    assert [m["output"] for m in record["maps"]] == ["image_gradient", "image_guided"]
    assert record["version"] == gbprewrite.__version__
    assert len(record["source"]["sha256"]) == 64


def test_weights_are_stored_once() -> None:
    text = "g (float[1, 64, 8, 8] x) => (float[1, 64, 8, 8] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (a) }"
    source = model(text, w=normal(64, 64, 3, 3))
    assert gbprewrite.convert(source, METHODS).ByteSize() < 1.1 * source.ByteSize()


def test_converted_files_are_refused_and_can_be_replaced() -> None:
    once = gbprewrite.convert(cnn(), "guided")
    with pytest.raises(gbprewrite.ModelError, match=r"converted one already.*guided.*--replace"):
        gbprewrite.convert(once)
    again = gbprewrite.convert(once, "gradient", replace=True)
    fresh = gbprewrite.convert(cnn(), "gradient")
    assert list(again.graph.node) == list(fresh.graph.node)
    assert [o.name for o in again.graph.output] == [o.name for o in fresh.graph.output]


@pytest.mark.parametrize("target", ["argmax", "input", "seed", "topk:2"])
def test_restore_takes_away_what_was_added(target: str) -> None:
    source = documented()
    assert restore(gbprewrite.convert(source, METHODS, target)) == source


CLASHES: dict[str, tuple[str, str, Any]] = {
    "output": ("x_guided", "y", "argmax"),
    "index": ("explained_index", "y", "argmax"),
    "target": ("y", "target", "input"),
    "seed": ("y", "seed", "seed"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_names_in_use(name: str) -> None:
    output, inner, target = CLASHES[name]
    inner = inner if inner != output else "inner"
    text = f"g (float[N, 3] x) => (float[N, 3] {output}) {{ {inner} = Relu (x) {output} = Neg ({inner}) }}"
    with pytest.raises(gbprewrite.ModelError, match=r"uses the name.*already.*--prefix"):
        gbprewrite.convert(model(text), target=target)
    built = gbprewrite.convert(model(text), target=target, prefix="map/")
    assert "map/x_guided" in [o.name for o in built.graph.output]


def test_save_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save(cnn(), path)
    assert onnx.load(path) == cnn()
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    with pytest.raises(gbprewrite.OutputError, match=r"exists.*--force"):
        save(cnn(), path)
    save(cnn(), path, force=True)
    with pytest.raises(gbprewrite.OutputError, match="can't be written"):
        save(cnn(), tmp_path / "missing" / "m.onnx")


class TestMapsOnly:
    """What only the outputs need goes; the maps stay as they are, bit for bit."""

    SOURCE = """g (float[N, 1, 6, 6] x) => (float[N, 3] logits, float[N, 4] features) {
        c = Conv (x, w) a = Relu (c) g = GlobalAveragePool (a) flat = Flatten (g)
        features = Gemm (flat, v) logits = Gemm (flat, u) }"""

    def source(self) -> onnx.ModelProto:
        return model(self.SOURCE, w=normal(2, 1, 3, 3), v=normal(2, 4, seed=1), u=normal(2, 3, seed=2))

    @pytest.mark.parametrize(("target", "gone"), [("argmax", {"v"}), (1, {"v"})])
    def test_dead_branches_go(self, target: str | int, gone: set[str]) -> None:
        whole = gbprewrite.convert(self.source(), "guided", target, score="logits")
        slim = gbprewrite.convert(self.source(), "guided", target, score="logits", maps_only=True)
        assert [o.name for o in slim.graph.output] == ["x_guided", "explained_index"]
        names = [{t.name for t in m.graph.initializer} for m in (whole, slim)]
        assert names[0] - names[1] >= gone
        x = normal(2, 1, 6, 6, seed=3)
        wanted = run(whole, x=x)
        for name, value in run(slim, x=x).items():
            np.testing.assert_array_equal(value, wanted[name])

    def test_verify_needs_the_source(self) -> None:
        slim = gbprewrite.convert(self.source(), score="logits", maps_only=True)
        with pytest.raises(UsageError, match="--source MODEL"):
            gbprewrite.verify(slim)
        found = gbprewrite.verify(slim, self.source())
        assert found.ok
        assert found.checks[-1].name == "x_guided without the rest"

    def test_other_maps_fail(self) -> None:
        slim = gbprewrite.convert(self.source(), score="logits", maps_only=True)
        (w,) = (t for t in slim.graph.initializer if t.name == "w")
        w.CopyFrom(onnx.numpy_helper.from_array(normal(2, 1, 3, 3, seed=9), "w"))
        assert not gbprewrite.verify(slim, self.source()).ok

    def test_source_is_gone(self) -> None:
        slim = gbprewrite.convert(self.source(), score="logits", maps_only=True)
        with pytest.raises(ModelError, match="holds only maps"):
            gbprewrite.convert(slim, replace=True)

    def test_inspect_and_explain(self) -> None:
        slim = gbprewrite.convert(self.source(), score="logits", maps_only=True)
        assert [row["node"] for row in gbprewrite.inspect(slim).nonlinearities] == ["Relu_1"]
        explanation = gbprewrite.Explainer(slim, providers="cpu")(normal(2, 1, 6, 6))
        assert explanation.outputs == {}
        assert explanation.map().shape == (2, 1, 6, 6)

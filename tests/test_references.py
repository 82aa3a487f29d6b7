"""A ModelProto whose weights lie in another file, as onnx.load(path, load_external_data=False) gives it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

import gbprewrite
from gbprewrite.errors import ModelError
from gbprewrite.model import file as modelfile
from tests.small import model, normal, run

TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 6] y) {
    a = Conv (x, w, b) r = Relu (a) f = Reshape (r, shape) y = MatMul (f, m) }"""
WEIGHTS = {"w": normal(8, 3, 3, 3), "b": normal(8), "shape": np.array([0, 288]), "m": normal(288, 6)}


def source(folder: Path, threshold: int) -> onnx.ModelProto:
    """A model in the folder, whose weights of at least `threshold` bytes lie in a file beside it; without them."""
    whole = model(TEXT, **WEIGHTS)
    onnx.save(
        whole, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=threshold,
        convert_attribute=False,
    )  # fmt: skip
    return onnx.load(folder / "m.onnx", load_external_data=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


def test_weights_stay_references(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = source(folder, 100)
    assert [t.name for t in modelfile.references(given)] == ["w", "m"]
    monkeypatch.chdir(folder.parent)  # where no file of that name is
    built = gbprewrite.convert(given, ("gradient", "guided"), "seed")
    assert {t.name for t in modelfile.references(built)} == {"w", "m"}
    modelfile.save(built, folder / "converted.onnx")
    feeds = {"x": normal(2, 3, 8, 8), "seed": normal(2, 6, seed=1)}
    session = ort.InferenceSession(str(folder / "converted.onnx"), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(None, feeds), strict=True))
    for name, value in run(gbprewrite.convert(model(TEXT, **WEIGHTS), ("gradient", "guided"), "seed"), **feeds).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_values_that_decide_are_asked_for(folder: Path) -> None:
    with pytest.raises(gbprewrite.ModelError, match=r"'shape' \(shape \[2\]\) is needed.*'m.data'.*onnx.load\(path\)"):
        gbprewrite.convert(source(folder, 0), "gradient", "seed")
    with pytest.raises(gbprewrite.ModelError, match="'shape'"):
        gbprewrite.inspect(source(folder, 0))
    assert gbprewrite.convert(folder / "m.onnx", "gradient", "seed").graph.output[1].name == "x_gradient"


@pytest.mark.parametrize("there", ["nothing", "a shorter file"])
def test_references_that_lead_nowhere_are_not_written(folder: Path, tmp_path: Path, there: str) -> None:
    built = gbprewrite.convert(source(folder, 100), "gradient", "seed")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if there == "a shorter file":
        (elsewhere / "m.data").write_bytes(bytes(10))
    with pytest.raises(gbprewrite.ModelError, match=r"'w' lies in the file 'm.data'.*elsewhere has no such file"):
        modelfile.save(built, elsewhere / "converted.onnx")
    assert not (elsewhere / "converted.onnx").exists()


def test_inspect_needs_no_weights(folder: Path) -> None:
    seen = gbprewrite.inspect(source(folder, 100))
    assert [n["kind"] for n in seen.nonlinearities] == ["Relu"]
    assert seen.parameters == sum(v.size for v in WEIGHTS.values())


class TestLargeModels:
    """The checker sees a large model without its large weights, but for those that are damaged."""

    def source(self) -> onnx.ModelProto:
        text = "g (float[N, 3, 8, 8] x) => (float[N, 64, 6, 6] y) { c = Conv (x, w) y = Relu (c) }"
        return model(text, w=normal(64, 3, 3, 3), unused=normal(80, 80))

    def test_same_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = gbprewrite.convert(self.source())
        monkeypatch.setattr(modelfile, "CHECKED_WHOLE", 0)
        seen = []
        monkeypatch.setattr(onnx.checker, "check_model", lambda m, **_: seen.append(m))
        assert gbprewrite.convert(self.source()) == whole
        assert "unused" in [i.name for i in seen[0].graph.input]

    def test_a_weight_that_lacks_data_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(modelfile, "CHECKED_WHOLE", 0)
        damaged = self.source()
        damaged.graph.initializer[1].raw_data = damaged.graph.initializer[1].raw_data[:-4]
        with pytest.raises(ModelError):
            gbprewrite.convert(damaged)

    def test_size_is_counted_without_serialising(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not modelfile.is_large(self.source())
        monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", 64 * 3 * 9 * 4 + 80 * 80 * 4)
        assert modelfile.is_large(self.source())

    def test_weights_beyond_a_message_of_their_own_are_digested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        small = self.source()
        monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", 100)
        monkeypatch.setattr(onnx.TensorProto, "SerializeToString", _short(onnx.TensorProto.SerializeToString))
        digests = [modelfile.sha256(small)]
        weight = small.graph.initializer[0]
        for change in ({"raw_data": weight.raw_data[:-1] + b"?"}, {"name": "other"}, {"dims": [*weight.dims, 1]}):
            changed = self.source()
            changed.graph.initializer[0].ClearField("dims" if "dims" in change else "doc_string")
            changed.graph.initializer[0].MergeFrom(onnx.TensorProto(**change))
            digests.append(modelfile.sha256(changed))
        assert len(set(digests)) == 4
        assert modelfile.sha256(self.source()) == digests[0]

    def test_four_bits_are_half_a_byte(self, monkeypatch: pytest.MonkeyPatch) -> None:
        packed = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [3000], [1] * 3000)
        small = self.source()
        small.graph.initializer.append(packed)
        monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", small.ByteSize() + 100)
        assert not modelfile.is_large(small)


def test_a_place_that_is_not_text(tmp_path: Path) -> None:
    reference = source(tmp_path, 100)
    (tmp_path / "bytes.onnx").write_bytes(reference.SerializeToString().replace(b"m.data", b"m.\xff\xfeta"))
    with pytest.raises(ModelError, match="name that is not text"):
        gbprewrite.convert(tmp_path / "bytes.onnx")


def _short(whole: Callable[..., bytes]) -> Callable[..., bytes]:
    """SerializeToString as it ends at 2 GiB, with a limit of 1,000 bytes."""

    def serialised(tensor: onnx.TensorProto, **options: bool) -> bytes:
        if tensor.ByteSize() > 1000:
            raise EncodeError("Failed to serialize proto")
        return whole(tensor, **options)

    return serialised

"""A damaged source is said to be damaged; gbprewrite takes the blame only where the source is sound."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

import gbprewrite
from gbprewrite.errors import ModelError
from gbprewrite.graft import nodes as graft
from gbprewrite.model import soundness
from tests.small import cnn, model, normal


def _weight(change: Callable[[TensorProto], object]) -> onnx.ModelProto:
    built = cnn()
    change(built.graph.initializer[0])  # [4, 3, 3, 3]
    return built


def _dims(dims: list[int]) -> onnx.ModelProto:
    return _weight(lambda t: (t.ClearField("dims"), t.dims.extend(dims)))


def _floats(count: int) -> onnx.ModelProto:
    return _weight(lambda t: (t.ClearField("raw_data"), t.float_data.extend([1.0] * count)))


def _constant() -> onnx.ModelProto:
    built = model("g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) y = Add (a, b) }")
    value = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[3], raw_data=b"\0" * 8)
    built.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value=value))
    return built


def _graph(change: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    built = cnn()
    change(built.graph)
    return built


DAMAGED = {
    "shape too large": (_dims([1 << 40, 2, 3, 3]), ["w1", "79,164,837,199,872 bytes", "holds 432"]),
    "shape too small": (_dims([4, 3, 3]), ["w1", "takes 144 bytes", "holds 432"]),
    "negative length": (_dims([4, -3, 3, 3]), ["w1", "negative length"]),
    "bytes missing": (_weight(lambda t: setattr(t, "raw_data", t.raw_data[:-3])), ["takes 432 bytes", "holds 429"]),
    "no data": (_weight(lambda t: t.ClearField("raw_data")), ["takes 108 values", "holds 0"]),
    "numbers missing": (_floats(107), ["takes 108 values", "holds 107"]),
    "unknown type": (_weight(lambda t: setattr(t, "data_type", 77)), ["type is number 77"]),
    "other type": (_weight(lambda t: setattr(t, "data_type", TensorProto.DOUBLE)), ["takes 864 bytes"]),
    "in a node": (_constant(), ["'b'", "takes 12 bytes", "holds 8"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("command", [gbprewrite.convert, gbprewrite.inspect, gbprewrite.layers])
def test_damaged_weights(name: str, command: Callable[[onnx.ModelProto], object]) -> None:
    damaged, words = DAMAGED[name]
    with pytest.raises(ModelError) as error:
        command(damaged)
    assert all(word in str(error.value) for word in ["damaged", "export or download", *words]), str(error.value)


@pytest.mark.parametrize("kind", [k for k in TensorProto.DataType.values() if k not in (0, TensorProto.STRING)])
def test_sound_weights_of_every_type(kind: int) -> None:
    names = [TensorProto.DataType.Name(kind)]
    try:
        typed = helper.make_tensor("w", kind, [3], [1, 0, 1])
    except (TypeError, ValueError, NotImplementedError):
        pytest.skip(f"onnx makes no {names[0]}")
    raw = numpy_helper.from_array(numpy_helper.to_array(typed), "v")
    built = model("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    built.graph.initializer.extend([typed, raw])
    soundness.check_weights(built)


INVALID = {
    "a value that nobody makes": (_graph(lambda g: g.node[1].input.__setitem__(0, "nobody")), "nobody"),
    "an operand too many": (_graph(lambda g: g.node[1].input.append("a")), "input"),
    "an output too many": (_graph(lambda g: g.node[0].output.append("z")), "output"),
    "a weight twice": (_graph(lambda g: g.initializer.append(g.initializer[0])), "w1"),
    "an input made by a node": (
        _graph(lambda g: g.node[0].output.__setitem__(0, "image")), "'image', which is an input"
    ),
    "an unknown attribute": (
        _graph(lambda g: g.node[1].attribute.append(helper.make_attribute("alpha", 1.0))), "alpha"
    ),
    "a type that is none": (_graph(lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 99)), ""),
    "an attribute twice": (_graph(lambda g: g.node[0].attribute.append(g.node[0].attribute[0])), ""),
    "weights for other channels": (
        model(
            """g (float[N, 4, 6, 6] x) => (float[M, 3, 6, 6] y) {
                a = Relu (x)
                b = Concat <axis = 0> (a, a)
                y = Conv (b, w)
            }""",
            w=normal(3, 8, 1, 1),
        ),
        "4 channels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
@pytest.mark.parametrize("engine", [True, False], ids=["with onnxruntime", "without"])
def test_invalid_sources_take_the_blame(name: str, engine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not engine:
        monkeypatch.setattr(soundness, "refused", lambda _model: None)
        monkeypatch.setattr(soundness, "is_runnable", lambda _model: False)
    source, word = INVALID[name]
    with pytest.raises(ModelError) as error:
        gbprewrite.convert(source)
    assert "defect of gbprewrite" not in str(error.value)
    assert word in str(error.value)


def test_a_sound_source_leaves_the_blame_with_us(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = cnn()
    broken.graph.node[0].op_type = "Relu"
    with pytest.raises(ModelError, match=r"The source does, .* defect of gbprewrite: please report"):
        graft.check(broken, cnn)

    def fail(*_: object) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(sys.modules["gbprewrite.convert"], "normalise", fail)
    with pytest.raises(ModelError, match=r"KeyError: 'inside'.* defect of gbprewrite: please report"):
        gbprewrite.convert(cnn())


@pytest.mark.parametrize(
    ("given", "body"),
    [
        ("float[4611686018427387904, 3, 4611686018427387904, 8] x", "m = Relu (x)"),
        ("float[1, 3, 8, 8] x", "m = MaxPool <kernel_shape = [2, 2], dilations = [1000000000, 1000000000]> (x)"),
    ],
)
def test_sizes_that_no_tensor_has_are_the_models(given: str, body: str) -> None:
    text = f"g ({given}) => (float[a, b] y) {{ {body} r = Relu (m) p = GlobalAveragePool (r) y = Flatten (p) }}"
    with pytest.raises(ModelError, match="beyond what can be computed with") as raised:
        gbprewrite.convert(model(text), "gradient", 1)
    assert "defect" not in str(raised.value)


def test_a_flaw_that_onnxruntime_overlooks_is_told() -> None:
    nameless = _graph(lambda g: g.ClearField("name"))
    assert "name" in (gbprewrite.graft.record.read_record(gbprewrite.convert(nameless)) or {})["flaw"]


def _apart(folder: Path, change: Callable[[TensorProto], object]) -> Path:
    """A model with a weight of 1600 bytes in another file, and 64 bytes that belong to nobody behind it."""
    built = model("g (float[N, 20] x) => (float[N, 20] y) { a = MatMul (x, w) y = Relu (a) }", w=normal(20, 20))
    convert_model_to_external_data(built, location="weights.bin")
    onnx.save(built, folder / "m.onnx")
    with open(folder / "weights.bin", "ab") as file:
        file.write(bytes(64))
    written = onnx.load(folder / "m.onnx", load_external_data=False)
    change(written.graph.initializer[0])
    (folder / "m.onnx").write_bytes(written.SerializeToString())
    return folder / "m.onnx"


def _entry(tensor: TensorProto, key: str, value: str | None) -> None:
    kept = [e for e in tensor.external_data if e.key != key]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    if value is not None:
        tensor.external_data.add(key=key, value=value)


def test_external_data_without_a_length(tmp_path: Path) -> None:
    path = _apart(tmp_path, lambda t: _entry(t, "length", None))
    held = gbprewrite.convert(path, "gradient", "seed").graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(held), normal(20, 20))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("length", "1599", ["1,599 bytes are there in place of 1,600"]),
        ("length", "1000000000000000000000", ["up to byte", "the file has 1,664"]),
        ("offset", "1000", ["up to byte 2,600", "the file has 1,664"]),
        ("offset", "-8", ["can't be read"]),
        ("length", "many", ["can't be read"]),
    ],
)
def test_external_data_that_the_file_does_not_hold(tmp_path: Path, key: str, value: str, words: list[str]) -> None:
    path = _apart(tmp_path, lambda t: _entry(t, key, value))
    with pytest.raises(ModelError) as error:
        gbprewrite.convert(path)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_weights_that_read_the_same_bytes_again_and_again(tmp_path: Path) -> None:
    path = _apart(tmp_path, lambda t: None)
    written = onnx.load(path, load_external_data=False)
    for i in range(11_000):
        written.graph.initializer.append(written.graph.initializer[0])
        written.graph.initializer[-1].name = f"copy{i}"
    path.write_bytes(written.SerializeToString())
    with pytest.raises(ModelError, match=r"claim 17,601,600 bytes of files that have 1,664"):
        gbprewrite.convert(path)


@pytest.mark.parametrize("version", [2**31, 2**62, 0, -1, -(2**62)])
def test_opsets_that_do_not_exist(version: int) -> None:
    built = cnn()
    built.opset_import[0].version = version
    with pytest.raises(ModelError, match=r"opsets? .*6 to"):
        gbprewrite.convert(built)


@pytest.mark.parametrize("name", [b"Gemm", b"logits", b"b3"])
def test_names_that_are_not_text(name: bytes) -> None:
    damaged = onnx.ModelProto.FromString(cnn().SerializeToString().replace(name, b"\xff" + name[1:]))
    with pytest.raises(ModelError, match="name that is not text"):
        gbprewrite.convert(damaged)


@pytest.mark.parametrize(
    ("sizes", "kernel", "words"),
    [
        ("N, 1, 8, 8", "3, 3", None),
        ("N, 1, 8, 8", "19, 3", "AveragePool"),
        ("N, 1, 8, H", "19, 3", None),  # nothing says which heights it takes
        (f"N, 1, 8, {2**40}", "3, 3", "its input x has the shape"),
    ],
)
def test_a_model_that_loads_and_does_not_run(sizes: str, kernel: str, words: str | None) -> None:
    text = f"g (float[{sizes}] x) => (float[N, 1, H, W] y) {{ y = AveragePool <kernel_shape = [{kernel}]> (x) }}"
    source = model(text.replace("[N, 1, H, W] y", "[a, b, c, d] y"))
    stopped = soundness.stopped(source)
    assert stopped is None if words is None else words in str(stopped)

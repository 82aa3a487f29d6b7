"""models/: the network that we trained, and what brings the public ones; without network and without PyTorch."""

import hashlib
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

import gbprewrite
from gbprewrite.errors import DataError, ModelError, OutputError, UsageError

MODELS = Path(__file__).parents[1] / "models"
SHARED = Path(__file__).parents[2] / "shared"
sys.path.insert(0, str(MODELS))  # a folder of scripts, as Python sees it when one of them runs

import crops  # noqa: E402
import efficientnet_lite0  # noqa: E402
import get  # noqa: E402
import torch_weights  # noqa: E402

METHODS = ("guided", "deconvnet", "gradient")
DIGITS = MODELS / "digits.onnx"


def samples() -> NDArray[np.float32]:
    """The committed digits 0 to 9, in this order: [10,1,28,28] in 0..1."""
    files = [MODELS / "samples" / f"digit_{digit}.png" for digit in range(10)]
    return np.stack([np.asarray(Image.open(f), np.float32)[None] / 255 for f in files])


def run(model: onnx.ModelProto, feed: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def in_float64(model: onnx.ModelProto) -> onnx.ModelProto:
    for i, tensor in enumerate(model.graph.initializer):
        model.graph.initializer[i].CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return model


def test_digits_is_a_valid_small_file() -> None:
    onnx.checker.check_model(onnx.load(DIGITS), full_check=True)
    assert DIGITS.stat().st_size < 300_000


def test_digits_reads_the_samples() -> None:
    """The ten that it reads right, and the one whose name says that it does not."""
    misread = np.asarray(Image.open(MODELS / "samples" / "misread_8_as_2.png"), np.float32)[None, None] / 255
    logits = run(onnx.load(DIGITS), {"image": np.concatenate([samples(), misread])})["logits"]
    assert logits.argmax(1).tolist() == [*range(10), 2]


def test_digits_converts_with_every_method() -> None:
    images = samples()
    results = run(gbprewrite.convert(DIGITS, METHODS), {"image": images})
    maps = [results[f"image_{method}"] for method in METHODS]
    assert results["explained_index"].tolist() == list(range(10))
    for i, one in enumerate(maps):
        assert one.shape == images.shape
        assert one.dtype == np.float32
        assert np.isfinite(one).all()
        assert all(np.linalg.norm(sample) > 0 for sample in one)
        assert all(not np.allclose(one, other) for other in maps[:i])


def test_digits_gradient_is_the_slope_of_the_logit() -> None:
    """Central differences in float64; noise takes the image off the ties that a black border makes in MaxPool."""
    source = in_float64(onnx.load(DIGITS))
    rng = np.random.default_rng(0)
    x = samples()[3:4].astype(np.float64) + 0.1 * rng.standard_normal((1, 1, 28, 28))
    converted = ReferenceEvaluator(gbprewrite.convert(source, "gradient"))
    gradient, index = converted.run(["image_gradient", "explained_index"], {"image": x})
    plain, step = ReferenceEvaluator(source), 1e-6
    for _ in range(5):
        v = rng.standard_normal(x.shape)
        ahead, behind = (plain.run(None, {"image": x + h * v})[0][0, index[0]] for h in (step, -step))
        slope = (ahead - behind) / (2 * step)
        assert np.sum(gradient * v) == pytest.approx(slope, rel=1e-7)


# --- PyTorch's file format, written by hand in pickle's own opcodes -------------------------------------------------


def integer(value: int) -> bytes:
    return f"I{value}\n".encode()


def string(value: str) -> bytes:
    return f"S'{value}'\n".encode()


def name(module: str, qualified: str) -> bytes:
    return f"c{module}\n{qualified}\n".encode()


def group(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def tensor(key: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...], kind: str = "FloatStorage") -> bytes:
    storage = group(string("storage"), name("torch", kind), string(key), string("cpu"), integer(size), b"N") + b"Q"
    views = (group(*map(integer, numbers)) for numbers in (shape, strides))
    return name("torch._utils", "_rebuild_tensor_v2") + group(storage, integer(0), *views, b"I00\n", b"N") + b"R"


def weight_file(tensors: dict[str, bytes], storages: dict[str, NDArray[np.generic]]) -> bytes:
    head = [pickle.dumps(value) for value in (torch_weights.MAGIC, torch_weights.PROTOCOL, {"little_endian": True})]
    state = b"(d" + b"".join(string(key) + value + b"s" for key, value in tensors.items()) + b"."
    numbers = [len(values).to_bytes(8, "little") + values.tobytes() for values in storages.values()]
    return b"".join([*head, state, pickle.dumps(list(storages)), *numbers])


SIX = np.arange(6, dtype=np.float32)


def test_weights_are_read(tmp_path: Path) -> None:
    tensors = {
        "matrix": tensor("0", 6, (2, 3), (3, 1)),
        "transposed": tensor("0", 6, (3, 2), (1, 3)),
        "counter": tensor("1", 1, (), (), "LongStorage"),
    }
    path = tmp_path / "weights.pth"
    path.write_bytes(weight_file(tensors, {"0": SIX, "1": np.array([7], np.int64)}))
    weights = torch_weights.read(path)
    np.testing.assert_array_equal(weights["matrix"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(weights["transposed"], [[0, 3], [1, 4], [2, 5]])
    assert weights["counter"] == 7
    assert [w.dtype for w in weights.values()] == [np.float32, np.float32, np.int64]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Ran out of input"),
        (b"PK\x03\x04 a zip, as PyTorch writes since 1.6", "can't be read as weights"),
        (pickle.dumps(5), "not of PyTorch's format"),
        (weight_file({"w": tensor("0", 6, (2, 3), (3, 1))}, {"0": SIX})[:-1], "ends too early"),
        (weight_file({"w": tensor("0", 6, (2, 3), (3, 1))}, {"0": SIX[:5]}), "ends too early"),
        (weight_file({"w": tensor("0", 6, (2, 3), (4, 1))}, {"0": SIX}), "beyond its storage"),
        (weight_file({"w": tensor("0", 6, (2, 3), (-3, 1))}, {"0": SIX}), "beyond its storage"),
        (weight_file({"w": name("builtins", "eval")}, {}), "names builtins.eval"),
        (weight_file({"w": name("torch._utils", "_rebuild_parameter")}, {}), "names torch._utils._rebuild_parameter"),
    ],
    ids=["empty", "zip", "number", "cut", "short", "stride", "negative", "eval", "parameter"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=why):
        torch_weights.read(path)


@pytest.mark.parametrize("place", ["first", "state"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, place: str) -> None:
    made, path = tmp_path / "made", tmp_path / "weights.pth"
    call = name("os", "mkdir") + group(string(str(made))) + b"R"
    path.write_bytes(call + b"." if place == "first" else weight_file({"w": call}, {}))
    with pytest.raises(ModelError, match=r"names os\.mkdir"):
        torch_weights.read(path)
    assert not made.exists()
    path.write_bytes(call + b".")
    pickle.loads(path.read_bytes())
    assert made.exists(), "the pickle is not malicious, so the test above proves nothing"


def test_weights_agree_with_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which writes the format, is in the extra 'proof'")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(5, 2))
    state = layers.state_dict() | {"view": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[1:]}
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    weights = torch_weights.read(path)
    assert list(weights) == list(state)
    for key, value in state.items():
        np.testing.assert_array_equal(weights[key], value.numpy())


# --- the graph of EfficientNet-Lite0 ---------------------------------------------------------------------------------


def layer_names() -> list[tuple[str, str]]:
    """(convolution, normalisation) in the order in which they run."""
    parts = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    blocks = [(f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}") for i in range(16) for conv, norm in parts[i == 0 :]]
    return [("_conv_stem", "_bn0"), *blocks, ("_conv_head", "_bn1")]


def test_efficientnet_is_the_network_that_pytorch_exported() -> None:
    """The exported file's folded convolutions, with a normalisation that only adds their bias, give its logits."""
    path = SHARED / "models" / "efficientnet_lite0.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there: the exported EfficientNet-Lite0 to compare with")
    exported = onnx.load(path)
    values = {t.name: numpy_helper.to_array(t) for t in exported.graph.initializer}
    weights = {key: values[key] for key in ("_fc.weight", "_fc.bias")}
    convolutions = [n for n in exported.graph.node if n.op_type == "Conv"]
    for (conv, norm), node in zip(layer_names(), convolutions, strict=True):
        kernel, bias = (values[name] for name in node.input[1:])
        ones = np.ones_like(bias)
        variance = ones * np.float32(1 - efficientnet_lite0.EPSILON)
        weights[f"{conv}.weight"] = kernel
        parameters = {"weight": ones, "bias": bias, "running_mean": 0 * ones, "running_var": variance}
        weights.update({f"{norm}.{key}": value for key, value in parameters.items()})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 224, 224)).astype(np.float32)
    ours = run(efficientnet_lite0.build(weights), {"image": images})["logits"]
    theirs = run(exported, {"image": images})["logits"]
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


# --- get.py ----------------------------------------------------------------------------------------------------------

GOOD = b"what was tested"


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The members of the wheel that `get.download` will give; the only source, `thing`, wants GOOD in `member`."""
    members = {"member": GOOD}

    def download(requirement: str, folder: Path) -> Path:
        assert requirement == "package==1"
        with zipfile.ZipFile(folder / "package-1-py3-none-any.whl", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)
        return folder / "package-1-py3-none-any.whl"

    file = get.File("package==1", "member", hashlib.sha256(GOOD).hexdigest(), "thing.bin")
    monkeypatch.setattr(get, "SOURCES", {"thing": get.Source("a thing", "", "none", (file,))})
    monkeypatch.setattr(get, "download", download)
    return members


def test_get_brings_the_file_once(wheel: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thing.bin").write_bytes(b"a broken copy")
    assert get.get("thing", tmp_path) == [tmp_path / "thing.bin"]
    monkeypatch.delattr(get, "download")
    assert get.get("thing", tmp_path) == [tmp_path / "thing.bin"]
    assert (tmp_path / "thing.bin").read_bytes() == GOOD
    assert list(tmp_path.iterdir()) == [tmp_path / "thing.bin"]


@pytest.mark.parametrize(
    ("members", "why"),
    [({"member": b"something else"}, "SHA-256"), ({"other": GOOD}, "no item named 'member'")],
    ids=["content", "name"],
)
def test_get_refuses_another_file(wheel: dict[str, bytes], tmp_path: Path, members: dict[str, bytes], why: str) -> None:
    wheel.clear()
    wheel.update(members)
    with pytest.raises(DataError, match=why):
        get.get("thing", tmp_path)
    assert not list(tmp_path.iterdir())


def test_get_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(DataError, match="could not download scikit-image"):
        get.get("photos", tmp_path)
    assert not list(tmp_path.iterdir())


def test_get_into_a_file(wheel: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "public").write_bytes(b"in the way")
    with pytest.raises(OutputError, match="public"):
        get.get("thing", tmp_path / "public")


def test_get_follows_no_link(wheel: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"of another")
    (tmp_path / "thing.bin").symlink_to("precious")
    with pytest.raises(OutputError, match=r"thing\.bin is a symbolic link, which is never replaced"):
        get.get("thing", tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"of another"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_pip_says_keeps_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = get.subprocess.CompletedProcess((), 1, stderr="no network\n\x1b[31mtry later")
    monkeypatch.setattr(get.subprocess, "run", lambda *_, **__: said)
    result = CliRunner().invoke(get.main, ["photos"])
    assert result.exit_code == 1
    assert result.stderr.endswith("pip says:\n  no network\n  \\x1b[31mtry later\n")


def test_crops(tmp_path: Path) -> None:
    """As many as they say, of all pixels; a photograph is never overwritten by one."""
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    done = CliRunner().invoke(crops.main, [str(tmp_path / "out"), str(tmp_path / "a.png")])
    assert (done.exit_code, done.output) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) == 25 + 4
    with Image.open(tmp_path / "out" / "a_2_01.png") as right:
        np.testing.assert_array_equal(right, pixels[:50, 50:])
    (tmp_path / "a.png").rename(tmp_path / "out" / "a_2_03.png")
    (tmp_path / "out" / "a.png").symlink_to("a_2_03.png")
    done = CliRunner().invoke(crops.main, [str(tmp_path / "out"), str(tmp_path / "out" / "a.png")])
    assert (done.exit_code, "would be overwritten" in done.stderr) == (2, True)
    with Image.open(tmp_path / "out" / "a_2_03.png") as kept:
        np.testing.assert_array_equal(kept, pixels)


def test_get_lists_and_refuses_names() -> None:
    listing = CliRunner().invoke(get.main, [])
    assert listing.exit_code == 0
    assert all(source.text in listing.output for source in get.SOURCES.values())
    with pytest.raises(UsageError, match="no such model"):
        get.get("nothing")
    assert CliRunner().invoke(get.main, ["nothing"]).exit_code == UsageError.exit_status

"""What can be named inside a model: the list of layers, in order, and the names that are taken."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from tests.small import cnn, model, normal, run

Cli = Callable[..., Result]


def names(*args: object, **options: object) -> list[str]:
    return [layer.name for layer in gbprewrite.layers(*args, **options)]


def test_one_row_for_each_stage_in_order() -> None:
    assert gbprewrite.layers(cnn()) == [
        ("b", "Relu", "Relu_1", ("N", 4, 12, 12)),
        ("c", "MaxPool", "MaxPool_2", ("N", 4, 6, 6)),
        ("e", "Relu", "Relu_4", ("N", 6, 3, 3)),
        ("f", "GlobalAveragePool", "GlobalAveragePool_5", ("N", 6, 1, 1)),
        ("logits", "Gemm", "Gemm_7", ("N", 5)),
        ("probabilities", "Softmax", "Softmax_8", ("N", 5)),
    ]


def test_every_tensor() -> None:
    assert names(cnn(), every=True) == ["a", "b", "c", "d", "e", "f", "g", "logits", "probabilities"]


def test_the_way_to_one_score() -> None:
    assert names(cnn(), "c") == names(cnn(), "MaxPool_2") == ["b", "c"]


STAGES = {
    "a normalisation": ("c = Conv (x, w) b = BatchNormalization (c, s, s, s, s) y = Relu (b)", ["y"]),
    "a bias of its own": ("c = Conv (x, w) b = Add (c, scalar) y = Relu (b)", ["y"]),
    "no activation": ("c = Conv (x, w) y = BatchNormalization (c, s, s, s, s)", ["y"]),
    "a sum is a stage": ("c = Conv (x, w) d = Conv (x, w) y = Add (c, d)", ["c", "d", "y"]),
    "moves": ("t = Transpose <perm = [0, 1, 3, 2]> (x) r = Relu (t) i = Identity (r) y = Flatten (i)", ["r"]),
    "an activation behind a move": ("c = Conv (x, w) i = Identity (c) y = Sigmoid (i)", ["y"]),
    "read twice": ("c = Conv (x, w) r = Relu (c) y = Add (c, r)", ["c", "r", "y"]),
    "an idiom is one node": ("c = Conv (x, w) s1 = Sigmoid (c) m = Mul (c, s1) y = Relu (m)", ["y"]),
    "beside the way": ("r = Relu (x) q = Neg (x) y = MaxPool <kernel_shape = [2, 2]> (r)", ["r", "y"]),
    "no axis of channels": ("r = Relu (x) y = ReduceSum <keepdims = 0> (r)", ["r"]),
    "quantised and back": (
        "r = Relu (x) q = QuantizeLinear (r, scalar, zero) d = DequantizeLinear (q, scalar, zero) y = Conv (d, w)",
        ["d", "y"],
    ),
}  # fmt: skip
WEIGHTS = {
    "w": normal(3, 3, 3, 3), "s": np.ones(3, np.float32), "scalar": np.float32(1), "zero": np.array(0, np.int8)
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_what_is_a_stage(name: str) -> None:
    body, expected = STAGES[name]
    weights = {n: v for n, v in WEIGHTS.items() if re.search(rf"\b{n}\b", body)}
    assert names(model(f"g (float[N, 3, 8, 8] x) => (float[] y) {{ {body} }}", 13, **weights)) == expected


def test_dimensions_without_a_name() -> None:
    text = "g (float[N, 3, H, W] x) => (float[] y) { y = Conv <strides = [2, 2]> (x, w) }"
    (layer,) = gbprewrite.layers(model(text, w=normal(2, 3, 3, 3)))
    assert layer.shape == ("N", 2, "?", "?")


def test_a_converted_model_has_its_source_s_layers() -> None:
    assert gbprewrite.layers(gbprewrite.convert(cnn())) == gbprewrite.layers(cnn())


@pytest.mark.parametrize("layer", gbprewrite.layers(cnn(), every=True), ids=lambda layer: layer.name)
def test_every_layer_can_be_explained_by_either_name(layer: gbprewrite.Layer) -> None:
    by_tensor, by_node = (gbprewrite.convert(cnn(), "gradient", 0, score=n) for n in (layer.name, layer.node))
    assert by_tensor.graph == by_node.graph


UNKNOWN = {
    "logit": "Did you mean logits",
    "Relu_9": "Did you mean Relu_[14] or Relu_[14]",
    "POOL": "Did you mean MaxPool_2 or GlobalAveragePool_5",
    "xyz": r"the model has no such tensor or node\. Its outputs are: probabilities; 'gbprewrite layers MODEL'",
    "w1": "this is an input or a weight",
    "image": "this is an input or a weight",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_layer_names_what_comes_close(name: str) -> None:
    with pytest.raises(gbprewrite.UsageError, match=UNKNOWN[name]):
        gbprewrite.layers(cnn(), name)


class TestCommand:
    def test_table(self, cnn_path: Path, cli: Cli) -> None:
        lines = cli("layers", cnn_path).output.splitlines()
        assert lines[1].split() == ["layer", "operator", "shape", "node"]
        assert lines[3] == "b              Relu               [N, 4, 12, 12]  Relu_1"
        assert len(lines) == 3 + 6
        assert len(cli("layers", cnn_path, "--all").output.splitlines()) == 3 + 9

    def test_long_names_stay_whole(self, tmp_path: Path, cli: Cli) -> None:
        name = "/features/" + "a_long_name/" * 12
        built = model("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
        built.graph.node[0].output[0] = built.graph.output[0].name = name
        onnx.save(built, tmp_path / "m.onnx")
        assert name in cli("layers", tmp_path / "m.onnx").output

    def test_json(self, cnn_path: Path, cli: Cli) -> None:
        found = json.loads(cli("layers", cnn_path, "--score", "c", "--json").output)
        assert found["layers"][1] == {"name": "c", "operator": "MaxPool", "node": "MaxPool_2", "shape": ["N", 4, 6, 6]}

    def test_unknown_score(self, cnn_path: Path, cli: Cli) -> None:
        result = cli("layers", cnn_path, "--score", "logit")
        assert (result.exit_code, "Did you mean logits" in result.stderr) == (2, True)


OPTIONS = {
    "the strongest unit": (["--layer", "e"], "strongest", "e"),
    "of a channel": (["--layer", "Relu_4", "--channel", 2], "channel:2", "e"),
    "at a position": (["--layer", "c", "--unit", "3,0,5"], "unit:3,0,5", "c"),
    "a class": (["--layer", "logits", "--target", "1"], "1", "logits"),
    "without a layer": (["--channel", 4], "channel:4", "logits"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_name_a_unit(name: str, cnn_path: Path, cli: Cli) -> None:
    options, target, score = OPTIONS[name]
    found = json.loads(cli("convert", cnn_path, *options, "--json").output)
    assert (found["target"], found["score"]) == (target, score)


def test_explain_gives_the_unit(cnn_path: Path, tmp_path: Path, cli: Cli) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    result = cli(
        "explain", cnn_path, tmp_path / "photo.png", "--layer", "e", "--channel", 2, "--preset", "unit", "--json"
    )
    (image,) = json.loads(result.output)["images"]
    source = cnn()
    source.graph.output.append(onnx.ValueInfoProto(name="e"))
    channel = run(source, image=pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)["e"][0, 2]
    assert image["explained"][0]["index"] == [2, *np.unravel_index(channel.argmax(), channel.shape)]
    assert Path(image["picture"]).exists()


WRONG = {
    "channel": (["--layer", "b", "--channel", 4], "'b' has 4 channels (axis 1 of [N, 4, 12, 12]), so indices"),
    "no channel": (["--layer", "b", "--channel", -1], "-1 is not in the range"),
    "layer": (["--layer", "Rleu_1"], "Did you mean Relu_1"),
    "two targets": (["--channel", 1, "--unit", "1,2,3"], "--channel and --unit each say what is explained"),
    "target and channel": (["--channel", 1, "--target", "3"], "--target and --channel each say what is explained"),
    "unit": (["--layer", "b", "--unit", "1,12,0"], "axis 2 of the score 'b' has 12 positions"),
    "no unit": (["--layer", "b", "--unit", ""], "'unit:' is not understood"),
    "score": (["--layer", "b", "--score", "e"], "--layer b and --score e both name what is explained"),
    "nothing": (["--layer", ""], "--layer was given an empty text"),
}  # fmt: skip


@pytest.mark.parametrize("command", ["convert", "explain"])
@pytest.mark.parametrize("name", WRONG)
def test_one_clear_error(name: str, command: str, cnn_path: Path, tmp_path: Path, cli: Cli) -> None:
    options, message = WRONG[name]
    Image.new("RGB", (12, 12)).save(tmp_path / "photo.png")
    photos = [tmp_path / "photo.png"] if command == "explain" else []
    before = sorted(tmp_path.iterdir())
    result = cli(command, cnn_path, *photos, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before

"""Photographs explained, with a network whose maps are known by hand, and the command around it."""

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import gbprewrite
from gbprewrite import cli
from gbprewrite.errors import DataError, GbprewriteError, UsageError
from gbprewrite.photos import labels
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures import explain, layout

SHARED = Path(__file__).parents[2] / "shared"
UNIT = Options(preset="unit")
SIZE = 8
RED, GREEN, BLUE = range(3)
PIXELS = np.zeros((SIZE, SIZE, 3), np.uint8)
PIXELS[:, :5, RED] = 255  # five columns of red, three of blue
PIXELS[:, 5:, BLUE] = 255
SCORES = np.array([5, 0, 3]) / SIZE  # mean of each colour


def network(head: str | None = None, layout: str = "nchw", batch: int | str = "N", extra_input: bool = False):
    """score[c] = mean over the pixels of max(channel c, 0), through an optional head."""
    shape = {"nchw": [batch, 3, SIZE, SIZE], "nhwc": [batch, SIZE, SIZE, 3]}[layout]
    nodes, last = [], "x"
    if layout == "nhwc":
        nodes.append(helper.make_node("Transpose", [last], ["planes"], perm=[0, 3, 1, 2]))
        last = "planes"
    nodes += [
        helper.make_node("Conv", [last, "w"], ["channels"]),
        helper.make_node("Relu", ["channels"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["y" if head is None else "scores"]),
    ]
    if head is not None:
        nodes.append(helper.make_node(head, ["scores"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if extra_input:
        nodes[-1].output[0] = "before"
        nodes.append(helper.make_node("Add", ["before", "z"], ["y"]))
        inputs.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, 3]))
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "w")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 3])]
    graph = helper.make_graph(nodes, "colours", inputs, outputs, [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def model(tmp_path) -> Path:
    onnx.save(network("Softmax"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


@pytest.mark.parametrize(
    ("head", "meaning", "values"),
    [
        (None, "score", SCORES),
        ("Tanh", "score", np.tanh(SCORES)),
        ("Softmax", "probability", softmax(SCORES)),
        ("LogSoftmax", "log-probability", np.log(softmax(SCORES))),
        ("Sigmoid", "probability", 1 / (1 + np.exp(-SCORES))),
    ],
)
def test_classes_come_with_what_their_values_are(photo, head, meaning, values):
    found = explain.PhotoExplainer(network(head), preprocessing=UNIT, labels={0: "red", 2: "blue"})(photo)
    assert [(one.index, one.label, one.meaning) for one in found.top] == [
        ((RED,), "red", meaning),
        ((BLUE,), "blue", meaning),
        ((GREEN,), None, meaning),
    ]
    np.testing.assert_allclose([one.value for one in found.top], values[[RED, BLUE, GREEN]], rtol=1e-6)
    assert found.explained == found.top[:1]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_maps_have_red_first_whatever_the_network_is_fed(photo, layout, bgr, batch):
    options = Options(preset="unit", bgr=bgr)
    explainer = explain.PhotoExplainer(network(None, layout, batch), ["guided", "gradient"], preprocessing=options)
    found = explainer(photo)
    seen = np.zeros((SIZE, SIZE, 3))
    seen[:, :5, RED] = 1 / SIZE**2  # the red pixels, and only their red: elsewhere the ReLU is closed
    assert found.explained[0].index == ((2,) if bgr else (0,))
    for method in ("guided", "gradient"):
        np.testing.assert_allclose(found.maps[0][method], seen, rtol=1e-6)
    np.testing.assert_array_equal(found.photo, PIXELS)


@pytest.mark.parametrize(
    ("target", "classes"),
    [(None, [0]), ("2", [2]), (1, [1]), ("2,0", [2, 0]), ("topk:2", [0, 2]), ("topk:3", [0, 2, 1])],
)
def test_each_class_explained_has_its_maps(photo, target, classes):
    found = explain.PhotoExplainer(network(), "guided", target, preprocessing=UNIT)(photo)
    assert [one.index for one in found.explained] == [(c,) for c in classes]
    for c, maps in zip(classes, found.maps, strict=True):
        np.testing.assert_allclose(maps["guided"], (PIXELS / 255 / SIZE**2) * np.eye(3)[c], rtol=1e-6)


def spatial(head: str | None = None):
    """The channels after the ReLU as they are: a score for each position."""
    graph = network().graph
    nodes = list(graph.node)[:2]
    nodes[-1].output[0] = "y" if head is None else "before"
    if head is not None:
        nodes.append(helper.make_node(head, ["before"], ["y"], axis=1))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])]
    made = helper.make_graph(nodes, "places", graph.input, outputs, graph.initializer)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("head", "meaning"), [(None, "score"), ("Softmax", "probability")])
def test_scores_with_positions_are_summed_and_say_so(photo, head, meaning):
    found = explain.PhotoExplainer(spatial(head), preprocessing=UNIT)(photo)
    assert [one.index for one in found.top] == [(RED,), (BLUE,), (GREEN,)]
    assert {one.meaning for one in found.top} == {f"{meaning} summed over the positions"}
    chances = softmax(np.array([1, 0, 0])) * 64
    expected = [40, 24, 0] if head is None else [40 / 64 * chances[0] + 24 / 64 * chances[1],
                                                 24 / 64 * chances[0] + 40 / 64 * chances[1], chances[1]]  # fmt: skip
    np.testing.assert_allclose([one.value for one in found.top], expected, rtol=1e-6)


def test_of_regions_the_list_has_their_sizes(photo):
    """40 of the 64 pixels are red, 24 blue."""
    found = explain.PhotoExplainer(spatial(), "gradient", "region", preprocessing=UNIT)(photo)
    assert [(one.index, one.value) for one in found.top] == [((RED,), 40 / 64), ((BLUE,), 24 / 64), ((GREEN,), 0)]
    assert {one.meaning for one in found.top} == {"share of the positions"}
    assert found.explained == [found.top[0]]
    np.testing.assert_array_equal(found.maps[0]["gradient"], PIXELS / 255 * np.eye(3)[RED])
    with pytest.raises(DataError, match="no position says the class of target region:1"):
        explain.PhotoExplainer(spatial(), "gradient", "region:1", preprocessing=UNIT)(photo)


def test_a_unit_has_its_own_value_and_map(photo):
    found = explain.PhotoExplainer(spatial(), "guided", "unit:2,1,6", preprocessing=UNIT)(photo)
    (one,) = found.explained
    assert (one.index, one.label, one.value, one.meaning) == ((BLUE, 1, 6), None, 1.0, "score")
    expected = np.zeros((SIZE, SIZE, 3))
    expected[1, 6, BLUE] = 1
    np.testing.assert_array_equal(found.maps[0]["guided"], expected)


def test_of_an_inner_tensor_no_classes_are_listed(photo):
    found = explain.PhotoExplainer(network("Softmax"), score="scores", preprocessing=UNIT)(photo)
    assert (found.top, found.explained[0].index, found.explained[0].value) == ([], (RED,), None)


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (network(), {"target": "input"}, UsageError, "needs a value at run time"),
        (network(), {"target": "seed"}, UsageError, "needs a value at run time"),
        (network(extra_input=True), {}, UsageError, "2 inputs.*gbprewrite run"),
        (network(), {"preprocessing": Options(size=(9, 9))}, UsageError, "only takes 8x8"),
        (network(), {"providers": "tpu"}, UsageError, "tpu"),
    ],
)
def test_what_can_not_be_explained_is_said_at_once(model, options, error, words):
    with pytest.raises(error, match=words):
        explain.PhotoExplainer(model, **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["red", "green"]', {0: "red", 1: "green"}),
        ('{"1": "green", "7": "grey"}', {1: "green", 7: "grey"}),
        ('{"0": ["n01", "red"], "1": ["n02", "green"]}', {0: "red", 1: "green"}),
        ("red\ngreen, dark\n\n", {0: "red", 1: "green, dark"}),
        ("\ufeffrot\r\ngrün\r\n", {0: "rot", 1: "grün"}),
    ],
)
def test_labels_are_read(tmp_path, text, expected):
    (tmp_path / "labels").write_bytes(text.encode())
    assert labels.read(tmp_path / "labels") == expected


@pytest.mark.parametrize("data", [b'["red"', b'{"red": 0}', b"[1, 2]", b"[[]]", b"\xff\xfe\x00", None])
def test_other_files_hold_no_labels(tmp_path, data):
    if data is not None:
        (tmp_path / "labels").write_bytes(data)
    with pytest.raises(DataError, match="--labels"):
        labels.read(tmp_path / "labels")


@pytest.mark.parametrize("text", ['["a", "b"]', "a\nb\nc\nd", ""])
def test_a_list_of_another_length_than_the_classes_is_refused(tmp_path, photo, text):
    (tmp_path / "labels").write_text(text)
    explainer = explain.PhotoExplainer(network(), preprocessing=UNIT, labels=labels.read(tmp_path / "labels"))
    with pytest.raises(UsageError, match="3 classes"):
        explainer(photo)


def run(*arguments: object):
    return CliRunner().invoke(cli.main, ["explain", *map(str, arguments)])


def picture(path: Path) -> np.ndarray:
    image = Image.open(io.BytesIO(path.read_bytes()))
    assert image.format == "PNG"
    return np.asarray(image)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_command_writes_a_picture_and_lists_the_classes(model, photo, tmp_path):
    result = run(model, photo, "--provider", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert names(tmp_path) == {"model.onnx", "photo.png", "photo.guided.png"}
    assert picture(tmp_path / "photo.guided.png").shape[1:] == (3 * 16 + 2 * 320, 3)
    for words in ("cpu", "8x8 NCHW RGB", "preset imagenet assumed", "class 0  <- explained", "photo.guided.png", "0.5"):
        assert words in result.stdout


def test_the_picture_shows_the_photo_and_the_map(model, photo, tmp_path):
    assert run(model, photo, "--preset", "unit").exit_code == 0
    measures = layout.PICTURE
    below = measures.margin + measures.bar + round(layout.LINE * measures.title)  # margin and scale
    pixels = picture(tmp_path / "photo.guided.png")[-320 - below : -below]
    np.testing.assert_array_equal(pixels[:, 16:336], PIXELS.repeat(40, 0).repeat(40, 1))
    guided = pixels[:, -336:-16]
    assert (guided[:, :200] == [255, 128, 128]).all()  # red lies above grey, and nothing else matters
    assert (guided[:, 200:] == 128).all()


@pytest.mark.parametrize(
    ("options", "name", "panels"),
    [
        (["--method", "gradient"], "photo.gradient.png", 2),
        (["--method", "guided", "--method", "deconvnet"], "photo.guided+deconvnet.png", 3),
        (["--target", "topk:2"], "photo.guided.png", 2),
    ],
)
def test_pictures_are_named_after_the_methods_and_are_deterministic(model, photo, tmp_path, options, name, panels):
    assert run(model, photo, "-o", tmp_path / "a", *options).exit_code == 0
    assert run(model, photo, "-o", tmp_path / "b", *options, "--quiet").stdout == ""
    assert names(tmp_path / "a") == {name}
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert picture(tmp_path / "a" / name).shape[1] == 16 + panels * 336


def test_a_converted_file_is_explained_as_it_is(model, photo, tmp_path):
    onnx.save(gbprewrite.convert(model, ["gradient", "guided"], "2"), tmp_path / "converted.onnx")
    result = run(tmp_path / "converted.onnx", photo, "--preset", "unit")
    assert result.exit_code == 0, result.stderr
    assert "class 2  <- explained" in result.stdout
    assert (tmp_path / "photo.gradient+guided.png").exists()
    assert run(tmp_path / "converted.onnx", photo, "--target", "1").exit_code == 2


def test_a_bad_image_is_reported_and_the_rest_goes_on(model, photo, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    Image.fromarray(PIXELS).save(tmp_path / "second.png")
    paths = [tmp_path / name for name in ("broken.jpg", "photo.png", "gone.png", "second.png")]
    result = run(model, *paths, "-o", tmp_path / "o")
    assert result.exit_code == 1
    assert names(tmp_path / "o") == {"photo.guided.png", "second.guided.png"}
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert "broken.jpg is no image" in errors[0]
    assert "gone.png can't be read" in errors[1]


def test_json_is_one_object(model, photo, tmp_path):
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue")
    result = run(model, photo, tmp_path / "gone.png", "--json", "--preset", "unit", "--labels", tmp_path / "labels.txt")
    facts = json.loads(result.stdout)
    assert result.exit_code == 1
    assert facts["preprocessing"]["guesses"] == []
    good, bad = facts["images"]
    assert good["explained"][0]["index"] == [0]
    assert [one["label"] for one in good["top"]] == ["red", "blue", "green"]
    assert good["top"][0]["value"] == pytest.approx(softmax(SCORES)[0], rel=1e-6)
    assert "gone.png" in bad["error"]


def test_an_existing_picture_needs_force(model, photo, tmp_path):
    (tmp_path / "photo.guided.png").write_text("mine")
    result = run(model, photo)
    assert (result.exit_code, (tmp_path / "photo.guided.png").read_text()) == (1, "mine")
    assert "--force" in result.stderr
    assert run(model, photo, "--force").exit_code == 0
    assert picture(tmp_path / "photo.guided.png").size


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["MODEL"], 2, "IMAGE"),
        (["PHOTO", "PHOTO"], 1, "is not an ONNX model"),
        (["MODEL", "PHOTO", "PHOTO"], 2, "several images would give"),
        (["MODEL", "PHOTO", "EARLIER", "--force"], 2, "photo.guided.png would be overwritten"),
        (["MODEL", "PHOTO", "-o", "MODEL"], 1, "this is a file"),
        (["MODEL", "MODEL"], 1, "is no image"),
        (["MODEL", "PHOTO", "--labels", "missing"], 1, "--labels missing can't be read"),
        (["MODEL", "PHOTO", "--labels", "LABELS"], 2, "lists 2 labels, and the model has 3 classes"),
        (["MODEL", "PHOTO", "--mean", "a"], 2, "--mean 'a'"),
        (["MODEL", "PHOTO", "--scale", "1,2"], 2, "--scale '1,2'"),
        (["MODEL", "PHOTO", "--size", "big"], 2, "--size 'big'"),
        (["MODEL", "PHOTO", "--size", "9"], 2, "only takes 8x8"),
        (["MODEL", "PHOTO", "--target", "3"], 2, "--target 3"),
        (["MODEL", "PHOTO", "--layout", "nhwc"], 1, "takes 8 channels"),
        (["MODEL", "WIDE", "--resize", "none"], 1, "wide.png: the image is 8x9"),
    ],
)
def test_wrong_calls_write_nothing(model, photo, tmp_path, arguments, status, words):
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "wide.png")
    (tmp_path / "labels.txt").write_text("red\ngreen")
    before = names(tmp_path)
    paths = {"MODEL": model, "PHOTO": photo, "WIDE": tmp_path / "wide.png", "LABELS": tmp_path / "labels.txt"}
    paths["EARLIER"] = tmp_path / "photo.guided.png"
    result = run(*(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == status
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert names(tmp_path) == before


def test_a_map_that_is_not_finite_names_the_image(tmp_path, photo):
    explained = explain.PhotoExplainer(network(), preprocessing=UNIT)(photo)
    explained.maps[0]["guided"][0, 0, 0] = np.nan
    with pytest.raises(GbprewriteError, match=r"photo\.png: .*not finite"):
        explain.picture(explained)


@pytest.mark.parametrize(
    ("name", "index", "label", "value"), [("coffee", 967, "espresso", 0.94), ("chelsea", 285, "Egyptian", 0.39)]
)
def test_squeezenet_knows_the_photographs(name, index, label, value):
    if not SHARED.is_dir():
        pytest.skip("shared/ (real networks and photographs) is not here")
    explainer = explain.PhotoExplainer(
        SHARED / "models" / "squeezenet11.onnx",
        preprocessing=Options(preset="caffe"),
        labels=labels.read(SHARED / "models" / "imagenet_labels.json"),
    )
    top = explainer(SHARED / "photos" / f"{name}.png").top[0]
    assert (top.index, top.meaning) == ((index,), "probability")
    assert top.label.startswith(label)
    assert top.value == pytest.approx(value, abs=0.01)

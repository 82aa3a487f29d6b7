"""What `explain` says and draws of a detector's units: class, anchor and box, as numpy computes them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from gbprewrite.cli import main
from gbprewrite.errors import UsageError
from gbprewrite.photos.labels import Names
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures import boxes
from gbprewrite.pictures.explain import PhotoExplainer, rows
from tests.detectors import DECODED, separate, yolov5, yolov8, yolov10, yolox
from tests.small import run

PIXELS = np.random.default_rng(5).integers(0, 256, (4, 4, 3), np.uint8)
X = (PIXELS.transpose(2, 0, 1)[None] / 255).astype(np.float32)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("boxes") / "photo.png"
    Image.fromarray(PIXELS).save(path)
    return path


def explainer(source: onnx.ModelProto, target: str, **options: Any) -> PhotoExplainer:
    told = Options(preset="unit")
    return PhotoExplainer(source, "gradient", target, preprocessing=told, providers="cpu", **options)


def centre_and_size(v: Any) -> list[float]:
    return [v[0] - v[2] / 2, v[1] - v[3] / 2, v[0] + v[2] / 2, v[1] + v[3] / 2]


# name → the head, the channels of its class scores, whether its boxes are centre and size, and its classes' axis
HEADS = {
    "yolov8": (yolov8, slice(4, 10), True, 1),
    "yolov10": (yolov10, slice(4, 10), False, 2),
    "yolov5": (yolov5, slice(5, 8), True, 2),
    "yolox": (lambda: yolox(True), slice(5, 8), True, 2),
}


@pytest.mark.parametrize("name", HEADS)
def test_class_anchor_and_box(name: str, photo: Path) -> None:
    build, scored, is_centre, axis = HEADS[name]
    y = np.moveaxis(run(build(), x=X)["y"][0], axis - 1, 1).astype(np.float64)  # [anchors, channels]
    names = Names(enumerate("abcdef"[: scored.stop - scored.start]))
    made = explainer(build(), "strongest:2", channels=scored, labels=names)(photo)
    best = np.argsort(-y[:, scored].max(axis=1), kind="stable")
    for one, anchor in zip(made.explained, best[:2], strict=True):
        number = int(y[anchor, scored].argmax())
        corners = centre_and_size(y[anchor]) if is_centre else list(y[anchor, :4])
        assert one.detection is not None
        assert (one.detection.role, one.detection.number, one.detection.anchor) == ("scores", number, (anchor,))
        assert one.detection.box is not None
        np.testing.assert_allclose(one.detection.box[:4], corners, rtol=1e-5)
        assert one.detection.box.read_as.startswith("centre and size" if is_centre else "corners")
        assert one.value == pytest.approx(y[anchor, scored].max())
        left, top = map(round, corners[:2])
        assert one.title().startswith(f"{'abcdef'[number]} (class {number}), anchor {anchor}, box {left},{top} to")
        assert "probability" in one.title()
    assert [one.detection.anchor for one in made.top if one.detection] == [(a,) for a in best[:5]]
    assert len(rows(made)) == 2


def test_boxes_of_an_output_of_their_own_as_shares_of_the_image(photo: Path) -> None:
    source = separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Softmax <axis = 2> (kt)", DECODED)
    for weights in source.graph.initializer:
        if weights.name in ("grid", "wbc"):  # so that the boxes lie within 0 and 1
            weights.CopyFrom(onnx.numpy_helper.from_array(0.05 * onnx.numpy_helper.to_array(weights), weights.name))
    given = run(source, x=X)
    made = explainer(source, "strongest", score="score")(photo)
    (one,) = made.explained
    assert one.detection is not None
    assert one.detection.box is not None
    (anchor,) = one.detection.anchor
    np.testing.assert_allclose(one.detection.box[:4], given["box"][0, anchor] * 4, rtol=1e-5)
    assert "shares of the image" in one.detection.box.read_as


def test_raw_offsets_are_not_drawn_and_this_is_said(photo: Path) -> None:
    source = separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Sigmoid (kt)", "box = Identity (bt)")
    (one,) = explainer(source, "strongest", score="score")(photo).explained
    assert one.detection is not None
    assert one.detection.box is None
    assert "neither corners nor centre and size" in one.detection.why_not


def test_a_coordinate_has_no_class(photo: Path) -> None:
    (one,) = explainer(yolov8(), "unit:2,7", labels=Names(enumerate("abcdef")))(photo).explained
    assert one.title().startswith("boxes, anchor 7, box")
    assert one.label is None


def test_labels_of_another_number_than_the_classes(photo: Path) -> None:
    with pytest.raises(UsageError, match="lists 10 labels, and the model has 6 classes"):
        explainer(yolov8(), "strongest", channels="4:", labels=Names(enumerate("abcdefghij")))(photo)


def test_json_html_and_text(photo: Path, tmp_path: Path) -> None:
    onnx.save(yolov8(), tmp_path / "net.onnx")
    command = ["explain", str(tmp_path / "net.onnx"), str(photo), "--method", "gradient", "--preset", "unit", "--force"]
    command += ["--target", "strongest", "--channels", "4:", "-o", str(tmp_path), "--html", str(tmp_path / "r.html")]
    said = CliRunner().invoke(main, command)
    assert said.exit_code == 0, said.output
    facts = json.loads(CliRunner().invoke(main, [*command, "--json"]).output)
    (one,) = facts["images"][0]["explained"]
    number, (anchor,) = one["detection"]["number"], one["detection"]["anchor"]
    assert set(one["detection"]["box"]) == {"left", "top", "right", "bottom", "read_as"}
    for text in (said.output, (tmp_path / "r.html").read_text(encoding="utf-8")):
        assert f"class {number}, anchor {anchor}, box " in text
    assert "boxes are read as centre and size by their arithmetic, pixels" in said.output


@pytest.mark.parametrize(
    ("made", "selected", "corners"),
    [
        ([[i, 0, i + 2, 3] for i in range(20)], False, "xyxy"),
        ([[i, 9, 2, 3] for i in range(20)], False, "xywh"),
        ([[i, 9, 2, -3] for i in range(20)], False, None),
        ([[0, 0, 2, 3]], False, None),
        ([[0, 0, 2, 3]], True, "xyxy"),
        ([[9, 9, 2, 3]], True, None),
    ],
)
def test_what_four_numbers_are(made: list[list[float]], selected: bool, corners: str | None) -> None:
    assert boxes.corners_of(np.array(made, float), selected) == corners


def test_the_outline() -> None:
    grey = np.full((12, 12, 3), 128, np.uint8)
    drawn = boxes.Box(2.2, 3.4, 8.9, 40, "").drawn(grey)
    expected = grey.copy()
    expected[3:, [2, 9]] = expected[3, 2:10] = (0, 0, 0)  # the lower edge lies outside
    expected[4:, [3, 8]] = expected[4, 3:9] = (255, 214, 0)
    np.testing.assert_array_equal(drawn, expected)
    assert (grey == 128).all()

"""The images that excite feature maps most: found by brute force, their maps by the target "unit:...", their fields by
hand; and the sheet and command around them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from gbprewrite.errors import DataError, UsageError
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures import topsheet
from gbprewrite.pictures.top import Box, Example, TopImages, Winner, field
from tests.small import cnn, model, run

Cli = Callable[..., Result]
UNIT = Options(preset="unit")
SIZE, COUNT = 12, 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of noise, of the network's size."""
    rng = np.random.default_rng(3)
    (tmp_path / "photos").mkdir()
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def batch(folder: Path) -> Any:
    """The images as the network is fed them."""
    pixels = np.stack([np.asarray(Image.open(p)) for p in paths(folder)])
    return (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32)


def activations(folder: Path, layer: str) -> Any:
    source = cnn()
    source.graph.output.append(onnx.ValueInfoProto(name=layer))
    return run(source, image=batch(folder))[layer]


def searched(top: TopImages, folder: Path) -> TopImages:
    assert [(p, error) for p, error in top.search(paths(folder))] == [(p, None) for p in paths(folder)]
    return top


@pytest.mark.parametrize("layer", ["b", "Relu_4", "logits"])
def test_winners_by_brute_force(layer: str, folder: Path) -> None:
    top = searched(TopImages(cnn(), layer, [0, 3, 2], count=3, preprocessing=UNIT, providers="cpu"), folder)
    values = activations(folder, top.layer)
    for channel in (0, 3, 2):
        flat = values[:, channel].reshape(COUNT, -1)
        order = [i for i in np.argsort(-flat.max(1), kind="stable") if flat[i].max() > 0][:3]
        found = top.winners(channel)
        assert [w.image for w in found] == [paths(folder)[i] for i in order]
        np.testing.assert_allclose([w.activation for w in found], flat.max(1)[order], rtol=1e-5)
        for i, winner in zip(order, found, strict=True):
            place = np.unravel_index(flat[i].argmax(), values.shape[2:]) if values.ndim > 2 else ()
            assert winner.unit == (channel, *place)


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_maps_are_those_of_the_unit(method: str, folder: Path) -> None:
    top = searched(TopImages(cnn(), "e", [1], method, count=2, preprocessing=UNIT, providers="cpu"), folder)
    for winner in top.winners(1):
        example = top.example(winner)
        built = gbprewrite.convert(cnn(), method, f"unit:{','.join(map(str, winner.unit))}", score="e")
        x = batch(folder)[[paths(folder).index(winner.image)]]
        expected = run(built, image=x)[f"image_{method}"][0].transpose(1, 2, 0)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(example.map, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(example.photo, np.asarray(Image.open(winner.image)))


FIELDS = {"first": (1, "a"), "second": (2, "y"), "behind a pool": (3, "z")}


@pytest.mark.parametrize("name", FIELDS)
def test_the_box_is_the_receptive_field(name: str, tmp_path: Path) -> None:
    """Convolutions of ones over a bright pixel on grey: everything is active, so that the field is seen whole."""
    reach, layer = FIELDS[name]
    text = f"""g (float[N, 3, 20, 20] x) => (float[] {layer}) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w) a = Relu (c) d = Conv <pads = [1, 1, 1, 1]> (a, v) y = Relu (d)
        z = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (y) }}"""
    source = model(text, w=np.ones((2, 3, 3, 3), np.float32), v=np.ones((2, 2, 3, 3), np.float32))
    for at in ((9, 11), (0, 19)):
        pixels = np.full((20, 20, 3), 9, np.uint8)
        pixels[at] = 250
        Image.fromarray(pixels).save(tmp_path / f"{at}.png")
        top = TopImages(source, layer, [1], preprocessing=UNIT, providers="cpu")
        assert [e for _, e in top.search([tmp_path / f"{at}.png"])] == [None]
        (winner,) = top.winners(1)
        _, row, column = winner.unit
        expected = (max(row - reach, 0), max(column - reach, 0), min(row + reach + 1, 20), min(column + reach + 1, 20))
        assert top.example(winner).box == expected


def test_search_streams(folder: Path) -> None:
    """An image is opened when it is asked for, and what is kept does not grow."""
    asked: list[Path] = []

    def stream() -> Iterator[Path]:
        for _ in range(10):
            for path in paths(folder):
                asked.append(path)
                yield path

    top = TopImages(cnn(), "b", [0, 1], count=4, preprocessing=UNIT, providers="cpu")
    for number, _ in enumerate(top.search(stream()), 1):
        assert len(asked) == number
        assert all(len(top.winners(c)) <= 4 for c in (0, 1))
    best = top.winners(0)
    assert [w.image for w in best] == [best[0].image] * 4  # ten times the same image: the first come


def test_a_channel_that_nothing_excites(folder: Path) -> None:
    source = model(
        "g (float[N, 3, 12, 12] x) => (float[] y) { c = Conv (x, w) y = Relu (c) }",
        w=np.stack([np.ones((3, 3, 3)), -np.ones((3, 3, 3))]).astype(np.float32),
    )
    top = searched(TopImages(source, "y", [0, 1], preprocessing=UNIT, providers="cpu"), folder)
    assert (len(top.winners(0)), top.winners(1)) == (COUNT, [])
    picture, facts = topsheet.draw(top, 1, {})
    assert facts == {"channel": 1, "top": []}
    assert picture.shape == topsheet.draw(top, 0, {})[0].shape


OTHERS = {
    "a fixed batch": "float[4, 3, 12, 12] x",
    "a batch of one": "float[1, 3, 12, 12] x",
    "channels last": "float[N, 12, 12, 3] t",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_inputs_have_the_same_winners(name: str, folder: Path) -> None:
    first = "x = Transpose <perm = [0, 3, 1, 2]> (t)" if name == "channels last" else ""
    text = "g (%s) => (float[] y) { %s c = Conv (x, w) y = Relu (c) }"
    w = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    found = [
        searched(TopImages(model(text % some, w=w), "y", [1], preprocessing=UNIT, providers="cpu"), folder)
        for some in ((OTHERS[name], first), ("float[N, 3, 12, 12] x", ""))
    ]
    winners = [[(w.image, w.unit) for w in top.winners(1)] for top in found]
    assert winners[0] == winners[1]
    maps = [top.example(top.winners(1)[0]).map for top in found]
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-5)


def test_a_layer_with_its_channels_last(folder: Path) -> None:
    text = "g (float[N, 3, 12, 12] x) => (float[] y) { r = Relu (x) y = Transpose <perm = [0, 2, 3, 1]> (r) }"
    top = TopImages(model(text), "y", [2], preprocessing=UNIT, providers="cpu", class_axis=-1)
    winner = searched(top, folder).winners(2)[0]
    row, column, channel = winner.unit
    pixels = np.asarray(Image.open(winner.image))
    assert channel == 2
    assert pixels[row, column, 2] == pixels[:, :, 2].max()
    assert top.example(winner).box == (row, column, row + 1, column + 1)


def test_a_converted_model_s_source_is_taken(folder: Path) -> None:
    top = searched(TopImages(gbprewrite.convert(cnn()), "e", [1], preprocessing=UNIT, providers="cpu"), folder)
    assert top.winners(1)


WRONG_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "magic"}, "--method magic: choose from deconvnet, guided, gradient"),
    "no channel": ({"channels": []}, "one channel at least"),
    "channel": ({"channels": [0, 4, 9]}, "--channels 4,9: out of range.*'b' has 4 channels .*0 to 3"),
    "layer": ({"layer": "Rleu_1"}, "Did you mean Relu_1"),
    "axis": ({"class_axis": 4}, r"--class-axis 4: the score 'b' has shape \[N, 4, 12, 12\]"),
    "batch": ({"class_axis": 0}, "--class-axis 0.*axis 0 is the batch, so choose 1 to 3"),
    "count": ({"count": 0}, "one image"),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_wrong_calls(name: str) -> None:
    options, message = WRONG_CALLS[name]
    with pytest.raises(UsageError, match=message):
        TopImages(cnn(), **{"layer": "b", "channels": [1], "preprocessing": UNIT, "providers": "cpu", **options})


def test_a_layer_without_channels() -> None:
    text = "g (float[N, 3, 12, 12] x) => (float[] y) { r = Relu (x) y = ReduceSum <keepdims = 0> (r) }"
    with pytest.raises(UsageError, match=r"'y' of shape \[\] has no axis that is known to hold channels"):
        TopImages(model(text), "y", [0], preprocessing=UNIT, providers="cpu")


def test_several_inputs() -> None:
    text = "g (float[N, 3, 4, 4] x, float[N, 3, 4, 4] z) => (float[] y) { s = Add (x, z) y = Relu (s) }"
    with pytest.raises(UsageError, match="takes 2 inputs"):
        TopImages(model(text), "y", [0], preprocessing=UNIT, providers="cpu")


class TestBoxes:
    @pytest.mark.parametrize(
        ("places", "expected"),
        [([(2, 3), (5, 4)], (2, 3, 6, 5)), ([(0, 0)], (0, 0, 1, 1)), ([(7, 9)], (7, 9, 8, 10)), ([], (0, 0, 8, 10))],
    )
    def test_what_is_not_zero(self, places: list[tuple[int, int]], expected: Any) -> None:
        values = np.zeros((8, 10, 3))
        for place in places:
            values[(*place, 1)] = -2
        assert field([values, np.zeros_like(values)]) == field([np.zeros_like(values), values]) == expected

    def test_rounding_is_no_field(self) -> None:
        values = np.full((4, 4, 1), 1e-9)
        values[1, 2] = 1
        assert field([values]) == (1, 2, 2, 3)

    def test_all_get_the_size_of_the_largest_inside_the_image(self) -> None:
        photo = np.zeros((20, 30, 3), np.uint8)
        boxes = [Box(0, 0, 2, 3), Box(8, 8, 14, 12), Box(18, 28, 20, 30), Box(9, 20, 11, 22)]
        winner = Winner(Path("x"), (0, 0, 0), 1.0, (1, 1, 1, 1))
        made = topsheet.alike([Example(winner, photo, photo, box) for box in boxes])
        assert made == [(0, 0, 6, 4), (8, 8, 14, 12), (14, 26, 20, 30), (7, 19, 13, 23)]

    def test_a_grid_is_read_line_by_line(self) -> None:
        colours = [np.full((3, 3, 3), c, np.uint8) for c in (10, 20, 30, 40, 50)]
        page = topsheet.grid(colours, 5)
        step, middle = topsheet.CELL + topsheet.GAP, topsheet.CELL // 2
        assert page.shape == (2 * step - topsheet.GAP, 3 * step - topsheet.GAP, 3)
        assert [int(page[middle + step * (i // 3), middle + step * (i % 3), 0]) for i in range(6)] == [
            *(10, 20, 30, 40, 50),
            255,
        ]


WRONG = {
    "layer": (["--layer", "Rleu_1", "--channels", "0"], 2, "Did you mean Relu_1"),
    "channel": (["--layer", "b", "--channels", "0,4"], 2, "--channels 4: out of range"),
    "channels": (["--layer", "b", "--channels", "1-3"], 2, "--channels '1-3': not understood"),
    "no layer": (["--channels", "1"], 2, "Missing option '--layer'"),
    "no folder": (["--layer", "b", "--channels", "1", "-o", "photos/0.png"], 2, "it is read in this run"),
    "no file": (["--layer", "b", "--channels", "1", "-o", "there.png"], 1, "exist already: there.png"),
}


class TestCommand:
    def test_sheet_and_facts(self, cnn_path: Path, folder: Path, cli: Cli) -> None:
        options = [cnn_path, folder, "--layer", "Relu_4", "--channels", "0,3", "--preset", "unit", "--count", 4]
        found = json.loads(cli("top", *options, "--json").stdout)
        sheet = cnn_path.with_name("cnn.Relu_4.top.png")
        assert (found["sheet"], found["layer"], found["images"], found["failed"]) == (str(sheet), "e", COUNT, {})
        values = activations(folder, "e")
        for channel in found["channels"]:
            assert len(channel["top"]) == 4
            for one in channel["top"]:
                image = paths(folder).index(Path(one["image"]))
                assert one["activation"] == pytest.approx(values[(image, *one["unit"])], rel=1e-5)
                assert one["unit"][0] == channel["channel"]
                assert set(one["box"]) == {"top", "left", "bottom", "right"}
        first = sheet.read_bytes()
        assert cli("top", *options, "-q", "--force").output == ""
        assert sheet.read_bytes() == first

    def test_report(self, cnn_path: Path, folder: Path, tmp_path: Path, cli: Cli) -> None:
        result = cli("top", cnn_path, folder, "--layer", "e", "--channels", "1", "-o", tmp_path / "out" / "sheet.png")
        assert result.exit_code == 0
        assert f"shows   deconvnet of e, {COUNT} images searched" in result.output
        assert (tmp_path / "out" / "sheet.png").exists()

    def test_bad_images_are_reported_and_the_rest_goes_on(self, cnn_path: Path, folder: Path, cli: Cli) -> None:
        (folder / "bad.png").write_text("no image")
        options = ["--layer", "e", "--channels", "1", "--preset", "unit", "-o", folder.parent]
        result = cli("top", cnn_path, folder, folder / "missing.png", *options, "--json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert [Path(image).name for image in found["failed"]] == ["bad.png", "missing.png"]
        assert result.stderr.count("error: ") == 2
        assert len(found["channels"][0]["top"]) == COUNT
        assert Path(found["sheet"]).exists()

    def test_no_image_can_be_used(self, cnn_path: Path, tmp_path: Path, cli: Cli) -> None:
        result = cli("top", cnn_path, tmp_path / "missing.png", "--layer", "e", "--channels", "1")
        assert result.exit_code == 1
        assert "missing.png can't be read" in result.stderr
        assert "none of the images can be used" in result.stderr
        assert list(tmp_path.iterdir()) == [cnn_path]

    def test_an_image_that_goes_away_is_reported(self, folder: Path) -> None:
        top = searched(TopImages(cnn(), "e", [1], count=3, preprocessing=UNIT, providers="cpu"), folder)
        gone = top.winners(1)[1].image
        gone.unlink()
        failed: dict[Path, DataError] = {}
        _, facts = topsheet.draw(top, 1, failed)
        assert list(failed) == [gone]
        assert len(facts["top"]) == 2

    @pytest.mark.parametrize("name", WRONG)
    def test_one_clear_error(
        self, name: str, cnn_path: Path, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options, status, message = WRONG[name]
        monkeypatch.chdir(folder.parent)
        Path("there.png").write_bytes(b"")
        before = sorted(folder.parent.rglob("*"))
        result = cli("top", cnn_path, "photos", *options)
        assert (result.exit_code, result.stdout) == (status, "")
        assert message in result.stderr
        assert sorted(folder.parent.rglob("*")) == before


def test_a_files_own_preprocessing_is_taken(folder: Path) -> None:
    built = gbprewrite.convert(cnn(), embed_preprocessing=True, preprocessing=UNIT)
    found = searched(TopImages(built, "b", [0], providers="cpu"), folder).winners(0)
    assert found == searched(TopImages(cnn(), "b", [0], preprocessing=UNIT, providers="cpu"), folder).winners(0)
    with pytest.raises(UsageError, match="has its preprocessing built in"):
        TopImages(built, "b", [0], preprocessing=Options(preset="caffe"))

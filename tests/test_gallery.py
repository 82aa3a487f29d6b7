"""Many images: which are meant, where things go, contact sheets, arrays, and that nothing is kept."""

import io
import json
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from gbprewrite.cli import progress
from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.photos import files as photofiles
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures import explain, gallery, layout, sheet
from gbprewrite.pictures.panels import style
from tests.test_explain import PIXELS, SIZE, names, network, run, spatial

UNIT = Options(preset="unit")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(network("Softmax"), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, a broken one, one that gbprewrite wrote, and what is none."""
    made = tmp_path / "photos"
    (made / "deeper").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "c.PNG", "deeper/d.png"):
        Image.fromarray(PIXELS).save(made / name)
    (made / "broken.webp").write_text("no image")
    (made / "a.guided.png").write_bytes(layout.png(PIXELS))
    (made / "notes.txt").write_text("three photographs")
    (made / ".hidden.png").write_bytes(layout.png(PIXELS))
    return made


def found(*arguments: object) -> tuple[list[str], int]:
    images, own = photofiles.find(str(a) for a in arguments)
    return [path.name for path in images], len(own)


@pytest.mark.parametrize(
    ("arguments", "names", "own"),
    [
        (["."], ["a.jpg", "b.png", "broken.webp", "c.PNG"], 1),
        (["*.png"], ["b.png"], 1),
        (["[ab].*"], ["a.jpg", "b.png"], 1),
        (["**/*.png"], ["b.png", "d.png"], 1),
        (["c.PNG", "deeper", "gone.png"], ["c.PNG", "d.png", "gone.png"], 0),
        (["a.guided.png"], ["a.guided.png"], 0),  # named by the caller himself
        (["notes.txt"], ["notes.txt"], 0),
    ],
)
def test_files_folders_and_patterns_name_images(folder, monkeypatch, arguments, names, own):
    monkeypatch.chdir(folder)
    assert found(*arguments) == (names, own)


def test_a_file_with_a_patterns_letters_is_a_file(folder):
    Image.fromarray(PIXELS).save(folder / "a[1].png")
    assert found(folder / "a[1].png") == (["a[1].png"], 0)


@pytest.mark.parametrize(("argument", "words"), [("empty", "holds no image"), ("*.gif", "no image matches")])
def test_nothing_found_is_an_error(folder, monkeypatch, argument, words):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=words):
        photofiles.find([argument])


def test_only_own_pictures_found_is_said(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=r"no image matches .* but 1 pictures that gbprewrite wrote"):
        photofiles.find(["*.guided.png"])


@pytest.mark.parametrize(
    ("photos", "output", "expected"),
    [
        (["x/a.png", "y/a.png"], None, ["x/a.m.png", "y/a.m.png"]),
        (["x/a.png", "x/a.jpg", "x/b.jpg"], None, ["x/a.png.m.png", "x/a.jpg.m.png", "x/b.m.png"]),
        (["x/a.png", "y/b.png"], "o", ["o/a.m.png", "o/b.m.png"]),
        (["x/a.png", "y/a.jpg"], "o", ["o/a.png.m.png", "o/a.jpg.m.png"]),
        (["x/a.png", "y/a.png"], "o", None),
        (["x/a.png", "x/a.png"], None, None),
    ],
)
def test_each_image_has_a_place_of_its_own(photos, output, expected):
    paths = [Path(p) for p in photos]
    if expected is None:
        with pytest.raises(UsageError, match="several images would give"):
            gallery.places(paths, "m.png", output and Path(output))
    else:
        assert [str(p) for p in gallery.places(paths, "m.png", output and Path(output)).values()] == expected


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--no-pictures"], 2, "nothing would be written"),
        (["--sheet", "s.jpg"], 2, "ends in .png"),
        (["--sheet", "b.png", "--force"], 2, "b.png would be overwritten, and it is read"),
        (["--html", "MODEL", "--force"], 2, "model.onnx would be overwritten"),
        (["--html", "b.guided.png"], 2, "two outputs would be written to b.guided.png"),
        (["--sheet", "old.png"], 1, "exist already: old.png"),
        (["--html", "old.html"], 1, "exist already: old.html"),
        (["--save", "npy"], 1, "exist already: b.guided.npy"),
        (["--html", "notes.txt/r.html"], 1, "can't be written"),
        (["--colormap", "viridis"], 2, "Add --show absolute"),
    ],
)
def test_wrong_outputs_are_found_before_the_run(model, folder, monkeypatch, options, status, words):
    monkeypatch.chdir(folder)
    for name in ("old.png", "old.html", "b.guided.npy"):
        Path(name).touch()
    before = names(folder)
    result = run(model, "b.png", *(model if o == "MODEL" else o for o in options))
    assert (result.exit_code, names(folder)) == (status, before)
    assert words in result.stderr


def test_a_folder_is_explained_and_the_bad_image_is_reported(model, folder, tmp_path):
    result = run(model, folder, "-o", tmp_path / "o", "--preset", "unit")
    assert result.exit_code == 1
    assert names(tmp_path / "o") == {"a.guided.png", "b.guided.png", "c.guided.png"}
    assert result.stderr.splitlines()[0].endswith(
        "is no image (PNG, JPEG, WebP, TIFF, ... are read). Give a photograph."
    )
    assert "3 of 4 images explained" in result.stdout
    assert "left out: 1, such as" in result.stdout
    again = run(model, folder, "-o", tmp_path / "o", "--preset", "unit")
    assert "these exist already" in again.stderr


def test_of_many_images_each_has_a_line(model, tmp_path):
    for i in range(gallery.FEW + 1):
        Image.fromarray(PIXELS).save(tmp_path / f"p{i}.png")
    result = run(model, tmp_path, "-o", tmp_path / "o", "--preset", "unit")
    lines = [line for line in result.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert lines[0] == f"{tmp_path}/p0.png: class 0, probability 0.432 -> {tmp_path}/o/p0.guided.png"
    assert len(lines) == gallery.FEW + 1
    assert "6 of 6 images explained" in result.stdout


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("count", "shown"), [(progress.MANY - 1, False), (progress.MANY, True)])
def test_a_long_run_shows_a_bar_on_a_terminal(monkeypatch, count, shown):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with progress.bar(count) as bar:
        for _ in bar.track(range(count), description="explaining"):
            print("a line")
    assert ("explaining" in sys.stderr.getvalue()) == shown
    assert sys.stdout.getvalue() == "a line\n" * count  # a pipe keeps what is printed


def explainer(target: str | None = None, methods: tuple[str, ...] = ("guided", "gradient")) -> explain.PhotoExplainer:
    return explain.PhotoExplainer(network(), methods, target, preprocessing=UNIT)


def test_arrays_are_the_maps(model, folder, tmp_path):
    result = run(model, folder / "b.png", "-o", tmp_path, "--no-pictures", "--save", "npy", "--target", "2,0",
                 "--method", "guided", "--method", "gradient", "--preset", "unit", "--json")  # fmt: skip
    maps = explain.PhotoExplainer(model, ["guided", "gradient"], "2,0", preprocessing=UNIT)(folder / "b.png").maps
    for method in ("guided", "gradient"):
        array = np.load(tmp_path / f"b.{method}.npy", allow_pickle=False)
        assert (array.shape, array.dtype) == ((2, SIZE, SIZE, 3), np.float32)
        np.testing.assert_array_equal(array, [one[method] for one in maps])
    written = json.loads(result.stdout)["images"][0]
    assert written["guided map"] == str(tmp_path / "b.guided.npy")
    assert not (tmp_path / "b.guided+gradient.png").exists()


def sheets(tmp_path: Path, count: int, target: str | None = None) -> list[np.ndarray]:
    """The pages of a sheet of `count` images."""
    for i in range(count):
        Image.fromarray(PIXELS).save(tmp_path / f"p{i:02}.png")
    made = sheet.Sheet(tmp_path / "s.png", count)
    for outcome in gallery.explained(explainer(target), sorted(tmp_path.glob("p*.png")), [made]):
        assert outcome.error is None
    assert made.pages == made.planned()
    return [np.asarray(Image.open(page)) for page in made.pages]


def test_a_sheet_holds_every_photograph_and_class(tmp_path):
    (page,) = sheets(tmp_path, 3, "topk:2")
    red = (page == [255, 0, 0]).all(axis=2).sum()
    assert red == 6 * 160 * 160 * 5 // 8  # three photographs, shown for two classes; no map is of pure red
    assert page.shape[1] <= sheet.WIDTH


def test_a_long_sheet_has_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "PER_PAGE", 2)
    pages = sheets(tmp_path, 5)
    assert names(tmp_path) >= {"s.png", "s-2.png", "s-3.png"}
    assert pages[0].shape == pages[1].shape
    assert pages[2].shape[1] < pages[0].shape[1]


def test_a_sheet_shrinks_large_panels(tmp_path):
    found = explainer()(saved(tmp_path))
    large = np.zeros((1000, 500, 3), np.uint8)
    rows = [row._replace(panels=[p._replace(pixels=large) for p in row.panels]) for row in explain.rows(found)]
    made = sheet.Sheet(tmp_path / "s.png", 1)
    with made:
        made.add(found, rows)
    assert np.asarray(Image.open(tmp_path / "s.png")).shape[1] == 3 * sheet.MOST // 2 + 4 * sheet.SMALL.margin


def saved(tmp_path: Path, name: str = "photo.png") -> Path:
    Image.fromarray(PIXELS).save(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("option", ["--sheet", "--html"])
def test_a_run_that_stops_leaves_no_half_file(model, folder, tmp_path, option):
    (tmp_path / "labels.txt").write_text("one\ntwo")  # of a model with three classes: found at the first image
    before = names(tmp_path)
    ending = {"--sheet": "s.png", "--html": "r.html"}[option]
    result = run(
        model, folder / "b.png", "--no-pictures", option, tmp_path / ending, "--labels", tmp_path / "labels.txt"
    )
    assert (result.exit_code, names(tmp_path)) == (2, before)


def test_nothing_is_kept_of_the_images_that_went_by(model, tmp_path):
    photos = [saved(tmp_path, f"p{i}.png") for i in range(6)]
    wanted = gallery.Wanted(tmp_path / "o", True, True, tmp_path / "s.png", tmp_path / "r.html")
    one = explainer()
    seen = [
        weakref.ref(outcome.explained)
        for outcome in gallery.explained(one, photos, gallery.outputs(wanted, model, one, photos))
    ]
    assert [ref() for ref in seen] == [None] * 6


def test_an_output_that_can_not_be_written_is_reported_and_the_rest_goes_on(model, tmp_path):
    photos = [saved(tmp_path, f"p{i}.png") for i in range(2)]
    one = explainer()
    outputs = gallery.outputs(gallery.Wanted(tmp_path / "o"), model, one, photos)
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "p0.guided+gradient.png").mkdir()
    first, second = gallery.explained(one, photos, outputs)
    assert isinstance(first.error, OutputError)
    assert second.written["picture"].exists()


def test_the_units_and_classes_of_spatial_scores_have_titles(tmp_path):
    found = explain.PhotoExplainer(spatial(), "guided", "unit:2,1,6", preprocessing=UNIT)(saved(tmp_path))
    assert [row.heading for row in explain.rows(found)] == ["unit 2,1,6, score 1.000"]


@pytest.mark.parametrize(
    ("methods", "shows", "overlay", "columns"),
    [
        (["guided"], (), False, 1),
        (["guided", "gradient", "deconvnet"], (), False, 3),
        (["guided", "gradient"], ("signed", "absolute"), False, 4),
        (["guided", "gradient", "deconvnet"], ("signed", "absolute"), False, 2),
        (["guided", "gradient", "deconvnet"], (), True, 2),
        (["guided"], ("signed", "absolute", "positive"), False, 3),
        (["guided"], ("signed", "absolute", "positive"), True, 2),
        (["guided", "gradient"], ("signed", "absolute", "positive"), True, 2),
        (["guided", "gradient", "deconvnet"], ("signed", "absolute", "positive"), False, 3),
    ],
)
def test_many_maps_stand_in_a_line_for_each_method(tmp_path, methods, shows, overlay, columns):
    found = explainer(methods=tuple(methods))(saved(tmp_path))
    (row,) = explain.rows(found, style(shows, overlay=overlay))
    assert row.columns == columns
    assert len(row.panels) == 1 + len(methods) * max(1, len(shows)) * (1 + overlay)


def test_limits_are_said_once(model, folder, tmp_path):
    result = run(model, folder / "a.jpg", folder / "b.png", "-o", tmp_path / "o", "--method", "guided")
    assert result.stdout.count("Adebayo et al. 2018") == 1
    assert "Nie et al. 2018" in result.stdout

"""Methods beside each other: which are compared, one file and one run, the picture, and how alike maps are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.errors import ModelError, NoFeatureLayer, UsageError
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures import explain, gallery
from gbprewrite.pictures.comparison import COLUMNS, Comparison
from gbprewrite.pictures.panels import style
from gbprewrite.runtime import explainer, session
from tests.small import cnn, model, normal

UNIT = Options(preset="unit")
FLAT = model(
    "g (float[N, 3, 4, 4] image) => (float[N, 5] y)"
    " { f = Flatten (image) h = MatMul (f, w) r = Relu (h) y = MatMul (r, v) }",
    w=normal(48, 8), v=normal(8, 5, seed=1),
)  # fmt: skip
NO_POOL = model(
    "g (float[N, 3, 4, 4] image) => (float[N, 5, 1, 1] y)"
    " { c = Conv (image, w) r = Relu (c) y = GlobalAveragePool (r) }",
    w=normal(5, 3, 3, 3),
)  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("a", "b")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    return paths


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def saved(tmp_path: Path, built: onnx.ModelProto) -> Path:
    onnx.save(built, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    ("options", "methods", "columns"),
    [
        ({}, COLUMNS, 5),
        ({"no_switches": True}, (*COLUMNS, *(f"{m}_no_switches" for m in COLUMNS[:3])), 5),
        ({"method": ("guided", "rectgrad", "guided")}, ("guided", "rectgrad"), 2),
        (
            {"method": ("gradcam", "guided", "gradient"), "no_switches": True},
            ("guided", "gradient", "gradcam", "guided_no_switches", "gradient_no_switches"),
            3,
        ),
    ],
)
def test_what_is_compared(options: dict[str, Any], methods: tuple[str, ...], columns: int) -> None:
    found = Comparison(cnn(), **options)
    assert found.open(preprocessing=UNIT).methods == methods
    assert (found.methods, found.columns) == (methods, columns)


def test_a_converted_file_is_compared_by_what_it_holds() -> None:
    built = gbprewrite.convert(cnn(), ["guided", "gradient", "guided_no_switches"])
    found = Comparison(built)
    assert found.open(preprocessing=UNIT).methods == ("guided", "gradient")
    with pytest.raises(UsageError, match="can't be had from it"):
        Comparison(built, no_switches=True).open(preprocessing=UNIT)
    again = Comparison(built, no_switches=True, replace=True)
    assert len(again.open(preprocessing=UNIT).methods) == 8


def test_without_a_layer_for_grad_cam_the_others_are_compared_and_it_is_said() -> None:
    found = Comparison(FLAT)
    opened = found.open(preprocessing=UNIT)
    assert opened.methods == ("gradient", "deconvnet", "guided")
    assert found.columns == 3
    (note,) = opened.notes
    assert note.startswith("without Grad-CAM and Guided Grad-CAM: Grad-CAM needs a layer")
    assert explain.setting(opened)["notes"] == [note]
    assert f"note:           {note}" in explain.setting_text(opened)
    with pytest.raises(NoFeatureLayer):
        Comparison(FLAT, ["guided", "gradcam"]).open(preprocessing=UNIT)


def test_without_max_pools_switches_make_no_difference_and_that_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"no max pool.*make no difference.*leave --no-switches out"):
        Comparison(NO_POOL, no_switches=True).open(preprocessing=UNIT)
    with pytest.raises(UsageError, match="--no-switches is for --method gradient, deconvnet, guided"):
        Comparison(cnn(), ["gradcam"], no_switches=True)


def test_one_file_and_one_run_for_each_image(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, counting)

    counted(explainer, "convert")
    counted(session.Session, "run")
    assert cli("compare", saved(tmp_path, cnn()), *photos, "--preset", "unit", "--no-switches").exit_code == 0
    assert calls == ["convert", "run", "run"]


def test_maps_without_switches_stand_below_their_own(photos: list[Path]) -> None:
    found = Comparison(cnn(), no_switches=True)
    explained = found.open(preprocessing=UNIT)(photos[0])
    (row,) = explain.rows(explained, style()._replace(columns=found.columns))
    assert row.columns == 5
    assert [p.title for p in row.panels[1:4]] == ["gradient", "deconvnet", "guided backpropagation"]
    assert [p.title.partition(",")[0] for p in row.panels[6:]] == ["gradient", "deconvnet", "guided"]
    (row,) = explain.rows(explained, style(["signed", "absolute"], overlay=True)._replace(columns=found.columns))
    assert row.columns == 5 * 4


def test_likeness_is_the_correlation_of_the_largest_channels(photos: list[Path]) -> None:
    found = Comparison(cnn(), ["gradient", "guided"])
    explaining = found.open(preprocessing=UNIT)
    wanted = []
    for photo in photos:
        explained = explaining(photo)
        found.add(explained)
        a, b = (np.abs(explained.maps[0][m]).max(axis=2).ravel().astype(float) for m in ("gradient", "guided"))
        wanted.append(np.mean((a - a.mean()) * (b - b.mean())) / a.std() / b.std())
    (row,) = found.facts()["likeness"]
    assert row["methods"] == ["gradient", "guided"]
    assert row["correlation"] == pytest.approx(np.mean(wanted))


def test_a_map_of_zeros_is_like_none() -> None:
    found = Comparison(cnn(), ["gradient", "guided"])
    maps = {"gradient": np.arange(12.0).reshape(2, 2, 3), "guided": np.zeros((2, 2, 3))}
    found.add(explain.ExplainedPhoto(Path("p"), np.zeros((2, 2, 3), np.uint8), [], [maps], []))
    assert found.facts() == {"likeness": [{"methods": ["gradient", "guided"], "correlation": None}]}


def test_noise_is_not_alike() -> None:
    rng = np.random.default_rng(0)
    found = Comparison(cnn(), ["gradient", "guided"])
    maps = {m: rng.normal(size=(64, 64, 3)) for m in ("gradient", "guided")}
    found.add(explain.ExplainedPhoto(Path("p"), np.zeros((64, 64, 3), np.uint8), [], [maps], []))
    assert abs(found.facts()["likeness"][0]["correlation"]) < 0.05


def test_a_layer_means_its_strongest_unit_as_without_grad_cam(photos: list[Path]) -> None:
    opened = Comparison(cnn(), layer="d").open(preprocessing=UNIT)
    assert opened.explainer.record["target"] == "strongest"
    assert opened(photos[0]).explained[0].layer == "d"


def test_the_report_has_the_notes_and_keeps_maps_below_their_own(photos: list[Path], tmp_path: Path) -> None:
    said = cli("compare", saved(tmp_path, FLAT), photo(tmp_path, 4), "--preset", "unit", "--html", tmp_path / "r.html")
    assert said.exit_code == 0, said.output
    assert "without Grad-CAM and Guided Grad-CAM" in (tmp_path / "r.html").read_text()
    whole = ("--preset", "unit", "--no-switches", "--no-pictures", "--html", tmp_path / "s.html")
    assert cli("compare", saved(tmp_path, cnn()), photos[0], *whole).exit_code == 0
    text = (tmp_path / "s.html").read_text()
    assert "grid-template-columns: repeat(6, minmax(0, max-content))" in text
    assert text.count("grid-column-start: 2") == 2


def photo(folder: Path, size: int) -> Path:
    Image.new("RGB", (size, size), "red").save(folder / "red.png")
    return folder / "red.png"


def test_the_command(photos: list[Path], tmp_path: Path) -> None:
    net = saved(tmp_path, cnn())
    said = cli("compare", net, *photos, "--preset", "unit", "-o", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.compare.png", "b.compare.png"]
    assert "correlation of the maps" in said.output
    again = cli("compare", net, *photos, "--preset", "unit", "-o", tmp_path / "out")
    assert again.exit_code == 1
    assert "exist already" in again.output
    told = json.loads(
        cli("compare", net, *photos, "--preset", "unit", "-o", tmp_path / "out", "--json", "--force").output
    )
    assert len(told["likeness"]) == 10
    assert len(told["images"]) == 2


def test_a_bad_image_is_reported_and_the_rest_goes_on(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    said = cli("compare", saved(tmp_path, cnn()), photos[0], tmp_path / "bad.png", photos[1], "--preset", "unit")
    assert said.exit_code == 1
    assert "bad.png is no image" in said.output
    assert "2 of 3 images explained" in said.output


def test_a_unit_of_an_inner_layer_is_named_with_its_activation(photos: list[Path], tmp_path: Path) -> None:
    explaining = explain.PhotoExplainer(cnn(), "guided", "channel:2", layer="b", preprocessing=UNIT)
    explained = explaining(photos[0])
    (one,) = explained.explained
    whole = cnn()
    whole.graph.output.append(onnx.ValueInfoProto(name="b"))
    pixels = np.asarray(Image.open(photos[0]), np.float32).transpose(2, 0, 1)[None] / 255
    plane = session.Session(whole, "cpu").run({"image": pixels}, ["b"])["b"][0, 2]
    unit = tuple(map(int, np.unravel_index(plane.argmax(), plane.shape)))
    assert one.index == (2, *unit)
    assert one.value == pytest.approx(plane.max(), rel=1e-5)
    assert one.title() == f"b, unit 2,{unit[0]},{unit[1]}, activation {plane.max():.3f}"
    assert explained.top == []
    (row,) = explain.rows(explained)
    assert row.heading == one.title()
    assert "(activation)" in gallery.Outcome(photos[0], {}, explained).text()

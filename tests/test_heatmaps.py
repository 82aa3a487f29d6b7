"""Maps as pictures made inside the file, against numpy and against what `explain` draws."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.graft import record as report
from gbprewrite.photos.preprocessing import Options, plan
from gbprewrite.pictures import panels as pictures
from tests.small import Array, model, normal, run

AXES = np.array([2, 3], np.int64)
KERNEL = normal(4, 3, 3, 3)
TEXT = """g (float[{shape}] x) => (float[N, 4] y) {{
    {move} c = Conv <pads = [1, 1, 1, 1]> ({last}, w) r = Relu (c) y = ReduceMean <keepdims = 0> (r, axes) }}"""


def network(shape: str = "N, 3, 12, 10", last: bool = False, **weights: Array) -> onnx.ModelProto:
    """A Conv, a Relu and means of x; with `last` of channels last."""
    move = "t = Transpose <perm = [0, 3, 1, 2]> (x)" if last else ""
    text = TEXT.format(shape=shape, move=move, last="t" if last else "x")
    return model(text, axes=AXES, **(weights or {"w": KERNEL}))


def scaled(largest: Array, scaling: str) -> Array:
    """What heatmaps are meant to be, by numpy, of [H, W]."""
    if scaling == "minmax":
        spread = np.ptp(largest)
        return (largest - largest.min()) / (spread or 1)
    limit = np.percentile(largest, float(scaling.partition(":")[2])) or largest.max() or 1
    return np.minimum(largest / limit, 1)


SCALINGS = ["percentile:99", "percentile:100", "percentile:50", "percentile:1", "percentile:99.9", "minmax"]
LAYOUTS = {
    "fixed": (network("2, 3, 12, 10"), (2, 3, 12, 10), 1),
    "open": (network("N, 3, H, W"), (2, 3, 7, 5), 1),
    "channels last": (network("N, 12, 10, 3", last=True), (2, 12, 10, 3), 3),
    "one pixel": (network("N, 3, 1, 1"), (2, 3, 1, 1), 1),
    "one pixel, open": (network("N, 3, H, W"), (2, 3, 1, 1), 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_heatmap_is_the_largest_channel_scaled(scaling: str, layout: str) -> None:
    source, shape, axis = LAYOUTS[layout]
    found = {}
    for dtype in ("uint8", "float"):
        built = gbprewrite.convert(source, "gradient", forms=["raw", "heatmap"], scaling=scaling, heatmap_dtype=dtype)
        found[dtype] = run(built, x=normal(*shape))
    assert found["uint8"]["x_gradient_heatmap"].dtype == np.uint8
    assert found["float"]["x_gradient_heatmap"].dtype == np.float32
    for k, map in enumerate(found["float"]["x_gradient"]):
        wanted = scaled(np.abs(map.astype(np.float64)).max(axis=axis - 1), scaling)
        np.testing.assert_allclose(found["float"]["x_gradient_heatmap"][k], wanted, rtol=1e-5, atol=1e-6)
        rounded = found["uint8"]["x_gradient_heatmap"][k].astype(float)
        np.testing.assert_allclose(rounded, 255 * wanted, atol=0.501)


def test_nothing_is_a_black_heatmap() -> None:
    source = network(w=-np.abs(KERNEL))  # no unit is active on positive inputs
    for scaling in ("percentile:99", "minmax"):
        built = gbprewrite.convert(source, "guided", forms="heatmap", scaling=scaling, heatmap_dtype="float")
        found = run(built, x=np.abs(normal(1, 3, 12, 10)))["x_guided_heatmap"]
        assert not np.isnan(found).any()
        assert not found.any()


def test_where_nearly_all_is_nought_the_largest_is_full_strength() -> None:
    source = network("1, 3, 40, 40")
    built = gbprewrite.convert(source, "gradient", "unit:0,5,5", score="c", forms=["raw", "heatmap"])
    found = run(built, x=normal(1, 3, 40, 40))
    sizes = np.abs(found["x_gradient"][0]).max(axis=0)
    assert (sizes > 0).sum() == 9
    np.testing.assert_allclose(found["x_gradient_heatmap"][0], 255 * sizes / sizes.max(), atol=0.51)


@pytest.mark.parametrize(("target", "classes"), [("topk:2", 2), ("0,3,1", 3), ("argmax", None)])
def test_each_class_is_scaled_for_itself(target: str, classes: int | None) -> None:
    built = gbprewrite.convert(network(), ["guided", "gradcam"], target, forms=["raw", "heatmap", "overlay"])
    found = run(built, x=normal(2, 3, 12, 10))
    lead = (2,) if classes is None else (2, classes)
    assert found["x_guided_heatmap"].shape == (*lead, 12, 10)
    assert found["x_guided_overlay"].shape == (*lead, 12, 10, 3)
    assert found["x_gradcam_heatmap"].shape == (*lead, 12, 10)
    for map, heatmap in zip(
        found["x_guided"].reshape(-1, 3, 12, 10), found["x_guided_heatmap"].reshape(-1, 12, 10), strict=True
    ):
        np.testing.assert_allclose(heatmap, 255 * scaled(np.abs(map).max(axis=0), "percentile:99"), atol=0.51)


def test_a_class_that_does_not_exist_is_black_in_integers_and_nan_in_floats() -> None:
    source, x = network(), normal(2, 3, 12, 10)
    built = gbprewrite.convert(source, "guided", "input", forms=["heatmap", "overlay"])
    found = run(built, x=x, target=np.array([1, 9]))
    assert found["x_guided_heatmap"][0].max() == 255
    assert not found["x_guided_heatmap"][1].any()
    grey = found["x_guided_overlay"][1]
    assert (grey == grey[:, :, :1]).all()  # the photograph alone; inferno's black has no colour
    built = gbprewrite.convert(source, "guided", "input", forms="heatmap", heatmap_dtype="float")
    found = run(built, x=x, target=np.array([1, 9]))
    assert np.isfinite(found["x_guided_heatmap"][0]).all()
    assert np.isnan(found["x_guided_heatmap"][1]).all()
    with pytest.raises(gbprewrite.DataError, match=r"target does not exist.*sample 1 .target 9"):
        gbprewrite.Explainer(built, providers="cpu")(x, targets=[1, 9])


OVERLAYS = {
    "colour": (network(), Options(preset="imagenet"), "inferno"),
    "blue first": (network(), Options(preset="caffe"), "viridis"),
    "channels last": (network("N, 12, 10, 3", last=True), Options(preset="unit"), "gray"),
    "grey": (network("N, 1, 12, 10", w=KERNEL[:, :1]), Options(preset="unit", mean=(0.3,)), "inferno"),
    "turned": (network(), Options(scale=-1 / 255, mean=(-1.0,), std=(0.5,)), "inferno"),
}


@pytest.mark.parametrize("case", OVERLAYS)
def test_an_overlay_is_what_explain_draws(case: str) -> None:
    source, options, colormap = OVERLAYS[case]
    built = gbprewrite.convert(source, "gradient", forms=["raw", "overlay"], colormap=colormap, preprocessing=options)
    made = plan(
        "x", [1, 12, 10, 3] if case == "channels last" else [1, 1 if case == "grey" else 3, 12, 10], "f4", options
    )
    photo = np.random.default_rng(0).integers(0, 256, (12, 10) if case == "grey" else (12, 10, 3), np.uint8)
    found = run(built, x=made.array(photo))
    style = pictures.style(show=["absolute"], colormaps=[colormap], overlay=True)
    drawn = pictures.panels("gradient", made.channels_last(found["x_gradient"][0]), photo, style)[1].pixels
    difference = np.abs(drawn.astype(int) - found["x_gradient_overlay"][0])
    assert difference.max() <= 1  # numpy computes in float64
    assert (difference > 0).mean() < 0.02


def test_pictures_take_the_place_of_raw_maps() -> None:
    built = gbprewrite.convert(network(), ["guided", "gradient"], forms="heatmap")
    assert [o.name for o in built.graph.output] == ["y", "x_guided_heatmap", "x_gradient_heatmap", "explained_index"]
    explainer = gbprewrite.Explainer(built, providers="cpu")
    explanation = explainer(normal(1, 3, 12, 10))
    assert explanation.map("guided", form="heatmap").dtype == np.uint8
    with pytest.raises(UsageError, match=r"form='raw'.*guided heatmap of x"):
        explanation.map("guided")


@pytest.mark.parametrize("forms", [["heatmap"], ["raw", "heatmap", "overlay"]], ids=str)
@pytest.mark.parametrize("method", ["gradient", "guided_gradcam"])
def test_verify_passes(forms: list[str], method: str) -> None:
    built = gbprewrite.convert(network(), method, forms=forms)
    found = gbprewrite.verify(built, network())
    assert found.ok, found
    assert f"{method} heatmap of x" in [c.name for c in found.checks]


def test_the_record_tells_the_form_of_each_map() -> None:
    record = report.read_record(gbprewrite.convert(network(), forms=["heatmap", "raw", "heatmap"]))
    assert record is not None
    assert [(m["form"], m["output"]) for m in record["maps"]] == [("heatmap", "x_guided_heatmap"), ("raw", "x_guided")]
    assert record["options"]["forms"] == ["heatmap", "raw"]


VECTOR = model("g (float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, w) y = Relu (h) }", w=normal(8, 4))
NO_CONV = model("g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Relu (x) }")


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (network(), {"forms": "picture"}, UsageError, "--as picture: choose from raw, heatmap, overlay"),
        (network(), {"forms": ()}, UsageError, "--as is empty"),
        (network(), {"forms": "heatmap", "scaling": "percentile:0"}, UsageError, "--scaling percentile:0"),
        (network(), {"forms": "heatmap", "scaling": "percentile:nan"}, UsageError, "--scaling percentile:nan"),
        (network(), {"forms": "heatmap", "scaling": "99"}, UsageError, "--scaling 99"),
        (network(), {"forms": "heatmap", "heatmap_dtype": "int8"}, UsageError, "--heatmap-dtype int8"),
        (network(), {"forms": "overlay", "colormap": "nope"}, UsageError, "--colormap nope"),
        (network(), {"scaling": "minmax"}, UsageError, "--scaling is for --as heatmap or overlay"),
        (network(), {"forms": "overlay", "heatmap_dtype": "float"}, UsageError, "--heatmap-dtype is for --as heatmap"),
        (network(), {"forms": "heatmap", "colormap": "gray"}, UsageError, "--colormap is for --as overlay"),
        (VECTOR, {"forms": "heatmap"}, ModelError, r"--as heatmap needs maps of images.*\['N', 8\]"),
        (NO_CONV, {"forms": "heatmap", "class_axis": 1}, ModelError, "which axis of the input 'x'"),
    ],
)
def test_what_can_not_be_is_one_clear_error(source: Any, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        gbprewrite.convert(source, **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    arguments = ["--as", "heatmap", "--as", "overlay", "--preset", "unit", "--scaling", "minmax"]
    main(["convert", str(tmp_path / "net.onnx"), *arguments], standalone_mode=False)
    said = capsys.readouterr().out
    assert "x_guided_heatmap uint8 [N, 12, 10]" in said
    assert "x_guided_overlay uint8 [N, 12, 10, 3]" in said
    assert "pixel * 1/255" in said

"""What a map looks like as a picture, and the file that it ends in."""

import io
import stat

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.methods.table import METHODS
from gbprewrite.pictures import layout
from gbprewrite.pictures import panels as pictures
from gbprewrite.pictures.layout import Measures, Row, compose, png, write
from gbprewrite.pictures.panels import SHOWS, Panel, around_grey, panel, panels, photo, style

SPREAD = np.linspace(-1, 1, 300).reshape(10, 10, 3)
PHOTO = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
CHANNELS = np.array([[[0.1, -0.4, 0.2], [0.0, 0.0, 0.0], [-0.2, 0.1, 0.1]]])
# What Simonyan et al. 2013, and the words in SHOWS, say of CHANNELS; by hand.
NUMBERS = {"signed": [-0.1, 0, 0], "absolute": [0.4, 0, 0.2], "positive": [0.2, 0, 0.1]}


@pytest.mark.parametrize("method", ["gradient", "guided", "deconvnet"])
def test_the_papers_methods_have_a_rendering_and_a_limit(method):
    assert method in pictures.RENDERINGS
    assert METHODS[method].title
    assert "20" in METHODS[method].limit  # the year of the paper


def test_around_grey_keeps_zero_grey_and_the_sign():
    values = np.array([[[0.0, 0.5, -0.5]] * 100])
    values[0, 0] = [100, -100, 0]  # 2 of 300: clipped
    found = around_grey(values, pictures.strongest(values))
    np.testing.assert_allclose(found[0, 0], [1, 0, 0.5])
    np.testing.assert_allclose(found[0, 1], [0.5, 1, 0])


@pytest.mark.parametrize("show", SHOWS)
def test_each_way_to_show_a_map_reduces_its_channels(show):
    np.testing.assert_allclose(SHOWS[show].formula(CHANNELS), [NUMBERS[show]], atol=1e-12)


@pytest.mark.parametrize("show", SHOWS)
@pytest.mark.parametrize(("percentile", "clipped"), [(100, False), (50, True)])
def test_colours_are_the_colour_maps_and_the_bar_says_what_they_mean(show, percentile, clipped):
    values = np.repeat(CHANNELS, 4, axis=0)
    (found,) = panels("gradient", values, np.zeros((4, 3), np.uint8), style([show], percentile))
    numbers = np.array(NUMBERS[show])
    limit = np.percentile(np.abs(numbers), percentile) or np.abs(numbers).max()
    shares = np.clip(numbers / limit, -1, 1)
    signed = show == "signed"
    table = matplotlib.colormaps["RdBu_r" if signed else "inferno"]
    expected = table(0.5 + 0.5 * shares if signed else shares, bytes=True)[:, :3].astype(int)
    assert np.abs(found.pixels[0] - expected).max() <= 3  # matplotlib rounds a share to one of 256 colours otherwise
    clipped = clipped and np.abs(numbers).max() > limit
    text = f"{limit:.2g}"
    assert (found.bar.low, found.bar.high) == (
        ("≤ " if clipped else "") + f"−{text}" if signed else "0",
        ("≥ " if clipped else "") + text,
    )
    np.testing.assert_array_equal(found.bar.colours[0], table(np.arange(256), bytes=True)[:, :3])


def test_zero_is_the_middle_of_a_diverging_colour_map():
    (found,) = panels("guided", np.array([[[5.0], [0.0], [-1.0]]]), np.zeros((1, 3), np.uint8), style(["signed"], 100))
    red, white, blue = found.pixels[0].astype(int)
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert white.min() > 240


def test_a_picture_around_grey_has_a_scale_of_greys():
    found = panel("guided", SPREAD)
    limit = np.percentile(np.abs(SPREAD), 99)
    assert (found.bar.low, found.bar.high) == (f"≤ −{limit:.2g}", f"≥ {limit:.2g}")
    assert found.bar.colours.tolist() == [[[i, i, i] for i in range(256)]]


def test_an_overlay_shows_the_grey_photograph_where_the_map_is_zero():
    values = np.zeros((10, 10, 3))
    values[2, 3] = [0, 1, 0]
    plain, over = panels("guided", values, PHOTO, style(overlay=True))
    grey = np.asarray(Image.fromarray(PHOTO).convert("L"))
    expected = np.repeat(grey[:, :, None], 3, axis=2).astype(int)
    strongest = matplotlib.colormaps["inferno"](255, bytes=True)[:3]
    expected[2, 3] = np.round(pictures.OPACITY * np.array(strongest) + (1 - pictures.OPACITY) * expected[2, 3])
    np.testing.assert_array_equal(over.pixels, expected)
    assert plain.pixels[2, 3].tolist() == [128, 255, 128]
    assert (plain.short, over.short) == ("guided", "guided, absolute, overlaid")


def test_a_coarse_map_is_brought_to_the_photographs_size():
    coarse = np.array([[[0.0], [1.0]]])
    found = panels("gradcam", coarse, np.zeros((8, 16), np.uint8), style(["absolute"], 100, ["gray"]))[0]
    expected = np.asarray(
        Image.fromarray(coarse[:, :, 0].astype(np.float32)).resize((16, 8), Image.Resampling.BILINEAR)
    )
    np.testing.assert_allclose(found.pixels[:, :, 0] / 255, expected, atol=1 / 255)
    assert found.title == "Grad-CAM, absolute"


@pytest.mark.parametrize("method", [*METHODS, "a method of tomorrow"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_panels_are_eight_bit_colour_and_use_the_whole_range(method, channels, dtype):
    pixels = panel(method, SPREAD[:, :, :channels].astype(dtype)).pixels
    assert (pixels.shape, pixels.dtype) == ((10, 10, 3), np.uint8)
    assert np.ptp(pixels) >= 240


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_a_map_is_shown_by_its_proportions(method, factor):
    np.testing.assert_array_equal(panel(method, SPREAD * factor).pixels, panel(method, SPREAD).pixels)


def test_one_hot_pixel_shows_though_99_percent_are_zero():
    values = np.zeros((20, 20, 3))
    values[3, 4, 0] = 0.25
    pixels = panel("guided", values).pixels
    assert pixels[3, 4].tolist() == [255, 128, 128]
    assert (pixels[0, 0] == 128).all()


@pytest.mark.parametrize(("method", "level"), [("guided", 128), ("deconvnet", 128), ("gradient", 0)])
def test_a_map_of_zeros_says_so(method, level):
    found = panel(method, np.zeros((4, 4, 3)))
    assert (found.pixels == level).all()
    assert found.title.endswith("(all zero)")
    assert found.short.endswith("(all zero)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_an_error(value):
    with pytest.raises(DataError, match="not finite"):
        panel("guided", np.full((2, 2, 3), value))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"show": ["negative"]}, "--show negative.*published, signed"),
        ({"percentile": 0}, "--percentile 0"),
        ({"percentile": 101}, "--percentile 101"),
        ({"show": ["signed"], "colormaps": ["nosuch"]}, "no colour map of this name"),
        ({"show": ["signed"], "colormaps": ["viridis"]}, "viridis: it is sequential.*Choose a diverging"),
        ({"show": ["absolute"], "colormaps": ["coolwarm_r"]}, "diverging.*Choose a sequential"),
        ({"colormaps": ["viridis"]}, "Add --show absolute"),
    ],
)
def test_a_style_that_fits_no_map_is_an_error(options, words):
    with pytest.raises(UsageError, match=words):
        style(**options)


def test_each_colour_map_serves_the_maps_that_it_fits():
    found = style(["signed", "absolute", "signed"], colormaps=["coolwarm", "viridis"])
    assert (found.show, found.diverging, found.sequential) == (("signed", "absolute"), "coolwarm", "viridis")
    signed, absolute = panels("guided", SPREAD, PHOTO, found)
    np.testing.assert_array_equal(signed.bar.colours[0, 0], matplotlib.colormaps["coolwarm"](0, bytes=True)[:3])
    np.testing.assert_array_equal(absolute.bar.colours[0, 0], matplotlib.colormaps["viridis"](0, bytes=True)[:3])


def picture(height: int = 8, width: int = 12, rows: int = 1, heading: str = "espresso (class 967)") -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    maps = [panel(method, SPREAD) for method in METHODS]
    return compose([Row(heading, [photo("photo.png", pixels), *maps])] * rows)


def test_a_png_holds_the_pixels_and_who_wrote_it():
    image = Image.open(io.BytesIO(png(PHOTO)))
    assert (image.format, image.mode, list(image.info)) == ("PNG", "RGB", ["Software"])
    assert image.info["Software"].startswith("gbprewrite ")
    np.testing.assert_array_equal(image, PHOTO)


def test_panels_stand_in_the_picture_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    found = compose([Row("heading", [photo("a", pixels), photo("b", pixels[:, :40])])])
    m, factor = layout.PICTURE.margin, 4
    assert found.shape[1] == 3 * m + 80 * factor + 40 * 8
    enlarged = pixels.repeat(factor, 0).repeat(factor, 1)
    top = found.shape[0] - m - 40 * 8
    np.testing.assert_array_equal(found[top : top + 160, m : m + 320], enlarged)
    text = found[:top]
    assert text.min() < 100  # dark letters
    assert (text[:, -m:] == 255).all()


def test_pictures_are_the_same_whatever_the_users_settings():
    plain = picture()
    with matplotlib.rc_context({"savefig.dpi": 50, "font.size": 30, "text.color": "green", "image.cmap": "hot"}):
        np.testing.assert_array_equal(picture(), plain)


@pytest.mark.parametrize("heading", ["$x^$", "猫", "a\nb", "", "long " * 40, "x" * 300])
def test_any_label_can_be_drawn(heading):
    assert picture(heading=heading).shape[1] == picture().shape[1]


def test_rows_lie_below_each_other():
    one, two = picture(), picture(rows=2)
    margin = layout.PICTURE.margin
    assert two.shape[0] == 2 * one.shape[0] - margin
    np.testing.assert_array_equal(two[: one.shape[0] - margin], one[:-margin])


def test_maps_stand_in_lines_beside_the_photograph():
    plain, m = np.zeros((320, 320, 3), np.uint8), layout.PICTURE
    maps = [Panel("map", plain + level) for level in (50, 100, 150, 200)]
    found = compose([Row("", [photo("photo", plain), *maps], columns=2)])
    line = round(layout.LINE * m.title)
    assert found.shape[:2] == (3 * m.margin + 2 * (line + 320), 4 * m.margin + 3 * 320)
    centres = [(m.margin + line + 160, 2 * m.margin + line * 2 + 480)[i] for i in (0, 1)]
    across = [m.margin * (i + 1) + 320 * i + 160 for i in range(3)]
    levels = [[int(found[y, x, 0]) for x in across] for y in centres]
    assert levels == [[0, 50, 100], [255, 150, 200]]


def test_a_bar_lies_below_its_panel_from_end_to_end():
    m = Measures(panel=100, margin=10)
    colours = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=1)[None]
    scale = pictures.Bar(colours, "0", "1")
    found = compose([Row("", [Panel("", np.full((100, 100, 3), 9, np.uint8), scale)])], m)
    top = 10 + round(layout.LINE * m.title) + 100 + m.bar // 2 + m.bar // 2
    strip = found[top, 11:109, 0]
    np.testing.assert_array_equal(strip, np.arange(1, 99) * 256 // 100)


@pytest.mark.parametrize("width", [40, 120, 300])
def test_a_title_never_runs_into_the_next_panel(width):
    one = Panel("guided backpropagation, absolute, overlaid", np.zeros((10, width, 3), np.uint8), None, "guided")
    font = layout._font(16)
    assert font.getlength(layout._fitting(one, width, 16)) <= max(width, font.getlength("W" * 8))


def test_a_grey_photo_is_shown_grey():
    found = photo("grey", np.full((4, 4), 7, np.uint8))
    assert (found.pixels == 7).all()
    assert found.pixels.shape == (4, 4, 3)


def test_write_replaces_a_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRUSR


def test_write_makes_the_folder(tmp_path):
    write(tmp_path / "new" / "folder" / "a.png", b"new")
    assert (tmp_path / "new" / "folder" / "a.png").read_bytes() == b"new"


def test_write_says_what_is_in_the_way(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't be written: .*-o DIR"):
        write(tmp_path / "file" / "a.png", b"new")

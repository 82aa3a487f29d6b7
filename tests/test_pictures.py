"""What a map looks like as a picture, and the file that it ends in."""

import io
import stat

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gbprewrite.errors import DataError, OutputError
from gbprewrite.policies import METHODS
from gbprewrite.runtime import pictures
from gbprewrite.runtime.pictures import Row, around_grey, compose, magnitude, panel, photo, write

SPREAD = np.linspace(-1, 1, 300).reshape(10, 10, 3)


def test_every_method_has_a_rendering():
    assert pictures.RENDERINGS.keys() == METHODS.keys()


def test_around_grey_keeps_zero_grey_and_the_sign():
    values = np.array([[[0.0, 0.5, -0.5]] * 100])
    values[0, 0] = [100, -100, 0]  # 2 of 300: clipped
    found = around_grey(values)
    np.testing.assert_allclose(found[0, 0], [1, 0, 0.5])
    np.testing.assert_allclose(found[0, 1], [0.5, 1, 0])


def test_magnitude_is_the_largest_channel():
    values = np.array([[[0.1, -0.4, 0.2], [0.0, 0.0, 0.0], [-0.2, 0.1, 0.1]]])
    limit = np.percentile([0.4, 0, 0.2], 99)
    np.testing.assert_allclose(magnitude(values)[0, :, 0], [1, 0, 0.2 / limit])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_panels_are_eight_bit_colour_and_use_the_whole_range(method, channels, dtype):
    pixels = panel(method, SPREAD[:, :, :channels].astype(dtype)).pixels
    assert (pixels.shape, pixels.dtype) == ((10, 10, 3), np.uint8)
    assert np.ptp(pixels) >= 250


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
    assert found.title.endswith("(zero everywhere)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_an_error(value):
    with pytest.raises(DataError, match="not finite"):
        panel("guided", np.full((2, 2, 3), value))


def picture(height: int = 8, width: int = 12, rows: int = 1, heading: str = "espresso (class 967)") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    maps = [panel(method, SPREAD) for method in METHODS]
    return compose([Row(heading, [photo("photo.png", pixels), *maps])] * rows)


def opened(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    return np.asarray(image)


def test_panels_stand_in_the_picture_pixel_by_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    found = opened(compose([Row("heading", [photo("a", pixels), photo("b", pixels[:, :40])])]))
    m, factor = pictures.MARGIN, 4
    assert found.shape[1] == 3 * m + 80 * factor + 40 * 8
    enlarged = pixels.repeat(factor, 0).repeat(factor, 1)
    top = found.shape[0] - m - 40 * 8
    np.testing.assert_array_equal(found[top : top + 160, m : m + 320], enlarged)
    text = found[:top]
    assert text.min() < 100  # dark letters
    assert (text[:, -m:] == 255).all()


def test_pictures_are_deterministic_whatever_the_users_settings():
    plain = picture()
    with matplotlib.rc_context({"savefig.dpi": 50, "figure.facecolor": "red", "font.size": 30, "text.color": "green"}):
        assert picture() == plain


@pytest.mark.parametrize("heading", ["$x^$", "猫", "a\nb", "", "long " * 40])
def test_any_label_can_be_drawn(heading):
    assert opened(picture(heading=heading)).size


def test_rows_lie_below_each_other():
    one, two = opened(picture()), opened(picture(rows=2))
    assert two.shape[0] == 2 * one.shape[0] - pictures.MARGIN
    np.testing.assert_array_equal(two[: one.shape[0] - pictures.MARGIN], one[: -pictures.MARGIN])


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

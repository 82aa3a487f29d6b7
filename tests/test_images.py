"""Preprocessing against numpy and Pillow written out here, and every way a photograph can be unfit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbprewrite.errors import DataError, UsageError
from gbprewrite.photos.images import fit, read
from gbprewrite.photos.preprocessing import RESIZES, Options, numbers, plan, size

NCHW, NHWC = (1, 3, 4, 6), (1, 4, 6, 3)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PIXELS = noise(4, 6)
P = PIXELS.astype(np.float64)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(), (P / 255 - MEAN) / STD),
        (Options(preset="imagenet"), (P / 255 - MEAN) / STD),
        (Options(preset="imagenet", bgr=True), ((P / 255 - MEAN) / STD)[:, :, ::-1]),
        (Options(preset="caffe"), P[:, :, ::-1] - [104, 117, 123]),
        (Options(preset="caffe", bgr=False), P - [123, 117, 104]),
        (Options(preset="caffe", mean=(1.0, 2.0, 3.0)), P[:, :, ::-1] - [1, 2, 3]),
        (Options(preset="unit"), P / 255),
        (Options(preset="unit", std=(0.5,)), P / 255 / 0.5),
        (Options(mean=(0.5,), std=(0.5,)), P / 127.5 - 1),
        (Options(scale=1.0), P),
        (Options(scale=-1 / 255, mean=(-1.0,)), 1 - P / 255),
        (Options(scale=1.0, bgr=True, mean=(1.0, 2.0, 3.0)), P[:, :, ::-1] - [1, 2, 3]),
        (Options(preset="imagenet", scale=1 / 128, std=(1.0,)), P / 128 - MEAN),
    ],
)
@pytest.mark.parametrize("shape", [NCHW, NHWC])
def test_values_are_pixel_times_scale_minus_mean_over_std(options, expected, shape):
    preprocessing = plan("x", shape, np.float32, options)
    array = preprocessing.array(fit(preprocessing, Image.fromarray(PIXELS)))
    assert array.shape == shape
    assert array.dtype == np.float32
    channels_last = array[0].transpose(1, 2, 0) if shape is NCHW else array[0]
    np.testing.assert_allclose(channels_last, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [NCHW, NHWC])
@pytest.mark.parametrize("bgr", [True, False])
def test_a_map_comes_back_with_red_first(shape, bgr):
    preprocessing = plan("x", shape, np.float64, Options(scale=1.0, bgr=bgr))
    array = preprocessing.array(Image.fromarray(PIXELS))
    np.testing.assert_array_equal(preprocessing.channels_last(array[0]), PIXELS)


@pytest.mark.parametrize(
    ("shape", "given", "expected"),
    [
        (NCHW, (1, 2, 3), (2, 3, 1)),
        (NHWC, (1, 2, 3), (2, 3, 1)),  # Grad-CAM of a channels-last model, its channel first all the same
        (NHWC, (2, 3, 1), (2, 3, 1)),
        (NHWC, (1, 4, 6), (4, 6, 1)),
    ],
)
def test_a_coarse_map_of_one_channel_is_turned_as_well(shape, given, expected):
    preprocessing = plan("x", shape, np.float32, Options(preset="caffe"))
    values = np.arange(6 if given != (1, 4, 6) else 24).reshape(given)
    found = preprocessing.channels_last(values)
    np.testing.assert_array_equal(found, values.reshape(expected))


def test_grey_is_the_luma_of_the_photograph():
    preprocessing = plan("x", (1, 1, 4, 6), np.float32, Options(scale=1.0))
    array = preprocessing.array(fit(preprocessing, Image.fromarray(PIXELS)))
    assert array.shape == (1, 1, 4, 6)
    np.testing.assert_allclose(array[0, 0], P @ [0.299, 0.587, 0.114], atol=0.51)  # Pillow rounds to 8 bits


@pytest.mark.parametrize(
    ("shape", "options", "layout", "size", "guessed"),
    [
        ((1, 3, 32, 48), Options(preset="unit"), "nchw", (32, 48), 0),
        (("N", 32, 48, 3), Options(preset="unit"), "nhwc", (32, 48), 0),
        ((1, 1, 28, 28), Options(preset="unit"), "nchw", (28, 28), 0),
        (("N", 3, "H", "W"), Options(preset="unit"), "nchw", (224, 224), 1),
        ((-1, 3, "?", "?"), Options(preset="unit", size=(48, 192)), "nchw", (48, 192), 0),
        ((-1, 3, 48, "?"), Options(preset="unit"), "nchw", (48, 224), 1),
        (("N", 3, "H", "W"), Options(preset="unit", resize="none"), "nchw", (None, None), 0),
        ((1, 3, 10, 3), Options(preset="unit", layout="nchw"), "nchw", (10, 3), 0),
        ((1, 3, 10, 3), Options(preset="unit", layout="nhwc"), "nhwc", (3, 10), 0),
        (("N", "C", 8, 8), Options(preset="unit", layout="nchw"), "nchw", (8, 8), 1),
        ((1, 3, 8, 8), Options(), "nchw", (8, 8), 1),
    ],
)
def test_the_plan_follows_the_input_shape_and_states_its_guesses(shape, options, layout, size, guessed):
    made = plan("x", shape, np.float32, options)
    assert (made.layout, (made.height, made.width), len(made.guesses)) == (layout, size, guessed)


@pytest.mark.parametrize(
    ("shape", "options", "error", "words"),
    [
        ((1, 3, 8, 3), Options(), UsageError, "both N,C,H,W and N,H,W,C fit.*--layout nchw"),
        (("N", "a", "b", "c"), Options(), UsageError, "can't be told.*--layout"),
        ((1, 8, 8, 4), Options(), DataError, "neither 1 nor 3 channels.*gbprewrite run"),
        ((1, 4, 8, 8), Options(layout="nchw"), DataError, "takes 4 channels"),
        ((1, 3, 8), Options(), DataError, r"\[1, 3, 8\].*no batch of images"),
        (None, Options(), DataError, "no known shape"),
        (NCHW, Options(layout="chw"), UsageError, "--layout chw"),
        (NCHW, Options(size=(5, 5)), UsageError, "only takes 4x6"),
        (("N", 3, "H", "W"), Options(size=(0, 5)), UsageError, "at least 1"),
        (NCHW, Options(preset="vgg"), UsageError, "--preset vgg.*imagenet, caffe, unit"),
        (NCHW, Options(resize="pad"), UsageError, "--resize pad"),
        (NCHW, Options(mean=(1.0, 2.0)), UsageError, "--mean.*2 numbers.*3 channel"),
        ((1, 1, 4, 4), Options(preset="imagenet"), UsageError, "--mean.*3 numbers.*1 channel"),
        ((1, 1, 4, 4), Options(bgr=True), UsageError, "--bgr"),
        (NCHW, Options(std=(0.0,)), UsageError, "must not be 0"),
        (NCHW, Options(scale=0.0), UsageError, "must not be 0"),
        (NCHW, Options(mean=(104.0, 117.0, 123.0), bgr=True), UsageError, "outside of the values.*--scale 1"),
    ],
)
def test_contradictions_are_errors(shape, options, error, words):
    with pytest.raises(error, match=words):
        plan("x", shape, np.float32, options)


@pytest.mark.parametrize(("width", "height"), [(300, 200), (199, 301), (64, 64), (37, 900)])
def test_crop_is_imagenets_evaluation(width, height):
    image = Image.fromarray(noise(height, width) // 2 + 64)  # far from black and white: clipping depends on the order
    factor = 64 / min(width, height)  # the shorter side to 64, the centre of 56
    scaled = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BICUBIC)
    left, top = (scaled.width - 56) // 2, (scaled.height - 56) // 2
    expected = np.asarray(scaled.crop((left, top, left + 56, top + 56)), int)
    found = np.asarray(fit(plan("x", (1, 3, 56, 56), np.float32), image), int)
    assert np.abs(found - expected).max() <= 1  # Pillow rounds twice


def test_stretch_keeps_the_whole_image():
    image = Image.fromarray(noise(20, 30))
    found = fit(plan("x", NCHW, np.float32, Options(resize="stretch")), image)
    np.testing.assert_array_equal(found, image.resize((6, 4), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("resize", RESIZES)
def test_an_image_of_the_right_size_is_not_resampled(resize):
    found = fit(plan("x", NCHW, np.float32, Options(resize=resize)), Image.fromarray(PIXELS))
    np.testing.assert_array_equal(found, PIXELS)


def test_without_resizing_a_static_model_takes_only_its_size():
    with pytest.raises(DataError, match="image is 5x7, the model takes 4x6"):
        fit(plan("x", NCHW, np.float32, Options(resize="none")), Image.fromarray(noise(5, 7)))


def test_without_resizing_a_dynamic_model_takes_the_images_size():
    made = plan("x", ("N", 3, "H", "W"), np.float16, Options(resize="none"))
    assert made.array(fit(made, Image.fromarray(noise(5, 7)))).shape == (1, 3, 5, 7)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    return exif


GREY = noise(4, 6, 1)[:, :, 0]
RGBA = np.dstack([PIXELS, np.where(np.arange(24).reshape(4, 6) % 2, 255, 0).astype(np.uint8)])
ON_WHITE = np.where(RGBA[:, :, 3:] == 255, PIXELS, 255)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        pytest.param(Image.fromarray(PIXELS), {}, PIXELS, id="colour"),
        pytest.param(Image.fromarray(GREY), {}, GREY, id="grey"),
        pytest.param(Image.fromarray(GREY > 127), {}, np.where(GREY > 127, 255, 0), id="one bit"),
        pytest.param(Image.fromarray(GREY.astype(np.uint16) * 257), {}, GREY, id="16 bits"),
        pytest.param(Image.fromarray(RGBA), {}, ON_WHITE, id="alpha"),
        pytest.param(Image.fromarray(PIXELS).quantize(24), {}, PIXELS, id="palette"),
        pytest.param(
            Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P"),
            {"transparency": 0},
            np.array([[[255, 255, 255], [1, 1, 1]]]),
            id="palette with transparency",
        ),
        pytest.param(Image.fromarray(PIXELS), {"exif": rotated()}, np.rot90(PIXELS, -1), id="orientation"),
    ],
)
def test_files_are_read_as_they_are_meant(tmp_path, image, options, expected):
    image.save(tmp_path / "photo.png", **options)
    np.testing.assert_array_equal(np.asarray(read(tmp_path / "photo.png")), expected)


def text(path: Path) -> None:
    path.write_text("a photograph, honestly")


def truncated(path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def broken_header(path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(path)
    data = bytearray(path.read_bytes())
    data[20] ^= 255
    path.write_bytes(data)


def floats(path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path, "TIFF")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (text, "is no image"),
        (Path.touch, "is no image"),
        (truncated, "can't be read|damaged"),
        (broken_header, "can't be read|damaged|no image"),
        (floats, "32-bit values.*gbprewrite run"),
        (Path.mkdir, "can't be read"),
        (lambda path: None, "can't be read: No such file"),
    ],
    ids=["text", "empty", "truncated", "broken header", "32-bit", "folder", "missing"],
)
def test_what_is_no_photograph_is_a_data_error(tmp_path, make, words):
    make(tmp_path / "photo.png")
    with pytest.raises(DataError, match=words):
        read(tmp_path / "photo.png")


def test_a_huge_image_is_refused(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="more than 20 pixels"):
        read(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.5", (0.5,)),
        ("1/255", (1 / 255,)),
        ("1/127.5", (1 / 127.5,)),
        ("104, 117,123", (104, 117, 123)),
        ("-1e-3", (-0.001,)),
    ],
)
def test_numbers_are_read(value, expected):
    assert numbers("mean", value) == expected


@pytest.mark.parametrize("value", ["", "a", "1;2", "1/0", "nan", "inf", "1,,2", "1/", "1/2/3", "1e999"])
def test_other_text_is_no_number(value):
    with pytest.raises(UsageError, match="--mean"):
        numbers("mean", value)


@pytest.mark.parametrize(("value", "expected"), [("224", (224, 224)), ("48x192", (48, 192)), ("48X192", (48, 192))])
def test_sizes_are_read(value, expected):
    assert size(value) == expected


@pytest.mark.parametrize("value", ["", "x", "48x", "-1", "1x2x3", "0.5"])
def test_other_text_is_no_size(value):
    with pytest.raises(UsageError, match="--size"):
        size(value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (Options(preset="caffe"), "4x6 NCHW BGR, pixel - (104, 117, 123) (values -123 to 151), "),
        (Options(preset="unit"), "4x6 NCHW RGB, pixel * 1/255 (values 0 to 1), "),
        (Options(mean=(0.5,), std=(0.5,)), "4x6 NCHW RGB, (pixel * 1/255 - 0.5) / 0.5 (values -1 to 1), "),
        (Options(scale=1.0), "4x6 NCHW RGB, pixel (values 0 to 255), "),
    ],
)
def test_the_text_gives_the_formula(options, expected):
    assert plan("x", NCHW, np.float32, options).text() == expected + RESIZES["crop"]

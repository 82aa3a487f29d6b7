"""Preprocessing inside the file, against Pillow and numpy outside of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.errors import UsageError
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.graft import restore
from gbprewrite.model.messages import copied
from gbprewrite.photos import images
from gbprewrite.photos.preprocessing import Options
from gbprewrite.pictures.explain import PhotoExplainer
from tests.small import Array, model, run

SHARED = Path(__file__).parents[2] / "shared"
KERNEL = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
GREY_KERNEL = KERNEL[:, :1]
TAIL = "c = Conv <pads = [1, 1, 1, 1]> ({last}, w) r = Relu (c) y = ReduceMean <keepdims = 0> (r, axes) }}"
AXES = np.array([2, 3], np.int64)


def network(
    size: str = "1, 3, 24, 32", layout: str = "nchw", dtype: str = "float", **weights: Array
) -> onnx.ModelProto:
    """A Conv, a Relu and means of an image input x."""
    move = "t = Transpose <perm = [0, 3, 1, 2]> (x)" if layout == "nhwc" else ""
    tail = TAIL.format(last="t" if move else "x")
    weights = weights or {"w": KERNEL.astype(np.float16 if dtype == "float16" else np.float32)}
    return model(
        f"g ({dtype}[{size}] x) => ({dtype}[N, 4] y) {{ {move} {tail}".replace("}}", "}"), axes=AXES, **weights
    )


def noise(height: int, width: int, channels: int = 3) -> Array:
    return np.random.default_rng(height * width).integers(0, 256, (1, height, width, channels), np.uint8)


def fed(converted: onnx.ModelProto, photos: Array) -> Array:
    """What the network is fed, by the file's own nodes."""
    seen = copied(converted)
    seen.graph.output.append(next(v for v in seen.graph.value_info if v.name == "x"))
    return run(seen, x_image=photos)["x"]


def outside(converted: onnx.ModelProto, photos: Array) -> Array:
    """The same by Pillow and numpy."""
    record = report.read_record(converted)
    assert record is not None
    made = embedded.read(record["preprocessing"])
    return np.concatenate([made.array(images.fit(made, images.of(photo))) for photo in photos])


SIZES = [(24, 32), (25, 32), (48, 64), (240, 31), (31, 240), (7, 5), (1, 1), (200, 3)]


@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("size", SIZES)
def test_photographs_of_any_size_become_the_same_bits(resize: str, size: tuple[int, int]) -> None:
    found = gbprewrite.convert(
        network(), embed_preprocessing=True, preprocessing=Options(preset="unit", scale=1.0, resize=resize)
    )
    photos = noise(*size)
    np.testing.assert_array_equal(fed(found, photos), outside(found, photos))


VALUES = {
    "imagenet": (network(), Options(preset="imagenet")),
    "caffe": (network(), Options(preset="caffe")),
    "unit": (network(), Options(preset="unit")),
    "one mean": (network(), Options(mean=(0.5,), std=(0.5,))),
    "channels last": (network("1, 24, 32, 3", "nhwc"), Options(preset="caffe")),
    "grey": (network("1, 1, 24, 32", w=GREY_KERNEL), Options(preset="unit", mean=(0.1,))),
    "any batch": (network("N, 3, 24, 32"), Options(preset="imagenet")),
    "any size": (network("N, 3, H, W"), Options(preset="imagenet", size=(24, 32))),
    "the photographs' own size": (network("N, 3, H, W"), Options(preset="imagenet", resize="none")),
    "not resized": (network(), Options(preset="caffe", resize="none")),
    "float16": (network(dtype="float16"), Options(preset="imagenet")),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_are_those_of_numpy(case: str) -> None:
    source, options = VALUES[case]
    found = gbprewrite.convert(source, embed_preprocessing=True, preprocessing=options)
    image = next(i for i in found.graph.input if i.name == "x_image")
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    batch = 1 if image.type.tensor_type.shape.dim[0].dim_value else 2
    size = (24, 32) if options.resize == "none" else (40, 50)
    photos = np.repeat(noise(*size, 1 if case == "grey" else 3), batch, axis=0)
    photos[-1] = photos[-1, ::-1]
    values = fed(found, photos)
    assert values.dtype == (np.float16 if case == "float16" else np.float32)
    np.testing.assert_allclose(values, outside(found, photos), rtol=1e-6, atol=1e-6 if case != "float16" else 2e-3)


def test_maps_are_those_of_the_file_without() -> None:
    source, options = network(), Options(preset="imagenet")
    with_photos = gbprewrite.convert(source, ["guided", "gradient"], embed_preprocessing=True, preprocessing=options)
    without = gbprewrite.convert(source, ["guided", "gradient"])
    photos = noise(24, 32)
    ours, theirs = run(with_photos, x_image=photos), run(without, x=fed(with_photos, photos))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, name)


@pytest.mark.parametrize("maps_only", [False, True])
def test_it_comes_out_again(maps_only: bool) -> None:
    source = network("N, 3, 24, 32")
    source.graph.input[0].doc_string = "photographs"
    plain = gbprewrite.convert(source, maps_only=maps_only)
    found = gbprewrite.convert(source, maps_only=maps_only, embed_preprocessing=True)
    assert embedded.take_out(found).SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    if not maps_only:
        again = gbprewrite.convert(source, embed_preprocessing=True)
        assert restore.restore(again) == restore.restore(plain)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maps_only": True},
        {"forms": ["heatmap"]},
        {"forms": ["raw", "overlay"], "preprocessing": Options(preset="caffe", size=(24, 32))},
        {"method": "smoothgrad", "samples": 2},
        {"target": "input"},
    ],
    ids=str,
)
def test_verify_passes(options: dict[str, Any]) -> None:
    source = network("N, 3, 24, 32")
    found = gbprewrite.verify(gbprewrite.convert(source, embed_preprocessing=True, **options), source)
    assert found.ok, found
    assert found.checks[0].name == "preprocessing"
    assert found.checks[0].error == pytest.approx(0, abs=1e-4)


def test_verify_takes_photographs_and_finds_a_wrong_preprocessing() -> None:
    found = gbprewrite.convert(network(), embed_preprocessing=True, preprocessing=Options(preset="imagenet"))
    assert gbprewrite.verify(found, inputs={"x_image": noise(50, 60)}).ok
    mean = next(t for t in found.graph.initializer if list(t.dims) == [1, 3, 1, 1])
    mean.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 0.45, np.float32), mean.name))
    wrong = gbprewrite.verify(found)
    assert [c.name for c in wrong.checks if c.status == "failed"] == ["preprocessing"]


def test_an_explainer_takes_photographs_and_draws_noise_for_them() -> None:
    source, options = network("N, 3, 24, 32"), Options(preset="imagenet")
    explainer = gbprewrite.Explainer(
        source, "smoothgrad", samples=2, embed_preprocessing=True, preprocessing=options, providers="cpu"
    )
    photos = np.concatenate([noise(40, 50), noise(40, 50)[:, ::-1]])
    found = explainer(photos).map()
    plain = gbprewrite.Explainer(source, "smoothgrad", samples=2, providers="cpu")
    record = explainer.record
    made = embedded.read(record["preprocessing"])
    values = np.concatenate([made.array(images.fit(made, images.of(photo))) for photo in photos])
    np.testing.assert_allclose(found, plain(values).map(), rtol=1e-5, atol=1e-7)


def test_explain_feeds_the_photograph_and_takes_no_second_preprocessing(tmp_path: Path) -> None:
    Image.fromarray(noise(40, 50)[0]).save(tmp_path / "photo.png")
    source, options = network(), Options(preset="caffe")
    found = gbprewrite.convert(source, embed_preprocessing=True, preprocessing=options)
    ours = PhotoExplainer(found, providers="cpu")(tmp_path / "photo.png")
    theirs = PhotoExplainer(source, preprocessing=options, providers="cpu")(tmp_path / "photo.png")
    np.testing.assert_array_equal(ours.maps[0]["guided"], theirs.maps[0]["guided"])
    np.testing.assert_array_equal(ours.photo, theirs.photo)
    with pytest.raises(UsageError, match="has its preprocessing built in"):
        PhotoExplainer(found, preprocessing=Options(preset="unit"), providers="cpu")


def test_a_guess_is_in_the_record() -> None:
    record = report.read_record(gbprewrite.convert(network(), embed_preprocessing=True))
    assert record is not None
    assert "preset imagenet assumed" in record["preprocessing"]["guesses"][0]
    assert json.loads(json.dumps(record["embedded"]))["name"] == "x_image"


TWO = model(
    "g (float[1, 3, 8, 8] a, float[1, 3, 8, 8] b) => (float[1, 1] y)"
    " { s = Add (a, b) c = Conv (s, w) r = Relu (c) y = ReduceMean <keepdims = 0> (r, axes) }",
    w=KERNEL[:1], axes=AXES,
)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (TWO, {}, UsageError, "one image input, and 2 are differentiated .a, b.*--input"),
        (network("1, 5, 24, 32", w=np.ones((4, 5, 3, 3), np.float32)), {}, gbprewrite.DataError, "takes 5 channels"),
        (network("1, 3, H, W"), {"preprocessing": Options(size=(0, 3))}, UsageError, "--size 0x3"),
        (
            network(),
            {"embed_preprocessing": False, "preprocessing": Options(preset="unit")},
            UsageError,
            "only --embed",
        ),
    ],
)
def test_what_can_not_be_is_one_clear_error(source: Any, options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        gbprewrite.convert(source, **{"embed_preprocessing": True, **options})


def test_a_taken_name_is_an_error() -> None:
    source = model(
        "g (float[1, 3, 8, 8] x) => (float[1, 1] y)"
        " { x_image = Conv (x, w) r = Relu (x_image) y = ReduceMean <keepdims = 0> (r, axes) }",
        w=KERNEL[:1], axes=AXES,
    )  # fmt: skip
    with pytest.raises(gbprewrite.ModelError, match=r"x_image.*--prefix"):
        gbprewrite.convert(source, embed_preprocessing=True)
    assert gbprewrite.convert(source, embed_preprocessing=True, prefix="p_").graph.input[0].name == "p_x_image"


def test_the_command_says_what_photographs_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    main(["convert", str(tmp_path / "net.onnx"), "--embed-preprocessing", "--preset", "unit"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "x_image uint8 [1, height, width, 3]" in said
    assert "photographs" in said
    assert "pixel * 1/255 (values 0 to 1)" in said


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not there")
@pytest.mark.parametrize("photo", ["chelsea", "coffee", "astronaut"])
def test_a_real_network_is_fed_the_same_bits(photo: str) -> None:
    found = gbprewrite.convert(SHARED / "models" / "squeezenet11.onnx", embed_preprocessing=True)
    pixels = np.asarray(images.read(SHARED / "photos" / f"{photo}.png"))[None]
    seen = copied(found)
    seen.graph.output.append(next(v for v in seen.graph.value_info if v.name == "data_0"))
    np.testing.assert_array_equal(run(seen, data_0_image=pixels)["data_0"], outside(found, pixels))

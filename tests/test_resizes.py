"""Resize: what onnxruntime does decides, about lengths and about pixels.

The right map is Jᵀ · seed, where J is read off onnxruntime's own forward pass, one unit image after another.
"""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.normalise.resizes import length
from tests.small import Array, model, normal, run

Row = tuple[int, list[int], str, dict[str, Array], str]


def _source(row: Row, dims: list[str]) -> onnx.ModelProto:
    opset, shape, body, weights, _ = row
    open_rank = ", ".join("abcde"[: len(shape)])
    return model(f"g (float[{', '.join(dims)}] x) => (float[{open_rank}] y) {{ {body} }}", opset, **weights)


def _check(row: Row, static: bool) -> onnx.ModelProto:
    shape = row[1]
    source = _source(row, list(map(str, shape)) if static else ["N", "C", "H", "W", "D"][: len(shape)])
    converted = gbprewrite.convert(source, "gradient", "seed")
    size = int(np.prod(shape))
    units = [run(source, x=unit.reshape(shape))["y"] for unit in np.eye(size, dtype=np.float32)]
    x, seed = normal(*shape), normal(*units[0].shape, seed=1)
    found = run(converted, x=x, seed=seed)
    np.testing.assert_allclose(found["y"], run(source, x=x)["y"], rtol=1e-5, atol=1e-6)
    want = np.array([(unit.astype(np.float64) * seed).sum() for unit in units]).reshape(shape)
    np.testing.assert_allclose(found["x_gradient"], want, rtol=1e-4, atol=2e-5)
    return converted


def _row(opset: int, shape: list[int], by: dict[str, list[Any]], note: str = "", **attributes: Any) -> Row:
    """By "scales" or "sizes"."""
    text = ", ".join(f"{k} = {repr(v).replace(chr(39), chr(34))}" for k, v in attributes.items())
    ((kind, values),) = by.items()
    weights = {"s": np.array(values, np.float32 if kind == "scales" else np.int64), "e": np.zeros(0, np.float32)}
    if opset < 10:
        return opset, shape, f"y = Upsample <{text}> (x, s)", weights, note
    inputs = "x, s" if opset == 10 else "x, e, s" if kind == "scales" else "x, e, e, s" if opset < 13 else "x, , , s"
    return opset, shape, f"y = Resize <{text}> ({inputs})", weights, note


ROWS: list[Row] = [
    _row(9, [1, 1, 7, 3], {"scales": [1, 1, 13 / 7, 2]}, "7 becomes 13 in float32 only", mode="nearest"),
    _row(10, [1, 2, 6, 5], {"scales": [1, 1, 0.4, 0.6]}, "shrinks: the pixel above", mode="nearest"),
    _row(10, [1, 1, 6, 5], {"scales": [1, 1, 0.4, 2]}, "one axis shrinks, the other grows", mode="nearest"),
    _row(10, [1, 1, 6, 7], {"scales": [1, 1, 0.5, 13 / 7]}, mode="linear"),
    _row(11, [1, 1, 7, 4], {"scales": [1, 1, 13 / 7, 1.7]}, "an axis whose length does not say its scale",
         mode="linear", coordinate_transformation_mode="asymmetric"),
    _row(13, [1, 1, 10, 5], {"scales": [1, 1, 0.6, 1.4]}, mode="cubic", exclude_outside=1),
    _row(13, [1, 1, 9, 3], {"scales": [1, 1, 11 / 9, 1]}, mode="nearest", nearest_mode="ceil"),
    _row(17, [8, 10], {"scales": [1.25, 1.1]}, mode="cubic"),
    _row(13, [1, 1, 8, 6], {"scales": [1, 1, 1.25, 1.1]}, "scaled, and yet as long as before", mode="linear",
         coordinate_transformation_mode="asymmetric"),
    _row(13, [1, 1, 4, 6], {"scales": [1, 1, 1.1, 1.1]}, "onnxruntime copies", mode="linear",
         coordinate_transformation_mode="asymmetric"),
    _row(17, [1, 1, 10, 11], {"scales": [1, 1, 1.2, 0.3]}, "9 / 1.2 is 7.5 to onnxruntime", mode="nearest",
         coordinate_transformation_mode="asymmetric", nearest_mode="round_prefer_ceil"),
    _row(11, [1, 1, 5, 4], {"sizes": [1, 1, 7, 9]}, mode="nearest",
         coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"),
    _row(19, [1, 1, 5, 4], {"scales": [1, 1, 1.5, 0.7]}, mode="linear",
         coordinate_transformation_mode="half_pixel_symmetric"),
    _row(18, [1, 1, 9, 2], {"scales": [1, 1, 2 / 3, 1.1]}, mode="cubic", antialias=1),
    _row(18, [1, 1, 2, 8], {"sizes": [1, 7]}, "antialias copies along an axis that stays", mode="linear", antialias=1,
         axes=[2, 3], keep_aspect_ratio_policy="not_smaller"),
    _row(18, [1, 1, 8, 3], {"sizes": [9, 8]}, mode="cubic", antialias=1, axes=[2, 3],
         keep_aspect_ratio_policy="not_larger"),
    _row(18, [1, 1, 2, 30], {"sizes": [15, 21]}, "10.5 / 0.7 is 15 to onnxruntime", mode="nearest", axes=[2, 3],
         keep_aspect_ratio_policy="not_larger"),
    _row(19, [1, 1, 1, 3], {"sizes": [31, 49]}, mode="nearest", nearest_mode="floor", axes=[2, 3],
         coordinate_transformation_mode="half_pixel_symmetric", keep_aspect_ratio_policy="not_larger"),
    _row(18, [1, 1, 3, 4], {"sizes": [9, 5]}, mode="nearest", axes=[3, 2], keep_aspect_ratio_policy="not_smaller"),
    _row(18, [1, 2, 3, 5], {"sizes": [9, 10]}, mode="cubic", axes=[-2, -1],
         coordinate_transformation_mode="asymmetric"),
    _row(18, [1, 1, 3, 3], {"scales": [11 / 3, 13 / 3]}, mode="nearest", axes=[2, 3]),
    _row(18, [1, 1, 3, 4, 2], {"scales": [1, 1, 7 / 3, 0.75, 2]}, mode="linear"),
    _row(18, [1, 1, 7], {"scales": [1, 1, 13 / 7]}, mode="nearest"),
]  # fmt: skip


def _crop(shape: list[int], by: dict[str, list[Any]], note: str, mode: str) -> Row:
    """Of rows 0.1 to 0.8 and columns -0.2 to 0.6 of the image."""
    opset, shape, body, weights, note = _row(
        18, shape, by, note, mode=mode, coordinate_transformation_mode="tf_crop_and_resize"
    )
    body = body.replace("(x, e, s)", "(x, r, s)").replace("(x, , , s)", "(x, r, , s)")
    return opset, shape, body, {**weights, "r": np.float32([0, 0, 0.1, -0.2, 1, 1, 0.8, 0.6])}, note


ROWS += [
    _crop([1, 1, 4, 5], {"sizes": [1, 1, 6, 3]}, "", "linear"),
    _crop([1, 1, 4, 5], {"sizes": [1, 1, 7, 5]}, "an axis of scale 1 is not cropped", "cubic"),
    _crop([1, 1, 4, 5], {"scales": [1, 1, 1, 0.6]}, "an axis of scale 1 is not cropped", "nearest"),
    _crop([1, 1, 4, 5], {"scales": [1, 1, 1, 1]}, "nothing is cropped", "linear"),
    _crop([1, 1, 4, 5], {"scales": [1, 1, 1.1, 1]}, "no length changes: nothing is cropped", "linear"),
    _crop([1, 1, 4, 2], {"scales": [1, 1, 2, 0.5]}, "one pixel is read in the middle", "linear"),
]


@pytest.mark.parametrize("static", [True, False], ids=["static", "open"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[2][:60]} {row[4]}")
def test_the_map_is_the_adjoint_of_what_onnxruntime_computes(row: Row, static: bool) -> None:
    _check(row, static)


def test_lengths_of_every_pyramid() -> None:
    """Sizes 1 to 400: a level is scaled to the one below, as exporters write it; a sample runs in onnxruntime."""
    sizes = np.arange(1, 401, dtype=np.float32)
    scales = sizes[None] / sizes[:, None]
    exact, cut = (sizes[:, None] * scales).astype(np.int64), np.floor(sizes[:, None] * scales.astype(np.float64))
    doubtful = np.argwhere(exact != cut)
    assert len(doubtful) > 30_000
    agreeing = np.argwhere(exact == cut)
    short = [[n, k] for n, k in doubtful if n < 40 and k < 40]
    for n, k in [*short[:: len(short) // 12], *doubtful[:: len(doubtful) // 12], *agreeing[:: len(agreeing) // 6]]:
        scale = scales[n, k]
        row = _row(13, [1, 1, 1, n + 1], {"scales": [1, 1, 1, float(scale)]}, mode="nearest")
        source = _source(row, ["1", "1", "1", str(n + 1)])
        x = normal(1, 1, 1, n + 1)
        own = run(source, x=x)["y"]
        assert own.shape[3] == length(n + 1, scale) == exact[n, k]
        converted = gbprewrite.convert(source, "gradient", "seed")
        found = run(converted, x=x, seed=np.ones_like(own))
        np.testing.assert_array_equal(found["y"], own)
        assert found["x_gradient"].sum() == own.size


PYRAMID = """pyramid (float[N, 2, {h}, {w}] x) => (float[N, 2, {h}, {w}] y) {{
    r = Relu (x)
    low = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
    high_shape = Shape (r)
    low_shape = Shape (low)
    {slices}
    high_sizes = Cast <to = 1> (high)
    low_sizes = Cast <to = 1> (lower)
    ratio = Div (high_sizes, low_sizes)
    scales = Concat <axis = 0> (ones, ratio)
    up = Resize <mode = "nearest"{mode}> ({inputs})
    y = Add (r, up)
}}"""


@pytest.mark.parametrize("opset", [10, 11, 13, 18])
@pytest.mark.parametrize(("h", "w"), [(38, 50), (13, 25), (7, 400)])
def test_pyramids_that_compute_their_scales(opset: int, h: int, w: int) -> None:
    ends = [np.array([n]) for n in (2, 4, 0)]
    text = PYRAMID.format(
        h=h,
        w=w,
        slices="high = Slice (high_shape, two, four, zero) lower = Slice (low_shape, two, four, zero)",
        mode="" if opset == 10 else ', coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        inputs="low, scales" if opset == 10 else "low, none, scales",
    )
    weights = dict(zip(("two", "four", "zero"), ends, strict=True))
    weights |= {"ones": np.ones(2, np.float32), "none": np.zeros(0, np.float32)}
    source = model(text, opset, **weights)
    x, seed = normal(2, 2, h, w), normal(2, 2, h, w, seed=1)
    found = run(gbprewrite.convert(source, "gradient", "seed"), x=x, seed=seed)
    np.testing.assert_array_equal(found["y"], run(source, x=x)["y"])
    np.testing.assert_allclose(found["x_gradient"], _pyramid_map(x, seed), rtol=1e-5, atol=1e-5)


def _pyramid_map(x: Array, seed: Array) -> Array:
    """By loops over the windows: y = r + the pooled value of the window that each position reads."""
    made, r = seed.astype(np.float64).copy(), np.maximum(x, 0)
    (h, w), (low_h, low_w) = x.shape[2:], (-(-x.shape[2] // 2), -(-x.shape[3] // 2))
    rows = np.floor(np.arange(h, dtype=np.float32) / (np.float32(h) / np.float32(low_h))).astype(int)
    columns = np.floor(np.arange(w, dtype=np.float32) / (np.float32(w) / np.float32(low_w))).astype(int)
    for n, c in np.ndindex(*x.shape[:2]):
        for i, j in np.ndindex(low_h, low_w):
            top, left = max(2 * i - 1, 0), max(2 * j - 1, 0)
            window = r[n, c, top : 2 * i + 2, left : 2 * j + 2]
            a, b = np.unravel_index(window.argmax(), window.shape)
            made[n, c, top + a, left + b] += seed[n, c][np.ix_(rows == i, columns == j)].sum(dtype=np.float64)
    return np.asarray(made * (x > 0))


def test_what_no_later_opset_can_say_is_refused() -> None:
    row = _row(10, [1, 1, 6, 3], {"scales": [1, 1, 0.5, 1.1]}, mode="nearest")
    with pytest.raises(gbprewrite.ModelError, match=r"'y' of opset 10 shrinks some axes and scales others by 1\.1"):
        _check(row, static=True)
    row = _row(18, [1, 1, 6, 3], {"sizes": [5, 4]}, axes=[-2, -1], keep_aspect_ratio_policy="not_larger")
    with pytest.raises(gbprewrite.UnsupportedOperators, match="counted from the end; export it with positive axes"):
        _check(row, static=True)

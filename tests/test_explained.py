"""Grad-CAM at detectors' heads: the layer is one that all explained channels depend on, and its map is numpy's."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.errors import NoFeatureLayer, UsageError
from gbprewrite.graft import record as report
from tests.detectors import separate, yolov5, yolov8, yolox
from tests.small import model, normal, run

SMALL = 0.1 * normal(1, 3, 4, 4, seed=3)  # so that no Sigmoid saturates, where float32 leaves few digits of 1 - y


def cam_layer(source: onnx.ModelProto, target: str, **options: Any) -> str:
    record = report.read_record(gbprewrite.convert(source, "gradcam", target, **options))
    assert record is not None
    return str(record["cam_layer"])


@pytest.mark.parametrize(
    ("source", "target", "channels", "layer"),
    [
        (yolov8(), "strongest", "4:", "k"),  # the class branch, although the box branch stands behind it
        (yolov8(), "7", None, "k"),
        (yolov8(), "topk:2", "5:", "k"),
        (yolov8(), "channel:8", None, "k"),
        (yolov8(), "unit:2,3", None, "b"),
        (yolov8(), "strongest", ":", "f"),
        (yolov5(), "strongest", "5:", "f"),  # two scales: what both depend on
        (yolov5(), "unit:30,6", None, "f"),
        (yolox(True), "strongest", "4", "o"),
        (yolox(True), "strongest:2", "5:", "k"),
        (yolox(True), "strongest:2", "4:", "f"),
    ],
)
def test_the_layer_is_one_that_the_explained_channels_depend_on(
    source: onnx.ModelProto, target: str, channels: str | None, layer: str
) -> None:
    assert cam_layer(source, target, channels=channels) == layer


def test_the_map_of_a_class_of_two_scales() -> None:
    """y = sigmoid(Σ w f) at one position: df is y (1 - y) w there, its mean over 16 positions the channel's weight."""
    source = yolov5()
    found = run(gbprewrite.convert(source, "gradcam", "strongest", channels="5:"), x=SMALL)
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in source.graph.initializer}
    f = np.maximum(np.einsum("oi,ihw->ohw", weights["wc"][:, :, 0, 0], SMALL[0].astype(np.float64)), 0)
    anchor, channel = found["explained_index"][0]
    w = weights["wo1" if anchor < 16 else "wo2"][channel, :, 0, 0]
    y = 1 / (1 + np.exp(-np.einsum("i,ihw->hw", w, f)))
    slope = (y * (1 - y)).ravel()[anchor % 16] * w / 16
    np.testing.assert_allclose(
        found["x_gradcam"][0, 0], np.maximum(np.einsum("i,ihw->hw", slope, f), 0), rtol=1e-5, atol=1e-8
    )
    assert found["x_gradcam"].any()


@pytest.mark.parametrize(("layer", "explained"), [("b", "4:"), ("k", "4"), ("o", "5:")])
def test_a_named_layer_that_the_explained_channels_do_not_depend_on(layer: str, explained: str) -> None:
    with pytest.raises(UsageError, match="do not depend on it, so that its map would be nought"):
        gbprewrite.convert(yolox(True), "gradcam", "strongest", channels=explained, cam_layer=layer)


def test_scales_that_have_no_layer_in_common() -> None:
    text = """g (float[1, 2, 4, 4] x) => (float[1, 3, 32] y) { a = Conv (x, v) b = Conv (x, w)
        r = Relu (a) q = Relu (b) m = Reshape (r, s) n = Reshape (q, s) y = Concat <axis = 2> (m, n) }"""
    source = model(text, v=normal(3, 2, 1, 1), w=normal(3, 2, 1, 1, seed=1), s=np.array([1, 3, 16]))
    with pytest.raises(NoFeatureLayer):
        gbprewrite.convert(source, "gradcam", "strongest")


def test_selected_boxes_of_two_scales() -> None:
    """The scores that TopK left: all that they are chosen from counts."""
    source = separate(
        "float[D] score",
        "g = Sigmoid (kt) m = ReduceMax <keepdims = 0> (g, two_axis) v = Sigmoid (bt)",
        "n = ReduceMax <keepdims = 0> (v, two_axis) j = Concat <axis = 1> (m, n) flat = Squeeze (j, zero)",
        "score, i = TopK (flat, five)",
    )
    added = {"two_axis": [2], "five": [5]}
    source.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in added.items())
    assert cam_layer(source, "strongest") == "f"

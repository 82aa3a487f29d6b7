"""Grad-CAM with several inputs and several branches: each input's map is of its own last layer; by numpy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.graft.record import read_record
from tests.small import Array, model, normal, run

KERNELS = {"u": normal(4, 3, 1, 1, seed=1), "v": normal(5, 1, 1, 1, seed=2)}
HEAD = normal(2, 9, seed=4)
STREAMS = """p = Conv (rgb, u) a = Relu (p) q = Conv (depth, v) b = Relu (q)
    c = ReduceMean <keepdims = 0> (a, space) d = ReduceMean <keepdims = 0> (b, space)"""
INPUTS = "float[N, 3, 4, 4] rgb, float[N, 1, 6, 5] depth"


def two_streams(joined: str = "", inputs: str = INPUTS, **weights: Array) -> onnx.ModelProto:
    """Two images, each with a convolution and a pool of its own, and one linear layer over both."""
    body = joined or f"{STREAMS} e = Concat <axis = 1> (c, d) y = Gemm <transB = 1> (e, w)"
    given = {"w": HEAD, "space": np.int64([2, 3]), **KERNELS, **weights}
    return model(f"g ({inputs}) => (float[N, 2] y) {{ {body} }}", **given)


def features(x: Array, kernel: Array) -> Array:
    """relu of a convolution of one pixel."""
    return np.maximum(np.einsum("nchw,kc->nkhw", x.astype(np.float64), kernel[:, :, 0, 0]), 0)


def cam(a: Array, weights: Array) -> Array:
    """relu(Σ a · weights / positions), where the score is the mean of a times weights."""
    summed = np.einsum("nkhw,k->nhw", a, weights.astype(np.float64)) / (a.shape[2] * a.shape[3])
    return np.maximum(summed, 0)[:, None]


def facts(built: onnx.ModelProto) -> dict[str, Any]:
    return dict(read_record(built) or {})


FEEDS = {"rgb": normal(2, 3, 4, 4, seed=4), "depth": normal(2, 1, 6, 5, seed=5)}


@pytest.mark.parametrize("target", [0, 1])
def test_each_input_has_the_map_of_its_own_stream(target: int) -> None:
    built = gbprewrite.convert(two_streams(), ["gradcam", "guided", "guided_gradcam"], target)
    found = run(built, **FEEDS)
    for x, kernel, row in (("rgb", "u", HEAD[target, :4]), ("depth", "v", HEAD[target, 4:])):
        wanted = cam(features(FEEDS[x], KERNELS[kernel]), row)
        assert wanted.any()
        np.testing.assert_allclose(found[f"{x}_gradcam"], wanted, rtol=1e-5, atol=1e-7)
        both = found[f"{x}_guided"] * wanted
        np.testing.assert_allclose(found[f"{x}_guided_gradcam"], both, rtol=1e-4, atol=1e-7)
    layers = [(row["input"], row["layer"], row["beside"]) for row in facts(built)["cam_layers"]]
    assert layers == [("rgb", "a", []), ("depth", "b", [])]
    assert facts(built)["cam_layer"] is None


def test_siamese_branches_of_the_same_weights() -> None:
    body = """p = Conv (left, u) a = Relu (p) q = Conv (right, u) b = Relu (q)
        c = ReduceMean <keepdims = 0> (a, space) d = ReduceMean <keepdims = 0> (b, space)
        e = Sub (c, d) y = Gemm <transB = 1> (e, h)"""
    head = normal(2, 4, seed=6)
    source = two_streams(body, "float[N, 3, 4, 4] left, float[N, 3, 4, 4] right", h=head)
    feeds = {"left": normal(2, 3, 4, 4, seed=7), "right": normal(2, 3, 4, 4, seed=8)}
    found = run(gbprewrite.convert(source, "gradcam", 1), **feeds)
    for x, sign in (("left", 1), ("right", -1)):
        wanted = cam(features(feeds[x], KERNELS["u"]), sign * head[1])
        np.testing.assert_allclose(found[f"{x}_gradcam"], wanted, rtol=1e-5, atol=1e-7)


def test_streams_that_join_share_the_layer_behind() -> None:
    """Where maps are joined before the pool, the last layer is that of both: one string in the record."""
    body = """p = Conv (rgb, u) q = Conv (depth, k) s = Add (p, q) a = Relu (s)
        c = ReduceMean <keepdims = 0> (a, space) y = Gemm <transB = 1> (c, h)"""
    head = normal(2, 4, seed=6)
    weights = {"h": head, "k": normal(4, 1, 1, 1, seed=9)}
    source = two_streams(body, "float[N, 3, 4, 4] rgb, float[N, 1, 4, 4] depth", **weights)
    feeds = {"rgb": normal(2, 3, 4, 4, seed=7), "depth": normal(2, 1, 4, 4, seed=8)}
    built = gbprewrite.convert(source, "gradcam", 0)
    found = run(built, **feeds)
    both = np.concatenate([feeds["rgb"], feeds["depth"]], 1)
    wanted = cam(features(both, np.concatenate([KERNELS["u"], weights["k"]], 1)), head[0])
    for x in feeds:
        np.testing.assert_allclose(found[f"{x}_gradcam"], wanted, rtol=1e-5, atol=1e-7)
    assert facts(built)["cam_layer"] == "a"


BRANCHED = """p = Conv (rgb, u) a = Relu (p) q = Conv (a, m) b = Relu (q)
    c = ReduceMean <keepdims = 0> (a, space) d = ReduceMean <keepdims = 0> (b, space)
    e = Concat <axis = 1> (c, d) y = Gemm <transB = 1> (e, w)"""
GATED = """p = Conv (rgb, u) a = Relu (p) c = GlobalAveragePool (a) s = Sigmoid (c) b = Mul (a, s)
    d = ReduceMean <keepdims = 0> (b, space) y = Gemm <transB = 1> (d, h)"""


def branched(body: str) -> onnx.ModelProto:
    weights = {"m": normal(5, 4, 1, 1, seed=9), "h": normal(2, 4, seed=6)}
    return two_streams(body, "float[N, 3, 4, 4] rgb", **weights)


def test_a_branch_that_is_pooled_beside_the_layer_is_named(cli: Callable[..., Any], tmp_path: Any) -> None:
    built = gbprewrite.convert(branched(BRANCHED), "gradcam", 0)
    assert facts(built)["cam_layers"] == [{"input": "rgb", "layer": "b", "beside": ["a"]}]
    assert facts(built)["cam_layer"] == "b"
    onnx.save(branched(BRANCHED), tmp_path / "net.onnx")
    said = cli("convert", tmp_path / "net.onnx", "--method", "gradcam").stdout
    assert "b; its map misses the branches that reach the score from a" in said


def test_a_gate_is_no_branch_beside_the_layer() -> None:
    built = gbprewrite.convert(branched(GATED), "gradcam", 0)
    assert facts(built)["cam_layers"] == [{"input": "rgb", "layer": "b", "beside": []}]


def test_a_named_layer_is_that_of_the_inputs_that_reach_it() -> None:
    with pytest.raises(gbprewrite.UsageError, match=r"'depth' does not reach this layer.*--input NAME"):
        gbprewrite.convert(two_streams(), "gradcam", 0, cam_layer="a")
    found = run(gbprewrite.convert(two_streams(), "gradcam", 0, cam_layer="p", inputs=["rgb"]), **FEEDS)
    assert found["rgb_gradcam"].shape == (2, 1, 4, 4)


def test_an_input_without_a_layer_is_named() -> None:
    body = """p = Conv (rgb, u) a = Relu (p) c = ReduceMean <keepdims = 0> (a, space)
        e = Concat <axis = 1> (c, age) y = Gemm <transB = 1> (e, w)"""
    source = two_streams(body, "float[N, 3, 4, 4] rgb, float[N, 5] age")
    with pytest.raises(gbprewrite.ModelError, match=r"none between the input 'age' and the score 'y'.*--input NAME"):
        gbprewrite.convert(source, "gradcam", 0)
    assert facts(gbprewrite.convert(source, "gradcam", 0, inputs=["rgb"]))["cam_layer"] == "a"


def test_every_report_names_the_layers(cli: Callable[..., Any], tmp_path: Any) -> None:
    onnx.save(two_streams(), tmp_path / "net.onnx")
    said = cli("convert", tmp_path / "net.onnx", "--method", "gradcam").stdout
    assert "a (of rgb)" in said
    assert "b (of depth)" in said
    again = cli("inspect", tmp_path / "net.gradcam.onnx")
    assert "b (of depth)" in again.stdout


LEVELS = """g (float[N, 3, 4, 5] x) => (float[N, 2] y) {
    u = QuantizeLinear (x, s, z) q = QLinearConv (u, s, z, k, sk, zk, sa, za)
    g = com.microsoft.QLinearGlobalAveragePool (q, sa, za, sg, za) p = DequantizeLinear (g, sg, za)
    f = Flatten (p) y = Gemm <transB = 1> (f, h) }"""


def test_levels_between_qlinear_operators_are_a_layer_too() -> None:
    """The file holds no floats there: the layer is what its levels stand for."""
    steps = {"s": np.float32(0.02), "sk": np.float32(0.01), "sa": np.float32(0.05), "sg": np.float32(0.01)}
    zeros = {"z": np.uint8(120), "zk": np.int8(0), "za": np.uint8(0)}
    kernel = np.random.default_rng(3).integers(-90, 90, (4, 3, 1, 1), np.int8)
    head = normal(2, 4, seed=6)
    source = model(LEVELS, 18, 8, k=kernel, h=head, **steps, **zeros)
    source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    x = normal(2, 3, 4, 5, seed=7)
    built = gbprewrite.convert(source, "gradcam", 1)
    shown = onnx.ModelProto.FromString(built.SerializeToString())
    shown.graph.output.append(onnx.ValueInfoProto(name="q"))
    found = run(shown, optimise=False, x=x)
    wanted = cam(found["q"].astype(np.float64) * 0.05, head[1])
    assert wanted.any()
    np.testing.assert_allclose(found["x_gradcam"], wanted, rtol=1e-4, atol=1e-7)
    assert facts(built)["cam_layer"] == "q"
    with pytest.raises(gbprewrite.UsageError, match="--cam-layer q/real"):
        gbprewrite.convert(source, "gradcam", 1, cam_layer="q/real")
    with pytest.raises(gbprewrite.UsageError, match="it holds uint8 values"):
        gbprewrite.convert(source, "gradient", layer="q")


@pytest.mark.parametrize(
    ("end", "output"),
    [
        ("y = Identity (z)", "N, 2, 4, 4"),
        ("y = Transpose <perm = [0, 2, 3, 1]> (z)", "N, 4, 4, 2"),
        ("t = Transpose <perm = [0, 2, 3, 1]> (z) y = Softmax (t)", "N, 4, 4, 2"),
        ("o = Constant <value_ints = [1]> () m = Unsqueeze (z, o) y = Identity (m)", "N, 1, 2, 4, 4"),
    ],
)
def test_the_score_itself_is_no_layer_wherever_its_classes_lie(end: str, output: str) -> None:
    """A segmentation's layer is what its last convolution reads."""
    head = normal(2, 4, 1, 1, seed=9)
    text = (
        f"g (float[N, 3, 4, 4] rgb) => (float[{output}] y) {{ p = Conv (rgb, u) a = Relu (p) z = Conv (a, h) {end} }}"
    )
    built = gbprewrite.convert(model(text, u=KERNELS["u"], h=head), "gradcam", 1)
    assert facts(built)["cam_layer"] == "a"
    found = run(built, rgb=FEEDS["rgb"])["rgb_gradcam"]
    wanted = cam(features(FEEDS["rgb"], KERNELS["u"]), head[1, :, 0, 0] * 16)  # summed over 16 positions
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)

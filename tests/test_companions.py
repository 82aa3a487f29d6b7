"""Companion methods by hand, by numpy, and by the gradient that is proved elsewhere."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.graft.record import read_record
from gbprewrite.methods.table import METHODS
from tests.small import Array, cnn, model, normal, run

X = normal(2, 3, 12, 12, seed=7)
OTHERS = [m for m in METHODS if m not in ("gradient", "guided", "deconvnet")]


def maps(source: Any, method: str, x: Array = X, **options: Any) -> Array:
    inputs = {k: options.pop(k) for k in list(options) if isinstance(options[k], np.ndarray)}
    found = gbprewrite.convert(source, method, **options)
    name = (read_record(found) or {})["maps"][0]
    return run(found, **{name["input"]: x}, **inputs)[name["output"]]


def gradient_at(x: Array, target: Array) -> Array:
    built = gbprewrite.convert(cnn(), "gradient", "input")
    return run(built, image=x.astype(np.float32), target=target)["image_gradient"]


def winners(x: Array = X) -> Array:
    return run(cnn(), image=x)["probabilities"].argmax(1)


def test_every_method_has_its_row() -> None:
    assert all(method.limit and method.title for method in METHODS.values())


def test_input_x_gradient() -> None:
    np.testing.assert_allclose(maps(cnn(), "input_x_gradient"), X * maps(cnn(), "gradient"), rtol=1e-6)


# --- Grad-CAM -------------------------------------------------------------------------------------------------------

WEIGHT = np.float32([[1, -2], [0, 3]])  # of two classes, for two channels


def pooled(body: str, batch: str = "N", **weights: Array) -> onnx.ModelProto:
    return model(
        f"g (float[{batch}, 2, 2, 3] x) => (float[{batch}, 2] y) {{ {body} g = GlobalAveragePool (a) "
        "f = Flatten (g) y = Gemm <transB = 1> (f, w) }",
        w=WEIGHT,
        **weights,
    )


def test_gradcam_by_hand() -> None:
    """The layer is the input's own Relu, so nothing is resized: relu(Σ w[c] a[c] / (h · w))."""
    x = np.abs(normal(1, 2, 2, 3, seed=1))
    for target, row in enumerate(WEIGHT):
        wanted = np.maximum((row[:, None, None] * x[0]).sum(0) / 6, 0)[None, None]
        np.testing.assert_allclose(maps(pooled("a = Relu (x)"), "gradcam", x, target=target), wanted, rtol=1e-6)


def by_hand(size: int, wanted: int) -> Array:
    """Linear interpolation between pixel centres, by numpy."""
    at = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    return np.stack([np.interp(at, np.arange(size), row) for row in np.eye(size)], 1)


@pytest.mark.parametrize("sizes", ["12, 12", "H, W"])
def test_gradcam_is_resized_to_the_input(sizes: str) -> None:
    text = f"""g (float[N, 3, {sizes}] x) => (float[N, 5] y) {{
        a = Conv <strides = [2, 3]> (x, k) b = Relu (a) g = GlobalAveragePool (b) f = Flatten (g) y = Gemm (f, w) }}"""
    source = model(text, k=normal(4, 3, 3, 3), w=normal(4, 5, seed=1))
    weights = normal(4, 5, seed=1)
    layer = _layer(source, "b")
    found = maps(source, "gradcam", target=2)
    cam = np.maximum((layer * weights[:, 2, None, None]).sum(1) / layer[0, 0].size, 0)
    wanted = by_hand(layer.shape[2], 12) @ cam @ by_hand(layer.shape[3], 12).T
    np.testing.assert_allclose(found, wanted[:, None], rtol=1e-4, atol=1e-6)


def _layer(source: onnx.ModelProto, name: str) -> Array:
    copy = onnx.ModelProto.FromString(source.SerializeToString())
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return run(copy, x=X)[name]


def test_gradcam_of_channels_last_is_that_of_channels_first() -> None:
    text = """g (float[N, 8, 9, 3] x) => (float[N, 5] y) {{
        t = Transpose <perm = [0, 3, 1, 2]> (x) a = Conv (t, k) b = Relu (a) {back}
        r = ReduceMean <keepdims = 0> ({last}, axes) y = Gemm (r, w) }}"""
    weights = {"k": normal(4, 3, 3, 3), "w": normal(4, 5, seed=1)}
    first = model(text.format(back="", last="b"), axes=np.int64([2, 3]), **weights)
    last = model(
        text.format(back="c = Transpose <perm = [0, 2, 3, 1]> (b)", last="c"), axes=np.int64([1, 2]), **weights
    )
    x = normal(2, 8, 9, 3, seed=2)
    for method, channels in (("gradcam", 1), ("guided_gradcam", 3)):
        found = maps(last, method, x)
        assert found.shape == (2, 8, 9, channels)
        assert found.any()
        np.testing.assert_allclose(found, maps(first, method, x), rtol=1e-5, atol=1e-7)


def test_guided_gradcam_is_the_product() -> None:
    wanted = maps(cnn(), "guided") * maps(cnn(), "gradcam")
    np.testing.assert_allclose(maps(cnn(), "guided_gradcam"), wanted, rtol=1e-5, atol=1e-9)


def test_the_layer_is_the_last_with_positions_or_the_one_named() -> None:
    records = [read_record(gbprewrite.convert(cnn(), "gradcam", cam_layer=name)) or {} for name in (None, "b")]
    assert [record["cam_layer"] for record in records] == ["e", "b"]
    assert not np.allclose(maps(cnn(), "gradcam"), maps(cnn(), "gradcam", cam_layer="b"))


DENSE = "g (float[N, 6] x) => (float[N, 5] y) { a = MatMul (x, w) y = Relu (a) }"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such layer": ("cnn", {"method": "gradcam", "cam_layer": "bb"}, "--cam-layer bb: the model has no"),
    "not on the way": ("cnn", {"method": "gradcam", "cam_layer": "probabilities"}, "does not lie between"),
    "no positions": ("cnn", {"method": "gradcam", "cam_layer": "g"}, r"\['N', 6\].*needs feature maps"),
    "no spatial layer": ("dense", {"method": "gradcam"}, r"Grad-CAM needs a layer.*none.*another --method"),
    "an option of others": ("cnn", {"method": "guided", "steps": 3}, "--steps is for --method integrated_gradients"),
    "a share": ("cnn", {"method": "rectgrad", "rectgrad_quantile": 1.0}, "--rectgrad-quantile 1.0: a share"),
    "a threshold": ("cnn", {"method": "rectgrad", "rectgrad_tau": -1.0}, "--rectgrad-tau -1.0: a threshold"),
    "two thresholds": ("cnn", {"method": "rectgrad", "rectgrad_quantile": 0.5, "rectgrad_tau": 1.0}, "choose one"),
    "no steps": ("cnn", {"method": "integrated_gradients", "steps": 0}, "--steps 0: at least 1"),
    "a threshold that is none": ("cnn", {"method": "rectgrad", "rectgrad_tau": float("nan")}, "a threshold of 0"),
    "an endless threshold": ("cnn", {"method": "rectgrad", "rectgrad_tau": float("inf")}, "a threshold of 0"),
    "too many steps": ("cnn", {"method": "integrated_gradients", "steps": 10**9}, "at most 100,000"),
    "too many samples": ("cnn", {"method": "smoothgrad", "samples": 10**30}, "at most 100,000"),
    "too many copies": (
        "fixed",
        {"method": "smoothgrad", "samples": 99_999},
        "--samples.*once for each point",
    ),
    "a baseline": ("cnn", {"method": "integrated_gradients", "baseline": "ones"}, "choose zeros or input"),
    "nothing to rectify": ("smooth", {"method": "rectgrad"}, "'rectgrad' finds no rectifier"),
    "nothing guided": ("smooth", {"method": "guided_gradcam"}, "'guided_gradcam' finds no rectifier"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_clear_error(case: str) -> None:
    name, options, message = WRONG[case]
    sources = {
        "cnn": cnn,
        "dense": lambda: model(DENSE, w=normal(6, 5)),
        "fixed": lambda: model(DENSE.replace("N", "1"), w=normal(6, 5)),
        "smooth": lambda: pooled("a = Tanh (x)"),
    }
    with pytest.raises(gbprewrite.GbprewriteError, match=message):
        gbprewrite.convert(sources[name](), **options)


# --- RectGrad -------------------------------------------------------------------------------------------------------

RELU = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
POINT, DY = np.float32([[2, 1, -1, 3], [1, 1, 4, 2]]), np.float32([[0.5, 3, 9, -1], [0.1, 0.2, 0.3, 0.4]])
# Kim et al. 2019: dx = dy where a · dy > τ; a · dy = [[1, 3, 0, -3], [0.1, 0.2, 1.2, 0.8]], in order [-3, 0, 1, 3].
BY_HAND: dict[str, tuple[dict[str, float], list[list[float]]]] = {
    "τ = 0": ({}, [[0.5, 3, 0, 0], [0.1, 0.2, 0.3, 0.4]]),
    "τ = 1": ({"rectgrad_tau": 1.0}, [[0, 3, 0, 0], [0, 0, 0.3, 0]]),
    "median": ({"rectgrad_quantile": 0.5}, [[0.5, 3, 0, 0], [0, 0, 0.3, 0.4]]),
    "upper quarter": ({"rectgrad_quantile": 0.75}, [[0, 3, 0, 0], [0, 0, 0.3, 0]]),
}


@pytest.mark.parametrize("sizes", ["N, 4", "N, M"])
@pytest.mark.parametrize("case", BY_HAND)
def test_rectgrad_by_hand(case: str, sizes: str) -> None:
    options, wanted = BY_HAND[case]
    found = maps(model(RELU.replace("N, 4", sizes)), "rectgrad", POINT, target="seed", seed=DY, **options)
    np.testing.assert_array_equal(found, np.float32(wanted))


@pytest.mark.parametrize("optimize_for", ["cpu", "cuda", "portable"])
def test_rectgrad_at_0_is_guided(optimize_for: str) -> None:
    guided, found = (maps(cnn(), method, optimize_for=optimize_for) for method in ("guided", "rectgrad"))
    assert found.any()
    np.testing.assert_array_equal(found, guided)


def test_rectgrad_of_a_bounded_rectifier_keeps_its_derivative() -> None:
    source = model("g (float[N, 3] x) => (float[N, 3] y) { y = Clip (x, o, t) }", o=np.float32(0), t=np.float32(6))
    found = maps(source, "rectgrad", np.float32([[-1, 3, 7]]), target="seed", seed=np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(found, [[0, 1, 0]])


def test_rectgrad_refuses_a_relu_that_hides_in_quantising() -> None:
    body = "n = Neg (x) q = QuantizeLinear (n, s, z) y = DequantizeLinear (q, s, z)"
    source = model(f"g (float[N, 4] x) => (float[N, 4] y) {{ {body} }}", s=np.float32(0.5), z=np.uint8(0))
    with pytest.raises(gbprewrite.UnsupportedOperators, match=r"QuantizeLinear.*rectgrad multiplies by the output"):
        gbprewrite.convert(source, "rectgrad", "seed")


# --- SmoothGrad and integrated gradients ----------------------------------------------------------------------------


def test_smoothgrad_is_the_mean_over_the_given_noise() -> None:
    noise, target = 0.3 * normal(5, 3, 12, 12, seed=3), winners()
    wanted = np.mean([gradient_at(X + n, target) for n in noise], axis=0)
    np.testing.assert_allclose(maps(cnn(), "smoothgrad", samples=5, image_noise=noise), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("from_noise", [False, True])
def test_integrated_gradients_are_the_midpoint_rule(from_noise: bool) -> None:
    baseline = normal(2, 3, 12, 12, seed=4) if from_noise else np.zeros_like(X)
    options = {"image_baseline": baseline, "baseline": "input"} if from_noise else {}
    points = [baseline + (k + 0.5) / 4 * (X - baseline) for k in range(4)]
    wanted = (X - baseline) * np.mean([gradient_at(p, winners()) for p in points], axis=0)
    found = maps(cnn(), "integrated_gradients", steps=4, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["smoothgrad", "integrated_gradients"])
def test_a_model_of_fixed_batch_is_there_once_for_each_point(method: str) -> None:
    """And gives what the same model gives in one batch."""
    fixed = cnn()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    options: dict[str, Any] = {"samples": 3, "image_noise": normal(3, 3, 12, 12)} if method == "smoothgrad" else {}
    options |= {} if options else {"steps": 3}
    found = maps(fixed, method, target="topk:2", **options)
    np.testing.assert_allclose(found, maps(cnn(), method, target="topk:2", **options), rtol=1e-5, atol=1e-7)


def test_integrated_gradients_are_complete() -> None:
    """Sundararajan et al. 2017, proposition 1: they sum up to the difference of the scores."""
    converted = gbprewrite.convert(cnn(), "integrated_gradients", 1, steps=256)
    scored = onnx.ModelProto.FromString(cnn().SerializeToString())
    scored.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))
    here, there = (run(scored, image=x)["logits"][:, 1] for x in (X, np.zeros_like(X)))
    sums = run(converted, image=X)["image_integrated_gradients"].sum((1, 2, 3))
    np.testing.assert_allclose(sums, here - there, rtol=1e-2)


BRANCHED = """g (float[N, 3] x, float[N, 3] c) => (float[N, 2] y) {
    s = ReduceSum <keepdims = 0> (x) z = Constant <value_float = 0.0> () p = Greater (s, z)
    a = If (p) <then_branch = t () => (float[N, 3] u) { v = Mul (x, c) u = Relu (v) },
                else_branch = e () => (float[N, 3] w) { w = Mul (x, x) }>
    y = MatMul (a, k) }"""


def test_a_batch_takes_along_every_input_and_branch() -> None:
    """c is given to all points; x decides the branch, and all points of this batch take the same."""
    source = model(BRANCHED, opset=18, k=normal(3, 2, seed=5))
    x, c, noise = np.abs(normal(2, 3)) + 1, np.abs(normal(2, 3, seed=1)), 0.1 * normal(4, 3, seed=2)
    found = maps(source, "smoothgrad", x, target=1, inputs=["x"], samples=4, c=c, x_noise=noise)
    np.testing.assert_allclose(found, c * normal(3, 2, seed=5)[:, 1], rtol=1e-5)


def test_no_weight_is_stored_twice() -> None:
    built = gbprewrite.convert(cnn(), ("smoothgrad", "integrated_gradients"), "topk:2")
    own = {t.name for t in cnn().graph.initializer}
    added = [t for t in built.graph.initializer if t.name not in own]
    assert max(np.prod(t.dims, dtype=int) for t in added) == 32  # the shares of the way; a weight has 108 or more


# --- the same files -------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "several classes": {"target": "topk:3", "rectgrad_quantile": 0.9, "baseline": "input"},
    "at run time": {"target": "input"},
    "a seed": {"target": "seed", "prefix": "own_"},
    "one class": {"target": 2, "optimize_for": "portable"},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_files_verify_and_convert_again(case: str) -> None:
    options = {"samples": 3, "steps": 4, **SETTINGS[case]}
    built = gbprewrite.convert(cnn(), list(METHODS), **options)
    found = gbprewrite.verify(built)
    assert [c for c in found.checks if c.status != "passed"] == []
    again = gbprewrite.convert(built, list(METHODS), replace=True, **options)
    assert list(again.graph.node) == list(built.graph.node)
    assert [v.name for v in again.graph.input] == [v.name for v in built.graph.input]


def test_explainer_gives_every_map_and_draws_the_noise() -> None:
    explainer = gbprewrite.Explainer(cnn(), OTHERS, samples=3, steps=4)
    assert [slot.name for slot in explainer.inputs] == ["image"]
    first, second = explainer(X), explainer(X)
    for method in OTHERS:
        assert first.map(method).shape == (2, 1 if method == "gradcam" else 3, 12, 12)
        np.testing.assert_array_equal(first.map(method), second.map(method))
    noise = normal(3, 3, 12, 12)
    assert not np.allclose(explainer({"image": X, "image_noise": noise}).map("smoothgrad"), first.map("smoothgrad"))
    with pytest.raises(gbprewrite.DataError, match="image_noise was given 2 samples of noise, and the model takes 3"):
        explainer({"image": X, "image_noise": noise[:2]})


def test_explainer_cuts_the_samples_and_not_the_noise() -> None:
    fixed = cnn()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    noise, x = normal(3, 3, 12, 12), normal(5, 3, 12, 12, seed=8)
    cut, whole = (
        gbprewrite.Explainer(source, "smoothgrad", samples=3)({"image": x, "image_noise": noise}).map()
        for source in (fixed, cnn())
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-5, atol=1e-7)


def test_command_line(cli: Any, cnn_path: Any) -> None:
    methods = [word for method in OTHERS for word in ("--method", method)]
    path = cnn_path.with_name("out.onnx")
    found = cli("convert", cnn_path, *methods, "--cam-layer", "b", "--steps", 4, "--samples", 3, "-o", path)
    assert found.exit_code == 0, found.output
    assert "cam layer    b" in found.output
    assert "image_noise" in found.output
    assert "image_gradcam float32 [N, 1, 12, 12]" in found.output
    assert cli("verify", path).exit_code == 0
    told = cli("inspect", path).output
    assert "image_rectgrad (rectgrad of image)" in told
    assert "dy·(y·dy > τ)" in cli("inspect", cnn_path).output


@pytest.mark.parametrize("layer", ["d", "p"])
def test_gradcam_reads_the_graph_as_it_is_written(layer: str) -> None:
    """Padding and concatenations are regrouped on the way to the inputs alone: the layer keeps its own cotangent."""
    end = " u = GlobalAveragePool (s) f = Flatten (u) y = Gemm (f, v) }"
    head = "g (float[N, 2, 6, 6] x) => (float[N, 3] y) { a = Relu (x) n = Neg (x) b = Relu (n) "
    body = "d = Concat <axis = 1> (a, b) e = Conv (d, w) ea = Relu (e) h = Concat <axis = 1> ({}) "
    body += "p = Pad (h, widths) k = Conv (p, t{}) s = Add (k, ea)"
    weights = {"w": normal(2, 4, 1, 1), "v": normal(2, 3, seed=1), "widths": np.array([0, 0, 0, 1, 0, 0, 1, 0])}
    kernel = normal(2, 6, 2, 2, seed=2)
    weights |= {"t0": kernel, "t1": kernel[:, [4, 5, 0, 1, 2, 3]]}
    x = normal(2, 2, 6, 6, seed=3)
    maps = []
    for i, order in enumerate(("a, b, ea", "ea, a, b")):  # the second does not start with d
        used = {name: w for name, w in weights.items() if name not in ("t0", "t1") or name == f"t{i}"}
        source = model(head + body.format(order, i) + end, **used)
        maps.append(run(gbprewrite.convert(source, "gradcam", 0, cam_layer=layer), x=x)["x_gradcam"])
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-5, atol=1e-6)

"""Maps of inner tensors: of the first floats behind images of integers, and of those that `--input` names."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
from gbprewrite.graft.record import read_record
from tests.small import Array, cnn, model, normal, run

KERNEL, HEAD = normal(4, 3, 1, 1, seed=1), normal(2, 4, seed=2)
S, Z = np.float32(0.02), np.uint8(120)
WEIGHTS: dict[str, Array] = {
    **{"k": KERNEL, "h": HEAD, "half": np.float32(127.5), "one": np.float32(1), "s": S, "z": Z},
    **{"swap": np.int64([2, 1, 0]), "zi": np.int32(120), "sa": np.float32(0.05), "za": np.uint8(0)},
    **{"kq": np.random.default_rng(3).integers(-90, 90, (4, 3, 1, 1), np.int8), "sk": np.float32(0.01)},
    **{"zk": np.int8(0), "z8": np.int8(-8)},
}
BEHIND = "p = GlobalAveragePool (r) f = Flatten (p) y = Gemm <transB = 1> (f, h)"
TAIL = f"c = Conv (n, k) r = Relu (c) {BEHIND}"
NORMALISED = f"t = Div (v, half) n = Sub (t, one) {TAIL}"
NHWC, NCHW = "uint8[N, 4, 5, 3] x", "uint8[N, 3, 4, 5] x"
TO_NCHW = "Transpose <perm = [0, 3, 1, 2]>"
SCALED: Callable[[Array], Array] = lambda v: v / 127.5 - 1  # noqa: E731


def source(body: str, takes: str = NHWC) -> onnx.ModelProto:
    made = model(f"g ({takes}) => (float[N, 2] y) {{ {body} }}", 18, 8, **WEIGHTS)
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return made


# name → (body, input, the tensor that the maps are of, what it holds from x in N,C,H,W, whether it is channels last,
#         and what the convolution reads of that)
IMAGES: dict[str, tuple[str, str, str, Callable[[Array], Array], bool, Callable[[Array], Array]]] = {
    "moved, then cast": (
        f"u = {TO_NCHW} (x) v = Cast <to = 1> (u) {NORMALISED}",
        NHWC,
        "v",
        lambda x: x,
        False,
        SCALED,
    ),
    "cast, then moved": (f"w = Cast <to = 1> (x) v = {TO_NCHW} (w) {NORMALISED}", NHWC, "w", lambda x: x, True, SCALED),
    "by way of wider integers": (
        f"w = Cast <to = 6> (x) i = Sub (w, zi) u = {TO_NCHW} (i) v = Cast <to = 1> (u) {NORMALISED}",
        *(NHWC, "v", lambda x: x - 120, False, SCALED),
    ),
    "blue first": (
        f"u = {TO_NCHW} (x) b = Gather <axis = 1> (u, swap) v = Cast <to = 1> (b) {NORMALISED}",
        *(NHWC, "v", lambda x: x[:, ::-1], False, SCALED),
    ),
    "of channels first": (f"v = Cast <to = 1> (x) {NORMALISED}", NCHW, "v", lambda x: x, False, SCALED),
    "dequantised": (
        f"w = DequantizeLinear (x, s, z) n = {TO_NCHW} (w) {TAIL}",
        *(NHWC, "w", lambda x: (x - 120) * np.float64(S), True, lambda v: v),
    ),
    "of signed bytes": (
        f"n = DequantizeLinear (x, s, z8) {TAIL}",
        *("int8[N, 3, 4, 5] x", "n", lambda x: (x + 8) * np.float64(S), False, lambda v: v),
    ),
}


def picture(takes: str) -> tuple[Array, Array]:
    """Random pixels as the input takes them, and as float64 in N,C,H,W."""
    dtype = np.int8 if takes.startswith("int8") else np.uint8
    levels = np.iinfo(dtype)
    x = np.random.default_rng(4).integers(levels.min, levels.max, (3, 3, 4, 5), dtype, endpoint=True)
    return (x if takes != NHWC else np.ascontiguousarray(x.transpose(0, 2, 3, 1))), x.astype(np.float64)


def slope(n: Array, row: Array, kernel: Array = KERNEL) -> Array:
    """The gradient of Σ row · mean relu(kernel · n) with respect to n, N,C,H,W."""
    kernel = kernel[:, :, 0, 0].astype(np.float64)
    on = np.einsum("nchw,kc->nkhw", n, kernel) > 0
    return np.einsum("nkhw,k,kc->nchw", on, row.astype(np.float64), kernel) / (n.shape[2] * n.shape[3])


def facts(built: onnx.ModelProto) -> dict[str, Any]:
    return dict(read_record(built) or {})


@pytest.mark.parametrize("name", IMAGES)
def test_the_first_floats_behind_an_image_of_integers(name: str) -> None:
    body, takes, tensor, holds, last, read = IMAGES[name]
    methods = ["gradient", "input_x_gradient", "gradcam", "integrated_gradients"]
    built = gbprewrite.convert(source(body, takes), methods, 1, steps=3)
    x, pixels = picture(takes)
    v = holds(pixels)
    per_unit = read(np.ones(1)) - read(np.zeros(1))

    def gradient(v: Array) -> Array:
        return slope(read(v), HEAD[1]) * per_unit

    found = run(built, x=x)
    points = [gradient(v * (k + 0.5) / 3) for k in range(3)]
    wanted = {
        "gradient": gradient(v),
        "input_x_gradient": v * gradient(v),
        "integrated_gradients": v * np.mean(points, 0),
    }
    for method, map_ in wanted.items():
        map_ = map_.transpose(0, 2, 3, 1) if last else map_
        np.testing.assert_allclose(found[f"{tensor}_{method}"], map_, rtol=1e-4, atol=1e-7, err_msg=method)
    assert found[f"{tensor}_gradcam"].shape == ((3, 4, 5, 1) if last else (3, 1, 4, 5))
    assert f"the maps are of '{tensor}', the first float behind it" in facts(built)["notes"][0]
    assert facts(built)["inner_inputs"] == [{"name": tensor, "inputs": ["x"], "channel_axis": 3 if last else 1}]


QLINEAR = """q = QLinearConv (u, s, z, kq, sk, zk, sa, za) r = DequantizeLinear (q, sa, za)"""


@pytest.mark.parametrize(("first", "takes", "tensor"), [
    ("u = Identity (x)", NCHW, "u_dequantized"),
    (f"u = {TO_NCHW} (x)", NHWC, "u_dequantized"),
    ("", NCHW, "x_dequantized"),
])  # fmt: skip
def test_levels_that_an_operator_reads_are_the_numbers_that_they_stand_for(first: str, takes: str, tensor: str) -> None:
    body = f"{first} {QLINEAR if first else QLINEAR.replace('(u,', '(x,')} {BEHIND}"
    built = gbprewrite.convert(source(body, takes), ["gradient", "guided", "input_x_gradient"], 1)
    x, pixels = picture(takes)
    v = (pixels - 120) * np.float64(S)
    kernel = WEIGHTS["kq"].astype(np.float64) * 0.01
    out = np.einsum("nchw,kc->nkhw", v, kernel[:, :, 0, 0])
    inside = (out > 0) & (out < 255.5 * 0.05)
    wanted = np.einsum("nkhw,k,kc->nchw", inside, HEAD[1].astype(np.float64), kernel[:, :, 0, 0]) / 20
    found = run(built, optimise=False, x=x)
    np.testing.assert_allclose(found[f"{tensor}_gradient"], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[f"{tensor}_input_x_gradient"], v * wanted, rtol=1e-4, atol=1e-6)
    rows = gbprewrite.inspect(source(body, takes)).nonlinearities
    assert [(r["kind"], r["role"]) for r in rows] == [("ReLU in Saturation", "rectifier")]
    checks = gbprewrite.verify(built).checks
    assert {c.status for c in checks[:3]} == {"passed"}
    assert {c.status for c in checks[3:]} == {"skipped"}


def test_a_model_that_takes_floats_too_is_differentiated_in_these() -> None:
    body = f"v = Cast <to = 1> (x) m = Mul (v, a) {NORMALISED.replace('(v,', '(m,')}"
    made = source(body, f"{NCHW}, float[N, 3, 4, 5] a")
    assert {m["input"] for m in facts(gbprewrite.convert(made, "gradient", 0))["maps"]} == {"a"}
    both = facts(gbprewrite.convert(made, "gradient", 0, inputs=["x", "a"]))
    assert [m["input"] for m in both["maps"]] == ["v", "a"]
    assert "the maps are of 'v'" in both["notes"][0]


def test_an_inner_tensor_by_its_name_or_that_of_its_node() -> None:
    """Behind the last ReLU of a network the gradient is that of a mean and a linear layer."""
    x = normal(2, 3, 12, 12, seed=5)
    weight = next(onnx.numpy_helper.to_array(t) for t in cnn().graph.initializer if t.name == "w3")
    named = cnn()
    named.graph.node[4].name = "last relu"
    for name in ("e", "last relu"):
        built = gbprewrite.convert(named, "gradient", 3, inputs=[name])
        found = run(built, image=x)
        wanted = np.broadcast_to(weight[3].reshape(1, 6, 1, 1) / 9, (2, 6, 3, 3))
        np.testing.assert_allclose(found["e_gradient"], wanted, rtol=1e-5)
    built = gbprewrite.convert(cnn(), ["gradient", "guided"], 3, inputs=["image", "a"])
    found = run(built, image=x)
    kernel = next(onnx.numpy_helper.to_array(t) for t in cnn().graph.initializer if t.name == "w1")
    padded = np.pad(found["a_gradient"].astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    flipped = kernel[:, :, ::-1, ::-1]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    np.testing.assert_allclose(
        found["image_gradient"], np.einsum("nkhwij,kcij->nchw", windows, flipped), rtol=1e-3, atol=1e-6
    )


def test_integrated_gradients_begin_at_the_inner_tensor() -> None:
    """They add up to the score less that at a baseline of zeros of this very tensor."""
    built = gbprewrite.convert(cnn(), "integrated_gradients", 3, inputs=["a"], steps=256, score="logits")
    x = normal(2, 3, 12, 12, seed=5)
    found = run(built, image=x)["a_integrated_gradients"].sum((1, 2, 3))
    shown = cnn()
    shown.graph.output.append(onnx.ValueInfoProto(name="logits"))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in cnn().graph.initializer}
    nothing = weights["b3"][3]  # zeros stay zeros up to the last layer
    np.testing.assert_allclose(found, run(shown, image=x)["logits"][:, 3] - nothing, rtol=1e-2)


WRONG: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Any], str]] = {
    "no such name": (cnn, {"inputs": ["imagee"]}, r"--input imagee: .*no such input.*Did you mean image\?"),
    "integers": (
        lambda: source(IMAGES["moved, then cast"][0]),
        {"inputs": ["u"]},
        "--input u: it holds uint8 values.*'gbprewrite layers MODEL'",
    ),
    "an output that nothing reads": (cnn, {"inputs": ["logits"], "score": "g"}, "does not depend on logits"),
    "weights alone": (
        lambda: model("g (float[N, 2] x) => (float[N, 2] y) { w = Exp (v) y = Mul (x, w) }", v=normal(9000, 2)[:, :2]),
        {"inputs": ["w"]},
        "--input w: weights alone decide it",
    ),
    "smoothgrad": (
        lambda: source(IMAGES["moved, then cast"][0]),
        {"method": "smoothgrad"},
        "--method smoothgrad: it begins at an input of the model, and 'v' is computed from x",
    ),
    "integrated gradients of levels": (
        lambda: source(f"{QLINEAR.replace('(u,', '(x,')} {BEHIND}", NCHW),
        {"method": "integrated_gradients"},
        "--method integrated_gradients: it begins at an input",
    ),
    "overlays": (
        lambda: source(IMAGES["moved, then cast"][0]),
        {"forms": ["overlay"]},
        "--embed-preprocessing and --as overlay: it begins at an input",
    ),
    "tokens": (
        lambda: model(
            "g (int64[N, 7] ids) => (float[N, 2] y) { e = Gather (table, ids) y = ReduceMean <keepdims = 0> (e, one) }",
            table=normal(20, 2),
            one=np.int64([1]),
        ),
        {},
        "no float input.*--input NAME",
    ),
    "tokens by name": (
        lambda: model("g (int64[N, 7] ids) => (float[N, 7, 2] y) { y = Gather (table, ids) }", table=normal(20, 2)),
        {"inputs": ["ids"]},
        "--input ids: it holds int64 values.*the first floats behind them have one: --input y",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_error(case: str) -> None:
    made, options, message = WRONG[case]
    with pytest.raises(gbprewrite.GbprewriteError, match=message):
        gbprewrite.convert(made(), **{"method": "gradient", "target": 0, **options})


def test_layers_lists_what_can_be_named(cli: Callable[..., Any], tmp_path: Any) -> None:
    """Of tokens, which have no gradient, the embedding and what lies behind it."""
    made = WRONG["tokens"][0]()
    onnx.save(made, tmp_path / "net.onnx")
    listed = [layer.name for layer in gbprewrite.layers(tmp_path / "net.onnx")]
    assert listed[0] == "e"
    found = run(gbprewrite.convert(made, "gradient", 1, inputs=["e"]), ids=np.arange(14).reshape(2, 7))
    np.testing.assert_allclose(found["e_gradient"], np.broadcast_to(np.float32([0, 1 / 7]), (2, 7, 2)), rtol=1e-6)
    names = [layer.name for layer in gbprewrite.layers(source(IMAGES["moved, then cast"][0]))]
    assert names[0] == "v"


def test_explainer_run_and_verify_feed_the_true_input(cli: Callable[..., Any], tmp_path: Any) -> None:
    body, takes, tensor, *_ = IMAGES["cast, then moved"]
    made = source(body, takes)
    x, _ = picture(takes)
    explainer = gbprewrite.Explainer(made, "guided", 1)
    assert [s.name for s in explainer.inputs] == ["x"]
    assert explainer(x).map("guided").shape == (3, 4, 5, 3)
    built = gbprewrite.convert(made, ["gradient", "guided"], 1)
    found = gbprewrite.verify(built, made)
    assert found.ok
    assert {c.status for c in found.checks} == {"passed"}
    assert f"directional derivatives of {tensor}" in [c.name for c in found.checks]
    onnx.save(built, tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", x)
    cli("run", tmp_path / "net.onnx", "--input", tmp_path / "x.npy", "-o", tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as maps:
        np.testing.assert_array_equal(maps[f"{tensor}_guided"], explainer(x).map("guided"))


def test_verify_finds_a_wrong_map_of_an_inner_tensor() -> None:
    built = gbprewrite.convert(source(IMAGES["cast, then moved"][0]), "gradient", 1)
    node = next(n for n in reversed(built.graph.node) if n.op_type == "Mul")
    node.op_type = "Add"
    assert not gbprewrite.verify(built).ok


@pytest.mark.parametrize("name", ["moved, then cast", "dequantised", "of signed bytes"])
def test_a_photograph_fills_an_input_of_integers(name: str, cli: Callable[..., Any], tmp_path: Any) -> None:
    """Pixels go in as they are (signed ones less 128), and the map is laid out by its own channels."""
    body, takes, tensor, *_ = IMAGES[name]
    onnx.save(source(body, takes), tmp_path / "net.onnx")
    pixels = np.random.default_rng(6).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    said = cli(
        "explain",
        tmp_path / "net.onnx",
        tmp_path / "photo.png",
        "-o",
        tmp_path,
        "--method",
        "gradient",
        "--save",
        "npy",
    )
    assert f"the maps are of '{tensor}'" in said.stdout
    fed = pixels[None] if takes == NHWC else np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    fed = (fed.astype(np.int16) - 128).astype(np.int8) if takes.startswith("int8") else fed
    wanted = gbprewrite.Explainer(tmp_path / "net.onnx", "gradient")(fed).map("gradient")[0]
    (saved,) = tmp_path.glob("*.npy")
    shown = np.load(saved)
    wanted = wanted if name == "dequantised" else wanted.transpose(1, 2, 0)
    np.testing.assert_allclose(shown.reshape(4, 5, 3), wanted, rtol=1e-5, atol=1e-8)


def test_pixels_that_an_input_of_integers_can_not_hold(cli: Callable[..., Any], tmp_path: Any) -> None:
    onnx.save(source(IMAGES["moved, then cast"][0]), tmp_path / "net.onnx")
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "photo.png")
    said = cli(
        "explain", tmp_path / "net.onnx", tmp_path / "photo.png", "-o", tmp_path / "maps", "--preset", "imagenet"
    )
    assert said.exit_code == 2
    assert "the input 'x' holds uint8 values, 0 to 255, and pixels would become" in said.stderr

"""Quantised models: straight-through inside the range, nothing beyond it, and the ReLU hidden in saturation."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
from gbprewrite.checks.reference import evaluate
from gbprewrite.graft.record import read_record
from tests.small import Array, model, run

METHODS = ("gradient", "guided", "deconvnet")
MODELS = Path(__file__).parents[1] / "models"


def maps(source: onnx.ModelProto, **feeds: Array) -> dict[str, Array]:
    built = gbprewrite.convert(source, METHODS, "seed", rectify=())
    found = run(built, **feeds)
    return {m: found[f"x_{m}"] for m in METHODS}


def quantised(body: str, zero: Any, **weights: Any) -> onnx.ModelProto:
    """x → the body → y, with the scale 0.5 and a zero point at hand."""
    text = f"g (float[N] x) => (float[N] y) {{ {body} }}"
    return model(text, 19, 9, scale=np.float32(0.5), zero=zero, **weights)


X = np.float32([-100, -63, -0.3, 0, 0.3, 5, 63, 100])
DY = np.float32([1, 1, 1, 1, -1, 1, -1, 1])


def test_straight_through_inside_the_range() -> None:
    """int8 and scale 0.5 represent -64 to 63.5; 0 is the middle, so nothing hides there."""
    source = quantised("q = QuantizeLinear (x, scale, zero) y = DequantizeLinear (q, scale, zero)", np.int8(0))
    built = gbprewrite.convert(source, "gradient", "seed")
    np.testing.assert_array_equal(run(built, x=X, seed=DY)["x_gradient"], [0, 1, 1, 1, -1, 1, -1, 0])
    with pytest.raises(gbprewrite.ModelError, match="finds no rectifier"):
        gbprewrite.convert(source, "guided", "seed")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("levels", [np.uint8, np.int8, np.uint16, np.int16])
def test_every_width_in_half_precision_too(levels: Any, dtype: Any) -> None:
    """Inside and beyond the two ends of the range; those of 16 bits are no float16, which the rule must not mind."""
    low, high = np.iinfo(levels).min, np.iinfo(levels).max
    step = 1 / 32 if high > 255 else 0.5
    ends = np.array([low, high]) * step
    x = np.array([ends[0] * 1.02 - 1, ends[0] * 0.98, 0.0, ends[1] * 0.98, ends[1] * 1.02 + 1], dtype)
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    text = f"""g ({kind}[5] x) => ({kind}[5] y) {{ q = QuantizeLinear (x, scale, zero)
        d = DequantizeLinear (q, scale, zero) y = Neg (d) }}"""
    source = model(text, 21, 10, scale=np.array(step, dtype), zero=np.array(0, levels))
    built = gbprewrite.convert(source, "gradient", "seed")
    with np.errstate(over="ignore", invalid="ignore"):  # the evaluator divides by the scale in 16 bits
        found = evaluate(built, {"x": x, "seed": -np.ones(5, dtype)})["x_gradient"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [0, 1, 1, 1, 0])


def test_saturation_at_zero_is_a_relu() -> None:
    """uint8 with zero point 0 represents 0 to 127.5: a ReLU that no node names."""
    source = quantised(
        "n = Neg (x) q = QuantizeLinear (n, scale, zero) y = DequantizeLinear (q, scale, zero)", np.uint8(0)
    )
    found = {m: -v for m, v in maps(source, x=-X, seed=DY).items()}
    np.testing.assert_array_equal(found["gradient"], [0, 0, 0, 0, -1, 1, -1, 1])
    np.testing.assert_array_equal(found["guided"], [0, 0, 0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(found["deconvnet"], [1, 1, 1, 1, 0, 1, 0, 1])
    (row,) = (r for r in gbprewrite.inspect(source).nonlinearities if r["role"] == "rectifier")
    assert row["kind"] == "ReLU in QuantizeLinear"


def test_the_range_of_an_input_is_no_relu() -> None:
    source = quantised("q = QuantizeLinear (x, scale, zero) y = DequantizeLinear (q, scale, zero)", np.uint8(0))
    built = gbprewrite.convert(source, "gradient", "seed")
    np.testing.assert_array_equal(run(built, x=X, seed=DY)["x_gradient"], [0, 0, 0, 1, -1, 1, -1, 1])
    with pytest.raises(gbprewrite.ModelError, match="finds no rectifier"):
        gbprewrite.convert(source, "guided", "seed")


def test_saturation_behind_a_relu_is_not_another_one() -> None:
    body = "a = Relu (x) q = QuantizeLinear (a, scale, zero) y = DequantizeLinear (q, scale, zero)"
    source = quantised(body, np.uint8(0))
    assert [r["kind"] for r in gbprewrite.inspect(source).nonlinearities if r["role"] == "rectifier"] == ["Relu"]
    np.testing.assert_array_equal(maps(source, x=X, seed=DY)["deconvnet"], [1, 1, 1, 1, 0, 1, 0, 1])


def test_integers_on_the_way_are_moved_not_differentiated() -> None:
    body = """q = QuantizeLinear (x, scale, zero) c = Cast <to = 3> (q) u = Unsqueeze (c, first)
        p = Concat <axis = 0> (u, u) t = Transpose (p) i = Identity (t) d = DequantizeLinear (i, scale, zero)
        y = ReduceSum <keepdims = 0> (d, last)"""
    source = quantised(body, np.int8(0), first=np.array([0]), last=np.array([1]))
    built = gbprewrite.convert(source, "gradient", "seed")
    np.testing.assert_array_equal(run(built, x=X, seed=DY)["x_gradient"], np.array([0, 2, 2, 2, -2, 2, -2, 0]))


@pytest.mark.parametrize(
    ("behind", "ends"), [("y = Identity (d)", 1), ("y = Softmax <axis = 0> (d)", 1), ("y = Neg (d)", 0)]
)
def test_a_score_given_out_is_not_cut_off(behind: str, ends: int) -> None:
    """The range of an output is that of the calibration pictures: beyond it a score would have an empty map."""
    body = f"n = Neg (x) q = QuantizeLinear (n, scale, zero) d = DequantizeLinear (q, scale, zero) {behind}"
    built = gbprewrite.convert(quantised(body, np.int8(0)), "gradient", "seed")
    found = np.abs(run(built, x=X, seed=DY)["x_gradient"])
    np.testing.assert_array_equal(found, [ends, 1, 1, 1, 1, 1, 1, ends])


# What an operator reads → (the operator, the same in real numbers). a and b are quantised, A and B what they stand for.
OPERATORS = {
    "QLinearConv": (
        "QLinearConv <pads = [1, 1, 1, 1]> (a, sa, za, w, sw, zw, sy, zy, c)",
        "W = DequantizeLinear <axis = 0> (w, sw, zw) C = DequantizeLinear <axis = 0> (c, sc)"
        "r = Conv <pads = [1, 1, 1, 1]> (A, W, C)",
    ),
    "QLinearMatMul": ("QLinearMatMul (a, sa, za, b, sb, zb, sy, zy)", "r = MatMul (A, B)"),
    "QLinearAdd": ("com.microsoft.QLinearAdd (a, sa, za, b, sb, zb, sy, zy)", "r = Add (A, B)"),
    "QLinearMul": ("com.microsoft.QLinearMul (a, sa, za, b, sb, zb, sy, zy)", "r = Mul (A, B)"),
    "QLinearSigmoid": ("com.microsoft.QLinearSigmoid (a, sa, za, sy, zy)", "r = Sigmoid (A)"),
    "QLinearLeakyRelu": (
        "com.microsoft.QLinearLeakyRelu <alpha = 0.25> (a, sa, za, sy, zy)",
        "r = LeakyRelu <alpha = 0.25> (A)",
    ),
    "QLinearConcat": (
        "com.microsoft.QLinearConcat <axis = 1> (sy, zy, a, sa, za, b, sb, zb)",
        "r = Concat <axis = 1> (A, B)",
    ),
    "QLinearGlobalAveragePool": (
        "com.microsoft.QLinearGlobalAveragePool (a, sa, za, sy, zy)",
        "r = GlobalAveragePool (A)",
    ),
    "QLinearAveragePool": (
        "com.microsoft.QLinearAveragePool <kernel_shape = [2, 2], strides = [1, 1]> (a, sa, za, sy, zy)",
        "r = AveragePool <kernel_shape = [2, 2], strides = [1, 1]> (A)",
    ),
}


@pytest.mark.parametrize("step", [0.0137, 1.931], ids=["fine", "coarse"])
@pytest.mark.parametrize("zero", [0, 101])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_is_its_dequantised_meaning(operator: str, zero: int, step: float) -> None:
    """With a fine step many values are cut off, with a coarse one many round to the end of the range."""
    whole, spelt = OPERATORS[operator]
    rng = np.random.default_rng(0)
    weights = {
        **{"sa": np.float32(0.1), "za": np.uint8(120), "sb": np.float32(0.07), "zb": np.uint8(140)},
        **{"sy": np.float32(step), "zy": np.uint8(zero), "w": rng.integers(-9, 9, (3, 2, 3, 3), np.int8)},
        **{"sw": np.float32([0.2, 0.1, 0.3]), "zw": np.zeros(3, np.int8), "c": rng.integers(-99, 99, 3, np.int32)},
    }
    weights["sc"] = weights["sa"] * weights["sw"]
    head = """g (float[4, 2, 6, 6] x, float[4, 2, 6, 6] v) => (y) { a = QuantizeLinear (x, sa, za)
        A = DequantizeLinear (a, sa, za) b = QuantizeLinear (v, sb, zb) B = DequantizeLinear (b, sb, zb)"""
    tail = "d = DequantizeLinear (q, sy, zy) y = Neg (d) }"  # linear, so levels that round apart make no difference
    feeds = {name: rng.uniform(-5, 5, (4, 2, 6, 6)).astype(np.float32) for name in ("x", "v")}
    is_activation = operator in ("QLinearSigmoid", "QLinearLeakyRelu")
    methods = METHODS if zero == 0 and not is_activation else ["gradient"]
    found = []
    for body in (f"q = {whole}", f"{spelt} q = QuantizeLinear (r, sy, zy)"):
        source = model(f"{head} {body} {tail}", 19, 9, **weights)
        source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        shape = run(source, optimise=False, **feeds)["y"].shape
        source.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, shape))
        built = gbprewrite.convert(source, methods, "seed", inputs=["x"])
        seed = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        found.append(run(built, optimise=False, seed=seed, **feeds))
    for method in methods:
        got, expected = (maps[f"x_{method}"] for maps in found)
        assert np.abs(expected).max() > 0, method
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5, err_msg=method)


def test_channels_last_are_refused() -> None:
    body = """q = QuantizeLinear (x, scale, zero)
        p = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, scale, zero, scale, zero)
        y = DequantizeLinear (p, scale, zero)"""
    source = quantised(body, np.uint8(9))
    source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(gbprewrite.ModelError, match="channels last"):
        gbprewrite.convert(source, "gradient", "seed")


def test_a_probability_between_levels_is_said() -> None:
    """Its score is no float of the file, so no name is given that `--score` would not take."""
    body = "a = QuantizeLinear (x, sa, za) q = com.microsoft.QLinearSigmoid (a, sa, za, sy, zy)"
    text = f"g (float[N, 5] x) => (float[N, 5] y) {{ {body} y = DequantizeLinear (q, sy, zy) }}"
    scales = {"sa": np.float32(0.1), "za": np.uint8(120), "sy": np.float32(1 / 256), "zy": np.uint8(0)}
    source = model(text, 19, 9, **scales)
    source.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    record = read_record(gbprewrite.convert(source, "gradient", 0))
    assert record is not None
    (note,) = record["notes"]
    assert "QLinearSigmoid" in note
    assert "its probability is explained" in note
    with pytest.raises(gbprewrite.UsageError, match="holds uint8 values") as error:
        gbprewrite.convert(source, "gradient", 0, score="q")
    assert "/real" not in str(error.value)


def digits_of() -> Array:
    images = [
        np.asarray(Image.open(path), np.float32) / 255 for path in sorted((MODELS / "samples").glob("digit_*.png"))
    ]
    return np.stack(images)[:, None]


@pytest.fixture(scope="module", params=["QDQ", "QOperator"])
def pair(request: Any, tmp_path_factory: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The digits network, and the same as onnxruntime's own quantiser writes it (its ReLUs vanish into saturation)."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.batches = iter([{"image": digits_of()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    path = tmp_path_factory.mktemp("quantised") / "digits.onnx"
    quantization.quantize_static(
        str(MODELS / "digits.onnx"),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat[request.param],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=request.param == "QDQ",
    )
    return onnx.load(MODELS / "digits.onnx"), onnx.load(path)


def test_quantised_network_against_its_float_twin(pair: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    twin, source = pair
    assert not any(n.op_type == "Relu" for n in source.graph.node)
    x = digits_of()
    expected = run(gbprewrite.convert(twin, METHODS, "input"), image=x, target=np.arange(10))
    found = run(gbprewrite.convert(source, METHODS, "input"), image=x, target=np.arange(10))
    for method in METHODS:
        assert cosine(found[f"image_{method}"], expected[f"image_{method}"]) > 0.9, method


def cosine(a: Array, b: Array) -> float:
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


SHARED = Path(__file__).parents[2] / "shared"


def mobilenet_input(photo: Path) -> Array:
    image = np.asarray(Image.open(photo).convert("RGB").resize((244, 244))) / 255
    return np.float32((image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]


@pytest.mark.skipif(
    not SHARED.exists(), reason="the quantised MobileNetV2 lies in ../shared/models, which is not there"
)
@pytest.mark.parametrize("photo", ["coffee", "chelsea"])
def test_mobilenet_against_its_float_twin(photo: str) -> None:
    """Guided and deconvnet. The plain gradients of the two differ (0.63 and 0.66): quantising moves 2 % of the ReLUs
    to the other side of zero. tests/proof/test_quantised_oracle.py shows that this is all there is to it.
    """
    source = onnx.load(SHARED / "models" / "mobilenetv2_qdq.onnx")
    x = mobilenet_input(SHARED / "photos" / f"{photo}.png")
    methods = ("guided", "deconvnet")
    found = run(gbprewrite.convert(source, methods), image=x)
    index = int(found["explained_index"][0])
    expected = run(gbprewrite.convert(without_quantisation(source), methods, index), image=x)
    for method in methods:
        assert cosine(found[f"image_{method}"], expected[f"image_{method}"]) > 0.9, method


def without_quantisation(source: onnx.ModelProto) -> onnx.ModelProto:
    """The float twin: quantise-dequantise pairs taken out, weights dequantised."""
    twin = onnx.ModelProto()
    twin.CopyFrom(source)
    values = {t.name: onnx.numpy_helper.to_array(t) for t in source.graph.initializer}
    real: dict[str, str] = {}  # name of a quantised or dequantised value → name of the real one
    kept, weights = [], []
    for node in twin.graph.node:
        node.input[:] = [real.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        elif node.op_type == "QuantizeLinear" or (node.op_type == "Cast" and node.output[0].startswith("onnx::Deq")):
            real[node.output[0]] = node.input[0]
        elif node.op_type == "DequantizeLinear" and node.input[0] in values:
            w, scale, zero = (values[name].astype(np.float32) for name in node.input)
            weights.append(onnx.numpy_helper.from_array((w - zero) * scale, node.output[0]))
        elif node.op_type == "DequantizeLinear":
            real[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    kept += [onnx.helper.make_node("Identity", [real[o.name]], [o.name]) for o in twin.graph.output if o.name in real]
    used = {name for node in kept for name in node.input}
    for values_of, new in ((twin.graph.node, kept), (twin.graph.initializer, [*source.graph.initializer, *weights])):
        copies = [type(v).FromString(v.SerializeToString()) for v in new]
        del values_of[:]
        values_of.extend(v for v in copies if isinstance(v, onnx.NodeProto) or v.name in used)
    return twin


def test_a_quantizer_without_a_zero_point() -> None:
    """Its levels are uint8, and zero stands for zero; both ends cut off."""
    text = "g (float[N, 4] x) => (float[N, 4] y) { q = QuantizeLinear (x, s) y = DequantizeLinear (q, s, z) }"
    source = model(text, s=np.array(0.5, np.float32), z=np.array(0, np.uint8))
    x = np.float32([[-1, 3, 100, 200]])
    converted = gbprewrite.convert(source, "gradient", "seed")
    found = run(converted, x=x, seed=np.float32([[1, 2, 3, 4]]))
    np.testing.assert_array_equal(found["x_gradient"], [[0, 2, 3, 0]])

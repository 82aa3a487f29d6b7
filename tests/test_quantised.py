"""Quantised models: straight-through inside the range, nothing beyond it, and the ReLU hidden in saturation."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
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
        a, b = (v[f"image_{method}"].astype(np.float64).ravel() for v in (found, expected))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9, method


SHARED = Path(__file__).parents[2] / "shared"


@pytest.mark.skipif(
    not SHARED.exists(), reason="the quantised MobileNetV2 lies in ../shared/models, which is not there"
)
@pytest.mark.parametrize("photo", ["coffee", "chelsea"])
def test_mobilenet_against_its_float_twin(photo: str) -> None:
    """Guided and deconvnet; the gradients of the two have a cosine of 0.6 to 0.7 only, since many masks differ."""
    source = onnx.load(SHARED / "models" / "mobilenetv2_qdq.onnx")
    image = Image.open(SHARED / "photos" / f"{photo}.png").convert("RGB").resize((244, 244))
    x = ((np.asarray(image) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]
    methods = ("guided", "deconvnet")
    found = run(gbprewrite.convert(source, methods), image=np.float32(x))
    index = int(found["explained_index"][0])
    expected = run(gbprewrite.convert(without_quantisation(source), methods, index), image=np.float32(x))
    for method in methods:
        a, b = (v[f"image_{method}"].astype(np.float64).ravel() for v in (found, expected))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.9, method


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

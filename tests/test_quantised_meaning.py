"""What quantised values mean: which cut at zero is a ReLU, which gates stay gates; and no int8 branch is dropped."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from tests.small import Array, model, normal, run

U8 = {"s": np.float32(0.05), "z": np.uint8(0), "m": np.uint8(120), "hundredth": np.float32(0.01)}


def source(body: str, shapes: str = "float[1, 4, 6, 6] x", ends: str = "float[1, 4, 6, 6] y", **weights: Any) -> Any:
    """A graph from x to y; `Q(...)` in the body stands for a pair of QuantizeLinear and DequantizeLinear."""
    made = model(f"g ({shapes}) => ({ends}) {{ {body} }}", 20, 9, **{**U8, "w": normal(4, 4, 3, 3), **weights})
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return made


def pair(name: str, of: str, zero: str = "z", scale: str = "s") -> str:
    """`name` is the real number `of`, quantised and dequantised."""
    return f"{name}_q = QuantizeLinear ({of}, {scale}, {zero}) {name} = DequantizeLinear ({name}_q, {scale}, {zero})"


CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w)"
SIGNED = f"{CONV} {pair('a', 'c', 'm')}"  # a convolution's output with a zero point in the middle
RELU = f"{CONV} r = Relu (c) {pair('a', 'r')}"
# name → (body up to the real number `v`, which is quantised with zero point 0, and how many ReLUs hide there)
CUTS: dict[str, tuple[str, int]] = {
    "Conv": (f"{SIGNED} v = Conv <pads = [1, 1, 1, 1]> (a, w)", 1),
    "Add of convolutions": (f"{SIGNED} v = Add (a, x)", 1),
    "a shift below zero": (f"{RELU} v = Add (a, minus)", 1),
    "BatchNormalization": (f"{SIGNED} v = BatchNormalization (a, ones, ones, ones, ones)", 1),
    "Concat": (f"{SIGNED} h0, h1 = Split <axis = 1, num_outputs = 2> (a) v = Concat <axis = 1> (h0, h1)", 1),
    "positive times signed": (f"{SIGNED} g = Sigmoid (a) e = GlobalAveragePool (g) v = Mul (a, e)", 1),
    "Mul of signed": (f"{SIGNED} v = Mul (a, x)", 1),
    "averages of a convolution": (f"{SIGNED} v = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)", 1),
    # behind a ReLU nothing can be negative
    **{
        name: (f"{RELU} {body}", 0)
        for name, body in {
            "Resize": 'v = Resize <mode = "linear"> (a, "", up)',
            "Div by a constant": "v = Div (a, three)",
            "Mul by a constant": "v = Mul (three, a)",
            "Pow": "v = Pow (a, three)",
            "Sqrt": "v = Sqrt (a)",
            "ReduceSum": "t = ReduceSum (a, space) v = Add (a, t)",
            "ReduceL2": "t = ReduceL2 (a, space) v = Div (a, t)",
            "Sum": "v = Sum (a, r, a)",
            "Max": "v = Max (a, minus)",
            "Where": "b = Greater (a, three) v = Where (b, a, three)",
            "Pad and Slice": "p = Pad (a, widths) v = Slice (p, from, to)",
            "LeakyRelu": "v = LeakyRelu (a)",
            "Gelu": "v = Gelu (a)",
            "two gates": "g = Sigmoid (a) h = HardSigmoid (a) k = Mul (g, h) v = Mul (k, a)",
            "a blurring Conv": "v = Conv <group = 4, pads = [1, 1, 1, 1]> (a, blur)",
            "BlurPool's Gemm": "f = Reshape (a, rows) n = MatMul (f, sixths) v = Reshape (n, whole)",
            "ScatterND": "v = ScatterND (a, place, value)",
            "GatherElements": "b = Shape (a) i = ConstantOfShape (b) v = GatherElements <axis = 3> (a, i)",
        }.items()
    },
    # numbers that can't be negative whatever comes in
    "Softplus": (f"{SIGNED} v = Softplus (a)", 0),
    "a square": (f"{SIGNED} v = Mul (a, a)", 0),
    "an even power": (f"{SIGNED} v = Pow (a, two)", 0),
    "1 + erf": (f"{SIGNED} e = Erf (a) {pair('b', 'e', 'm', 'hundredth')} v = Add (b, one)", 0),
    "1 - sigmoid": (f"{SIGNED} e = Sigmoid (a) v = Sub (one, e)", 0),
    "Abs of Neg": (f"{SIGNED} n = Neg (a) v = Abs (n)", 0),
    # activations that dip below zero: a range that begins at zero is that of the calibration
    "Gelu of a convolution": (f"{SIGNED} v = Gelu (a)", 0),
    "HardSwish": (f"{SIGNED} v = HardSwish (a)", 0),
    "Elu": (f"{SIGNED} v = Elu (a)", 0),
    "mean of HardSwish": (f"{SIGNED} h = HardSwish (a) {pair('b', 'h', 'm')} v = GlobalAveragePool (b)", 0),
    "HardSwish times a gate": (
        f"{SIGNED} h = HardSwish (a) p = GlobalAveragePool (h) g = HardSigmoid (p) {pair('b', 'g')} v = Mul (h, b)",
        0,
    ),
    "sum of activations": (f"{SIGNED} h = HardSwish (a) k = Gelu (x) v = Add (h, k)", 0),
    "SiLU in two nodes": (f"{SIGNED} g = Sigmoid (a) {pair('b', 'g')} v = Mul (a, b)", 0),
    "GELU in five nodes": (
        f"{SIGNED} n = Div (a, root) e = Erf (n) {pair('b', 'e', 'm', 'hundredth')} o = Add (b, one)"
        f" {pair('k', 'o')} t = Mul (a, k) v = Mul (t, half)",
        0,
    ),
    # the ramp of a hard-swish, whose Clip the quantiser took out, and which it left in
    "hard-swish whose Clip is gone": (
        f"{SIGNED} t = Add (a, three) {pair('k', 't', scale='ramp')} n = Mul (k, a) v = Mul (n, sixth)",
        0,
    ),
    "hard-swish around a Clip": (
        f"{SIGNED} t = Add (a, three) {pair('k', 't', 'm')} l = Clip (k, nil, six) {pair('o', 'l', scale='ramp')}"
        " n = Mul (a, o) v = Div (n, six)",
        0,
    ),
    "hard-sigmoid as a gate": (
        f"{SIGNED} p = GlobalAveragePool (a) t = Add (p, three) {pair('k', 't', scale='ramp')} n = Mul (k, sixth)"
        " h = HardSwish (x) v = Mul (h, n)",
        0,
    ),
}
NUMBERS = {
    **{"one": np.float32(1), "two": np.float32(2), "three": np.float32(3), "six": np.float32(6), "nil": np.float32(0)},
    **{"half": np.float32(0.5), "root": np.float32(2**0.5), "sixth": np.float32(1 / 6), "ramp": np.float32(6 / 255)},
    **{"minus": np.float32(-1), "ones": np.ones(4, np.float32), "up": np.float32([1, 1, 2, 2])},
    **{"space": np.int64([2, 3]), "widths": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "from": np.int64([0, 0, 1, 1])},
    **{"to": np.int64([1, 4, 7, 7]), "blur": np.full((4, 1, 3, 3), 1 / 9, np.float32), "rows": np.int64([24, 6])},
    **{
        "sixths": np.full((6, 6), 1 / 6, np.float32),
        "whole": np.int64([1, 4, 6, 6]),
        "place": np.int64([[0, 1, 2, 3]]),
    },
    "value": np.float32([2]),
}


BEHIND = {
    "Sigmoid": ("y = Sigmoid (d)", 0),
    "HardSwish": ("y = HardSwish (d)", 0),
    "SiLU in two nodes": (f"g = Sigmoid (d) {pair('b', 'g')} y = Mul (d, b)", 0),
    "Sigmoid of another": ("g = Sigmoid (x) y = Mul (d, g)", 1),
    "a Sigmoid among others": ("g = Sigmoid (d) t = Neg (d) y = Add (g, t)", 1),
}


@pytest.mark.parametrize("name", BEHIND)
def test_no_relu_hides_before_an_activation(name: str) -> None:
    """A convolution's output may be positive in all calibration pictures."""
    body, hidden = BEHIND[name]
    made = source(f"{CONV} {pair('d', 'c')} {body}")
    assert rectifiers(made) == ["ReLU in QuantizeLinear"] * hidden


def rectifiers(made: onnx.ModelProto) -> list[str]:
    return [row["kind"] for row in gbprewrite.inspect(made).nonlinearities if row["role"] == "rectifier"]


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_at_zero_is_a_relu_where_only_that_explains_it(name: str) -> None:
    body, hidden = CUTS[name]
    shapes = "float[1, 4, 6, 6] x"
    made = source(f"{body} {pair('d', 'v')} y = Neg (d)", shapes, "float[1, 4, n, m] y", **NUMBERS)
    written = ["Relu"] * (" Relu (" in body)
    assert rectifiers(made) == written + ["ReLU in QuantizeLinear"] * hidden


def test_the_range_of_an_input_is_no_relu_once_it_is_moved_or_scaled() -> None:
    body = f"t = Transpose <perm = [0, 1, 3, 2]> (x) v = Mul (t, half) {pair('d', 'v')} y = Neg (d)"
    assert rectifiers(source(body, **NUMBERS)) == []


def test_a_deep_chain_is_no_depth_of_calls() -> None:
    steps = [f"v{i + 1} = Identity (v{i})" for i in range(3000)]
    body = f"{RELU} v0 = Identity (a) {' '.join(steps)} {pair('d', 'v3000')} y = Neg (d)"
    assert rectifiers(source(body, **NUMBERS)) == ["Relu"]


GATES = {
    "Sigmoid behind a pair": f"g = Sigmoid (a) {pair('b', 'g')} v = Mul (x, b)",
    "HardSigmoid behind a pair": f"g = HardSigmoid (a) {pair('b', 'g')} t = Identity (b) v = Mul (x, t)",
    "in QLinear operators": """g_q = com.microsoft.QLinearSigmoid (a_q, s, m, s, z)
        v_q = com.microsoft.QLinearMul (g_q, s, z, a_q, s, m, s, m) v = DequantizeLinear (v_q, s, m)""",
}


@pytest.mark.parametrize("name", GATES)
def test_gates_stay_gates(name: str) -> None:
    roles = [r["role"] for r in gbprewrite.inspect(source(f"{SIGNED} {GATES[name]} y = Neg (v)")).nonlinearities]
    assert roles.count("gate") == 1
    assert "activation" not in roles


def test_a_factor_that_is_a_quantised_weight_makes_no_gate() -> None:
    body = f"{SIGNED} g = Sigmoid (a) {pair('b', 'g')} k = DequantizeLinear (kq, s, z) v = Mul (b, k) y = Neg (v)"
    found = gbprewrite.inspect(source(body, kq=np.full((1, 4, 1, 1), 9, np.uint8))).nonlinearities
    assert [r["role"] for r in found if r["operator"] == "Sigmoid"] == ["activation"]


# What moves or picks levels; `T` is uint8 or float. Each is compared with itself on dequantised numbers.
CARRIED: dict[str, str] = {
    "Resize nearest": 'o = Resize <mode = "nearest"> (i, "", up)',
    "Resize linear": 'o = Resize <mode = "linear"> (i, "", up)',
    "Resize to a size": 'o = Resize <mode = "linear"> (i, "", "", [SIZES])',
    "Upsample's Resize": 'o = Resize <mode = "nearest", nearest_mode = "floor",'
    ' coordinate_transformation_mode = "asymmetric"> (i, "", up)',
    "GatherElements": "o = GatherElements <axis = 2> (i, index)",
    "GatherND": "o = GatherND (i, places)",
    "ScatterElements": "k = Transpose <perm = [0, 1, 3, 2]> (i) o = ScatterElements <axis = 2> (i, index, k)",
    "Where": "k = Transpose <perm = [0, 1, 3, 2]> (i) o = Where (choice, i, k)",
    "Max": "k = Transpose <perm = [0, 1, 3, 2]> (i) o = Max (i, k)",
    "Min": "k = Transpose <perm = [0, 1, 3, 2]> (i) o = Min (i, k)",
    "ReduceMax": "o = ReduceMax (i, row)",
    "ReduceMin": "o = ReduceMin (i, row)",
    "TopK": "o, n = TopK <axis = 1> (i, two)",
    "Compress": "o = Compress <axis = 1> (i, kept)",
    "ReverseSequence": "k = Squeeze (i, first) o = ReverseSequence <time_axis = 1, batch_axis = 0> (k, lengths)",
    "MaxPool": "o = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (i)",
    "Pad": "o = Pad (i, widths)",
    "Concat and Split": "h, j = Split <axis = 1, num_outputs = 2> (i) o = Concat <axis = 2> (j, h)",
    "DepthToSpace": "o = DepthToSpace <blocksize = 2> (i)",
}
CARRIED_WEIGHTS = {
    **{"up": np.float32([1, 1, 2, 2]), "index": np.random.default_rng(5).integers(0, 6, (1, 4, 6, 6))},
    **{"places": np.int64([[[0, 1], [0, 3]]]), "choice": np.random.default_rng(6).random((1, 4, 6, 6)) < 0.5},
    **{"row": np.int64([3]), "two": np.int64([2]), "kept": np.array([True, False, True, True])},
    **{"first": np.int64([0]), "lengths": np.int64([3, 1, 6, 2]), "widths": np.int64([0, 0, 1, 0, 0, 0, 2, 1])},
    "SIZES": np.int64([1, 4, 9, 7]),
}


@pytest.mark.parametrize("name", CARRIED)
def test_levels_carry_what_they_stand_for(name: str) -> None:
    """Both branches of a sum: one goes through the operator on levels, or on the numbers that they stand for.

    A ReLU and scales of 1 make the numbers whole, so that both round alike; Resize's own rounding of levels changes no
    gradient of a linear score.
    """
    step = CARRIED[name].replace("[SIZES]", "SIZES")
    head = "r = Relu (x) q = QuantizeLinear (r, one, z)"
    tail = "t = ReduceSum <keepdims = 0> (d) e = ReduceSum <keepdims = 0> (r) b = Add (t, e) y = Reshape (b, shape)"
    bodies = {
        "levels": f"{head} i = Identity (q) {step} d0 = DequantizeLinear (o, one, z) d = Mul (d0, d0) {tail}",
        "numbers": f"{head} i = DequantizeLinear (q, one, z) {step} d = Mul (o, o) {tail}",
    }
    x = np.random.default_rng(4).permutation(np.arange(-20.0, 124.0)).reshape(1, 4, 6, 6).astype(np.float32)
    found = {}
    for kind, body in bodies.items():
        made = source(body, ends="float[1, 1] y", one=np.float32(1), shape=np.int64([1, 1]), **CARRIED_WEIGHTS)
        built = gbprewrite.convert(made, ["gradient", "guided"], 0)
        assert rectifiers(made) == ["Relu"]
        found[kind] = run(built, x=x)
    tolerance = 0.02 if "linear" in step else 1e-6  # what Resize rounds, in a square
    for method in ("gradient", "guided"):
        levels, numbers = (found[kind][f"x_{method}"] for kind in ("levels", "numbers"))
        assert np.linalg.norm(levels - numbers) <= tolerance * np.linalg.norm(numbers), method
        assert np.linalg.norm(numbers - (x > 0)) > 1, method  # the branch matters


def test_levels_that_become_plain_numbers() -> None:
    """Dequantised by hand: (float(q) - 120) · 0.05 has the gradient 1 inside the range."""
    body = f"{SIGNED} n = Cast <to = 6> (a_q) f = Cast <to = 1> (n) t = Sub (f, shift) u = Mul (t, s)"
    by_hand = source(f"{body} y = Neg (u)", shift=np.float32(120))
    by_node = source(f"{SIGNED} y = Neg (a)")
    feeds = {"x": normal(1, 4, 6, 6, seed=3), "seed": normal(1, 4, 6, 6, seed=4)}
    first, second = (run(gbprewrite.convert(m, "gradient", "seed"), **feeds)["x_gradient"] for m in (by_hand, by_node))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)


REFUSED = {
    "arithmetic on levels": ("k = Add (a_q, m) d = DequantizeLinear (k, s, z)", "Add .*levels of quantised numbers"),
    "a Clip of levels": ("k = Clip (a_q, m) d = DequantizeLinear (k, s, z)", "Clip .*levels of quantised numbers"),
    "in wider integers": (
        "n = Cast <to = 6> (a_q) k = Sub (n, wide) f = Cast <to = 1> (k) d = Mul (f, s)",
        "Sub .*levels of quantised numbers",
    ),
    "an operator of onnxruntime's": (
        "k = com.microsoft.QLinearSoftmax <axis = 1, opset = 13> (a_q, s, m, s, z) d = DequantizeLinear (k, s, z)",
        "QLinearSoftmax .*custom operator",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_with_levels_is_refused_and_never_dropped(name: str) -> None:
    body, message = REFUSED[name]
    made = source(f"{SIGNED} {body} y = Add (d, c)", wide=np.int32(120))
    with pytest.raises(gbprewrite.UnsupportedOperators, match=message):
        gbprewrite.convert(made, "gradient", "seed")


def test_integers_that_say_where_are_no_branch() -> None:
    """The indices of a TopK of levels, and what is counted of them, have no gradient: the values have it."""
    body = (
        f"{RELU} v, i = TopK <axis = 1> (a_q, two) d = DequantizeLinear (v, s, z) y = GatherElements <axis = 1> (c, i)"
    )
    made = source(body, ends="float[1, 2, 6, 6] y, float[1, 2, 6, 6] d", two=np.int64([2]))
    built = gbprewrite.convert(made, "gradient", "seed", score="y")
    assert np.abs(run(built, x=normal(1, 4, 6, 6), seed=normal(1, 2, 6, 6, seed=1))["x_gradient"]).max() > 0


def unet(style: str) -> onnx.ModelProto:
    """Conv, ReLU, pool, Conv, ReLU, Resize, Concat with the first, Conv: in pairs, or in QLinear operators."""
    rng = np.random.default_rng(7)
    weights = {
        **{"sx": np.float32(0.02), "zx": np.uint8(128), "sa": np.float32(0.03), "sw": np.float32(0.01)},
        **{"zw": np.int8(0), "z0": np.uint8(0), "sy": np.float32(0.05), "zy": np.uint8(100)},
        **{"w1": rng.integers(-40, 40, (4, 3, 3, 3), np.int8), "w2": rng.integers(-40, 40, (4, 4, 3, 3), np.int8)},
        **{"w3": rng.integers(-40, 40, (2, 8, 3, 3), np.int8), "up": np.float32([1, 1, 2, 2])},
    }
    head = "g (float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y) { q0 = QuantizeLinear (x, sx, zx)"
    pads = "<pads = [1, 1, 1, 1]>"
    if style == "QOperator":
        body = f"""q1 = QLinearConv {pads} (q0, sx, zx, w1, sw, zw, sa, z0)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q1)
            q2 = QLinearConv {pads} (p, sa, z0, w2, sw, zw, sa, z0)
            u = Resize <mode = "nearest"> (q2, "", up)
            k = com.microsoft.QLinearConcat <axis = 1> (sa, z0, q1, sa, z0, u, sa, z0)
            q3 = QLinearConv {pads} (k, sa, z0, w3, sw, zw, sy, zy) d3 = DequantizeLinear (q3, sy, zy)"""
    else:
        body = f"""f0 = DequantizeLinear (q0, sx, zx) v1 = DequantizeLinear (w1, sw, zw)
            c1 = Conv {pads} (f0, v1) r1 = Relu (c1) {pair("f1", "r1", "z0", "sa")}
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (f1) v2 = DequantizeLinear (w2, sw, zw)
            c2 = Conv {pads} (p, v2) r2 = Relu (c2) {pair("f2", "r2", "z0", "sa")}
            u = Resize <mode = "nearest"> (f2, , up) {pair("f3", "u", "z0", "sa")}
            k = Concat <axis = 1> (f1, f3) v3 = DequantizeLinear (w3, sw, zw)
            c3 = Conv {pads} (k, v3) {pair("d3", "c3", "zy", "sy")}"""
    made = model(f"{head} {body} y = Neg (d3) }}", 20, 9, **weights)
    made.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return made


def test_a_unet_on_levels_is_its_qdq_twin() -> None:
    x = normal(1, 3, 8, 8, seed=8)
    seed: Array = normal(1, 2, 8, 8, seed=9)
    found = []
    for style, kinds in (("QOperator", ["ReLU in Saturation"] * 2), ("QDQ", ["Relu"] * 2)):
        made = unet(style)
        assert rectifiers(made) == kinds
        built = gbprewrite.convert(made, ["gradient", "guided", "deconvnet"], "seed")
        found.append(run(built, optimise=False, x=x, seed=seed))
    np.testing.assert_allclose(found[0]["y"], found[1]["y"], atol=0.051)  # a level may round apart
    for method in ("gradient", "guided", "deconvnet"):
        np.testing.assert_allclose(found[0][f"x_{method}"], found[1][f"x_{method}"], rtol=1e-4, atol=1e-4)

"""ReLU and its relatives in other words: each spelling meets the rule, and what only looks like one is listed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.select.rectifiers import UNNAMED
from tests.small import Array, model, normal, run

METHODS = ("gradient", "guided", "deconvnet")
NUMBERS: dict[str, Any] = {
    "zero": 0, "zero1": [0], "zeros": np.zeros(8), "one": 1, "two": 2, "three": 3, "six": 6, "half": 0.5, "tenth": 0.1,
    "eps": 1e-5, "low": -3, "slopes": np.arange(1, 9) / 10, "turned": -np.arange(1, 9) / 10,
    "nothing": np.zeros((3, 1, 8)), "first": np.array([0]), "axis": np.array([1]), "off": 0.1666, "alpha": 1.5,
    "gamma": 1.25, "true": np.array(True), "count": np.array([1]),
}  # fmt: skip
AS_THEY_ARE = ("first", "axis", "true", "count")
DTYPES: dict[str, Any] = {"float": np.float32, "float16": np.float16}
SHAPED = "s = Shape (x) z = ConstantOfShape (s)"
MASK = "p = Greater (x, zero) m = Cast <to = 1> (p)"
RELUS = {
    "Max with zeros of a shape": f"{SHAPED} y = Max (z, x)",
    "Max with expanded zeros": "s = Shape (x) z = Expand (zero, s) y = Max (x, z)",
    "Max with 0x": "z = Mul (x, zero) y = Max (x, z)",
    "Max with x - x": "z = Sub (x, x) y = Max (x, z)",
    "Max of three": "a = Mul (x, tenth) y = Max (a, zero, x)",
    "Max with a vector of one": "y = Max (zero1, x)",
    "Where below": "p = Less (x, zero) y = Where (p, zero, x)",
    "Where not above": f"{SHAPED} p = LessOrEqual (x, z) y = Where (p, z, x)",
    "Where with the zero first": "p = Less (zero, x) y = Where (p, x, zeros)",
    "Where not below": "p = Less (x, zero) q = Not (p) y = Where (q, x, zero)",
    "Where of Where": "p = Greater (x, zero) a = Where (p, x, zero) y = Where (p, x, a)",
    "Where of -x": "n = Neg (x) p = Greater (n, zero) y = Where (p, zero, x)",
    "product": f"{MASK} y = Mul (m, x)",
    "product by CastLike": "p = Greater (x, zero) m = CastLike (p, x) y = Mul (x, m)",
    "product by integers": "p = Greater (x, zero) i = Cast <to = 6> (p) m = Cast <to = 1> (i) y = Mul (x, m)",
    "product behind Identity": f"a = Identity (x) {MASK} b = Identity (m) y = Mul (a, b)",
    "product by Where": "p = GreaterOrEqual (x, zero) m = Where (p, one, zero) y = Mul (x, m)",
    "product by 1 - mask": "p = Less (x, zero) m = Cast <to = 1> (p) k = Sub (one, m) y = Mul (x, k)",
    "product by a sign": "s = Sign (x) t = Add (s, one) u = Mul (x, t) y = Div (u, two)",
    "product by a sign that is cut": "s = Sign (x) t = Relu (s) y = Mul (x, t)",
    "product by two masks": f"{MASK} q = LessOrEqual (x, zero) r = Not (q) k = Cast <to = 1> (r) "
    "a = Mul (x, m) y = Mul (a, k)",
    "Abs": "a = Abs (x) b = Add (x, a) y = Mul (b, half)",
    "Abs in halves": "a = Abs (x) b = Mul (a, half) c = Div (x, two) y = Add (b, c)",
    "Mean with Abs": "a = Abs (x) y = Mean (x, a)",
    "square root of the square": "q = Pow (x, two) r = Sqrt (q) a = Add (x, r) y = Div (a, two)",
    "Min taken away": "m = Min (x, zero) y = Sub (x, m)",
    "Min of -x": "n = Neg (x) m = Min (n, zero) y = Neg (m)",
    "Clip of -x": "n = Neg (x) m = Clip (n, , zero) y = Neg (m)",
    "Clip of a computed zero": "k = Sub (one, one) y = Clip (x, k)",
    "LeakyRelu": "y = LeakyRelu <alpha = 0.> (x)",
    "PRelu": "y = PRelu (x, zeros)",
    "Elu": "y = Elu <alpha = 0.> (x)",
    "ThresholdedRelu": "y = ThresholdedRelu <alpha = 0.> (x)",
    "x + relu(-x)": "n = Neg (x) r = Relu (n) y = Add (x, r)",
    "stack": f"{SHAPED} a = Unsqueeze (x, first) b = Unsqueeze (z, first) c = Concat <axis = 0> (a, b) "
    "y = ReduceMax <keepdims = 0> (c, first)",
    "Where below, or no number": "p = Less (x, zero) i = IsNaN (x) q = Or (p, i) y = Where (q, zero, x)",
    "ScatterND of what is above": f"{SHAPED} p = Greater (x, zero) i = NonZero (p) j = Transpose <perm = [1, 0]> (i) "
    "v = GatherND (x, j) y = ScatterND (z, j, v)",
    "ScatterND": "p = Less (x, zero) i = NonZero (p) j = Transpose <perm = [1, 0]> (i) k = Shape (j) "
    "l = Gather (k, first) u = Expand (zero, l) y = ScatterND (x, j, u)",
}  # fmt: skip


SOME = ("Max with zeros of a shape", "Where below", "product", "Min of -x", "PRelu", "LeakyRelu")


def source_of(body: str, kind: str = "float", opset: int = 20, batch: str = "N") -> onnx.ModelProto:
    """x [N, 8] → y [N, 8]"""
    used = {name: np.array(v) for name, v in NUMBERS.items() if re.search(rf"[(,] ?{name}\b", body)}
    weights = {
        name: v if name in ("first", "axis", "true", "count") else v.astype(DTYPES[kind]) for name, v in used.items()
    }
    if kind == "float16":
        body = body.replace("to = 1>", "to = 10>")
        body = body.replace("ConstantOfShape", "ConstantOfShape <value = float16[1] {0}>")
    return model(f"g ({kind}[{batch}, 8] x) => ({kind}[{batch}, 8] y) {{ {body} }}", opset, **weights)


def check_maps(source: onnx.ModelProto, kind: Any = np.float32) -> None:
    """dy·(x>0), dy·(x>0)·(dy>0) and max(dy, 0)."""
    x, dy = normal(4, 8).astype(kind), normal(4, 8, seed=1).astype(kind)
    found = run(gbprewrite.convert(source, METHODS, "seed"), x=x, seed=dy)
    np.testing.assert_array_equal(found["x_gradient"], np.where(x > 0, dy, 0))
    np.testing.assert_array_equal(found["x_guided"], np.where((x > 0) & (dy > 0), dy, 0))
    np.testing.assert_array_equal(found["x_deconvnet"], np.maximum(dy, 0))


def roles(source: onnx.ModelProto) -> list[tuple[str, str]]:
    rows = gbprewrite.inspect(source).nonlinearities
    return [(row["kind"].split(" as ")[0], row["role"]) for row in rows]


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("name", RELUS)
def test_relu(name: str, batch: str) -> None:
    source = source_of(RELUS[name], batch=batch)
    assert [role for _, role in roles(source)] == ["rectifier"]
    check_maps(source)


@pytest.mark.parametrize("name", [*SOME, "Abs"])
def test_in_half_precision(name: str) -> None:
    check_maps(source_of(RELUS[name], "float16"), np.float16)


@pytest.mark.parametrize("opset", [9, 12, 16])
@pytest.mark.parametrize("name", SOME)
def test_in_older_opsets(name: str, opset: int) -> None:
    check_maps(source_of(RELUS[name], opset=opset))


def test_with_a_mask_in_another_precision() -> None:
    body = f"{MASK} h = Cast <to = 10> (x) k = Cast <to = 10> (m) a = Mul (h, k) y = Cast <to = 1> (a)"
    assert roles(source_of(body)) == [("Relu", "rectifier")]


@pytest.mark.parametrize("constant", [False, True])
def test_with_more_zeros_than_are_looked_into(constant: bool) -> None:
    """Exporters write zeros_like(x) of a fixed batch out: 100,352 zeros for one layer of a VGG."""
    zeros = np.zeros((1, 8, 56, 56), np.float32)
    text = "g (float[1, 8, 56, 56] x) => (float[1, 8, 56, 56] y) {{ {} y = Max (x, z) }}"
    source = model(text.format(""), z=zeros) if not constant else model(text.format("z = Identity (x)"))
    if constant:
        value = onnx.helper.make_node("Constant", [], ["z"], value=onnx.numpy_helper.from_array(zeros))
        source.graph.node[0].CopyFrom(value)
    assert roles(source) == [("Relu", "rectifier")]
    x, dy = normal(1, 8, 56, 56), normal(1, 8, 56, 56, seed=1)
    found = run(gbprewrite.convert(source, "guided", "seed"), x=x, seed=dy)["x_guided"]
    np.testing.assert_array_equal(found, np.where((x > 0) & (dy > 0), dy, 0))


def test_in_a_branch_and_in_a_function() -> None:
    branches = """s = ReduceSum <keepdims = 0> (x) p = Greater (s, zero)
        y = If (p) <then_branch = t () => (float[N, 8] u) { c = Less (x, zero) u = Where (c, zero, x) },
                    else_branch = e () => (float[N, 8] v) {
                        d = Greater (x, zero) m = Cast <to = 1> (d) v = Mul (x, m) }>"""
    check_maps(source_of(branches))
    text = """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[N, 8] x) => (float[N, 8] y) { y = own.Rectified (x) }
        <opset_import: ["" : 18], domain: "own"> Rectified (v) => (w) {
            a = Abs (v) b = Add (v, a) h = Constant <value = float {0.5}> () w = Mul (b, h) }"""
    check_maps(onnx.parser.parse_model(text))


# body, and (kind, role) of every nonlinearity: none is a ReLU
RELATIVES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "PRelu as Keras writes it": (
        "a = Relu (x) n = Neg (x) b = Relu (n) c = Mul (b, turned) y = Add (a, c)",
        [("PRelu", "activation")],
    ),
    "PRelu of Sub": (
        "a = Relu (x) n = Neg (x) b = Relu (n) c = Mul (slopes, b) y = Sub (a, c)",
        [("PRelu", "activation")],
    ),
    "PRelu of Abs": (
        "a = Relu (x) n = Abs (x) b = Sub (x, n) c = Mul (slopes, b) d = Mul (c, half) y = Add (a, d)",
        [("PRelu", "activation")],
    ),
    "PRelu of Where": ("p = Less (x, zero) a = Mul (x, slopes) y = Where (p, a, x)", [("PRelu", "activation")]),
    "LeakyRelu of Max": ("a = Mul (x, tenth) y = Max (a, x)", [("LeakyRelu", "activation")]),
    "PRelu of one slope as Keras writes it": (
        "a = Relu (x) n = Neg (x) b = Relu (n) m = Neg (tenth) c = Mul (m, b) y = Add (a, c)",
        [("PRelu", "activation")],
    ),
    "PRelu of one slope and Sub": (
        "a = Relu (x) n = Neg (x) b = Relu (n) c = Mul (b, tenth) y = Sub (a, c)",
        [("PRelu", "activation")],
    ),
    "LeakyRelu": ("y = LeakyRelu <alpha = 0.1> (x)", [("LeakyRelu", "activation")]),
    "PRelu": ("y = PRelu (x, slopes)", [("PRelu", "activation")]),
    "Elu of Where": (
        "p = Greater (x, zero) e = Exp (x) f = Sub (e, one) y = Where (p, x, f)",
        [("Elu", "activation")],
    ),
    "Elu of Relu and Min": (
        "r = Relu (x) m = Min (x, zero) e = Exp (m) f = Sub (e, one) y = Add (r, f)",
        [("Elu", "activation")],
    ),
    "Elu of Relu and Min of the whole": (
        "r = Relu (x) e = Exp (x) f = Sub (e, one) g = Mul (f, alpha) m = Min (g, zero) y = Add (r, m)",
        [("Elu", "activation")],
    ),
    "Elu of two Relus": (
        "r = Relu (x) e = Exp (x) f = Sub (one, e) m = Relu (f) y = Sub (r, m)",
        [("Elu", "activation")],
    ),
    "exp below zero": ("e = Exp (x) p = Less (x, zero) y = Where (p, e, zero)", [("Where", UNNAMED)]),
    "Selu of Where": (
        """p = Greater (x, zero) e = Exp (x) f = Mul (e, alpha) h = Sub (f, alpha) z = Where (p, x, h)
        y = Mul (z, gamma)""",
        [("Selu", "activation")],
    ),
    "Softplus that does not overflow": (
        "m = Max (x, zero) a = Abs (x) n = Neg (a) e = Exp (n) o = Add (e, one) l = Log (o) y = Add (m, l)",
        [("Softplus", "activation")],
    ),
    "Softplus with a limit": (
        "p = Greater (x, three) a = Softplus (x) y = Where (p, x, a)",
        [("Softplus", "activation"), ("Where", "other")],
    ),
    "hard-swish of Where": (
        """a = Add (x, three) b = Mul (x, a) c = Div (b, six) p = Greater (x, three) q = Less (x, low)
        d = Where (q, zero, c) y = Where (p, x, d)""",
        [("HardSwish", "activation")],
    ),
    "hard-swish of computed constants": (
        """s = Shape (x) z = Expand (zero, s) t = Expand (six, s) a = Add (x, three) b = Max (a, z) c = Min (b, t)
        d = Mul (x, c) y = Div (d, six)""",
        [("HardSwish", "activation")],
    ),
    "hard-sigmoid of computed constants": (
        """s = Shape (x) z = Expand (zero, s) t = Expand (six, s) a = Add (x, three) b = Max (a, z) c = Min (b, t)
        y = Div (c, six)""",
        [("HardSigmoid", "activation")],
    ),
    "swish": ("s = Sigmoid (x) y = Mul (x, s)", [("Swish", "activation")]),
    "gate": ("s = Sigmoid (x) e = Sin (x) y = Mul (e, s)", [("Sigmoid", "gate")]),
    "softshrink": (
        """p = Greater (x, half) a = Sub (x, half) n = Neg (half) q = Less (x, n) b = Add (x, half)
        c = Where (q, b, zero) y = Where (p, a, c)""",
        [],
    ),
    "PRelu behind a Relu": ("a = Relu (x) y = PRelu (a, slopes)", [("Relu", "rectifier"), ("PRelu", "activation")]),
    "LeakyRelu behind a Relu": (
        "a = Relu (x) y = LeakyRelu <alpha = 0.1> (a)",
        [("Relu", "rectifier"), ("LeakyRelu", "activation")],
    ),
    # What is the identity behind a ReLU is not another one: at 0, its own derivative counts.
    "|x| behind a Relu": ("a = Relu (x) y = Abs (a)", [("Relu", "rectifier"), ("Abs", "other")]),
    "|x| behind a ReLU as Max": ("a = Max (x, zero) y = Abs (a)", [("Relu", "rectifier"), ("Abs", "other")]),
    "Clip behind a Relu": ("a = Relu (x) y = Clip (a, low)", [("Relu", "rectifier"), ("Clip", "other")]),
    "Max behind a Relu": ("a = Relu (x) y = Max (a, low)", [("Relu", "rectifier"), ("Max", "other")]),
    "a branch in an average": ("a = Relu (x) y = Mean (x, a)", [("Relu", "rectifier")]),
    "Where behind a Relu": (
        "a = Relu (x) p = Greater (x, zero) y = Where (p, a, zero)",
        [("Relu", "rectifier"), ("Where", UNNAMED)],
    ),
    "|x| of Where": ("p = Less (x, zero) n = Neg (x) y = Where (p, n, x)", [("Where", "other")]),
    "|x| of a product": ("s = Sign (x) y = Mul (x, s)", []),
    "Huber": (
        """a = Abs (x) p = Less (a, one) q = Mul (x, x) b = Mul (q, half) c = Sub (a, half)
        y = Where (p, b, c)""",
        [("Abs", "other"), ("Where", "other")],
    ),
    "guard against infinity": (
        "i = IsInf (x) g = Greater (x, zero) p = And (i, g) y = Where (p, three, x)",
        [("Where", "other")],
    ),
    "another limit": ("p = Greater (x, eps) y = Where (p, x, eps)", [("Where", "other")]),
    "mask of another tensor": (
        "e = Exp (x) o = Sin (x) p = Greater (o, zero) m = Cast <to = 1> (p) y = Mul (e, m)",
        [],
    ),
    "dropout": (
        "r = RandomUniformLike (x) p = Greater (r, zero) y = Where (p, x, zero)",
        [("Where", "other")],
    ),
    "active dropout": (
        "s = Shape (x) o = Expand (one, s) d = Dropout (o, half, true) m = Sub (d, one) y = Max (x, m)",
        [("Max", "other")],
    ),
    "guard against NaN": ("p = IsNaN (x) y = Where (p, zero, x)", [("Where", "other")]),
    # Like rectifiers, and under no name that a rule has
    "x · (x > 1)": ("p = Greater (x, one) m = Cast <to = 1> (p) y = Mul (x, m)", [("Mul", UNNAMED)]),
    "x where x > 1": ("p = Greater (x, one) y = Where (p, x, zero)", [("Where", UNNAMED)]),
    "x or a number": ("p = Less (x, zero) y = Where (p, low, x)", [("Where", UNNAMED)]),
    "2 max(x, 0)": ("a = Abs (x) y = Add (x, a)", [("Abs", "other"), ("Add", UNNAMED)]),
    "product by a rounded sigmoid": (
        "s = Sigmoid (x) m = Round (s) y = Mul (x, m)",
        [("Mul", UNNAMED)],
    ),
    "product by a test of a sigmoid": (
        "s = Sigmoid (x) p = Greater (s, half) m = Cast <to = 1> (p) y = Mul (x, m)",
        [("Mul", UNNAMED)],
    ),
    "the larger by TopK": (
        f"{SHAPED} a = Unsqueeze (x, first) b = Unsqueeze (z, first) c = Concat <axis = 0> (a, b) "
        "t, u = TopK <axis = 0> (c, count) y = Squeeze (t, first)",
        [("TopK", UNNAMED)],
    ),
    "min(x, 0)": ("y = Min (x, zero)", [("Min", UNNAMED)]),
    "min(x, 0) of Clip": ("y = Clip (x, , zero)", [("Clip", UNNAMED)]),
    "larger zeros": ("a = Max (x, nothing) y = ReduceSum <keepdims = 0> (a, first)", [("Max", UNNAMED)]),
    "signed root": ("a = Abs (x) b = Sqrt (a) s = Sign (x) y = Mul (s, b)", [("Abs", "other"), ("Mul", UNNAMED)]),
    "the largest alone": (
        "k = ReduceMax <keepdims = 1> (x, axis) p = GreaterOrEqual (x, k) m = Cast <to = 1> (p) y = Mul (x, m)",
        [("Mul", UNNAMED)],
    ),
}

RANDOM_OR_MIXED = ("the larger by TopK", "dropout", "active dropout", "larger zeros", "the largest alone")


@pytest.mark.parametrize(
    ("behind", "derivative_at_0"), [("Abs (a)", 0), ("Clip (a, low)", 1), ("PRelu (a, slopes)", None)]
)
def test_deconvnet_through_what_is_the_identity_behind_a_relu(behind: str, derivative_at_0: int | None) -> None:
    """max(dy · f'(relu(x)), 0): where x < 0, f' is that of f at 0."""
    x, dy = normal(4, 8), normal(4, 8, seed=1)
    source = source_of(f"a = Relu (x) y = {behind}")
    found = run(gbprewrite.convert(source, "deconvnet", "seed"), x=x, seed=dy)
    at_0 = NUMBERS["slopes"].astype(np.float32) if derivative_at_0 is None else np.float32(derivative_at_0)
    np.testing.assert_array_equal(found["x_deconvnet"], np.maximum(dy * np.where(x > 0, np.float32(1), at_0), 0))


@pytest.mark.parametrize("name", RELATIVES)
def test_what_is_no_relu(name: str) -> None:
    body, expected = RELATIVES[name]
    assert roles(source_of(body)) == expected


@pytest.mark.parametrize(
    "name", [n for n in RELATIVES if n not in ("dropout", "active dropout", "larger zeros", "the largest alone")]
)
def test_derivative_of_what_is_no_relu(name: str) -> None:
    """Against central differences in float64, away from the bends."""
    source = gbprewrite.checks.reference.in_float64(source_of(RELATIVES[name][0]))
    x = np.random.default_rng(3).uniform(-5, 5, (4, 8))
    ones: Array = np.ones((4, 8))
    built = gbprewrite.convert(source, "gradient", "seed")
    found = gbprewrite.checks.reference.evaluate(built, {"x": x, "seed": ones})["x_gradient"]
    above, below = (gbprewrite.checks.reference.evaluate(source, {"x": x + step})["y"] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-6, atol=1e-7)


def test_gate_like_nodes_are_in_the_record_and_in_the_message() -> None:
    body = "p = Greater (x, one) a = Where (p, x, zero) y = Relu (a)"
    record = gbprewrite.graft.record.read_record(gbprewrite.convert(source_of(body), "guided", "seed"))
    assert record is not None
    assert [(row["operator"], row["role"]) for row in record["activations"]] == [("Where", UNNAMED)]
    with pytest.raises(gbprewrite.ModelError, match=r"1 Where.*gate-like.*inspect"):
        gbprewrite.convert(source_of("p = Greater (x, one) y = Where (p, x, zero)"), "guided")


@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_gate_like_nodes_are_printed(command: str, tmp_path: Path, cli: Any) -> None:
    onnx.save(source_of("p = Greater (x, one) a = Where (p, x, zero) y = Relu (a)"), tmp_path / "odd.onnx")
    printed = cli(command, tmp_path / "odd.onnx").output
    assert "Where" in printed
    assert "gate-like, left plain" in printed


def test_a_relu_that_one_reader_caps_stays_a_relu_for_all() -> None:
    """y = min(r, 6) + 2 r, r = max(x, 0): what arrives at r is rectified as a whole, as at an nn.ReLU."""
    source = source_of("r = Relu (x) a = Min (r, six) b = Mul (r, two) c = Neg (b) y = Add (a, c)")
    assert roles(source) == [("Relu", "rectifier"), ("Min", "other")]
    x, dy = normal(4, 8) * 8, normal(4, 8, seed=1)
    found = run(gbprewrite.convert(source, METHODS, "seed"), x=x, seed=dy)
    arrives = np.where(x < 6, dy, 0) - 2 * dy
    np.testing.assert_allclose(found["x_gradient"], np.where(x > 0, arrives, 0), rtol=1e-6)
    np.testing.assert_allclose(found["x_guided"], np.where(x > 0, np.maximum(arrives, 0), 0), rtol=1e-6)
    np.testing.assert_allclose(found["x_deconvnet"], np.maximum(arrives, 0), rtol=1e-6)


def test_a_relu_inside_a_ramp_stays_a_relu_for_others() -> None:
    """y = 0.1666 min(r, 6) - r, r = max(x + 3, 0): the ramp goes back by its derivative, the rest by the rule."""
    source = source_of("a = Add (x, three) r = Relu (a) b = Min (r, six) c = Mul (b, off) y = Sub (c, r)")
    assert sorted(roles(source)) == [
        ("Min of a hard-sigmoid", "other"),
        ("Relu", "rectifier"),
        ("Relu of a hard-sigmoid", "other"),
    ]
    x, dy = normal(4, 8) * 4, normal(4, 8, seed=1)
    found = run(gbprewrite.convert(source, "guided", "seed"), x=x, seed=dy)["x_guided"]
    ramp = np.where(np.abs(x) < 3, np.float32(0.1666) * dy, 0)
    np.testing.assert_allclose(found, ramp + np.where(x > -3, np.maximum(-dy, 0), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimize_for", ["cpu", "cuda", "portable"])
@pytest.mark.parametrize("kind", ["float", "float16"])
def test_relu6_of_computed_limits(kind: str, optimize_for: str) -> None:
    source = source_of("s = Shape (x) z = Expand (zero, s) t = Expand (six, s) b = Max (x, z) y = Min (b, t)", kind)
    assert roles(source) == [("Clip(x, 0, 6)", "rectifier")]
    x, dy = (8 * normal(4, 8)).astype(DTYPES[kind]), normal(4, 8, seed=1).astype(DTYPES[kind])
    found = run(gbprewrite.convert(source, METHODS, "seed", optimize_for=optimize_for), x=x, seed=dy)
    inside = (x > 0) & (x < 6)
    np.testing.assert_array_equal(found["x_gradient"], np.where(inside, dy, 0))
    np.testing.assert_array_equal(found["x_guided"], np.where(inside, np.maximum(dy, 0), 0))
    np.testing.assert_array_equal(found["x_deconvnet"], np.maximum(dy, 0))


def test_a_sum_of_relus_has_as_many_as_it_is_written_with() -> None:
    """relu(x) + relu(-x): two rectifiers, each with its own cotangent."""
    source = source_of("a = Relu (x) n = Neg (x) b = Relu (n) y = Add (a, b)")
    assert roles(source) == [("Relu", "rectifier")] * 2
    x, dy = normal(4, 8), normal(4, 8, seed=1)
    found = run(gbprewrite.convert(source, "guided", "seed"), x=x, seed=dy)["x_guided"]
    np.testing.assert_array_equal(found, np.sign(x) * np.maximum(dy, 0))


def test_prelu_of_more_slopes_than_are_looked_into() -> None:
    """Keras gives every position a slope of its own where no axes are shared; tf2onnx stores them negated."""
    slopes = np.random.default_rng(2).uniform(0.1, 0.9, (3, 50, 40)).astype(np.float32)
    text = """g (float[N, 3, 50, 40] x) => (float[N, 3, 50, 40] y) {
        a = Relu (x) n = Neg (x) b = Relu (n) c = Mul (b, turned) y = Add (a, c) }"""
    source = model(text, turned=-slopes)
    assert roles(source) == [("PRelu", "activation")]
    x, dy = normal(2, 3, 50, 40), normal(2, 3, 50, 40, seed=1)
    found = run(gbprewrite.convert(source, "gradient", "seed"), x=x, seed=dy)["x_gradient"]
    np.testing.assert_allclose(found, dy * np.where(x > 0, 1, slopes), rtol=1e-6)


def test_slopes_of_prelu_get_their_sign_back() -> None:
    source = source_of(RELATIVES["PRelu as Keras writes it"][0])
    x, dy = normal(4, 8), normal(4, 8, seed=1)
    found = run(gbprewrite.convert(source, ("gradient", "guided"), "seed", rectify=("all",)), x=x, seed=dy)
    slope = np.where(x > 0, 1, np.float32(np.arange(1, 9) / 10))
    np.testing.assert_allclose(found["x_gradient"], dy * slope, rtol=1e-6)
    np.testing.assert_allclose(found["x_guided"], np.maximum(dy, 0) * slope, rtol=1e-6)

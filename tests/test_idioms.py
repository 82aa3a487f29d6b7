"""Activations written as several nodes: recognised by name, treated as one, and still with their true derivative."""

from typing import Any

import numpy as np
import pytest

import gbprewrite
from gbprewrite.checks.reference import evaluate, in_float64
from tests.small import model

CONSTANTS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "six": 6, "half": 0.5, "sixth": 1 / 6, "root2": 2**0.5,
    "root_half": 0.5**0.5,
    "cubic": 0.044715, "root_2_pi": (2 / np.pi) ** 0.5, "slope": 0.2, "fifth": 1.7, "off": 0.1666, "zeros": np.zeros(8),
}  # fmt: skip
# body, and the (kind, role) that every nonlinearity is reported with
IDIOMS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "silu": ("s = Sigmoid (x) y = Mul (x, s)", [("Swish", "activation")]),
    "silu turned": ("s = Sigmoid (x) y = Mul (s, x)", [("Swish", "activation")]),
    "hard-swish, paddle": (
        "a = Add (x, three) b = Clip (a, zero, six) c = Mul (x, b) y = Div (c, six)",
        [("HardSwish", "activation")],
    ),
    "hard-swish, gate divided first": (
        "a = Add (x, three) b = Clip (a, zero, six) c = Div (b, six) y = Mul (x, c)",
        [("HardSwish", "activation")],
    ),
    "hard-swish, multiplied": (
        "a = Add (three, x) b = Clip (a, zero, six) c = Mul (b, sixth) y = Mul (c, x)",
        [("HardSwish", "activation")],
    ),
    "hard-swish of HardSigmoid": (
        "a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, a)",
        [("HardSwish", "activation")],
    ),
    "hard-swish of Max and Min": (
        "a = Add (x, three) b = Max (a, zero) c = Min (b, six) d = Div (c, six) y = Mul (x, d)",
        [("HardSwish", "activation")],
    ),
    "hard-sigmoid": (
        "a = Add (x, three) b = Clip (a, zero, six) y = Div (b, six)",
        [("HardSigmoid", "activation")],
    ),
    "hard-sigmoid, scaled first": (
        "a = Mul (x, slope) b = Add (a, half) y = Clip (b, zero, one)",
        [("HardSigmoid", "activation")],
    ),
    "gelu of Erf": (
        "a = Div (x, root2) b = Erf (a) c = Add (b, one) d = Mul (x, c) y = Mul (d, half)",
        [("Gelu", "activation")],
    ),
    "gelu of Erf, halved first": (
        "a = Mul (x, root_half) b = Erf (a) c = Add (one, b) d = Mul (half, x) y = Mul (d, c)",
        [("Gelu", "activation")],
    ),
    "gelu of Tanh": (
        """p = Pow (x, three) q = Mul (p, cubic) r = Add (x, q) s = Mul (r, root_2_pi) t = Tanh (s) u = Add (t, one)
        v = Mul (x, half) y = Mul (v, u)""",
        [("Gelu", "activation")],
    ),
    "mish": ("a = Softplus (x) b = Tanh (a) y = Mul (x, b)", [("Mish", "activation")]),
    "relu of Max": ("y = Max (x, zero)", [("Relu", "rectifier")]),
    "relu of Where": ("p = GreaterOrEqual (x, zero) y = Where (p, x, zero)", [("Relu", "rectifier")]),
    "relu6": ("y = Clip (x, zero, six)", [("Clip(x, 0, 6)", "rectifier")]),
    "relu6 of Max and Min": ("a = Max (x, zero) y = Min (six, a)", [("Clip(x, 0, 6)", "rectifier")]),
    "relu6 of Min and Max": ("a = Min (x, six) y = Max (a, zero)", [("Clip(x, 0, 6)", "rectifier")]),
    "relu6 of Relu and Min": ("a = Relu (x) y = Min (a, six)", [("Clip(x, 0, 6)", "rectifier")]),
    "gate": ("s = Sigmoid (x) e = Exp (x) y = Mul (e, s)", [("Sigmoid", "gate")]),
    # Near misses keep their parts.
    "hard-sigmoid, rounded constant": (
        "a = Add (x, three) b = Clip (a, zero, six) y = Mul (b, off)",
        [("Clip of a hard-sigmoid", "other")],
    ),
    "hard-swish, rounded constant": (
        "a = Add (x, three) b = Clip (a, zero, six) c = Mul (b, off) y = Mul (x, c)",
        [("Clip of a hard-sigmoid", "other")],
    ),
    "relu of Max with a vector": ("y = Max (x, zeros)", [("Relu", "rectifier")]),
    "shifted relu6": ("a = Add (x, two) y = Clip (a, zero, fifth)", [("Clip(x, 0, 1.7)", "rectifier")]),
    "clip from below zero": ("a = Neg (six) y = Clip (x, a, six)", [("Clip", "other")]),
    "max with one": ("y = Max (x, one)", [("Max", "other")]),
    "sigmoid of something else": (
        "e = Neg (x) s = Sigmoid (e) y = Mul (x, s)",
        [("Sigmoid", "gate")],
    ),
}


def source_of(body: str) -> Any:
    weights = {n: np.float32(v) for n, v in CONSTANTS.items() if f" {n}" in body or f"({n}" in body}
    return model(f"g (float[N, 8] x) => (float[N, 8] y) {{ {body} }}", 20, **weights)


@pytest.mark.parametrize("name", IDIOMS)
def test_reported_by_name(name: str) -> None:
    body, expected = IDIOMS[name]
    found = gbprewrite.inspect(source_of(body)).nonlinearities
    assert [(row["kind"].split(" as ")[0], row["role"]) for row in found] == expected


@pytest.mark.parametrize("name", IDIOMS)
def test_derivative(name: str) -> None:
    source = in_float64(source_of(IDIOMS[name][0]))
    x = np.random.default_rng(3).uniform(-5, 5, (4, 8))
    found = evaluate(gbprewrite.convert(source, "gradient", "seed"), {"x": x, "seed": np.ones((4, 8))})["x_gradient"]
    above, below = (evaluate(source, {"x": x + step})["y"] for step in (1e-5, -1e-5))
    np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n, (_, rows) in IDIOMS.items() if rows and rows[0][1] == "activation"])
def test_rectify_all_acts_once(name: str) -> None:
    """Guided: f'(x)·max(dy, 0); deconvnet: max(dy, 0), whatever the spelling."""
    source = source_of(IDIOMS[name][0])
    built = gbprewrite.convert(source, ("gradient", "guided", "deconvnet"), "seed", rectify=("all",))
    x, dy = np.random.default_rng(3).uniform(-5, 5, (2, 4, 8)).astype(np.float32)
    found = evaluate(built, {"x": x, "seed": dy})
    np.testing.assert_allclose(found["x_guided"], np.where(dy > 0, found["x_gradient"], 0), atol=1e-6)
    np.testing.assert_array_equal(found["x_deconvnet"], np.maximum(dy, 0))


@pytest.mark.parametrize("name", [n for n in IDIOMS if n.startswith("relu6")])
def test_every_spelling_of_relu6_rectifies_once(name: str) -> None:
    """Deconvnet passes max(dy, 0), saturated or not; guided nothing where it saturates."""
    built = gbprewrite.convert(source_of(IDIOMS[name][0]), ("guided", "deconvnet"), "seed")
    x, dy = np.random.default_rng(3).uniform(-9, 9, (2, 4, 8)).astype(np.float32)
    found = evaluate(built, {"x": x, "seed": dy})
    np.testing.assert_array_equal(found["x_guided"], np.where((x > 0) & (x < 6), np.maximum(dy, 0), 0))
    np.testing.assert_array_equal(found["x_deconvnet"], np.maximum(dy, 0))


def test_a_gate_is_followed_through_what_cuts_it() -> None:
    body = "s = Sigmoid (x) h, k = Split <axis = 1, num_outputs = 2> (s) m = Mul (h, k) y = Concat <axis = 1> (m, m)"
    (row,) = gbprewrite.inspect(source_of(body)).nonlinearities
    assert (row["kind"], row["role"]) == ("Sigmoid", "gate")


SHIFTED = "m = ReduceMax <keepdims = 1> (h, axis) n = Identity (m) z = Sub (h, n) e = Exp (z)"
SOFTMAXES = {
    "Softmax": "y = Softmax <axis = 1> (h)",
    "as onnx expands it": f"{SHIFTED} s = ReduceSum (e, axis) y = Div (e, s)",
    "without a maximum": "e = Exp (h) s = ReduceSum (e, axis) y = Div (e, s)",
    "as jax2onnx spells it": f"""{SHIFTED} r = ReduceSum <keepdims = 0> (e, axis) d = Unsqueeze (r, axis)
        t = Shape (h) s = Expand (d, t) y = Div (e, s)""",
    "log": f"{SHIFTED} s = ReduceSum (e, axis) l = Log (s) y = Sub (z, l)",
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_written_out_is_stepped_over(name: str) -> None:
    """The score is what a Softmax would read, so that the map is one of the score and not of the probability."""
    text = f"g (float[N, 8] x) => (float[N, 8] y) {{ h = Mul (x, x) {SOFTMAXES[name]} }}"
    source = model(text, 20, axis=np.array([1]))
    x = np.random.default_rng(3).uniform(-2, 2, (4, 8)).astype(np.float32)
    found = evaluate(gbprewrite.convert(source, "gradient"), {"x": x})
    best = np.arange(8) == (x * x).argmax(1)[:, None]
    np.testing.assert_allclose(found["x_gradient"], 2 * x * best, rtol=1e-6)
    through = evaluate(gbprewrite.convert(source, "gradient", through_softmax=True), {"x": x})["x_gradient"]
    p = np.exp(x * x) / np.exp(x * x).sum(1, keepdims=True)
    scale = 1 if name == "log" else (p * best).sum(1, keepdims=True)
    np.testing.assert_allclose(through, 2 * x * scale * (best - p), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp (h) s = ReduceSum (e, other) y = Div (e, s)",  # one over the batch
        "e = Exp (h) s = ReduceSum (e, both) y = Div (e, s)",
        "e = Exp (h) f = Exp (x) s = ReduceSum (f, axis) y = Div (e, s)",
        "e = Exp (h) s = ReduceMean (e, axis) y = Div (e, s)",
    ],
)
def test_what_is_no_softmax_over_the_classes_is_differentiated(body: str) -> None:
    text = f"g (float[N, 8] x) => (float[N, 8] y) {{ h = Mul (x, x) {body} }}"
    weights = {"axis": np.array([1]), "other": np.array([0]), "both": np.array([0, 1])}
    source = in_float64(model(text, 20, **{n: v for n, v in weights.items() if f" {n})" in body}))
    x = np.random.default_rng(3).uniform(-1, 1, (4, 8))
    seed = np.random.default_rng(4).uniform(-1, 1, (4, 8))
    converted = gbprewrite.convert(source, "gradient", "seed", through_softmax=True)
    found = evaluate(converted, {"x": x, "seed": seed})["x_gradient"]
    step = 1e-6 * np.random.default_rng(5).uniform(-1, 1, x.shape)
    above, below = (evaluate(source, {"x": x + s})["y"] for s in (step, -step))
    np.testing.assert_allclose((found * step).sum(), (seed * (above - below) / 2).sum(), rtol=1e-6)


@pytest.mark.parametrize("text", ["a = Add (x, one) c = Clip (a, zero, one) y = Div (c, zero)", "y = Div (x, zero)"])
def test_a_division_by_zero_is_no_idiom(text: str) -> None:
    numbers = {"zero": np.zeros((), np.float32), "one": np.ones((), np.float32)}
    source = model(f"g (float[N, 3] x) => (float[N, 3] y) {{ {text} }}", **numbers)
    assert "HardSigmoid" not in {row["operator"] for row in gbprewrite.inspect(source).nonlinearities}

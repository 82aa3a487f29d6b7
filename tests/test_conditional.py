"""If nodes whose condition is computed at run time: the maps must be those of the branch that was taken.

Two yardsticks: finite differences of the source, and the model in which the condition is a constant, so that the
branch that it takes stands in the graph itself.
"""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import gbprewrite
from gbprewrite.checks.reference import evaluate, evaluator, in_float64
from gbprewrite.model.messages import elements
from tests.small import Array, model, normal, run

METHODS = ("gradient", "guided", "deconvnet")
CONV = "Conv <pads = [1, 1, 1, 1]>"
POOL = "MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>"
# name: (what the then branch computes, what the else branch does); x is captured through p and h
BRANCHES: dict[str, tuple[str, str]] = {
    "rectifiers and pools": (
        f"a = {CONV} (h, w) b = Relu (a) q = {POOL} (b) s = Resize (q, none, two) t = Mul (s, p)",
        "a = Neg (h) b = Clip (a, zero, one) t = LeakyRelu (b)",
    ),
    "different captures": ("t = Relu (p)", "a = Sub (h, half) t = Relu (a)"),
    "one ignores the input": ("a = Shape (h) t = ConstantOfShape <value = float[1] {0.5}> (a)", "t = Relu (h)"),
    "both are the same": ("t = Relu (h)", "t = Relu (h)"),
    "a captured value as it is": ("t = Identity (p)", "t = Identity (h)"),
    "an idiom, and a function of the standard": (
        "s = HardSigmoid <alpha = 0.16666667> (h) t = Mul (h, s)",
        "t = GroupNormalization <num_groups = 2> (h, gain, shift)",
    ),
    "nested": (
        f"""m = ReduceSum <keepdims = 0> (p) q = Greater (m, none_at_all)
        t = If (q) <then_branch = tt () => (float[] u) {{ a = Relu (h) u = Mul (a, p) }},
                    else_branch = te () => (float[] v) {{ b = {CONV} (h, w) v = Relu (b) }}>""",
        """q = Not (c)
        t = If (q) <then_branch = et () => (float[] u) { u = Relu (p) },
                    else_branch = ee () => (float[] v) { v = Neg (h) }>""",
    ),
    "a value used twice": ("a = Relu (h) b = Relu (p) d = Add (a, b) t = Mul (d, a)", "t = Exp (h)"),
}  # fmt: skip
WEIGHTS = {
    "w": normal(4, 4, 3, 3), "none": np.zeros(0, np.float32), "two": np.float32([1, 1, 2, 2]), "half": np.float32(0.5),
    "zero": np.float32(0), "one": np.float32(1), "gain": normal(4), "shift": normal(4),
    "none_at_all": np.float32(0), "first": normal(4, 4, 1, 1, seed=2),
}  # fmt: skip


def source(name: str, symbolic: bool, condition: bool | None = None, opset: int = 21) -> onnx.ModelProto:
    """The model of a case; with a condition, this is a constant and no input."""
    then, other = BRANCHES[name]
    shape = "N, 4, H, W" if symbolic else "2, 4, 6, 6"
    given = f"float[{shape}] x" + (", bool c" if condition is None else "")
    body = f"""g ({given}) => (float[{shape}] y) {{
        h = Conv (x, first) r = Relu (h) p = Tanh (r)
        z = If (c) <then_branch = yes () => (float[] t) {{ {then} }},
                    else_branch = no () => (float[] t) {{ {other} }}>
        s2 = Mul (z, z) y = Add (s2, r) }}"""
    needed = {n: v for n, v in WEIGHTS.items() if f" {n}" in body or f"({n}" in body}
    return model(body, opset, **needed, **({} if condition is None else {"c": np.array(condition)}))


def arrays() -> dict[str, Array]:
    return {"x": normal(2, 4, 6, 6, seed=5), "seed": normal(2, 4, 6, 6, seed=6)}


@pytest.mark.parametrize("taken", [True, False], ids=["then", "else"])
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("name", BRANCHES)
def test_maps_are_those_of_the_branch_taken(name: str, symbolic: bool, taken: bool) -> None:
    built = gbprewrite.convert(source(name, symbolic), METHODS, "seed")
    found = run(built, c=np.array(taken), **arrays())
    flat = gbprewrite.convert(source(name, symbolic, taken), METHODS, "seed")
    assert not any(n.op_type == "If" and n.input[0] == "c" for n in flat.graph.node)
    expected = run(flat, **arrays())
    for output, value in expected.items():
        error = np.linalg.norm(found[output] - value)
        assert error <= 1e-6 * np.linalg.norm(value), output
    np.testing.assert_array_equal(found["y"], run(source(name, symbolic), c=np.array(taken), x=arrays()["x"])["y"])


@pytest.mark.parametrize("taken", [True, False], ids=["then", "else"])
@pytest.mark.parametrize("name", BRANCHES)
def test_gradient_is_that_of_finite_differences(name: str, taken: bool) -> None:
    wide = in_float64(source(name, symbolic=False))
    forward, condition = evaluator(wide), np.array(taken)
    x, seed = (v.astype(np.float64) for v in arrays().values())
    found = evaluate(gbprewrite.convert(wide, "gradient", "seed"), {"x": x, "c": condition, "seed": seed})["x_gradient"]
    for v in np.random.default_rng(3).normal(size=(3, *x.shape)):
        above, below = (forward.run(None, {"x": x + s * v, "c": condition})[0] for s in (1e-6, -1e-6))
        slope = np.sum(seed * (above - below)) / 2e-6
        assert abs(np.sum(found * v) - slope) <= 1e-6 * np.linalg.norm(found) * np.linalg.norm(v)


def test_the_report_lists_what_stands_in_branches() -> None:
    seen = gbprewrite.inspect(source("rectifiers and pools", symbolic=True))
    assert {(n["node"], n["kind"]) for n in seen.nonlinearities if n["role"] == "rectifier"} == {
        ("Relu_1", "Relu"), ("If_3/then_branch/b", "Relu"), ("If_3/else_branch/b", "Clip(x, 0, 1)")
    }  # fmt: skip
    assert [p["node"] for p in seen.pools] == ["If_3/then_branch/q"]
    assert not seen.missing


def test_every_obstacle_inside_branches_is_listed() -> None:
    text = """g (float[2, 3] x, bool c) => (float[2, 3] y) {
        y = If (c) <then_branch = yes () => (float[2, 3] a) { a = other.Thing (x) },
                    else_branch = no () => (float[2, 3] b) { b = Det (x) d = other.Thing (b) b2 = Neg (d) }> }"""
    refused = text.replace("b = Det (x) d = other.Thing (b) b2 = Neg (d)", "d = other.Thing (x) b = Neg (d)")
    built = model(refused)
    built.opset_import.append(onnx.helper.make_opsetid("other", 1))
    with pytest.raises(gbprewrite.UnsupportedOperators) as caught:
        gbprewrite.convert(built, "gradient", "seed")
    assert [o.node for o in caught.value.obstacles] == ["If_0/then_branch/a", "If_0/else_branch/d"]


def test_a_method_with_rectifiers_in_a_branch_alone() -> None:
    text = """g (float[2, 3] x, bool c) => (float[2, 3] y) {
        y = If (c) <then_branch = yes () => (float[2, 3] a) { a = Relu (x) },
                    else_branch = no () => (float[2, 3] b) { b = Neg (x) }> }"""
    built = gbprewrite.convert(model(text), "deconvnet", "seed")
    feeds = {"x": normal(2, 3), "seed": normal(2, 3, seed=1)}
    np.testing.assert_array_equal(run(built, c=np.array(True), **feeds)["x_deconvnet"], np.maximum(feeds["seed"], 0))
    np.testing.assert_array_equal(run(built, c=np.array(False), **feeds)["x_deconvnet"], -feeds["seed"])


def test_several_outputs_of_a_branch() -> None:
    """One of them an integer, one used twice, one not at all."""
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        u, i, v, w = If (c) <
            then_branch = yes () => (float[N, 3] a, int64[2] s, float[N, 3] b, float[N, 3] d) {
                a = Relu (x) s = Shape (x) b = Exp (x) d = Neg (x) },
            else_branch = no () => (float[N, 3] e, int64[2] t, float[N, 3] f, float[N, 3] k) {
                e = Identity (x) t = Shape (x) f = Identity (x) k = Exp (x) }>
        r = Reshape (u, i) m = Mul (r, v) y = Add (m, v) }"""
    x, seed = normal(4, 3), normal(4, 3, seed=1)
    built = gbprewrite.convert(model(text), "gradient", "seed")
    expected = {True: seed * np.exp(x) * ((x > 0) + np.maximum(x, 0) + 1), False: seed * (2 * x + 1)}
    for taken, dx in expected.items():
        found = run(built, c=np.array(taken), x=x, seed=seed)["x_gradient"]
        np.testing.assert_allclose(found, dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["initializer", "Constant"])
def test_large_weights_inside_a_branch_are_stored_once(kind: str) -> None:
    weights = numpy_helper.from_array(normal(80, 80) / 9, "w")
    text = """g (float[N, 80] x, bool c) => (float[N, 80] y) {
        y = If (c) <then_branch = yes () => (float[N, 80] b) { a = MatMul (x, w) b = Relu (a) },
                    else_branch = no () => (float[N, 80] d) { d = Relu (x) }> }"""
    given = model(text)
    body = given.graph.node[0].attribute[0].g
    if kind == "initializer":
        body.initializer.append(weights)
    else:
        body.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weights))
    assert sum(elements(t.dims) for t in given.graph.initializer) == 0
    built = gbprewrite.convert(given, METHODS, "seed")
    assert built.ByteSize() < 2 * given.ByteSize()
    x, seed = normal(2, 80), normal(2, 80, seed=1)
    w = numpy_helper.to_array(weights)
    found = run(built, c=np.array(True), x=x, seed=seed)
    np.testing.assert_array_equal(found["y"], run(given, c=np.array(True), x=x)["y"])
    np.testing.assert_allclose(found["x_gradient"], (seed * (x @ w > 0)) @ w.T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["argmax", "topk:2", "input", "unit:1"])
def test_targets(target: str) -> None:
    text = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
        y = If (c) <then_branch = yes () => (float[N, 4] a) { a = Relu (x) },
                    else_branch = no () => (float[N, 4] b) { s = Sigmoid (x) b = Mul (x, s) }> }"""
    feeds: dict[str, Any] = {"x": normal(3, 4)}
    if target == "input":
        feeds["target"] = np.array([0, 3, 1])
    built = gbprewrite.convert(model(text), METHODS, target)
    for taken in (True, False):
        flat = model(text.replace(", bool c", ""), c=np.array(taken))
        # The else branch has no rectifier, so that only the plain gradient can be asked of it alone.
        expected = run(gbprewrite.convert(flat, METHODS if taken else "gradient", target), **feeds)
        found = run(built, c=np.array(taken), **feeds)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_relu_that_hides_in_a_branch_s_saturation() -> None:
    """A branch's output is no output of the model: what its saturation cuts off is cut off for the network."""
    text = """g (float[2, 3] x, bool c) => (float[2, 3] y) {
        h = Neg (x)
        z = If (c) <
            then_branch = yes () => (float[2, 3] a) { q = QuantizeLinear (h, s, o) a = DequantizeLinear (q, s, o) },
            else_branch = no () => (float[2, 3] b) { b = Relu (h) }>
        y = Add (z, h) }"""
    built = gbprewrite.convert(model(text, s=np.array(0.01, np.float32), o=np.array(0, np.uint8)), METHODS, "seed")
    x, seed = normal(2, 3), normal(2, 3, seed=1)
    found = run(built, c=np.array(True), x=x, seed=seed)
    inside = (x < 0) & (x > -2.55)
    np.testing.assert_allclose(found["x_guided"], -seed - np.maximum(seed, 0) * inside, rtol=1e-6)
    np.testing.assert_allclose(found["x_deconvnet"], -seed - np.maximum(seed, 0), rtol=1e-6)


def test_branches_of_an_old_opset_are_upgraded() -> None:
    """What the upgrade must know of a value inside a branch, such as its rank, is found there."""
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        p = Exp (x)
        z = If (c) <
            then_branch = yes () => (float[N, 3] a) {
                b = Neg (x) d = Clip <min = 0.0> (b) q = Mul (d, p) a = Softmax (q) },
            else_branch = no () => (float[N, 3] e) {
                b = Unsqueeze <axes = [0]> (x) d = Relu (b) q = ReduceSum <axes = [0], keepdims = 0> (d)
                e = Mul (q, p) }>
        y = Add (z, x) }"""
    x, seed = normal(4, 3), normal(4, 3, seed=1)
    built = gbprewrite.convert(model(text, 9), METHODS, "seed")
    for taken in (True, False):
        flat = gbprewrite.convert(model(text.replace(", bool c", ""), 9, c=np.array(taken)), METHODS, "seed")
        found = run(built, c=np.array(taken), x=x, seed=seed)
        for name, value in run(flat, x=x, seed=seed).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(found["y"], run(model(text, 9), c=np.array(taken), x=x)["y"], rtol=1e-6)

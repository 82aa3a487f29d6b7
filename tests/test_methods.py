"""The three methods against the numbers of the papers, and which nodes they treat as rectifiers."""

from typing import Any

import numpy as np
import pytest

import gbprewrite
from tests.small import Array, cnn, model, normal, run

METHODS = ("gradient", "guided", "deconvnet")


def maps(source: Any, x: Array, dy: Array, methods: tuple[str, ...] = METHODS, **options: Any) -> dict[str, Array]:
    built = gbprewrite.convert(source, methods, "seed", **options)
    found = run(built, x=np.float32(x), seed=np.float32(dy))
    return {m: found[f"x_{m}"] for m in methods}


# Springenberg et al. 2014, figure 1 c: forward input, cotangent from above, and what each method sends down.
X = [[1, -1, 5], [2, -5, -7], [-3, 2, 4]]
DY = [[-2, 3, -1], [6, -3, 1], [2, -1, 3]]
FIGURE_1 = {
    "gradient": [[-2, 0, -1], [6, 0, 0], [0, -1, 3]],
    "deconvnet": [[0, 3, 0], [6, 0, 1], [2, 0, 3]],
    "guided": [[0, 0, 0], [6, 0, 0], [0, 0, 3]],
}
ZERO = {"zero": np.float32(0)}
RECTIFIERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "Relu": ("y = Relu (x)", 18, {}),
    "Clip": ("y = Clip (x, zero)", 18, ZERO),
    "Clip of opset 7": ("y = Clip <min = 0.0> (x)", 7, {}),
    "Max(x, 0)": ("y = Max (x, zero)", 18, ZERO),
    "Max(0, x)": ("y = Max (zero, x)", 18, ZERO),
    "Where(x > 0, x, 0)": ("p = Greater (x, zero) y = Where (p, x, zero)", 18, ZERO),
    "ThresholdedRelu": ("y = ThresholdedRelu <alpha = 0.5> (x)", 18, {}),
}


@pytest.mark.parametrize("spelling", RECTIFIERS)
def test_springenberg_figure_1(spelling: str) -> None:
    body, opset, weights = RECTIFIERS[spelling]
    source = model(f"g (float[3, 3] x) => (float[3, 3] y) {{ {body} }}", opset, **weights)
    for method, found in maps(source, np.array(X), np.array(DY)).items():
        np.testing.assert_array_equal(found, FIGURE_1[method], method)


def test_relu6_is_open_strictly_between_its_bounds() -> None:
    source = model("g (float[N] x) => (float[N] y) { y = Clip (x, zero, six) }", zero=np.float32(0), six=np.float32(6))
    x, dy = np.array([-1, 0, 3, 6, 7, 3]), np.array([1, 1, 1, 1, 1, -1])
    found = maps(source, x, dy)
    np.testing.assert_array_equal(found["gradient"], [0, 0, 1, 0, 0, -1])
    np.testing.assert_array_equal(found["guided"], [0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(found["deconvnet"], [1, 1, 1, 1, 1, 0])


# What of the plane each window sees (first row, rows, first column, columns), in the order of the cotangents.
WITHOUT_SWITCHES = {
    "side by side": (
        "MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)",
        [(r, 2, c, 2) for r in (0, 2) for c in (0, 2)],
    ),
    "overlapping": (
        "MaxPool <kernel_shape = [2, 3], strides = [2, 1]> (r)",
        [(r, 2, c, 3) for r in (0, 2) for c in (0, 1)],
    ),
    "over the border": (
        "MaxPool <kernel_shape = [3, 3], strides = [3, 3], pads = [1, 1, 1, 1]> (r)",
        [(r, 2, c, 2) for r in (0, 2) for c in (0, 2)],
    ),
    "the whole plane": ("GlobalMaxPool (r)", [(0, 4, 0, 4)]),
}


@pytest.mark.parametrize("case", WITHOUT_SWITCHES)
def test_without_switches_each_window_hands_down_evenly(case: str) -> None:
    body, windows = WITHOUT_SWITCHES[case]
    size = int(np.sqrt(len(windows)))
    source = model(f"g (float[1, 1, 4, 4] x) => (float[1, 1, {size}, {size}] y) {{ r = Relu (x) y = {body} }}")
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(1, 1, 4, 4)), rng.random((1, 1, size, size))
    spread = np.zeros((1, 1, 4, 4))
    for share, (row, rows, column, columns) in zip(dy.ravel(), windows, strict=True):
        spread[0, 0, row : row + rows, column : column + columns] += share / (rows * columns)
    found = maps(source, x, dy, tuple(f"{m}_no_switches" for m in METHODS))
    np.testing.assert_allclose(found["deconvnet_no_switches"], spread, rtol=1e-6)
    np.testing.assert_allclose(found["guided_no_switches"], spread * (x > 0), rtol=1e-6)
    np.testing.assert_allclose(found["gradient_no_switches"], spread * (x > 0), rtol=1e-6)


def test_without_switches_deconvnet_does_not_look_at_the_image() -> None:
    """Springenberg et al. 2014, section 3.4; guided does, by the masks of its forward pass."""
    built = gbprewrite.convert(cnn(), ["deconvnet", "deconvnet_no_switches", "guided_no_switches"], 2)
    one, other = (run(built, image=normal(1, 3, 12, 12, seed=seed)) for seed in (1, 2))
    same = {m: np.array_equal(one[f"image_{m}"], other[f"image_{m}"]) for m in ("deconvnet", "deconvnet_no_switches")}
    assert same == {"deconvnet": False, "deconvnet_no_switches": True}
    assert one["image_deconvnet_no_switches"].any()
    assert not np.array_equal(one["image_guided_no_switches"], other["image_guided_no_switches"])


@pytest.mark.parametrize("method", ["guided_no_switches", "deconvnet_no_switches"])
def test_without_max_pools_there_is_nothing_to_do_without(method: str) -> None:
    source = model("g (float[1, 1, 4, 4] x) => (float[1, 1, 1, 1] y) { r = Relu (x) y = GlobalAveragePool (r) }")
    with pytest.raises(gbprewrite.ModelError, match=f"no max pool.*Use --method {method.split('_')[0]}"):
        gbprewrite.convert(source, method)


def test_switches_remember_where_each_maximum_was() -> None:
    """After Zeiler and Fergus 2013, figure 1: what comes back lands where the maximum of its region was."""
    source = model(
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) { y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
    )
    x = np.array([[1, 9, 2, 3], [4, 5, 8, 1], [7, 0, 0, 2], [3, 6, 1, 5]])[None, None]
    dy = np.array([[10, 20], [30, 40]])[None, None]
    found = maps(source, x, dy, ("gradient",))["gradient"][0, 0]
    np.testing.assert_array_equal(found, [[0, 10, 0, 0], [0, 0, 20, 0], [30, 0, 0, 0], [0, 0, 0, 40]])


def test_overlapping_windows_add() -> None:
    source = model(
        "g (float[1, 1, 5, 5] x) => (float[1, 1, 2, 2] y) { y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (x) }"
    )
    x = np.zeros((1, 1, 5, 5))
    x[0, 0, 2, 2] = 1  # the corner that all four windows share
    found = maps(source, x, np.array([[1, 2], [3, 4]])[None, None], ("gradient",))["gradient"]
    assert found[0, 0, 2, 2] == 10
    assert found.sum() == 10


def test_ties_go_to_the_first_in_row_order() -> None:
    source = model("g (float[1, 1, 2, 2] x) => (float[1, 1, 1, 1] y) { y = MaxPool <kernel_shape = [2, 2]> (x) }")
    found = maps(source, np.ones((1, 1, 2, 2)), np.full((1, 1, 1, 1), 7), ("gradient",))["gradient"]
    np.testing.assert_array_equal(found[0, 0], [[7, 0], [0, 0]])


def test_each_relu_of_one_tensor_rectifies_its_own_cotangent() -> None:
    """y = 2 relu(x) - relu(x): guided is relu(2 dy) + relu(-dy), not relu of the sum (hooks get this wrong)."""
    source = model(
        """g (float[N] x) => (float[N] y) {
            a = Relu (x) b = Mul (a, two) c = Relu (x) d = Neg (c) y = Add (b, d) }""",
        two=np.float32(2),
    )
    found = maps(source, np.array([1.0, 1.0, -1.0]), np.array([1.0, -1.0, 1.0]))
    np.testing.assert_array_equal(found["gradient"], [1, -1, 0])
    np.testing.assert_array_equal(found["guided"], [2, 1, 0])
    np.testing.assert_array_equal(found["deconvnet"], [2, 1, 2])


def test_relu_after_relu() -> None:
    source = model("g (float[N] x) => (float[N] y) { a = Relu (x) y = Relu (a) }")
    found = maps(source, np.array([1.0, -1.0, 1.0]), np.array([1.0, 1.0, -1.0]))
    np.testing.assert_array_equal(found["gradient"], [1, 0, -1])
    np.testing.assert_array_equal(found["guided"], [1, 0, 0])
    np.testing.assert_array_equal(found["deconvnet"], [1, 1, 0])


@pytest.mark.parametrize("method", ["guided", "deconvnet"])
@pytest.mark.parametrize("body", ["y = PRelu (x, s)", "y = Tanh (x)", "a = Add (x, s) y = Clip (a)"])
def test_nothing_to_rectify_is_an_error(method: str, body: str) -> None:
    source = model(f"g (float[N] x) => (float[N] y) {{ {body} }}", s=np.float32([0.25]))
    with pytest.raises(gbprewrite.ModelError, match=r"finds no rectifier.*--method gradient"):
        gbprewrite.convert(source, method, "seed")


@pytest.mark.parametrize("rectify", [("all",), ("PRelu",)])
def test_rectify_extends_the_methods_to_activations(rectify: tuple[str, ...]) -> None:
    source = model("g (float[N] x) => (float[N] y) { y = PRelu (x, s) }", s=np.float32([0.25]))
    found = maps(source, np.array([1.0, -1.0, 1.0, -1.0]), np.array([2.0, 2.0, -2.0, -2.0]), rectify=rectify)
    np.testing.assert_array_equal(found["gradient"], [2, 0.5, -2, -0.5])
    np.testing.assert_array_equal(found["guided"], [2, 0.5, 0, 0])
    np.testing.assert_array_equal(found["deconvnet"], [2, 2, 0, 0])


def test_rectify_refuses_what_is_no_activation() -> None:
    source = model("g (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(gbprewrite.UsageError, match=r"Conv.*not an activation"):
        gbprewrite.convert(source, rectify=("Conv",))


def test_methods_share_the_forward_pass_and_the_masks() -> None:
    source = model(
        "g (float[2, 3, 5, 5] x) => (float[2, 4, 5, 5] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Relu (a) }",
        w=normal(4, 3, 3, 3),
    )
    built = gbprewrite.convert(source, METHODS, "seed")
    operators = [n.op_type for n in built.graph.node]
    assert operators.count("Relu") == 1 + 1  # the forward one, and the clamp that guided and deconvnet share
    assert operators.count("HardSigmoid") == 2  # one mask, in two steps
    assert operators.count("Slice") == 1, "the weights are turned once"

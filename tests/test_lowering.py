"""Every spelling of an adjoint against the portable one, in the same runtime."""

from itertools import product, zip_longest
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from tests.small import model, normal, run

METHODS = ("gradient", "guided", "deconvnet")
# Convolutions between whose spellings `auto` chooses: attributes, shape of the input, shape of the weights
CONVOLUTIONS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
    "3x3": ("pads = [1, 1, 1, 1]", (2, 3, 6, 7), (4, 3, 3, 3)),
    "1x1": ("pads = [0, 0, 0, 0]", (2, 3, 6, 7), (4, 3, 1, 1)),
    "1x3, uneven pads": ("pads = [0, 2, 0, 1]", (1, 2, 5, 6), (3, 2, 1, 3)),
    "dilated": ("pads = [1, 2, 1, 2], dilations = [1, 2]", (1, 2, 7, 8), (3, 2, 2, 3)),
    "groups": ("pads = [1, 1, 1, 1], group = 2", (1, 4, 6, 6), (6, 2, 3, 3)),
    "depthwise": ("pads = [1, 1, 1, 1], group = 4", (1, 4, 6, 6), (4, 1, 3, 3)),
    "depthwise, two outputs each": ("pads = [1, 1, 1, 1], group = 3", (1, 3, 6, 6), (6, 1, 3, 3)),
    "one axis": ("pads = [1, 1]", (2, 3, 9), (4, 3, 3)),
    "three axes": ("pads = [0, 1, 0, 1, 1, 1]", (1, 2, 4, 5, 4), (3, 2, 2, 3, 2)),
    "more padding than kernel": ("pads = [3, 3, 3, 3]", (1, 2, 5, 5), (3, 2, 2, 2)),
    "strided": ("pads = [1, 1, 1, 1], strides = [2, 2]", (1, 2, 7, 8), (3, 2, 3, 3)),
    "strided along one axis": ("pads = [1, 1, 1, 1], strides = [1, 2]", (1, 2, 7, 8), (3, 2, 3, 3)),
    # From 16 channels on a strided convolution goes back as one convolution for each phase.
    "phases": ("pads = [1, 1, 1, 1], strides = [2, 2]", (2, 16, 7, 8), (4, 16, 3, 3)),
    "phases of 1x1": ("strides = [2, 2]", (2, 16, 7, 8), (4, 16, 1, 1)),
    "phases of 7x7": ("pads = [3, 3, 3, 3], strides = [2, 2]", (1, 16, 14, 15), (4, 16, 7, 7)),
    "phases, uneven": ("pads = [0, 1, 1, 0], strides = [3, 2]", (1, 16, 11, 12), (5, 16, 2, 3)),
    "phases along one axis, dilated": (
        "pads = [2, 0, 2, 0], strides = [2, 1], dilations = [2, 3]",
        (1, 16, 9, 12),
        (5, 16, 3, 3),
    ),
    "phases, dilation 3": ("pads = [3, 1, 3, 1], strides = [2, 2], dilations = [3, 1]", (1, 16, 9, 12), (5, 16, 3, 3)),
    "phases, depthwise": ("pads = [1, 1, 1, 1], strides = [2, 2], group = 16", (1, 16, 9, 12), (16, 1, 3, 3)),
    "phases, groups": ("pads = [1, 1, 1, 1], strides = [2, 2], group = 2", (1, 16, 9, 12), (8, 8, 3, 3)),
    "phases, a rest": ("strides = [4, 4]", (1, 16, 12, 13), (5, 16, 3, 3)),
    "phases, stride 4": ("pads = [2, 2, 2, 2], strides = [4, 4]", (1, 16, 23, 13), (5, 16, 11, 11)),
    "more padding than a phase": ("pads = [2, 2, 2, 2], strides = [2, 2]", (1, 16, 8, 8), (5, 16, 2, 2)),
}
# Pools: attributes, shape of the input
POOLS: dict[str, tuple[str, tuple[int, ...]]] = {
    "3x3/2": ("kernel_shape = [3, 3], strides = [2, 2]", (2, 3, 11, 12)),
    "3x3/2, pads": ("kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]", (2, 3, 11, 12)),
    "2x2/2": ("kernel_shape = [2, 2], strides = [2, 2]", (2, 3, 6, 8)),
    "2x2/2, a rest": ("kernel_shape = [2, 2], strides = [2, 2]", (2, 3, 7, 9)),
    "3x3/1": ("kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1]", (1, 3, 7, 8)),
    "ceil_mode": ("kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1", (1, 3, 10, 12)),
    "uneven": ("kernel_shape = [2, 3], strides = [3, 4], pads = [0, 1, 1, 0]", (1, 2, 11, 12)),
    "dilated": ("kernel_shape = [3, 2], strides = [2, 1], dilations = [2, 3]", (1, 2, 11, 12)),
    "one axis": ("kernel_shape = [3], strides = [2]", (1, 2, 9)),
    "three axes": ("kernel_shape = [2, 3, 2], strides = [2, 1, 2]", (1, 2, 6, 5, 7)),
    "same": ('kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER"', (1, 2, 8, 9)),
    "as large as the plane": ("kernel_shape = [13, 13], pads = [6, 6, 6, 6]", (1, 2, 4, 4)),
    "larger, strided": ("kernel_shape = [7, 7], strides = [2, 2], pads = [3, 3, 3, 3]", (1, 2, 2, 2)),
    "larger, dilated": (
        "kernel_shape = [5, 5], strides = [2, 2], dilations = [2, 2], pads = [0, 0, 4, 4]",
        (1, 2, 6, 6),
    ),
    "every second": ("kernel_shape = [1, 1], strides = [2, 2]", (1, 2, 8, 9)),
}


def spellings(source: Any, **feeds: Any) -> list[dict[str, Any]]:
    hows = ("auto", "cuda", "portable")
    return [run(gbprewrite.convert(source, METHODS, "seed", optimize_for=how), **feeds) for how in hows]


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_convolution(name: str, symbolic: bool) -> None:
    attributes, x, w = CONVOLUTIONS[name]
    shape = ", ".join(f"d{i}" if symbolic and i != 1 else str(n) for i, n in enumerate(x))
    text = f"g (float[{shape}] x) => (float[] y) {{ a = Conv <{attributes}> (x, w) y = Relu (a) }}"
    source = model(text, w=normal(*w))
    source.graph.output[0].type.tensor_type.ClearField("shape")
    data = normal(*x, seed=1)
    seed = normal(*run(source, x=data)["y"].shape, seed=2)
    *fast, plain = spellings(source, x=data, seed=seed)
    for method, made in product(METHODS, fast):
        np.testing.assert_allclose(made[f"x_{method}"], plain[f"x_{method}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
def test_pool(operator: str, name: str, symbolic: bool) -> None:
    """Rounded inputs: most windows hold their maximum more than once, and the first place in row order gets it all."""
    attributes, x = POOLS[name]
    shape = ", ".join("N" if symbolic and i == 0 else str(n) for i, n in enumerate(x))
    dilated = operator == "AveragePool" and "dilations" in attributes
    text = f"g (float[{shape}] x) => (float[] y) {{ a = {operator} <{attributes}> (x) y = Relu (a) }}"
    source = model(text, opset=19 if dilated else 18)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    data = np.round(2 * normal(*x, seed=1))
    seed = normal(*run(source, x=data)["y"].shape, seed=2)
    *fast, plain = spellings(source, x=data, seed=seed)
    for method, made in product(METHODS, fast):
        np.testing.assert_allclose(made[f"x_{method}"], plain[f"x_{method}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in POOLS if name != "same"])
def test_pool_of_open_sizes(name: str) -> None:
    """One file, several sizes; ties as above."""
    attributes, x = POOLS[name]
    axes = len(x) - 2
    shape = ", ".join(["N", str(x[1]), *"HWD"[:axes]])
    source = model(f"g (float[{shape}] x) => (float[] y) {{ a = MaxPool <{attributes}> (x) y = Relu (a) }}")
    source.graph.output[0].type.tensor_type.ClearField("shape")
    made = {how: gbprewrite.convert(source, METHODS, "seed", optimize_for=how) for how in ("auto", "portable")}
    assert "ScatterElements" not in {n.op_type for n in made["auto"].graph.node}
    for longer in product(range(3), repeat=min(axes, 2)):
        data = np.round(2 * normal(*x[:2], *(n + more for n, more in zip_longest(x[2:], longer, fillvalue=0)), seed=1))
        seed = normal(*run(source, x=data)["y"].shape, seed=2)
        found, plain = (run(built, x=data, seed=seed) for built in made.values())
        for method in METHODS:
            np.testing.assert_allclose(found[f"x_{method}"], plain[f"x_{method}"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "only_plain"),
    [
        ("Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w)", "ConvTranspose"),
        ("Conv <pads = [1, 1, 1, 1]> (x, w)", "ConvTranspose"),
        ("MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (x)", "ScatterElements"),
        ("AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (x)", "ConvTranspose"),
    ],
)
def test_spellings_differ(layer: str, only_plain: str) -> None:
    """`auto` does leave the portable spelling, so that the tests above compare two."""
    source = model(f"g (float[N, 16, 8, 8] x) => (float[] y) {{ a = {layer} y = Relu (a) }}", w=normal(4, 16, 3, 3))
    source.graph.output[0].type.tensor_type.ClearField("shape")
    fast, plain = (
        {n.op_type for n in gbprewrite.convert(source, "guided", "seed", optimize_for=how).graph.node}
        for how in ("auto", "portable")
    )
    assert only_plain in plain - fast


@pytest.mark.parametrize("high", [None, 6.0, 0.3, 1e-3, 1e5, 1e-38, 1e-22, 1e9, 3.4e38])
def test_gate(high: float | None) -> None:
    """The steep HardSigmoid is the comparison, at the bounds and at their neighbours in float32."""
    body = "y = Relu (x)" if high is None else "y = Clip (x, zero, high)"
    weights = {} if high is None else {"zero": np.float32(0), "high": np.float32(high)}
    source = model(f"g (float[N] x) => (float[N] y) {{ {body} }}", **weights)
    tiny = np.finfo(np.float32).tiny
    x = [-np.inf, -1, -tiny, -0.0, 0, 1e-45, 1e-40, tiny, 1e-20, 0.1, 1, 3e38, np.inf]
    for bound in (0.3, 1e-3, 6, 1e5, 1e-22, 1e9):
        x += [bound, np.nextafter(np.float32(bound), np.float32(0)), np.nextafter(np.float32(bound), np.float32(9e9))]
    data = np.float32(x)
    *fast, plain = spellings(source, x=data, seed=np.ones_like(data))
    for method, made in product(METHODS, fast):
        np.testing.assert_array_equal(made[f"x_{method}"], plain[f"x_{method}"])


STATISTICS = {name: normal(16, seed=3 + i) for i, name in enumerate("som")} | {"v": 0.1 + normal(16, seed=6) ** 2}
NORMALISED = {  # what stands behind the convolution, and whether its numbers for each channel can go into the weights
    "BatchNormalization": ("y = BatchNormalization (a, s, o, m, v)", True),
    "then a rectifier": ("b = BatchNormalization (a, s, o, m, v) y = Relu (b)", True),
    "a product": ("y = Mul (a, per_channel)", True),
    "a product from the left": ("y = Mul (per_channel, a)", True),
    "read elsewhere": ("b = BatchNormalization (a, s, o, m, v) y = Add (a, b)", False),
    "a number for each row": ("y = Mul (a, per_row)", False),
    "one number": ("y = Mul (a, one)", False),
    "no constant": ("p = GlobalAveragePool (a) y = Mul (a, p)", False),
}
SCALED = ("3x3", "1x1", "groups", "depthwise", "phases", "phases, depthwise", "strided")


@pytest.mark.parametrize("behind", NORMALISED)
@pytest.mark.parametrize("name", SCALED)
def test_numbers_for_each_channel_go_into_the_weights(name: str, behind: str) -> None:
    attributes, x, w = CONVOLUTIONS[name]
    text, goes = NORMALISED[behind]
    shape = ", ".join(["N", *map(str, x[1:])])
    outputs = w[0]
    source = model(
        f"g (float[{shape}] x) => (float[] y) {{ a = Conv <{attributes}> (x, w) {text} }}",
        w=normal(*w), per_channel=normal(outputs, 1, 1, seed=7), one=np.float32([[[0.3]]]),
        **{k: value[:outputs] for k, value in STATISTICS.items()},
    )  # fmt: skip
    source.graph.output[0].type.tensor_type.ClearField("shape")
    if "per_row" in text:
        rows = run(model(f"g (float[{shape}] x) => (float[] a) {{ a = Conv <{attributes}> (x, w) }}", w=normal(*w)),
                   x=normal(*x))["a"].shape[2]  # fmt: skip
        source.graph.initializer.append(onnx.numpy_helper.from_array(normal(rows, 1, seed=8), "per_row"))
    data = normal(*x, seed=1)
    seed = normal(*run(source, x=data)["y"].shape, seed=2)
    methods = METHODS if "Relu" in text else ("gradient",)
    made = {how: gbprewrite.convert(source, methods, "seed", optimize_for=how) for how in ("auto", "cuda", "portable")}
    plain = run(made["portable"], x=data, seed=seed)
    for how in ("auto", "cuda"):
        found = run(made[how], x=data, seed=seed)
        for method in methods:
            np.testing.assert_allclose(found[f"x_{method}"], plain[f"x_{method}"], rtol=1e-5, atol=1e-5)
        scaled = any(n.op_type == "Mul" and n.input[0] == "w" for n in made[how].graph.node)
        assert scaled == goes


def test_half_precision_weights_are_not_multiplied_since_no_runtime_would_do_it_beforehand() -> None:
    source = model(
        "g (float16[N, 3, 6, 7] x) => (float16[N, 4, 4, 5] y) { a = Conv (x, w) y = Mul (a, per_channel) }",
        w=normal(4, 3, 3, 3).astype(np.float16), per_channel=normal(4, 1, 1, seed=7).astype(np.float16),
    )  # fmt: skip
    built = gbprewrite.convert(source, "gradient", "seed")
    assert not any(n.op_type == "Mul" and n.input[0] == "w" for n in built.graph.node)


def test_a_weight_that_the_caller_may_override_is_not_multiplied_beforehand() -> None:
    source = model(
        "g (float[N, 3, 6, 7] x, float[4, 3, 3, 3] w) => (float[N, 4, 4, 5] y)"
        " { a = Conv (x, w) y = Mul (a, per_channel) }",
        w=normal(4, 3, 3, 3), per_channel=normal(4, 1, 1, seed=7),
    )  # fmt: skip
    built = gbprewrite.convert(source, "gradient", "seed", inputs=["x"])
    assert not any(n.op_type == "Mul" and n.input[0] == "w" for n in built.graph.node)

"""Every spelling of an adjoint against the portable one, in the same runtime."""

from typing import Any

import numpy as np
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
}


def spellings(source: Any, **feeds: Any) -> list[dict[str, Any]]:
    return [run(gbprewrite.convert(source, METHODS, "seed", optimize_for=how), **feeds) for how in ("auto", "portable")]


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
    fast, plain = spellings(source, x=data, seed=seed)
    for method in METHODS:
        np.testing.assert_allclose(fast[f"x_{method}"], plain[f"x_{method}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("high", [None, 6.0, 0.3, 1e-3, 1e5])
def test_gate(high: float | None) -> None:
    """The steep HardSigmoid is the comparison, at the bounds and at their neighbours in float32."""
    body = "y = Relu (x)" if high is None else "y = Clip (x, zero, high)"
    weights = {} if high is None else {"zero": np.float32(0), "high": np.float32(high)}
    source = model(f"g (float[N] x) => (float[N] y) {{ {body} }}", **weights)
    tiny = np.finfo(np.float32).tiny
    x = [-np.inf, -1, -tiny, -0.0, 0, tiny, 1e-20, 0.1, 1, 3e38]
    for bound in (0.3, 1e-3, 6, 1e5):
        x += [bound, np.nextafter(np.float32(bound), np.float32(0)), np.nextafter(np.float32(bound), np.float32(9e9))]
    data = np.float32(x)
    fast, plain = spellings(source, x=data, seed=np.ones_like(data))
    for method in METHODS:
        np.testing.assert_array_equal(fast[f"x_{method}"], plain[f"x_{method}"])

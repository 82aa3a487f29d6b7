"""Sizes that share a name are equal whatever the model is fed; and those that should share one do."""

from typing import Any

import numpy as np
import onnx
import pytest

from gbprewrite.model.inference import infer
from gbprewrite.model.tensors import read_type
from tests.small import model, normal, run

SIZES = [(1, 16, 17), (2, 23, 16), (3, 19, 30)]  # N, H, W
HEAD = "g (float[N, 4, H, W] x) => (float[] y)"


def named(source: onnx.ModelProto) -> dict[str, list[Any]]:
    """The shape of every value, as inference leaves it."""
    graph = infer(source).graph
    return {v.name: read_type(v.type)[1] or [] for v in (*graph.value_info, *graph.output)}


def model_of(body: str, **weights: Any) -> onnx.ModelProto:
    source = model(f"{HEAD} {{ {body} }}", **weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    return source


W3, W1 = normal(4, 4, 3, 3), normal(4, 4, 1, 1)
SAME = {  # the two values have equal sizes
    "same padding": ("a = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Add (a, x)", "a", "x"),
    "a residual block with a stride": (
        "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w3) b = Relu (a)"
        " c = Conv <pads = [1, 1, 1, 1]> (b, w3) d = Conv <strides = [2, 2]> (x, w1) y = Add (c, d)",
        "c",
        "d",
    ),
    "a sum of two such": (
        "a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w3) d = Conv <strides = [2, 2]> (x, w1) y = Add (a, d)",
        "y",
        "a",
    ),
    "pools and convolutions": (
        "a = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)"
        " b = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w3) y = Concat <axis = 1> (a, b)",
        "a",
        "b",
    ),
    "SAME": ('a = Conv <auto_pad = "SAME_UPPER"> (x, w3) y = Add (a, x)', "a", "x"),
    "a gate": ("p = GlobalAveragePool (x) s = Sigmoid (p) y = Mul (x, s)", "y", "x"),
    "upsampled": (
        "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) b = Resize (a, , scales) c = Resize (a, , scales)"
        " y = Add (b, c)",
        "b",
        "y",
    ),
    "a concatenation": ("a = Relu (x) b = Concat <axis = 1> (a, x) y = Conv <pads = [1, 1, 1, 1]> (b, w8)", "y", "x"),
}
WEIGHTS = {"w3": W3, "w1": W1, "w8": normal(4, 8, 3, 3), "scales": np.float32([1, 1, 2, 2])}


@pytest.mark.parametrize("case", SAME)
def test_equal_sizes_have_one_name(case: str) -> None:
    body, one, other = SAME[case]
    shapes = named(model_of(body, **WEIGHTS)) | {"x": ["N", 4, "H", "W"]}
    assert shapes[one][2:] == shapes[other][2:]
    assert shapes[one][0] == "N"


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv <strides = [2, 2]> (x, w1) y = Conv <strides = [2, 2]> (x, w3)",
        "a = Conv <pads = [1, 1, 1, 1]> (x, w3) y = Conv (x, w3)",
        "a = Conv (x, w3) y = Conv <dilations = [2, 2]> (x, w3)",
        "a = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)"
        " y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
        "a = Resize (x, , scales) y = Relu (x)",
    ],
)
def test_other_sizes_have_other_names(body: str) -> None:
    shapes = named(model_of(body, **WEIGHTS))
    assert not set(shapes["a"][2:]) & set(shapes["y"][2:])


def drawn(rng: np.random.Generator) -> onnx.ModelProto:
    """A random graph: windows, Resize, sums that may broadcast, concatenations, of values whose sizes may agree."""
    weights: dict[str, Any] = {"scales": WEIGHTS["scales"], "w0": W1}
    values, lines = ["x"], []
    for i in range(12):
        a, b = (values[k] for k in rng.integers(len(values), size=2))
        kernel, stride, dilation, pad = (int(rng.integers(low, high)) for low, high in ((1, 4), (1, 3), (1, 3), (0, 2)))
        window = f"kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = [{pad}, 0, {pad}, {pad}]"
        weights[f"w{i}"] = normal(4, 4, kernel, kernel, seed=i)
        kind = int(rng.integers(6))
        lines.append(
            [
                f"v{i} = Conv <{window}, dilations = [{dilation}, 1]> ({a}, w{i})",
                f"v{i} = MaxPool <{window}, ceil_mode = {pad}> ({a})",
                f"v{i} = Add ({a}, {b})",
                f"v{i} = GlobalAveragePool ({a})",
                f"v{i} = Resize ({a}, , scales)",
                f"v{i} = Mul ({a}, {b})",
            ][kind]
        )
        values.append(f"v{i}")
    source = model_of(" ".join(lines) + f" y = Relu ({values[-1]})", **weights)
    source.graph.output.extend(onnx.ValueInfoProto(name=v) for v in values[1:])
    return source


def test_whatever_is_fed_equal_names_are_equal_sizes() -> None:
    """Random graphs that onnxruntime can run: a name must not stand for two sizes, in any of three runs."""
    compared = 0
    for seed in range(150):
        source = drawn(np.random.default_rng(seed))
        try:
            shapes = named(source)
            runs = [run(source, x=normal(n, 4, h, w)) for n, h, w in SIZES]
        except Exception:  # sizes that can't be added, kernels larger than their plane
            continue
        for found, (n, h, w) in zip(runs, SIZES, strict=True):
            meant: dict[str, int] = {"N": n, "H": h, "W": w}
            for name, value in found.items():
                for size, said in zip(value.shape, shapes[name], strict=True):
                    if isinstance(said, str):
                        assert meant.setdefault(said, size) == size, (seed, name, said)
                        compared += 1
                    elif said is not None:
                        assert said == size
    assert compared > 500

"""What the view rearranges so that the way back is shorter: the maps stay the same."""

import numpy as np
import onnx
import pytest

import gbprewrite
from tests.small import model, normal, run

PADDED = "p = Pad ({operands}) c = Conv <{attributes}> (p, w) y = Relu (c)"


@pytest.mark.parametrize("absorbed", ["", ", nought"])
def test_padding_of_a_convolution(absorbed: str) -> None:
    """Pad with zeros and Conv are Conv with pads: nothing is cut off on the way back."""
    shapes = "g (float[N, 16, 7, 8] x) => (float[] y)"
    operands, attributes = f"x, widths{absorbed}", "strides = [2, 2], pads = [1, 0, 0, 0]"
    weights = {"w": normal(4, 16, 3, 3), "widths": np.array([0, 0, 0, 1, 0, 0, 1, 2]), "nought": np.float32(0)}
    if not absorbed:
        del weights["nought"]
    source = model(f"{shapes} {{ {PADDED.format(operands=operands, attributes=attributes)} }}", **weights)
    merged = model(
        f"{shapes} {{ c = Conv <strides = [2, 2], pads = [1, 1, 1, 2]> (x, w) y = Relu (c) }}", w=weights["w"]
    )
    for built in (source, merged):
        built.graph.output[0].type.tensor_type.ClearField("shape")
    data = normal(2, 16, 7, 8, seed=1)
    seed = normal(*run(source, x=data)["y"].shape, seed=2)
    ours, theirs = (gbprewrite.convert(m, ["gradient", "guided"], "seed") for m in (source, merged))
    assert len(ours.graph.node) == len(theirs.graph.node) + 1  # the Pad itself
    for name, wanted in run(theirs, x=data, seed=seed).items():
        np.testing.assert_allclose(run(ours, x=data, seed=seed)[name], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "operands",
    ["x, widths, one", "x, channels", "x, negative"],
    ids=["with ones", "of the channels", "negative"],
)
def test_other_padding_stays(operands: str) -> None:
    """What no pads of a Conv can say is differentiated as it stands."""
    body = PADDED.format(operands=operands, attributes="dilations = [1, 1]")
    source = model(
        f"g (float[N, 2, 7, 8] x) => (float[] y) {{ {body} }}",
        w=normal(3, 4 if "channels" in operands else 2, 3, 3),
        widths=np.array([0, 0, 0, 1, 0, 0, 1, 2]),
        channels=np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        negative=np.array([0, 0, 0, -1, 0, 0, 1, 0]),
        one=np.float32(1),
    )
    source.graph.output[0].type.tensor_type.ClearField("shape")
    x = normal(1, 2, 7, 8, seed=1)
    seed = np.ones_like(run(source, x=x)["y"])
    built = gbprewrite.convert(source, "gradient", "seed")
    slope, step = normal(1, 2, 7, 8, seed=3), 1e-3
    ends = [run(source, x=x + np.float32(s) * slope)["y"].sum(dtype=np.float64) for s in (-step, step)]
    along = float((run(built, x=x, seed=seed)["x_gradient"].astype(np.float64) * slope).sum())
    assert along == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=2e-2)


def test_concatenations_nest() -> None:
    """In a dense block every layer gets one sum from what lies behind it, not one from every later layer."""

    def built(depth: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        flat, nested = "a0 = Relu (x)", "a0 = Relu (x)"
        parts, chain = ["a0"], "a0"
        for i in range(1, depth):
            flat += f" k{i} = Concat <axis = 1> ({', '.join(parts)}) c{i} = Conv (k{i}, w{i}) a{i} = Relu (c{i})"
            if i > 1:
                nested += f" k{i} = Concat <axis = 1> ({chain}, a{i - 1})"
                chain = f"k{i}"
            nested += f" c{i} = Conv ({chain}, w{i}) a{i} = Relu (c{i})"
            parts.append(f"a{i}")
        weights = {f"w{i}": normal(2, 2 * i, 1, 1, seed=i) for i in range(1, depth)}
        ends = f" y = GlobalAveragePool (a{depth - 1}) }}"
        head = "g (float[N, 2, 3, 3] x) => (float[N, 2, 1, 1] y) { "
        return model(head + flat + ends, **weights), model(head + nested + ends, **weights)

    counts = []
    for depth in (6, 11):
        flat, nested = (gbprewrite.convert(m, "guided") for m in built(depth))
        x = normal(2, 2, 3, 3, seed=20)
        np.testing.assert_allclose(run(flat, x=x)["x_guided"], run(nested, x=x)["x_guided"], rtol=1e-5, atol=1e-6)
        counts.append([n.op_type for n in flat.graph.node].count("Add"))
    assert counts[1] - counts[0] <= 2 * 5

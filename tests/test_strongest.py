"""The K strongest units at different positions, and the channels that a target looks at: numpy says which they are."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.checks.verify import verify
from gbprewrite.errors import UsageError
from gbprewrite.graft import record as report
from gbprewrite.select import subset
from tests.small import model, normal, run

WEIGHTS = normal(6, 2, 1, 1)
X = normal(3, 2, 3, 4, seed=1)
# shape of the score → the axis of its classes, and the permutation of [N, 6, 3, 4] that makes it
LAYOUTS = {
    "[N,C,H,W]": (1, "[N, 6, 3, 4]", "y = Identity (a)", lambda y: y),
    "[N,H,W,C]": (3, "[N, 3, 4, 6]", "y = Transpose <perm = [0, 2, 3, 1]> (a)", lambda y: y.transpose(0, 2, 3, 1)),
    "[N,A,C]": (
        2,
        "[N, 12, 6]",
        "t = Transpose <perm = [0, 2, 3, 1]> (a) y = Reshape (t, s)",
        lambda y: y.transpose(0, 2, 3, 1).reshape(3, 12, 6),
    ),
}
CHANNELS = {None: range(6), "2:5": range(2, 5), "-2:": range(4, 6), "0,3:5": (0, 3, 4), "::2": (0, 2, 4), "-1": (5,)}


def network(shape: str, last: str) -> onnx.ModelProto:
    text = f"g (float[N, 2, 3, 4] x) => (float{shape} y) {{ a = Conv (x, w) {last} }}"
    return model(text, w=WEIGHTS, s=np.array([0, 12, 6], np.int64))


def scores() -> Any:
    return np.einsum("oi,nihw->nohw", WEIGHTS[:, :, 0, 0].astype(np.float64), X)


def strongest(sample: Any, axis: int, allowed: Any, count: int) -> list[tuple[int, ...]]:
    """One after the other: the highest of the allowed units whose position is still free."""
    free, found = np.full(sample.shape, -np.inf), []
    places: Any = [slice(None)] * sample.ndim
    places[axis] = list(allowed)
    free[tuple(places)] = sample[tuple(places)]
    for _ in range(count):
        unit = np.unravel_index(free.argmax(), free.shape)
        found.append(tuple(map(int, unit)))
        taken = [slice(None) if a == axis else n for a, n in enumerate(unit)]
        free[tuple(taken)] = -np.inf
    return found


def gradients(units: Any, axis: int, position: Any) -> Any:
    """By hand: dy_c(h,w)/dx(i,h',w') is w[c,i] at the unit's own position and 0 elsewhere."""
    made = np.zeros((len(units), 2, 3, 4))
    for k, unit in enumerate(units):
        h, w = position([n for a, n in enumerate(unit) if a != axis])
        made[k, :, h, w] = WEIGHTS[unit[axis], :, 0, 0]
    return made


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_at_different_positions(layout: str, channels: str | None) -> None:
    axis, shape, last, arrange = LAYOUTS[layout]
    built = gbprewrite.convert(network(shape, last), "gradient", "strongest:4", class_axis=axis, channels=channels)
    found = run(built, x=X)
    y = arrange(scores())
    assert found["explained_index"].shape == (3, 4, y.ndim - 1)
    assert found["x_gradient"].shape == (3, 4, 2, 3, 4)
    for n in range(3):
        units = strongest(y[n], axis - 1, CHANNELS[channels], 4)
        np.testing.assert_array_equal(found["explained_index"][n], units)
        expected = gradients(units, axis - 1, lambda at: divmod(at[0], 4) if len(at) == 1 else at)
        np.testing.assert_allclose(found["x_gradient"][n], expected, rtol=1e-6)


@pytest.mark.parametrize("channels", CHANNELS)
def test_what_argmax_topk_and_strongest_look_at(channels: str | None) -> None:
    source, allowed = network(*LAYOUTS["[N,C,H,W]"][1:3]), list(CHANNELS[channels])
    sums, y = scores().sum((2, 3)), scores()
    order = np.array(allowed)[np.argsort(-sums[:, allowed], axis=1, kind="stable")]
    expected = {
        "argmax": order[:, 0],
        f"topk:{min(2, len(allowed))}": order[:, :2],
        "strongest": [strongest(sample, 0, allowed, 1)[0] for sample in y],
    }
    for target, index in expected.items():
        found = run(gbprewrite.convert(source, "gradient", target, channels=channels), x=X)
        np.testing.assert_array_equal(found["explained_index"], index, err_msg=target)


def test_equal_values_give_the_first_position_and_the_first_class() -> None:
    source = model("g (float[N, 2, 2, 2] x) => (float[N, 2, 2, 2] y) { y = Identity (x) }")
    found = run(
        gbprewrite.convert(source, "gradient", "strongest:3", class_axis=1), x=np.ones((1, 2, 2, 2), np.float32)
    )
    np.testing.assert_array_equal(found["explained_index"], [[[0, 0, 0], [0, 0, 1], [0, 1, 0]]])


def test_open_positions() -> None:
    source = model("g (float[N, 2, H, W] x) => (float[N, 6, H, W] y) { y = Conv (x, w) }", w=WEIGHTS)
    found = run(gbprewrite.convert(source, "gradient", "strongest:2", channels="1:4"), x=X)
    for n, sample in enumerate(scores()):
        np.testing.assert_array_equal(found["explained_index"][n], strongest(sample, 0, range(1, 4), 2))


def test_verify_knows_the_units_and_the_channels() -> None:
    source = model(
        "g (float[N, 2, 3, 4] x) => (float[N, 6, 3, 4] y) { a = Conv (x, w) b = Relu (a) y = Mul (b, b) }", w=WEIGHTS
    )
    for target in ("strongest:3", "strongest", "topk:2"):
        built = gbprewrite.convert(source, "guided", target, channels="1:4")
        assert report.read_record(built)["options"]["channels"] == "1:4"  # type: ignore[index]
        assert verify(built, inputs={"x": X}, providers="cpu").ok, target


def test_an_explainer_takes_what_the_file_has() -> None:
    built = gbprewrite.convert(network(*LAYOUTS["[N,C,H,W]"][1:3]), "gradient", "strongest:2", channels=[1, 2, 4])
    explainer = gbprewrite.Explainer(built, target="strongest:2", channels="1, 2, 4", providers="cpu")
    assert explainer(X).index.shape == (3, 2, 3)  # type: ignore[union-attr]
    with pytest.raises(UsageError, match=r"channels='0:2' can't be had from it"):
        gbprewrite.Explainer(built, channels="0:2", providers="cpu")


@pytest.mark.parametrize(
    ("channels", "text"),
    [("4:84", "4:84"), (" 0, 2 ,3:7", "0,2,3:7"), (5, "5"), ([1, 2], "1,2"), (slice(4, None), "4:"), (range(2), "0,1")],
)
def test_spellings(channels: Any, text: str) -> None:
    assert subset.text_of(channels) == text


@pytest.mark.parametrize("channels", ["", "a", "1;2", "1,,2", "1:2:3:4", "9" * 5000, "1.5", [1.5], "²"])
def test_no_subset(channels: Any) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        subset.text_of(channels)


@pytest.mark.parametrize(("numbers", "text"), [([4, 5, 6], "4:7"), ([0, 2, 3, 9], "0,2:4,9"), ([], "")])
def test_ranges(numbers: list[int], text: str) -> None:
    assert subset.ranges(numbers) == text

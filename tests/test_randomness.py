"""Models that draw random numbers: the maps are those of the very run, with the mask that its outputs show."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.graft import restore
from gbprewrite.graft.record import read_record
from tests.small import Array, model, normal, run

X, W = np.abs(normal(3, 40, seed=1)) + 0.1, normal(2, 40, seed=2)
HEAD = "g (float[N, 40] x{}) => (float[N, 2] y, float[N, 40] d) {{ {} y = Gemm <transB = 1> (d, w) }}"
ON = {"ratio": np.float32(0.25), "on": np.array(True)}


def source(body: str, inputs: str = "", opset: int = 17, **weights: Array) -> onnx.ModelProto:
    return model(HEAD.format(inputs, body), opset, w=W, **weights)


# How a mask comes about, with x > 0 → what else the model is fed
DROPPED: dict[str, tuple[onnx.ModelProto, dict[str, Any]]] = {
    "Dropout": (source("r = Relu (x) d = Dropout (r, ratio, on)", **ON), {}),
    "with a seed": (source("r = Relu (x) d = Dropout <seed = 5> (r, ratio, on)", **ON), {}),
    "without a ratio": (source('r = Relu (x) d = Dropout (r, "", on)', on=ON["on"]), {}),
    "with its own mask": (
        source("r = Relu (x) d, m = Dropout (r, ratio, on) n = Cast <to = 1> (m) s = Sum (n, r)", **ON),
        {},
    ),
    "switched on at run time": (
        source("r = Relu (x) d = Dropout (r, ratio, on)", ", bool on", ratio=ON["ratio"]),
        {"on": np.array(True)},
    ),
    "switched off at run time": (
        source("r = Relu (x) d = Dropout (r, ratio, on)", ", bool on", ratio=ON["ratio"]),
        {"on": np.array(False)},
    ),
    "its ratio at run time": (
        source("r = Relu (x) d = Dropout (r, ratio, on)", ", float ratio", on=ON["on"]),
        {"ratio": np.array(0.6, np.float32)},
    ),
    "opset 6, no test": (source("r = Relu (x) d = Dropout <ratio = 0.25> (r)", opset=6), {}),
    "two in a row": (source("r = Relu (x) e = Dropout (r, ratio, on) d = Dropout (e, ratio, on)", **ON), {}),
    "Bernoulli": (source("r = Relu (x) p = Clip (x, low, half) b = Bernoulli (p) d = Mul (r, b)", low=np.float32(0.1),
                         half=np.float32(0.5)), {}),
    "RandomUniformLike": (source("r = Relu (x) b = RandomUniformLike <low = 0.5> (r) d = Mul (b, r)"), {}),
    "RandomNormalLike": (source("r = Relu (x) b = RandomNormalLike (r) d = Mul (r, b)"), {}),
    "RandomUniform": (source("r = Relu (x) b = RandomUniform <shape = [40]> () d = Mul (r, b)"), {}),
    "compared with a level": (
        source(
            "r = Relu (x) b = RandomUniformLike (r) k = Greater (b, half) m = Cast <to = 1> (k) d = Mul (r, m)",
            half=np.float32(0.5),
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPED)
def test_the_map_has_the_mask_of_its_own_run(name: str) -> None:
    """d = mask · x shows the mask, and the score is linear in d: dx = w · mask, guided only where w is positive."""
    made, feeds = DROPPED[name]
    built = gbprewrite.convert(made, ["gradient", "guided"], 1, score="y")
    found = run(built, x=X, **feeds)
    mask = found["d"] / X
    np.testing.assert_allclose(found["y"], found["d"] @ W.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["x_gradient"], W[1] * mask, rtol=1e-4, atol=1e-6)
    if name != "RandomNormalLike":  # whose masks change the sign
        np.testing.assert_allclose(found["x_guided"], np.maximum(W[1], 0) * mask, rtol=1e-4, atol=1e-6)
    if "off" in name:
        np.testing.assert_allclose(mask, 1, rtol=1e-6)
    else:
        assert mask.std() > 0.1
        assert any("draws random numbers" in note for note in (read_record(built) or {})["notes"])


def test_what_is_switched_off_draws_nothing() -> None:
    off = source("r = Relu (x) d = Dropout (r, ratio, on)", ratio=ON["ratio"], on=np.array(False))
    built = gbprewrite.convert(off, "gradient", 1, score="y")
    assert [list(n.output) for n in built.graph.node if n.op_type == "Dropout"] == [["d"]]
    assert (read_record(built) or {})["notes"] == []
    test = source("r = Relu (x) d = Dropout <ratio = 0.25, is_test = 1> (r)", opset=6)
    np.testing.assert_allclose(run(gbprewrite.convert(test, "gradient", 1, score="y"), x=X)["d"], X)


def test_the_source_part_asks_for_no_mask() -> None:
    made, _ = DROPPED["Dropout"]
    built = gbprewrite.convert(made, "gradient", 1, score="y")
    assert [n.output[1] for n in built.graph.node if n.op_type == "Dropout"] == ["d_mask"]
    assert [list(n.output) for n in restore.restore(built).graph.node if n.op_type == "Dropout"] == [["d"]]


BRANCH = """g (float[N, 40] x, bool b) => (float[N, 2] y) {
    r = Relu (x)
    d = If (b) <
        then_branch = t () => (o) { o = Dropout (r, ratio, on) },
        else_branch = e () => (p) { p = Identity (r) }
    >
    y = Gemm <transB = 1> (d, w) }"""
AGAIN = "the model draws random numbers .Dropout node .*points of {}.*export the model for inference"
WRONG: dict[str, tuple[onnx.ModelProto, dict[str, Any], str]] = {
    "smoothgrad": (DROPPED["Dropout"][0], {"method": "smoothgrad"}, AGAIN.format("smoothgrad")),
    "integrated gradients": (
        DROPPED["Dropout"][0],
        {"method": ["gradient", "integrated_gradients"]},
        AGAIN.format("integrated_gradients"),
    ),
    "in a branch": (model(BRANCH, 17, w=W, **ON), {"method": "gradient"}, "If .*a branch draws random numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_error(case: str) -> None:
    made, options, message = WRONG[case]
    with pytest.raises(gbprewrite.ModelError, match=message):
        gbprewrite.convert(made, target=1, score="y", **options)


def test_verify_says_what_it_can_not_check() -> None:
    built = gbprewrite.convert(DROPPED["Dropout"][0], "gradient", 1, score="y")
    found = gbprewrite.verify(built)
    assert {c.status for c in found.checks if c.name != "backward part, as this version writes it"} == {"skipped"}
    assert all("draws random numbers" in c.note for c in found.checks if c.status == "skipped")


# --- BatchNormalization by the statistics of the batch --------------------------------------------------------------

BY_BATCH = """g (float[{}, 3, 5, 5] x) => (float[{}, 2] y) {{
    c = Conv (x, k) n, m, v = BatchNormalization <training_mode = 1> (c, scale, bias, mean, variance)
    r = Relu (n) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm <transB = 1> (f, h) }}"""


def by_batch(size: str) -> onnx.ModelProto:
    norm = {
        "scale": normal(4, seed=3),
        "bias": normal(4, seed=4),
        "mean": normal(4),
        "variance": np.ones(4, np.float32),
    }
    return model(BY_BATCH.format(size, size), 17, k=normal(4, 3, 3, 3, seed=5), h=normal(2, 4, seed=6), **norm)


@pytest.mark.parametrize("size", ["N", "3"])
def test_points_stay_out_of_the_statistics_of_the_batch(size: str) -> None:
    """Each point is a batch of its own: the mean of as many maps of the plain gradient, each from a run of its own."""
    x = normal(3, 3, 5, 5, seed=7)
    plain = gbprewrite.convert(by_batch(size), "gradient", 1)

    def gradient(point: Array) -> Array:
        return run(plain, x=point.astype(np.float32))["x_gradient"]

    found = run(gbprewrite.convert(by_batch(size), "integrated_gradients", 1, steps=4), x=x)
    wanted = x * np.mean([gradient(x * (k + 0.5) / 4) for k in range(4)], 0)
    np.testing.assert_allclose(found["x_integrated_gradients"], wanted, rtol=1e-4, atol=1e-6)
    noise = 0.1 * normal(3, 3, 5, 5, seed=8)
    found = run(gbprewrite.convert(by_batch(size), "smoothgrad", 1, samples=3), x=x, x_noise=noise)
    wanted = np.mean([gradient(x + n) for n in noise], 0)
    np.testing.assert_allclose(found["x_smoothgrad"], wanted, rtol=1e-4, atol=1e-6)
    if size == "N":  # the samples do depend on each other
        assert not np.allclose(gradient(x[:1]), gradient(x)[:1], rtol=1e-2)

"""Dead units, extreme weights and extreme inputs: every spelling against float64."""

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.backward.builder import Builder
from tests.small import Array, cnn, model, normal, run

SPELLINGS = ("cpu", "cuda", "portable")
SMALLEST = 2.0**-149
LARGEST = float(np.finfo(np.float32).max)
# Rectifier: its nodes from a to h, and where it is on.
RECTIFIERS: dict[str, tuple[str, Any]] = {
    "Relu": ("h = Relu (a)", lambda a: a > 0),
    "ReLU6": ("h = Clip (a, zero, six)", lambda a: (a > 0) & (a < 6)),
    "Clip to the largest float": ("h = Clip (a, zero, largest)", lambda a: (a > 0) & (a < LARGEST)),
    "Clip to a tiny bound": ("h = Clip (a, zero, tiny)", lambda a: (a > 0) & (a < np.float64(np.float32(1e-38)))),
    "Relu, MaxPool of one": ("r = Relu (a) h = MaxPool <kernel_shape = [1, 1]> (r)", lambda a: a > 0),
    "Max with zero": ("h = Max (a, zero)", lambda a: a > 0),
}
# What follows: nodes from h to y, and dy/dh for a cotangent of ones.
TAILS: dict[str, tuple[str, Any]] = {
    "nothing": ("y = Identity (h)", lambda h: np.ones_like(h)),
    "Sqrt": ("y = Sqrt (h)", lambda h: 0.5 / np.sqrt(h)),
    "Pow below 1": ("y = Pow (h, half)", lambda h: 0.5 / np.sqrt(h)),
    "Log": ("y = Log (h)", lambda h: 1 / h),
    "root of a sum": ("s = ReduceSum (h, axes) y = Sqrt (s)", lambda h: 0.5 / np.sqrt(h.sum(1, keepdims=True)) + 0 * h),
    "root of a pool": ("s = GlobalAveragePool (h) y = Sqrt (s)",
                       lambda h: 0.5 / np.sqrt(h.mean((2, 3), keepdims=True)) / h[0, 0].size + 0 * h),
}  # fmt: skip
NUMBERS = {"zero": 0, "six": 6, "largest": LARGEST, "tiny": 1e-38, "half": 0.5}


def data(kind: str) -> Array:
    """[1, 3, 2, 4]: one position where every channel is off, one channel that is off everywhere."""
    x = normal(1, 3, 2, 4, seed=1)
    x[0, :, 0, 0] = -np.abs(x[0, :, 0, 0])
    x[0, 2] = -np.abs(x[0, 2])
    if kind == "negative zero":
        return np.copysign(np.float32(0), -np.abs(x))
    scale = {"usual": 1, "huge": 1e30, "small": 1e-30, "denormal": 1e-41}[kind]
    return (x.astype(np.float64) * scale).astype(np.float32)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("rectifier", RECTIFIERS)
def test_a_unit_that_is_off_hands_nothing_back(rectifier: str, tail: str) -> None:
    """Also where what arrives is infinite or NaN; and one that is on hands on what float64 has."""
    (on, is_on), (behind, slope) = RECTIFIERS[rectifier], TAILS[tail]
    for weight, how in product((1.0, 1e30, 1e-30), SPELLINGS):
        source = model(
            f"g (float[1, 3, 2, 4] x) => (float[] y) {{ a = Mul (x, w) {on} {behind} }}",
            w=np.array(weight, np.float32), axes=np.int64([1]), **{name: np.float32(n) for name, n in NUMBERS.items()},
        )  # fmt: skip
        source.graph.output[0].type.tensor_type.ClearField("shape")
        built = gbprewrite.convert(source, "gradient", "seed", optimize_for=how)
        for kind in ("usual", "huge", "small", "denormal", "negative zero"):
            x = data(kind)
            a = x.astype(np.float64) * np.float64(np.float32(weight))
            if np.abs(a).max() > LARGEST or 0 < np.abs(a).max() < SMALLEST:
                continue  # the network itself leaves float32
            seed = np.ones_like(run(source, x=x)["y"])
            found = run(built, x=x, seed=seed)["x_gradient"]
            with np.errstate(all="ignore"):
                h = np.clip(a, 0, float(NUMBERS["tiny"]) if "tiny" in on else 6 if "six" in on else LARGEST)
                wanted = np.where(is_on(a), slope(h) * np.float64(np.float32(weight)), 0)
            inside = np.abs(wanted) < LARGEST / 4
            if kind != "denormal" or tail == "nothing":
                np.testing.assert_allclose(
                    found[inside], wanted[inside], 1e-3, SMALLEST, err_msg=f"{how} {weight} {kind}"
                )
            np.testing.assert_array_equal(found[~is_on(a)], 0, f"{how} {weight} {kind}")


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize(
    "pool", ["kernel_shape = [2, 2], strides = [2, 2]", "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"]
)
def test_unpooling_selects(how: str, pool: str) -> None:
    """A window of nothing but zeros gets an infinite cotangent: its maximum alone does, and is off."""
    source = model(f"g (float[1, 1, 4, 4] x) => (float[] y) {{ h = Relu (x) p = MaxPool <{pool}> (h) y = Sqrt (p) }}")
    source.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.full((1, 1, 4, 4), -1, np.float32)
    x[0, 0, 0, 0] = 4
    seed = np.ones_like(run(source, x=x)["y"])
    found = run(gbprewrite.convert(source, "gradient", "seed", optimize_for=how), x=x, seed=seed)["x_gradient"]
    windows = 1 if "strides" in pool else 4  # that see the only unit that is on
    wanted = np.zeros_like(x)
    wanted[0, 0, 0, 0] = windows * 0.25
    np.testing.assert_array_equal(found, wanted)


NEAREST, LINEAR, EDGE = np.zeros((6, 3)), np.zeros((6, 3)), np.zeros((6, 3))  # [outputs, inputs] along each axis
for place in range(6):
    NEAREST[place, place // 2] = 1
    LINEAR[place, place // 2] += 0.5 if place % 2 else 1
    LINEAR[place, min(place // 2 + 1, 2)] += 0.5 if place % 2 else 0
    EDGE[place, min(max(place - 1, 0), 2)] = 1
RESIZE = 'Resize <mode = "{}", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (h, , scales)'
MOVES = {
    "nearest": (RESIZE.format("nearest"), NEAREST),
    "linear": (RESIZE.format("linear"), LINEAR),
    "edge": ('Pad <mode = "edge"> (h, pads)', EDGE),
}


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("name", MOVES)
def test_zeros_of_a_matrix_select_too(name: str, how: str) -> None:
    """Roots of 0 at places that a unit has no part in do not reach it."""
    operator, matrix = MOVES[name]
    source = model(f"g (float[1, 1, 3, 3] x) => (float[1, 1, 6, 6] y) {{ h = Relu (x) u = {operator} y = Sqrt (u) }}",
                   scales=np.float32([1, 1, 2, 2]), pads=np.int64([0, 0, 1, 1, 0, 0, 2, 2]))  # fmt: skip
    x = np.full((1, 1, 3, 3), -1, np.float32)
    x[0, 0, 0, :2] = 4, 1
    built = gbprewrite.convert(source, "gradient", "seed", optimize_for=how)
    found = run(built, x=x, seed=np.ones((1, 1, 6, 6), np.float32))["x_gradient"]
    h = np.maximum(x[0, 0], 0).astype(np.float64)
    weights = np.einsum("ip,jq->ijpq", matrix, matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        arriving = 0.5 / np.sqrt(matrix @ h @ matrix.T)
        wanted = np.where(weights > 0, weights * arriving[:, :, None, None], 0).sum((0, 1))
    np.testing.assert_allclose(found[0, 0], np.where(h > 0, wanted, 0), rtol=1e-5)


@pytest.mark.parametrize("how", SPELLINGS)
@pytest.mark.parametrize("operator", ["Max (x, z)", "ReduceMax <keepdims = 1> (x, axes)", "HardSwish (x)"])
def test_what_is_not_the_extremum_gets_nothing(how: str, operator: str) -> None:
    """Roots of 0 hand back infinity to the largest of all; the others, and HardSwish below -3, get 0."""
    source = model(f"g (float[1, 4] x) => (float[] y) {{ m = {operator} y = Sqrt (m) }}",
                   z=np.float32([[0, 0, 0, 0]]), axes=np.int64([1]))  # fmt: skip
    source.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.float32([[-4, -5, -6, -7]])
    if operator.startswith("ReduceMax"):
        x[0, 0] = 0
    seed = np.ones_like(run(source, x=x)["y"])
    found = run(gbprewrite.convert(source, "gradient", "seed", optimize_for=how), x=x, seed=seed)["x_gradient"]
    np.testing.assert_array_equal(found, [[np.inf if x[0, 0] == 0 else 0, 0, 0, 0]])


@pytest.mark.parametrize("how", SPELLINGS)
def test_weights_that_overflow_on_the_way_back(how: str) -> None:
    """1e30 · 1e30 is infinite: it reaches the unit that is on, and not the one that is off."""
    source = model("g (float[1, 2] x) => (float[1, 1] y) { h = Relu (x) a = MatMul (h, v) y = MatMul (a, w) }",
                   v=np.float32([[1e30], [1e30]]), w=np.float32([[1e30]]))  # fmt: skip
    found = run(gbprewrite.convert(source, "gradient", optimize_for=how), x=np.float32([[1e-30, -1]]))["x_gradient"]
    np.testing.assert_array_equal(found, [[np.inf, 0]])


@pytest.mark.parametrize("how", SPELLINGS)
def test_scales_that_would_underflow_in_the_weights(how: str) -> None:
    source = model("g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y) { a = Conv (x, w) y = Mul (a, s) }",
                   w=np.float32([[[[1e-30]]]]), s=np.float32([[[1e-30]]]))  # fmt: skip
    seed = np.full((1, 1, 2, 2), 1e30, np.float32)
    built = gbprewrite.convert(source, "gradient", "seed", optimize_for=how)
    np.testing.assert_allclose(run(built, x=np.ones_like(seed), seed=seed)["x_gradient"], 1e-30, rtol=1e-6)


@pytest.mark.parametrize("how", SPELLINGS)
def test_gelu_far_from_zero(how: str) -> None:
    text = 'g (float[N] x) => (float[N] y) { y = Gelu <approximate = "tanh"> (x) }'
    built = gbprewrite.convert(model(text, opset=20), "gradient", "seed", optimize_for=how)
    x = np.float32([-3e38, -1e30, -150, 0, 150, 1e30, 3e38])
    np.testing.assert_array_equal(run(built, x=x, seed=np.ones_like(x))["x_gradient"], [0, 0, 0, 0.5, 1, 1, 1])


def chain(layers: int, end: str, scale: float = 1.0) -> onnx.ModelProto:
    """Conv and Relu in turn, [N, 8, 6, 6], and what makes the scores of them."""
    nodes = "".join(
        f"c{i} = Conv <pads = [1, 1, 1, 1]> ({f'r{i - 1}' if i else 'x'}, w) r{i} = Relu (c{i})" for i in range(layers)
    )
    text = f"g (float[N, 8, 6, 6] x) => (float[N, 8] y) {{ {nodes} p = GlobalAveragePool (r{layers - 1}) "
    return model(f"{text} f = Flatten (p) y = {end} }}", w=np.float32(scale) * normal(8, 8, 3, 3) / 6)


def operators(built: onnx.ModelProto) -> set[str]:
    return {n.op_type for n in built.graph.node}


def test_products_stay_where_nothing_can_be_infinite() -> None:
    """Deep or not; and the masks of deep networks are of one step."""
    for layers, steps in ((4, 2), (12, 1), (40, 1)):
        built = gbprewrite.convert(chain(layers, "Identity (f)"), "gradient", 1)
        assert "Where" not in operators(built)
        assert [n.op_type for n in built.graph.node].count("HardSigmoid") == layers * steps
    assert "Where" in operators(gbprewrite.convert(chain(12, "Sqrt (f)"), "gradient", 1))
    assert "Where" in operators(gbprewrite.convert(chain(12, "Identity (f)", scale=1e10), "gradient", 1))


def test_a_divisor_that_is_never_near_zero_keeps_the_products() -> None:
    """As torch.nn.functional.normalize exports: the norm is at least 1e-12."""
    end = "Div (f, e) }"
    source = chain(12, "Identity (f)")
    text = "n = ReduceL2 <keepdims = 1> (f, axes) c = Clip (n, eps) e = Expand (c, shape) y = " + end
    parsed = model(f"g (float[N, 8] f) => (float[N, 8] y) {{ shape = Shape (f) {text}",
                   axes=np.int64([1]), eps=np.float32(1e-12))  # fmt: skip
    source.graph.node.pop()
    source.graph.node.extend(parsed.graph.node)
    source.graph.initializer.extend(parsed.graph.initializer)
    built = gbprewrite.convert(source, "gradient", 1)
    assert sum(n.op_type == "HardSigmoid" for n in built.graph.node) == 12


@pytest.mark.parametrize("name", ["cnn", "chain", "attention", "normalised"])
def test_every_bound_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each cotangent that a mask meets, and of all that it is made of."""
    found: dict[int, tuple[Any, Any]] = {}
    original = Builder.finite

    def finite(self: Builder, v: Any) -> bool:
        answer, todo = original(self, v), [v]
        while todo:
            tensor = todo.pop()
            if id(tensor) in self.magnitudes._found and id(tensor) not in found:
                found[id(tensor)] = tensor, self.magnitudes.of(tensor)
                todo += [x for n in tensor.inputs for x in n.inputs if x.name]
        return answer

    monkeypatch.setattr(Builder, "finite", finite)
    source, x = NETWORKS[name]
    built = gbprewrite.convert(source, ("gradient", "guided"), 1)
    held = {output for node in built.graph.node for output in node.output}
    known = {t.name: m for t, m in found.values() if t.name in held and m.most < np.inf}
    own = {o.name for o in built.graph.output}
    built.graph.output.extend(onnx.ValueInfoProto(name=n) for n in known if n not in own)
    assert len(known) > 5
    for seed in range(3):
        values = run(built, optimise=False, **{source.graph.input[0].name: 100 * normal(*x, seed=seed)})
        for tensor, bound in known.items():
            assert bound.low <= values[tensor].min(), tensor
            assert bound.high >= values[tensor].max(), tensor


ATTENTION = model(
    """g (float[2, 6, 4] x) => (float[2, 5] y) {
        t = Transpose <perm = [0, 2, 1]> (x) l = MatMul (x, t) s = Softmax <axis = -1> (l)
        o = MatMul (x, w) h = HardSwish (o) r = Relu (h) m = Mul (s, six) a = MatMul (m, r)
        p = ReduceMean <keepdims = 0> (a, axes) k = Clip (p, zero, six) y = Gemm <alpha = 0.5> (k, v)
    }""",
    w=normal(4, 3), v=normal(3, 5, seed=1), axes=np.int64([1]), six=np.float32(6), zero=np.float32(0),
)  # fmt: skip
NORMALISED = model(
    """g (float[2, 3, 8, 8] x) => (float[2, 4] y) {
        a = Conv <strides = [2, 2]> (x, w, b) n = BatchNormalization (a, s, o, m, v) r = Relu (n)
        p = MaxPool <kernel_shape = [2, 2], strides = [1, 1]> (r) q = AveragePool <kernel_shape = [2, 2]> (p)
        l = LRN <size = 3> (q) c = Clip (l, zero, six) g = GlobalAveragePool (c) y = Flatten (g)
    }""",
    w=normal(4, 3, 2, 2), b=normal(4), s=normal(4, seed=1), o=normal(4, seed=2), m=normal(4, seed=3),
    v=normal(4, seed=4) ** 2, six=np.float32(6), zero=np.float32(0),
)  # fmt: skip
NETWORKS: dict[str, tuple[onnx.ModelProto, tuple[int, ...]]] = {
    "cnn": (cnn(), (2, 3, 12, 12)),
    "chain": (chain(5, "Identity (f)"), (2, 8, 6, 6)),
    "attention": (ATTENTION, (2, 6, 4)),
    "normalised": (NORMALISED, (2, 3, 8, 8)),
}

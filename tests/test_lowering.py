"""Every lowering of every table against the portable one, in the same runtime.

A lowering is tested from the day on that it stands in a table: alone, and with the others that a target takes.
"""

from collections.abc import Callable, Iterator
from itertools import product, zip_longest
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.backward.lowering.table import TABLES
from gbprewrite.backward.lowering.targets import TARGETS
from tests.small import Array, model, normal, run

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


def normalised(name: str, behind: str) -> onnx.ModelProto:
    """A convolution, and what stands behind it."""
    attributes, x, w = CONVOLUTIONS[name]
    text, _ = NORMALISED[behind]
    convolution = f"a = Conv <{attributes}> (x, w)"
    outputs, rows = w[0], run(layer(f"{convolution} y = Identity (a)", *x, w=normal(*w)), x=normal(*x))["y"].shape[2]
    return layer(
        f"{convolution} {text}", "N", *x[1:],
        w=normal(*w), per_channel=normal(outputs, 1, 1, seed=7), one=np.float32([[[0.3]]]),
        per_row=normal(rows, 1, seed=8), **{k: value[:outputs] for k, value in STATISTICS.items()},
    )  # fmt: skip


class Case(NamedTuple):
    """A model of one input x, what to feed, and how near the maps have to be: relatively, absolutely (0: equal)."""

    source: onnx.ModelProto
    data: tuple[Array, ...]
    near: tuple[float, float] = (0.0, 0.0)


def layer(body: str, *sizes: int | str, opset: int = 18, **weights: Array) -> onnx.ModelProto:
    """x of these sizes → y, whose shape nothing tells."""
    shape = ", ".join(map(str, sizes))
    source = model(f"g (float[{shape}] x) => (float[] y) {{ {body} }}", opset, **weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    return source


def convolutions() -> Iterator[tuple[str, Case]]:
    for name, (attributes, x, w) in CONVOLUTIONS.items():
        for kind in ("static", "symbolic"):
            sizes = [f"d{i}" if kind == "symbolic" and i != 1 else n for i, n in enumerate(x)]
            source = layer(f"a = Conv <{attributes}> (x, w) y = Relu (a)", *sizes, w=normal(*w))
            yield f"{name}, {kind}", Case(source, (normal(*x, seed=1),), (1e-5, 1e-5))


def pools(operator: str) -> Iterator[tuple[str, Case]]:
    """Rounded inputs: most windows hold their maximum more than once, and the first place in row order gets it all."""
    for name, (attributes, x) in POOLS.items():
        opset = 19 if operator == "AveragePool" and "dilations" in attributes else 18
        body = f"a = {operator} <{attributes}> (x) y = Relu (a)"
        for kind in ("static", "symbolic"):
            source = layer(body, "N" if kind == "symbolic" else x[0], *x[1:], opset=opset)
            yield f"{operator} {name}, {kind}", Case(source, (np.round(2 * normal(*x, seed=1)),), (1e-5, 1e-6))


def open_pools() -> Iterator[tuple[str, Case]]:
    """One file, several sizes; ties as above."""
    for name, (attributes, x) in POOLS.items():
        if name == "same":
            continue
        axes = len(x) - 2
        source = layer(f"a = MaxPool <{attributes}> (x) y = Relu (a)", "N", x[1], *"HWD"[:axes])
        shapes = [
            (*x[:2], *(n + more for n, more in zip_longest(x[2:], longer, fillvalue=0)))
            for longer in product(range(3), repeat=min(axes, 2))
        ]
        yield (
            f"MaxPool {name}, open",
            Case(source, tuple(np.round(2 * normal(*s, seed=1)) for s in shapes), (1e-5, 1e-6)),
        )


def gates() -> Iterator[tuple[str, Case]]:
    """At the bounds and at their neighbours in float32."""
    tiny = np.finfo(np.float32).tiny
    x = [-np.inf, -1, -tiny, -0.0, 0, 1e-45, 1e-40, tiny, 1e-20, 0.1, 1, 3e38, np.inf]
    for bound in (0.3, 1e-3, 6, 1e5, 1e-22, 1e9):
        x += [bound, np.nextafter(np.float32(bound), np.float32(0)), np.nextafter(np.float32(bound), np.float32(9e9))]
    yield "Relu", Case(layer("y = Relu (x)", "N"), (np.float32(x),))
    for high in (6.0, 0.3, 1e-3, 1e5, 1e-38, 1e-22, 1e9, 3.4e38):
        source = layer("y = Clip (x, zero, high)", "N", zero=np.float32(0), high=np.float32(high))
        yield f"Clip {high}", Case(source, (np.float32(x),))


def masks() -> Iterator[tuple[str, Case]]:
    data = np.float32([-3, -1, -0.5, -0.0, 0, 0.25, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 2, 5])
    for name, body in {
        "ThresholdedRelu": "y = ThresholdedRelu <alpha = 0.5> (x)",
        "Shrink": "y = Shrink <lambd = 0.5> (x)",
        "HardSigmoid": "y = HardSigmoid (x)",
        "from below": "y = Clip (x, half)",
        "an infinite cotangent": "s = ThresholdedRelu <alpha = 0.5> (x) y = Sqrt (s)",
    }.items():
        yield name, Case(layer(body, "N", half=np.float32(0.5)), (data,))


def scaled() -> Iterator[tuple[str, Case]]:
    for name, behind in product(SCALED, NORMALISED):
        data = normal(*CONVOLUTIONS[name][1], seed=1)
        yield f"{name}, {behind}", Case(normalised(name, behind), (data,), (1e-5, 1e-5))


CASES: dict[str, Callable[[], Iterator[tuple[str, Case]]]] = {
    "conv_input_grad": convolutions,
    "unpool": lambda: iter([*pools("MaxPool"), *open_pools()]),
    "average_pool_grad": lambda: pools("AveragePool"),
    "mask": masks,
    "gate": gates,
    "channel_scale": scaled,
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target for each lowering, which takes it and no other."""
    for table in TABLES.values():
        for name in table.names:
            monkeypatch.setitem(TARGETS, name, frozenset({name}))


def converted(source: onnx.ModelProto, adjoint: str) -> dict[str, onnx.ModelProto]:
    """By each target, and by each lowering of the adjoint alone."""
    roles = {row["role"] for row in gbprewrite.inspect(source).nonlinearities}
    methods = METHODS if "rectifier" in roles else ("gradient",)
    hows = ("cpu", "cuda", *TABLES[adjoint].names)
    return {how: gbprewrite.convert(source, methods, "seed", optimize_for=how) for how in hows}


def hold(adjoint: str, case: Case) -> None:
    """Each lowering to the portable one."""
    made = converted(case.source, adjoint)
    plain = made.pop(TABLES[adjoint].names[-1])
    different = {built.graph.SerializeToString(): (how, built) for how, built in made.items()}
    maps = [o.name for o in plain.graph.output if o.name.startswith("x_")]
    for data in case.data:
        seed = normal(*run(case.source, x=data)["y"].shape, seed=2)
        wanted = run(plain, x=data, seed=seed)
        for how, built in different.values():
            found = run(built, x=data, seed=seed)
            for name in maps:
                rtol, atol = case.near
                np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=atol, err_msg=f"{name} by {how}")


def test_every_table_has_cases() -> None:
    assert TABLES.keys() == CASES.keys()


def test_targets_name_lowerings_that_are_not_portable() -> None:
    """Of each table the last is the portable one, which every target may fall back on."""
    assert {name for names in TARGETS.values() for name in names if len(names) > 1} <= {
        lowering.__name__ for table in TABLES.values() for lowering in table.preferred
    }


@pytest.mark.parametrize(
    ("adjoint", "case"),
    [pytest.param(adjoint, case, id=f"{adjoint}: {name}") for adjoint in CASES for name, case in CASES[adjoint]()],
)
def test_lowering(adjoint: str, case: Case) -> None:
    hold(adjoint, case)


LOWERINGS = [(adjoint, lowering) for adjoint, table in TABLES.items() for lowering in table.preferred]


@pytest.mark.parametrize(("adjoint", "lowering"), LOWERINGS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_each_lowering_applies_and_says_when_and_why(adjoint: str, lowering: Callable[..., Any]) -> None:
    """In one of the cases it gives another graph than the portable one, so that the test above compares two."""
    made = (converted(case.source, adjoint) for _, case in CASES[adjoint]())
    portable = TABLES[adjoint].names[-1]
    assert any(hows[lowering.__name__].graph != hows[portable].graph for hows in made)
    assert all(f"\n    {word}: " in str(lowering.__doc__) for word in ("Where", "Why"))


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in open_pools()])
def test_open_pools_do_without_a_scatter(case: Case) -> None:
    built = gbprewrite.convert(case.source, METHODS, "seed", optimize_for="cpu")
    assert "ScatterElements" not in {n.op_type for n in built.graph.node}


@pytest.mark.parametrize("adjoint", TABLES)
def test_a_wrong_lowering_is_found(adjoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLES[adjoint]

    def wrong(op: Any, *operands: Any) -> Any:
        """Twice what it should be."""
        first, *more = made if isinstance(made := table.portable(op, *operands), tuple) else (made,)
        return (op.Add(first, first), *more) if more else op.Add(first, first)

    monkeypatch.setattr(table, "preferred", (wrong, *table.preferred))
    monkeypatch.setitem(TARGETS, "wrong", frozenset({"wrong"}))
    _, case = next(CASES[adjoint]())
    with pytest.raises(AssertionError, match="by wrong"):
        hold(adjoint, case)


@pytest.mark.parametrize("behind", NORMALISED)
@pytest.mark.parametrize("name", SCALED)
def test_numbers_for_each_channel_go_into_the_weights(name: str, behind: str) -> None:
    for how in ("cpu", "cuda"):
        built = gbprewrite.convert(normalised(name, behind), "gradient", "seed", optimize_for=how)
        goes = any(n.op_type == "Mul" and n.input[0] == "w" for n in built.graph.node)
        assert goes == NORMALISED[behind][1]


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

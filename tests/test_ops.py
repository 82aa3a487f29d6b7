"""The list of operators is the whole picture: each operator of the standard once, and every promise kept."""

from collections import Counter

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.backward import coverage
from gbprewrite.backward.coverage import REFUSED
from gbprewrite.backward.rules.table import VJP
from tests.small import model, normal, run

KINDS = {"rule", "body", "no gradient", "refused", "com.microsoft"}


def test_every_operator_of_the_standard_stands_in_one_list() -> None:
    rows = coverage.rule_table()
    assert {kind for *_, kind in rows} == KINDS
    assert Counter(name for name, *_ in rows).most_common(1)[0][1] == 1
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]
    listed = {name for name, _, kind in rows if kind != "com.microsoft"}
    assert {s.name for s in schemas if not s.deprecated} <= listed
    assert listed <= {s.name for s in schemas}
    assert all(text for _, text, _ in rows)


def test_the_kinds_are_what_they_say() -> None:
    kinds = {name: kind for name, _, kind in coverage.rule_table()}
    assert not set(REFUSED) & set(VJP)
    assert all((kinds.get(name) == "refused") == (name in REFUSED) for name in kinds)
    bodies = {name for name, kind in kinds.items() if kind == "body"}
    for name in bodies:
        schema = onnx.defs.get_schema(name)
        assert schema.has_function or schema.has_context_dependent_function


# A body of every kind of refused operator that can stand between floats: what is refused
BODIES = {
    "SequenceConstruct": "s = SequenceConstruct (x, x) y = SequenceAt (s, zero)",
    "ConcatFromSequence": "s = SequenceConstruct (x, x) y = ConcatFromSequence <axis = 0> (s)",
    "SplitToSequence": "s = SplitToSequence (x) y = SequenceAt (s, zero)",
    "GRU": "y, h = GRU <hidden_size = 2> (x, w, r)",
    "ConvInteger": """q, s, z = DynamicQuantizeLinear (x) c = ConvInteger (q, kernel, z)
        f = Cast <to = 1> (c) m = Mul (f, s) y = Add (m, x)""",
    "MatMulInteger": """q, s, z = DynamicQuantizeLinear (x) c = MatMulInteger (q, square, z)
        f = Cast <to = 1> (c) m = Mul (f, s) y = Add (m, x)""",
}
WEIGHTS = {
    "zero": np.array(0), "w": normal(1, 6, 4), "r": normal(1, 6, 2), "kernel": np.ones((3, 3, 1), np.uint8),
    "square": np.ones((4, 4), np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_refused_on_the_way_with_the_reason(name: str) -> None:
    """Also where a plain way leads beside it: its part of the gradient would be missing in silence."""
    body = BODIES[name]
    weights = {n: v for n, v in WEIGHTS.items() if f" {n}" in body}
    source = model(f"g (float[2, 3, 4] x) => (float[] y) {{ {body} }}", **weights)
    with pytest.raises(gbprewrite.UnsupportedOperators) as caught:
        gbprewrite.convert(source, "gradient", "seed")
    assert (name, REFUSED[name]) in [(o.operator, o.why) for o in caught.value.obstacles]


def test_an_operator_by_its_body() -> None:
    source = model("g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = MeanVarianceNormalization <axes = [2]> (x) }")
    x, seed = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    found = run(gbprewrite.convert(source, "gradient", "seed"), x=x, seed=seed)["x_gradient"]
    z, d = (x - x.mean(2, keepdims=True)) / x.std(2, keepdims=True), 4
    expected = (seed - seed.mean(2, keepdims=True) - z * (seed * z).sum(2, keepdims=True) / d) / x.std(2, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

"""No case of the standard's suites may be wrong or left untested, nor refused but two. (Two minutes: marked slow.)"""

import functools
from collections import Counter

import onnx
import pytest

from tests.conformance.suite import Case, Outcome, cases, judge

pytestmark = pytest.mark.slow

# AffineGrid written out: a Squeeze without axes behind a Split, whose rank ONNX's inference leaves open.
REFUSED = {
    "test_affine_grid_2d_align_corners_expanded": "MatMul: the rank of",
    "test_affine_grid_2d_expanded": "MatMul: the rank of",
}


@functools.cache
def outcome_of(name: str) -> Outcome:
    return judge(next(c for c in cases() if c.name == name))


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
def test_gradient(case: Case) -> None:
    outcome = outcome_of(case.name)
    if case.name in REFUSED:
        assert outcome.verdict == "refused"
        assert outcome.detail.startswith(REFUSED[case.name])
    else:
        assert outcome.verdict in ("proved", "not differentiable", "outside"), outcome


@pytest.mark.skipif(not onnx.__version__.startswith("1.23."), reason="the number of cases is that of onnx 1.23")
def test_enough_is_proved() -> None:
    """A change that moved cases from proved to another verdict would pass the test above in silence."""
    assert Counter(outcome_of(c.name).verdict for c in cases())["proved"] >= 1217

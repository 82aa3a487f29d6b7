"""No case of the standard's suites may be wrong, refused or left untested. (Two minutes: marked slow.)"""

import functools
from collections import Counter

import onnx
import pytest

from tests.conformance.suite import Case, Outcome, cases, judge

pytestmark = pytest.mark.slow


@functools.cache
def outcome_of(name: str) -> Outcome:
    return judge(next(c for c in cases() if c.name == name))


@pytest.mark.parametrize("case", cases(), ids=lambda c: c.name)
def test_gradient(case: Case) -> None:
    outcome = outcome_of(case.name)
    assert outcome.verdict in ("proved", "not differentiable", "outside"), outcome


@pytest.mark.skipif(not onnx.__version__.startswith("1.23."), reason="the number of cases is that of onnx 1.23")
def test_enough_is_proved() -> None:
    """A change that moved cases from proved to another verdict would pass the test above in silence."""
    assert Counter(outcome_of(c.name).verdict for c in cases())["proved"] >= 1219

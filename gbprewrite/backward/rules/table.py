"""One rule per operator: dy arrives, dx leaves.

    @vjp("Mul")
    def mul(op, dy, y, a, b):
        '''da = dy · b,  db = dy · a'''
        return op.Mul(dy, b), op.Mul(dy, a)

Inputs by position in the order of the operator's ONNX page, attributes as keywords (with the standard's defaults). A
rule gives one cotangent, or a tuple with one for each input; None says "no gradient to this input", a function of no
arguments is a cotangent that is computed only if somebody wants it. Broadcasting is undone by the reverse walk.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

Formula = Callable[..., Any]


class Rule(NamedTuple):
    """A formula, and whether it sees all outputs of the node (`dy` and `y` are tuples then)."""

    formula: Formula
    all_outputs: bool = False

    @property
    def text(self) -> str:
        """The formula's own words: the first line of its docstring."""
        return (inspect.getdoc(self.formula) or "").split("\n")[0]


VJP: dict[str, Rule] = {}


def vjp(*operators: str, all_outputs: bool = False) -> Callable[[Formula], Formula]:
    """Register a formula as the rule of these operators."""

    def register(formula: Formula) -> Formula:
        for operator in operators:
            VJP[operator] = Rule(formula, all_outputs)
        return formula

    return register


def decomposed(*operators: str) -> Callable[[Formula], Formula]:
    """Register an operator by what it computes: (op, *inputs, **attributes) → y in simpler operators.

    Its VJP is the reverse walk over them; of the recomputed values only those survive that the walk reads.
    """

    def register(compute: Formula) -> Formula:
        @functools.wraps(compute)
        def rule(op: Any, dy: Any, y: Any, *inputs: Any, **attributes: Any) -> Any:
            given = [t for t in inputs if t is not None]
            found = iter(op.pull_back(compute(op, *inputs, **attributes), dy, given))
            return tuple(None if t is None else next(found) for t in inputs)

        for operator in operators:
            VJP[operator] = Rule(rule)
        return compute

    return register

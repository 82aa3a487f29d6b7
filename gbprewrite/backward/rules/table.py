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
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

Formula = Callable[..., Any]


class Rule(NamedTuple):
    """A formula, and whether it sees all outputs of the node (`dy` and `y` are tuples then).

    `inner` is the operator's own formula where a combinator is laid over it.
    """

    formula: Formula
    all_outputs: bool = False
    inner: Formula | None = None

    @property
    def text(self) -> str:
        """The operator's own formula in words: the first line of its docstring."""
        return (inspect.getdoc(self.inner or self.formula) or "").split("\n")[0]

    @property
    def attributes(self) -> frozenset[str] | None:
        """The attributes that the operator's own formula takes; None when it takes any."""
        return _keywords(self.inner or self.formula)

    def under(self, combinator: Callable[[Formula], Formula]) -> "Rule":
        """The same rule with a combinator laid over it."""
        return self._replace(formula=combinator(self.formula), inner=self.inner or self.formula)


@functools.cache
def _keywords(formula: Formula) -> frozenset[str] | None:
    taken = inspect.signature(formula).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in taken):
        return None
    return frozenset(p.name for p in taken if p.kind is p.KEYWORD_ONLY)


def operator_of(node: gs.Node) -> str:
    """The name under which rules are kept: the operator's, behind `domain::` where that is not the standard's."""
    return node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}::{node.op}"


VJP: dict[str, Rule] = {}


def vjp(*operators: str, all_outputs: bool = False, replace: bool = False) -> Callable[[Formula], Formula]:
    """Register a formula as the rule of these operators; of another domain as "com.acme::Operator".

    Raises ValueError for an operator that has a rule, unless it is to be replaced, for every method of this process. A
    method that needs another rule brings a table of its own: `Method(..., rules=VJP | {"MaxPool": Rule(spread)})`.
    """

    def register(formula: Formula) -> Formula:
        _register(operators, Rule(formula, all_outputs), replace)
        return formula

    return register


def _register(operators: Iterable[str], rule: Rule, replace: bool) -> None:
    taken = [operator for operator in operators if operator in VJP and not replace]
    if taken:
        raise ValueError(
            f"{', '.join(taken)}: there is a rule for it already. Give the method a table of its own "
            "(rules=VJP | {...}), or say replace=True to replace the rule for every method of this process."
        )
    VJP.update(dict.fromkeys(operators, rule))


def decomposed(*operators: str, replace: bool = False) -> Callable[[Formula], Formula]:
    """Register an operator by what it computes: (op, *inputs, **attributes) → y in simpler operators.

    Its VJP is the reverse walk over them; of the recomputed values only those survive that the walk reads.
    """

    def register(compute: Formula) -> Formula:
        @functools.wraps(compute)
        def rule(op: Any, dy: Any, y: Any, *inputs: Any, **attributes: Any) -> Any:
            given = [t for t in inputs if t is not None]
            found = iter(op.pull_back(compute(op, *inputs, **attributes), dy, given))
            return tuple(None if t is None else next(found) for t in inputs)

        _register(operators, Rule(rule), replace)
        return compute

    return register

"""A method: one row that describes it, what it starts from, and the map that most of them make."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeAlias

import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.rules.table import VJP, Rule, operator_of
from gbprewrite.backward.units import Seeds
from gbprewrite.backward.walk import pull_back
from gbprewrite.errors import UsageError
from gbprewrite.methods.combinators import Combinator, gradient
from gbprewrite.methods.instances import Instances
from gbprewrite.methods.settings import Settings
from gbprewrite.model.tensors import Tensor
from gbprewrite.select.channels import FeatureLayer
from gbprewrite.select.selection import Selection


class Map(NamedTuple):
    """The maps of one input, one for each explained class (None: all zeros), and a tensor with a map's shape."""

    like: Tensor
    classes: list[Tensor | None]


class Work(NamedTuple):
    """What a method starts from.

    The graph, what is explained, the cotangents of the score, the rectifiers, the settings, Grad-CAM's layer for each
    input, inputs that the file gains ((kind, input) → tensor), and the model once more for another batch.
    """

    op: Builder
    graph: gs.Graph
    chosen: Selection
    seeds: Seeds
    marked: set[int]
    settings: Settings
    layers: Sequence[FeatureLayer]
    given: Mapping[tuple[str, str], gs.Variable]
    instances: Callable[[], Instances]

    def cotangents(
        self, method: "Method", selection: Selection | None = None, seeds: Sequence[Tensor] | None = None
    ) -> list[list[Tensor | None]]:
        """Of each input, one for each class, by the reverse walk of a method.

        From the score's cotangents, or from other `seeds` in its shape, to the inputs of this or another selection.
        """
        rule_of = partial(method.rule_of, marked=self.marked)
        dys = self.seeds.cotangents if seeds is None else seeds
        return pull_back(self.op, selection or self.chosen, rule_of, dys, method.walk or method.name)


MapMaker: TypeAlias = Callable[[Work, "Method"], list[Map]]


def walk(work: Work, method: "Method") -> list[Map]:
    """The cotangents themselves"""
    return [Map(x, found) for x, found in zip(work.chosen.inputs, work.cotangents(method), strict=True)]


@dataclass(frozen=True, eq=False)
class Method:
    """One method: what its reverse walk does, what it makes of the cotangents, and what must be said of it.

    Attributes:
        name: a Python identifier; maps are the outputs `<input>_<name>`.
        rectifier: the combinator laid over the rule of each rectifier: a function of a rule's formula to another one.
        maps: (work, method) → the map of each input; the cotangents themselves by default.
        signal: what arrives at a rectifier's rule in place of dy, in words, for reports and the file's record: such as
            "min(dy, 1)"; or, beginning with "dx =", what leaves it whatever its rule is.
        limit: what the map can't show, in one line that goes on from "<name> ...".
        title: its name in pictures.
        rules: operator → rule; a whole table in place of the gradient's, such as `VJP | {"MaxPool": Rule(spread)}`.
            (Inside an operator that has its rule by `decomposed`, the walk goes by the gradient's.)
        walk: the name of the reverse walk in the names of nodes; methods of the same walk share it, and its nodes.

    Raises UsageError for a name that is no identifier, and for a combinator without a signal.
    """

    name: str
    rectifier: Combinator = gradient
    maps: MapMaker = walk
    signal: str = ""
    limit: str = ""
    title: str = ""
    rules: Mapping[str, Rule] = field(default_factory=lambda: VJP, repr=False)
    walk: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise UsageError(
                f"Method {self.name!r}: its name becomes part of the names of outputs. Use letters, digits and _."
            )
        if self.rectifier is not gradient and not self.signal:
            raise UsageError(
                f"Method {self.name!r} has a combinator for rectifiers. Say with signal=... what arrives at their rule "
                "in place of dy, in words: the file's record keeps it."
            )

    @property
    def rectifies(self) -> bool:
        """Whether it treats rectifiers in a way of its own."""
        return self.rectifier is not gradient

    def rule_of(self, node: gs.Node, marked: set[int]) -> Rule:
        """The rule that one node meets; `marked` holds the id() of rectifiers."""
        rule = self.rules[operator_of(node)]
        if node.op == "If":
            inner = partial(self.rule_of, marked=marked)
            return rule.under(lambda formula: partial(formula, rule_of=inner))
        return rule.under(self.rectifier) if self.rectifies and id(node) in marked else rule

    def formula(self, node: gs.Node, marked: set[int]) -> str:
        """What it does at a node, in words."""
        operator = operator_of(node)
        plain = self.rules[operator].text if operator in self.rules else "no rule"
        if not self.rectifies or id(node) not in marked:
            return plain
        return self.signal if self.signal.startswith("dx =") else re.sub(r"\bdy\b", self.signal, plain)

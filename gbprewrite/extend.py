"""What a method of one's own is made of: a row, rules, combinators, and the builder that rules write with.

    from gbprewrite.extend import Method

    def clipped(rule):
        return lambda op, dy, *args, **attributes: rule(op, op.Min(dy, 1), *args, **attributes)

    CLIPPED = Method("clipped", clipped, signal="min(dy, 1)", limit="is a gradient that no unit passes on above 1")

`gbprewrite.convert("net.onnx", [CLIPPED, "guided"])` takes it, and so does `--method mypackage.maps:CLIPPED`.
"""

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.rules.table import VJP, Formula, Rule, decomposed, operator_of, vjp
from gbprewrite.methods.combinators import Combinator, deconvnet, gradient, guided, rectgrad
from gbprewrite.methods.work import Map, Method, Work, walk
from gbprewrite.model.tensors import Refused, Tensor

__all__ = [
    "VJP",
    "Builder",
    "Combinator",
    "Formula",
    "Map",
    "Method",
    "Refused",
    "Rule",
    "Tensor",
    "Work",
    "decomposed",
    "deconvnet",
    "gradient",
    "guided",
    "operator_of",
    "rectgrad",
    "vjp",
    "walk",
]

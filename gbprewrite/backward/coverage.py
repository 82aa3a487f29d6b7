"""Which operators have a rule, which have none, and why."""

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from gbprewrite.backward.rules.table import VJP, Rule, operator_of
from gbprewrite.errors import Obstacle, UnsupportedOperators
from gbprewrite.model.qlinear import QLINEAR
from gbprewrite.normalise.fused import FUSED
from gbprewrite.view.operators import NO_GRADIENT
from gbprewrite.view.paths import INTEGER_SUMS, computes_with_levels

WITHOUT = "the method's own table has no rule for it"


def known(tables: Iterable[Mapping[str, Rule]] = (VJP,)) -> frozenset[str]:
    """Operators that keep their nodes, since one of the tables has their rule or they have no gradient; of others the
    standard's body is looked at."""
    return NO_GRADIENT.union(*tables)


def check(nodes: Iterable[gs.Node], opset: int, tables: Iterable[Mapping[str, Rule]] = (VJP,)) -> None:
    """Raise UnsupportedOperators that lists every node for which one of the tables has no rule."""
    nodes = list(nodes)
    obstacles = [o for table in tables for o in missing(nodes, opset, table)]
    if obstacles:
        raise UnsupportedOperators(list(dict.fromkeys(obstacles)))


def missing(nodes: Iterable[gs.Node], opset: int, table: Mapping[str, Rule] = VJP) -> list[Obstacle]:
    """Every node without a rule in a table."""
    found = [n for n in nodes if operator_of(n) not in table or computes_with_levels(n)]
    lacking = {id(n) for n in found if operator_of(n) in VJP and operator_of(n) not in table}
    return [Obstacle(n.name, operator_of(n), WITHOUT if id(n) in lacking else why(n, opset)) for n in found]


REFUSED = {
    **dict.fromkeys(("Loop", "Scan"), "a loop; export the model unrolled"),
    "LinearAttention": "its body is a loop",
    **dict.fromkeys(("RNN", "GRU", "LSTM"), "a recurrent cell; these are not differentiated"),
    **dict.fromkeys(
        (
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
        ),
        "a sequence; export the model with tensors alone",
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        "an optional value; export the model with the value, or without",
    ),
    **dict.fromkeys(
        INTEGER_SUMS, "sums of integers whose scale stands elsewhere; use the model before it was quantised"
    ),
    **dict.fromkeys(
        ("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        "strings are no real numbers",
    ),
}


def why(node: gs.Node, opset: int) -> str:
    """The reason for which an operator has no rule."""
    if node.op in REFUSED:
        return REFUSED[node.op]
    if node.op in VJP and node.domain in (None, "", "ai.onnx"):
        return "it computes with the levels of quantised numbers; dequantise before it, or use the float model"
    if node.domain not in (None, "", "ai.onnx"):
        return f"a custom operator of the domain {node.domain!r}"
    try:
        onnx.defs.get_schema(node.op, opset)
    except onnx.defs.SchemaError:
        return "no current opset has this operator; it was removed from ONNX, so the result could not run"
    return "no rule yet"


def rule_table() -> list[tuple[str, str, str]]:
    """(operator, formula or reason, kind) for every operator of ai.onnx, and those of onnxruntime that are understood.

    The kinds: "rule"; "body", for what the standard defines by simpler operators; "no gradient"; "refused"; and
    "com.microsoft".
    """
    schemas: list[Any] = [s for s in onnx.defs.get_all_schemas() if s.domain == ""]  # of the newest opset
    standard = {s.name for s in schemas}
    own = {name for name in VJP if name in standard}
    rows = [(name, VJP[name].text, "rule") for name in own]
    rows.append(("Upsample", "read as the Resize that took its place", "rule"))
    rows += [(name, "its output carries no gradient", "no gradient") for name in NO_GRADIENT]
    rows += [(name, why, "refused") for name, why in REFUSED.items()]
    named = {name for name, *_ in rows}
    bodies = {s.name for s in schemas if s.has_function or s.has_context_dependent_function}
    rows += [(name, "by the body that the standard gives it", "body") for name in bodies - named]
    rows += [(f"com.microsoft::{name}", VJP[name].text, "com.microsoft") for name in QLINEAR if name not in standard]
    rows += [(f"com.microsoft::{name}", "by the standard's operators that it fuses", "com.microsoft") for name in FUSED]
    return sorted(rows)

"""What a model is, and which rule each nonlinearity and pool meets: what inspect finds, and how its rows read."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnx import ModelProto

from gbprewrite.backward import coverage
from gbprewrite.backward.rules.table import VJP
from gbprewrite.errors import Obstacle
from gbprewrite.graft import record as report
from gbprewrite.graft.record import Record, read_record, value_row
from gbprewrite.graft.restore import blaming, load, restore
from gbprewrite.methods.asked import Asked, methods_of
from gbprewrite.methods.work import Method
from gbprewrite.model.file import opset_of
from gbprewrite.model.input_shapes import Shapes, fix
from gbprewrite.model.messages import elements
from gbprewrite.normalise.dialect import normalise
from gbprewrite.select import rectifiers, starts
from gbprewrite.view import paths
from gbprewrite.view.forward import view

Row = dict[str, Any]
LISTED = ("gradient", "guided", "deconvnet", "rectgrad")  # methods that treat rectifiers in different ways


@dataclass(frozen=True)
class Inspection:
    """What a model is, and what each method would do to it; `to_json` gives plain types."""

    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    opset: int
    ir_version: int
    producer: str
    nodes: int
    parameters: int
    nonlinearities: list[dict[str, Any]]
    pools: list[dict[str, Any]]
    missing: list[Obstacle]
    record: Record | None

    def to_json(self) -> dict[str, Any]:
        """The same as dictionaries, lists, strings and numbers."""
        return {**asdict(self), "missing": [o._asdict() for o in self.missing]}


def describe(model: ModelProto) -> dict[str, Any]:
    """The plain facts of a file, before any work on it."""
    weights = {t.name for t in model.graph.initializer}
    return {
        "inputs": [value_row(i) for i in model.graph.input if i.name not in weights],
        "outputs": [value_row(o) for o in model.graph.output],
        "opset": opset_of(model),
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "nodes": len(model.graph.node),
        "parameters": parameters(model),
        "record": read_record(model),
    }


def inspect(
    model: str | os.PathLike[str] | ModelProto,
    *,
    input_shapes: Shapes | None = None,
    methods: Asked | Sequence[Asked] = LISTED,
) -> Inspection:
    """What a model is, and which rule each nonlinearity and pool meets under each method.

    Of a converted model, the source part is looked at and `record` says what was done to it. `input_shapes` is as for
    `convert`; `methods` are those whose rules are listed, by name or as objects. Raises ModelError, and UsageError for
    shapes that contradict the model or an unknown method.
    """
    with blaming(model):
        given = load(model, replace=None)
        fix(given, input_shapes or {})
        return _inspected(given, methods_of(methods))


def _inspected(given: ModelProto, methods: Mapping[str, Method]) -> Inspection:
    facts = describe(given)
    if report.holds_only_maps(facts["record"]):
        told = facts["record"]
        treated = [*told["rectifiers"], *told["activations"]]
        return Inspection(**facts, nonlinearities=treated, pools=told["pools"], missing=[])
    source = restore(given)
    facts["parameters"] = parameters(source)  # the conversion's own constants are none of the model's
    tables = [VJP, *(m.rules for m in methods.values())]
    normal = normalise(source, coverage.known(tables))
    graph = view(normal, coverage.known(tables))
    inputs = starts.input_tensors(graph, normal, optional=True)
    on_the_way = paths.path(graph, inputs, *graph.outputs)
    nodes = list(paths.with_branches(on_the_way, inputs))
    found = [n for n in map(rectifiers.nonlinearity, nodes) if n]
    return Inspection(
        **facts,
        nonlinearities=report.treatments(found, methods, rectifiers.rectified(found)),
        pools=report.pools(nodes),
        missing=coverage.missing(nodes, opset_of(normal)),
    )


def parameters(model: ModelProto) -> int:
    """Number of weights, in initializers and in Constant nodes."""
    constants = (a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t"))
    sparse = model.graph.sparse_initializer
    return sum(elements(t.dims) for t in [*model.graph.initializer, *constants, *sparse])


def value_in_words(row: Row) -> str:
    """`name float32 [N, 3, 224, 224]`"""
    shape = "of unknown rank" if row["shape"] is None else f"[{', '.join(map(str, row['shape']))}]"
    return f"{row['name']} {row['dtype']} {shape}"


def rule_rows(nonlinearities: Sequence[Row]) -> Iterator[list[Any]]:
    """For each kind of nonlinearity a row for each method, or one row where all methods agree."""
    for count, kind, role, rules, nodes in alike(
        nonlinearities, lambda n: (n["kind"], n["role"], tuple(n["rules"].items()))
    ):
        (first, rule), *others = rules if len({rule for _, rule in rules}) > 1 else [("all", rules[0][1])]
        yield [count, kind, role, first, rule, nodes]
        yield from (["", "", "", method, rule, ""] for method, rule in others)


def alike(rows: Sequence[Row], key: Any) -> list[list[Any]]:
    """Rows of the same key as one: how many, the key, and the first node."""
    groups: dict[Any, list[str]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row["node"])
    return [[len(nodes), *parts, _some(nodes)] for parts, nodes in groups.items()]


def _some(nodes: Sequence[str]) -> str:
    return f"{nodes[0]} and {len(nodes) - 1} more" if len(nodes) > 1 else nodes[0]

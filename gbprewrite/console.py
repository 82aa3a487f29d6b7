"""What the command line prints: reports and tables, by rich."""

import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from onnx import ModelProto
from rich import box
from rich.console import Console
from rich.table import Table

from gbprewrite import report
from gbprewrite.report import Inspection
from gbprewrite.runtime.explainer import Explainer
from gbprewrite.verify import Verification

PIPE_WIDTH = 100  # of a line that no terminal limits
OWN_NAMES = ("explained_index_name", "target_name", "seed_name")  # in the record: what a file gains besides its maps
NO_FILE_NAME = r"[^\w.-]"  # characters of an input's name that are better kept out of a file's name

Row = dict[str, Any]


def console() -> Console:
    """Where to print; brackets in node names are no markup."""
    plain = Console(markup=False, highlight=False, emoji=False)
    if not plain.is_terminal and "COLUMNS" not in os.environ:
        plain.width = PIPE_WIDTH
    return plain


def print_pairs(pairs: Mapping[str, str | Iterable[str]]) -> None:
    """A heading and its lines, for each pair; empty ones are left out."""
    width = max(map(len, pairs))
    for heading, text in pairs.items():
        for i, line in enumerate([text] if isinstance(text, str) else text):
            console().print(f"{'' if i else heading:<{width}}  {line}", soft_wrap=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table under its title; nothing when it has no rows."""
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(str, row))
    if not table.row_count:
        return
    rich = console()
    with rich.capture() as printed:
        rich.print(table)
    lines = ["", *([title, ""] if title else []), *printed.get().splitlines()]
    print("\n".join(line.rstrip() for line in lines))  # rich fills every line up with blanks


def conversion_facts(source: Path, path: Path, model: ModelProto) -> Row:
    """What `convert` reports, as plain types; the file holds more: see `gbprewrite inspect`."""
    record = report.read_record(model)
    assert record is not None
    gained = {m["output"] for m in record["maps"]} | {record[name] for name in OWN_NAMES}
    weights = {t.name for t in model.graph.initializer}
    inputs = [report.value_row(v) for v in model.graph.input if v.name not in weights]
    outputs = [report.value_row(v) for v in model.graph.output]
    return {
        "source": str(source),
        "path": str(path),
        **{key: record[key] for key in ("methods", "target", "output", "score", "stepped_over", "class_axis")},
        "nodes": {"before": record["source"]["nodes"], "after": record["nodes"], "added": record["added"]["nodes"]},
        "opset": {"before": record["source"]["opset"], "after": record["opset"]},
        "rectifiers": dict(Counter(row["kind"] for row in record["rectifiers"])),
        "left_plain": dict(Counter(f"{row['kind']} ({row['role']})" for row in record["activations"])),
        "pools": dict(Counter(row["operator"] for row in record["pools"])),
        "new_inputs": [row for row in inputs if row["name"] in gained],
        "new_outputs": [row for row in outputs if row["name"] in gained],
        "bytes": {"before": _bytes(source), "after": _bytes(path)},
        "flaw": record["flaw"],
        "next": _next(path, inputs),
    }


def _next(path: Path, inputs: Sequence[Row]) -> list[str]:
    """Commands that a new file is good for; photographs only where the one input may be one."""
    file = quote(str(path))
    names = [row["name"] for row in inputs]
    arrays = [quote(f"{name}={re.sub(NO_FILE_NAME, '_', name)}.npy") for name in names] if len(names) > 1 else ["x.npy"]
    is_photo = len(inputs) == 1 and (inputs[0]["shape"] is None or len(inputs[0]["shape"]) == 4)
    return [
        f"gbprewrite verify {file}",
        *([f"gbprewrite explain {file} PHOTO.png"] if is_photo else []),
        f"gbprewrite run {file} {' '.join(f'--input {array}' for array in arrays)}",
    ]


def print_conversion(facts: Row) -> None:
    """The report at the end of `convert`."""
    nodes, opset, size = facts["nodes"], facts["opset"], facts["bytes"]
    change = f"{100 * (size['after'] / size['before'] - 1):+.1f} %"
    raised = f", opset {opset['before']} to {opset['after']}" if opset["before"] != opset["after"] else ""
    rectified = "keep their derivative" if facts["methods"] == ["gradient"] else "rewritten"
    print_pairs(
        {
            "wrote": facts["path"],
            "size": f"{megabytes(size['after'])}, the source has {megabytes(size['before'])} ({change})",
            "explains": [_score_in_words(facts), f"target {facts['target']}, methods {', '.join(facts['methods'])}"],
            "nodes": f"{nodes['before']} before, {nodes['after']} after{raised}",
            "rectifiers": f"{_counts(facts['rectifiers'])} {rectified}",
            "left plain": _counts(facts["left_plain"]),
            "pools": _counts(facts["pools"]),
            "new inputs": map(value_in_words, facts["new_inputs"]),
            "new outputs": map(value_in_words, facts["new_outputs"]),
            "flaw": _flaw_in_words(facts["flaw"]),
            "next": facts["next"],
        }
    )


def print_inspection(path: Path, found: Inspection) -> None:
    """Everything that `inspect` tells."""
    print_pairs(
        {
            "file": f"{path}, {megabytes(_bytes(path))}",
            "producer": found.producer or "not named",
            "opset": f"{found.opset}, IR {found.ir_version}",
            "nodes": f"{found.nodes}, {found.parameters:,} parameters",
            "inputs": map(value_in_words, found.inputs),
            "outputs": map(value_in_words, found.outputs),
            **(_record_in_words(found.record) if found.record else {}),
        }
    )
    columns = ["", "kind", "role", "method", "rule", "nodes"]
    print_table("nonlinearities, and the rule that each meets", columns, _rule_rows(found.nonlinearities))
    print_table("pools", ["", "operator", "rule", "nodes"], _alike(found.pools, lambda p: (p["operator"], p["rule"])))
    missing = [{"node": o.node, "row": (o.operator, o.why)} for o in found.missing]
    print_table(
        "no rule: what lies before these can't be explained",
        ["", "operator", "why", "nodes"],
        _alike(missing, lambda o: o["row"]),
    )
    console().print()
    if not found.nonlinearities:
        console().print("no nonlinearity lies between a float input and an output")
    console().print(f"every node by name: gbprewrite inspect {quote(str(path))} --json", soft_wrap=True)


def print_operators(rows: Sequence[Row]) -> None:
    """The table of `ops`: the operators with a rule, then those that carry no gradient."""
    ruled = [(row["operator"], row["formula"]) for row in rows if row["kind"] == "rule"]
    others = [row["operator"] for row in rows if row["kind"] != "rule"]
    listed = textwrap.wrap(", ".join(others), console().width - len("no gradient  "))
    print_pairs({"rules": f"of {len(ruled)} operators, listed below", "no gradient": listed})
    print_table("", ["operator", "rule"], ruled)


def run_facts(path: Path, named: Mapping[str, Any], explainer: Explainer) -> Row:
    """What `run` reports: name, dtype, shape and range of each array, and where it ran."""
    return {
        "path": str(path),
        "provider": explainer.provider,
        "provider_note": explainer.provider_note,
        "arrays": [
            {"name": name, "dtype": str(a.dtype), "shape": list(a.shape), **_range(a)}
            for name, a in ((name, np.asarray(value)) for name, value in named.items())
        ],
    }


def print_run(facts: Row) -> None:
    """The report at the end of `run`."""
    print_pairs({"wrote": facts["path"], "ran on": provider_in_words(facts["provider"], facts["provider_note"])})
    rows = [
        (a["name"], a["dtype"], a["shape"], *("" if a[end] is None else f"{a[end]:.4g}" for end in ("min", "max")))
        for a in facts["arrays"]
    ]
    print_table("", ["array", "dtype", "shape", "min", "max"], rows)


def print_verification(path: Path, found: Verification) -> None:
    """The table of `verify`, a note under each check, and the verdict."""
    rows = [(check.name, check.status, *map(_number, (check.error, check.limit))) for check in found.checks]
    print_table("", ["check", "result", "error", "limit"], rows)
    notes: dict[str, list[str]] = {}
    for check in found.checks:
        notes.setdefault(check.note, []).append(check.name)
    for note, names in notes.items():
        console().print(f"{', '.join(names)}: {note}", soft_wrap=True)
    counts = Counter(check.status for check in found.checks)
    inputs = ", ".join(f"{name} {shape}" for name, shape in found.inputs.items())
    console().print()
    print_pairs({"file": str(path), "ran on": found.provider, "inputs": inputs, "checks": _counts(counts)})


def provider_in_words(provider: str, note: str) -> str:
    """`cpu (CUDA did not load)`"""
    return f"{provider} ({note})" if note else provider


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if value.is_integer() else f"{value:.1e}"


def _range(array: Any) -> Row:
    known = array.size and array.dtype.kind in "iuf" and np.isfinite(array).any()
    finite = array[np.isfinite(array)] if known else array
    return {"min": float(finite.min()) if known else None, "max": float(finite.max()) if known else None}


def value_in_words(row: Row) -> str:
    """`name float32 [N, 3, 224, 224]`"""
    shape = "of unknown rank" if row["shape"] is None else f"[{', '.join(map(str, row['shape']))}]"
    return f"{row['name']} {row['dtype']} {shape}"


def megabytes(size: int) -> str:
    """A size that reads well."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _record_in_words(record: report.Record) -> dict[str, str | list[str]]:
    added, source = record["added"], record["source"]
    return {
        "converted": [
            f"by gbprewrite {record['version']}: methods {', '.join(record['methods'])}, target {record['target']}",
            f"{added['nodes']} of the nodes were added; the source had {source['nodes']} in opset {source['opset']}",
            f"source sha256 {source['sha256']}",
        ],
        "explains": _score_in_words(record),
        "maps": [f"{m['output']} ({m['method']} of {m['input']})" for m in record["maps"]],
        "rectified": _counts(Counter(row["kind"] for row in record["rectifiers"])),
        "flaw": _flaw_in_words(record.get("flaw")),
    }


def _flaw_in_words(flaw: str | None) -> list[str]:
    return [flaw] if flaw else []


def _rule_rows(nonlinearities: Sequence[Row]) -> Iterator[list[Any]]:
    """For each kind of nonlinearity a row for each method, or one row where all methods agree."""
    for count, kind, role, rules, nodes in _alike(
        nonlinearities, lambda n: (n["kind"], n["role"], tuple(n["rules"].items()))
    ):
        (first, rule), *others = rules if len({rule for _, rule in rules}) > 1 else [("all", rules[0][1])]
        yield [count, kind, role, first, rule, nodes]
        yield from (["", "", "", method, rule, ""] for method, rule in others)


def _score_in_words(facts: Mapping[str, Any]) -> str:
    axis = f"class axis {facts['class_axis']}"
    if facts["score"] == facts["output"]:
        return f"{facts['score']}, {axis}"
    return f"{facts['score']}, the score before {', '.join(facts['stepped_over'])} of {facts['output']}, {axis}"


def _alike(rows: Sequence[Row], key: Any) -> list[list[Any]]:
    """Rows of the same key as one: how many, the key, and the first node."""
    groups: dict[Any, list[str]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row["node"])
    return [[len(nodes), *parts, _some(nodes)] for parts, nodes in groups.items()]


def _some(nodes: Sequence[str]) -> str:
    return f"{nodes[0]} and {len(nodes) - 1} more" if len(nodes) > 1 else nodes[0]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _bytes(path: Path) -> int:
    """Size on disk, with the external data that stands beside it under the usual name."""
    beside = Path(f"{path}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)

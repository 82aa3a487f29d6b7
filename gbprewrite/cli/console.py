"""What the command line prints: reports and tables, by rich."""

import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from onnx import ModelProto
from rich import box
from rich.console import Console
from rich.table import Table

from gbprewrite.checks.verify import Verification
from gbprewrite.cli.printing import say, show
from gbprewrite.graft import record as report
from gbprewrite.inspect import Inspection, Row, alike, rule_rows, value_in_words
from gbprewrite.layers import Layer
from gbprewrite.methods.table import METHODS
from gbprewrite.model import file as modelfile
from gbprewrite.plaintext import plain
from gbprewrite.runtime.explainer import Explainer
from gbprewrite.runtime.session import provider_in_words
from gbprewrite.select.class_axis import in_words

UNFOLDED = 10_000
PIPE_WIDTH = 100  # of a line that no terminal limits
NO_FILE_NAME = r"[^\w.-]"  # characters of an input's name that are better kept out of a file's name


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
            say(f"{'' if i else heading:<{width}}  {line}")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], fold: bool = True) -> None:
    """A table under its title; nothing when it has no rows. Without `fold`, lines are as long as their texts."""
    table = Table(*map(plain, columns), box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(*map(plain, row))
    if not table.row_count:
        return
    rich = console()
    if not fold:
        rich.width = rich.measure(table, options=rich.options.update(width=UNFOLDED)).maximum
    with rich.capture() as printed:
        rich.print(table)
    lines = ["", *([plain(title), ""] if title else []), *printed.get().splitlines()]
    show(*(line.rstrip() for line in lines))  # rich fills every line up with blanks, and styles some on a terminal


def conversion_facts(source: Path, path: Path, model: ModelProto) -> Row:
    """What `convert` reports, as plain types; the file holds more: see `gbprewrite inspect`."""
    record = report.read_record(model)
    assert record is not None
    gained = {m["output"] for m in record["maps"]} | {record["explained_index_name"], *report.given_names(record)}
    gained |= {record["embedded"]["name"]} if record["embedded"] else set()
    drawn = {row["name"] for row in record["given"] if row["kind"] == "noise"}  # unless it is given
    weights = {t.name for t in model.graph.initializer}
    inputs = [report.value_row(v) for v in model.graph.input if v.name not in weights]
    outputs = [report.value_row(v) for v in model.graph.output]
    return {
        "source": str(source),
        "path": str(path),
        **{key: record[key] for key in ("methods", "target", "output", "score", "stepped_over")},
        **{key: record[key] for key in ("class_axis", "class_axis_reason", "notes")},
        "nodes": {"before": record["source"]["nodes"], "after": record["nodes"], "added": record["added"]["nodes"]},
        "opset": {"before": record["source"]["opset"], "after": record["opset"]},
        "rectifiers": dict(Counter(row["kind"] for row in record["rectifiers"])),
        "left_plain": dict(Counter(f"{row['kind']} ({row['role']})" for row in record["activations"])),
        "pools": dict(Counter(row["operator"] for row in record["pools"])),
        "new_inputs": [row for row in inputs if row["name"] in gained],
        "new_outputs": [row for row in outputs if row["name"] in gained],
        "bytes": {"before": _bytes(modelfile.files_of(source)), "after": _bytes(modelfile.places(path, model))},
        "flaw": record["flaw"],
        "limits": [f"{name} {limit}" for name, limit in report.limits(record).items()],
        "head": record["head"],
        "preprocessing": record["preprocessing"],
        **{key: record[key] for key in ("cam_layer", "cam_layers")},
        "next": _next(path, source, record, [row for row in inputs if row["name"] not in drawn]),
    }


def _photos_in_words(made: Row | None) -> dict[str, Any]:
    """What photographs go through inside the file: the formula, what the model says, and guesses."""
    if made is None:
        return {}
    return {"photographs": made["text"], "model says": made["facts"], "note": made["guesses"]}


def _next(path: Path, source: Path, record: report.Record, inputs: Sequence[Row]) -> list[str]:
    """Commands that a new file is good for; photographs only where the one input may be one."""
    file = quote(str(path))
    names = [row["name"] for row in inputs]
    arrays = [quote(f"{name}={re.sub(NO_FILE_NAME, '_', name)}.npy") for name in names] if len(names) > 1 else ["x.npy"]
    drawn = any(m["form"] == "raw" for m in record["maps"])  # explain makes its own pictures
    is_photo = drawn and len(inputs) == 1 and (inputs[0]["shape"] is None or len(inputs[0]["shape"]) == 4)
    return [
        f"gbprewrite verify {file}" + (f" --source {quote(str(source))}" if report.holds_only_maps(record) else ""),
        *([f"gbprewrite explain {file} PHOTO.png"] if is_photo else []),
        f"gbprewrite run {file} {' '.join(f'--input {array}' for array in arrays)}",
    ]


def print_conversion(facts: Row) -> None:
    """The report at the end of `convert`."""
    nodes, opset, size = facts["nodes"], facts["opset"], facts["bytes"]
    change = f"{100 * (size['after'] / size['before'] - 1):+.1f} %"
    raised = f", opset {opset['before']} to {opset['after']}" if opset["before"] != opset["after"] else ""
    plain = all(m in METHODS and not METHODS[m].rectifies for m in facts["methods"])
    rectified = "keep their derivative" if plain else "rewritten"
    print_pairs(
        {
            "wrote": facts["path"],
            "size": f"{megabytes(size['after'])}, the source has {megabytes(size['before'])} ({change})",
            "explains": [*_score_in_words(facts), f"target {facts['target']}, methods {', '.join(facts['methods'])}"],
            "nodes": f"{nodes['before']} before, {nodes['after']} after{raised}",
            "cam layer": report.cam_text(facts),
            "rectifiers": f"{_counts(facts['rectifiers'])} {rectified}",
            "left plain": _counts(facts["left_plain"]),
            "pools": _counts(facts["pools"]),
            "new inputs": map(value_in_words, facts["new_inputs"]),
            "new outputs": map(value_in_words, facts["new_outputs"]),
            **_photos_in_words(facts["preprocessing"]),
            "note ": facts["notes"],
            "flaw": _flaw_in_words(facts["flaw"]),
            "not loaded": facts["load_note"] or [],
            "limits": facts["limits"],
            "next": facts["next"],
        }
    )


def print_inspection(path: Path, found: Inspection) -> None:
    """Everything that `inspect` tells."""
    print_pairs(
        {
            "file": f"{path}, {megabytes(_bytes(modelfile.files_of(path)))}",
            "producer": found.producer or "not named",
            "opset": f"{found.opset}, IR {found.ir_version}",
            "nodes": f"{found.nodes}, {found.parameters:,} parameters",
            "inputs": map(value_in_words, found.inputs),
            "outputs": map(value_in_words, found.outputs),
            **(_record_in_words(found.record) if found.record else {}),
        }
    )
    columns = ["", "kind", "role", "method", "rule", "nodes"]
    print_table("nonlinearities, and the rule that each meets", columns, rule_rows(found.nonlinearities))
    print_table("pools", ["", "operator", "rule", "nodes"], alike(found.pools, lambda p: (p["operator"], p["rule"])))
    missing = [{"node": o.node, "row": (o.operator, o.why)} for o in found.missing]
    print_table(
        "no rule: what lies before these can't be explained",
        ["", "operator", "why", "nodes"],
        alike(missing, lambda o: o["row"]),
    )
    say("")
    if not found.nonlinearities:
        say("no nonlinearity lies between a float input and an output")
    say(f"every node by name: gbprewrite inspect {quote(str(path))} --json")


def print_operators(rows: Sequence[Row]) -> None:
    """The lists of `ops`: the operators by name, then the rules and the reasons of refusals."""
    named: dict[str, list[str]] = {}
    for row in rows:
        named.setdefault(row["kind"], []).append(row["operator"].removeprefix("com.microsoft::"))
    headings = {
        "rule": f"of {len(named['rule'])} operators, listed below",
        **{kind: ", ".join(named[kind]) for kind in ("body", "com.microsoft", "no gradient")},
        "refused": f"{len(named['refused'])} operators, listed at the end",
    }
    width = console().width - max(map(len, headings)) - 2
    print_pairs({kind: textwrap.wrap(text, width) for kind, text in headings.items()})
    print_table("", ["operator", "rule"], [(r["operator"], r["formula"]) for r in rows if r["kind"] == "rule"])
    refused: dict[str, list[str]] = {}
    for row in rows:
        if row["kind"] == "refused":
            refused.setdefault(row["formula"], []).append(row["operator"])
    lines = [(", ".join(operators), why) for why, operators in refused.items()]
    print_table("refused on the way from the score to the input", ["operators", "why"], lines)


def run_facts(
    path: Path, named: Mapping[str, Any], explainer: Explainer, keys: Mapping[str, str], left: Sequence[str]
) -> Row:
    """What `run` reports: name, dtype, shape and range of each array, its key where that is another, and where it ran.

    `left` are the outputs that are no arrays.
    """
    return {
        "path": str(path),
        "provider": explainer.provider,
        "provider_note": explainer.provider_note,
        **({"left_out": list(left)} if left else {}),
        "arrays": [_array_row(name, np.asarray(value), keys[name]) for name, value in named.items()],
    }


def _array_row(name: str, array: Any, key: str) -> Row:
    renamed = {"key": key} if key != name else {}
    return {"name": name, **renamed, "dtype": str(array.dtype), "shape": list(array.shape), **_range(array)}


def print_run(facts: Row) -> None:
    """The report at the end of `run`."""
    renamed = [f"{a['name']} is kept as {a['key']}" for a in facts["arrays"] if "key" in a]
    left = [f"{name}: a sequence or a map, no array" for name in facts.get("left_out", ())]
    print_pairs(
        {
            "wrote": facts["path"],
            "ran on": provider_in_words(facts["provider"], facts["provider_note"]),
            **({"keys": renamed} if renamed else {}),
            **({"left out": left} if left else {}),
        }
    )
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
        say(f"{', '.join(names)}: {note}")
    counts = Counter(check.status for check in found.checks)
    inputs = ", ".join(f"{name} {shape}" for name, shape in found.inputs.items())
    say("")
    print_pairs(
        {
            "file": str(path),
            "ran on": found.provider,
            "inputs": inputs,
            "checks": _counts(counts),
            "verdict": found.verdict,
        }
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}" if value.is_integer() else f"{value:.1e}"


def _range(array: Any) -> Row:
    known = array.size and array.dtype.kind in "iuf" and np.isfinite(array).any()
    finite = array[np.isfinite(array)] if known else array
    return {"min": float(finite.min()) if known else None, "max": float(finite.max()) if known else None}


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
        "cam layer": report.cam_text(record),
        "rectified": _counts(Counter(row["kind"] for row in record["rectifiers"])),
        "flaw": _flaw_in_words(record.get("flaw")),
    }


def _flaw_in_words(flaw: str | None) -> list[str]:
    return [flaw] if flaw else []


def _score_in_words(facts: Mapping[str, Any]) -> list[str]:
    """The score, and its class axis with the reason for it."""
    axis = in_words(facts["class_axis"], facts["class_axis_reason"])
    if facts["score"] == facts["output"]:
        return [facts["score"], axis]
    return [f"{facts['score']}, the score before {', '.join(facts['stepped_over'])} of {facts['output']}", axis]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"


def _bytes(paths: Iterable[Path]) -> int:
    """Size on disk of a model with its external data."""
    return sum(path.stat().st_size for path in paths)


SANITY_ROWS, SANITY_IMAGES = 12, 4  # that fit on a screen
SANITY_TITLES = {
    "cascading": "rank correlation with the trained network's maps, all layers random from the score down to",
    "independent": "the same, one layer random",
}


def print_sanity(facts: Row) -> None:
    """The report at the end of `sanity`: rank correlations at some of the layers, and the class sensitivity."""
    explained = [f"{_class_in_words(row['explained'])}: {row['image']}" for row in facts["images"]]
    print_pairs(
        {
            "wrote": [path for path in (facts["picture"], facts["csv"]) if path],
            "ran on": provider_in_words(facts["provider"], facts["provider_note"]),
            "input": facts["preprocessing"]["text"],
            "note": facts["preprocessing"]["guesses"],
            "explained": explained,
            "layers": f"{len(facts['layers'])} with weights, seed {facts['seed']}, {facts['draws']} draw(s)",
            "undefined": _undefined_in_words(facts["comparisons"]),
            "limits": [f"{name} {limit}" for name, limit in facts["limits"].items()],
        }
    )
    methods = facts["methods"]
    for randomisation, title in SANITY_TITLES.items():
        curve = facts["curves"][randomisation]
        kept = sorted(set(np.linspace(0, len(curve) - 1, SANITY_ROWS).round().astype(int).tolist()))
        rows = [
            [curve[i]["layer"], *(_similarity(curve[i][m][s]) for m in methods for s in ("spearman_abs", "spearman"))]
            for i in kept
        ]
        print_table(title, ["layer", *(name for m in methods for name in (f"{m} |map|", "signed"))], rows)
    scores, photos = facts["class_sensitivity"], facts["images"][:SANITY_IMAGES]
    print_table(
        f"class sensitivity: 1 - |rank correlation| between the maps of the {scores['classes']} highest classes, mean",
        ["method", "all images", *(Path(row["image"]).name for row in photos)],
        [
            [m, _similarity(scores[m], 4), *(_similarity(row["class_sensitivity"][m], 4) for row in photos)]
            for m in methods
        ],
    )


def _similarity(value: float | None, digits: int = 3) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _undefined_in_words(comparisons: Sequence[Row]) -> list[str]:
    count = sum(row["spearman"] is None for row in comparisons)
    said = f"{count} of {len(comparisons)} comparisons: a map is constant or zero; the means leave them out"
    return [said] if count else []


def _class_in_words(explained: Row) -> str:
    name = explained["label"] or f"class {explained['index'][0]}"
    return name if explained["value"] is None else f"{name}, {explained['meaning']} {explained['value']:.3f}"


def print_likeness(methods: Sequence[str], likeness: Sequence[Row]) -> None:
    """The table of `compare`: how alike the maps of each two methods are."""
    known = {frozenset(row["methods"]): _similarity(row["correlation"], 2) for row in likeness}
    rows = [[m, *(known.get(frozenset((m, other)), "") for other in methods[:-1])] for m in methods[1:]]
    kept = [[row[0], *(v if i <= k else "" for i, v in enumerate(row[1:]))] for k, row in enumerate(rows)]
    title = "correlation of the maps (largest channel of |map|), mean over images and classes"
    print_table(title, ["", *methods[:-1]], kept, fold=False)


def print_layers(found: Sequence[Layer]) -> None:
    """The table of `layers`."""
    rows = [(layer.name, layer.operator, f"[{', '.join(map(str, layer.shape))}]", layer.node) for layer in found]
    print_table("", ["layer", "operator", "shape", "node"], rows, fold=False)  # names are there to be copied


def print_top(facts: Row) -> None:
    """The report at the end of `top`: for each channel its strongest image."""
    print_pairs(
        {
            "wrote": facts["sheet"],
            "shows": f"{facts['method']} of {facts['layer']}, {facts['images'] - len(facts['failed'])} images searched",
            "ran on": provider_in_words(facts["provider"], facts["provider_note"]),
            "input": facts["preprocessing"]["text"],
            "note": facts["preprocessing"]["guesses"],
            "limits": f"{facts['method']} {METHODS[facts['method']].limit}",
        }
    )
    rows = [
        (
            *(channel["channel"], len(channel["top"])),
            *((f"{best['activation']:.4g}", ",".join(map(str, best["unit"])), Path(best["image"]).name)),
        )
        for channel in facts["channels"]
        for best in channel["top"][:1]
    ]
    print_table("", ["channel", "images", "activation", "at unit", "strongest in"], rows)
    silent = [str(channel["channel"]) for channel in facts["channels"] if not channel["top"]]
    if silent:
        say("", f"no image excites channel {', '.join(silent)}")

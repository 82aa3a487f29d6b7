"""Results as a JSON file, as Markdown tables, and on the terminal."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.bench.comparison import Row
from tests.bench.contenders import FORWARD, OURS, PEERS

SAME = {"float32": 0.999, "tf32": 0.99, "float16": 0.99}  # cosine from which on two maps count as the same
DIFFERENT = "not the same map as the others': see its cosine"
DETAILS = ("network", "contender", "ms", "quartiles", "ratio to forward", "quartiles", "cosine", "error", "run to run",
           "peak MB", "file / source", "convert s", "import s", "first map after s")  # fmt: skip
PIPE_WIDTH = 160  # of a line that no terminal limits
Cells = Sequence[str]
Key = tuple[str, str, bool, int, int, str]
console = Console(highlight=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = PIPE_WIDTH


def write(folder: Path, machine: Mapping[str, str], options: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """results.json and table.md."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine, "options": options, "rows": [asdict(row) for row in rows]}
    (folder / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n")
    lines = [*markdown(machine, options, rows)]
    (folder / "table.md").write_text("\n".join(lines) + "\n")


def write_table(path: Path, machine: Mapping[str, str], columns: Cells, lines: Iterable[Cells]) -> None:
    """A table of its own, as Markdown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*table(columns, lines), "", _on(machine)]) + "\n")


def read(path: Path) -> tuple[dict[str, str], dict[str, Any], list[Row]]:
    """What `write` wrote in results.json: machine, options, rows."""
    results = json.loads(path.read_text())
    return results["machine"], results["options"], [Row(**row) for row in results["rows"]]


def merged(parts: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows of several runs; a later run replaces the rows that it has again."""
    found = {}
    for row in (row for part in parts for row in part):
        found[row.network, row.contender, *settings([row])] = row
    return list(found.values())


def settings(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The rows of each table: one method, provider, precision, batch and number of threads."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        key = row.provider, row.precision, row.dry_run, row.batch, row.threads, row.method
        found.setdefault(key, []).append(row)
    return found


def title(key: Key) -> str:
    """`guided, CPU float32, batch 1, 1 thread`"""
    provider, precision, dry_run, batch, threads, method = key
    count = f"{threads} thread{'s' * (threads > 1)}"
    dry = " (dry run on the CPU)" if dry_run else ""
    return f"{method}, {provider.upper()}{dry} {precision}, batch {batch}, {count}"


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(machine: Mapping[str, str], options: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[str]:
    """The whole report."""
    yield "# Time of forward pass and map, divided by the time of the plain forward pass in onnxruntime"
    yield ""
    yield _on(machine)
    yield ""
    yield f"Options: {', '.join(f'{name} {value}' for name, value in options.items())}."
    for key, group in settings(rows).items():
        yield from ("", f"## {title(key)}", "")
        columns, lines, notes = ratios(group)
        yield from table(columns, lines)
        yield from ("", *(f"{number}. {note}" for note, number in notes.items()))
        yield from ("", *summary(group))
        yield from ("", *table(DETAILS, (detail(row) for row in group if not row.reason)))


def _on(machine: Mapping[str, str]) -> str:
    return f"Measured on: {'; '.join(f'{name} {value}' for name, value in machine.items())}."


def table(columns: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    """A Markdown table; the first column holds text, the others numbers."""
    for cells in (columns, ["---", *["--:"] * (len(columns) - 1)], *rows):
        yield f"| {' | '.join(cells)} |"


def ratios(group: Sequence[Row]) -> tuple[Cells, list[Cells], dict[str, int]]:
    """Columns, a line for each contender, and the notes: why there is no number, or which map it is the number of."""
    networks = list(dict.fromkeys(row.network for row in group))
    of = {(row.contender, row.network): row for row in group}
    notes: dict[str, int] = {}
    forward = [_number(of[FORWARD, network].seconds, ".3g", 1e3) or "-" for network in networks]
    lines: list[Cells] = [["forward, ms", *forward]]
    for name in dict.fromkeys(row.contender for row in group if row.contender != FORWARD):
        lines.append([name, *(_cell(of[name, n], notes) if (name, n) in of else "" for n in networks)])
    return ["contender", *networks], lines, notes


def _cell(row: Row, notes: dict[str, int]) -> str:
    note = remark(row)
    mark = f" ({notes.setdefault(note, len(notes) + 1)})" if note else ""
    return ("-" if row.ratio is None else f"{row.ratio:.2f}") + mark


def remark(row: Row) -> str:
    """What a reader must know of this number, or of its absence."""
    return row.reason or row.unchecked or ("" if row.cosine is None or row.cosine >= SAME[row.precision] else DIFFERENT)


def detail(row: Row) -> Cells:
    """A line of the second table."""
    return [
        *(row.network, row.contender),
        *(_number(row.seconds, ".4g", 1e3), _range(row.seconds_quartiles, ".4g", 1e3)),
        *(_number(row.ratio, ".3f"), _range(row.ratio_quartiles, ".3f")),
        *(_number(row.cosine, ".6f"), _number(row.error, ".1e"), _number(row.repeat_error, ".0e")),
        *(_number(row.peak_bytes, ".0f", 1e-6), _number(row.file_ratio, ".3f")),
        *(_number(row.convert_seconds, ".2f"), _number(row.import_seconds, ".2f"), _number(row.start_seconds, ".2f")),
    ]


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "" if value is None else format(value * factor, form)


def _range(values: Sequence[float] | None, form: str, factor: float = 1) -> str:
    return "" if values is None else " to ".join(format(value * factor, form) for value in values)


# --- against the peers -----------------------------------------------------------------------------------------------


def summary(group: Sequence[Row]) -> Iterator[str]:
    """How this project stands against the fastest peer and against Captum, network by network and in the mean."""
    for whom, peers in (("the fastest peer", PEERS), ("captum", ("captum",))):
        networks = dict.fromkeys(row.network for row in group)
        found = {network: speed for network in networks if (speed := _speed(group, network, peers))}
        if found:
            speeds = [speed for speed, _ in found.values()]
            each = ", ".join(f"{network} {speed:.2f} ({peer})" for network, (speed, peer) in found.items())
            mean = np.exp(np.mean(np.log(speeds)))
            yield f"- {OURS} is {mean:.2f} times as fast as {whom} (geometric mean; least {min(speeds):.2f}): {each}."


def _speed(group: Sequence[Row], network: str, peers: Sequence[str]) -> tuple[float, str] | None:
    """By how much the fastest of the peers is slower, and which one it is."""
    of = {row.contender: row for row in group if row.network == network and row.seconds is not None}
    taken = {name: of[name].seconds for name in peers if name in of}
    if OURS not in of or not taken:
        return None
    fastest = min(taken, key=taken.__getitem__)
    return taken[fastest] / of[OURS].seconds, fastest + (", another map" if remark(of[fastest]) else "")


# --- terminal --------------------------------------------------------------------------------------------------------


def show(rows: Sequence[Row]) -> None:
    """The first tables, with their notes."""
    for key, group in settings(rows).items():
        columns, lines, notes = ratios(group)
        print_table(title(key), columns, lines)
        for text in (*(f"({number}) {note}" for note, number in notes.items()), *summary(group)):
            console.print(text, markup=False)


def print_reasons(rows: Iterable[Row]) -> None:
    """What went wrong."""
    for row in rows:
        if remark(row):
            console.print(f"{row.network}, {row.contender}: {remark(row)}", markup=False)


def print_table(heading: str, columns: Cells, lines: Iterable[Cells]) -> None:
    """Under its heading, numbers to the right."""
    drawn = Table(title=heading, title_justify="left")
    for i, column in enumerate(columns):
        drawn.add_column(column, justify="right" if i else "left")
    for line in lines:
        drawn.add_row(*line)
    console.print(drawn)

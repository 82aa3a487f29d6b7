"""Times contenders against each other: rounds that alternate, and one process each, which is kept alive."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.contenders import CONTENDERS, FORWARD, METHODS, REFERENCE, Job
from tests.bench.conversion import converted
from tests.bench.networks import SIZE, Network, Unavailable
from tests.bench.processes import Process, all_closed, worker

REST = 0.05  # seconds between two contenders, in which the threads of the last one stop spinning
WARM_UP = 0.5  # of the seconds of a round


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Setting:
    """What all contenders of one table have in common."""

    method: str
    batch: int
    threads: int
    provider: str = "cpu"
    precision: str = "float32"
    dry_run: bool = False


@dataclass(frozen=True)
class Pace:
    """How long it takes: `rounds` of about `seconds` for each contender."""

    rounds: int
    seconds: float


@dataclass
class Row:
    """A contender's figures. Where there are none, `reason` says why; `unchecked`, why its map was not compared.

    Times are medians over the rounds with their quartiles, each round giving the median of its calls. `ratio` is the
    median of the rounds' ratios to the plain forward pass of the same round. `cosine` and `error` (relative L2) compare
    the map with what the portable file gives on the CPU in float32; `repeat_error` with its own second run, relative to
    the maximum. `start_seconds` is from the bare interpreter to the first map, with imports; `peak_bytes` what the
    process has had in memory by then, when it has done nothing else; `convert_seconds` from reading the source to
    having written the file, after the imports, in a process of its own.
    """

    network: str
    contender: str
    method: str
    batch: int
    threads: int
    provider: str
    precision: str
    dry_run: bool
    reason: str | None = None
    unchecked: str | None = None
    seconds: float | None = None
    seconds_quartiles: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_quartiles: tuple[float, float] | None = None
    cosine: float | None = None
    error: float | None = None
    repeat_error: float | None = None
    start_seconds: float | None = None
    peak_bytes: int | None = None
    file_bytes: int | None = None
    file_ratio: float | None = None
    convert_seconds: float | None = None
    import_seconds: float | None = None


class Files:
    """The files of one network: converted once for each way to convert it, in a folder that is thrown away."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.network, self._folder = network, folder
        self._facts: dict[Path, dict[str, Any]] = {}

    def inputs(self, batch: int) -> Path:
        """Random pictures."""
        path = self._folder / f"x{batch}.npy"
        if not path.exists():
            shape = input_shape(self.network.source)
            np.save(path, np.random.default_rng(0).standard_normal((batch, *shape), np.float32))
        return path

    def targets(self, batch: int) -> Path:
        """The class that the network finds in each picture, which its explanations are about."""
        path = self._folder / f"targets{batch}.npy"
        if not path.exists():
            np.save(path, 0)  # the forward pass asks for none
            with worker(self.job(FORWARD, Setting(METHODS[0], batch, cores()), self.network.source)) as process:
                process.ask("first", path=str(path))
            np.save(path, np.load(path).argmax(1))
        return path

    def job(self, contender: str, setting: Setting, file: Path) -> Job:
        """What the contender's process is told."""
        targets = self.targets(setting.batch)
        paths = {"file": file, "module": self.network.module, "x": self.inputs(setting.batch), "targets": targets}
        told = {name: value for name, value in vars(setting).items() if name != "batch"}
        return Job(contender, **{name: str(path) for name, path in paths.items()}, **told)

    def source(self, precision: str) -> Path:
        """The network's own file, in float16 if need be."""
        if precision != "float16":
            return self.network.source
        return self._made("float16", self.network.source)[0]

    def of(self, contender: str, setting: Setting) -> tuple[Path, dict[str, Any]]:
        """What the contender loads, and what is known of its making. Raises Unavailable."""
        made = CONTENDERS[contender]
        source = self.source(setting.precision)
        if made.converter is None:
            return source, {}
        always = {
            "gbprewrite": {"method": setting.method, "optimize_for": setting.provider},
            "onnx_ad": {"batch": setting.batch},
        }
        options = always[made.converter] | made.conversion
        path, facts = self._made(made.converter, source, setting.precision, **options)
        size = path.stat().st_size
        return path, facts | {"file_bytes": size, "file_ratio": size / source.stat().st_size}

    def _made(self, converter: str, source: Path, *labels: str, **options: Any) -> tuple[Path, dict[str, Any]]:
        path = self._folder / f"{'-'.join([converter, *labels, *map(str, options.values())])}.onnx"
        if path not in self._facts:
            try:
                self._facts[path] = converted(converter, source, path, **options)
            except Unavailable as error:
                self._facts[path] = {"reason": f"not converted ({error})"}
        if "reason" in self._facts[path]:
            raise Unavailable(self._facts[path]["reason"])
        return path, self._facts[path]


def input_shape(source: Path) -> tuple[int, ...]:
    """Channels, rows and columns that the file takes."""
    import onnx

    dims = onnx.load(source, load_external_data=False).graph.input[0].type.tensor_type.shape.dim[1:]
    return tuple(d.dim_value or size for d, size in zip(dims, (3, SIZE, SIZE), strict=True))


def compare(files: Files, setting: Setting, names: Sequence[str], pace: Pace, say: Callable[[str], None]) -> list[Row]:
    """A row for each contender; the plain forward pass takes part in any case."""
    names = [FORWARD, *(name for name in names if name != FORWARD)]
    rows = {name: Row(files.network.name, name, **asdict(setting)) for name in names}
    folder = files.inputs(setting.batch).parent
    processes: dict[str, Process] = {}
    with all_closed(processes):
        _start(files, setting, rows, processes, say)
        expected = _reference(files, setting, folder)
        for name in list(processes):
            _attempt(rows[name], processes, lambda name=name: _check(rows[name], processes[name], folder, expected))
        _time(rows, processes, pace, say)
    return list(rows.values())


def _start(
    files: Files, setting: Setting, rows: dict[str, Row], processes: dict[str, Process], say: Callable[[str], None]
) -> None:
    """Convert and load; `rows` gets the reasons of those that cannot."""
    for name, row in rows.items():
        say(f"{name}: loading")
        try:
            told, facts = job(files, name, setting)
            processes[name] = worker(told)
            vars(row).update(facts)
        except Unavailable as error:
            row.reason = str(error)


def job(files: Files, name: str, setting: Setting) -> tuple[Job, dict[str, Any]]:
    """What this contender is told, and what is known of its file. Raises Unavailable."""
    contender = CONTENDERS[name]
    if setting.provider not in contender.providers:
        raise Unavailable(f"not on {setting.provider}")
    if setting.method in contender.cannot:
        raise Unavailable(contender.cannot[setting.method])
    path, facts = files.of(name, setting)
    return files.job(name, setting, path), facts


def _reference(files: Files, setting: Setting, folder: Path) -> Any:
    """The map that this project's plainest file computes on the CPU in float32, or why there is none."""
    path = folder / f"reference-{setting.method}{setting.batch}.npy"
    if not path.exists():
        plain = Setting(setting.method, setting.batch, cores())
        try:
            with worker(job(files, REFERENCE, plain)[0]) as process:
                process.ask("first", path=str(path))
        except Unavailable as error:
            return f"its map was not compared, since {REFERENCE} made none: {error}"
    return np.load(path).astype(np.float64)


def _check(row: Row, process: Process, folder: Path, expected: Any) -> None:
    """The first map: its memory, its time, and whether it is the right one."""
    path = folder / "map.npy"
    made = process.ask("first", path=str(path))
    row.peak_bytes = made["peak_bytes"]
    row.start_seconds = process.ready["load_seconds"] + made["first_seconds"]
    row.repeat_error = process.ask("again", path=str(path))["repeat_error"]
    if row.contender == FORWARD:
        return
    if isinstance(expected, str):
        row.unchecked = expected
        return
    found = np.load(path).astype(np.float64)
    found = found.reshape(len(expected), -1, *expected.shape[1:])[:, 0]  # of several classes, the winning one
    row.cosine = float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))
    row.error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _attempt(row: Row, processes: dict[str, Process], do: Callable[[], None]) -> None:
    """A process that fails is out, with its reason."""
    try:
        do()
    except Unavailable as error:
        row.reason = str(error)
        processes.pop(row.contender).close()


def _time(rows: dict[str, Row], processes: dict[str, Process], pace: Pace, say: Callable[[str], None]) -> None:
    """Round after round, each beginning with another contender."""
    times: dict[str, list[float]] = {name: [] for name in processes}
    for number, name in _turns(list(processes), pace.rounds):
        if name not in processes:
            continue
        say(f"round {number} of {pace.rounds}: {name}")
        seconds = pace.seconds if number else WARM_UP * pace.seconds

        def once(name: str = name, number: int = number, seconds: float = seconds) -> None:
            taken = processes[name].ask("round", seconds=seconds)["seconds"]
            if number:
                times[name].append(taken)

        _attempt(rows[name], processes, once)
        time.sleep(REST)
    forward = np.array(times[FORWARD]) if FORWARD in processes else None
    for name in processes:
        row, taken = rows[name], np.array(times[name])
        row.seconds, row.seconds_quartiles = _median_and_quartiles(taken)
        if forward is not None:
            row.ratio, row.ratio_quartiles = _median_and_quartiles(taken / forward)


def _turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Round 0 is the warm-up."""
    for number in range(rounds + 1):
        first = number % max(len(names), 1)
        yield from product([number], names[first:] + names[:first])


def _median_and_quartiles(values: Any) -> tuple[float, tuple[float, float]]:
    low, middle, high = (float(v) for v in np.percentile(values, (25, 50, 75)))
    return middle, (low, high)

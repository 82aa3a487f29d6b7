"""Many mutated files, each judged in a worker with a limit on time and memory; a worker that dies is replaced."""

import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.fuzz.judge import Outcome, judge
from tests.fuzz.models import MODELS, written
from tests.fuzz.mutations import mutated

SECONDS = 20.0  # for one conversion
MEGABYTES = 1000.0  # for one conversion, above what a worker takes before its first
ADDRESSES = 12 * 2**30  # bytes: what onnxruntime reserves counts, and this keeps the machine whole


class Case(NamedTuple):
    """A mutated file: the model it began as, and the number that its mutation is drawn from."""

    model: str
    number: int

    def data(self, folder: Path) -> bytes:
        """The file, the same each time."""
        return mutated(
            written(self.model, folder), np.random.default_rng([list(MODELS).index(self.model), self.number])
        )


def cases(count: int, first: int = 0, models: Sequence[str] = ()) -> list[Case]:
    """So many cases, the models in turn."""
    names = list(models or MODELS)
    return [Case(names[n % len(names)], n // len(names)) for n in range(first, first + count)]


def campaign(todo: Sequence[Case], jobs: int) -> Iterator[tuple[Case, Outcome]]:
    """The outcome of each case, in the order of the cases."""
    own = threading.local()  # each thread has a worker
    workers: list[Worker] = []

    def judged(case: Case) -> Outcome:
        if getattr(own, "worker", None) is None or not own.worker.alive:
            own.worker = Worker()
            workers.append(own.worker)
        return own.worker.judged(case)

    try:
        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(todo, pool.map(judged, todo), strict=True)
    finally:
        for worker in workers:
            worker.stop()


class Worker:
    """A process that judges cases; it is alive until one of them brings it down."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.at_rest = float(self.pipe.recv())
        self.alive = True

    def judged(self, case: Case) -> Outcome:
        """The outcome of a case, that of a worker which did not survive it included."""
        self.pipe.send(tuple(case))
        phase, since = "convert", time.monotonic()
        while True:
            if self.pipe.poll(0.05):
                try:
                    kind, value = self.pipe.recv()
                except EOFError:
                    return self._ended(phase)
                if kind == "done":
                    return self._limited(Outcome(*value))
                phase, since = value, time.monotonic()
            elif time.monotonic() - since > SECONDS:
                return self._killed(phase, "hung", f"more than {SECONDS:.0f} s")
            elif phase == "convert" and _megabytes(self.process.pid) - self.at_rest > MEGABYTES:
                return self._killed(phase, "memory", f"more than {MEGABYTES:.0f} MB")

    def _limited(self, outcome: Outcome) -> Outcome:
        if outcome.megabytes - self.at_rest > MEGABYTES:
            self.stop()  # the peak of a process stays
            return outcome._replace(kind="memory")
        return outcome

    def _killed(self, phase: str, kind: str, words: str) -> Outcome:
        self.stop()
        return _ours(phase, kind, words)

    def _ended(self, phase: str) -> Outcome:
        self.process.join()
        self.alive = False
        return _ours(phase, "aborted", f"exit status {self.process.exitcode}")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.alive = False


def _ours(phase: str, kind: str, words: str) -> Outcome:
    """What happens while onnxruntime runs the file is onnxruntime's."""
    return Outcome(kind, words) if phase == "convert" else Outcome("right", f"onnxruntime, running it: {kind}, {words}")


def _megabytes(pid: int | None) -> float:
    """Memory that a process has now; zero where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _serve(pipe: Connection) -> None:
    """A worker: judges what comes through the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mutant.onnx"
        file.write_bytes(written("cnn", Path(folder)).SerializeToString())
        judge(file)  # everything is imported and warm now
        pipe.send(_megabytes(os.getpid()))
        while True:
            try:
                case = Case(*pipe.recv())
            except EOFError:
                return
            file.write_bytes(case.data(Path(folder)))
            pipe.send(("done", tuple(judge(file, lambda name: pipe.send(("phase", name))))))


def row(case: Case, outcome: Outcome) -> dict[str, Any]:
    """A case and its outcome in plain types."""
    return {**case._asdict(), **outcome._asdict()}


def line(case: Case, outcome: Outcome) -> str:
    """The same as a line of JSON."""
    return json.dumps(row(case, outcome), ensure_ascii=True)

"""The parent's side: starts a process for each contender or conversion, and asks it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Self

from tests.bench.contenders import Job
from tests.bench.networks import ROOT, Unavailable

LONGEST = 1200.0  # seconds that one answer may take: torch.compile is slow to start


class Process:
    """A Python module of this benchmark in a process of its own, with so many threads; answers JSON with JSON."""

    def __init__(self, module: str, first: Any, threads: int) -> None:
        """Start it and hand it its first line. `ready` is its first answer. Raises Unavailable when it fails."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(names, str(threads))
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
        )
        try:
            self.ready = self._exchange(first)
        except Unavailable:
            self.close()
            raise

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """The answer to a command. Raises Unavailable with the process's own reason."""
        return self._exchange({"do": do, **details})

    def _exchange(self, message: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(LONGEST, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        reply = json.loads(line) if line else {"error": self._last_words()}
        if "error" in reply:
            raise Unavailable(reply["error"])
        return dict(reply)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return f"ended with status {code}{': ' + lines[-1] if lines else ''}"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._said):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def worker(job: Job) -> Process:
    """A contender, loaded."""
    return Process("worker", asdict(job), job.threads)


@contextlib.contextmanager
def all_closed(processes: dict[str, Process]) -> Iterator[None]:
    """Whatever happens, none of them stays alive."""
    try:
        yield
    finally:
        for process in processes.values():
            process.close()


def peak_bytes() -> int:
    """The largest resident set that this process has had (ru_maxrss would count what the parent had at the fork)."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

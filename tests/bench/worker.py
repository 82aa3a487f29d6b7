"""One contender in a process of its own. On stdin a Job, then commands, each a line of JSON; on stdout the replies."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.bench.contenders import CONTENDERS, Job
from tests.bench.networks import Unavailable
from tests.bench.processes import peak_bytes
from tests.bench.runtimes import Loaded

Reply = dict[str, Any]


def load(job: Job) -> Loaded:
    """The contender, ready to run."""
    contender = CONTENDERS[job.contender]
    module, function = contender.load.split(":")
    loaded: Loaded = getattr(importlib.import_module(f"tests.bench.{module}"), function)(job, **contender.options)
    return loaded


def round_(loaded: Loaded, seconds: float) -> Reply:
    """Run for about this long, at least once, and take the median of the calls."""
    times = [*_times(loaded, seconds)]
    return {"seconds": float(np.median(times)), "calls": len(times)}


def first(loaded: Loaded, path: str) -> Reply:
    """Compute once, and write the map."""
    start = time.perf_counter()
    found = loaded.run()
    seconds = time.perf_counter() - start
    np.save(path, np.array(loaded.fetch(found), np.float32))
    return {"first_seconds": seconds, "peak_bytes": peak_bytes()}


def again(loaded: Loaded, path: str) -> Reply:
    """Compute again; how far the map is from the first one, relative to the largest value."""
    earlier = np.load(path)
    apart = np.abs(np.array(loaded.fetch(loaded.run()), np.float32) - earlier).max()
    return {"repeat_error": float(apart / np.abs(earlier).max())}


COMMANDS: dict[str, Callable[..., Reply]] = {"first": first, "again": again, "round": round_}


def _times(loaded: Loaded, seconds: float) -> Iterator[float]:
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        loaded.run()
        stop = time.perf_counter()
        yield stop - start
        if stop >= end:
            return


def main() -> None:
    """Load, then do as told. An error is a reply as well, and ends the process."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    start = time.perf_counter()
    try:
        loaded = load(Job(**json.loads(sys.stdin.readline())))
        print(json.dumps({"load_seconds": time.perf_counter() - start}), file=replies)
        for line in iter(sys.stdin.readline, ""):
            command = json.loads(line)
            print(json.dumps(COMMANDS[command.pop("do")](loaded, **command)), file=replies)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        reason = lines[0] if isinstance(error, Unavailable) else f"{type(error).__name__}: {lines[0]}"
        print(json.dumps({"error": reason}), file=replies)
        raise


if __name__ == "__main__":
    main()

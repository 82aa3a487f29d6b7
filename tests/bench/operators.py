"""Where the time goes: onnxruntime's own profile, summed by operator or node by node."""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RUNS = 10


class Kernel(NamedTuple):
    """A node of the optimised graph, its time in ms (median of the runs), and the shapes that it writes."""

    node: str
    operator: str
    ms: float
    shapes: str


def profile(path: Path, x: Any, threads: int) -> list[Kernel]:
    """Every node that onnxruntime runs on the CPU for this file."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {session.get_inputs()[0].name: x}
        for _ in range(RUNS + 1):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["args"]["node_index"], []).append(event)
    return [_kernel(found[-RUNS:]) for found in times.values()]  # without the first, which allocates


def _kernel(events: list[Any]) -> Kernel:
    last = events[-1]
    shapes = [list(shape) for output in last["args"].get("output_type_shape", []) for shape in output.values()]
    ms = float(np.median([event["dur"] for event in events])) / 1e3
    name = last["name"].removesuffix("_kernel_time")
    return Kernel(name, last["args"]["op_name"], ms, " ".join(map(str, shapes)))


def by_operator(profiles: Mapping[str, list[Kernel]]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: for each file, time and number of nodes of each operator type; the most expensive first."""
    ms: dict[str, Callable[[str], float]] = {}
    for label, kernels in profiles.items():
        ms[label] = lambda operator, kernels=kernels: sum(k.ms for k in kernels if k.operator == operator)
    last = list(profiles)[-1]
    operators = sorted({k.operator for kernels in profiles.values() for k in kernels}, key=ms[last], reverse=True)
    columns, lines = ["operator"], []
    for label in profiles:
        columns += [f"{label} ms", "nodes"]
    for operator in operators:
        counts = [sum(k.operator == operator for k in kernels) for kernels in profiles.values()]
        pairs = zip(ms.values(), counts, strict=True)
        lines.append([operator, *(cell for time, n in pairs for cell in (f"{time(operator):.2f}", str(n)))])
    totals = [(sum(k.ms for k in kernels), len(kernels)) for kernels in profiles.values()]
    lines.append(["all", *(cell for total, n in totals for cell in (f"{total:.2f}", str(n)))])
    return columns, lines


def by_node(kernels: list[Kernel], count: int) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: the most expensive nodes."""
    slowest = sorted(kernels, key=lambda k: k.ms, reverse=True)[:count]
    return ["node", "operator", "ms", "writes"], [[k.node, k.operator, f"{k.ms:.3f}", k.shapes] for k in slowest]

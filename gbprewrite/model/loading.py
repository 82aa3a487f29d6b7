"""Whether onnxruntime loads a file: asked in a process of its own, which a fault in compiled code may end.

Constants of more than 16 MB are not worked out for it: a few hundred bytes may stand for gigabytes of them. Loading
happens on the CPU; where a kernel is missing there, on CUDA, if this onnxruntime has it.
"""

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from gbprewrite.errors import ModelError

NO_MEMORY = ("bad_alloc", "Failed to allocate memory")  # as onnxruntime says it
SECONDS = 600  # that a file may take to load
PROGRAM = """
import json, math, sys
sys.path[:] = json.loads(sys.argv[2])
import numpy, onnxruntime
KINDS = {"tensor(" + n + ")": n for n in "float16 bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()}
KINDS |= {"tensor(float)": "float32", "tensor(double)": "float64"}
def run(session):
    feeds = {}
    for one in session.get_inputs():
        sizes = [1 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(one.shape)]
        kind = KINDS.get(one.type)
        if kind is None or not all(isinstance(size, int) for size in sizes):
            return  # nothing is known of what it takes
        if math.prod(sizes) > 10**9:
            raise MemoryError(f"its input {one.name} has the shape {sizes}")
        feeds[one.name] = numpy.zeros(sizes, kind)
    session.run(None, feeds)
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.disable_prepacking", "1")
options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", "16000000")
providers = [["CPUExecutionProvider"]]
if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
    providers.append(["CUDAExecutionProvider", "CPUExecutionProvider"])
reason = None
for chosen in providers:
    try:
        session = onnxruntime.InferenceSession(sys.argv[1], options, providers=chosen)
        if sys.argv[4] == "run":
            run(session)
        reason = None
        break
    except Exception as error:
        reason = reason or str(error)
with open(sys.argv[3], "w") as answer:
    json.dump([onnxruntime.__version__, reason], answer)
"""


class Answer(NamedTuple):
    """What came of loading a file: the version of onnxruntime, and why it does not load; None where it does."""

    version: str
    reason: str | None


def load_once(path: Path, run: bool = False) -> Answer | None:
    """Load a model file once; None where no onnxruntime is installed, or it can't be imported.

    With `run` it also runs on zeros, where the model says how many it takes.
    """
    if importlib.util.find_spec("onnxruntime") is None or not sys.executable:
        return None
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "answer.json"
        command = [
            sys.executable,
            "-I",
            "-c",
            PROGRAM,
            str(path),
            json.dumps(sys.path),
            str(said),
            "run" if run else "",
        ]
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
        except subprocess.TimeoutExpired:
            return Answer("", f"loading took more than {SECONDS} seconds")
        with contextlib.suppress(OSError, ValueError):
            return Answer(*json.loads(said.read_text()))
    if done.returncode < 0:
        return Answer("", f"onnxruntime itself was brought down (signal {-done.returncode})")
    return None


def check_loads(result: Path, source: Path) -> str | None:
    """Load a conversion's result. A note where neither it nor its source loads, so that nothing is known of it.

    Raises ModelError where the source loads and the result does not.
    """
    answer = load_once(result)
    if answer is None or answer.reason is None:
        return None
    before = load_once(source)
    version = f"onnxruntime {answer.version}".strip()
    if before is not None and before.reason is None and any(words in answer.reason for words in NO_MEMORY):
        raise ModelError(
            f"{version} needs more memory than there is to load the result, whose tensors are as large as those of "
            f"{source}. Nothing was written. Give it more memory, or check that the sizes in the model are what they "
            "should be; --no-check writes it unloaded."
        )
    if before is not None and before.reason is None:
        raise ModelError(
            f"{version} loads the source {source} and does not load its conversion: {_line(answer.reason, result)}. "
            "Nothing was written. Please report it with the model, as a defect of gbprewrite, unless the file is for "
            "another runtime or provider; --no-check writes it unloaded."
        )
    reason = answer.reason if before is None else before.reason
    return f"{version} loads neither the source nor this file, so that it is not checked: {_line(reason or '', result)}"


def _line(text: str, path: Path) -> str:
    """A reason in one line, without the full stop, and without the folder in which the file lies for a moment."""
    text = text.replace(str(path), path.name)
    return next(iter(text.strip().splitlines()), "no reason given").rstrip(". ")

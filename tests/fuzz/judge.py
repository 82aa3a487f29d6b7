"""What becomes of one file: refused in words, or converted to what is right.

The source's own outputs are onnxruntime's. The gradient is held against differences of the source in float64, by ONNX's
reference evaluator (see gbprewrite.checks.reference for its corrections), where that agrees with onnxruntime's outputs.
"""

import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto

import gbprewrite
from gbprewrite.checks import reference
from gbprewrite.graft import record as report
from tests.fuzz.models import feed
from tests.small import Array

MAP = "{input}_gradient"
STEP = 1e-6  # in float64: differences lose half of its 16 digits
AGREEMENT = 1e-3  # of a directional derivative of a float32 map, relative to its size in a random direction
BLAMES_US = "defect of gbprewrite"
# A difference says nothing about these: random, or stepped on purpose and passed straight through.
NO_DIFFERENCES = frozenset(
    (
        *("Bernoulli", "DynamicQuantizeLinear", "Multinomial", "QuantizeLinear", "RandomNormal", "RandomNormalLike"),
        *("RandomUniform", "RandomUniformLike"),
    )
)


class Outcome(NamedTuple):
    """`kind` is refused, right, or a fault: see FAULTS; `seconds` and `megabytes` are those of the conversion."""

    kind: str
    words: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


# Ends that no file may lead to.
FAULTS = {
    "traceback": "an exception that is not a GbprewriteError",
    "aborted": "the process ended by a signal",
    "hung": "the conversion took too long",
    "memory": "the conversion took too much memory",
    "blames": "a message blames gbprewrite",
    "no load": "the result does not load in onnxruntime, although the source does",
    "own outputs": "the result's own outputs are not the source's",
    "gradient": "the gradient is not that of the score",
}


def judge(file: Path, phase: Callable[[str], None] = lambda name: None) -> Outcome:
    """Convert a file and try the result; `phase` is called with "convert" before, and with "run" afterwards."""
    phase("convert")
    started = time.monotonic()
    try:
        converted = _converted(file)
    except gbprewrite.GbprewriteError as error:
        words = f"{type(error).__name__}: {error}"
        kind = "blames" if BLAMES_US in words else "refused"
        return Outcome(kind, words, time.monotonic() - started, peak())
    except Exception as error:
        return Outcome("traceback", f"{type(error).__name__}: {error}", time.monotonic() - started, peak())
    seconds, megabytes = time.monotonic() - started, peak()
    phase("run")
    kind, words = _tried(file, converted)
    return Outcome(kind, words, seconds, megabytes)


def _converted(file: Path) -> ModelProto:
    """With guided, so that rectifiers are looked for, where there are any."""
    try:
        return gbprewrite.convert(file, ["gradient", "guided"], "seed")
    except gbprewrite.UnsupportedOperators:
        raise
    except gbprewrite.ModelError:
        return gbprewrite.convert(file, "gradient", "seed")


def peak() -> float:
    """Peak memory of this process since it began, in MB."""
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _session(model: str | bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _tried(file: Path, converted: ModelProto) -> tuple[str, str]:
    """The kind of outcome, and what should be known of it."""
    try:
        source = _session(str(file))
    except Exception as error:
        return "right", f"onnxruntime refuses the source too: {_line(error)}"
    try:
        result = _session(converted.SerializeToString())
    except Exception as error:
        return "no load", _line(error)
    rng = np.random.default_rng(0)
    inputs = {i.name for i in source.get_inputs()}
    feeds = {i.name: feed(i, rng) for i in converted.graph.input if i.name in inputs}
    if any(v is None for v in feeds.values()) or feeds.keys() != inputs:
        return "right", "not run: an input is not a small tensor"
    names = [o.name for o in source.get_outputs()]
    try:
        own = source.run(names, feeds)
    except Exception as error:
        return "right", f"the source does not run: {_line(error)}"
    return _compared(converted, result, feeds, dict(zip(names, own, strict=True)), rng)


def _compared(
    converted: ModelProto, result: ort.InferenceSession, feeds: dict[str, Any], own: dict[str, Any], rng: Any
) -> tuple[str, str]:
    record = report.read_record(converted)
    assert record is not None
    try:
        (score,) = _session(_ending_in(converted, record["score"])).run(None, feeds)
        dy = rng.normal(size=score.shape).astype(score.dtype)
        names = [o.name for o in result.get_outputs()]
        found = dict(zip(names, result.run(None, {**feeds, record["seed_name"]: dy}), strict=True))
    except Exception as error:
        return "own outputs", f"the result does not run: {_line(error)}"
    for name, value in own.items():
        if not np.array_equal(found[name], value, equal_nan=np.asarray(value).dtype.kind == "f"):
            return "own outputs", f"{name}: {_sample(found[name])}, in the source {_sample(value)}"
    if not np.isfinite(score).all() or any(map(_no_differences, converted.graph.node)):
        return "right", "no differences: random, quantised, or not finite"
    maps = {m["input"]: found[m["output"]] for m in record["maps"] if m["method"] == "gradient"}
    return _differences(converted, record["score"], feeds, maps, np.asarray(dy, np.float64), np.asarray(score))


def _no_differences(node: onnx.NodeProto) -> bool:
    return node.op_type in NO_DIFFERENCES or (node.op_type == "Dropout" and len(node.input) > 2)


def _ending_in(model: ModelProto, score: str) -> bytes:
    """The model with the score as its only output, in onnxruntime's hands."""
    return _scored(model, score).SerializeToString()


def _scored(model: ModelProto, score: str) -> ModelProto:
    part = ModelProto()
    part.CopyFrom(model)
    own = gbprewrite.graft.restore.restore(part)  # without the backward part, whose inputs nobody feeds
    del own.graph.output[:]
    own.graph.output.append(onnx.ValueInfoProto(name=score))
    return own


def _differences(
    converted: ModelProto, name: str, feeds: dict[str, Array], maps: dict[str, Array], dy: Array, score: Array
) -> tuple[str, str]:
    """⟨map, v⟩ against one-sided differences of ⟨dy, score⟩ in a random direction v."""
    try:
        forward = reference.evaluator(reference.in_float64(_scored(converted, name)))
        wide = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in feeds.items()}
        middle = _value(forward, wide, dy)
        size = float(np.abs(dy * np.asarray(score, np.float64)).sum())
        if not abs(middle - float((dy * score).sum())) <= AGREEMENT * (size or 1):
            return "right", "no differences: the reference evaluator's score is not onnxruntime's"
        for x, map_ in maps.items():
            words = _difference(forward, wide, x, map_.astype(np.float64), dy, middle)
            if words:
                return ("gradient" if words[0] else "right"), words[1]
    except Exception as error:  # whatever the reference evaluator stops at
        return "right", f"no differences: the reference evaluator stops: {_line(error)}"
    return "right", "agrees with differences"


def _difference(
    forward: Any, feeds: dict[str, Array], x: str, map_: Array, dy: Array, middle: float
) -> tuple[bool, str] | None:
    """(whether it is a fault, words), None where the map agrees."""
    if not np.isfinite(map_).all():
        return False, "no differences: the map is not finite"
    rng = np.random.default_rng(1)
    for _ in range(3):  # a direction across a kink says nothing
        v = rng.normal(size=map_.shape)
        wanted = float((map_ * v).sum())
        ahead, behind = ((_value(forward, {**feeds, x: feeds[x] + t * v}, dy) - middle) / t for t in (STEP, -STEP))
        limit = AGREEMENT * max(float(np.linalg.norm(map_)), abs(wanted)) + 1e-7 * (abs(middle) + 1)
        if abs(ahead - behind) <= limit:
            break
    else:
        return False, "no differences: on a kink"
    middle_slope = (ahead + behind) / 2
    if abs(middle_slope - wanted) <= limit:
        return None
    return True, f"{x}: ⟨map, v⟩ is {wanted:.6g}, the difference {middle_slope:.6g}"


def _value(forward: Any, feeds: dict[str, Array], dy: Array) -> float:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float((dy * np.asarray(forward.run(None, feeds)[0], np.float64)).sum())


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


def _sample(value: Any) -> str:
    values = np.asarray(value)
    return f"{values.dtype}{list(values.shape)} {values.ravel()[:3].tolist()}"

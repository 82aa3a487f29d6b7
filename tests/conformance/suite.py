"""The ONNX standard's own node tests, each turned into a gradient case.

A case with a float input and a float output is widened to float64, converted with a seed as its target, and its maps
are held against central differences of the source model along random directions, all by the reference evaluator:
⟨dx, v⟩ = ⟨dy, (f(x + hv) - f(x - hv)) / 2h⟩. The inputs are moved a little, off the ties and kinks that round numbers
sit on.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, helper, numpy_helper

import gbprewrite
from gbprewrite.backward.coverage import known
from gbprewrite.checks.reference import evaluate, evaluator, in_float64
from gbprewrite.graft.record import read_record
from gbprewrite.model.file import opset_of
from gbprewrite.normalise.dialect import normalise

Array = np.ndarray[Any, Any]
SCALES = {"Resize": (2,), "Upsample": (1,)}
STEPS = (1e-4, 1e-5, 1e-6)
DIRECTIONS = 3
TOLERANCE = 1e-5
# Without a float derivative that a CNN could need; issue 3 names them.
EXCLUDED = {
    *("Loop", "Scan", "RNN", "GRU", "LSTM"),
    *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
    *("SequenceMap", "ConcatFromSequence", "SplitToSequence", "ReverseSequence"),
    *("Optional", "OptionalGetElement", "OptionalHasElement"),
    *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
}


VERDICTS = {
    "proved": "the map agrees with central differences to 1e-5",
    "not differentiable": "no float input, no float output, or no way by floats between them",
    "outside": "loops, recurrent cells, sequences, optionals, randomness, or another domain than ai.onnx",
    "refused": "a clear error, and no result",
    "untestable": "the reference evaluator can't run it",
    "wrong": "the map disagrees",
}


class Outcome(NamedTuple):
    """verdict: proved, refused, not differentiable, outside, untestable or wrong; `detail`: why, or how far off."""

    verdict: str
    detail: str


class Case(NamedTuple):
    """One node test: its name, its model, and the arrays fed."""

    name: str
    model: ModelProto
    inputs: list[Any]


@functools.cache
def cases() -> list[Case]:
    """Every node case of the installed onnx, and the PyTorch and simple cases that its wheel carries, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = {c.name: c for c in collect_testcases(None)}
    found = [Case(name, c.model, list(c.data_sets[0][0])) for name, c in nodes.items() if c.model is not None]
    return sorted(found + _stored_cases(), key=lambda c: c.name)


def _stored_cases() -> list[Case]:
    from onnx.backend.test.loader import load_model_tests

    found = []
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for test in load_model_tests(kind=kind):
            folder = Path(test.model_dir)
            paths = folder.glob("test_data_set_0/input_*.pb")
            ordered = sorted(paths, key=lambda p: int(p.stem.removeprefix("input_")))
            inputs = [_stored_input(path) for path in ordered]
            found.append(Case(f"{kind}/{test.name}", onnx.load(folder / "model.onnx"), inputs))
    return found


def _stored_input(path: Path) -> Any:
    """An array, or None for what is no tensor."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except (DecodeError, TypeError, ValueError):
        return None


def operator(case: Case) -> str:
    """The operator that a case is about."""
    return case.model.graph.node[-1].op_type if len(case.model.graph.node) == 1 else case.name.removeprefix("test_")


def is_float(value: Any) -> bool:
    """Whether an array carries a gradient."""
    return isinstance(value, np.ndarray) and value.dtype in (np.float16, np.float32, np.float64) and value.size > 0


def judge(case: Case) -> Outcome:
    """Convert a case and hold its maps against finite differences."""
    with np.errstate(all="ignore"):  # the standard's cases include infinities and domains' borders
        return _judge(case)


def _judge(case: Case) -> Outcome:
    names = [i.name for i in case.model.graph.input]
    floats = [n for n, v in zip(names, case.inputs, strict=False) if is_float(v)]
    outputs = [o.name for o in case.model.graph.output if _float_type(o)]
    if not floats or not outputs:
        return Outcome("not differentiable", "no float input" if not floats else "no float output")
    if not opset_of(case.model) or any("preview" in n.domain for n in case.model.graph.node):
        return Outcome("outside", "not the ai.onnx domain")
    if {n.op_type for n in case.model.graph.node} & EXCLUDED:
        return Outcome("outside", "loop, recurrent, sequence, optional or random operator")
    if any(not isinstance(v, np.ndarray) for v in case.inputs):
        return Outcome("outside", "an input that is no tensor")
    case = _with_scales(case)
    names = [i.name for i in case.model.graph.input]
    floats = [n for n, v in zip(names, case.inputs, strict=False) if is_float(v)]
    feeds = dict(zip(names, case.inputs, strict=False))
    feeds |= {n: _moved(feeds[n].astype(np.float64), i) for i, n in enumerate(floats)}
    verdicts = [_judge_output(case.model, feeds, floats, name) for name in outputs]
    if any("at run time" in v.detail or "needs fixed sizes" in v.detail for v in verdicts):
        # Shapes and axes that no exporter computes: proved once they are constants, and said so.
        fixed = _with_constants(case.model, feeds)
        verdicts = [_judge_output(fixed, feeds, floats, name) for name in outputs]
        verdicts = [v._replace(detail=f"{v.detail}, integer operands fixed") for v in verdicts]
    order = ("wrong", "refused", "untestable", "proved", "outside", "not differentiable")
    return min(verdicts, key=lambda v: order.index(v.verdict))


def _with_scales(case: Case) -> Case:
    """The scales of Resize and Upsample are float32 by the standard and no place for a gradient: an initializer."""
    model = ModelProto()
    model.CopyFrom(case.model)
    fixed = {n.input[i] for n in model.graph.node for i in SCALES.get(n.op_type, ()) if i < len(n.input)} - {""}
    kept, inputs = [], []
    for value, array in zip(model.graph.input, case.inputs, strict=False):
        if value.name in fixed and array.dtype == np.float32:
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
            inputs.append(array)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return Case(case.name, model, inputs)


def _with_constants(model: ModelProto, feeds: dict[str, Array]) -> ModelProto:
    """The model with every integer operand as an initializer."""
    made = ModelProto()
    made.CopyFrom(model)
    kept = [i for i in made.graph.input if feeds[i.name].dtype != np.int64]
    for value in made.graph.input:
        if feeds[value.name].dtype == np.int64:
            made.graph.initializer.append(numpy_helper.from_array(feeds[value.name], value.name))
    del made.graph.input[:]
    made.graph.input.extend(kept)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def _float_type(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in (1, 10, 11)


def _moved(x: Array, i: int) -> Array:
    noise = np.random.default_rng(i).uniform(-1, 1, x.shape)
    if np.abs(x).max() > 1e6:  # some stored cases hold memory that nobody had written
        x = np.random.default_rng(i).normal(size=x.shape)
    return x + 1e-2 * noise * np.maximum(np.abs(x), 0.1)


def _judge_output(model: ModelProto, feeds: dict[str, Array], floats: list[str], name: str) -> Outcome:
    source = in_float64(model)
    try:
        wide = _expanded(model)
        if {n.op_type for n in wide.graph.node} & EXCLUDED:
            return Outcome("outside", "its body is a loop")
        forward = evaluator(wide)
        feeds = {i.name: feeds[i.name] for i in model.graph.input if i.name in feeds}
        y = np.asarray(forward.run([name], feeds)[0])
    except Exception as error:
        return Outcome("untestable", f"the reference evaluator can't run the source in float64: {_line(error)}")
    try:
        built = _converted(model, source, name)
    except gbprewrite.UnsupportedOperators as error:
        return Outcome("refused", "; ".join(f"{o.operator}: {o.why}" for o in error.obstacles))
    except gbprewrite.GbprewriteError as error:
        if error.__cause__ is not None:
            return Outcome("wrong", f"converting crashed: {_line(error)}")
        text = str(error).splitlines()[0]
        known = "does not depend on" in text or "no float input" in text
        return Outcome("not differentiable" if known else "refused", text)
    except Exception as error:
        return Outcome("wrong", f"converting crashed: {_line(error)}")
    seed = np.random.default_rng(7).normal(size=y.shape)
    try:
        found = evaluate(built, _typed(built, {**feeds, "seed": seed}))
    except Exception as error:
        return Outcome("untestable", f"the reference evaluator can't run the result: {_line(error)}")
    return _compare(forward, name, feeds, floats, seed, {n: found.get(f"{n}_gradient") for n in floats})


def _converted(model: ModelProto, source: ModelProto, name: str) -> ModelProto:
    """The source converted in float64, or in float32 where the standard has an operator or a constant in no other."""
    how: dict[str, Any] = {"method": "gradient", "target": "seed", "score": name, "through_softmax": True}
    try:
        built = gbprewrite.convert(source, **how)
        record = read_record(built) or {}
        if "tensor(float)" not in str(record.get("flaw")):
            return built
    except gbprewrite.ModelError as error:
        if "tensor(double)" not in str(error) and "tensor(float)" not in str(error):
            raise
    return gbprewrite.convert(model, **how)


def _typed(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Float arrays in the type that the model declares."""
    kinds = {i.name: helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    return {n: v.astype(kinds[n]) if v.dtype == np.float64 else v for n, v in feeds.items()}


def _expanded(model: ModelProto) -> ModelProto:
    """The source in float64 throughout: bodies of the standard's functions compute in float32 where they are hidden."""
    plain = ModelProto()
    plain.CopyFrom(model)
    return in_float64(normalise(plain, known()))


def _compare(
    forward: Any, name: str, feeds: dict[str, Array], floats: list[str], seed: Array, maps: dict[str, Array | None]
) -> Outcome:
    worst = 0.0
    for x in floats:
        dx = maps[x] if maps[x] is not None else np.zeros_like(feeds[x])
        for v in _directions(feeds[x]):
            claimed = float(np.sum(dx * v))
            errors = []
            for step in STEPS:
                above, below = (forward.run([name], {**feeds, x: feeds[x] + s * v})[0] for s in (step, -step))
                slope = float(np.sum(seed * (above - below))) / (2 * step)
                scale = max(abs(slope), float(np.linalg.norm(dx) * np.linalg.norm(v)), 1e-3)
                errors.append(abs(claimed - slope) / scale)
            worst = max(worst, min(errors))
    verdict = "proved" if worst <= TOLERANCE else "wrong"
    return Outcome(verdict, f"{worst:.1e}")


def _directions(x: Array) -> Iterator[Array]:
    rng = np.random.default_rng(11)
    for _ in range(DIRECTIONS):
        yield rng.normal(size=x.shape)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def main() -> None:
    """Print the table of verdicts, and every case that is neither proved nor without a derivative."""
    outcomes = [(case, judge(case)) for case in cases()]
    counts = Counter(o.verdict for _, o in outcomes)
    print(f"| verdict | of {len(outcomes)} cases of onnx {onnx.__version__} |\n|---|---|")
    for verdict, meaning in VERDICTS.items():
        print(f"| {verdict}: {meaning} | {counts[verdict]} |")
    for case, outcome in outcomes:
        if outcome.verdict in ("wrong", "refused", "untestable"):
            print(f"{outcome.verdict}: {case.name} (opset {opset_of(case.model)}): {outcome.detail}")


if __name__ == "__main__":
    main()

"""Does a converted model keep its promises on this machine?

preprocessing       embedded in the file: what Pillow and numpy make of the same images
backward part       what this version of gbprewrite writes for the source
original outputs    equal to the source's: bit for bit without graph optimisations, to rounding with them
gradient            is the gradient: ⟨map, v⟩ = dS(x + t·v)/dt, by central differences of the explained score S,
                    both in float64 by ONNX's reference evaluator
every map           as onnxruntime computes it here, against the reference evaluator in float64; where that stops or
                    takes minutes, against the same rules in another spelling
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

from gbprewrite.checks import other_lowering as other_spelling
from gbprewrite.checks.trial import Array, Double, Trial, backward_part, relative_error
from gbprewrite.convert import convert
from gbprewrite.errors import GbprewriteError, UsageError, first_line
from gbprewrite.graft import nodes as graft
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import blaming, load
from gbprewrite.methods.asked import methods_of
from gbprewrite.model import file as modelfile
from gbprewrite.model.messages import copied
from gbprewrite.photos import images
from gbprewrite.runtime import arrays
from gbprewrite.runtime.explainer import load_converted, slots_of
from gbprewrite.runtime.session import Session
from gbprewrite.select import inner
from gbprewrite.version import __version__
from gbprewrite.view import randomness

LEFT_OUT = "left out"
DIRECTIONS = 3  # random ones for each input
RETRIES = 7  # further directions and smaller steps, where a kink of the network lies within the step
CHANGE = 1e-9  # of the score by a step, relative: far above rounding in float64, and few kinks are that near
PHOTOS = (2, 300, 400, 3)  # images to try an embedded preprocessing on, where the file takes any
# No pixel may be another; in half precision a value may round to its neighbour.
GREY_LEVELS = {"float16": 2.0, "bfloat16": 2.0}
GREY_LEVELS_ELSE = 0.5
SHRINK, SHRINK_TO = 4, 1 / 64  # the step after a kink, and how far


class Limits(NamedTuple):
    """The largest relative error that passes, by the model's float type; None where the error is only reported.

    `values` counts values of the original outputs that are not the same bit for bit; onnxruntime rounds float16 on the
    CPU where it likes, so that neighbours of a node change its result. A unit near its kink may be on in float32 and
    off in float64, so that a map of a deep network is off by 1e-3 or so.
    """

    values: float | None
    outputs: float | None
    maps: float


LIMITS = {
    "float64": Limits(0.0, 1e-12, 1e-6),
    "float32": Limits(0.0, 1e-5, 1e-2),
    "float16": Limits(None, None, 1e-1),
    "bfloat16": Limits(None, None, 5e-1),
}
# Of a directional derivative in float64: its largest error, and the difference of one-sided slopes that is a kink.
DERIVATIVE, KINK = 1e-4, 1e-4
# Where float64 can't be had, rounding allows no small step, and a large one crosses many kinks.
SINGLE_DERIVATIVE, SINGLE_KINK, SINGLE_CHANGE = 5e-2, 5e-2, 1e-3


@dataclass(frozen=True)
class Check:
    """One check: status is "passed", "failed" or "skipped"; `error` and `limit` are relative L2 errors, or None."""

    name: str
    status: str
    error: float | None
    limit: float | None
    note: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `unchecked` names what was left out: gradient and maps, where it had to be quick, or maps
    that nothing here can compute a second time. `to_json` gives plain types."""

    provider: str
    inputs: dict[str, list[int]]
    checks: tuple[Check, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.status == "failed" for check in self.checks)

    @property
    def ok(self) -> bool:
        """Whether no check failed, and none was left out."""
        return not self.failed and not self.unchecked

    @property
    def verdict(self) -> str:
        """In words: "ok", "failed", or that nothing failed and what was left out."""
        if self.ok or self.failed:
            return "ok" if self.ok else "failed"
        return f"nothing failed, but not checked: {', '.join(self.unchecked)}"

    def to_json(self) -> dict[str, Any]:
        """The same as dictionaries, lists, strings and numbers."""
        checks = [{**asdict(check), "error": _finite(check.error)} for check in self.checks]
        return {"ok": self.ok, "verdict": self.verdict, **asdict(self), "checks": checks}


def verify(
    converted: str | os.PathLike[str] | ModelProto,
    source: str | os.PathLike[str] | ModelProto | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    providers: str = "auto",
    quick: bool = False,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Verification:
    """Check a converted model on this machine, every map of it.

    Args:
        converted: the converted file or model.
        source: the model it was made from; without it, the source part of the converted model takes its place.
        inputs: name -> array to check it on; random numbers by default (zeros for integers, 64 or more positions where
            the model takes any number of them).
        providers: "auto", "cuda" or "cpu", as for Explainer.
        quick: leave out the gradient and the maps, which take dozens of passes in float64.
        progress: is told what is done now, and which share of all is behind.

    Raises:
        ModelError: the file can't be read or was never converted, or onnxruntime can't load it.
        UsageError, DataError: inputs that the model does not take, or whose score is not finite.
        RuntimeUnavailable: no onnxruntime, or CUDA was asked for and does not load.
    """
    model, record = load_converted(converted)
    given = None if source is None else load(source)
    if record["embedded"] is not None:
        with blaming(model):
            check, values = _preprocessing(model, record, dict(inputs or {}))
            whole = embedded.take_out(copied(model))
            rest = verify(whole, given, inputs=values, providers=providers, quick=quick, progress=progress)
        return replace(rest, checks=(check, *rest.checks))
    if report.holds_only_maps(record):
        return _verify_maps(model, record, given, inputs, providers, quick, progress)
    with blaming(model):
        trial = Trial(model, record, inputs or {}, providers, progress)
        if randomness.in_model(trial.source):
            why = "the model draws random numbers, so that no two runs of it agree"
            unchecked = ("original outputs", "directional derivatives", *(m["output"] for m in record["maps"]))
            checks = [_backward(trial, given), *(_skipped(name, why) for name in unchecked)]
            return Verification(trial.ran_on, {n: list(a.shape) for n, a in trial.feeds.items()}, tuple(checks))
        checks = list(_checks(trial, given, quick))
        shapes = {name: list(a.shape) for name, a in trial.feeds.items()}
        unchecked = tuple(c.name for c in checks if c.status == "skipped" and c.note.startswith(LEFT_OUT))
        return Verification(trial.ran_on, shapes, tuple(checks), unchecked)


def _checks(trial: Trial, source: ModelProto | None, quick: bool) -> Iterator[Check]:
    trial.told("original outputs", 0.0)
    yield from _outputs(trial, source)
    trial.told("backward part", 0.1)
    yield _backward(trial, source)
    if quick:
        for name in ("directional derivatives", *_map_names(trial.record).values()):
            yield _skipped(name, f"{LEFT_OUT}, to be quick; verify without --quick checks it")
        return
    if trial.record["inner_inputs"]:
        yield from _inner_maps(trial)
        return
    trial.told("scores in float64", 0.2)
    double = Double(trial)
    yield from _derivatives(trial, double)
    trial.told("maps", 0.9)
    yield from _maps(trial, double)


def _preprocessing(model: ModelProto, record: report.Record, inputs: dict[str, Any]) -> tuple[Check, dict[str, Any]]:
    """What the file makes of photographs (random ones unless given) against Pillow and numpy; and the inputs, in which
    given photographs became the values that the network is fed."""
    made, row = embedded.read(record["preprocessing"]), record["embedded"]
    slot = next(s for s in slots_of(model) if s.name == row["name"])
    sizes = [d if isinstance(d, int) else n for d, n in zip(slot.shape or (), PHOTOS, strict=True)]
    drawn = np.random.default_rng(0).integers(0, 256, sizes, np.uint8)
    photos = arrays.fit({slot.name: inputs.get(slot.name, drawn)}, [slot])[slot.name]
    front = copied(model)
    front.graph.output.append(next(v for v in model.graph.value_info if v.name == row["input"]))
    graft.keep_only(front, [row["input"]])
    for other in [i for i in front.graph.input if i.name != slot.name]:
        front.graph.input.remove(other)
    values = Session(front, "cpu").run({slot.name: photos})[row["input"]]
    wanted = np.concatenate([made.array(images.fit(made, images.of(photo))) for photo in photos])
    levels = np.abs(values.astype(np.float64) - wanted.astype(np.float64)) * max(np.abs(made.std)) / abs(made.scale)
    note = f"of {list(photos.shape)} images, against Pillow and numpy; the error is the largest one, in grey levels"
    if slot.name in inputs:
        inputs = {**{n: a for n, a in inputs.items() if n != slot.name}, row["input"]: values}
    limit = GREY_LEVELS.get(made.dtype.name, GREY_LEVELS_ELSE)
    return _check("preprocessing", float(levels.max()), limit, note), inputs


def _inner_maps(trial: Trial) -> Iterator[Check]:
    """Maps of inner tensors: against those of a model that takes these tensors as inputs, which is checked itself."""
    names = [row["name"] for row in trial.record["inner_inputs"]]
    maps = [m["output"] for m in trial.record["maps"]]
    source = inner.cut(trial.source, names)
    absent = _absent(trial.record)
    if absent:
        yield from (_skipped(f"{name} and its derivatives", absent) for name in maps)
        return
    if source is None:
        why = f"{', '.join(names)}: no tensor of the source, so that no model can take it as an input"
        yield from (_skipped(f"{name} and its derivatives", why) for name in maps)
        return
    asked = list(dict.fromkeys(m["input"] for m in trial.record["maps"]))
    whole = convert(source, **{**trial.record["options"], "inputs": asked})
    feeds = {**trial.feeds, **Session(inner.shown(trial.model, names), "cpu").run(trial.feeds, names)}
    both = ((trial.model, trial.feeds), (whole, feeds))
    ours, theirs = (Session(made, "cpu", optimise=False).run(fed, maps) for made, fed in both)
    note = f"against the map of a model that takes {', '.join(names)} as input, run on cpu without optimisations"
    yield from (_check(name, relative_error(ours[name], theirs[name]), _limits(trial).maps, note) for name in maps)
    for check in verify(whole, source, inputs=feeds, providers=trial.provider).checks:
        if not check.name.startswith(("original outputs", "backward part")):
            yield replace(check, note=f"{check.note}; of a model that takes {', '.join(names)} as input")


def _verify_maps(
    model: ModelProto,
    record: report.Record,
    source: ModelProto | None,
    inputs: Any,
    providers: str,
    quick: bool,
    progress: Callable[[str, float], None],
) -> Verification:
    """A file that holds only maps: its source is converted again as a whole, and the maps of both must agree."""
    if source is None:
        raise UsageError(
            "the file holds only maps (it was converted with --maps-only): verify compares it with its source, so name "
            "that too (--source MODEL)."
        )
    whole = convert(source, **{**record["options"], "maps_only": False})
    found = verify(whole, source, inputs=inputs, providers=providers, quick=quick, progress=progress)
    with blaming(model):
        trial = Trial(whole, report.read_record(whole) or record, inputs or {}, providers)
        names = [m["output"] for m in record["maps"]]
        ours, theirs = (Session(m, "cpu", optimise=False).run(trial.feeds, names) for m in (model, whole))
        note = "compared with the same maps of the whole file, run on cpu without optimisations"
        checks = [_check(f"{n} without the rest", relative_error(ours[n], theirs[n]), 0.0, note) for n in names]
    return replace(found, checks=(*found.checks, *checks))


def _finite(error: float | None) -> float | None:
    """JSON knows no infinity."""
    return error if error is not None and math.isfinite(error) else None


def _check(name: str, error: float, limit: float | None, note: str = "") -> Check:
    passed = limit is None or error <= limit  # NaN fails
    return Check(name, "passed" if passed else "failed", error, limit, note)


def _skipped(name: str, why: str) -> Check:
    return Check(name, "skipped", None, None, why)


def _outputs(trial: Trial, source: ModelProto | None) -> Iterator[Check]:
    """The original outputs against the source's."""
    model, note = _source(trial, source)
    limits = _limits(trial)
    theirs = Session(model, "cpu", optimise=False).run(trial.own)
    ours = Session(trial.model, "cpu", optimise=False).run(trial.feeds)
    words = f"{note}, run on cpu without optimisations; the error counts values that differ"
    yield _compared("original outputs, bit for bit", ours, theirs, _differing, limits.values, words)
    theirs = Session(model, trial.provider, tf32=False).run(trial.own)
    words = f"{note}, run on {trial.session.provider}"
    yield _compared("original outputs, optimised", trial.found, theirs, relative_error, limits.outputs, words)


def _source(trial: Trial, source: ModelProto | None) -> tuple[ModelProto, str]:
    """What the converted model is compared with, and that in words."""
    if source is None:
        return trial.source, "against the source part of the file itself (--source MODEL compares with another file)"
    if {s.name for s in slots_of(source)} != set(trial.own):
        raise UsageError(
            f"the source given takes {arrays.listing(slots_of(source))}, and the converted model's source took "
            f"{arrays.listing(trial.slots)}: it is another model. Give the one that was converted."
        )
    if modelfile.sha256(source) == trial.record["source"]["sha256"]:
        return source, "against the source given"
    return source, "against the source given, which is not the file that was converted (its sha256 differs)"


def _absent(record: report.Record) -> str | None:
    """Why the file can't be converted again: a method of its user's own that this process does not have."""
    for name, row in record["own_methods"].items():
        if row["at"] is None:
            return f"the method {name} was made in a script, from which no other process can import it"
        try:
            methods_of(row["at"])
        except UsageError as error:
            return f"the method {name} is not here: {first_line(error)}"
    return None


def _backward(trial: Trial, source: ModelProto | None) -> Check:
    """What the conversion added, against what it adds to the source now."""
    name, version = "backward part, as this version writes it", trial.record["version"]
    if version != __version__:
        return _skipped(name, f"the file was written by gbprewrite {version}, and this is {__version__}")
    absent = _absent(trial.record)
    if absent:
        return _skipped(name, absent)
    note = "converted again from the " + ("source part of the file" if source is None else "source given")
    try:
        again = convert(trial.source if source is None else source, **trial.record["options"])
    except GbprewriteError as error:
        return Check(name, "failed", None, None, f"{note}, which stops: {first_line(error)}")
    ours, wanted = backward_part(trial.model), backward_part(again)
    wrong = [part for part in wanted if ours[part] != wanted[part]]
    if wrong:
        note += (
            f", other {' and '.join(wrong)} come out. Either the file was changed, or it was written under a version "
            "of onnx that infers other shapes"
        )
    return Check(name, "failed" if wrong else "passed", None, None, note)


def _compared(
    name: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    measure: Callable[[Any, Any], float],
    limit: float | None,
    note: str,
) -> Check:
    """The largest error of the outputs that are tensors of numbers."""
    missing = sorted(theirs.keys() - ours.keys())
    if missing:
        return Check(name, "failed", None, limit, f"{note}; outputs are missing: {', '.join(missing)}")
    numeric = [o for o, value in theirs.items() if np.asarray(value).dtype.kind in "biufV"]
    return _check(name, max((measure(ours[o], theirs[o]) for o in numeric), default=0.0), limit, note)


def _differing(a: Array, b: Array) -> float:
    """The number of values that are not the same."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return float(np.sum((a != b) & ~((a != a) & (b != b))))


def _derivatives(trial: Trial, double: Double) -> Iterator[Check]:
    """The gradient of each input against central differences."""
    model = trial.gradient_model
    record = report.read_record(model)
    assert record is not None
    note = "" if model is trial.model else "the file holds no gradient, so one was made from its source part; "
    rows = [m for m in record["maps"] if m["method"] == "gradient" and m["form"] == "raw"]
    score = double.score
    if double.why:
        score = partial(_single_score, Session(trial.scored, trial.provider, tf32=False), trial)
        found = Session(model, trial.provider, tf32=False).run(trial.feeds)
        note += f"in {trial.score.dtype} by onnxruntime, since {double.why}"
    else:
        found = double.gradient
        note += "in float64 by the reference evaluator"
    for row in rows:
        differences = _Differences(trial, row["input"], score, not double.why)
        yield differences.check(found[row["output"]], found.get(record["explained_index_name"]), note)


def _single_score(session: Session, trial: Trial, feeds: Mapping[str, Array]) -> Array:
    cast = {name: a.astype(trial.own[name].dtype) for name, a in feeds.items()}
    return np.asarray(session.run(cast, [trial.score_name])[trial.score_name], np.float64)


class _Differences:
    """Central differences of the score S(x) = ⟨dy, score(x)⟩ in one input."""

    def __init__(self, trial: Trial, x: str, score: Callable[[Mapping[str, Array]], Array], exact: bool) -> None:
        self.trial, self.x, self.score, self.exact = trial, x, score, exact
        self.at = np.asarray(trial.own[x], np.float64)
        self.limit, self.kink = (DERIVATIVE, KINK) if exact else (SINGLE_DERIVATIVE, SINGLE_KINK)

    def check(self, gradient: Array, index: Array | None, note: str) -> Check:
        """The largest error over the directions that meet no kink."""
        name = f"directional derivatives of {self.x}"
        axis = 0 if self.trial.record["unbatched"] else 1  # of the classes
        classes = gradient.shape[axis] if gradient.ndim > self.at.ndim else 0
        weights = self.trial.rng.normal(size=classes) if classes else np.ones(1)
        slope = np.asarray(gradient, np.float64)
        slope = np.tensordot(weights, slope, (0, axis)) if classes else slope
        if slope.shape != self.at.shape:
            return Check(name, "failed", None, self.limit, f"the map has shape {list(gradient.shape)}")
        dy = self.trial.cotangent(weights, index)
        if not np.any(slope):
            return self._zero(name, dy)
        errors = self._errors(slope, dy)
        smooth = [error for error, kinked in errors if not kinked]
        note += f"; {len(smooth)} random directions"
        if len(smooth) < len(errors):
            note += f", and {len(errors) - len(smooth)} across a kink of the network, which do not count"
        return _check(name, max(smooth), self.limit, note) if smooth else _skipped(name, note)

    def _zero(self, name: str, dy: Array) -> Check:
        """A map of nothing but zeros is right where the score does not move."""
        size = 1e-6 * float(np.sqrt(np.mean(self.at**2)) or 1)
        moved = self.score(self._moved(size * self.trial.rng.normal(size=self.at.shape)))
        if np.array_equal(dy * moved, dy * self.score(self.trial.own)):
            return _skipped(name, "the score is flat around this input; give another one with --input NAME=x.npy")
        return Check(name, "failed", 1.0, self.limit, "the map is zero, and the score moves with the input")

    def _errors(self, slope: Array, dy: Array) -> list[tuple[float, bool]]:
        """(relative error, whether a kink lies within the step) of random directions, until enough are smooth.

        The error is relative to the size that ⟨map, v⟩ has for a random v, or to its own where that is larger.
        """
        middle = self.score(self.trial.own)
        usual = float(np.linalg.norm(slope))
        step = (CHANGE if self.exact else SINGLE_CHANGE) * float(np.linalg.norm(dy * middle) or 1) / usual
        least = step * SHRINK_TO
        found: list[tuple[float, bool]] = []
        while len(found) < DIRECTIONS + RETRIES and sum(not kinked for _, kinked in found) < DIRECTIONS:
            self.trial.told(f"directional derivatives of {self.x}", 0.4 + 0.5 * len(found) / (DIRECTIONS + RETRIES))
            direction = self._direction(slope / usual)
            wanted = float(np.sum(slope * direction))
            ahead, behind = (
                float(np.sum(dy * (self.score(self._moved(t * direction)) - middle))) / t for t in (step, -step)
            )
            scale = max(abs(wanted), usual)
            kinked = abs(ahead - behind) / scale > self.kink
            found.append((abs((ahead + behind) / 2 - wanted) / scale, kinked))
            step = max(step / SHRINK, least) if kinked else step
        return found

    def _direction(self, along: Array) -> Array:
        """Random, with ⟨map, v⟩ of the size of the map.

        In float32 a random half of the map itself: the score then moves as far by a step so much shorter that few units
        meet their kink, at the price of a check that sees errors of the map only by their square.
        """
        rng = self.trial.rng
        if self.exact:
            return np.asarray(rng.normal(size=along.shape))
        return 2 * along * rng.integers(2, size=along.shape)

    def _moved(self, by: Array) -> dict[str, Array]:
        return {**self.trial.own, self.x: self.at + by}


def _map_names(record: report.Record) -> dict[str, str]:
    """Output → the name of its check."""
    return {
        m["output"]: f"{m['method']} {'map' if m['form'] == 'raw' else m['form']} of {m['input']}"
        for m in record["maps"]
    }


def _maps(trial: Trial, double: Double) -> Iterator[Check]:
    """Every map, as it is computed here, against the reference evaluator, or the same rules in another spelling."""
    names, index = _map_names(trial.record), trial.record["explained_index_name"]
    how = "the reference evaluator in float64"
    if not double.why:
        wanted = double.found
    else:
        try:
            wanted, how = other_spelling.maps(trial)
        except GbprewriteError as error:
            why = f"{LEFT_OUT}, since {double.why}, and the other spelling stops: {first_line(error)}"
            yield from (_skipped(name, why) for name in names.values())
            return
        how += f", since {double.why}"
    note = f"run on {trial.session.provider}, against {how}"
    if index and not np.array_equal(trial.found[index], wanted[index]):
        note += f"; they explain different classes, {trial.found[index].tolist()} and {wanted[index].tolist()}"
    limit = _limits(trial).maps
    for output, name in names.items():
        yield _check(name, relative_error(trial.found[output], wanted[output]), limit, note)


def _limits(trial: Trial) -> Limits:
    return LIMITS.get(trial.score.dtype.name, LIMITS["float32"])

"""A converted model and its source, with inputs to try them on: what `verify` works with."""

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from gbprewrite.backward.regions import said_by
from gbprewrite.checks import reference
from gbprewrite.convert import convert
from gbprewrite.errors import DataError, first_line
from gbprewrite.graft import pictures as heatmaps
from gbprewrite.graft import record as report
from gbprewrite.graft import restore
from gbprewrite.model.messages import copied
from gbprewrite.runtime import arrays
from gbprewrite.runtime.explainer import slots_of
from gbprewrite.runtime.finiteness import describe
from gbprewrite.runtime.session import Session
from gbprewrite.select.class_axis import classes_second, samples_first
from gbprewrite.select.final_activation import show_score
from gbprewrite.select.target import parse_target

Array = NDArray[Any]
Feeds = dict[str, Array]
AGREEMENT = 1e-2  # of the two evaluators' scores, relative; they differ by rounding or one of them is wrong
SECONDS_A_PASS = 10.0  # of all cores together: another load on the machine changes nothing
LEVELS = {"uint8": (0, 256), "int8": (-128, 128)}
BATCH = 2  # where the model takes any
SIDES = (64, 128, 256)  # tried in turn for the other dimensions of any size: the first that the network takes
CHANNELS, CHANNEL_AXES = (3, 1), (1, -1)  # tried after that for a dimension that may be the channels


def backward_part(model: ModelProto) -> dict[str, Any]:
    """What a conversion added to a model, in a form that compares; facts about the source are left out."""
    record = report.read_record(model)
    assert record is not None
    added, graph = record["added"], model.graph
    gained = {m["output"] for m in record["maps"]}
    gained |= {record["explained_index_name"], *report.given_names(record)}
    weights = graph.initializer[len(graph.initializer) - added["initializers"] :]
    return {
        "nodes": list(graph.node[len(graph.node) - added["nodes"] :]),
        "constants": [(t.name, t.data_type, list(t.dims), numpy_helper.to_array(t).tobytes()) for t in weights],
        "inputs and outputs": [v for v in (*graph.input, *graph.output) if v.name in gained],
        "entries of the record": {name: value for name, value in record.items() if name not in ("source", "flaw")},
    }


class Trial:
    """A converted model, its record, its source part, and inputs (random where none were given).

    `feeds` holds the inputs of the converted model, `own` those of its source.
    """

    def __init__(
        self,
        converted: ModelProto,
        record: report.Record,
        inputs: Mapping[str, Any],
        provider: str,
        told: Callable[[str, float], None] = lambda what, share: None,
    ) -> None:
        """Find inputs that the model takes; `told` hears what is done, and which share is behind.

        Raises DataError when it takes none of those tried.
        """
        self.told = told
        self.model, self.record, self.provider = converted, record, provider
        self.source = restore.restore(copied(converted))
        self.rng = np.random.default_rng(0)
        self.slots, self.given = slots_of(self.source), dict(inputs)
        self.runtime_name = record["target_name"] or record["seed_name"]
        session = Session(self.scored, provider, tf32=False)
        self.ran_on = session.provider
        self.own, self.score = self._inputs(session)
        self.feeds = {**self.own, **self._runtime_input(), **self._noise()}

    @cached_property
    def scored(self) -> ModelProto:
        """The source with the score, as it is counted, among its outputs."""
        return self._scored[0]

    @cached_property
    def score_name(self) -> str:
        """The output of `scored` that has the score."""
        return self._scored[1]

    @cached_property
    def _scored(self) -> tuple[ModelProto, str]:
        model = copied(self.source)
        return model, show_score(model, self.record["score"], self.record["moved"])

    @cached_property
    def found(self) -> dict[str, Any]:
        """All outputs of the converted model, as optimised for the provider."""
        return self.session.run(self.feeds)

    @cached_property
    def session(self) -> Session:
        """The converted model, as optimised for the provider, in full precision."""
        return Session(self.model, self.provider, tf32=False)

    def _inputs(self, session: Session) -> tuple[Feeds, Array]:
        """Inputs that the source takes, and its score on them."""
        failure, void = "", True
        given = {s.name: self.given[s.name] for s in self.slots if s.name in self.given}
        for shapes in self._shapes():
            drawn = {s.name: self._random(s, shapes[s.name]) for s in self.slots if s.name in shapes}
            feeds = arrays.fit({**given, **drawn}, self.slots)
            try:
                score = session.run(feeds, [self.score_name])[self.score_name]
            except DataError as error:
                failure, void = str(error), False
                continue
            if np.isfinite(score).all():
                return feeds, score
            failure = f"{describe(f'the score {self.score_name!r}', score)} there"
        if void:
            raise DataError(
                f"{failure.removesuffix(' there')} on any input tried, and it is the model that gives it: there is "
                "nothing to verify. Repair the model, or give an input on which its score is finite with --input "
                "NAME=x.npy."
            )
        raise DataError(f"no input was found that the model takes; give one with --input NAME=x.npy. Last: {failure}")

    def _shapes(self) -> Iterator[dict[str, list[int]]]:
        """Shapes of the inputs to try; at last as of photographs, with the channels behind the batch or last."""
        free = [s for s in self.slots if s.name not in self.given]
        tried = [_shapes(free, side, side, None) for side in SIDES]
        yield from tried  # where all of them are the same, other random numbers are worth a try
        for axis, channels, side in itertools.product(CHANNEL_AXES, CHANNELS, SIDES):
            shapes = _shapes(free, side, channels, axis)
            if shapes not in tried:
                tried.append(shapes)
                yield shapes

    def _random(self, slot: arrays.Slot, shape: Sequence[int]) -> Array:
        if slot.dtype in (np.uint8, np.int8) and len(shape) > 2:  # an image
            return self.rng.integers(*LEVELS[slot.dtype.name], shape, slot.dtype)
        if slot.dtype.kind in "iub":  # an index or a switch: zero is the one value that is always there
            return np.zeros(shape, slot.dtype)
        return self.rng.normal(size=shape).astype(slot.dtype)

    def _runtime_input(self) -> Feeds:
        """The run-time target (random classes) or seed (random), unless it was given."""
        name = self.runtime_name
        if name is None:
            return {}
        if name in self.given:
            return {name: np.asarray(self.given[name])}
        if name == self.record["seed_name"]:
            return {name: self.rng.normal(size=self.score.shape).astype(self.score.dtype)}
        samples, classes = self._counted(self.score).shape[:2]
        return {name: np.asarray(self.rng.integers(classes, size=samples))}

    def _counted(self, values: Array) -> Array:
        """A view [samples, classes, ...] of the score's values."""
        return classes_second(values, self.record["batch_axis"], self.record["class_axis"])

    def _noise(self) -> Feeds:
        """SmoothGrad's noise and baselines: what was given, or random numbers."""
        slots, found = {s.name: s for s in slots_of(self.model)}, {}
        for row in self.record["given"]:
            slot, like = slots[row["name"]], self.own[row["input"]].shape
            lead = [n for n in (slot.shape or ())[:1] if isinstance(n, int)] or like[:1]
            given = self.given.get(slot.name, self._random(slot, [*lead, *like[1:]]))
            found[slot.name] = np.asarray(given, slot.dtype)
        return found

    @cached_property
    def gradient_model(self) -> ModelProto:
        """The converted model if it holds gradient maps, else one that has them, made from its source part."""
        if any(m["method"] == "gradient" and m["form"] == "raw" for m in self.record["maps"]):
            return self.model
        first = self.record["maps"][0]
        ending = heatmaps.map_name(first["input"], first["method"], first["form"])
        return convert(
            self.source,
            "gradient",
            self.record["target"],
            score=self.record["output" if self.record["moved"] else "score"],
            inputs=list(dict.fromkeys(m["input"] for m in self.record["maps"])),
            class_axis=self.record["class_axis"],
            channels=self.record["options"].get("channels"),
            through_softmax=not self.record["moved"],  # else the record names the score itself
            prefix=first["output"].removesuffix(ending),
        )

    def cotangent(self, weights: Array, index: Array | None) -> Array:
        """dS/d(score) in float64, for S = Σₖ weights[k] · (score of class or unit index[:, k]), over the batch."""
        shape = self.score.shape
        if index is None:
            return np.asarray(self.feeds[self.record["seed_name"]], np.float64)
        dy = np.zeros(shape)
        target = parse_target(self.record["target"])
        if target.one_unit:
            units = samples_first(dy, self.record["batch_axis"])
            for k, places in enumerate(np.moveaxis(index, 1, 0) if target.many else [index]):
                units[(np.arange(len(units)), *places.T)] += weights[k]
            return dy
        classes = self._counted(dy)
        samples = np.arange(len(classes))
        if target.kind == "region":
            said = said_by(self._counted(self.score), self.record["said_above"])
            classes[samples, index] = said[samples, index]
            return dy
        for k, column in enumerate(index.reshape(len(classes), -1).T):
            classes[samples, column] += weights[k]
        return dy
        classes = np.moveaxis(dy, self.record["class_axis"], 1)  # a view
        for k, column in enumerate(index.reshape(shape[0], -1).T):
            classes[np.arange(shape[0]), column] += weights[k]
        return dy


def _shapes(slots: Sequence[arrays.Slot], side: int, channels: int, axis: int | None) -> dict[str, list[int]]:
    """A shape for each input, with a number of channels on an axis, if any, where the model takes any number."""

    def key(slot: arrays.Slot, at: int, dim: str) -> str:
        """Named dimensions have one size everywhere."""
        return dim if dim != "?" else f"{slot.name}[{at}]"

    def shape(slot: arrays.Slot) -> list[int]:
        dims = enumerate(slot.shape or ())
        return [d if isinstance(d, int) else sizes[key(slot, at, d)] if at else BATCH for at, d in dims]

    named = [(s, at, d) for s in slots for at, d in enumerate(s.shape or ()) if isinstance(d, str)]
    sizes = {key(*place): side for place in named}
    for slot, at, dim in named:
        rank = len(slot.shape or ())
        if axis is not None and rank > 2 and at == axis % rank:
            sizes[key(slot, at, dim)] = channels
    return {s.name: shape(s) for s in slots}


class Double:
    """The same models in float64, by ONNX's reference evaluator.

    `why` says why not, and is empty otherwise. `found` holds the converted model's outputs, `gradient` those of the
    trial's gradient model.
    """

    def __init__(self, trial: Trial) -> None:
        """Run the models; `why` is set when that is too slow, or stops, or the score is not onnxruntime's."""
        self.name, self.why = trial.score_name, ""
        gradient_model = trial.gradient_model
        try:
            self._forward = reference.evaluator(reference.in_float64(trial.scored))
            started = time.process_time()
            error = relative_error(trial.score, self.score(trial.own))
            seconds = time.process_time() - started
            if not error <= AGREEMENT:
                self.why = f"the reference evaluator's score differs from onnxruntime's by {error:.1e}"
            elif seconds > SECONDS_A_PASS:
                self.why = f"a forward pass of the reference evaluator takes {seconds:.0f} s, and dozens are needed"
            else:
                trial.told("maps in float64", 0.3)
                self.found = _run(trial.model, trial.feeds)
                self.gradient = self.found if gradient_model is trial.model else _run(gradient_model, trial.feeds)
        except Exception as stop:  # whatever an operator of the reference evaluator stops at
            self.why = f"the reference evaluator stops: {type(stop).__name__}: {first_line(stop)}"

    def score(self, feeds: Mapping[str, Array]) -> Array:
        """The score."""
        with _quiet():
            (score,) = self._forward.run([self.name], wide(feeds))
        return np.asarray(score)


def _run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    with _quiet():
        return reference.evaluate(reference.in_float64(model), wide(feeds))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """numpy's warnings about infinities say nothing here: onnxruntime computes the same ones."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def wide(feeds: Mapping[str, Array]) -> Feeds:
    """Every float in float64."""
    return {name: a if a.dtype.kind in "iub" else a.astype(np.float64) for name, a in feeds.items()}


def relative_error(found: Array, wanted: Array) -> float:
    """Relative L2 error, in float64."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return float("inf")
    norm = float(np.linalg.norm(wanted.ravel()))
    return float(np.linalg.norm((found - wanted).ravel())) / (norm or 1.0)

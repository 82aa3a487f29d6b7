"""Maps from numpy arrays: convert if need be, run, give everything names."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto

from gbprewrite.backward.lowering.targets import suited
from gbprewrite.convert import convert
from gbprewrite.errors import DataError, ModelError, NotFinite, UsageError
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import load
from gbprewrite.methods.asked import Asked, by_name, keywords_of
from gbprewrite.model.messages import copied
from gbprewrite.photos import images
from gbprewrite.runtime import arrays, finiteness
from gbprewrite.runtime.session import Session
from gbprewrite.select.final_activation import show_score
from gbprewrite.select.subset import text_of
from gbprewrite.select.target import parse_target

Array = NDArray[Any]

NOISE = 0.15  # deviation of SmoothGrad's noise, as a share of the range of the input's values


@dataclass(frozen=True)
class Explanation:
    """What one call of an Explainer gives.

    Attributes:
        maps: name of the output, `<input>_<method>`, -> map, of the input's dtype and shape (Grad-CAM's has one
            channel); where several classes are explained, with an axis of K classes behind the batch: [N, K, ...].
            Heatmaps and overlays too, where the file makes them.
        outputs: name -> the model's own outputs.
        index: int64, the class explained: [N], [N, K] for several classes, [N, rank - 1] for a unit of the score,
            [N, K, rank - 1] for several units; None for the target "seed".
        provider: "cuda" or "cpu", where it ran.
        notes: what is NaN or infinite, and why, a sentence each; empty where scores and maps are finite.
    """

    maps: dict[str, Array]
    outputs: dict[str, Any]
    index: NDArray[np.int64] | None
    provider: str
    _names: Mapping[tuple[str, str, str], str] = field(repr=False, default_factory=dict)
    notes: tuple[str, ...] = ()

    def map(self, method: str | None = None, input: str | None = None, form: str = "raw") -> Array:
        """The map of this method with respect to this input; neither need be named where there is only one.

        `form` is "raw", "heatmap" or "overlay". Raises UsageError when there is no such map, or more than one.
        """
        found = [
            name for (x, m, f), name in self._names.items() if method in (None, m) and input in (None, x) and form == f
        ]
        if len(found) != 1:
            known = ", ".join(f"{m}{'' if f == 'raw' else f' {f}'} of {x}" for x, m, f in self._names)
            raise UsageError(
                f"{len(found)} maps answer to method={method!r}, input={input!r}, form={form!r}. There are: {known}."
            )
        return self.maps[found[0]]


class Explainer:
    """Explains a model's decisions: call it with a batch.

    Attributes:
        record: what the conversion did, as in the file's metadata.
        provider: "cuda" or "cpu", where it runs; `provider_note` says why "auto" did not take CUDA.
        score_output: the name under which the score is among the outputs of an explanation, if it is.
        slots: every input that the model takes; `inputs`: those that are no run-time target or seed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        method: Asked | Sequence[Asked] | None = None,
        target: str | int | Sequence[int] | None = None,
        *,
        providers: str = "auto",
        threads: int = 0,
        tf32: bool = True,
        cuda_graph: bool = False,
        with_score: bool = False,
        **options: Any,
    ) -> None:
        """Load a model, and convert it first when it is none that gbprewrite has converted.

        Args:
            model: an ONNX file or a ModelProto.
            method: as for `gbprewrite.convert`; "guided" by default, or what a converted file holds.
            target: as for `gbprewrite.convert`; its default there, or what a converted file holds.
            providers: "auto" takes CUDA when a session really runs on it and else the CPU; "cuda"; "cpu".
            threads: how many the CPU provider uses; 0 for one for each core.
            tf32: let CUDA round float32 factors to 10 bits, its default: faster, and maps agree with the CPU's only
                to some 1e-3 rather than 1e-6.
            cuda_graph: capture the run of each set of shapes on CUDA and replay it: faster for small batches, whose
                kernels take less time than their launch. For models without If.
            with_score: give the explained score, as it is counted, among the outputs, even where it is an inner tensor.
            options: the other keywords of `gbprewrite.convert`.

        Raises:
            UsageError: a bad option, or one that a converted file contradicts.
            ModelError: a model that can't be read, converted or loaded.
            RuntimeUnavailable: no onnxruntime, or CUDA was asked for and does not load.
        """
        proto = load(model, replace=None)
        record = None if options.get("replace") else report.read_record(proto)
        if record is None:
            options = {"optimize_for": suited(providers), **options}
            proto = convert(proto, method or "guided", target, **options)
            record = report.read_record(proto)
            assert record is not None
            model = proto
        else:
            _check_agreement(record, method, target, options)
        self.record: report.Record = record
        asked = by_name(method, record["methods"]) if method else record["methods"]
        self._names = {
            (m["input"], m["method"], m["form"]): m["output"] for m in record["maps"] if m["method"] in asked
        }
        self.slots = slots_of(proto)
        self._classes = _number_of_classes(proto, record)
        self.score_output = record["score"]
        if with_score:
            model = proto = copied(proto)
            self.score_output = show_score(proto, record["score"], record["moved"])
        self._session = Session(model, providers, threads=threads, tf32=tf32, cuda_graph=cuda_graph)
        self.provider, self.provider_note = self._session.provider, self._session.note
        own = report.given_names(record)
        self.inputs = [s for s in self.slots if s.name not in own]
        ours = {m["output"] for m in record["maps"]} | {record["explained_index_name"]}
        self._outputs = [o.name for o in proto.graph.output if o.name not in ours]

    def __call__(
        self,
        batch: ArrayLike | Mapping[str, ArrayLike],
        *,
        targets: ArrayLike | None = None,
        seed: ArrayLike | None = None,
    ) -> Explanation:
        """The maps of a batch.

        Args:
            batch: the input, [N, ...], or name -> array for a model of several inputs, and for SmoothGrad's noise
                [samples, ...], which is drawn where it is missing. Integers become floats and floats the model's float
                type. A model of fixed batch size takes any N: it is run several times, the
                last time filled up with the last sample.
            targets: for the target "input" the class to explain, [N] or one number for all samples.
            seed: for the target "seed" the cotangent of the score, shaped like it.

        Raises:
            UsageError: missing or unknown inputs.
            DataError: a wrong shape or dtype, a target that does not exist, or onnxruntime stopped.

        Warns NotFinite where the model's own scores or the maps are NaN or infinite (also `Explanation.notes`).
        """
        feeds = dict(batch) if isinstance(batch, Mapping) else self._only_input(batch)
        self._add_runtime_input(feeds, "target", targets)
        self._add_runtime_input(feeds, "seed", seed)
        self._add_noise(feeds)
        fitted = arrays.fit(feeds, self.slots)
        found = self._run(fitted)
        maps = {name: found[name] for name in self._names.values()}
        outputs = {name: found[name] for name in self._outputs}
        self._check_targets(fitted, maps)
        index = self.record["explained_index_name"]
        raw = {name: maps[name] for (_, _, form), name in self._names.items() if form == "raw"}
        notes = finiteness.notes(self.record, fitted, outputs, raw)
        for note in notes:
            warnings.warn(note, NotFinite, stacklevel=2)
        return Explanation(maps, outputs, found[index] if index else None, self.provider, self._names, notes)

    def named(self, explanation: Explanation) -> dict[str, Any]:
        """Everything in an explanation under the names that the model's outputs have."""
        index = {} if explanation.index is None else {self.record["explained_index_name"]: explanation.index}
        return {**explanation.outputs, **explanation.maps, **index}

    def _only_input(self, batch: ArrayLike) -> dict[str, ArrayLike]:
        if len(self.inputs) != 1:
            raise UsageError(
                f"the model takes {len(self.inputs)} inputs, so give a dictionary of arrays: "
                f"{arrays.listing(self.inputs)}."
            )
        return {self.inputs[0].name: batch}

    def _add_runtime_input(self, feeds: dict[str, Any], role: str, value: ArrayLike | None) -> None:
        """The run-time target or seed among the inputs, under the name that the file gives it."""
        name = self.record[f"{role}_name"]
        keyword = "targets" if role == "target" else role
        if value is not None and name is None:
            raise UsageError(
                f"{keyword}= was given, and the model was converted with target {self.record['target']!r}, which takes "
                f"none. Convert with target {'input' if role == 'target' else 'seed'!r} for that."
            )
        if value is None:
            if name is not None and name not in feeds:
                raise UsageError(
                    f"the model takes its {role} at run time: give it as well ({keyword}=, or --input {name}=FILE)."
                )
            return
        array = np.asarray(value)
        if role == "target" and array.ndim == 0 and feeds:
            array = np.full(np.shape(next(iter(feeds.values())))[:1], array)
        feeds[name] = array

    def _add_noise(self, feeds: dict[str, Any]) -> None:
        """SmoothGrad's noise, where it was not given: normal, 15 % of the range of the input's values, always the same.

        Smilkov et al. 2017, section 3.2: 10 % to 20 % balance sharpness and structure.
        """
        rng = np.random.default_rng(0)
        samples = {s.name: int(s.shape[0]) for s in self.slots if s.shape and isinstance(s.shape[0], int)}
        for name, x in ((row["name"], row["input"]) for row in self.record["given"] if row["kind"] == "noise"):
            values = self._values_of(x, feeds)
            if name not in feeds and values is not None:
                drawn = rng.normal(size=(samples[name], *values.shape[1:]))
                feeds[name] = NOISE * float(np.ptp(values)) * drawn
            elif len(feeds.get(name, ())) not in (samples[name], 0):
                raise DataError(
                    f"input {name} was given {len(feeds[name])} samples of noise, and the model takes {samples[name]}."
                )

    def _values_of(self, x: str, feeds: Mapping[str, Any]) -> Array | None:
        """What the network is fed as its input x, if it was given; or makes of photographs itself."""
        row, made = self.record["embedded"], embedded.known(self.record)
        if row is None or made is None or row["input"] != x or row["name"] not in feeds:
            return np.asarray(feeds[x]) if x in feeds else None
        photos = arrays.fit({row["name"]: feeds[row["name"]]}, [s for s in self.slots if s.name == row["name"]])
        return np.concatenate([made.array(images.fit(made, images.of(photo))) for photo in photos[row["name"]]])

    def _run(self, feeds: dict[str, Array]) -> dict[str, Any]:
        index = self.record["explained_index_name"]
        wanted = [*self._outputs, *self._names.values(), *([index] if index else [])]
        noise = {row["name"]: feeds[row["name"]] for row in self.record["given"] if row["kind"] == "noise"}
        own = {name: a for name, a in feeds.items() if name not in noise}  # has samples; the noise is for all of them
        size = arrays.batch_size(own, [s for s in self.slots if s.name not in noise])
        if size is None:
            return self._session.run(feeds, wanted)
        count = len(next(iter(own.values())))
        return arrays.join([self._session.run(piece | noise, wanted) for piece in arrays.cut(own, size)], size, count)

    def _check_targets(self, feeds: Mapping[str, Array], maps: Mapping[str, Array]) -> None:
        """A model answers a target that does not exist with maps of nothing but NaN; here that is an error."""
        kind, target = parse_target(self.record["target"]).kind, self.record["target_name"]
        if kind in ("argmax", "seed") or (self._classes is not None and kind not in ("input", "region")):
            return  # the conversion knew what there is
        for (x, _, form), name in self._names.items():
            if form != "raw" and maps[name].dtype == np.uint8:
                continue  # has no NaN: such a picture is black
            rows = range(len(maps[name]))
            finite = [x not in feeds or np.isfinite(feeds[x][i]).all() for i in rows]  # a photograph's bytes are
            there = np.zeros(len(rows), bool)
            if kind == "input" and self._classes is not None and len(feeds[target]) == len(rows):
                there = (feeds[target] >= 0) & (feeds[target] < self._classes)
            void = [i for i in rows if np.isnan(maps[name][i]).all() and finite[i] and not there[i]]
            if void and kind == "region":
                raise DataError(
                    f"no position says the class of target {self.record['target']} in the score "
                    f"{self.record['score']!r}{self._where(feeds, void, len(rows))}. Explain another class, or "
                    "--target argmax, which sums a class over all positions."
                )
            if void:
                raise DataError(
                    f"the target does not exist in the score {self.record['score']!r}"
                    f"{self._where(feeds, void, len(rows))}. Give the index of a class that the model has."
                )

    def _where(self, feeds: Mapping[str, Array], void: Sequence[int], count: int) -> str:
        """Which samples have no such target, and which one that is; a score may have another batch than the input."""
        given = feeds[self.record["target_name"]] if self.record["target_name"] else None
        if given is not None and len(given) != count:
            return f" (targets {', '.join(map(str, given))})"
        said = [f"{i} (target {given[i]})" if given is not None else str(i) for i in void]
        return f" of sample {', '.join(said)}, counting from 0"


def load_converted(model: str | os.PathLike[str] | ModelProto) -> tuple[ModelProto, report.Record]:
    """A converted model and its record. Raises ModelError when the file can't be read or was never converted."""
    proto = load(model, replace=None)
    record = report.read_record(proto)
    if record is None:
        name = "the model" if isinstance(model, ModelProto) else os.fspath(model)
        raise ModelError(
            f"{name} is no converted model: it holds no record of gbprewrite. Convert it first, with "
            "gbprewrite.convert or 'gbprewrite convert MODEL'."
        )
    return proto, record


def slots_of(model: ModelProto) -> list[arrays.Slot]:
    """The inputs of a model that are no weights."""
    weights = {t.name for t in model.graph.initializer}
    rows = [report.value_row(i) for i in model.graph.input if i.name not in weights]
    return [arrays.Slot(r["name"], np.dtype(r["dtype"]), _dimensions(r["shape"])) for r in rows]


def _number_of_classes(model: ModelProto, record: report.Record) -> int | None:
    """The length of the score's class axis, where the file fixes it."""
    rows = [report.value_row(v) for v in (*model.graph.output, *model.graph.value_info) if v.name == record["score"]]
    shape, axis = (rows[0]["shape"] if rows else None), record["class_axis"]
    found = shape[axis] if shape is not None and axis is not None and axis < len(shape) else None
    return found if isinstance(found, int) and found > 0 else None


def _dimensions(shape: Sequence[arrays.Dim] | None) -> tuple[arrays.Dim, ...] | None:
    """Paddle writes -1 for a dimension of any size, others write 0."""
    return None if shape is None else tuple(d if isinstance(d, str) or d > 0 else "?" for d in shape)


def _check_agreement(
    record: report.Record, method: Asked | Sequence[Asked] | None, target: Any, options: Mapping[str, Any]
) -> None:
    """An option that contradicts what a converted file holds is an error, not ignored."""
    asked = by_name(method, record["methods"]) if method else {}
    options = {**options, **(keywords_of(method) if method else {})}
    against = [f"method {m!r}" for m in asked if m not in record["methods"]]
    if target is not None and parse_target(target).text != record["target"]:
        against.append(f"target {target!r}")
    for name in ("score", "layer"):
        if options.get(name) not in (None, record["score"], record["output"], record["options"].get("score")):
            against.append(f"{name} {options[name]!r}")
    for name, value in options.items():
        plain = list(value) if isinstance(value, tuple) else value  # as JSON has it
        plain = text_of(value) if name == "channels" and value is not None else plain
        # The record itself holds what an option that was left out came to.
        held = (record["options"].get(name), record.get(name))
        if name not in ("score", "layer", "replace") and plain and plain not in held:
            against.append(f"{name}={value!r}")
    if against:
        raise UsageError(
            f"the model is a converted one, with methods {', '.join(record['methods'])}, target {record['target']!r}, "
            f"score {record['score']!r}; {', '.join(against)} can't be had from it. Give its source, or use "
            "replace=True (--replace) to convert the source part again."
        )

"""Photographs explained: read, run, name the classes, draw. The work behind `gbprewrite explain`.

A `PhotoExplainer` makes an `ExplainedPhoto`, plain arrays and names, of an image file; `rows` and `picture` draw one.
`gallery.py` does both for many files.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from PIL import Image

from gbprewrite.backward.regions import said_by
from gbprewrite.errors import DataError, NotFinite, UsageError
from gbprewrite.graft import photographs as embedded
from gbprewrite.graft import record as report
from gbprewrite.methods.asked import Asked, by_name
from gbprewrite.methods.settings import reads_layer
from gbprewrite.model import file as modelfile
from gbprewrite.photos import evidence, images
from gbprewrite.photos.labels import Labels, check_number
from gbprewrite.photos.preprocessing import Options, Preprocessing, plan
from gbprewrite.pictures import panels as drawing
from gbprewrite.pictures.boxes import Detection, Detector
from gbprewrite.pictures.layout import Row, compose, png
from gbprewrite.plaintext import plain
from gbprewrite.runtime import arrays
from gbprewrite.runtime.explainer import Explainer, Explanation
from gbprewrite.select import inner
from gbprewrite.select.class_axis import classes_second, samples_first
from gbprewrite.select.final_activation import source_of
from gbprewrite.select.heads import IN_WORDS
from gbprewrite.select.subset import numbers_of
from gbprewrite.select.target import parse_target

Array = npt.NDArray[Any]

TOP = 5  # classes listed for each photograph
WIDE = 4  # maps beside each other, at most
# What the numbers of an output are, by the operator that made them; of any other operator they are scores.
MEANINGS = {"Softmax": "probability", "LogSoftmax": "log-probability", "Sigmoid": "probability"}


@dataclass(frozen=True)
class ClassScore:
    """One class: its index (several coordinates for a unit), label and value, None where unknown.

    meaning says what the value is: "probability", "log-probability" or "score", and whether it is a sum; of a unit of
    the inner tensor `layer` it is an "activation". A detector's unit has a `detection`.
    """

    index: tuple[int, ...]
    label: str | None
    value: float | None
    meaning: str
    layer: str | None = None
    detection: Detection | None = None

    def name(self) -> str:
        """`espresso (class 967)`, `dog (class 16), anchor 812, box 12,30 to 99,120`, or what is known of it."""
        if self.detection is not None:
            return self._detection_in_words(self.detection)
        is_class = len(self.index) == 1 and self.layer is None
        place = f"class {self.index[0]}" if is_class else f"unit {','.join(map(str, self.index))}"
        if self.layer is not None:
            return f"{self.layer}, {place}"
        return f"{self.label} ({place})" if self.label else place

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "detection": self.detection and self.detection.to_json()}

    def _detection_in_words(self, found: Detection) -> str:
        what = f"class {found.number}" if found.number is not None else IN_WORDS.get(found.role, found.role)
        named = f"{self.label} ({what})" if self.label else what
        place = f"{found.counted} {','.join(map(str, found.anchor))}"
        return ", ".join([named, place, *([found.box.text()] if found.box else [])])

    def title(self) -> str:
        """`espresso (class 967), probability 0.940`"""
        return self.name() if self.value is None else f"{self.name()}, {self.meaning} {self.value:.3f}"


@dataclass(frozen=True)
class ExplainedPhoto:
    """A photograph and its maps.

    Attributes:
        path: the image file.
        photo: uint8 [H,W,3] or [H,W]: what the network saw, before the values were scaled.
        explained: the classes explained.
        maps: for each of these, method → map of shape [H,W,C], red first; of Grad-CAM [h,w,1].
        top: the highest classes, highest first; empty when the score is an inner tensor.
        notes: scores that are NaN or infinite, a sentence each; of maps that are, there is no picture, but an error.
        titles: of methods of the user's own, which have one.
    """

    path: Path
    photo: npt.NDArray[np.uint8]
    explained: Sequence[ClassScore]
    maps: Sequence[Mapping[str, Array]]
    top: Sequence[ClassScore]
    notes: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)


class PhotoExplainer:
    """Explains photographs one by one.

    Attributes:
        explainer: the `Explainer` that runs the model.
        preprocessing: how photographs become its input.
        methods: the kinds of maps, in the order asked for.
        notes: what else should be told with the pictures, a sentence each.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        method: Asked | Sequence[Asked] | None = None,
        target: str | int | Sequence[int] | None = None,
        *,
        preprocessing: Options | None = None,
        labels: Labels | None = None,
        providers: str = "auto",
        **options: Any,
    ) -> None:
        """Load a model, converting it when it is none that gbprewrite has converted.

        Args:
            model, method, target, providers, options: as for `gbprewrite.Explainer`.
            preprocessing: what is known about the model's input; the rest is guessed, see `preprocessing.guesses`.
            labels: class index → label; see `labels.read`.

        Raises:
            UsageError, ModelError, RuntimeUnavailable: as `gbprewrite.Explainer`; UsageError also for a target that
                needs a value at run time, and for preprocessing that contradicts the model.
            DataError: the model's input is no image.
        """
        proto = model if isinstance(model, ModelProto) else modelfile.load(model)
        only_maps = report.holds_only_maps(report.read_record(proto))
        self.explainer = Explainer(proto, method, target, providers=providers, with_score=not only_maps, **options)
        record = self.explainer.record
        self.labels = labels
        self.notes: list[str] = []
        self.methods = tuple(by_name(method, record["methods"]) if method else record["methods"])
        self.titles = {name: row["title"] for name, row in record["own_methods"].items() if row["title"]}
        if parse_target(record["target"]).kind in ("input", "seed"):
            raise UsageError(
                f"target {record['target']!r} needs a value at run time. Choose another --target; 'gbprewrite run' "
                "and gbprewrite.Explainer take such a value."
            )
        if not any(m["form"] == "raw" for m in record["maps"]):
            raise UsageError(
                "the file gives its maps as pictures only, and explain draws them itself. Give the source model, or "
                "convert with --as raw too."
            )
        if len(self.explainer.inputs) != 1:
            raise UsageError(
                f"the model takes {len(self.explainer.inputs)} inputs ({arrays.listing(self.explainer.inputs)}), and a "
                "photograph fills one. Give arrays to 'gbprewrite run' instead."
            )
        self.input = self.explainer.inputs[0]
        self.preprocessing = self._preprocessing(proto, preprocessing)
        self._meaning = meaning_of(proto, record["output"])
        self._detector = Detector.of(record)
        self._inner = not only_maps and record["output"] not in {o.name for o in proto.graph.output}

    def _preprocessing(self, model: ModelProto, said: Options | None) -> Preprocessing:
        """What the file itself does to photographs, else what is said and what the model tells."""
        own = embedded.agreed(self.explainer.record, said)
        if own is not None:
            return own
        told = evidence.read(model, self.input.name, self.explainer.record["added"]["nodes"])
        alone = self.explainer.record["unbatched"] and self.input.shape is not None  # takes one image, without a batch
        shape = (1, *(self.input.shape or ())) if alone else self.input.shape
        made = plan(self.input.name, shape, self.input.dtype, said, told)
        return replace(made, map_layout=inner.layout(self.explainer.record))

    def _fed(self, image: Image.Image) -> Array:
        """The fitted image as the file takes it."""
        if self.explainer.record["embedded"] is None:
            array = self.preprocessing.array(image)
            return array[0] if self.explainer.record["unbatched"] else array
        return np.asarray(image).reshape(1, image.height, image.width, self.preprocessing.channels)

    def __call__(self, path: str | os.PathLike[str]) -> ExplainedPhoto:
        """Explain one image file.

        Raises DataError for an image that can't be used or a model that stops, and UsageError for labels that are not
        the model's.
        """
        image = images.read(path)
        with naming(path):
            image = images.fit(self.preprocessing, image)
            with warnings.catch_warnings(action="ignore", category=NotFinite):  # the notes tell
                explanation = self.explainer(self._fed(image))
            if not all(np.isfinite(explanation.map(m)).all() for m in self.methods):
                raise DataError(" ".join(explanation.notes))
        by_region = parse_target(self.explainer.record["target"]).kind == "region"
        shown = self.explainer.score_output if by_region else self.explainer.record["output"]
        values, meaning = self._class_values(explanation, shown, by_region)
        scores, _ = self._class_values(explanation, self.explainer.score_output, by_region)
        # By what is explained: probabilities of 1.000 do not tell which of them the highest score is.
        order = () if values is None or scores is None else np.argsort(-scores, kind="stable")[:TOP]
        top = [self._class(int(i), values, meaning) for i in order]
        explained, maps = self._explained(explanation, values, meaning)
        if explanation.notes and not all(one.value is None or np.isfinite(one.value) for one in explained):
            with naming(path):
                raise DataError(" ".join(explanation.notes))
        if self._by_detection:
            top, explained = self._detections(explanation, [one.index for one in explained], image)
        return ExplainedPhoto(Path(path), np.asarray(image), explained, maps, top, explanation.notes, self.titles)

    @property
    def _by_detection(self) -> bool:
        """Whether single units of a detector's output are explained."""
        target = parse_target(self.explainer.record["target"])
        return self._detector is not None and target.one_unit and not self._inner

    def _detections(
        self, explanation: Explanation, units: Sequence[tuple[int, ...]], image: Image.Image
    ) -> tuple[list[ClassScore], list[ClassScore]]:
        """The highest scores at different positions, and the units that are explained, as detections."""
        record, detector = self.explainer.record, self._detector
        assert detector is not None
        output = explanation.outputs.get(record["output"])
        channels = record["options"]["channels"]
        count = 1 if output is None or record["class_axis"] is None else output.shape[record["class_axis"]]
        subset = None if channels is None else numbers_of(channels, count, "the score")
        scores = explanation.outputs.get(self.explainer.score_output, output)
        highest = [] if scores is None else detector.strongest(scores, subset, TOP)
        if not detector.head["selected"]:
            check_number(self.labels, detector.classes(count))
        every = [self._detected(explanation, unit, image) for unit in (*highest, *units)]
        return every[: len(highest)], every[len(highest) :]

    def _detected(self, explanation: Explanation, unit: tuple[int, ...], image: Image.Image) -> ClassScore:
        assert self._detector is not None
        found = self._detector.detection(unit, explanation.outputs, image.height, image.width)
        one = self._unit(explanation, unit)
        label = self.labels.get(found.number) if self.labels is not None and found.number is not None else None
        meaning = (self._detector.meaning if found.role == "scores" else None) or one.meaning
        return replace(one, label=label, meaning=meaning, detection=found)

    def _class_values(self, explanation: Explanation, name: str, by_region: bool) -> tuple[Array | None, str]:
        """Of an output one number for each class, and what it is; None for an inner tensor, which is no output."""
        output = explanation.outputs.get(name)
        if output is None or self._inner:
            return None, self._meaning
        record, meaning = self.explainer.record, self._meaning
        if not record["class_axis_reason"]:  # nobody knows, and nobody had to
            return None, meaning
        sample = classes_second(output, record["batch_axis"], record["class_axis"])[0]
        if by_region:
            sample = said_by(sample[None], record["said_above"])[0] / (sample[0].size or 1)
            meaning = "share of the positions"
        values = sample.reshape(len(sample), -1).sum(axis=1)
        if not by_region and sample.size > len(sample):
            meaning = f"{meaning} summed over the positions"
        if not self._by_detection:
            check_number(self.labels, len(values))
        return values.astype(np.float64), meaning

    def _explained(
        self, explanation: Explanation, values: Array | None, meaning: str
    ) -> tuple[list[ClassScore], list[dict[str, Array]]]:
        """The classes that the model's `explained_index` names, and their maps."""
        assert explanation.index is not None
        if len(np.unique(explanation.index, axis=0)) != 1:
            raise DataError(
                f"the score has {len(explanation.index)} rows for one image, each with a class of its own. Explain "
                "them with arrays: 'gbprewrite run'."
            )
        record = self.explainer.record
        target = parse_target(record["target"])
        index = explanation.index[0]
        if target.one_unit:
            found = [self._unit(explanation, tuple(unit)) for unit in np.atleast_2d(index).tolist()]
        else:
            found = [self._class(int(i), values, meaning) for i in np.atleast_1d(index)]
        maps = {m: explanation.map(m)[None] if record["unbatched"] else explanation.map(m) for m in self.methods}
        stacked = {m: made[0] if target.many else made for m, made in maps.items()}
        to_image = self.preprocessing.channels_last
        return found, [{m: to_image(stacked[m][k]) for m in self.methods} for k in range(len(found))]

    def _class(self, index: int, values: Array | None, meaning: str) -> ClassScore:
        label = self.labels.get(index) if self.labels is not None else None
        return ClassScore((index,), label, None if values is None else float(values[index]), meaning)

    def _unit(self, explanation: Explanation, index: tuple[int, ...]) -> ClassScore:
        record = self.explainer.record
        name, meaning = (record["score"], "activation") if self._inner else (record["output"], self._meaning)
        values = explanation.outputs.get(name)  # a file of nothing but maps has none
        sample = None if values is None else samples_first(values, record["batch_axis"])[0]
        value = float(sample[index]) if sample is not None and sample.ndim == len(index) else None
        return ClassScore(index, None, value, meaning, record["score"] if self._inner else None)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A DataError that does not know the file gets its name, and so does a lack of memory."""
    try:
        yield
    except MemoryError:
        raise DataError(f"{path}: there is not enough memory for this image. Make it smaller first.") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def meaning_of(model: ModelProto, output: str) -> str:
    """What the numbers of an output are, from the last operator that is more than a change of shape."""
    node = source_of(model, output)
    return MEANINGS.get(node.op_type, "score") if node is not None else "score"


def rows(explained: ExplainedPhoto, style: drawing.Style | None = None) -> list[Row]:
    """A row for each class explained: the photograph, then its maps.

    Raises DataError for a map that is not finite.
    """
    style = style or drawing.Style()
    found = []
    for one, maps in zip(explained.explained, explained.maps, strict=True):
        with naming(explained.path):
            panels = [
                drawing.panels(method, values, explained.photo, style, explained.titles.get(method))
                for method, values in maps.items()
            ]
        photo = drawing.photo(explained.path.name, explained.photo)
        every = [_boxed(panel, one) for panel in (photo, *(p for some in panels for p in some))]
        found.append(Row(one.title(), every, _columns(len(panels), style)))
    return found


def _boxed(panel: drawing.Panel, one: ClassScore) -> drawing.Panel:
    """A panel with the box of a detection."""
    box = one.detection.box if one.detection is not None else None
    return panel if box is None else panel._replace(pixels=box.drawn(panel.pixels))


def _columns(methods: int, style: drawing.Style) -> int:
    """Maps in a line: all of them, or what fits of them where each method has one, or those of one method, or what one
    way to show them gives."""
    each = 1 + style.overlay
    if style.columns is not None:
        return style.columns * len(style.show) * each
    of_one = len(style.show) * each
    fitting = [n for n in (methods * of_one, WIDE if of_one == 1 else of_one) if n <= WIDE]
    return fitting[0] if fitting else each


def picture(explained: ExplainedPhoto, style: drawing.Style | None = None) -> bytes:
    """The PNG file of `rows`."""
    return png(compose(rows(explained, style)))


def setting(explainer: PhotoExplainer) -> dict[str, Any]:
    """What holds for every image: provider, what is explained, the methods' limits, preprocessing; plain types."""
    record, made = explainer.explainer.record, explainer.preprocessing
    return {
        "provider": explainer.explainer.provider,
        "provider_note": explainer.explainer.provider_note,
        "notes": [*record["notes"], *explainer.notes],
        "methods": list(explainer.methods),
        "input": explainer.input.name,
        "output": record["output"],
        "score": record["score"],
        **{key: record[key] for key in ("target", "class_axis", "class_axis_reason")},
        "maps_of": [row["name"] for row in record["inner_inputs"]],
        "cam_layer": report.cam_text(record) if reads_layer(explainer.methods) else [],
        "limits": report.limits(record),
        "preprocessing": {**asdict(made), "dtype": str(made.dtype), "text": made.text()},
    }


def axis_in_words(facts: Mapping[str, Any]) -> str:
    """`1: the final Softmax runs along it`"""
    axis = "none" if facts["class_axis"] is None else facts["class_axis"]
    return f"{axis}: {facts['class_axis_reason'] or 'not known, and not needed'}"


def setting_text(explainer: PhotoExplainer) -> str:
    """The same for people, a line each, and what each method can't show."""
    facts = setting(explainer)
    score = facts["score"] if facts["score"] == facts["output"] else f"{facts['score']} (before {facts['output']})"
    lines = [
        f"maps:           {', '.join(facts['methods'])}, explaining {score}, target {facts['target']}",
        f"class axis:     {axis_in_words(facts)}",
        *(f"maps of:        {name}, an inner tensor" for name in facts["maps_of"]),
        *(f"cam layer:      {line}" for line in facts["cam_layer"]),
        f"runs on:        {facts['provider']}",
        f"preprocessing:  {facts['input']} {facts['preprocessing']['text']}",
    ]
    lines += [f"the model says: {fact}" for fact in facts["preprocessing"]["facts"]]
    notes = [facts["provider_note"], *facts["preprocessing"]["guesses"], *facts["notes"]]
    lines += [f"note:           {note}" for note in notes if note]
    lines += [f"limits:         {method} {limit}" for method, limit in facts["limits"].items()]
    return "\n".join(map(plain, lines))

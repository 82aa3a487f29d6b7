"""Photographs explained: read, run, name the classes, draw. The work behind `gbprewrite explain`.

A `PhotoExplainer` makes an `ExplainedPhoto`, plain arrays and names, of an image file; `picture` draws one, and
`pictures` does both for many files.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from gbprewrite import modelfile, seed
from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.runtime import arrays, images
from gbprewrite.runtime import pictures as drawing
from gbprewrite.runtime.explainer import Explainer, Explanation
from gbprewrite.runtime.labels import Labels, check_number

Array = npt.NDArray[Any]

TOP = 5  # classes listed for each photograph
# What the numbers of an output are, by the operator that made them; of any other operator they are scores.
MEANINGS = {"Softmax": "probability", "LogSoftmax": "log-probability", "Sigmoid": "probability"}


@dataclass(frozen=True)
class ClassScore:
    """One class: its index (several coordinates for a unit), label and value, None where unknown.

    meaning says what the value is: "probability", "log-probability" or "score", and whether it is a sum.
    """

    index: tuple[int, ...]
    label: str | None
    value: float | None
    meaning: str

    def name(self) -> str:
        """`espresso (class 967)`, or what is known of it."""
        place = f"class {self.index[0]}" if len(self.index) == 1 else f"unit {','.join(map(str, self.index))}"
        return f"{self.label} ({place})" if self.label else place


@dataclass(frozen=True)
class ExplainedPhoto:
    """A photograph and its maps.

    Attributes:
        path: the image file.
        photo: uint8 [H,W,3] or [H,W]: what the network saw, before the values were scaled.
        explained: the classes explained.
        maps: for each of these, method → map of shape [H,W,C], red first.
        top: the highest classes, highest first; empty when the score is an inner tensor.
    """

    path: Path
    photo: npt.NDArray[np.uint8]
    explained: Sequence[ClassScore]
    maps: Sequence[Mapping[str, Array]]
    top: Sequence[ClassScore]


class PhotoExplainer:
    """Explains photographs one by one.

    Attributes:
        explainer: the `Explainer` that runs the model.
        preprocessing: how photographs become its input.
        methods: the kinds of maps, in the order asked for.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        method: str | Sequence[str] | None = None,
        target: str | int | Sequence[int] | None = None,
        *,
        preprocessing: images.Options | None = None,
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
        self.explainer = Explainer(proto, method, target, providers=providers, **options)
        record = self.explainer.record
        self.labels = labels
        self.methods = tuple(dict.fromkeys([method] if isinstance(method, str) else method or record["methods"]))
        if seed.parse(record["target"]).kind in ("input", "seed"):
            raise UsageError(
                f"target {record['target']!r} needs a value at run time. Choose another --target; 'gbprewrite run' "
                "and gbprewrite.Explainer take such a value."
            )
        if len(self.explainer.inputs) != 1:
            raise UsageError(
                f"the model takes {len(self.explainer.inputs)} inputs ({arrays.listing(self.explainer.inputs)}), and a "
                "photograph fills one. Give arrays to 'gbprewrite run' instead."
            )
        self.input = self.explainer.inputs[0]
        self.preprocessing = images.plan(self.input.name, self.input.shape, self.input.dtype, preprocessing)
        self._meaning = meaning_of(proto, record["output"])

    def __call__(self, path: str | os.PathLike[str]) -> ExplainedPhoto:
        """Explain one image file.

        Raises DataError for an image that can't be used or a model that stops, and UsageError for labels that are not
        the model's.
        """
        image = images.read(path)
        with _naming(path):
            image = self.preprocessing.fit(image)
            explanation = self.explainer(self.preprocessing.array(image))
        values, meaning = self._class_values(explanation)
        order = () if values is None else np.argsort(-values, kind="stable")[:TOP]
        top = [self._class(int(i), values, meaning) for i in order]
        explained, maps = self._explained(explanation, values, meaning)
        return ExplainedPhoto(Path(path), np.asarray(image), explained, maps, top)

    def _class_values(self, explanation: Explanation) -> tuple[Array | None, str]:
        """One number for each class and what it is; None for an inner tensor, which is no output."""
        output = explanation.outputs.get(self.explainer.record["output"])
        if output is None:
            return None, self._meaning
        sample, meaning = output[0], self._meaning
        if sample.size == max(sample.shape, default=1):  # [C], [C,1,1], or [1,1,C] of channels last
            values = sample.ravel()
        else:
            axis = (self.explainer.record["class_axis"] or 1) % output.ndim - 1
            values = np.moveaxis(sample, axis, 0).reshape(sample.shape[axis], -1).sum(axis=1)
            meaning = f"{meaning} summed over the positions"
        check_number(self.labels, len(values))
        return values.astype(np.float64), meaning

    def _explained(
        self, explanation: Explanation, values: Array | None, meaning: str
    ) -> tuple[list[ClassScore], list[dict[str, Array]]]:
        """The classes that the model's `explained_index` names, and their maps."""
        assert explanation.index is not None
        target = seed.parse(self.explainer.record["target"])
        index = explanation.index[0]
        if target.kind == "unit":
            found = [self._unit(explanation, tuple(index.tolist()))]
        else:
            found = [self._class(int(i), values, meaning) for i in np.atleast_1d(index)]
        stacked = {m: explanation.map(m)[0] if target.many else explanation.map(m) for m in self.methods}
        to_image = self.preprocessing.channels_last
        return found, [{m: to_image(stacked[m][k]) for m in self.methods} for k in range(len(found))]

    def _class(self, index: int, values: Array | None, meaning: str) -> ClassScore:
        label = self.labels.get(index) if self.labels is not None else None
        return ClassScore((index,), label, None if values is None else float(values[index]), meaning)

    def _unit(self, explanation: Explanation, index: tuple[int, ...]) -> ClassScore:
        output = explanation.outputs.get(self.explainer.record["output"])
        value = float(output[0][index]) if output is not None and output.ndim == len(index) + 1 else None
        return ClassScore(index, None, value, self._meaning)


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """A DataError that does not know the file gets its name."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def meaning_of(model: ModelProto, output: str) -> str:
    """What the numbers of an output are, from the last operator that is more than a change of shape."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in seed.MOVED:
        node = producers.get(node.input[0])
    return MEANINGS.get(node.op_type, "score") if node is not None else "score"


def picture(explained: ExplainedPhoto) -> bytes:
    """The PNG file: a row for each class explained, the photograph before its maps."""
    photo = drawing.photo(explained.path.name, explained.photo)
    rows = []
    for one, maps in zip(explained.explained, explained.maps, strict=True):
        value = "" if one.value is None else f", {one.meaning} {one.value:.3f}"
        with _naming(explained.path):
            panels = [drawing.panel(method, values) for method, values in maps.items()]
        rows.append(drawing.Row(f"{one.name()}{value}", [photo, *panels]))
    return drawing.compose(rows)


def picture_paths(
    paths: Sequence[Path], methods: Sequence[str], output: Path | None = None, force: bool = False
) -> list[Path]:
    """Where the picture of each photograph goes: `photo.<methods>.png` beside it, or in the folder `output`.

    Raises UsageError when two photographs would share a picture or one would be overwritten, OutputError when a picture
    exists (unless `force`).
    """
    if output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"-o {output}: this is a file. Give the folder that the pictures go to.")
    found = [(output or path.parent) / f"{path.stem}.{'+'.join(methods)}.png" for path in paths]
    shared = [str(path) for path, count in Counter(found).items() if count > 1]
    if shared:
        raise UsageError(
            f"several images would give the picture {', '.join(shared)}. Give each image once, and explain images of "
            "the same name in several runs with different folders (-o DIR)."
        )
    overwritten = [str(path) for path in found if path in paths]
    if overwritten:
        raise UsageError(
            f"{', '.join(overwritten)} would be overwritten, which is among the images to explain. Leave pictures of "
            "earlier runs out, or use another folder (-o DIR)."
        )
    existing = [] if force else [str(path) for path in found if path.exists()]
    if existing:
        raise OutputError(
            f"these exist already: {', '.join(existing)}. Use --force to overwrite, or -o DIR for elsewhere."
        )
    return found


@dataclass(frozen=True)
class Outcome:
    """What became of one image: the picture written, or the error that stopped it."""

    image: Path
    picture: Path | None = None
    explained: ExplainedPhoto | None = None
    error: DataError | OutputError | None = None

    @property
    def exit_status(self) -> int:
        """0, or that of the error."""
        return self.error.exit_status if self.error else 0

    def to_json(self) -> dict[str, Any]:
        """Plain types, without arrays."""
        if self.explained is None:
            return {"image": str(self.image), "error": str(self.error)}
        classes = {"explained": self.explained.explained, "top": self.explained.top}
        return {
            "image": str(self.image),
            "picture": str(self.picture),
            **{key: [asdict(one) for one in found] for key, found in classes.items()},
        }

    def text(self) -> str:
        """A few lines for people."""
        if self.explained is None:
            return f"error: {self.error}"
        explained, top = self.explained.explained, self.explained.top
        marked, listed = ({one.index for one in some} for some in (explained, top))
        rows = [_line(one, one.index in marked) for one in top]
        rows += [_line(one, True) for one in explained if one.index not in listed]
        said = top[0].meaning if top else "the score is an inner tensor: no classes to list"
        return "\n".join(["", f"{self.image}  ({said})", *rows, f"  picture: {self.picture}"])


def _line(one: ClassScore, explained: bool) -> str:
    value = "" if one.value is None else f"{one.value:.3f}"
    return f"  {value:>8}  {one.name()}{'  <- explained' if explained else ''}"


def pictures(explainer: PhotoExplainer, paths: Sequence[Path], places: Sequence[Path]) -> Iterator[Outcome]:
    """Explain each image and write its picture; an image that fails gives an Outcome with its error."""
    for path, place in zip(paths, places, strict=True):
        try:
            explained = explainer(path)
            data = picture(explained)
            drawing.write(place, data)
        except (DataError, OutputError) as error:
            yield Outcome(path, error=error)
        else:
            yield Outcome(path, place, explained)


def setting(explainer: PhotoExplainer) -> dict[str, Any]:
    """What holds for every image: provider, what is explained, preprocessing and its guesses; plain types."""
    record, made = explainer.explainer.record, explainer.preprocessing
    return {
        "provider": explainer.explainer.provider,
        "provider_note": explainer.explainer.provider_note,
        "methods": list(explainer.methods),
        "input": explainer.input.name,
        "output": record["output"],
        "score": record["score"],
        "target": record["target"],
        "preprocessing": {**asdict(made), "dtype": str(made.dtype), "text": made.text()},
    }


def setting_text(explainer: PhotoExplainer) -> str:
    """The same for people, a line each."""
    facts = setting(explainer)
    score = facts["score"] if facts["score"] == facts["output"] else f"{facts['score']} (before {facts['output']})"
    lines = [
        f"maps:           {', '.join(facts['methods'])}, explaining {score}, target {facts['target']}",
        f"runs on:        {facts['provider']}",
        f"preprocessing:  {facts['input']} {facts['preprocessing']['text']}",
    ]
    notes = [facts["provider_note"], *facts["preprocessing"]["guesses"]]
    return "\n".join(lines + [f"note:           {note}" for note in notes if note])

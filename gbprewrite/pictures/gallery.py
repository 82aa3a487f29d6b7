"""Many photographs explained one after another: what is written for each of them, and what for all.

Nothing grows with the number of photographs: an `Output` takes each as it comes. What an output writes for one image
is a file of its own, or a part of a file that is whole when the last one is in.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from gbprewrite import files
from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.inspect import inspect
from gbprewrite.model import file as modelfile
from gbprewrite.pictures import layout
from gbprewrite.pictures.explain import ClassScore, ExplainedPhoto, PhotoExplainer, rows
from gbprewrite.pictures.html import Report
from gbprewrite.pictures.layout import Row
from gbprewrite.pictures.panels import Style
from gbprewrite.pictures.sheet import Sheet
from gbprewrite.plaintext import plain

FEW = 5  # images that are reported in full; of more, each has a line
ELSEWHERE = "Use --force to overwrite, or -o DIR for elsewhere."


class Output(AbstractContextManager[Any], Protocol):
    """What is made of explained photographs; entered before the first and left after the last."""

    def add(self, explained: ExplainedPhoto, drawn: Sequence[Row]) -> dict[str, Path]:
        """Take one, and give the files written for it alone, each with what it is. Raises OutputError."""

    def fail(self, image: Path, error: DataError | OutputError) -> None:
        """Take note of an image that could not be explained."""

    def shared(self) -> dict[Path, str]:
        """The files written for all images, each with what it is; complete when the output was left."""


class PictureFiles(AbstractContextManager["PictureFiles"]):
    """A PNG file for each photograph."""

    def __init__(self, places: Mapping[Path, Path], force: bool = True) -> None:
        self.places, self.force = places, force

    def __exit__(self, *_: object) -> None:
        """Each file is whole already."""

    def add(self, explained: ExplainedPhoto, drawn: Sequence[Row]) -> dict[str, Path]:
        """See `Output`."""
        place = self.places[explained.path]
        layout.write(place, layout.png(layout.compose(drawn)), force=self.force)
        return {"picture": place}

    def fail(self, image: Path, error: DataError | OutputError) -> None:
        """There is nothing to write."""

    def shared(self) -> dict[Path, str]:
        """Each file is of one photograph."""
        return {}


class ArrayFiles(AbstractContextManager["ArrayFiles"]):
    """A .npy file for each photograph and method: the maps as they are, [K,H,W,C], K classes and red first."""

    def __init__(self, places: Mapping[Path, Mapping[str, Path]], force: bool = True) -> None:
        self.places, self.force = places, force

    def __exit__(self, *_: object) -> None:
        """Each file is whole already."""

    def add(self, explained: ExplainedPhoto, drawn: Sequence[Row]) -> dict[str, Path]:
        """See `Output`."""
        places = self.places[explained.path]
        for method, place in places.items():
            data = io.BytesIO()
            np.save(data, np.stack([maps[method] for maps in explained.maps]), allow_pickle=False)
            layout.write(place, data.getvalue(), force=self.force)
        return {f"{method} map": place for method, place in places.items()}

    def fail(self, image: Path, error: DataError | OutputError) -> None:
        """There is nothing to write."""

    def shared(self) -> dict[Path, str]:
        """Each file is of one photograph."""
        return {}


class Wanted(NamedTuple):
    """What is to be written: pictures and arrays beside the images or in `folder`, and sheet and report by path.

    Pictures are called `IMAGE.<ending>.png`, by default after the methods.
    """

    folder: Path | None = None
    pictures: bool = True
    arrays: bool = False
    sheet: Path | None = None
    html: Path | None = None
    ending: str | None = None


def outputs(
    wanted: Wanted,
    model: Path,
    explainer: PhotoExplainer,
    photos: Sequence[Path],
    style: Style | None = None,
    force: bool = False,
    read: Sequence[Path] = (),
) -> list[Output]:
    """The outputs that are wanted of these photographs, after everything that can be checked before the run.

    What is read is the model with its external data, the photographs and `read`. Raises UsageError when nothing is
    wanted, two files would meet, or a file that is read would be overwritten, and OutputError when one exists (unless
    `force`).
    """
    found: list[Output] = []
    planned: list[Path] = []
    if wanted.pictures:
        pictures = places(photos, f"{wanted.ending or '+'.join(explainer.methods)}.png", wanted.folder)
        found.append(PictureFiles(pictures, force))
        planned += pictures.values()
    if wanted.arrays:
        each = {method: places(photos, f"{method}.npy", wanted.folder) for method in explainer.methods}
        found.append(ArrayFiles({photo: {m: each[m][photo] for m in each} for photo in photos}, force))
        planned += [place for some in each.values() for place in some.values()]
    if wanted.sheet:
        sheet = Sheet(wanted.sheet, len(photos), force)
        found.append(sheet)
        planned += sheet.planned()
    if wanted.html:
        found.append(Report(wanted.html, model, explainer, inspect(model), style or Style(), force))
        planned.append(wanted.html)
    if not found:
        raise UsageError("nothing would be written: with --no-pictures, give --sheet, --html or --save npy.")
    check(planned, [*modelfile.read_beside(model, planned), *photos, *read], force)
    if wanted.html:
        files.check_suffix(wanted.html, ".html", ".htm")
    return found


def shared(outputs: Sequence[Output]) -> dict[Path, str]:
    """The files written for all images, each with what it is."""
    return {path: kind for output in outputs for path, kind in output.shared().items()}


@dataclass(frozen=True)
class Outcome:
    """What became of one image: the files written for it alone, or the error that stopped it."""

    image: Path
    written: Mapping[str, Path] = field(default_factory=dict)
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
            **{kind: str(path) for kind, path in self.written.items()},
            **{key: [one.to_json() for one in found] for key, found in classes.items()},
            "notes": list(self.explained.notes),
        }

    def text(self) -> str:
        """A few lines for people."""
        if self.explained is None:
            return plain(f"error: {self.error}")
        explained, top = self.explained.explained, self.explained.top
        marked, listed = ({one.index for one in some} for some in (explained, top))
        lines = [_line(one, one.index in marked) for one in top]
        lines += [_line(one, True) for one in explained if one.index not in listed]
        said = top[0].meaning if top else "the scores are no output of the file: no classes to list"
        said = said if explained[0].layer is None else explained[0].meaning
        values = [one.value or 0.0 for one in top]
        said += "" if values == sorted(values, reverse=True) else ", in the order of the score that is explained"
        reasons = {one.detection.why_not for one in explained if one.detection is not None} - {""}
        lines += [f"  no box is drawn: {reason}" for reason in sorted(reasons)]
        reads = {one.detection.box.read_as for one in explained if one.detection is not None and one.detection.box}
        lines += [f"  boxes are read as {read}" for read in sorted(reads)]
        lines += [f"  {kind}: {path}" for kind, path in self.written.items()]
        return "\n".join(map(plain, ["", f"{self.image}  ({said})", *lines]))

    def line(self) -> str:
        """One line for people: the image, what was explained and where the picture is."""
        if self.explained is None:
            return plain(f"error: {self.error}")
        classes = "; ".join(one.title() for one in self.explained.explained)
        return plain(f"{self.image}: {classes}{f' -> {p}' if (p := self.written.get('picture')) else ''}")


def _line(one: ClassScore, explained: bool) -> str:
    value = "" if one.value is None else f"{one.value:.3f}"
    return f"  {value:>8}  {one.name()}{'  <- explained' if explained else ''}"


def explained(
    explainer: PhotoExplainer, photos: Sequence[Path], outputs: Sequence[Output], style: Style | None = None
) -> Iterator[Outcome]:
    """Explain each image and hand it to the outputs; an image that fails gives an Outcome with its error.

    Raises OutputError for an output that can't be begun or finished, and UsageError as the explainer.
    """
    with ExitStack() as stack:
        for output in outputs:
            stack.enter_context(output)
        for path in photos:
            yield _outcome(explainer, path, outputs, style)


def _outcome(explainer: PhotoExplainer, path: Path, outputs: Sequence[Output], style: Style | None) -> Outcome:
    try:
        found = explainer(path)
        drawn = rows(found, style)
        written: dict[str, Path] = {}
        for output in outputs:
            written |= output.add(found, drawn)
    except (DataError, OutputError) as error:
        for output in outputs:
            output.fail(path, error)
        return Outcome(path, error=error)
    return Outcome(path, written, found)


def places(photos: Sequence[Path], ending: str, output: Path | None = None) -> dict[Path, Path]:
    """Where something about each photograph goes: `photo.<ending>` beside it, or in the folder `output`.

    Photographs that differ in their suffix only keep it: `photo.jpg.<ending>`. Raises UsageError when two would still
    share a file, OutputError when `output` is a file.
    """
    if output is not None:
        files.check_folder(output)
    stems = Counter((output or path.parent, path.stem) for path in photos)
    found: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    for path in photos:
        folder = output or path.parent
        place = folder / f"{path.stem if stems[folder, path.stem] == 1 else path.name}.{ending}"
        if place in taken:
            raise UsageError(
                f"several images would give {place}: {taken[place]} and {path}. Give each image once, and explain "
                "images of the same name in several runs with different folders (-o DIR)."
            )
        taken[place], found[path] = path, place
    return found


def check(planned: Sequence[Path], read: Sequence[Path], force: bool) -> None:
    """Raise UsageError when a file that is read would be overwritten or one that is written is planned twice, and
    OutputError when one exists (unless `force`) or its folder takes no files."""
    meeting = list(map(str, files.twice(planned)))
    if meeting:
        raise UsageError(f"two outputs would be written to {', '.join(meeting)}. Give each a name of its own.")
    overwritten = list(map(str, files.overwritten(planned, read)))
    if overwritten:
        raise UsageError(
            f"{_some(overwritten)} would be overwritten, and it is read in this run. Leave pictures of earlier runs "
            "out of the images, or use another place (-o DIR)."
        )
    for path in planned:
        files.check_replaceable(path, True, "Choose another place (-o DIR).")
    existing = [] if force else [str(path) for path in planned if os.path.lexists(path)]
    if existing:
        raise OutputError(f"these exist already: {_some(existing)}. {ELSEWHERE}")
    files.check_folders(planned, "Choose another place (-o DIR).")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

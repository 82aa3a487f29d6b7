"""A detector's unit in a photograph: which class it scores, at which anchor, and the box that the head gives for it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from gbprewrite.graft import record as report
from gbprewrite.select.class_axis import classes_second, samples_first

Array = npt.NDArray[Any]

SURE = 16  # boxes: of so many it can be told what their four numbers are, where their arithmetic does not
OUTLINE = ((0, 0, 0), (255, 214, 0))  # outside and inside, so that it is seen on any ground
CORNERS = {"xywh": "centre and size", "xyxy": "corners"}


class Box(NamedTuple):
    """Corners in pixels of the fitted image, not rounded; they may lie outside of it. `read_as` says how the head's
    four numbers were read."""

    left: float
    top: float
    right: float
    bottom: float
    read_as: str

    def text(self) -> str:
        """`box 12,30 to 99,120`"""
        left, top, right, bottom = (round(n) for n in self[:4])
        return f"box {left},{top} to {right},{bottom}"

    def drawn(self, pixels: Array) -> Array:
        """The outline over a picture of the fitted image, uint8 [H,W,3]."""
        image = Image.fromarray(pixels)
        height, width = pixels.shape[:2]
        corners = [*np.clip([self.left, self.right], -9, width + 9), *np.clip([self.top, self.bottom], -9, height + 9)]
        left, right, top, bottom = (round(float(c)) for c in corners)
        for colour, by in zip(OUTLINE, (0, 1), strict=True):
            inside = (left + by, top + by, max(right - by, left + by), max(bottom - by, top + by))
            ImageDraw.Draw(image).rectangle(inside, outline=colour)
        return np.asarray(image)


class Detection(NamedTuple):
    """`role`: of the channel, as in `heads.Part`; `number`: of the class, counted from the first class score, None for
    another role; `anchor`: the coordinates along the other axes, or the number of a selected box; `box`, or `why_not`
    there is none."""

    role: str
    number: int | None
    anchor: tuple[int, ...]
    box: Box | None
    why_not: str = ""
    counted: str = "anchor"

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**self._asdict(), "anchor": list(self.anchor), "box": self.box and self.box._asdict()}


class Detector:
    """Reads a detector's outputs, as the record of a converted file describes them."""

    def __init__(self, record: report.Record) -> None:
        self.record, self.head = record, record["head"]
        self.scored = [p for p in self.head["parts"] if p["role"] == "scores"]

    @classmethod
    def of(cls, record: report.Record) -> "Detector | None":
        """Of the record; None where the score is no detector's."""
        return cls(record) if record["head"] is not None else None

    @property
    def meaning(self) -> str | None:
        """What the scores are, where they are no output of their own."""
        words = " ".join(part["why"] for part in self.scored)
        return "probability" if "Sigmoid" in words or " Softmax" in words else None

    def classes(self, count: int) -> int:
        """How many classes a head of so many channels has."""
        return sum(part["stop"] - part["start"] for part in self.scored) or count

    def detection(self, unit: Sequence[int], outputs: Mapping[str, Array], height: int, width: int) -> Detection:
        """What a unit of the score is, in a fitted image of this size."""
        box, why_not = self._box(unit, outputs, height, width)
        at = self._class_place()
        if at is None:
            number = self._selected_class(unit[0], outputs) if self.head["selected"] else 0
            counted = "detection" if self.head["selected"] else "anchor"
            return Detection("scores", number, tuple(unit), box, why_not, counted)
        channel, anchor = unit[at], tuple(c for a, c in enumerate(unit) if a != at)
        part = next((p for p in self.head["parts"] if p["start"] <= channel < p["stop"]), None)
        role = part["role"] if part else "scores"
        first = self.scored[0]["start"] if self.scored else 0
        return Detection(role, channel - first if role == "scores" else None, anchor, box, why_not)

    def strongest(self, output: Array, subset: Sequence[int] | None, count: int) -> list[tuple[int, ...]]:
        """The units of the highest scores at different positions of the first sample, each with a coordinate for every
        axis but that of the samples."""
        sample = classes_second(output, self.record["batch_axis"], self.record["class_axis"])[0]
        allowed = list(subset or ()) or [c for p in self.scored for c in range(p["start"], p["stop"])]
        values = sample[allowed or slice(None)].reshape(len(allowed) or len(sample), -1)
        best, places = values.argmax(axis=0), np.argsort(-values.max(axis=0), kind="stable")[:count]
        at, found = self._class_place(), []
        for place in places.tolist():
            unit = [int(c) for c in np.unravel_index(place, sample.shape[1:])] if sample.ndim > 1 else []
            if at is not None:
                unit.insert(at, allowed[best[place]] if allowed else int(best[place]))
            found.append(tuple(unit))
        return found

    def _class_place(self) -> int | None:
        """Of the class among the coordinates of a unit."""
        at: int | None = self.record["class_axis"]
        batch: int | None = self.record["batch_axis"]
        return at if at is None or batch is None or at < batch else at - 1

    def _selected_class(self, place: int, outputs: Mapping[str, Array]) -> int | None:
        labels = outputs.get(self.head["labels"] or "")
        return int(labels[place]) if labels is not None and labels.ndim == 1 and place < len(labels) else None

    def _box(
        self, unit: Sequence[int], outputs: Mapping[str, Array], height: int, width: int
    ) -> tuple[Box | None, str]:
        """The box of a unit; or None and the reason."""
        said = self.head["boxes"]
        values = outputs.get(said["output"]) if said else None
        score = outputs.get(self.record["output"])
        if said is None or values is None or score is None:
            return None, ""
        place, every = (
            self._place(unit, samples_first(score, self.record["batch_axis"])[0].shape),
            self._every(said, values),
        )
        if place >= len(every):
            return None, f"the output {said['output']!r} has no box for this position"
        corners, how = said["corners"], "by their arithmetic"
        if corners is None:
            corners, how = corners_of(every, bool(self.head["selected"])), "as all of them show"
        if corners is None or not np.isfinite(every).all():
            return None, f"the four numbers in {said['output']!r} are neither corners nor centre and size of boxes"
        inside = bool(np.abs(every).max() <= 2)  # of all positions: the far ones are near the edge
        numbers = every[place] * ([width, height] * 2 if inside else 1)
        read_as = f"{CORNERS[corners]} {how}, {'shares of the image' if inside else 'pixels'}"
        if corners == "xywh":
            centre, size = numbers[:2], numbers[2:]
            numbers = np.concatenate([centre - size / 2, centre + size / 2])
        left, top, right, bottom = (float(n) for n in numbers)
        return Box(left, top, right, bottom, read_as), ""

    def _place(self, unit: Sequence[int], shape: Sequence[int]) -> int:
        """The number of a unit's position, all axes but the classes' counted through."""
        at = self._class_place()
        rest = [(c, size) for a, (c, size) in enumerate(zip(unit, shape, strict=True)) if a != at]
        return int(np.ravel_multi_index([c for c, _ in rest], [size for _, size in rest])) if rest else 0

    def _every(self, said: Mapping[str, Any], values: Array) -> Array:
        """The four numbers of every position, [positions, 4]."""
        axis = said["axis"]
        if not self.head["selected"]:
            values, axis = values[0], axis - 1
        moved = np.moveaxis(values, axis, -1)[..., said["start"] : said["start"] + 4]
        return moved.reshape(-1, moved.shape[-1]).astype(np.float64)


def corners_of(boxes: Array, selected: bool = False) -> str | None:
    """What the four numbers of boxes are, from all of them: "xyxy" where the second corner is behind the first in each,
    "xywh" where that is not so and no size is negative; None where neither holds, or for a few boxes.

    Those that NonMaxSuppression selected may be few: it takes corners.
    """
    if boxes.shape[-1] != 4 or (len(boxes) < SURE and not selected):
        return None
    if (boxes[:, 2:] >= boxes[:, :2]).all():
        return "xyxy"
    return "xywh" if (boxes[:, 2:] >= 0).all() and not selected else None

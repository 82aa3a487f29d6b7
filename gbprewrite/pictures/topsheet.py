"""Figure 2 of Zeiler and Fergus 2013: for each feature map the maps of its strongest units, beside what they see."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gbprewrite import files
from gbprewrite.errors import DataError
from gbprewrite.pictures import layout
from gbprewrite.pictures import panels as drawing
from gbprewrite.pictures.sheet import arranged
from gbprewrite.pictures.top import Box, Example, TopImages

Array = npt.NDArray[Any]

CELL, GAP = 104, 4  # pixels; 3 cells and 2 gaps are a panel of 320
MEASURES = layout.Measures(panel=1, margin=14, heading=17, title=14, bar=6)
WIDTH = 1500
LONGEST = 80  # letters of a layer's name that go into a file's


def place(output: Path | None, model: Path, layer: str) -> Path:
    """Where the sheet goes: a .png as it is, or `<model>.<layer>.top.png` in a folder, by default the model's."""
    if output is not None and output.suffix.lower() == ".png":
        return output
    folder = model.parent if output is None else output
    files.check_folder(folder)
    stem = re.sub(r"[^\w.-]+", "_", layer).strip("_.")[:LONGEST]  # "/" would be a folder
    return folder / f"{model.name.removesuffix('.onnx')}.{stem}.top.png"


def draw(top: TopImages, channel: int, failed: dict[Path, DataError]) -> tuple[Array, dict[str, Any]]:
    """A channel's part of the sheet, uint8 [H,W,3], and what it shows as plain types.

    An image that can't be read a second time is left out, and its error put into `failed`.
    """
    examples = []
    for winner in top.winners(channel):
        try:
            examples.append(top.example(winner))
        except DataError as error:
            failed[winner.image] = error
    facts = [
        {
            **{"image": str(e.winner.image), "unit": list(e.winner.unit), "activation": e.winner.activation},
            "box": e.box._asdict(),
        }
        for e in examples
    ]
    picture = entry(f"{top.layer}, channel {channel}", top.method, examples, top.count)
    return picture, {"channel": channel, "top": facts}


def write(path: Path, entries: Sequence[Array], force: bool = True) -> None:
    """The sheet of several channels' parts, as a PNG file. Raises OutputError."""
    layout.write(path, layout.png(arranged(entries, WIDTH)), files.ELSEWHERE, force)


def alike(examples: Sequence[Example]) -> list[Box]:
    """The boxes brought to the size of the largest, around the same middle and inside the image: at the border, and
    where a pool's switches hide a part, a field seems smaller than it is."""
    height = max((e.box.bottom - e.box.top for e in examples), default=0)
    width = max((e.box.right - e.box.left for e in examples), default=0)
    found = []
    for example in examples:
        box, (rows, columns) = example.box, example.photo.shape[:2]
        top = _start(box.top, box.bottom, height, rows)
        left = _start(box.left, box.right, width, columns)
        found.append(Box(top, left, min(top + height, rows), min(left + width, columns)))
    return found


def _start(start: int, end: int, length: int, limit: int) -> int:
    return max(0, min((start + end - length) // 2, limit - length))


def entry(heading: str, method: str, examples: Sequence[Example], count: int) -> Array:
    """A channel's part of a sheet, uint8 [H,W,3]: its maps in a grid of `count` cells, beside them what they show."""
    boxes = alike(examples)
    maps = [drawing.panel(method, box.cut(e.map)).pixels for e, box in zip(examples, boxes, strict=True)]
    patches = [drawing.photo("", box.cut(e.photo)).pixels for e, box in zip(examples, boxes, strict=True)]
    values = [e.winner.activation for e in examples]
    said = f"activation {values[0]:.4g} to {values[-1]:.4g}" if values else "no image excites it"
    seen = drawing.Panel(f"image, {said}", grid(patches, count), short="image")
    panels = [drawing.Panel(method, grid(maps, count)), seen]
    return layout.compose([layout.Row(heading, panels)], MEASURES)


def grid(pictures: Sequence[Array], count: int) -> Array:
    """Pictures, uint8 [h,w,3], in square cells, in reading order, in a square of `count` cells on white."""
    side = math.ceil(math.sqrt(count))
    lines = -(-count // side)
    page = Image.new("RGB", (side * (CELL + GAP) - GAP, lines * (CELL + GAP) - GAP), "white")
    for i, pixels in enumerate(pictures):
        height, width = pixels.shape[:2]
        factor = CELL / max(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        way = Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST
        cell = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way)
        corner = (i % side) * (CELL + GAP) + (CELL - size[0]) // 2, (i // side) * (CELL + GAP) + (CELL - size[1]) // 2
        page.paste(cell, corner)
    return np.asarray(page)

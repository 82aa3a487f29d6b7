"""A contact sheet: all photographs and their maps on one page, or on numbered pages where they are many."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gbprewrite.errors import DataError, OutputError, UsageError
from gbprewrite.pictures import layout
from gbprewrite.pictures.explain import ExplainedPhoto
from gbprewrite.pictures.layout import Measures, Row
from gbprewrite.pictures.panels import Panel

Array = npt.NDArray[Any]

ADVICE = "Choose another place with --sheet PATH."
WIDTH = 2000  # pixels that a page is at most wide, where one entry is not wider
PER_PAGE = 48  # images: a page stays a picture that programs open, and memory does not grow with their number
MOST = 256  # pixels of a panel's longer side
SMALL = Measures(panel=160, margin=10, heading=15, title=12, bar=6)


class Sheet(AbstractContextManager["Sheet"]):
    """A contact sheet, written page by page. Attributes: pages: the files written so far."""

    def __init__(self, path: Path, count: int, force: bool = True) -> None:
        """For `count` images. Raises UsageError for a name that is no PNG file's."""
        if path.suffix.lower() != ".png":
            raise UsageError(f"--sheet {path}: a contact sheet is a PNG file. Give a name that ends in .png.")
        self.path, self.count, self.force = path, count, force
        self.pages: list[Path] = []
        self._entries: list[Array] = []
        self._images = 0

    def planned(self) -> list[Path]:
        """The pages that so many images fill: PATH, PATH-2, ..."""
        return [self._page(i) for i in range(max(1, -(-self.count // PER_PAGE)))]

    def _page(self, index: int) -> Path:
        return self.path if not index else self.path.with_stem(f"{self.path.stem}-{index + 1}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The last page, unless something stopped the run. Raises OutputError."""
        if kind is None and self._entries:
            self._write()

    def add(self, explained: ExplainedPhoto, drawn: Sequence[Row]) -> dict[str, Path]:
        """See `gallery.Output`."""
        if self._images == PER_PAGE:
            self._write()
        self._entries += [layout.compose([row._replace(panels=_shrunk(row.panels))], SMALL) for row in drawn]
        self._images += 1
        return {}

    def fail(self, image: Path, error: DataError | OutputError) -> None:
        """A sheet shows what was explained."""

    def shared(self) -> dict[Path, str]:
        """See `gallery.Output`."""
        return dict.fromkeys(self.pages, "contact sheet")

    def _write(self) -> None:
        page = self._page(len(self.pages))
        layout.write(page, layout.png(arranged(self._entries, WIDTH)), ADVICE, self.force)
        self.pages.append(page)
        self._entries, self._images = [], 0


def arranged(entries: Sequence[Array], width: int) -> Array:
    """Entries, uint8 [H,W,3], in columns of one width on a white page: in reading order, left to right."""
    across = max(e.shape[1] for e in entries)
    columns = max(1, min(width // across, len(entries)))
    lines = [entries[i : i + columns] for i in range(0, len(entries), columns)]
    heights = [max(e.shape[0] for e in line) for line in lines]
    page = np.full((sum(heights), across * columns, 3), 255, np.uint8)
    top = 0
    for line, height in zip(lines, heights, strict=True):
        for i, entry in enumerate(line):
            page[top : top + entry.shape[0], i * across : i * across + entry.shape[1]] = entry
        top += height
    return page


def _shrunk(panels: Sequence[Panel]) -> list[Panel]:
    """Panels that are larger than an entry's are averaged."""
    return [p._replace(pixels=_at_most(p.pixels)) for p in panels]


def _at_most(pixels: Array) -> Array:
    height, width = pixels.shape[:2]
    factor = MOST / max(height, width)
    if factor >= 1:
        return pixels
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX))

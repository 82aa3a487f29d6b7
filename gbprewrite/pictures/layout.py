"""Panels beside each other under headings, as PNG files: the same bytes for the same panels."""

import io
import os
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from gbprewrite import files
from gbprewrite.errors import OutputError
from gbprewrite.pictures.panels import Panel
from gbprewrite.plaintext import plain
from gbprewrite.version import SOFTWARE, __version__

Array = npt.NDArray[Any]

FRAME = 200  # the grey line around a scale: its white end would be lost on the page
MOST_LINES = 12  # of a heading
LINE = 1.5  # height of a line of text, in heights of its letters


class Row(NamedTuple):
    """Panels beside each other under a heading.

    With `columns`, the panels behind the first (the photograph) stand in lines of so many, the first beside the
    uppermost.
    """

    heading: str
    panels: Sequence[Panel]
    columns: int | None = None


class Measures(NamedTuple):
    """Pixels: the least length of a panel's longer side, the gap between panels, the heights of the letters."""

    panel: int = 320  # maps are enlarged by whole factors, so that each of their pixels is seen
    margin: int = 16
    heading: int = 22
    title: int = 16
    bar: int = 8


PICTURE = Measures()


def compose(rows: Sequence[Row], measures: Measures = PICTURE) -> Array:
    """The picture as uint8 [H,W,3]: the same for the same rows and versions of Pillow and matplotlib (its font)."""
    blocks = [_Block(row, measures) for row in rows]
    width = max(block.width for block in blocks)
    for block in blocks:
        block.wrap(width)
    page = Image.new("RGB", (width, sum(block.height for block in blocks) + measures.margin), "white")
    top = 0
    for block in blocks:
        block.draw(page, top)
        top += block.height
    return np.asarray(page)


def png(pixels: Array) -> bytes:
    """A PNG file's bytes, marked as ours."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", f"{SOFTWARE} {__version__}")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def write(
    path: str | os.PathLike[str], data: bytes, advice: str = "Choose another place with -o DIR.", force: bool = True
) -> None:
    """Write a file whole or not at all, in a folder that need not exist. Raises OutputError."""
    path = Path(path)
    make_folder(path, advice)
    with files.whole(path, advice, force) as part:
        part.write_bytes(data)


def make_folder(path: Path, advice: str) -> None:
    """The folder of a file that is to be written. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}. {advice}") from None


class _Block:
    """A row, measured and drawn; all lengths in pixels."""

    def __init__(self, row: Row, measures: Measures) -> None:
        self.measures = measures
        photo, *maps = [p._replace(pixels=_enlarged(p.pixels, measures.panel)) for p in row.panels]
        columns = row.columns or max(1, len(maps))
        self.lines = [[photo, *maps[:columns]]] + [maps[i : i + columns] for i in range(columns, len(maps), columns)]
        self.indent = int(photo.pixels.shape[1]) + measures.margin  # of the lines without the photograph
        self.text = plain(row.heading)
        self.heading: list[str] = []
        self.width = max(self._line_width(line) for line in self.lines)
        self.width += 0 if len(self.lines) == 1 else max(0, self._indented() - self.width)

    def _indented(self) -> int:
        return self.indent + max(self._line_width(line) for line in self.lines[1:])

    def _line_width(self, line: Iterable[Panel]) -> int:
        return self.measures.margin + sum(int(p.pixels.shape[1]) + self.measures.margin for p in line)

    def wrap(self, width: int) -> None:
        """Break the heading to a width."""
        letters = _letters(width - 2 * self.measures.margin, self.measures.heading)
        self.heading = textwrap.wrap(self.text, letters, max_lines=MOST_LINES, placeholder=" …")

    @property
    def height(self) -> int:
        """The upper margin included."""
        heading = round(LINE * self.measures.heading * len(self.heading))
        return self.measures.margin + heading + sum(map(self._line_height, self.lines)) + self._gaps

    @property
    def _gaps(self) -> int:
        return self.measures.margin * (len(self.lines) - 1)

    def _line_height(self, line: Sequence[Panel]) -> int:
        title = round(LINE * self.measures.title)
        bar = self.measures.bar + title if any(p.bar for p in line) else 0
        return title + max(int(p.pixels.shape[0]) for p in line) + bar

    def draw(self, page: Image.Image, top: int) -> None:
        """With the upper edge `top` pixels below the page's."""
        m = self.measures
        y = top + m.margin
        for text in self.heading:
            _text(page, m.margin, y, text, m.heading)
            y += round(LINE * m.heading)
        for i, line in enumerate(self.lines):
            x = m.margin + (self.indent if i else 0)
            for panel in line:
                self._draw_panel(page, panel, x, y)
                x += int(panel.pixels.shape[1]) + m.margin
            y += self._line_height(line) + m.margin

    def _draw_panel(self, page: Image.Image, panel: Panel, x: int, top: int) -> None:
        m = self.measures
        height, width = panel.pixels.shape[:2]
        _text(page, x, top, _fitting(panel, width, m.title), m.title)
        top += round(LINE * m.title)
        page.paste(Image.fromarray(np.ascontiguousarray(panel.pixels)), (x, top))
        if panel.bar is None:
            return
        strip = panel.bar.colours[:, np.arange(width) * 256 // width].repeat(m.bar, axis=0)
        strip[[0, -1]] = strip[:, [0, -1]] = FRAME
        top += height + m.bar // 2
        page.paste(Image.fromarray(strip), (x, top))
        top += m.bar + m.bar // 2
        _text(page, x, top, panel.bar.low, m.title - 2)
        _text(page, x + width, top, panel.bar.high, m.title - 2, "ra")


def _enlarged(pixels: Array, least: int) -> Array:
    factor = -(-least // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _letters(width: int, height: int) -> int:
    """Letters that fit beside each other; those of DejaVu Sans are 0.6 as wide as high, on the safe side."""
    return max(8, int(width / (0.6 * height)))


def _fitting(panel: Panel, width: int, height: int) -> str:
    """The title, or the short one, without its middle where it is still too long: the ends of names tell most."""
    font = _font(height)
    title, short = plain(panel.title), plain(panel.short)
    text = title if not short or font.getlength(title) <= width else short
    if font.getlength(text) <= width:
        return text
    letters = _letters(width, height)
    return f"{text[: letters // 2 - 1]}…{text[letters // 2 - letters :]}"


@cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's wheel: there on every machine, whatever its settings."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, height, layout_engine=ImageFont.Layout.BASIC)


def _text(page: Image.Image, x: int, y: int, text: str, height: int, anchor: str = "la") -> None:
    """Text below a point and beside it; of a script that the font lacks boxes, the terminal prints it in full."""
    ImageDraw.Draw(page).text((x, y), plain(text), "black", _font(height), anchor)

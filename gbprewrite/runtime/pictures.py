"""Maps → pictures as the papers show them; photographs and maps side by side as a PNG file.

A picture is rows of panels: `panel` makes one out of a map, `compose` arranges them, `write` saves the result.
"""

import io
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from gbprewrite import files
from gbprewrite.errors import DataError, OutputError

Array = npt.NDArray[Any]

PERCENTILE = 99  # of |map|: the strongest 1% are clipped, so that a few hot pixels don't turn the rest grey
PANEL = 320  # pixels that the longer side of a panel has at least; maps are enlarged by whole factors
MARGIN, TITLE, HEADING = 16, 14, 20  # pixels: between panels, and the heights of the two kinds of text
LINE = 1.5  # height of a line of text, in heights of its letters


class Rendering(NamedTuple):
    """How the maps of a method are shown; formula takes [H,W,C] and gives brightness 0..1 as [H,W,1 or C]."""

    title: str
    formula: Callable[[Array], Array]


class Panel(NamedTuple):
    """One image of a picture: uint8 [H,W,3]."""

    title: str
    pixels: Array


class Row(NamedTuple):
    """Panels beside each other under a heading."""

    heading: str
    panels: Sequence[Panel]


def around_grey(values: Array) -> Array:
    """Zero is mid-grey, the sign and the colours stay: how Zeiler and Fergus 2013 and Springenberg et al. 2014 print
    their reconstructions. One factor for all channels."""
    brightness: Array = 0.5 + 0.5 * np.clip(values / _strongest(values), -1, 1)
    return brightness


def magnitude(values: Array) -> Array:
    """max over the channels of |dy/dx|, zero is black: the saliency map of Simonyan et al. 2013, section 3.1."""
    largest = np.abs(values).max(axis=2, keepdims=True)
    brightness: Array = np.clip(largest / _strongest(largest), 0, 1)
    return brightness


RENDERINGS = {
    "guided": Rendering("guided backpropagation", around_grey),
    "deconvnet": Rendering("deconvnet", around_grey),
    "gradient": Rendering("gradient", magnitude),
}


def panel(method: str, values: Array) -> Panel:
    """The picture of one map of shape [H,W,C], C being 1 or 3 with red first.

    Raises DataError when the map is not finite, as for a target that the network does not have.
    """
    rendering = RENDERINGS[method]
    if not np.isfinite(values).all():
        raise DataError(
            f"the {rendering.title} map holds values that are not finite: the network overflowed on this image, or the "
            "explained class does not exist."
        )
    values = values.astype(np.float64)
    title = rendering.title if values.any() else f"{rendering.title} (zero everywhere)"
    return Panel(title, _pixels(np.round(rendering.formula(values) * 255)))


def photo(title: str, pixels: Array) -> Panel:
    """A panel of an 8-bit image of shape [H,W] or [H,W,3], as it is."""
    return Panel(title, _pixels(pixels.reshape(*pixels.shape[:2], -1)))


def compose(rows: Sequence[Row]) -> bytes:
    """The picture as a PNG file's bytes: the same bytes for the same rows and versions of matplotlib and Pillow."""
    scaled = [Row(row.heading, [Panel(p.title, _enlarged(p.pixels)) for p in row.panels]) for row in rows]
    width = max(_row_width(row) for row in scaled)
    headings = [textwrap.wrap(row.heading, _letters(width, HEADING)) for row in scaled]
    heights = [_row_height(row, lines) for row, lines in zip(scaled, headings, strict=True)]
    figure = Figure(figsize=(width / 100, (sum(heights) + MARGIN) / 100), dpi=100, facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)  # untyped in matplotlib
    top = sum(heights) + MARGIN
    for row, lines, height in zip(scaled, headings, heights, strict=True):
        _draw(figure, row, lines, top)
        top -= height
    with warnings.catch_warnings():
        # A label in a script that the font lacks shows boxes; the terminal has printed it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    file = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, "PNG")
    return file.getvalue()


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all, in a folder that need not exist. Raises OutputError."""
    path, advice = Path(path), "Choose another place with -o DIR."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}. {advice}") from None
    with files.whole(path, advice) as part:
        part.write_bytes(data)


def _strongest(values: Array) -> float:
    """The percentile of |values|, or their maximum where nearly all are zero, and never 0."""
    sizes = np.abs(values)
    return float(np.percentile(sizes, PERCENTILE) or sizes.max() or 1)


def _pixels(values: Array) -> Array:
    """[H,W,1 or 3] → uint8 [H,W,3]."""
    return np.broadcast_to(values.astype(np.uint8), (*values.shape[:2], 3))


def _enlarged(pixels: Array) -> Array:
    factor = -(-PANEL // max(pixels.shape[:2]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _row_width(row: Row) -> int:
    return MARGIN + sum(int(p.pixels.shape[1]) + MARGIN for p in row.panels)


def _row_height(row: Row, heading: Sequence[str]) -> int:
    text = round(LINE * (HEADING * len(heading) + TITLE))
    return MARGIN + text + max(int(p.pixels.shape[0]) for p in row.panels)


def _letters(width: int, height: int) -> int:
    """Letters that fit beside each other; those of DejaVu Sans are 0.6 as wide as high, on the safe side."""
    return max(8, int((width - 2 * MARGIN) / (0.6 * height)))


def _draw(figure: Figure, row: Row, heading: Sequence[str], top: float) -> None:
    """A row whose upper edge lies `top` pixels above the figure's lower edge."""
    y = top - MARGIN
    for line in heading:
        _text(figure, MARGIN, y, line, HEADING)
        y -= LINE * HEADING
    x = MARGIN
    below = round(y - LINE * TITLE)
    for title, pixels in row.panels:
        height, width = pixels.shape[:2]
        _text(figure, x, y, textwrap.shorten(title, _letters(width, TITLE), placeholder="..."), TITLE)
        figure.figimage(pixels, x, below - height, origin="upper")
        x += width + MARGIN


def _text(figure: Figure, x: float, y: float, text: str, height: int) -> None:
    """Text below and to the right of a point, in pixels; what a user's matplotlibrc could change is given."""
    width, total = figure.get_size_inches() * 100
    font = FontProperties(family="DejaVu Sans", size=height * 72 / 100)
    figure.text(
        x / width, y / total, text, va="top", ha="left", color="black", font=font, parse_math=False, usetex=False
    )

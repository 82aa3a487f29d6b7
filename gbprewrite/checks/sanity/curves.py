"""The curves of a parameter randomisation test as a picture."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from gbprewrite.checks.sanity.randomisation import RANDOMISATIONS, SanityReport
from gbprewrite.checks.sanity.similarity import MEASURES
from gbprewrite.plaintext import cut, plain
from gbprewrite.version import SOFTWARE

TITLES = {"cascading": "random from the score down", "independent": "one layer random"}
NAMED = 27  # layers named on an axis; of more, every second, third, ...
PHOTOS = 4  # named in the heading
LONGEST = 80  # letters of a name
AS_TEXT: Any = {"text.usetex": False, "text.parse_math": False}  # names hold $ and \\ as they like
WIDTH, HEIGHT, DPI = 3.9, 3.3, 80  # inches of one plot
MARKERS = "osv^Dx"  # lines differ in more than their colours
COLOURS = 64  # of the PNG's palette; drawings need few


@matplotlib.rc_context(AS_TEXT)
def picture(found: SanityReport) -> bytes:
    """The PNG file: a row for each randomisation, a column for each measure, a line for each method.

    A line is the mean over images and draws, the band around it goes from the lowest to the highest. Similarities that
    are not defined leave gaps.
    """
    size = WIDTH * len(MEASURES), HEIGHT * len(RANDOMISATIONS)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    canvas: Any = FigureCanvasAgg(figure)  # untyped in matplotlib
    rows = figure.subplots(len(RANDOMISATIONS), len(MEASURES), squeeze=False, sharex=True, sharey=True)
    for randomisation, row in zip(RANDOMISATIONS, rows, strict=True):
        for measure, axes in zip(MEASURES, row, strict=True):
            _plot(axes, found, randomisation, measure)
        row[0].set_ylabel(TITLES[randomisation])
    for axes, measure in zip(rows[0], MEASURES, strict=True):
        axes.set_title(MEASURES[measure].title)
    names = [cut(plain(name), LONGEST) for name in ("trained", *found.measured)]
    step = -(-len(names) // NAMED)
    rows[-1][0].set_xticks(range(0, len(names), step), names[::step])
    for axes in rows[-1]:
        axes.tick_params("x", rotation=90, labelsize=7)
    figure.supylabel("similarity to the trained network's map", fontsize="medium")
    photos = ", ".join(cut(plain(photo.path.name), LONGEST) for photo in found.photos[:PHOTOS])
    more = ", ..." if len(found.photos) > PHOTOS else ""
    figure.suptitle(f"Parameter randomisation test (Adebayo et al. 2018): {photos}{more}, {found.draws} draw(s)")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=6, frameon=False)
    canvas.draw()
    return _png(np.asarray(canvas.buffer_rgba()))


def _plot(axes: Axes, found: SanityReport, randomisation: str, measure: str) -> None:
    """A cascade starts with the trained network, whose map is like itself."""
    start = 1.0 if randomisation == "cascading" else float("nan")
    for number, method in enumerate(found.methods):
        rows = [[start], *found.values(randomisation, method, measure).tolist()]
        known = [[value for value in row if not np.isnan(value)] or [float("nan")] for row in rows]
        marker = MARKERS[number % len(MARKERS)]
        (line,) = axes.plot([np.mean(row) for row in known], label=method, marker=marker, markersize=3.5, linewidth=1.5)
        ends = [min(row) for row in known], [max(row) for row in known]
        axes.fill_between(range(len(rows)), *ends, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _png(pixels: Any) -> bytes:
    said = PngImagePlugin.PngInfo()
    said.add_text("Software", SOFTWARE)
    file = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").quantize(COLOURS).save(file, "PNG", optimize=True, pnginfo=said)
    return file.getvalue()

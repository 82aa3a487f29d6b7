"""Maps → pictures: as the papers print them, or signed, absolute and positive under colour maps, or over the photo.

`panels` makes the pictures of one map; `layout.compose` puts them beside the photograph.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image

from gbprewrite.errors import DataError, UsageError
from gbprewrite.graft.pictures import OPACITY
from gbprewrite.methods.table import METHODS

Array = npt.NDArray[Any]

PERCENTILE = 99.0  # of |map|: the strongest 1% are clipped, so that a few hot pixels don't turn the rest grey
GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
# matplotlib's own list of diverging colour maps (its page "Choosing colormaps"); their middle is zero.
DIVERGING = (
    *("PiYG", "PRGn", "BrBG", "PuOr", "RdGy", "RdBu", "RdYlBu", "RdYlGn", "Spectral", "coolwarm", "bwr", "seismic"),
    *("berlin", "managua", "vanimo"),
)


class Bar(NamedTuple):
    """The scale under a panel: colours from left to right, uint8 [1,256,3], and the values at both ends."""

    colours: Array
    low: str
    high: str


class Panel(NamedTuple):
    """One image of a picture: uint8 [H,W,3]; `bar` explains its colours, where they have a scale, and `short` is a
    title for little room."""

    title: str
    pixels: Array
    bar: Bar | None = None
    short: str = ""


class Show(NamedTuple):
    """One way to see a map: [H,W,C] → one number for each pixel, under a colour map."""

    formula: Callable[[Array], Array]
    colormap: str
    signed: bool
    text: str


def _sum(values: Array) -> Array:
    total: Array = values.sum(axis=2)
    return total


def _largest(values: Array) -> Array:
    """Simonyan et al. 2013, section 3.1."""
    largest: Array = np.abs(values).max(axis=2)
    return largest


def _positive(values: Array) -> Array:
    largest: Array = np.maximum(values, 0).max(axis=2)
    return largest


SHOWS = {
    "signed": Show(_sum, "RdBu_r", True, "the sum over the channels, with its sign"),
    "absolute": Show(_largest, "inferno", False, "the largest channel of |map| (Simonyan et al. 2013)"),
    "positive": Show(_positive, "inferno", False, "the largest channel of max(map, 0)"),
}


class Rendering(NamedTuple):
    """How the maps of a method are printed in its paper: in colour around grey, or as one of `SHOWS`."""

    show: str | None = None
    colormap: str | None = None
    overlay: str = "absolute"


AROUND_GREY = ("guided", "deconvnet", "guided_gradcam", "guided_no_switches", "deconvnet_no_switches")
# Method → how its paper prints it; all others show |map|.
RENDERINGS = {
    **dict.fromkeys(AROUND_GREY, Rendering()),
    **dict.fromkeys(("gradient", "gradient_no_switches"), Rendering("absolute", "gray")),
}


class Style(NamedTuple):
    """How maps are shown; made by `style`."""

    show: tuple[str, ...] = ("published",)
    percentile: float = PERCENTILE
    diverging: str | None = None
    sequential: str | None = None
    overlay: bool = False
    columns: int | None = None  # methods beside each other; as many as fit, if nothing is said

    def text(self) -> str:
        """What is shown, and what full colour means."""
        shown = [f"{s}: {SHOWS[s].text}" if s in SHOWS else f"{s}: as the method's paper prints it" for s in self.show]
        return f"{'; '.join(shown)}; full colour is percentile {self.percentile:g} of |map|"


def style(
    show: Sequence[str] = (),
    percentile: float | None = None,
    colormaps: Sequence[str] = (),
    overlay: bool = False,
) -> Style:
    """A style from what the caller says. Raises UsageError for what does not exist, or fits no map that is shown."""
    shows = tuple(dict.fromkeys(show)) or ("published",)
    unknown = [s for s in shows if s != "published" and s not in SHOWS]
    if unknown:
        raise UsageError(f"--show {unknown[0]}: choose from published, {', '.join(SHOWS)}.")
    percentile = PERCENTILE if percentile is None else percentile
    if not 0 < percentile <= 100:
        raise UsageError(f"--percentile {percentile:g}: give a number above 0 and up to 100 (100 clips nothing).")
    wanted = {SHOWS[s].signed for s in shows if s in SHOWS} | ({False} if overlay else set())
    chosen: dict[bool, str] = {}
    for name in colormaps:
        if name not in matplotlib.colormaps:
            raise UsageError(
                f"--colormap {name}: matplotlib has no colour map of this name. Choose for example RdBu_r or coolwarm "
                "for signed maps, viridis or gray for the others."
            )
        diverges = name.removesuffix("_r") in DIVERGING
        if diverges not in wanted:
            kind, others = ("diverging", "sequential") if diverges else ("sequential", "diverging")
            advice = f"Choose a {others} one." if wanted else f"Add --show {'signed' if diverges else 'absolute'}."
            raise UsageError(f"--colormap {name}: it is {kind}, and no map is shown that such colours fit. {advice}")
        chosen[diverges] = name
    return Style(shows, percentile, chosen.get(True), chosen.get(False), overlay)


def panels(
    method: str, values: Array, photo: Array, chosen: Style | None = None, title: str | None = None
) -> list[Panel]:
    """The pictures of one map of shape [H,W,C], red first, beside or over the photograph, uint8 [H,W] or [H,W,3].

    `title` is the method's own by default, or its name. A map of another size than the photograph's is brought to it
    (bilinear). Raises DataError when the map is not finite, as for a target that the network does not have.
    """
    chosen = chosen or Style()
    rendering = RENDERINGS.get(method, Rendering("absolute"))
    title = title or (METHODS[method].title if method in METHODS else method)
    if not np.isfinite(values).all():
        raise DataError(
            f"the {title} map holds values that are not finite: the network overflowed on this image, or the "
            "explained class does not exist."
        )
    values = _sized(values.astype(np.float64), photo.shape[0], photo.shape[1])
    found: list[Panel] = []
    for show in chosen.show:
        found.append(_panel(rendering, title, values, show, chosen))
        if chosen.overlay:
            found.append(_overlaid(rendering, title, values, photo, show, chosen))
    return [p._replace(short=p.title.replace(title, method, 1)) for p in found]


def panel(method: str, values: Array, chosen: Style | None = None) -> Panel:
    """The first picture of a map in its own size. Raises DataError as `panels`."""
    return panels(method, values, values, (chosen or Style())._replace(overlay=False))[0]


def photo(title: str, pixels: Array) -> Panel:
    """A panel of an 8-bit image of shape [H,W] or [H,W,3], as it is."""
    return Panel(title, _pixels(pixels.reshape(*pixels.shape[:2], -1)))


def around_grey(values: Array, limit: float) -> Array:
    """Zero is mid-grey, the sign and the colours stay: how Zeiler and Fergus 2013 and Springenberg et al. 2014 print
    their reconstructions. ±limit in any channel is full brightness, 0 to 1."""
    brightness: Array = 0.5 + 0.5 * np.clip(values / limit, -1, 1)
    return brightness


def _panel(rendering: Rendering, method: str, values: Array, show: str, chosen: Style) -> Panel:
    """As published, or under one of `SHOWS`."""
    name = rendering.show if show == "published" else show
    title = method if show == "published" else f"{method}, {show}"
    if not values.any():
        title += " (all zero)"
    if name is None:
        limit = strongest(values, chosen.percentile)
        return Panel(title, _pixels(np.round(around_grey(values, limit) * 255)), _bar(GREYS, values, limit, True))
    colours = _colours(name, chosen, rendering.colormap if show == "published" else None)
    shares, bar = _scaled(SHOWS[name], values, colours, chosen.percentile)
    return Panel(title, _coloured(shares, SHOWS[name].signed, colours), bar)


def _overlaid(rendering: Rendering, method: str, values: Array, photo: Array, show: str, chosen: Style) -> Panel:
    """Colours over the grey photograph, the more opaque the stronger the map is."""
    name = rendering.overlay if show == "published" else show
    colours = _colours(name, chosen)
    shares, bar = _scaled(SHOWS[name], values, colours, chosen.percentile)
    grey = np.asarray(Image.fromarray(photo).convert("L"), np.float64)[:, :, None]
    opacity = OPACITY * np.abs(shares)[:, :, None]
    mixed = opacity * _coloured(shares, SHOWS[name].signed, colours) + (1 - opacity) * grey
    return Panel(f"{method}, {name}, overlaid", _pixels(np.round(mixed)), bar)


def _colours(show: str, chosen: Style, published: str | None = None) -> Array:
    """The colour map, uint8 [256,3]."""
    asked = chosen.diverging if SHOWS[show].signed else chosen.sequential
    table = matplotlib.colormaps[asked or published or SHOWS[show].colormap].resampled(256)
    colours: Array = table(np.arange(256), bytes=True)[:, :3]
    return colours


def _scaled(show: Show, values: Array, colours: Array, percentile: float) -> tuple[Array, Bar]:
    """One number for each pixel, -1 or 0 to 1, and the scale that says what 1 is."""
    numbers = show.formula(values)
    limit = strongest(numbers, percentile)
    return np.clip(numbers / limit, -1, 1), _bar(colours, numbers, limit, show.signed)


def _bar(colours: Array, numbers: Array, limit: float, signed: bool) -> Bar:
    """The scale of numbers that are shown up to a limit; ≥ where stronger ones were clipped."""
    if not numbers.any():
        return Bar(colours[None], "0", "0")
    most, least = ("≥ ", "≤ ") if np.abs(numbers).max() > limit else ("", "")
    return Bar(colours[None], f"{least}−{limit:.2g}" if signed else "0", f"{most}{limit:.2g}")


def _coloured(shares: Array, signed: bool, colours: Array) -> Array:
    positions = 0.5 + 0.5 * shares if signed else shares
    picked: Array = colours[np.round(positions * 255).astype(int)]
    return picked


def _sized(values: Array, height: int, width: int) -> Array:
    if values.shape[:2] == (height, width):
        return values
    planes = [
        Image.fromarray(values[:, :, c].astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        for c in range(values.shape[2])
    ]
    return np.stack([np.asarray(p, np.float64) for p in planes], axis=2)


def strongest(values: Array, percentile: float = PERCENTILE) -> float:
    """The percentile of |values|, or their maximum where nearly all are zero, and never 0."""
    sizes = np.abs(values)
    return float(np.percentile(sizes, percentile) or sizes.max() or 1)


def _pixels(values: Array) -> Array:
    """[H,W,1 or 3] → uint8 [H,W,3]."""
    return np.broadcast_to(values.astype(np.uint8), (*values.shape[:2], 3))

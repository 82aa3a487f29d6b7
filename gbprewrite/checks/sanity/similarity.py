"""How alike two maps are: the four measures of Adebayo et al. 2018, by SciPy and scikit-image.

Both are part of the extra `sanity` and are imported when the first measure is taken.
"""

import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gbprewrite.errors import RuntimeUnavailable

Array = npt.NDArray[Any]

PERCENTILE = 99  # brightness at which the maps are clipped for SSIM and HOG, as they are shown
SSIM_WINDOW, SSIM_LEAST_WINDOW = 7, 3
HOG_CELL = 16  # pixels, less in small maps
LEAST_CELLS = 4  # along the shorter side of a map


class Measure(NamedTuple):
    """A similarity of two maps [H,W,C], 1 for equal ones and nan where it is not defined: `compare` of what `feature`
    sees in each."""

    title: str
    feature: Callable[[Array], Array]
    compare: Callable[[Array, Array], float]

    def __call__(self, a: Array, b: Array) -> float:
        return self.compare(self.feature(a), self.feature(b))


def check_libraries() -> None:
    """Raise RuntimeUnavailable where SciPy or scikit-image is missing."""
    try:
        for name in ("scipy.stats", "skimage.feature", "skimage.metrics"):
            importlib.import_module(name)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"similarities of maps are measured by SciPy and scikit-image, and these can't be imported ({error}). "
            "Install them: pip install 'gbprewrite[sanity]'."
        ) from None


def signed(values: Array) -> Array:
    """[H,W,C] → [H,W]: the sum over the channels."""
    total: Array = values.astype(np.float64).sum(axis=-1)
    return total


def magnitude(values: Array) -> Array:
    """[H,W,C] → [H,W]: the sum of absolute values over the channels."""
    return signed(np.abs(values))


def brightness(values: Array) -> Array:
    """[H,W,C] → [H,W] from 0 to 1: the magnitude, clipped at its 99th percentile."""
    sizes = magnitude(values)
    top = np.percentile(sizes, PERCENTILE) or sizes.max() or 1
    return np.clip(sizes / top, 0, 1)


def ranks(values: Array) -> Array:
    """The rank of each value, ties sharing their mean."""
    import scipy.stats

    found: Array = scipy.stats.rankdata(values)
    return found


def correlation(a: Array, b: Array) -> float:
    """Pearson's correlation; of ranks, Spearman's ρ. Constants have none."""
    import scipy.stats

    return float(scipy.stats.pearsonr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def structure(a: Array, b: Array) -> float:
    """Structural similarity (Wang et al. 2004) of two brightnesses; nan where one is zero or too small."""
    import skimage.metrics

    library: Any = skimage.metrics  # partly typed
    shorter = min(a.shape)
    window = min(SSIM_WINDOW, shorter - 1 + shorter % 2)
    if not (a.any() and b.any()) or window < SSIM_LEAST_WINDOW:
        return float("nan")
    return float(library.structural_similarity(a, b, win_size=window, data_range=1.0))


def gradients(values: Array) -> Array:
    """[H,W,C] → histograms of oriented gradients (Dalal and Triggs 2005) of the brightness, as one vector."""
    import skimage.feature

    cell = max(1, min(HOG_CELL, min(values.shape[:2]) // LEAST_CELLS))
    found: Array = skimage.feature.hog(
        brightness(values), orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(1, 1)
    )
    return found


MEASURES = {
    "spearman_abs": Measure("rank correlation of |map|", lambda m: ranks(magnitude(m).ravel()), correlation),
    "spearman": Measure("rank correlation, signed", lambda m: ranks(signed(m).ravel()), correlation),
    "ssim": Measure("SSIM", brightness, structure),
    "hog": Measure("HOG correlation", gradients, correlation),
}


def features(values: Array) -> dict[str, Array]:
    """What each measure sees in a map."""
    return {name: measure.feature(values) for name, measure in MEASURES.items()}


def compare(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, float]:
    """The similarities of two maps by their features."""
    return {name: measure.compare(a[name], b[name]) for name, measure in MEASURES.items()}


def class_sensitivity(maps: Sequence[Array]) -> float:
    """1 − mean |Spearman's ρ| over all pairs of signed maps, one [H,W,C] for each class: 0 where the maps of all
    classes rank pixels alike (or the other way round), nan where no pair has ranks."""
    ranked = [ranks(signed(m).ravel()) for m in maps]
    found = [abs(correlation(a, b)) for a, b in itertools.combinations(ranked, 2)]
    known = [value for value in found if not np.isnan(value)]
    return 1 - float(np.mean(known)) if known else float("nan")

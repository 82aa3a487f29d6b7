"""Several methods on the same photographs, from one file and one run of it; and how alike their maps are.

The columns are those of Springenberg et al. 2014, figure 4 (backpropagation, deconvnet, guided backpropagation), and
Grad-CAM with Guided Grad-CAM (Selvaraju et al. 2017).
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from gbprewrite.errors import NoFeatureLayer, UsageError
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import load
from gbprewrite.methods.asked import Asked, by_name
from gbprewrite.pictures.explain import ExplainedPhoto, PhotoExplainer
from gbprewrite.pictures.panels import SHOWS

COLUMNS = ("gradient", "deconvnet", "guided", "gradcam", "guided_gradcam")
SWITCHLESS = {m: f"{m}_no_switches" for m in ("gradient", "deconvnet", "guided")}
LOCALISING = ("gradcam", "guided_gradcam")  # these need a layer of feature maps, which not every network has


class Comparison:
    """What `gbprewrite compare` does beside explaining: see `cli.photographs.Job`.

    Attributes:
        methods: the methods compared, in the order of the columns; those without switches stand last.
        columns: how many of them stand beside each other.
    """

    ending = "compare"

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        method: Sequence[Asked] = (),
        *,
        no_switches: bool = False,
        **options: Any,
    ) -> None:
        """Of a model, or a converted one.

        Args:
            model, options: as for `PhotoExplainer`.
            method: `COLUMNS` by default, without Grad-CAM where the model has no layer for it, which the
                explainer's `notes` tell; of a converted model what it holds.
            no_switches: also compare gradient, deconvnet and guided without the switches of max pools.

        Raises UsageError for `no_switches` with none of the methods that it is for, ModelError for a file that can't be
        read.
        """
        self._model, self._options = load(model, replace=None), options
        record = None if options.get("replace") else report.read_record(self._model)
        held = () if record is None else tuple(m for m in record["methods"] if m not in SWITCHLESS.values())
        self._chosen = bool(method or held)
        self._no_switches = no_switches
        if not method and options.get("layer") and not options.get("target"):
            # As without Grad-CAM, for which a layer may mean two things.
            self._options = {**options, "target": "strongest"}
        self._asked: dict[str, Asked] = by_name(method, held) if method else {}
        self._set(tuple(self._asked or dict.fromkeys(held or COLUMNS)))
        self._sums: dict[tuple[str, str], list[float]] = defaultdict(list)

    def _set(self, methods: Sequence[str]) -> None:
        below = [SWITCHLESS[m] for m in methods if m in SWITCHLESS] if self._no_switches else []
        methods = [m for m in methods if m not in below]
        if self._no_switches and not below:
            raise UsageError(f"--no-switches is for --method {', '.join(SWITCHLESS)}, and none of them is compared.")
        self.columns = len(methods)
        # Each below the method that it belongs to.
        self.methods = (*sorted(methods, key=lambda m: m not in SWITCHLESS if below else 0), *below)

    def open(self, **options: Any) -> PhotoExplainer:
        """The explainer of all methods. Raises as `PhotoExplainer`."""
        asked = [self._asked.get(name, name) for name in self.methods]
        try:
            return PhotoExplainer(self._model, asked, **self._options, **options)
        except NoFeatureLayer as reason:
            if self._chosen:
                raise
            self._set([m for m in COLUMNS if m not in LOCALISING])
            made = PhotoExplainer(self._model, self.methods, **self._options, **options)
            made.notes.append(f"without Grad-CAM and Guided Grad-CAM: {reason}")
            return made

    def add(self, explained: ExplainedPhoto) -> None:
        """Compare the maps of one photograph, class by class."""
        for maps in explained.maps:
            sizes = {m: SHOWS["absolute"].formula(values.astype(np.float64)).ravel() for m, values in maps.items()}
            for a, b in self._pairs():
                alike = _correlation(sizes[a], sizes[b])
                if alike is not None:
                    self._sums[a, b].append(alike)

    def facts(self) -> dict[str, Any]:
        """How alike the methods' maps are: the correlation of |map| (its largest channel), mean over all photographs.

        None where a map was the same everywhere each time.
        """
        means = {pair: float(np.mean(self._sums[pair])) if self._sums[pair] else None for pair in self._pairs()}
        return {"likeness": [{"methods": list(pair), "correlation": mean} for pair, mean in means.items()]}

    def _pairs(self) -> list[tuple[str, str]]:
        return list(combinations(self.methods, 2))


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float | None:
    """Pearson's. (The cosine of magnitudes is some 0.8 for noise of three channels, too.)"""
    if not (np.ptp(a) and np.ptp(b)):
        return None
    return float(np.corrcoef(a, b)[0, 1])

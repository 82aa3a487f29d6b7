"""The picture of a comparison: a group of bars for each network."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from tests.bench.comparison import Row
from tests.bench.contenders import CONTENDERS, FORWARD, OURS
from tests.bench.report import SAME, settings, title

LIMIT = 2.0  # one pass of convolutions more than the forward pass
TALLEST = 8.0  # bars end here, and say their height
COLOURS = dict(zip([n for n in CONTENDERS if n not in (FORWARD, OURS)], plt.get_cmap("tab20").colors, strict=False))
COLOURS[OURS] = "black"


def draw(rows: Sequence[Row], path: Path, machine: str) -> None:
    """One panel for each setting; a hatched bar does not compute the map that the others compute."""
    groups = settings(rows)
    networks = max(len({row.network for row in group}) for group in groups.values())
    size = (max(7.0, 2.5 + 1.3 * networks), 3.4 * len(groups) + 0.6)
    figure, panels = plt.subplots(len(groups), 1, figsize=size, squeeze=False, layout="constrained")
    for panel, (key, group) in zip(panels[:, 0], groups.items(), strict=True):
        _panel(panel, group)
        panel.set_title(title(key), loc="left", fontsize=10)
    shown = {row.contender for row in rows if row.ratio is not None}
    handles = {name: Patch(color=COLOURS[name]) for name in CONTENDERS if name in shown and name != FORWARD}
    handles |= {"not the same map": Patch(facecolor="grey", hatch="////", edgecolor="white")}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(f"Time of forward pass and map / time of the forward pass\n{machine}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Axes, group: Sequence[Row]) -> None:
    networks = list(dict.fromkeys(row.network for row in group))
    names = [n for n in dict.fromkeys(row.contender for row in group if row.ratio is not None) if n != FORWARD]
    width = 0.85 / max(len(names), 1)
    for i, name in enumerate(names):
        of = {row.network: row for row in group if row.contender == name and row.ratio is not None}
        places = np.array([networks.index(n) for n in of]) + width * (i - (len(names) - 1) / 2)
        _bars(panel, places, list(of.values()), width, name)
    panel.axhline(LIMIT, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    panel.set_xticks(range(len(networks)), networks, fontsize=9)
    panel.set_ylim(0, TALLEST + 0.6)
    panel.margins(x=0.01)
    panel.spines[["top", "right"]].set_visible(False)


def _bars(panel: Axes, places: np.ndarray, rows: Sequence[Row], width: float, name: str) -> None:
    heights = np.array([row.ratio for row in rows])
    quartiles = np.array([row.ratio_quartiles for row in rows]).T
    shown = np.minimum(heights, TALLEST)
    spread = np.abs(np.minimum(quartiles, TALLEST) - shown)
    drawn = panel.bar(places, shown, width, yerr=spread, color=COLOURS[name], error_kw={"linewidth": 0.6})
    for bar, row, height in zip(drawn, rows, heights, strict=True):
        if row.cosine is not None and row.cosine < SAME[row.precision]:
            bar.set(hatch="////", edgecolor="white", linewidth=0)
        if height > TALLEST:
            panel.text(bar.get_x() + width / 2, TALLEST, f"{height:.0f}", ha="center", va="bottom", fontsize=6)

"""What is not finite in a run, and whose doing that is: the input's, the model's own, or the map's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gbprewrite.graft import record as report
from gbprewrite.select.class_axis import samples_first

Array = NDArray[Any]
FEW = 5  # samples that are named


def notes(
    record: report.Record, feeds: Mapping[str, Array], outputs: Mapping[str, Any], maps: Mapping[str, Array]
) -> tuple[str, ...]:
    """A sentence for each cause: scores (the model's own) and maps that are NaN or infinite; () where all is finite.

    A cause hides what follows from it: maps are named where scores are finite, and scores where inputs are.
    """
    fed = [describe(f"the input {name!r}", a) for name, a in feeds.items() if _floats(a)]
    if any(fed):
        return tuple(f"{what}, so the model's scores and maps are none either." for what in fed if what)
    scored = [
        describe(f"the model itself gives a score {name!r} that", a) for name, a in scores(record, outputs).items()
    ]
    if any(scored):
        return tuple(f"{what}: its highest class means nothing there, and nor do its maps." for what in scored if what)
    mapped = (describe(f"the map {name!r}", a) for name, a in maps.items() if _floats(a))
    return tuple(
        f"{what}, and the score is: a root or a quotient meets 0 there, or numbers leave the model's float type."
        for what in mapped
        if what
    )


def scores(record: report.Record, outputs: Mapping[str, Any]) -> dict[str, Array]:
    """The explained score, as far as it is an output, and the output that it was taken from; samples first."""
    found = {name: outputs[name] for name in (record["score"], record["output"]) if name in outputs}
    arrays = {name: np.asarray(value) for name, value in found.items()}
    axis = record["batch_axis"]
    return {
        name: samples_first(a, axis) if axis is None or axis < a.ndim else a for name, a in arrays.items() if _floats(a)
    }


def _floats(values: Any) -> bool:
    return getattr(values, "dtype", np.dtype(bool)).kind in "fV"  # bfloat16 is "V"


def describe(what: str, values: Array) -> str:
    """`<what> is not finite (2 NaN, 1 infinite of 10 values; sample 0)`; "" where it is."""
    wide = np.asarray(values, np.float64)
    bad = ~np.isfinite(wide)
    if not bad.any():
        return ""
    counts = {"NaN": int(np.isnan(wide).sum()), "infinite": int(np.isinf(wide).sum())}
    listed = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    return f"{what} is not finite ({listed} of {wide.size} values{_samples(bad)})"


def _samples(bad: Array) -> str:
    if bad.ndim < 1 or len(bad) < 2:
        return ""
    rows: Sequence[int] = np.flatnonzero(bad.reshape(len(bad), -1).any(1)).tolist()
    more = f" and {len(rows) - FEW} more" if len(rows) > FEW else ""
    return f"; sample {', '.join(map(str, rows[:FEW]))}{more}, counting from 0"

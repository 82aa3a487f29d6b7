"""The maps of a converted model once more, by the same rules in another spelling: what they are checked against where
ONNX's reference evaluator can't be had.

onnxruntime runs it without optimisations, in float64 where it has the kernels for that.
"""

from typing import Any

from gbprewrite.checks import reference
from gbprewrite.checks.trial import Trial, wide
from gbprewrite.convert import convert
from gbprewrite.errors import DataError, ModelError
from gbprewrite.runtime.session import Session


def maps(trial: Trial) -> tuple[dict[str, Any], str]:
    """(outputs by name, how they were computed, in words). Raises GbprewriteError where that stops, too."""
    own = trial.record["options"]["optimize_for"]
    other = "cpu" if own == "portable" else "portable"
    model = convert(trial.source, **{**trial.record["options"], "optimize_for": other})
    words = f"the same rules spelled for {other!r}, by onnxruntime without optimisations"
    try:
        found = Session(reference.in_float64(model), "cpu", optimise=False).run(wide(trial.feeds))
        return found, f"{words}, in float64"
    except (ModelError, DataError):  # an operator without a kernel for float64: Conv
        found = Session(model, "cpu", optimise=False).run(trial.feeds)
        return found, f"{words}, in {trial.score.dtype}, since it has no float64 kernel for all operators"

"""The magnitude of one tensor: an interval that holds all its values, and their usual size."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

ORDINARY = 4.0  # the usual size of a value that depends on the inputs and on nothing that bounds it
LONG = 1 << 20  # what a length counts as that the graph leaves open, for the bound
USUAL_LENGTH = 16  # and for the usual size
FEW = 1 << 16  # elements: constants up to this size are computed with, larger ones are summed up
INF = math.inf


class Magnitude(NamedTuple):
    """low <= every value <= high, and the usual |value|.

    `value` holds a small constant itself; of a large one `squares` holds the sums of squares behind each index of its
    first axis, or a single sum where nothing is known of its axes.
    """

    low: float
    high: float
    usual: float
    value: np.ndarray[Any, Any] | None = None
    squares: np.ndarray[Any, Any] | None = None

    @property
    def most(self) -> float:
        """The largest |value|; infinite for NaN as well."""
        found = max(abs(self.low), abs(self.high))
        return found if found == found else INF

    @property
    def constant(self) -> bool:
        """Whether nothing that runs changes it."""
        return self.value is not None or self.squares is not None


ANY = Magnitude(-INF, INF, ORDINARY)
UNBOUNDED = Magnitude(-INF, INF, INF)
SHARE = Magnitude(0.0, 1.0, 1.0)
SIGNED_SHARE = Magnitude(-1.0, 1.0, 1.0)
LENGTHS = Magnitude(1.0, INF, float(USUAL_LENGTH))  # what is divided by one of 0 has no values
Known = Callable[..., list[Magnitude]]
Formula = Callable[[gs.Node, Known], Magnitude]


def unread(tensor: TensorProto) -> Magnitude:
    """Weights in a file that is not there: as large as usual ones, which hand on what they get."""
    rows = np.ones(tensor.dims[0] if tensor.dims else 1)
    return Magnitude(-INF, INF, math.sqrt(len(rows) / max(math.prod(tensor.dims), 1)), None, rows)


def of_array(values: np.ndarray[Any, Any]) -> Magnitude:
    """The magnitude of a constant, without a copy of a large one."""
    if values.dtype.kind not in "fiub" or not values.size:
        return UNBOUNDED
    low, high = float(values.min()), float(values.max())
    if values.size <= FEW:
        return small(np.asarray(values, np.float64))
    most = max(abs(low), abs(high))
    squares = _squares(values.reshape(len(values), -1), narrow=values.dtype == np.float32 and 2**-40 < most < 2**40)
    return Magnitude(low, high, math.sqrt(float(squares.sum()) / values.size), None, squares)


def _squares(rows: np.ndarray[Any, Any], narrow: bool) -> np.ndarray[Any, Any]:
    """The sum of squares of each row; in float64, piece by piece, unless float32 holds them."""
    if narrow:
        return np.asarray(np.einsum("ij,ij->i", rows, rows), np.float64)
    step = max(1, LONG // rows.shape[1])
    pieces = (rows[at : at + step].astype(np.float64) for at in range(0, len(rows), step))
    return np.concatenate([np.einsum("ij,ij->i", piece, piece) for piece in pieces])


def small(values: np.ndarray[Any, Any]) -> Magnitude:
    if not values.size:
        return SHARE
    low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high)) or 1.0
    usual = largest * float(np.sqrt(np.mean((values / largest) ** 2))) if math.isfinite(largest) else INF
    return Magnitude(low, high, usual, values, (values.reshape(len(values), -1) ** 2).sum(1) if values.ndim else None)


def around(most: float, usual: float) -> Magnitude:
    return Magnitude(-most, most, usual) if most == most and usual == usual else UNBOUNDED


def times(a: float, b: float) -> float:
    """A product in which zero times anything is zero."""
    return a * b if a and b else 0.0


def checked(low: float, high: float, usual: float) -> Magnitude:
    return Magnitude(low if low == low else -INF, high if high == high else INF, usual if usual == usual else INF)

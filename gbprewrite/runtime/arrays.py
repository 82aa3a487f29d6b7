"""Arrays in: checked against what the model takes, cast, and cut into the batches it takes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gbprewrite.errors import DataError, UsageError

Array = NDArray[Any]
Dim = int | str


class Slot(NamedTuple):
    """What an input takes; dimensions are numbers, or names where any size goes ("?" for no name)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        shape = "any shape" if self.shape is None else "[" + ", ".join(map(str, self.shape)) + "]"
        return f"{self.name} ({self.dtype}, {shape})"


def fit(given: Mapping[str, Any], slots: Sequence[Slot]) -> dict[str, Array]:
    """The arrays in the dtypes that the model takes, of shapes that it takes or that can be cut into them.

    Raises UsageError for missing and unknown names, DataError for a wrong rank, shape or dtype.
    """
    names = [s.name for s in slots]
    wrong = [f"unknown: {n}" for n in given if n not in names] + [f"missing: {n}" for n in names if n not in given]
    if wrong:
        raise UsageError(f"the inputs given are not the model's ({', '.join(wrong)}). It takes {listing(slots)}.")
    made = {s.name: _cast(given[s.name], s) for s in slots}
    sizes: dict[str, tuple[int, str]] = {}
    for slot in slots:
        _check_shape(made[slot.name], slot, sizes)
    return made


def listing(slots: Sequence[Slot]) -> str:
    """The inputs in words."""
    return ", ".join(map(str, slots)) or "none"


def _cast(given: Any, slot: Slot) -> Array:
    """To the slot's dtype where no information of meaning is lost: any float to any float, integers to floats."""
    try:
        array = np.asarray(given)
    except ValueError:
        raise DataError(f"input {slot.name} is no array: its rows differ in length. The model takes {slot}.") from None
    if array.dtype == slot.dtype:
        return array
    if not np.can_cast(array.dtype, slot.dtype, "same_kind") and not (_is_float(array.dtype) and _is_float(slot.dtype)):
        raise DataError(f"input {slot.name} was given as {array.dtype}, and the model takes {slot}. Cast it first.")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(slot.dtype)
        lost = cast != array if slot.dtype.kind in "iu" else np.isinf(cast) & ~np.isinf(array)
    if lost.any():
        raise DataError(f"input {slot.name} was given as {array.dtype} with values that do not fit into {slot.dtype}.")
    return cast


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _check_shape(array: Array, slot: Slot, sizes: dict[str, tuple[int, str]]) -> None:
    """Every dimension but the batch as declared; named dimensions agree between inputs."""
    if slot.shape is None:
        return
    what = f"input {slot.name} was given with shape {list(array.shape)}, and the model takes {slot}"
    if array.ndim != len(slot.shape):
        hint = " Give it a batch axis: x[None]." if array.ndim == len(slot.shape) - 1 else ""
        raise DataError(f"{what}.{hint}")
    for axis, (size, wanted) in enumerate(zip(array.shape, slot.shape, strict=True)):
        if not size:
            raise DataError(f"{what}: axis {axis} is empty.")
        if isinstance(wanted, int):
            if size != wanted and axis:
                raise DataError(f"{what}: axis {axis} must be {wanted}.")
        elif wanted != "?":
            known, other = sizes.setdefault(wanted, (size, slot.name))
            if known != size:
                raise DataError(f"{what}: {wanted} is {known} in input {other}, and {size} here.")


def batch_size(arrays: Mapping[str, Array], slots: Sequence[Slot]) -> int | None:
    """The fixed batch size into which the arrays have to be cut; None where the model takes them as they are.

    Raises DataError when the inputs can't be cut alike.
    """
    fixed = {s.shape[0] for s in slots if s.shape and isinstance(s.shape[0], int)}
    if all(isinstance(s.shape[0], str) or s.shape[0] == len(arrays[s.name]) for s in slots if s.shape):
        return None
    if len(fixed) != 1 or not all(s.shape for s in slots) or len({len(a) for a in arrays.values()}) != 1:
        shapes = ", ".join(f"{name} {list(a.shape)}" for name, a in arrays.items())
        raise DataError(
            f"the inputs ({shapes}) can't be cut into the batches that the model takes: {listing(slots)}. "
            "Give every input the same number of samples."
        )
    return int(fixed.pop())


def cut(arrays: Mapping[str, Array], size: int) -> Iterator[dict[str, Array]]:
    """Pieces of `size` samples; the last one is filled up with the last sample."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: a[rows] for name, a in arrays.items()}


def join(pieces: Sequence[Mapping[str, Any]], size: int, count: int) -> dict[str, Any]:
    """The results of all pieces, without what filled the last one up. Raises DataError for an output without batch."""
    for name, value in pieces[0].items():
        if not isinstance(value, np.ndarray) or not value.ndim or len(value) != size:
            raise DataError(
                f"output {name} has no batch axis of {size}, so the results of several runs can't be joined. "
                f"Give the model {size} samples at once."
            )
    return {name: np.concatenate([piece[name] for piece in pieces])[:count] for name in pieces[0]}

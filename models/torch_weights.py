"""Weights out of a PyTorch file of the format before 1.6, with numpy alone.

Such a file is five pickles (magic number, protocol version, facts on the writing machine, the object, the keys of its
storages) followed by each storage: its length as int64, then its numbers. A pickle can call anything that it names, so
the unpickler here knows four names and refuses every other.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from gbprewrite.errors import ModelError

Array = NDArray[Any]

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def read(path: Path) -> dict[str, Array]:
    """The state dict of a file: name → array (float32, or int64 for counters).

    Raises ModelError when the file is of another format, is cut short, or its pickle names anything but tensors.
    """
    try:
        with path.open("rb") as file:
            if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != PROTOCOL:
                _refuse("it is not of PyTorch's format before 1.6")
            _Unpickler(file).load()  # byte order and sizes of C types, which no reader uses
            tensors = _Unpickler(file)
            state = tensors.load()
            _fill(file, tensors.storages, _Unpickler(file).load())
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ModelError(f"{path} can't be read as weights: {error or type(error).__name__}. Fetch it again.") from None
    return dict(state)


class _Unpickler(pickle.Unpickler):
    """Knows tensors and nothing else; the numbers of `storages` come later in the file and are filled in there."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Array] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"its pickle names {module}.{name}, which no weights need") from None

    def persistent_load(self, pid: tuple[Any, ...]) -> Array:
        _, dtype, key, _, size, view = pid
        if view is not None:
            _refuse("it shares a storage between tensors of different kinds")
        return self.storages.setdefault(key, np.empty(size, dtype))


def _tensor(storage: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Array:
    """A view of the storage, which must not reach beyond it; strides count elements."""
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or last >= len(storage):
        _refuse("a tensor reaches beyond its storage")
    byte_strides = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides)


_ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
}


def _fill(file: BinaryIO, storages: Mapping[str, Array], keys: list[str]) -> None:
    for key in keys:
        storage = storages[key]
        size = int.from_bytes(file.read(8), "little")
        if size != len(storage) or file.readinto(storage.data.cast("B")) != storage.nbytes:  # type: ignore[attr-defined]
            _refuse("it ends too early")


def _refuse(why: str) -> NoReturn:
    raise pickle.UnpicklingError(why)

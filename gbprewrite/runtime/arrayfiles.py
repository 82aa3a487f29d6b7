"""Arrays from .npy and .npz files, and into one."""

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gbprewrite import files
from gbprewrite.errors import DataError, UsageError
from gbprewrite.runtime import arrays

Array = NDArray[Any]


def read_inputs(specs: Iterable[str], slots: Sequence[arrays.Slot]) -> dict[str, Array]:
    """The arrays that NAME=x.npy, x.npy (a model of one input) or x.npz (keys are the names) stand for.

    Raises UsageError for a name that the model does not have, DataError for a file that holds no arrays.
    """
    found: dict[str, Array] = {}
    for spec in specs:
        known, path = _split(spec, slots)
        if known is None and "=" in spec and not os.path.exists(path):
            raise UsageError(f"--input {spec}: the model has no input of this name. It takes {arrays.listing(slots)}.")
        held = _read(path)
        if isinstance(held, dict) and known is None:
            found.update(held)
            continue
        name = known or (slots[0].name if len(slots) == 1 else None)
        if name is None:
            raise UsageError(
                f"--input {spec}: the model takes {len(slots)} inputs, so say which this is: NAME={spec}. "
                f"It takes {arrays.listing(slots)}."
            )
        if isinstance(held, dict):
            if len(held) != 1:
                raise DataError(f"--input {spec}: the file holds {len(held)} arrays ({', '.join(held)}), not one.")
            (held,) = held.values()
        found[name] = held
    return found


def paths(specs: Iterable[str], slots: Sequence[arrays.Slot]) -> list[Path]:
    """The files that `read_inputs` reads."""
    return [_split(spec, slots)[1] for spec in specs]


def _split(spec: str, slots: Sequence[arrays.Slot]) -> tuple[str | None, Path]:
    """NAME and FILE; no name where the text is a file alone."""
    known = next((s.name for s in slots if spec.startswith(f"{s.name}=")), None)
    return known, Path(spec if known is None else spec[len(known) + 1 :])


def _read(path: Path) -> Array | dict[str, Array]:
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            return held if isinstance(held, np.ndarray) else dict(held)
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path} can't be read: {why}. Check the path and its permissions.") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(
            f"{path} holds no plain numeric arrays: it is another kind of file, cut short, or full of Python objects. "
            "Write it with numpy.save or numpy.savez."
        ) from None


def save(path: str | os.PathLike[str], named: Mapping[str, Any], force: bool = False) -> None:
    """Write an .npz file: the whole file, or nothing. Raises OutputError."""
    path = Path(path)
    files.check_writable(path, force)
    # numpy.savez would take names such as "file" for its own arguments.
    with files.whole(path, force=force) as part, zipfile.ZipFile(part, "w") as archive:
        for name, value in named.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)

"""Arrays from .npy and .npz files, and into one."""

import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gbprewrite import files
from gbprewrite.errors import DataError, UsageError
from gbprewrite.runtime import arrays

Array = NDArray[Any]

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
ENCRYPTED = 1  # a bit of a zip entry's flags
DENSEST = 1100  # times: deflate makes nothing smaller
LONGEST = 200  # bytes of a file's name, with room for a suffix
RESERVED = re.compile(r"con|prn|aux|nul|com\d|lpt\d", re.IGNORECASE)  # by Windows, whatever the suffix


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
        if os.path.exists(path) and not path.is_file() and not path.is_dir():
            raise OSError(None, "it is a pipe or a device, not a file")
        with path.open("rb") as file:
            return _archive(path) if file.read(2) == b"PK" else _array(file, path.stat().st_size)
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{path} can't be read: {why}. Check the path and its permissions.") from None
    except MemoryError:
        raise DataError(f"{path} holds more than there is memory for. Give fewer samples at once.") from None
    except Exception as error:  # of whatever kind a damaged file brings zipfile, zlib and numpy to
        why = str(error) if isinstance(error, _Damaged) else "another kind of file, cut short, or damaged"
        raise DataError(
            f"{path} holds no plain numeric arrays: it is {why}. Write it with numpy.save or numpy.savez."
        ) from None


class _Damaged(ValueError):
    """What is wrong with a file, in words that follow "it is"."""


def _archive(path: Path) -> dict[str, Array]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.flag_bits & ENCRYPTED:
                raise _Damaged("encrypted")
            if entry.file_size > min(entry.compress_size, path.stat().st_size) * DENSEST + DENSEST:
                raise _Damaged("an archive that declares more than it can hold")
            with archive.open(entry) as member:
                found[entry.filename.removesuffix(".npy")] = _array(member, entry.file_size)
    return found


def _array(file: IO[bytes], size: int) -> Array:
    """An array whose header agrees with the size of the file: nothing is made room for that is not there."""
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise _Damaged(f"of the format's version {version[0]}.{version[1]}, which plain numbers never need")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise _Damaged("full of Python objects")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize > size - file.tell():
        raise _Damaged(f"a file that declares an array of shape {list(shape)} ({dtype}) and is too short for it")
    file.seek(0)
    return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def keys(names: Iterable[str]) -> dict[str, str]:
    """Each array's name → its key in an .npz file, which whoever unpacks the archive gets as a file of this name.

    A key is the name where that names a file on every system. Otherwise what would lead elsewhere (separators, drives,
    leading dots) or does not print is "_", long names are cut, and "_2" and so on tell apart what became the same.
    """
    names = list(dict.fromkeys(names))
    wanted = {name: _file_name(name) for name in names}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names, key=lambda name: wanted[name] != name):  # who keeps the name comes first
        key, number = wanted[name], 1
        while key.casefold() in taken:
            number += 1
            key = f"{wanted[name]}_{number}"
        taken.add(key.casefold())
        found[name] = key
    return {name: found[name] for name in names}


def _file_name(name: str) -> str:
    text = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    text = re.sub(r"^([A-Za-z]):", r"\1_", text)
    text = re.sub(r"^\.+|[. ]+$", "_", text)[:LONGEST]
    while len(text.encode()) > LONGEST:
        text = text[:-1]
    return f"_{text}" if not text or RESERVED.fullmatch(text.partition(".")[0]) else text


def storable(named: Mapping[str, Any]) -> tuple[dict[str, Array], list[str]]:
    """What an .npz file can hold, texts as numpy's own, and the names of the rest: sequences and maps."""
    found, left = {}, []
    for name, value in named.items():
        array = np.asarray(value, object) if isinstance(value, list | dict) else np.asarray(value)
        if array.dtype.hasobject and array.size and all(isinstance(one, str) for one in array.flat):
            array = array.astype(str)
        if array.dtype.hasobject:
            left.append(name)
        else:
            found[name] = array
    return found, left


def save(path: str | os.PathLike[str], named: Mapping[str, Any], force: bool = False) -> None:
    """Write an .npz file under `keys` of the names: the whole file, or nothing. Raises OutputError."""
    path = Path(path)
    files.check_writable(path, force)
    known = keys(named)
    # numpy.savez would take names such as "file" for its own arguments.
    with files.whole(path, force=force) as part, zipfile.ZipFile(part, "w") as archive:
        for name, value in named.items():
            with archive.open(f"{known[name]}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)

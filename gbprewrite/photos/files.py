"""Which images are meant by files, folders and patterns."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gbprewrite.errors import DataError
from gbprewrite.photos.images import opened
from gbprewrite.version import SOFTWARE

# Formats of photographs that Pillow reads. It knows more, but their files are seldom photographs (.h5, .mpg, .pdf).
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tga", ".tif", ".tiff", ".webp"),
)


class Found(NamedTuple):
    """The images meant, and the pictures of earlier runs that were left out of folders and patterns."""

    images: list[Path]
    own: list[Path]


def find(arguments: Iterable[str | Path]) -> Found:
    """Every file as it is, the images of every folder (not of folders in it) and of every pattern, sorted by name.

    A pattern is a text with *, ? or [ that names no file; ** reaches into folders. In folders and patterns, hidden
    files, files of other suffixes than `SUFFIXES` and pictures that gbprewrite wrote are left out. Raises DataError for
    a folder without images and a pattern without match; a file that does not exist is found, and reported when read.
    """
    found = Found([], [])
    for argument in map(str, arguments):
        path = Path(argument)
        if os.path.isdir(path):
            listed, missing = _listed(path), f"the folder {path} holds no image"
        elif not os.path.exists(path) and glob.has_magic(argument):
            listed, missing = _matching(argument), f"no image matches {argument}"
        else:
            found.images.append(path)
            continue
        some = [p for p in listed if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and os.path.isfile(p)]
        own = [p for p in some if _is_own(p)]
        found.own.extend(own)
        if len(own) == len(some):
            besides = f" but {len(own)} pictures that gbprewrite wrote" if own else ""
            raise DataError(f"{missing}{besides} ({', '.join(SUFFIXES)} are looked for). Check the path.")
        found.images.extend(sorted(set(some) - set(own)))
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"the folder {folder} can't be read: {error.strerror}. Check its permissions.") from None


def _matching(pattern: str) -> list[Path]:
    """What a pattern matches. `**` goes into folders, not through links to folders: these may lead in circles."""
    found = map(Path, glob.iglob(pattern, recursive=True)) if "**" not in Path(pattern).parts else _below(pattern)
    return list(found)


def _below(pattern: str) -> Iterator[Path]:
    """What a pattern with ** matches, without folders that are hidden."""
    head, _, tail = pattern.partition("**")
    tail = tail.lstrip(os.sep + (os.altsep or "")) or "*"
    for start in map(Path, glob.iglob(head) if head else [""]):
        for folder, folders, _ in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from _matching(os.path.join(glob.escape(folder), tail))


def _is_own(path: Path) -> bool:
    """Whether gbprewrite wrote a picture; what can't be read is none, and is reported later."""
    if path.suffix.lower() != ".png":
        return False
    with contextlib.suppress(Exception), opened(path) as image:
        return str(image.info.get("Software", "")).startswith(SOFTWARE)
    return False

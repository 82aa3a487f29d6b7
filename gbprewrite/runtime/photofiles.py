"""Which images are meant by files, folders and patterns."""

import contextlib
import glob
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from gbprewrite.errors import DataError
from gbprewrite.runtime.layout import SOFTWARE

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
        if path.is_dir():
            listed, missing = list(path.iterdir()), f"the folder {path} holds no image"
        elif not path.exists() and glob.has_magic(argument):
            listed, missing = [Path(p) for p in glob.glob(argument, recursive=True)], f"no image matches {argument}"
        else:
            found.images.append(path)
            continue
        some = [p for p in listed if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
        own = [p for p in some if _is_own(p)]
        found.own.extend(own)
        if len(own) == len(some):
            besides = f" but {len(own)} pictures that gbprewrite wrote" if own else ""
            raise DataError(f"{missing}{besides} ({', '.join(SUFFIXES)} are looked for). Check the path.")
        found.images.extend(sorted(set(some) - set(own)))
    return found


def _is_own(path: Path) -> bool:
    """Whether gbprewrite wrote a picture; what can't be read is none, and is reported later."""
    if path.suffix.lower() != ".png":
        return False
    with contextlib.suppress(Exception), Image.open(path) as image:
        return str(image.info.get("Software", "")).startswith(SOFTWARE)
    return False

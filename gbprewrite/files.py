"""Files written whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gbprewrite.errors import OutputError, UsageError

ELSEWHERE = "Choose another place with -o PATH."


@contextlib.contextmanager
def whole(path: Path, advice: str = ELSEWHERE) -> Iterator[Path]:
    """A place to write to, beside `path`; it is moved there in the end, and gone if anything stops.

    Raises OutputError, with the advice, when it can't be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            part = Path(folder) / path.name
            yield part
            os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}. {advice}") from None


def check_writable(path: str | os.PathLike[str], force: bool = False) -> None:
    """Raise OutputError now rather than after minutes of work."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Give the name of a file with -o PATH.")
    if path.exists() and not force:
        raise OutputError(f"{path} exists. Use --force to overwrite it, or choose another place with -o PATH.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror} ({path.parent}). {ELSEWHERE}") from None


def check_other(path: Path, source: Path) -> None:
    """Raise UsageError for an output that is the file that is read, under this or another name."""
    if path.exists() and source.exists() and path.samefile(source):
        raise UsageError(
            f"{path} is the model that is read, and it would be overwritten (--force does not allow that). {ELSEWHERE}"
        )

"""Files written whole or not at all, and nothing replaced that is not a file of its own.

What is being written lies in a folder `.gbprewrite-part.*` beside its place and is moved there in the end. A run that
is killed leaves that folder; the next one that writes beside it takes it away.
"""

import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from gbprewrite.errors import OutputError, UsageError

if sys.platform != "win32":
    import fcntl

ELSEWHERE = "Choose another place with -o PATH."
PART = ".gbprewrite-part."
NEVER_REPLACED: dict[str, Callable[[int], bool]] = {
    "a symbolic link": stat.S_ISLNK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
}
# Suffixes that are no end of a folder's name, such as "maps.v2" has one.
FILES = (
    *(".avif", ".bmp", ".csv", ".eps", ".gif", ".htm", ".html", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".json"),
    *(".md", ".npy", ".npz", ".onnx", ".pbm", ".pdf", ".pgm", ".png", ".pnm", ".ppm", ".ps", ".svg", ".tga", ".tif"),
    *(".tiff", ".txt", ".webp", ".xlsx", ".zip"),
)
_swept: set[str] = set()  # folders that this process has cleared of what killed runs left


@contextlib.contextmanager
def whole(path: Path, advice: str = ELSEWHERE, force: bool = True) -> Iterator[Path]:
    """A place to write to, beside `path`; it is moved there in the end, and gone if anything stops.

    Raises OutputError, with the advice, when it can't be written, when something but a plain file is there, or a file
    is there (unless `force`).
    """
    with whole_together([path], advice, force) as (part,):
        yield part


@contextlib.contextmanager
def whole_together(paths: Sequence[Path], advice: str = ELSEWHERE, force: bool = True) -> Iterator[list[Path]]:
    """Places to write to for files of one folder, of which the first refers to the others: all are moved, or none."""
    try:
        with _workplace(paths[0].absolute().parent) as folder:
            parts = [folder / path.name for path in paths]
            yield parts
            moves = [(part, path) for part, path in zip(parts, paths, strict=True) if part.exists()]
            for part, path in moves:
                check_replaceable(path, force, advice)
                _like_before(part, path)
            _move(moves, folder)
    except OSError as error:
        raise OutputError(f"{paths[0]} can't be written: {error.strerror or error}. {advice}") from None


def _like_before(part: Path, path: Path) -> None:
    """The mode and owner of the file that is replaced, and its bytes on the disk before that one goes.

    A new file has what the umask allows.
    """
    if not path.exists():
        return
    before = path.stat()
    with contextlib.suppress(OSError, AttributeError):  # only the superuser gives files away, and not on Windows
        os.chown(part, before.st_uid, before.st_gid)
    os.chmod(part, stat.S_IMODE(before.st_mode))
    with contextlib.suppress(OSError), part.open("rb") as file:
        os.fsync(file.fileno())


def _move(moves: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Each part to its place, or everything back as it was.

    Of several files the first, which refers to the others, goes first and comes last: at no time does an old one stand
    beside what it does not belong to.
    """
    if len(moves) == 1:
        os.replace(*moves[0])
        return
    kept: list[tuple[Path, Path]] = []
    placed: list[Path] = []
    try:
        for number, (_, path) in enumerate(moves):
            if path.exists():
                before = folder / f"before.{number}"
                os.replace(path, before)
                kept.append((before, path))
        for part, path in reversed(moves):
            os.replace(part, path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink()
        for before, path in reversed(kept):
            os.replace(before, path)
        raise


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """A folder of our own, locked while we live, so that nobody takes it for what a killed run left."""
    if str(parent) not in _swept:
        _swept.add(str(parent))
        _sweep(parent)
    while True:
        with tempfile.TemporaryDirectory(dir=parent, prefix=PART) as name, _lock(Path(name)) as locked:
            if locked is not False and os.path.exists(name):  # a sweep may have been quicker than the lock
                yield Path(name)
                return


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[bool | None]:
    """Whether this folder is ours: True, False where another holds it, None where the system has no locks."""
    if sys.platform == "win32":
        yield None
        return
    handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield _flock(handle)
    finally:
        os.close(handle)


def _flock(handle: int) -> bool | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sweep(parent: Path) -> None:
    """Take away what runs left that were killed; what can't be locked or removed stays."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if entry.name.startswith(PART) and entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), _lock(Path(entry.path)) as locked:
                    if locked:
                        shutil.rmtree(entry.path, ignore_errors=True)


def check_replaceable(path: Path, force: bool, advice: str = ELSEWHERE) -> None:
    """Raise OutputError where something is that must not be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder, and a file is to be written. {advice}")
    for kind, is_one in NEVER_REPLACED.items():
        if is_one(mode):
            raise OutputError(f"{path} is {kind}, which is never replaced (--force does not allow that). {advice}")
    if not force:
        raise OutputError(f"{path} exists. {advice} Or overwrite it with --force.")


def check_writable(path: str | os.PathLike[str], force: bool = False, advice: str = ELSEWHERE) -> None:
    """Raise OutputError now rather than after minutes of work."""
    path = Path(path)
    check_replaceable(path, force, advice)
    _check_takes_files(path.parent, path, advice)


def check_folders(planned: Iterable[Path], advice: str = ELSEWHERE) -> None:
    """Raise OutputError where folders of planned files can't be made or written to; only existing ones are tried."""
    for folder, path in {path.absolute().parent: path for path in planned}.items():
        there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), folder)
        _check_takes_files(there, path, advice)


def _check_takes_files(folder: Path, path: Path, advice: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror} ({folder}). {advice}") from None


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise UsageError for a name that promises another kind of file; one without a suffix promises nothing."""
    if path.suffix and path.suffix.lower() not in suffixes:
        wanted = " or ".join(suffixes)
        raise UsageError(f"{path}: a {suffixes[0]} file is written. Give a name that ends in {wanted}.")


def check_folder(path: Path, option: str = "-o") -> None:
    """Raise OutputError for a file where a folder belongs, UsageError for a new one with the name of a file."""
    if path.is_dir():
        return
    if os.path.lexists(path):
        raise OutputError(f"{option} {path}: this is a file. Give the folder that the pictures go to.")
    if path.suffix.lower() in FILES:
        raise UsageError(
            f"{option} {path}: this names a {path.suffix} file, and {option} takes the folder that the pictures "
            "go to, as .png files. Give the name of a folder."
        )


def check_unread(
    planned: Iterable[Path], read: Sequence[Path], advice: str = ELSEWHERE, first: str = "the model that is read"
) -> None:
    """Raise UsageError for an output that is read, under this or another name; `first` is what is read first."""
    planned = list(planned)
    for path in overwritten(planned, read):
        what = first if overwritten([path], read[:1]) else "read in this run"
        raise UsageError(f"{path} is {what}, and it would be overwritten (--force does not allow that). {advice}")


def is_device(path: Path) -> bool:
    """Whether reading may never end: a device, not a file, a pipe or nothing."""
    with contextlib.suppress(OSError):
        return NEVER_REPLACED["a device"](path.stat().st_mode)
    return False


def overwritten(planned: Iterable[Path], read: Iterable[Path]) -> list[Path]:
    """The outputs that are files which are read: by name, or through links of both kinds."""
    known = {identity for path in read for identity in _identities(path)}
    return [path for path in planned if known.intersection(_identities(path))]


def twice(planned: Iterable[Path]) -> list[Path]:
    """The outputs that would be written over each other."""
    count = Counter(os.path.realpath(path) for path in planned)
    return list(dict.fromkeys(path for path in planned if count[os.path.realpath(path)] > 1))


def _identities(path: Path) -> list[object]:
    """What a file is known by: its real path, and its place on the disk where it exists."""
    found: list[object] = [os.path.realpath(path)]
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        found.append((status.st_dev, status.st_ino))
    return found

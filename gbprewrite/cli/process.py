"""The process around a command: its standard streams, and the signals that end it."""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from gbprewrite.cli import printing

ENDING = ("SIGTERM", "SIGHUP")  # SIGINT is Python's KeyboardInterrupt already


class ClosedStream(io.TextIOBase):
    """Standard output that the caller closed: nothing written there is lost in silence."""

    def write(self, _text: str) -> int:
        """Raises OSError."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def prepare_streams() -> None:
    """Standard streams that take every letter, and that no file which is opened later can become."""
    with contextlib.suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:  # the numbers of streams that are closed
            pass
        os.close(handle)
    if sys.stdout is None:
        sys.stdout = ClosedStream()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=printing.SPELLED)


def flush() -> None:
    """What is left of standard output. Raises OutputError when it can't be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        drop()
        raise printing.unwritable(error) from None


def drop() -> None:
    """Let Python's own last flush go nowhere, instead of into another error."""
    if sys.__stdout__ is not None and sys.stdout is sys.__stdout__:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """A signal that ends the process runs what is to be run at the end first: half-written files go away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]
    # One that is ignored (nohup) or handled stays so.
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)

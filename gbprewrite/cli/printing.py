"""The one way to the terminal: lines of plain text, in any encoding, on streams that may be closed or full."""

import codecs
import contextlib
import errno
import sys

from gbprewrite.errors import GbprewriteError, OutputError
from gbprewrite.plaintext import plain

SPELLED = "gbprewrite.spelled"  # how letters are written that an encoding lacks
LETTERS = {"·": "*", "×": "x", "−": "-", "≥": ">=", "≤": "<=", "Σ": "sum", "…": "...", "─": "-", "τ": "tau", "→": "->"}


def say(*lines: object) -> None:
    """Print lines to standard output, each as plain text. Raises OutputError when it can't be written."""
    show(*map(plain, lines))


def show(*lines: str) -> None:
    """Print lines that were made of plain text, and may be styled. Raises OutputError; BrokenPipeError passes."""
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritable(error) from None


def complain(error: GbprewriteError | str) -> None:
    """Print an error to standard error; where that can't be written, the exit status has to do."""
    text = f"error: {error}"
    lines = text.split("\n") if isinstance(error, GbprewriteError) and error.has_lines else [text]
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(*map(plain, lines), sep="\n", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning to standard error, as an error is."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(plain(f"warning: {text}"), file=sys.stderr, flush=True)


def unwritable(error: OSError) -> OutputError:
    """Of standard output."""
    why = "it is closed" if error.errno == errno.EBADF else error.strerror or error
    return OutputError(f"standard output can't be written: {why}. Files that were reported before are whole.")


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Letters that an encoding lacks: `*` for `·` and the like, `\u20ac` for all others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(LETTERS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error(SPELLED, _spelled)

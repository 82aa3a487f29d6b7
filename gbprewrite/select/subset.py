"""Some of the channels of a score: `4:84`, `4:`, `0,2,3:7`, as Python counts, and their numbers in an axis.

They say where a target may look for the strongest unit or the highest class.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gbprewrite.errors import UsageError

MOST_DIGITS = 18  # what an int64 holds
NUMBER = rf"-?\d{{1,{MOST_DIGITS}}}"
PART = re.compile(rf"{NUMBER}|(?:{NUMBER})?:(?:{NUMBER})?(?::(?:{NUMBER})?)?")
SPELLINGS = "4:84, 4:, :4, -3:, 0,2,3:7"


def text_of(channels: str | int | slice | Sequence[int]) -> str:
    """The one spelling of a subset that a record holds. Raises UsageError for what is none."""
    text = _written(channels)
    parts = text.split(",")
    if not all(PART.fullmatch(part) for part in parts):
        raise UsageError(f"--channels {text[:80]!r} is not understood. Give a range or a list of them: {SPELLINGS}.")
    return text


def _written(channels: Any) -> str:
    if isinstance(channels, str):
        return re.sub(r"\s+", "", channels)
    if isinstance(channels, slice):
        ends = ["" if end is None else str(end) for end in (channels.start, channels.stop)]
        return ":".join([*ends, *([] if channels.step is None else [str(channels.step)])])
    return ",".join(map(str, np.atleast_1d(np.asarray(channels)).tolist()))


def numbers_of(text: str, length: int, named: str) -> list[int]:
    """The channels of a subset, ascending and each once; `named` is what has this many, for the messages.

    Raises UsageError for one that does not exist, a step that is not positive, and for a subset of nothing.
    """
    found: set[int] = set()
    for part in text.split(","):
        ends = [int(end) if end else None for end in part.split(":")]
        beyond = [end for end in ends[:2] if end is not None and not -length <= end < length + (len(ends) > 1)]
        if beyond:
            raise UsageError(
                f"--channels {text}: {beyond[0]} is out of range, {named} has {length} channels, 0 to {length - 1}."
            )
        if len(ends) == 1:
            found.add((ends[0] or 0) % length)
        elif len(ends) == 3 and (ends[2] or 1) < 1:
            raise UsageError(f"--channels {text}: the step {ends[2]} is not positive.")
        else:
            found |= set(range(length)[slice(*ends)])
    if not found:
        raise UsageError(
            f"--channels {text}: no channel is left to look at, and {named} has {length}. Widen the range."
        )
    return sorted(found)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in the shortest spelling: `4:84`, or `0,2,3:7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number:
            parts[-1][1] += 1
        else:
            parts.append([number, number + 1])
    return ",".join(str(start) if end == start + 1 else f"{start}:{end}" for start, end in parts)

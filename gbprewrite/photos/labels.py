"""Names of classes, from the files in which they are usually kept."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gbprewrite.errors import DataError, UsageError
from gbprewrite.files import is_device
from gbprewrite.plaintext import cut

Labels = Mapping[int, str]

MOST = 16_000_000  # bytes of a file
LONGEST = 100  # letters of what a message quotes


class Names(dict[int, str]):
    """Labels that were listed one after the other, so that their number must be the model's number of classes."""


def read(path: str | os.PathLike[str]) -> Labels:
    """Class index → label.

    The file is a JSON list of labels, a JSON dictionary from index to label (or to a list that ends in the label, as
    Keras has it), or text with one label a line, the first for class 0. Raises DataError.
    """
    path = Path(path)
    text = _text(path)
    if not text.lstrip().startswith(("[", "{")):
        return Names(enumerate(line.strip() for line in text.rstrip().split("\n")))
    try:
        content = json.loads(text)
        if isinstance(content, list):
            return Names(enumerate(map(_label, content)))
        return {int(index): _label(label) for index, label in content.items()}
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else cut(str(error), LONGEST)
        raise DataError(
            f'--labels {path} is no list of labels: {why}. Write ["label", ...], {{"0": "label", ...}}, or one label '
            "a line."
        ) from None


def _text(path: Path) -> str:
    try:
        if is_device(path):
            raise OSError(None, "it is a device")
        with path.open("rb") as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            raise OSError(None, f"it holds more than {MOST // 10**6} MB, so it is no list of labels")
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise DataError(f"--labels {path} can't be read: {why}. Give a JSON or a text file (UTF-8).") from None


def _label(entry: Any) -> str:
    text = entry[-1] if isinstance(entry, list) else entry
    if not isinstance(text, str):
        raise TypeError(f"{cut(json.dumps(entry), LONGEST)} is no label")
    return text


def check_number(labels: Labels | None, classes: int) -> None:
    """Raise UsageError for a list of labels of another length than the number of classes: labels would be shifted."""
    if isinstance(labels, Names) and len(labels) != classes:
        raise UsageError(
            f"--labels: the file lists {len(labels)} labels, and the model has {classes} classes, so they do not "
            'belong together. Give the model\'s own list, or a JSON dictionary {"INDEX": "label", ...} of some classes.'
        )

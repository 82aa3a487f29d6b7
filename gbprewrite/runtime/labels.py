"""Names of classes, from the files in which they are usually kept."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gbprewrite.errors import DataError, UsageError

Labels = Mapping[int, str]


class Names(dict[int, str]):
    """Labels that were listed one after the other, so that their number must be the model's number of classes."""


def read(path: str | os.PathLike[str]) -> Labels:
    """Class index → label.

    The file is a JSON list of labels, a JSON dictionary from index to label (or to a list that ends in the label, as
    Keras has it), or text with one label a line, the first for class 0. Raises DataError.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--labels {path} can't be read: {error}. Give a JSON or a text file (UTF-8).") from None
    if not text.lstrip().startswith(("[", "{")):
        return Names(enumerate(line.strip() for line in text.rstrip().splitlines()))
    try:
        content = json.loads(text)
        if isinstance(content, list):
            return Names(enumerate(map(_label, content)))
        return {int(index): _label(label) for index, label in content.items()}
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(
            f'--labels {path} is no list of labels: {error}. Write ["label", ...], {{"0": "label", ...}}, or one label '
            "a line."
        ) from None


def _label(entry: Any) -> str:
    text = entry[-1] if isinstance(entry, list) else entry
    if not isinstance(text, str):
        raise TypeError(f"{json.dumps(entry)} is no label")
    return text


def check_number(labels: Labels | None, classes: int) -> None:
    """Raise UsageError for a list of labels of another length than the number of classes: labels would be shifted."""
    if isinstance(labels, Names) and len(labels) != classes:
        raise UsageError(
            f"--labels: the file lists {len(labels)} labels, and the model has {classes} classes, so they do not "
            'belong together. Give the model\'s own list, or a JSON dictionary {"INDEX": "label", ...} of some classes.'
        )

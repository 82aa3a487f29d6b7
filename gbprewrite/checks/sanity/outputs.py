"""What a test leaves behind: the picture of its curves and the table of its numbers."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gbprewrite import files
from gbprewrite.checks.sanity.curves import picture
from gbprewrite.checks.sanity.randomisation import SanityReport
from gbprewrite.errors import UsageError
from gbprewrite.model import file as modelfile
from gbprewrite.plaintext import plain

FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # also as wide letters
IN_CSV = "Choose another place with --csv PATH."


def default_path(model: Path) -> Path:
    """`model.sanity.png` beside the model."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.sanity.png")


def check(picture_path: Path, table: Path | None, read: Sequence[Path], force: bool) -> None:
    """Raise OutputError or UsageError now where the files could not be written after the test.

    What is read is the model first, then photographs and labels.
    """
    planned = {path: advice for path, advice in ((picture_path, files.ELSEWHERE), (table, IN_CSV)) if path is not None}
    if table is not None and files.twice([picture_path, table]):
        raise UsageError(f"-o and --csv both name {table}. Give each a file of its own.")
    for path, advice in planned.items():
        files.check_unread([path], [*modelfile.read_beside(read[0], planned), *read[1:]], advice)
    for path, advice in planned.items():
        files.check_writable(path, force, advice)
    files.check_suffix(picture_path, ".png")
    if table is not None:
        files.check_suffix(table, ".csv")


def _cell(value: object) -> object:
    """A name as text: a spreadsheet takes what begins like this for a formula, and ' before it tells it not to."""
    if not isinstance(value, str):
        return value
    return f"'{plain(value)}" if value.lstrip().startswith(FORMULA) else plain(value)


def write(found: SanityReport, picture_path: Path, table: Path | None, force: bool = True) -> None:
    """Write the curves (PNG) and, where wanted, the table (CSV: one row for each comparison; undefined is empty)."""
    drawn, text = picture(found), io.StringIO(newline="")
    rows = found.rows()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    with files.whole(picture_path, force=force) as part:
        part.write_bytes(drawn)
    if table is not None:
        with files.whole(table, IN_CSV, force) as part:
            part.write_text(text.getvalue(), encoding="utf-8", newline="")

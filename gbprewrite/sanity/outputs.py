"""What a test leaves behind: the picture of its curves and the table of its numbers."""

import csv
import io
from pathlib import Path

from gbprewrite import files
from gbprewrite.errors import UsageError
from gbprewrite.sanity.curves import picture
from gbprewrite.sanity.randomisation import SanityReport


def default_path(model: Path) -> Path:
    """`model.sanity.png` beside the model."""
    return model.with_name(f"{model.name.removesuffix('.onnx')}.sanity.png")


def check(picture_path: Path, table: Path | None, model: Path, force: bool) -> None:
    """Raise OutputError or UsageError now where the files could not be written after the test."""
    if table is not None and table.absolute() == picture_path.absolute():
        raise UsageError(f"-o and --csv both name {table}. Give each a file of its own.")
    for path in filter(None, (picture_path, table)):
        files.check_other(path, model)
        files.check_writable(path, force)


def write(found: SanityReport, picture_path: Path, table: Path | None) -> None:
    """Write the curves (PNG) and, where wanted, the table (CSV: one row for each comparison; undefined is empty)."""
    drawn, text = picture(found), io.StringIO(newline="")
    rows = found.rows()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    with files.whole(picture_path) as part:
        part.write_bytes(drawn)
    if table is not None:
        with files.whole(table, "Choose another place with --csv PATH.") as part:
            part.write_text(text.getvalue(), encoding="utf-8", newline="")

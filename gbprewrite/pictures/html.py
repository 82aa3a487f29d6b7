"""An HTML report: one self-contained file, written image by image."""

import base64
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import jinja2
import numpy as np
import numpy.typing as npt

from gbprewrite import files
from gbprewrite.errors import DataError, OutputError
from gbprewrite.inspect import Inspection, alike, rule_rows, value_in_words
from gbprewrite.pictures import layout
from gbprewrite.pictures.explain import ExplainedPhoto, PhotoExplainer, axis_in_words, setting
from gbprewrite.pictures.layout import Row
from gbprewrite.pictures.panels import Panel, Style
from gbprewrite.plaintext import plain
from gbprewrite.runtime import session
from gbprewrite.version import __version__

PANEL, MOST = 200, 400  # CSS pixels: the least and the most of a panel's longer side
ADVICE = "Choose another place with --html PATH."


class Report(AbstractContextManager["Report"]):
    """The report of one run; the file is there when the run has ended, and not before."""

    def __init__(
        self,
        path: Path,
        model: Path,
        explainer: PhotoExplainer,
        found: Inspection,
        style: Style | None = None,
        force: bool = True,
    ) -> None:
        """Of `explainer` on `model`, of which `gbprewrite.inspect` found what the coverage table says."""
        self.path, self.force = path, force
        self._stack = ExitStack()
        self._file: TextIO | None = None
        self._counts = {"explained": 0, "failed": 0}
        self._facts = _facts(model, explainer, found) | {"style": (style or Style()).text()}
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("gbprewrite.pictures", "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            finalize=_plain,
        )
        environment.filters |= {"picture": _data_uri, "width": _width}
        self._parts = environment.get_template("report.html").module

    def __enter__(self) -> "Report":
        """Begin. Raises OutputError."""
        layout.make_folder(self.path, ADVICE)
        part = self._stack.enter_context(files.whole(self.path, ADVICE, self.force))
        self._file = self._stack.enter_context(part.open("w", encoding="utf-8", errors="backslashreplace"))
        self._write("head")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the file, or leave none where something stopped the run. Raises OutputError."""
        if kind is None:
            self._write("tail", self._counts)
        self._stack.__exit__(kind, error, trace)

    def add(self, explained: ExplainedPhoto, drawn: Sequence[Row]) -> dict[str, Path]:
        """See `gallery.Output`."""
        marked = {one.index for one in explained.explained}
        self._counts["explained"] += 1
        self._write("explained", explained, drawn, marked)
        return {}

    def fail(self, image: Path, error: DataError | OutputError) -> None:
        """The message stands in the image's place."""
        self._counts["failed"] += 1
        self._write("failed", image, error)

    def shared(self) -> dict[Path, str]:
        """See `gallery.Output`."""
        return {self.path: "report"}

    def _write(self, part: str, *given: Any) -> None:
        """A macro of the template, called with the facts and what is given."""
        assert self._file is not None
        self._file.write(getattr(self._parts, part)(self._facts, *given))


def _facts(model: Path, explainer: PhotoExplainer, found: Inspection) -> dict[str, Any]:
    """What holds for all images, as the template's first part shows it."""
    return {
        "version": __version__,
        "model": model,
        "setting": setting(explainer),
        "class_axis": axis_in_words(setting(explainer)),
        "provider": session.provider_in_words(explainer.explainer.provider, explainer.explainer.provider_note),
        "inspection": found,
        "in_words": value_in_words,
        "rules": list(rule_rows(found.nonlinearities)),
        "pools": alike(found.pools, lambda p: (p["operator"], p["rule"])),
        "missing": alike([{"node": o.node, "row": (o.operator, o.why)} for o in found.missing], lambda o: o["row"]),
    }


def _plain(value: Any) -> Any:
    """A name or path as text; what is marked as HTML by now is, and numbers stay."""
    return plain(value) if type(value) is str or isinstance(value, Path | Exception) else value


def _width(panel: Panel) -> int:
    """CSS pixels: a whole multiple of the panel's own, so that no pixel is dropped; large ones are made smaller."""
    height, width = panel.pixels.shape[:2]
    factor = -(-PANEL // max(height, width))
    return int(width * factor) if max(height, width) <= MOST else round(width * MOST / max(height, width))


def _data_uri(pixels: npt.NDArray[Any]) -> str:
    """A PNG picture that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(layout.png(np.asarray(pixels))).decode("ascii")

"""The HTML report: what stands in it, that it needs nothing else, and how a real browser shows it."""

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
from gbprewrite.methods.table import METHODS
from tests.test_explain import PIXELS, SIZE, network, run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
# What the page itself finds of its pictures and of what it loaded from elsewhere.
PROBE = """<script>addEventListener("load", () => {
  const all = [...document.images];
  const elsewhere = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:"));
  document.title = `${all.filter(i => i.naturalWidth > 0).length} of ${all.length}, ${elsewhere.length} elsewhere`;
})</script>"""


class Page(HTMLParser):
    """Tags, their attributes, and the text; raises for tags that do not match."""

    VOID = ("img", "meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {' '.join(data.split())}" if self.open and self.open[-1] != "style" else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(network("Softmax"), tmp_path / "model.onnx")
    Image.fromarray(PIXELS).save(tmp_path / "<b>photo & co.png")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "labels.json").write_text('{"0": "<script>alert(1)</script>", "2": "blue"}')
    return tmp_path


def report(folder: Path, *options: str) -> str:
    result = run(folder / "model.onnx", folder / "<b>photo & co.png", folder / "broken.png", "--no-pictures", "--force",
                 "--html", folder / "new" / "report.html", "--labels", folder / "labels.json", *options)  # fmt: skip
    assert result.exit_code == 1  # the broken image
    return (folder / "new" / "report.html").read_text(encoding="utf-8")


OPTIONS = ("--method", "guided", "--method", "gradient", "--target", "topk:2", "--preset", "unit", "--provider", "cpu")


def test_the_report_tells_everything_about_the_run(folder):
    page = Page(report(folder, *OPTIONS))
    for words in (
        "methods guided, gradient",
        "scores, the score before y, target topk:2",
        "x 8x8 NCHW RGB, pixel * 1/255 (values 0 to 1)",
        "published: as the method's paper prints it; full colour is percentile 99 of |map|",
        "ran on cpu",
        METHODS["guided"].limit,
        METHODS["gradient"].limit,
        "<b>photo & co.png",
        "<script>alert(1)</script> (class 0), probability 0.432",
        "blue (class 2), probability 0.337",
        "broken.png is no image",
        "1 of 2 images explained.",
        f"Written by gbprewrite {gbprewrite.__version__}",
    ):
        assert words in page.text
    assert "deconvnet" not in page.text.split("The model, and the rule")[0]  # not asked for; the table has each rule


def test_the_coverage_table_says_what_inspect_says(folder):
    page = Page(report(folder))
    (row,) = gbprewrite.inspect(folder / "model.onnx").nonlinearities[:1]
    for words in (row["kind"], row["role"], row["node"], *row["rules"].values()):
        assert words in page.text


def test_guesses_are_in_the_report(folder):
    assert "preset imagenet assumed" in Page(report(folder)).text


def test_the_report_is_one_file_whose_pictures_are_the_panels(folder):
    page = Page(report(folder, *OPTIONS))
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2 * (1 + 2 * 2)  # for each class the photograph, two maps and their scales
    pictures = [decoded(source) for source in sources]
    np.testing.assert_array_equal(pictures[0], PIXELS)
    guided = np.full((SIZE, SIZE, 3), 128)
    guided[:, :5] = [255, 128, 128]  # red lies above grey, and nothing else matters
    np.testing.assert_array_equal(pictures[1], guided)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(a["alt"] for tag, a in page.tags if tag == "img")


def decoded(source: str) -> np.ndarray:
    kind, data = source.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_nothing_is_loaded_from_elsewhere(folder):
    text = report(folder)
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|https?://", text)


def test_the_same_run_gives_the_same_report(folder):
    assert report(folder, *OPTIONS) == report(folder, *OPTIONS)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian's package chromium) is installed")
def test_a_browser_shows_every_picture(folder, tmp_path):
    text = report(folder, *OPTIONS)
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</head>", PROBE + "</head>"), encoding="utf-8")
    dumped = browse(tmp_path, probed, "--dump-dom", "--virtual-time-budget=5000").stdout
    assert "<title>10 of 10, 0 elsewhere</title>" in dumped
    browse(tmp_path, folder / "new" / "report.html", "--window-size=1200,2000", f"--screenshot={tmp_path / 'shot.png'}")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB"))
    side = 200  # CSS pixels of a panel: eight pixels, enlarged 25 times
    assert (pixels == [255, 0, 0]).all(axis=2).sum() == 2 * side * side * 5 // 8
    assert (pixels == [255, 128, 128]).all(axis=2).sum() == side * side * 5 // 8  # the guided map of class 0


def browse(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

"""Names from files are text and nothing else: in the terminal, in pages, in pictures and in tables."""

import csv
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from gbprewrite.checks.sanity.curves import picture
from gbprewrite.errors import Obstacle, UnsupportedOperators
from gbprewrite.pictures import layout
from gbprewrite.pictures.panels import Panel
from gbprewrite.plaintext import plain
from tests.small import cnn, model, normal

Cli = Callable[..., Result]
FORGED = "\x1b[2K\x1b]8;;http://a.example\x07b\nerror: forged\r\x9b31m\u202egpj.\u2066"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conv1/Relu:0 · ≥ 名前\u3000é", "conv1/Relu:0 · ≥ 名前\u3000é"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202egpj\u2066\u200f\u2028", r"\u202egpj\u2066\u200f\u2028"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\ud800\x00", r"\ud800\x00"),
        ("می\u200cشود", "می\u200cشود"),
        ("\U000e0041", r"\U000e0041"),
        (Path("a\x1bb"), r"a\x1bb"),
    ],
)
def test_plain(text: object, expected: str) -> None:
    assert plain(text) == expected
    assert plain(expected) == expected


def forged() -> onnx.ModelProto:
    """Every name of a small network ends in what a terminal would obey."""
    made = cnn()
    graph = made.graph
    for node in graph.node:
        node.name = f"{node.output[0]}{FORGED}"
        node.input[:] = [name + FORGED for name in node.input]
        node.output[:] = [name + FORGED for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name += FORGED
    made.producer_name = f"they{FORGED}"
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = f"N{FORGED}"
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(forged(), "m.onnx")
    Image.new("RGB", (12, 12), "red").save("a\x1b[31m\u202e.png")
    Path("b\x1b[31m.png").write_text("no image")
    Path("labels").write_text("\n".join(f"{i}\x1b[31m\u202e<b>" for i in range(5)))
    return tmp_path


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("inspect m.onnx", 0),
        ("layers m.onnx --all", 0),
        ("convert m.onnx", 0),
        ("convert m.onnx --score nose", 2),
        ("convert m.onnx --input nose", 2),
        ("convert m.onnx --cam-layer nose --method gradcam", 2),
        ("convert m.onnx --target 9", 2),
        ("explain m.onnx . --labels labels --sheet s.png --html r.html", 1),
        ("compare m.onnx . --labels labels", 1),
        ("sanity m.onnx a* --csv s.csv --labels labels", 0),
        ("sanity m.onnx a* --layer nose", 2),
        ("top m.onnx . --layer logits\x1b --channels 0", 2),
    ],
)
def test_a_terminal_gets_no_controls(line: str, status: int, folder: Path, cli: Cli) -> None:
    result = cli(*line.split())
    assert result.exit_code == status
    said = result.stdout + result.stderr
    assert not CONTROLS.search(said)
    assert not re.search(r"^error: forged", said, re.MULTILINE)
    if status == 0:
        assert r"\x1b" in said


def test_arrays(folder: Path, cli: Cli) -> None:
    assert cli("convert", "m.onnx", "-o", "c.onnx").exit_code == 0
    np.savez("x.npz", **{f"image{FORGED}": normal(1, 3, 12, 12)})
    for arguments in (["--input", "x.npz"], ["--input", "nose=x.npz"], ["--input", "x.npz", "--input", "x.npz="]):
        result = cli("run", "c.onnx", *arguments, "-o", f"o{len(arguments)}.npz")
        assert not CONTROLS.search(result.stdout + result.stderr)


def test_a_terminal_gets_our_own_styles(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    said = cli("layers", "m.onnx").stdout
    assert "\x1b[1m" in said
    assert not CONTROLS.search(re.sub(r"\x1b\[[0-9;]*m", "", said))
    assert r"\x1b[2K" in said


def test_json_stays_data(folder: Path, cli: Cli) -> None:
    found = json.loads(cli("layers", "m.onnx", "--all", "--json").stdout)
    assert f"logits{FORGED}" in {layer["layer" if "layer" in layer else "name"] for layer in found["layers"]}


def test_one_way_to_the_terminal() -> None:
    """Whatever is printed goes through `printing`."""
    root = Path(gbprewrite.__file__).parent
    elsewhere = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(
            r"(?<![\w.])(print|click\.echo|click\.secho|sys\.std\w+\.write|console\(\)\.print)\(", path.read_text()
        )
    }
    assert elsewhere == {"cli/printing.py"}


def test_lines_of_an_error_are_its_own() -> None:
    error = UnsupportedOperators([Obstacle("n\n", f"Op{FORGED}", f"why{FORGED}")], f"hint{FORGED}")
    assert len(str(error).split("\n")) == 3
    assert not CONTROLS.search(str(error))


def test_pages_hold_no_html_of_others(folder: Path, cli: Cli) -> None:
    named = forged()
    named.producer_name = "<script>alert(1)</script>\x1b"
    named.graph.node[1].name = '"><img src=x onerror=alert(1)>\u202e'
    onnx.save(named, "<i>.onnx")
    os.rename("a\x1b[31m\u202e.png", "'\"><script>&\x1b.png")
    arguments = [".", "--labels", "labels", "--html", "r.html", "--no-pictures"]
    assert cli("explain", "<i>.onnx", *arguments).exit_code == 1
    page = Path("r.html").read_text(encoding="utf-8")
    assert not CONTROLS.search(page)
    assert not re.search(r"<script|<img src=x|<b>|<i>", page)
    for text in ("&lt;script&gt;alert(1)", "onerror=alert(1)&gt;\\u202e", "&#39;&#34;&gt;&lt;script&gt;&amp;\\x1b.png"):
        assert text in page


def test_pages_take_names_that_are_no_utf_8(folder: Path, cli: Cli) -> None:
    os.rename("b\x1b[31m.png", b"b\xff.png")
    Image.new("RGB", (12, 12), "red").save(os.fsdecode(b"a\xff.png"))
    result = cli("explain", "m.onnx", ".", "--html", "r.html", "--sheet", "s.png", "--save", "npy")
    assert result.exit_code == 1
    assert (r"a\xff.png" in result.stdout, r"error: b\xff.png is no image" in result.stderr) == (True, True)
    assert r"a\xff.png" in Path("r.html").read_text(encoding="utf-8")
    assert os.path.exists(b"a\xff.guided.png")


@pytest.mark.parametrize("name", ["$x_{$", r"$\frac{1}$", "a\nb", "\x1b[31m\u202e", os.fsdecode(b"\xff"), "n" * 5000])
def test_pictures_take_any_name(name: str) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    drawn = layout.compose([layout.Row(name, [Panel(name, pixels), Panel(name, pixels, short=name)])])
    assert drawn.shape[0] < 1000
    assert (drawn < 128).any()


def test_curves_take_any_name(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib would read $...$ as mathematics, and not every text is some."""
    pytest.importorskip("skimage")
    monkeypatch.chdir(tmp_path)
    text = """g (float[N, 3, 12, 12] x) => (float[N, 4] y) {
        a = Conv (x, w)
        b = Relu (a)
        c = GlobalAveragePool (b)
        y = Flatten (c)
    }"""
    named = model(text, w=normal(4, 3, 3, 3))
    named.graph.node[0].output[0] = named.graph.node[1].input[0] = r"$x_{$ $\frac$"
    onnx.save(named, "m.onnx")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save("$x_{$.png")
    result = cli("sanity", "m.onnx", "$x_{$.png", "--preset", "unit", "--classes", "2")
    assert result.exit_code == 0
    assert picture.__wrapped__ is not None  # matplotlib's settings are set around it
    assert Path("m.sanity.png").exists()


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2+3", "@SUM(1)", "\t=1", " =1", "＝1"])
def test_tables_hold_no_formulas(name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    from gbprewrite.checks.sanity import outputs

    assert not str(outputs._cell(name)).lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert (outputs._cell(-0.5), outputs._cell("conv1"), outputs._cell(None)) == (-0.5, "conv1", None)
    held = io.StringIO(newline="")
    csv.writer(held).writerow([outputs._cell(f"a\n{name}")])
    assert len(held.getvalue().splitlines()) == 1

"""The benchmark runs, without PyTorch, and says what it measured; no test asserts a time."""

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from tests.bench import placement, report, scaling
from tests.bench.cli import main
from tests.bench.comparison import Row
from tests.bench.networks import ROOT
from tests.small import cnn

DIGITS = str(ROOT / "models/digits.onnx")
BRIEF = ("--rounds", "1", "--seconds", "0.01", "--threads", "1")


def bench(*arguments: str) -> str:
    """What it prints; it must succeed."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Contender -> row."""
    results = json.loads((folder / "results.json").read_text())
    return {row["contender"]: row for row in results["rows"]}


def test_compares_and_gives_reasons(tmp_path: Path) -> None:
    """Figures for those who can, a reason for those who can't, and the three files."""
    options = ("--contenders", "gbprewrite,torch,captum", "--methods", "guided")
    bench("--networks", DIGITS, *options, "--out", str(tmp_path), *BRIEF)
    found = rows(tmp_path)
    assert list(found) == ["forward", "gbprewrite", "torch", "captum"]
    ours = found["gbprewrite"]
    assert ours["reason"] is None
    assert ours["cosine"] > 0.999999
    assert ours["repeat_error"] == 0
    assert ours["peak_bytes"] > ours["file_bytes"] > 100_000
    assert found["forward"]["ratio"] == 1
    assert found["captum"]["reason"] == "there is no PyTorch module of this network, only an ONNX file"
    assert found["torch"]["reason"] == "no rule of its own: captum hooks it"
    table = (tmp_path / "table.md").read_text()
    assert "there is no PyTorch module" in table
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_cuda_is_dry_run(tmp_path: Path) -> None:
    """IO binding, outputs in fixed buffers and float16, on the CPU."""
    options = ("--networks", DIGITS, "--contenders", "gbprewrite-graph", "--methods", "guided", "--out", str(tmp_path))
    bench(*options, "--provider", "cuda", "--dry-run", "--batch", "2", "--precisions", "float16", *BRIEF)
    found = rows(tmp_path)["gbprewrite-graph"]
    assert found["reason"] is None
    assert found["precision"] == "float16"
    assert 0.99 < found["cosine"] < 1  # float16 it was


def test_operators(tmp_path: Path) -> None:
    """The profile has the network's operators."""
    output = bench("operators", "--network", DIGITS, "--nodes", "3", "--out", str(tmp_path))
    assert "MaxPool" in output
    assert "| all |" in (tmp_path / "operators-digits.md").read_text()


@pytest.mark.slow
def test_topk(tmp_path: Path) -> None:
    """Maps of five classes, of which the first is compared."""
    brief = ("--rounds", "1", "--seconds", "0.01", "--batch", "2")
    bench("topk", "--networks", DIGITS, "--out", str(tmp_path), *brief)
    assert "| digits | 2 |" in (tmp_path / "topk.md").read_text()


def test_scaling(tmp_path: Path) -> None:
    """Synthetic graphs are valid and of the size that was asked for."""
    model = scaling.synthetic(100)
    onnx.checker.check_model(model, full_check=True)
    assert abs(len(model.graph.node) - 100) < 5
    line = ("--sizes", "50,100", "--networks", "", "--repeats", "1", "--gigabytes", "0.0001", "--out", str(tmp_path))
    bench("scaling", *line)
    table = (tmp_path / "scaling.md").read_text()
    assert "| synthetic 100 | 103 |" in table
    assert "| 0.0001 GB | 3 |" in table
    quadratic = [{"nodes": n, "convert_seconds": n * n} for n in (1.0, 2.0, 4.0, 8.0)]
    assert scaling.exponent(quadratic) == pytest.approx(2)


def test_summary_and_merging() -> None:
    """Speed against the fastest peer; a later run's row stands for an earlier one's."""

    def row(contender: str, seconds: float) -> Row:
        return Row("n", contender, "gradient", 1, 1, "cpu", "float32", False, seconds=seconds, ratio=seconds)

    first = [row("forward", 1), row("gbprewrite", 4), row("torch", 3), row("captum", 6)]
    found = report.merged([first, [row("gbprewrite", 2)]])
    assert [r.seconds for r in found] == [1, 2, 3, 6]
    fastest, captum = report.summary(found)
    assert "1.50 times as fast as the fastest peer" in fastest
    assert "n 1.50 (torch)" in fastest
    assert "3.00 times as fast as captum" in captum


def test_a_reason_ends_a_profile(tmp_path: Path) -> None:
    """There is nothing else to show."""
    done = CliRunner().invoke(main, ("operators", "--network", f"{tmp_path}/absent.onnx"))
    assert done.exit_code == 1
    assert "absent.onnx does not exist" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--contenders", "tensorflow"), "'tensorflow' is none of forward, gbprewrite"),
        (("--threads", "many"), "no list of numbers"),
        (("--networks", "lenet"), "'lenet' is none of"),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], message: str) -> None:
    """One line, and status 2."""
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())


CLEAN = placement.Placed(9, {}, {}, True, True)


@pytest.mark.parametrize(
    ("placed", "source", "ours"),
    [
        (CLEAN, CLEAN, False),
        (CLEAN, CLEAN._replace(cpu_nodes={"Resize": 1}), False),
        (CLEAN._replace(cpu_nodes={"Resize": 1}), CLEAN._replace(cpu_nodes={"Resize": 1}), False),
        (CLEAN._replace(cpu_nodes={"Resize": 2}), CLEAN._replace(cpu_nodes={"Resize": 1}), True),
        (CLEAN._replace(memcpy={"MemcpyToHost": 1}), CLEAN, True),
        (CLEAN._replace(cuda_graph=False), CLEAN, True),
        (CLEAN._replace(strict=False), CLEAN, True),
        (CLEAN._replace(cuda_graph=False, strict=False), CLEAN._replace(cuda_graph=False, strict=False), False),
        (None, CLEAN, True),
    ],
)
def test_a_file_answers_for_what_its_source_can_do_alone(placed: Any, source: Any, ours: bool) -> None:
    """A network that has no place on CUDA itself is not the backward part's fault."""
    assert placement.Row("n", 18, "base", placed, source).ours is ours


def test_placement_of_a_file(tmp_path: Path) -> None:
    """By a place.py that finds everything on CUDA."""
    place = tmp_path / "place.py"
    told = (
        '{"model": os.path.basename(p), "cuda_nodes": 1, "cpu_nodes": {}, "memcpy": {}, "cuda_graph": 1, "strict": 1}'
    )
    place.write_text(f"import json, os, sys\nfor p in sys.argv[2:]: print(json.dumps({told}))\n")
    onnx.save(cnn(), tmp_path / "net.onnx")
    name, command = str(tmp_path / "net.onnx"), [sys.executable, str(place)]
    (rows,) = placement.every_row([name], "torchscript", [18, 21], ["base"], command)
    assert [(row.opset, row.methods, row.placed.clean, row.ours) for row in rows] == [
        (18, "base", True, False),
        (21, "base", True, False),
    ]
    assert "2 converted files of 1 networks: 2 with no CPU node" in placement.summary(rows)

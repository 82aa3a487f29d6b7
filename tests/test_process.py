"""The process around a command: streams that are closed, full or of another encoding, and signals that end it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import gbprewrite
from gbprewrite.model import file as modelfile
from tests.small import cnn, normal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX's streams and signals")
ROOT = Path(__file__).parents[1]
OLD = b"old" * 1000
COMMAND = f"{sys.executable} -m gbprewrite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(cnn(), tmp_path / "m.onnx")
    modelfile.save(gbprewrite.convert(cnn()), tmp_path / "c.onnx")
    np.save(tmp_path / "x.npy", normal(1, 3, 12, 12))
    Image.new("RGB", (12, 12), "red").save(tmp_path / "a.png")
    for name in ("o.onnx", "o.npz", "a.guided.png"):
        (tmp_path / name).write_bytes(OLD)
    return tmp_path


def shell(line: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    known = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line.replace("gbprewrite ", f"{COMMAND} ")], cwd=folder, env=known,
        text=True, errors="replace", capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("gbprewrite inspect m.onnx > /dev/full", 1, "standard output can't be written: No space left on device."),
        ("gbprewrite inspect m.onnx --json >&-", 1, "standard output can't be written: it is closed."),
        ("gbprewrite explain m.onnx a.png --force >&-", 1, "standard output can't be written: it is closed."),
        ("gbprewrite --help > /dev/full", 1, "standard output can't be written: No space left on device."),
        ("gbprewrite convert m.onnx -o new.onnx --quiet >&- <&-", 0, ""),
        ("gbprewrite inspect absent.onnx 2> /dev/full", 1, ""),
        ("gbprewrite inspect absent.onnx >&- 2>&-", 1, ""),
        ("gbprewrite ops | head -n 1", 1, ""),
    ],
)
def test_streams(line: str, status: int, words: str, folder: Path) -> None:
    done = shell(line, folder)
    assert done.returncode == status
    assert done.stderr.startswith(f"error: {words}" if words else "")
    assert len(done.stderr.splitlines()) == bool(words)


def test_a_report_that_is_lost_loses_no_file(folder: Path) -> None:
    assert shell("gbprewrite convert m.onnx -o new.onnx >&-", folder).returncode == 1
    assert modelfile.load(folder / "new.onnx").graph.output[-1].name == "explained_index"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437"])
def test_any_encoding(encoding: str, folder: Path) -> None:
    os.rename(folder / "m.onnx", folder / "模型.onnx")
    done = shell("gbprewrite inspect 模型.onnx", folder, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(r"file      \u6a21\u578b.onnx")
    assert "dx = max(dy, 0)" in done.stdout


SLOW = """
import pathlib, sys, time
from gbprewrite.cli import main
write = pathlib.Path.write_bytes
def slowly(path, data):
    write(path, data[:10])
    print("writing", flush=True)
    time.sleep(60)
pathlib.Path.write_bytes = slowly
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP), (signal.SIGINT, 1)],
)
def test_signals_leave_nothing(ending: signal.Signals, status: int, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = ["convert", "m.onnx", "-o", "o.onnx", "--force"]
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "writing\n"
    run.send_signal(ending)
    _, errors = run.communicate(timeout=300)  # a guard, whatever the load
    assert (run.returncode, "Traceback" in errors) == (status, False)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_an_ignored_signal_stays_so(folder: Path) -> None:
    """As under nohup."""
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    hang_up = "from gbprewrite.cli import process\nwith process.ending_in_order(): signal.raise_signal(signal.SIGHUP)"
    done = subprocess.run([sys.executable, "-c", f"{ignoring}{hang_up}\nprint('on')"], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"on\n")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("convert m.onnx -o o.onnx", "o.onnx"),
        ("run c.onnx --input x.npy -o o.npz", "o.npz"),
        ("explain m.onnx a.png --preset unit", "a.guided.png"),
    ],
)
def test_a_full_disk(line: str, place: str, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)); "
    done = subprocess.run(
        [sys.executable, "-c", f"{limited}from gbprewrite.cli import main; main()", *line.split(), "--force"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {place} can't be written: File too large.")
    assert len(done.stderr.splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before

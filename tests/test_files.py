"""Files are written whole or not at all, and nothing that exists is damaged."""

import os
import random
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from gbprewrite import files
from gbprewrite.errors import OutputError
from gbprewrite.model import file as modelfile
from tests.small import cnn, model, normal, run

Cli = Callable[..., Result]
OLD, NEW = b"old" * 1000, b"new" * 1000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "o.bin").write_bytes(OLD)
    return tmp_path / "o.bin"


def listed(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


class TestWhole:
    def test_replaces(self, old: Path) -> None:
        with files.whole(old) as part:
            part.write_bytes(NEW)
            assert old.read_bytes() == OLD
        assert (old.read_bytes(), listed(old.parent)) == (NEW, ["o.bin"])

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, OSError(28, "No space left")])
    def test_stopped_while_writing(self, old: Path, error: BaseException | type[BaseException]) -> None:
        expected = OutputError if isinstance(error, OSError) else error
        with pytest.raises(expected), files.whole(old) as part:  # noqa: PT012
            part.write_bytes(NEW[:7])
            raise error
        assert (old.read_bytes(), listed(old.parent)) == (OLD, ["o.bin"])

    @pytest.mark.parametrize("stage", ["mkdtemp", "chmod", "replace"])
    def test_refused_by_the_system(self, old: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
        """As in a folder, or on a disk, that can only be read."""

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(files.tempfile if stage == "mkdtemp" else os, stage, refuse)
        words = r"o\.bin can't be written: Permission denied\. Choose another place"
        with pytest.raises(OutputError, match=words), files.whole(old) as part:
            part.write_bytes(NEW)
        assert (old.read_bytes(), listed(old.parent)) == (OLD, ["o.bin"])

    def test_an_error_without_a_reason(self, old: Path) -> None:
        with pytest.raises(OutputError, match="can't be written: the file exists"), files.whole(old):
            raise FileExistsError("the file exists")

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
    def test_modes_are_kept(self, old: Path, mode: int) -> None:
        old.chmod(mode)
        with files.whole(old) as part:
            part.write_bytes(NEW)
        assert (old.read_bytes(), stat.S_IMODE(old.stat().st_mode)) == (NEW, mode)

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_new_files_follow_the_umask(self, tmp_path: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            with files.whole(tmp_path / "o.bin") as part:
                part.write_bytes(NEW)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "o.bin").stat().st_mode) == mode

    def test_what_came_meanwhile_stays(self, tmp_path: Path) -> None:
        path = tmp_path / "o.bin"
        with pytest.raises(OutputError, match=r"exists.*--force"), files.whole(path, force=False) as part:  # noqa: PT012
            part.write_bytes(NEW)
            path.write_bytes(OLD)
        assert (path.read_bytes(), listed(tmp_path)) == (OLD, ["o.bin"])

    def test_two_writers(self, old: Path) -> None:
        with files.whole(old) as first, files.whole(old) as second:
            second.write_bytes(NEW)
            first.write_bytes(OLD * 2)
        assert (old.read_bytes(), listed(old.parent)) == (OLD * 2, ["o.bin"])

    def test_a_name_as_long_as_names_may_be(self, tmp_path: Path) -> None:
        path = tmp_path / ("n" * 255)
        with files.whole(path) as part:
            part.write_bytes(NEW)
        assert path.read_bytes() == NEW


@pytest.mark.parametrize("line", ["explain m.onnx a.png -o", "compare m.onnx a.png -o", "explain m.onnx a.png --html"])
def test_a_folder_that_takes_nothing_is_found_before_the_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(), "m.onnx")
    Image.new("RGB", (12, 12), "red").save("a.png")
    Path("there").mkdir()
    temporary = files.tempfile.TemporaryFile

    def refuse(*arguments: object, dir: Path, **options: object) -> object:
        if dir.name == "there":
            raise OSError(30, "Read-only file system")
        return temporary(*arguments, dir=dir, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    result = cli(*line.split(), "there/deep/er" if line.endswith("-o") else "there/deep/r.html")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (1, "", 1)
    assert "can't be written: Read-only file system" in result.stderr
    assert list(Path("there").iterdir()) == []


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the name of a socket is short


def state() -> dict[Path, tuple[int, ...]]:
    """What stands here, and since when; not when it was read."""
    return {path: (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns) for path in Path().rglob("*") if (s := path.lstat())}


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a socket": _socket,
    "a symbolic link": lambda path: path.symlink_to("precious"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "line",
    [
        "convert m.onnx -o there.onnx",
        "run c.onnx --input x.npy -o there.npz",
        "sanity m.onnx a.png -o there.png",
        "sanity m.onnx a.png --csv there.csv",
        "top m.onnx a.png --layer b --channels 1 -o there.png",
        "explain m.onnx a.png --sheet there.png",
        "explain m.onnx a.png --html there.html",
        "explain m.onnx there.png -o maps",
        "compare m.onnx a.png --html there.html",
    ],
)
def test_only_files_are_replaced(
    kind: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(), "m.onnx")
    onnx.save(gbprewrite.convert(cnn()), "c.onnx")
    np.save("x.npy", normal(1, 3, 12, 12))
    Image.new("RGB", (12, 12), "red").save("a.png")
    Path("precious").write_bytes(OLD)
    place = Path(next(word for word in line.split() if word.startswith("there")))
    if line.startswith("explain m.onnx there.png"):
        Path("maps").mkdir()
        Path("there.png").write_bytes(Path("a.png").read_bytes())
        place = Path("maps/there.guided.png")
        Path("maps/precious").write_bytes(OLD)
    SPECIAL[kind](place)
    before = state()
    result = cli(*line.split(), "--force", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{place} is {kind}" in result.stderr
    assert state() == before


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="/dev/null is a device, which is never replaced"):
        files.check_writable(Path("/dev/null"), force=True)


LARGE = {"a": normal(20, 20), "b": normal(20, 20, seed=1)}


class TestTwoFiles:
    """Models over 2 GB: the limit is lowered here."""

    @pytest.fixture(autouse=True)
    def _limit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", 1000)
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def linear(weights: str) -> onnx.ModelProto:
        return model("g (float[N, 20] x) => (float[N, 20] y) { y = MatMul (x, w) }", w=LARGE[weights])

    @staticmethod
    def held(path: str) -> np.ndarray:
        return run(modelfile.load(path), x=np.eye(20, dtype=np.float32))["y"]

    def test_written_again(self) -> None:
        modelfile.save(self.linear("a"), "o.onnx")
        assert listed(Path()) == ["o.onnx", "o.onnx.data"]
        np.testing.assert_array_equal(self.held("o.onnx"), LARGE["a"])
        modelfile.save(self.linear("b"), "o.onnx", force=True)
        assert listed(Path()) == ["o.onnx", "o.onnx.data"]
        np.testing.assert_array_equal(self.held("o.onnx"), LARGE["b"])
        assert Path("o.onnx.data").stat().st_size == LARGE["b"].nbytes

    def test_modes(self) -> None:
        modelfile.save(self.linear("a"), "o.onnx")
        Path("new").touch()
        assert len({path.stat().st_mode for path in Path().iterdir()}) == 1
        Path("o.onnx.data").chmod(0o640)
        modelfile.save(self.linear("b"), "o.onnx", force=True)
        assert oct(Path("o.onnx.data").stat().st_mode & 0o777) == "0o640"

    def test_numbers_that_are_not_raw(self) -> None:
        typed = self.linear("a")
        (weights,) = typed.graph.initializer
        weights.ClearField("raw_data")
        weights.float_data.extend(LARGE["a"].ravel().tolist())
        modelfile.save(typed, "o.onnx")
        np.testing.assert_array_equal(self.held("o.onnx"), LARGE["a"])

    @pytest.mark.parametrize("taken", ["o.onnx", "o.onnx.data"])
    def test_both_are_outputs(self, taken: str, cli: Cli) -> None:
        Path(taken).write_bytes(OLD)
        with pytest.raises(OutputError, match=f"{taken} exists"):
            modelfile.save(self.linear("a"), "o.onnx")
        assert (Path(taken).read_bytes(), listed(Path())) == (OLD, [taken])

    @pytest.mark.parametrize("stop", [OSError(5, "Input/output error"), KeyboardInterrupt()])
    @pytest.mark.parametrize("count", range(4))
    def test_stopped_between_the_two(self, stop: BaseException, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        modelfile.save(self.linear("a"), "o.onnx")
        replace, calls = os.replace, []

        def stopping(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == count + 1:
                raise stop
            replace(source, target)

        monkeypatch.setattr(os, "replace", stopping)
        with pytest.raises((OutputError, KeyboardInterrupt)):
            modelfile.save(self.linear("b"), "o.onnx", force=True)
        assert listed(Path()) == ["o.onnx", "o.onnx.data"]
        np.testing.assert_array_equal(self.held("o.onnx"), LARGE["a"])

    def test_the_sources_own_data_is_no_place(self, cli: Cli) -> None:
        """`m.onnx` reads `o.onnx.data`, which is where the weights of `o.onnx` would go."""
        onnx.save(self.linear("a"), "m.onnx", save_as_external_data=True, location="o.onnx.data")
        before = Path("o.onnx.data").read_bytes()
        result = cli("convert", "m.onnx", "-o", "o.onnx", "--method", "gradient", "--force")
        assert (result.exit_code, "o.onnx.data is read in this run" in result.stderr) == (2, True)
        assert Path("o.onnx.data").read_bytes() == before


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that a run may read; nothing of it may change."""
    monkeypatch.chdir(tmp_path)
    outside, inside = cnn(), gbprewrite.convert(cnn())
    onnx.save(outside, "m.onnx", save_as_external_data=True, location="w.onnx", size_threshold=0)
    onnx.save(inside, "c.onnx", save_as_external_data=True, location="w.npz", size_threshold=0)
    np.save("x.npy", normal(1, 3, 12, 12))
    np.savez("x.npz", image=normal(1, 3, 12, 12))
    Path("labels.png").write_text("a\nb\nc\nd\ne")
    os.link("labels.png", "labels.html")
    Image.new("RGB", (12, 12), "red").save("a.png")
    os.link("a.png", "hard.png")
    os.link("x.npz", "hard.npz")
    Path("other.csv").symlink_to("a.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    yield tmp_path
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before


READ = [
    "convert m.onnx -o w.onnx",
    "convert m.onnx -o m.onnx",
    "run c.onnx --input x.npz -o x.npz",
    "run c.onnx --input image=x.npz -o hard.npz",
    "run c.onnx --input x.npy -o w.npz",
    "sanity m.onnx a.png -o a.png",
    "sanity m.onnx a.png -o hard.png",
    "sanity m.onnx a.png --labels labels.png -o labels.png",
    "sanity m.onnx a.png --csv other.csv",
    "top m.onnx a.png --layer b --channels 1 -o hard.png",
    "explain m.onnx a.png --labels labels.png --sheet labels.png",
    "explain m.onnx a.png --labels labels.png --html labels.html",
    "explain m.onnx a.png --sheet hard.png",
    "explain m.onnx a.png --html w.onnx",
    "compare m.onnx a.png --sheet a.png",
]


@pytest.mark.parametrize("line", READ)
def test_what_is_read_is_not_written(line: str, inputs: Path, cli: Cli) -> None:
    result = cli(*line.split(), "--force")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "read" in result.stderr
    assert "would be overwritten" in result.stderr


WRONG_NAMES = [
    ("convert m.onnx -o b.pdf", "b.pdf: a .onnx file is written. Give a name that ends in .onnx"),
    ("convert m.onnx -o o.png", "o.png: a .onnx file is written"),
    ("run c.onnx --input x.npy -o o.npy", "o.npy: a .npz file is written"),
    ("explain m.onnx a.png -o x.jpg", "-o x.jpg: this names a .jpg file, and -o takes the folder"),
    ("compare m.onnx a.png -o b.pdf", "-o b.pdf: this names a .pdf file"),
    ("explain m.onnx a.png --html r.pdf", "r.pdf: a .html file is written. Give a name that ends in .html or .htm"),
    ("explain m.onnx a.png --sheet s.jpg", "ends in .png"),
    ("top m.onnx a.png --layer b --channels 1 -o t.pdf", "-o t.pdf: this names a .pdf file"),
    ("sanity m.onnx a.png -o s.svg", "s.svg: a .png file is written"),
    ("sanity m.onnx a.png --csv s.xlsx", "s.xlsx: a .csv file is written"),
    ("convert m.onnx -o -", "-o -: nothing is written to standard output"),
    ("run c.onnx --input x.npy --output -", "-o -: nothing is written to standard output"),
    ("explain m.onnx a.png -o -", "-o -: nothing is written to standard output"),
    ("compare m.onnx a.png --html -", "--html -: nothing is written to standard output"),
    ("explain m.onnx a.png --sheet -", "--sheet -: nothing is written to standard output"),
    ("top m.onnx a.png --layer b --channels 1 -o -", "-o -: nothing is written to standard output"),
    ("sanity m.onnx a.png -o -", "-o -: nothing is written to standard output"),
    ("sanity m.onnx a.png --csv -", "--csv -: nothing is written to standard output"),
]


@pytest.mark.parametrize(("line", "words"), WRONG_NAMES, ids=[line for line, _ in WRONG_NAMES])
def test_a_name_says_what_is_written(line: str, words: str, inputs: Path, cli: Cli) -> None:
    result = cli(*line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize("name", ["model", "m.v2.ONNX", "./-"])
def test_other_names_are_free(name: str, cnn_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(cnn_path.parent)
    assert cli("convert", cnn_path, "-o", name, "-q").exit_code == 0
    assert "image_guided" in {output.name for output in modelfile.load(name).graph.output}


WRITER = """
    import sys
    from pathlib import Path
    from gbprewrite import files
    path, letter = Path(sys.argv[1]), sys.argv[2].encode()
    print("ready", flush=True)
    while True:
        with files.whole(path) as part, part.open("wb") as file:
            for _ in range(64):
                file.write(letter * 1000)
"""


def writer(path: Path, letter: str) -> "subprocess.Popen[bytes]":
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), letter], stdout=subprocess.PIPE
    )
    assert started.stdout is not None
    started.stdout.readline()
    return started


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_killed_and_two_at_once(tmp_path: Path) -> None:
    """At every moment the file is one of the whole ones; what killed writers leave, the next one takes away."""
    path, chance = tmp_path / "o.bin", random.Random(0)
    path.write_bytes(b"o" * 64000)
    for _ in range(3):
        writers = [writer(path, letter) for letter in "ab"]
        for one in writers:
            time.sleep(chance.uniform(0, 0.1))
            one.send_signal(signal.SIGKILL)
            one.wait()
            assert one.stdout is not None
            one.stdout.close()
            data = path.read_bytes()
            assert data in (b"o" * 64000, b"a" * 64000, b"b" * 64000)
        assert all(name == "o.bin" or name.startswith(files.PART) for name in listed(tmp_path))
    files._swept.clear()
    with files.whole(path) as part:
        part.write_bytes(NEW)
    assert (path.read_bytes(), listed(tmp_path)) == (NEW, ["o.bin"])


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_a_living_writer_s_folder_stays(tmp_path: Path) -> None:
    with files.whole(tmp_path / "a") as first:
        files._swept.clear()
        with files.whole(tmp_path / "b") as second:
            second.write_bytes(NEW)
        first.write_bytes(OLD)
    assert listed(tmp_path) == ["a", "b"]
    (tmp_path / f"{files.PART}notes").write_text("a file of this name is not ours")
    files._swept.clear()
    with files.whole(tmp_path / "c") as third:
        third.write_bytes(NEW)
    assert listed(tmp_path) == [f"{files.PART}notes", "a", "b", "c"]

"""Arrays and labels that are damaged or deceive: one line each; and archives that hold no paths."""

import io
import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from gbprewrite.errors import DataError
from gbprewrite.photos import labels
from gbprewrite.runtime import arrayfiles, arrays
from tests.small import cnn, normal

Cli = Callable[..., Result]
SLOTS = [arrays.Slot("x", np.dtype(np.float32), ("N", 3))]
VALUES = normal(4, 3)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def header(shape: str = "(4, 3)", descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


def saved(array: Any, **options: Any) -> bytes:
    held = io.BytesIO()
    np.save(held, array, **options)
    return held.getvalue()


def zipped(*members: tuple[str, bytes], way: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", way) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return held.getvalue()


def damaged(data: bytes, *changes: tuple[int, int]) -> bytes:
    """With other bytes at some places."""
    made = bytearray(data)
    for place, value in changes:
        made[place] = value
    return bytes(made)


def declaring(size: int) -> bytes:
    """An archive that says its member is so large: in the entry, and in the directory at the end."""
    data = zipped(("x.npy", npy(header(f"({size // 12}, 3)"))))
    field = size.to_bytes(4, "little")
    directory = data.index(b"PK\x01\x02")
    return data[:22] + field + data[26 : directory + 24] + field + data[directory + 28 :]


GOOD = zipped(("x.npy", saved(VALUES)))
BAD = {
    "20 GB in 128 bytes": (npy(header("(1666666666, 3)")), r"declares an array of shape \[1666666666, 3\] .*too short"),
    "a length below zero": (npy(header("(-1, 3)"), bytes(48)), "declares an array"),
    "lengths that overflow": (npy(header("(4294967296, 4294967296)"), bytes(48)), "declares an array"),
    "one value short": (saved(VALUES)[:-4], "too short"),
    "no end of the header": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,"), "another kind of file"),
    "a header of brackets": (npy("(" * 110), "another kind of file"),
    "a header that lacks keys": (npy("{}"), "another kind of file"),
    "an unknown type": (npy(header(descr="'<q9'"), bytes(48)), "another kind of file"),
    "objects": (saved(np.array([{}, []], object), allow_pickle=True), "full of Python objects"),
    "objects in a field": (npy(header(descr="[('a', '|O')]"), bytes(99)), "full of Python objects"),
    "a new version": (npy(header(), bytes(48), b"\x03\x00"), "version 3.0"),
    "a version to come": (npy(header(), bytes(48), b"\x09\x00"), "version 9.0"),
    "a pickle": (b"cos\nsystem\n(S'touch owned'\ntR.", "another kind of file"),
    "an archive cut short": (GOOD[:-9], "another kind of file"),
    "damaged data": (damaged(GOOD, (50, 255), (51, 255), (60, 0)), "another kind of file"),
    "an encrypted archive": (
        damaged(GOOD, (6, 1), (GOOD.index(b"PK\x01\x02") + 8, 1)), r"encrypted\."
    ),
    "an unknown compression": (damaged(GOOD, (8, 77), (GOOD.index(b"PK\x01\x02") + 10, 77)), "another kind of file"),
    "an archive of texts": (zipped(("x.txt", b"no array")), "another kind of file"),
    "objects in an archive": (zipped(("x.npy", saved(np.array([{}], object), allow_pickle=True))), "Python objects"),
    "4 GB in an archive": (declaring(2**32 - 16), "declares more than it can hold"),
    "16 kB in an archive": (declaring(2**14), "declares an array of shape .* too short|another kind of file"),
    "nothing": (b"", "another kind of file"),
    "text": (b"no array", "another kind of file"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_each_is_one_error(kind: str, tmp_path: Path) -> None:
    data, words = BAD[kind]
    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name} holds no plain numeric arrays: it is .*{words}"):
            arrayfiles.read_inputs([f"x={tmp_path / name}"], SLOTS)
    assert not Path("owned").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8_000_000  # kB: nothing was made room for


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.npy")
    Path("loop.npy").symlink_to("loop.npy")
    Path("folder.npy").mkdir()
    for name in ("fifo.npy", "loop.npy", "folder.npy", "n" * 5000, "/dev/zero"):
        with pytest.raises(DataError, match="can't be read"):
            arrayfiles.read_inputs([f"x={name}"], SLOTS)


PLAIN = [VALUES, VALUES[:0], VALUES.T, VALUES > 0, np.float64(3), np.arange(5), np.array(["a"])]


@pytest.mark.parametrize("array", PLAIN)
def test_every_plain_array_is_read(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", x=array, other=np.zeros((1000, 1000)))
    np.testing.assert_array_equal(arrayfiles.read_inputs([f"x={tmp_path / 'x.npy'}"], SLOTS)["x"], array, strict=True)
    found = arrayfiles.read_inputs([str(tmp_path / "x.npz")], SLOTS)
    np.testing.assert_array_equal(found["x"], array, strict=True)
    assert not found["other"].any()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["image_guided", "logits"], ["image_guided", "logits"]),
        (["Identity:0", "a b[0] $é"], ["Identity:0", "a b[0] $é"]),
        (["../../x", "/etc/x", r"..\x", r"C:\x", "C:x"], ["__.._x", "_etc_x", "__x", "C__x", "C_x"]),
        (["a/b", "a_b", "a\\b"], ["a_b_2", "a_b", "a_b_3"]),
        (["A", "a"], ["A", "a_2"]),
        (["", ".", "..", "...x"], ["_", "__2", "__3", "_x"]),
        (["con", "COM1.y", "lpt", "x.", "y "], ["_con", "_COM1.y", "lpt", "x_", "y_"]),
        (["a\n\x1b\u202e\x00b"], ["a____b"]),
        (["n" * 300, "n" * 301, "é" * 200], ["n" * 200, "n" * 200 + "_2", "é" * 100]),
    ],
)
def test_keys_are_names_of_files(names: list[str], expected: list[str]) -> None:
    assert list(arrayfiles.keys(names).values()) == expected


def test_no_archive_holds_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    named = cnn()
    named.graph.output[0].name = named.graph.node[-1].output[0] = "../../x"
    onnx.save(gbprewrite.convert(named), "c.onnx")
    np.save("x.npy", normal(1, 3, 12, 12))
    result = cli("run", "c.onnx", "--input", "x.npy", "-o", "o.npz")
    assert (result.exit_code, "keys    ../../x is kept as __.._x" in result.stdout) == (0, True)
    with zipfile.ZipFile("o.npz") as archive:
        assert "__.._x.npy" in archive.namelist()
        assert not any("/" in name for name in archive.namelist())
    facts = json.loads(cli("run", "c.onnx", "--input", "x.npy", "-o", "o.npz", "-f", "--json").stdout)
    assert {row["name"]: row["key"] for row in facts["arrays"] if "key" in row} == {"../../x": "__.._x"}


def test_outputs_that_are_no_arrays(tmp_path: Path) -> None:
    found, left = arrayfiles.storable({"names": np.array(["cat", "dog"], object), "maps": [{"a": 1.0}], "x": VALUES})
    assert (found["names"].tolist(), left) == (["cat", "dog"], ["maps"])
    arrayfiles.save(tmp_path / "o.npz", found)
    with np.load(tmp_path / "o.npz") as held:
        assert held["names"].tolist() == ["cat", "dog"]


LABELS = {
    "deep": (b"[" * 200_000, "nested too deeply"),
    "deep labels": (b'{"0": ' + b"[" * 200_000, "nested too deeply"),
    "no UTF-8": (b"caf\xe9\n", "can't be read: 'utf-8' codec"),
    "UTF-16": ("cat\ndog".encode("utf-16"), "can't be read: 'utf-8' codec"),
    "numbers": (b"[1, 2]", "1 is no label"),
    "nothing": (b"[null]", "null is no label"),
    "no index": (b'{"cat": "cat"}', "invalid literal"),
    "an endless index": (b'{"%s": "cat"}' % (b"9" * 5000), "is no list of labels"),
    "an endless number": (b"[%s]" % (b"9" * 5000), "is no list of labels"),
    "half": (b'["cat", "do', "Unterminated string"),
    "a long entry": (json.dumps([{"a": "b" * 100_000}]).encode(), "is no label"),
    "empty lists": (b"[[]]", "list index out of range"),
    "a large file": (b"cat\n" * 4_000_001, "it holds more than 16 MB"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_are_none(kind: str, tmp_path: Path) -> None:
    data, words = LABELS[kind]
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        labels.read(tmp_path / "labels")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_labels_are_lines(tmp_path: Path) -> None:
    """And of nothing else that str.splitlines takes for an end: the next labels would be shifted."""
    (tmp_path / "labels").write_bytes("cat\x0b\r\ndog\u2028s\r\x85e\n".encode())
    assert labels.read(tmp_path / "labels") == {0: "cat", 1: "dog\u2028s", 2: "e"}
    with pytest.raises(DataError, match="it is a device"):
        labels.read("/dev/zero")


@pytest.mark.parametrize("label", ["\x1b[31m", "a\nb", "$x_{$", "<script>", "n" * 10_000])
def test_labels_are_text(label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(), "m.onnx")
    Image.new("RGB", (12, 12), "red").save("a.png")
    Path("labels").write_text(json.dumps([label] * 5))
    result = cli("explain", "m.onnx", "a.png", "--labels", "labels", "--html", "r.html", "--sheet", "s.png")
    assert (result.exit_code, "\x1b" in result.stdout) == (0, False)
    with Image.open("a.guided.png") as drawn:
        assert drawn.height < 1200

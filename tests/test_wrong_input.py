"""Wrong input, a row each: the exit status, and one paragraph that says what, where, why and what to do.

Nothing is written, and no traceback is shown.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import helper
from onnx.external_data_helper import convert_model_to_external_data
from PIL import Image

import gbprewrite
from gbprewrite.graft import record as report
from gbprewrite.model import file as modelfile
from tests.small import cnn, model, normal


def _external(folder: Path) -> None:
    large = model("g (float[N, 20] x) => (float[N, 20] y) { a = MatMul (x, w) y = Relu (a) }", w=normal(20, 20))
    convert_model_to_external_data(large, location="weights.bin")
    onnx.save(large, folder / "external.onnx")
    (folder / "weights.bin").unlink()


def _unsupported(folder: Path) -> None:
    text = """g (float[N, 3] x) => (float[N, 3] y) {
        a = Relu (x)
        b = TheirOp (a)
        c = ImageScaler (b)
        y = Relu (c)
    }"""
    unsupported = model(text)
    unsupported.graph.node[1].domain = "com.example"
    unsupported.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(unsupported, folder / "unsupported.onnx")


def _damaged(folder: Path) -> None:
    """Converted files that other hands have changed."""
    lost_map, lost_constant, types, text, old = (gbprewrite.convert(cnn()) for _ in range(5))
    del lost_map.graph.output[1]
    del lost_constant.graph.initializer[-1]
    record = report.read_record(types)
    report.write_record(types, {**record, "maps": [1]})
    report.write_record(old, {name: value for name, value in record.items() if name != "options"})
    text.metadata_props[0].value = "no JSON"
    onnx.save(lost_map, folder / "lost_map.onnx")
    onnx.save(lost_constant, folder / "lost_constant.onnx")
    onnx.save(types, folder / "types.onnx")
    onnx.save(text, folder / "no_json.onnx")
    onnx.save(old, folder / "no_options.onnx")


def _deceiving(folder: Path) -> None:
    """Files that are not what they say."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (7000000, 1, 28, 28), }".ljust(117) + b"\n"
    (folder / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    np.savez_compressed(folder / "damaged.npz", image=normal(2, 3, 12, 12))
    archive = bytearray((folder / "damaged.npz").read_bytes())
    archive[200:300] = bytes(100)
    (folder / "damaged.npz").write_bytes(archive)
    (folder / "deep").write_text("[" * 200_000)
    Image.new("RGB", (12, 12)).save(folder / "eps.png", "EPS")
    png = bytearray((folder / "photo.png").read_bytes())
    png[16:24] = (100_000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (folder / "tall.png").write_bytes(png)
    (folder / "dangling.onnx").symlink_to("absent")
    os.mkfifo(folder / "fifo.onnx")


def _write(folder: Path) -> None:
    """The files that the rows name."""
    onnx.save(cnn(), folder / "good.onnx")
    whole = (folder / "good.onnx").read_bytes()
    (folder / "text.onnx").write_text("this is no model\n" * 20)
    (folder / "zip.onnx").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.onnx").touch()
    (folder / "folder.onnx").mkdir()
    _external(folder)
    _unsupported(folder)
    onnx.save(model("g (int64[N, 3] ids) => (int64[N, 3] y) { y = Add (ids, ids) }"), folder / "integers.onnx")
    onnx.save(
        model("g (float[N, 3] x, int64[N, 3] ids) => (float[N, 3] y) { y = Relu (x) }"), folder / "one_integer.onnx"
    )
    several = """g (float[N, 3] x) => (float[N, 3] scores, float[N, 3] boxes) {
        scores = Relu (x)
        boxes = Neg (scores)
    }"""
    onnx.save(model(several), folder / "several.onnx")
    onnx.save(model("g (float[N, 3] x) => (float[N, 3] y) { y = Elu (x) }"), folder / "elu.onnx")
    onnx.save(model("g (float[N, 3] x) => (float[N, 3] x_guided) { x_guided = Relu (x) }"), folder / "clash.onnx")
    old = cnn()
    del old.opset_import[:]
    old.opset_import.append(helper.make_opsetid("", 5))
    onnx.save(old, folder / "old.onnx")
    modelfile.save(gbprewrite.convert(cnn()), folder / "converted.onnx")
    modelfile.save(gbprewrite.convert(cnn()), folder / "c.guided.onnx")
    modelfile.save(gbprewrite.convert(cnn(), target="input"), folder / "by_target.onnx")
    _damaged(folder)
    (folder / "taken.onnx").write_text("precious")
    (folder / "link.onnx").symlink_to("good.onnx")
    os.link(folder / "good.onnx", folder / "hard.onnx")
    Image.new("RGB", (12, 12)).save(folder / "photo.png")
    np.save(folder / "x.npy", normal(2, 3, 12, 12))
    np.save(folder / "wide.npy", normal(2, 3, 12, 13))
    np.save(folder / "target.npy", np.array([0, 5]))
    (folder / "broken.npy").write_text("no array")
    _deceiving(folder)


# arguments, exit status, words of the message
CONVERT: list[tuple[str, int, list[str]]] = [
    ("absent.onnx", 1, ["absent.onnx can't be read: No such file", "Check the path"]),
    ("folder.onnx", 1, ["folder.onnx can't be read: Is a directory", "Check the path"]),
    ("text.onnx", 1, ["text.onnx is not an ONNX model", "340 bytes", "Export or download it again"]),
    ("zip.onnx", 1, ["zip.onnx is not an ONNX model", "another kind of file", "Export or download it again"]),
    ("truncated.onnx", 1, ["truncated.onnx is not an ONNX model", "cut short", "Export or download it again"]),
    ("empty.onnx", 1, ["empty.onnx is empty", "Export or download"]),
    ("external.onnx", 1, ["external.onnx keeps weights in a separate file", "weights.bin", "beside the model"]),
    ("unsupported.onnx", 1, ["2 node(s)", "com.example::TheirOp", "ImageScaler", "no current opset", "--score NAME"]),
    ("integers.onnx", 1, ["no float input", "ids (int64)", "Integers have no gradient", "export the model"]),
    ("one_integer.onnx --input ids", 2, ["--input ids", "int64", "only floats have a gradient", "x (float32)"]),
    ("good.onnx --input nose", 2, ["--input nose", "no such input", "image (float32)"]),
    ("good.onnx --score nose", 2, ["--score nose", "no such tensor", "outputs are: probabilities"]),
    ("several.onnx", 2, ["2 outputs could be explained", "scores", "boxes", "--score NAME"]),
    ("good.onnx --target 5", 2, ["--target 5: out of range", "'logits' has 5 classes", "0 to 4"]),
    ("good.onnx --target 0,7", 2, ["--target 0,7: out of range", "0 to 4"]),
    ("good.onnx --target topk:6", 2, ["--target topk:6: out of range"]),
    ("good.onnx --target topk:3 --channels 1:3", 2, ["--channels 1:3 leaves 2 classes", "K is at most 2"]),
    ("good.onnx --target strongest:2", 2, ["1 position beside its class axis 1", "K is at most 1", "topk:K"]),
    ("good.onnx --target strongest:0", 2, ["--target 'strongest:0' is not understood", "strongest:K"]),
    ("good.onnx --channels 3:6", 2, ["--channels 3:6: 6 is out of range", "logits", "has 5 channels, 0 to 4"]),
    ("good.onnx --channels=-6", 2, ["--channels -6: -6 is out of range"]),
    ("good.onnx --channels 3:3", 2, ["--channels 3:3: no channel is left", "has 5"]),
    ("good.onnx --channels 0:4:-1", 2, ["the step -1 is not positive"]),
    ("good.onnx --channels 1-3", 2, ["--channels '1-3' is not understood", "0,2,3:7"]),
    ("good.onnx --channels 1: --target 3", 2, ["--target 3 says what is explained", "Leave --channels out"]),
    ("good.onnx --target unit:9", 2, ["--target unit:9: out of range", "5 positions"]),
    ("good.onnx --target unit:1,2", 2, ["--target unit:1,2", "needs 1"]),
    ("good.onnx --target -1", 2, ["--target '-1' is not understood", "argmax", "topk:K"]),
    ("good.onnx --target best", 2, ["--target 'best' is not understood", "argmax", "topk:K"]),
    ("good.onnx --class-axis 2", 2, ["--class-axis 2", "choose 1"]),
    ("good.onnx --class-axis 0", 2, ["--class-axis 0", "axis 0 is the batch"]),
    ("good.onnx --opset 11", 2, ["--opset 11 can't be reached", "18 to"]),
    ("good.onnx --opset 0", 2, ["--opset 0 can't be reached"]),
    ("good.onnx --rectify Rellu", 2, ["--rectify Rellu: not an activation", "Choose 'all' or from"]),
    ("elu.onnx", 1, ["'guided' finds no rectifier", "1 Elu", "--rectify all", "--method gradient"]),
    ("clash.onnx", 1, ["x_guided already", "--prefix TEXT"]),
    ("old.onnx", 1, ["opset 5", "Export it again"]),
    ("converted.onnx -o new.onnx", 1, ["converted one already", "methods guided", "--replace"]),
    ("good.onnx -o taken.onnx", 1, ["taken.onnx exists", "--force", "-o PATH"]),
    ("good.onnx -o absent/new.onnx", 1, ["absent/new.onnx can't be written: No such file", "-o PATH"]),
    ("good.onnx -o taken.onnx/new.onnx", 1, ["new.onnx can't be written: Not a directory", "-o PATH"]),
    ("good.onnx -o dangling.onnx --force", 1, ["dangling.onnx is a symbolic link, which is never replaced"]),
    ("good.onnx -o fifo.onnx --force", 1, ["fifo.onnx is a FIFO, which is never replaced", "-o PATH"]),
    ("good.onnx -o map.pdf", 2, ["map.pdf: a .onnx file is written", "ends in .onnx"]),
    ("good.onnx -o -", 2, ["-o -: nothing is written to standard output", "Give a path"]),
    ("good.onnx -o folder.onnx --force", 1, ["folder.onnx is a folder", "-o PATH"]),
    *(
        (f"{line} --force", 2, ["is the model that is read", "would be overwritten", "-o PATH"])
        for line in (
            "good.onnx -o good.onnx",
            "good.onnx -o ./good.onnx",
            "good.onnx -o link.onnx",
            "good.onnx -o hard.onnx",
            "link.onnx -o good.onnx",
            "converted.onnx --replace -o converted.onnx",
            "c.guided.onnx --replace",
        )
    ),
]
OTHERS: list[tuple[str, int, list[str]]] = [
    *((f"inspect {name}.onnx", 1, words) for name, words in (("text", ["not an ONNX"]), ("empty", ["is empty"]))),
    ("run good.onnx --input x.npy", 1, ["good.onnx is no converted model", "gbprewrite convert"]),
    ("run converted.onnx --input nose=x.npy", 2, ["no input of this name", "image (float32, [N, 3, 12, 12])"]),
    ("run converted.onnx --input absent.npy", 1, ["absent.npy can't be read: No such file", "Check the path"]),
    ("run converted.onnx --input broken.npy", 1, ["broken.npy holds no plain numeric arrays", "numpy.save"]),
    ("run converted.onnx --input wide.npy", 1, ["[2, 3, 12, 13]", "image (float32, [N, 3, 12, 12])", "must be 12"]),
    ("run converted.onnx --input x.npy -o taken.onnx", 1, ["taken.onnx exists", "--force"]),
    ("run converted.onnx --input x.npy --provider cuda", 1, ["provider 'cuda'", "gbprewrite[gpu]"]),
    ("run by_target.onnx --input image=x.npy", 2, ["takes its target at run time", "--input target=FILE"]),
    ("run by_target.onnx --input image=x.npy --input target=target.npy", 1, ["does not exist", "sample 1 (target 5)"]),
    ("run converted.onnx --input x.npy -o converted.onnx --force", 2, ["is the model that is read", "-o PATH"]),
    ("run converted.onnx --input x.npy -o x.npy --force", 2, ["x.npy is read in this run", "--force does not allow"]),
    ("run converted.onnx --input x.npy -o out.npy", 2, ["out.npy: a .npz file is written", "ends in .npz"]),
    ("run converted.onnx --input folder.onnx", 1, ["folder.onnx can't be read: Is a directory"]),
    ("run converted.onnx --input /dev/zero", 1, ["/dev/zero can't be read: it is a pipe or a device"]),
    ("run converted.onnx --input huge.npy", 1, ["huge.npy holds no plain", "declares an array of shape [7000000, 1"]),
    ("run converted.onnx --input damaged.npz", 1, ["damaged.npz holds no plain numeric arrays", "damaged"]),
    ("inspect /dev/zero", 1, ["/dev/zero is a device", "Give the path of a file"]),
    ("explain good.onnx photo.png --labels deep", 1, ["--labels deep is no list of labels: it is nested too deeply"]),
    ("explain good.onnx photo.png -o maps.pdf", 2, ["-o maps.pdf: this names a .pdf file", "name of a folder"]),
    ("explain good.onnx photo.png --html r.pdf", 2, ["r.pdf: a .html file is written", "ends in .html"]),
    ("explain good.onnx tall.png -q", 1, ["tall.png has more than 89,478,485 pixels"]),
    ("explain good.onnx eps.png -q", 1, ["eps.png is no image"]),
    ("verify good.onnx", 1, ["good.onnx is no converted model", "gbprewrite convert"]),
    ("verify converted.onnx --source elu.onnx", 2, ["it is another model", "image"]),
    ("verify converted.onnx --source text.onnx", 1, ["text.onnx is not an ONNX model"]),
    ("verify converted.onnx --input image=wide.npy", 1, ["must be 12"]),
]
DAMAGED = [
    (f"{command}", 1, ["the record that gbprewrite keeps", "is damaged", "Convert the source model again"])
    for name in ("lost_map", "types", "no_json", "no_options")
    for command in (
        f"inspect {name}.onnx",
        f"run {name}.onnx --input x.npy",
        f"verify {name}.onnx",
        f"explain {name}.onnx photo.png",
        f"convert {name}.onnx --replace -o new.onnx",
    )
] + [
    ("run lost_constant.onnx --input x.npy", 1, ["can't load the model", "grad/constant"]),
    ("explain lost_constant.onnx photo.png", 1, ["can't load the model", "grad/constant"]),
    ("verify lost_constant.onnx", 1, ["can't load the model", "b3"]),
]
ROWS = [(f"convert {arguments}", status, words) for arguments, status, words in CONVERT] + OTHERS + DAMAGED


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, Any]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("line", "status", "words"), ROWS, ids=[line for line, _, _ in ROWS])
def test_one_clear_error(line: str, status: int, words: list[str], folder: Path, cli: Callable[..., Result]) -> None:
    if "cuda" in line:
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA")
    before = contents(folder)
    result = cli(*line.split())
    assert result.exit_code == status
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr
    assert "\n\n" not in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(folder) == before


ENDLESS = [
    ("convert good.onnx --target", "--target '999"),
    ("convert good.onnx --target topk:", "--target 'topk:999"),
    ("convert good.onnx --target 0,", "--target '0,999"),
    ("convert good.onnx --unit", "--target 'unit:999"),
    ("convert good.onnx --channels 1:", "--channels '1:999"),
    ("top good.onnx photo.png --layer b --channels", "--channels '999"),
    ("explain good.onnx photo.png --size", "--size '999"),
    ("explain good.onnx photo.png --size 7x", "--size '7x999"),
    ("explain good.onnx photo.png --mean", "--mean '999"),
    ("explain good.onnx photo.png --scale 1/", "--scale '1/999"),
]


@pytest.mark.parametrize(("start", "words"), ENDLESS, ids=[start for start, _ in ENDLESS])
def test_numbers_without_end(start: str, words: str, folder: Path, cli: Callable[..., Result]) -> None:
    """More digits than Python reads are no number, and not all of them are repeated."""
    before = contents(folder)
    *command, last = start.split()
    result = cli(*command, last, "9" * 5000) if last.startswith("--") else cli(*command, last + "9" * 5000)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {words}")
    assert len(result.stderr) < 500
    assert contents(folder) == before


EMPTY = ["target", "score", "input", "rectify"]


@pytest.mark.parametrize("command", ["convert good.onnx", "explain good.onnx photo.png"])
@pytest.mark.parametrize("option", EMPTY)
def test_empty_texts_are_no_values(command: str, option: str, folder: Path, cli: Callable[..., Result]) -> None:
    """As a shell variable that is not set gives them."""
    before = contents(folder)
    result = cli(*command.split(), f"--{option}", "")
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"--{option} was given an empty text" in result.stderr
    assert contents(folder) == before


def test_an_empty_prefix_is_one(folder: Path, cli: Callable[..., Result]) -> None:
    assert cli("convert", "good.onnx", "--prefix", "", "-q").exit_code == 0


@pytest.mark.parametrize(
    "line", ["convert", "convert good.onnx --method lrp", "run converted.onnx", "convert good.onnx --nose", "paint"]
)
def test_wrong_usage(line: str, folder: Path, cli: Callable[..., Result]) -> None:
    """What click itself refuses."""
    before = contents(folder)
    result = cli(*line.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr
    assert contents(folder) == before

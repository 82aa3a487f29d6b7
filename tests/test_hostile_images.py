"""One bad image never ends a run, and none takes the machine with it."""

import logging
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

from gbprewrite.errors import DataError
from gbprewrite.photos import files as photofiles
from gbprewrite.photos import images
from gbprewrite.photos.preprocessing import Options, plan
from tests.small import cnn

Cli = Callable[..., Result]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, width: int, height: int, data: bytes = b"", kind: int = 0, depth: int = 1) -> None:
    """A PNG of such a size in its header (one bit grey, by default)."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def saved(kind: str, **options: object) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(PIXELS).save(path, kind, **options)


def cut(kind: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Image.effect_noise((256, 256), 90).convert("RGB").save(path, kind)
        path.write_bytes(path.read_bytes()[:-700])

    return make


def damaged_exif(path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01\x03\x00\xff\xff\xff\xff\x99\x99\x99\x99"
    Image.fromarray(PIXELS).save(path, "JPEG", exif=exif)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bomb": (lambda path: png(path, 50_000, 50_000), "has more than 89,478,485 pixels"),
    "a bomb beyond every limit": (lambda path: png(path, 2**31 - 1, 2**31 - 1), "has more than 89,478,485 pixels"),
    "narrow": (lambda path: png(path, 1, 4_000_000, b"\0\0" * 4_000_000), "too narrow to be brought to 64x64"),
    "narrower": (lambda path: png(path, 1, 80_000_000), "80000000x1 .* too narrow to be read"),
    "no pixels": (lambda path: png(path, 0, 0), "no image|damaged|can't be read"),
    "EPS": (saved("EPS"), "is no image"),
    "ICO": (saved("ICO"), "is no image"),
    "PCX": (saved("PCX"), "is no image"),
    "SGI": (saved("SGI"), "is no image"),
    "no orientation": (saved("PNG", exif=b"Exif\x00\x00junk"), "is damaged"),
    "a FIFO": (os.mkfifo, "it is a pipe or a device, not a file"),
    "a loop of links": (loop, "can't be read"),
    "a short PNG": (cut("PNG"), "can't be read|damaged"),
    "a short JPEG": (cut("JPEG"), "can't be read|damaged"),
    "a short GIF": (cut("GIF"), "can't be read|damaged"),
    "a short WebP": (cut("WEBP"), "can't be read|damaged|no image"),
    "a short TIFF": (cut("TIFF"), "can't be read|damaged"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("kind", BAD)
def test_each_is_one_error(kind: str, tmp_path: Path) -> None:
    make, words = BAD[kind]
    make(tmp_path / "bad.png")
    made = plan("x", (1, 3, 64, 64), np.float32, Options(preset="unit"))
    with pytest.raises(DataError, match=words):
        images.fit(made, images.read(tmp_path / "bad.png"))


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")
@pytest.mark.parametrize("command", ["explain m.onnx", "compare m.onnx", "top m.onnx --layer b --channels 1"])
def test_the_run_goes_on(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(cnn(), "m.onnx")
    bad = [make for kind, (make, _) in BAD.items() if kind != "narrow"]  # but not too narrow for 12x12
    for number, make in enumerate(bad):
        make(Path(f"{number}.png"))
    names = ["$x_{$.png", "a b.png", os.fsdecode(b"caf\xe9.png"), "new\nline.png"]
    for name in names:
        Image.fromarray(PIXELS).save(name)
    result = cli(*command.split(), *(f"{number}.png" for number in range(len(bad))), *names, "--preset", "unit")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == len(bad)
    assert all(line.startswith("error: ") for line in result.stderr.splitlines())
    if not command.startswith("top"):
        assert f"{len(names)} of {len(names) + len(bad)} images explained" in result.stdout


def test_a_lack_of_memory_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    onnx.save(cnn(), tmp_path / "m.onnx")
    for name in ("a.png", "b.png"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    fit, seen = images.fit, []

    def short(*arguments: object) -> Image.Image:
        seen.append(arguments)
        if len(seen) == 1:
            raise MemoryError
        return fit(*arguments)

    monkeypatch.setattr(images, "fit", short)
    result = cli("explain", tmp_path / "m.onnx", tmp_path / "a.png", tmp_path / "b.png", "--preset", "unit")
    assert (result.exit_code, "1 of 2 images explained" in result.stdout) == (1, True)
    assert "a.png: there is not enough memory for this image" in result.stderr


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000"])
def test_photographs_are_read_whatever_their_name(kind: str, tmp_path: Path) -> None:
    saved(kind)(tmp_path / "photo.jpg")
    with Image.open(tmp_path / "photo.jpg") as meant:
        np.testing.assert_array_equal(images.read(tmp_path / "photo.jpg"), meant.convert("RGB"))


def test_damaged_remarks_do_no_harm(tmp_path: Path) -> None:
    damaged_exif(tmp_path / "photo.jpg")
    assert images.read(tmp_path / "photo.jpg").size == (12, 12)


def test_libraries_say_nothing_themselves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes to standard error past Python, and Pillow logs there."""
    Image.fromarray(PIXELS).save(tmp_path / "photo.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "photo.tif").read_bytes())
    data[8:60] = bytes(52)
    (tmp_path / "photo.tif").write_bytes(data)
    with pytest.raises(DataError):
        images.read(tmp_path / "photo.tif")
    logging.getLogger("PIL.TiffImagePlugin").error("More samples per pixel than can be decoded")
    os.write(2, b"heard again")
    assert capfd.readouterr().err == "heard again"
    assert logging.getLogger("PIL").handlers  # pytest has handlers of its own, a process may have none


def test_16_bits_become_8(tmp_path: Path) -> None:
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.read(tmp_path / "grey.png"), np.round(values / 257))


class TestFolders:
    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """photos/ with links that lead in circles, in two ways, so that following them would double at each step."""
        monkeypatch.chdir(tmp_path)
        for name in ("a.png", "deep/b.png", "deep/er/c.png", ".hidden/d.png"):
            path = Path("photos", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS).save(path)
        for link in ("photos/one", "photos/two", "photos/deep/three"):
            Path(link).symlink_to(Path("photos").absolute())
        Path("photos/self.png").symlink_to("self.png")
        Path("photos/gone.png").symlink_to("absent.png")
        Path("photos/link.png").symlink_to("a.png")

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("photos", "a.png link.png"),
            ("photos/*.png", "a.png link.png"),
            ("photos/**/*.png", "a.png deep/b.png deep/er/c.png link.png"),
            ("photos/**", "a.png deep/b.png deep/er/c.png link.png"),
            ("photos/**/er/*.png", "deep/er/c.png"),
            ("photos/**/**/*.png", "a.png deep/b.png deep/er/c.png link.png"),
            ("p*/d*/**/*.png", "deep/b.png deep/er/c.png"),
        ],
    )
    def test_circles_are_not_followed(self, pattern: str, expected: str) -> None:
        assert photofiles.find([pattern]).images == [Path("photos", name) for name in expected.split()]

    def test_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir("photos")
        assert list(map(str, photofiles.find(["**/b.png", "./**/c.png"]).images)) == ["deep/b.png", "deep/er/c.png"]

    def test_names_too_long_for_a_file(self) -> None:
        assert photofiles.find(["n" * 5000]).images == [Path("n" * 5000)]
        with pytest.raises(DataError, match="no image matches"):
            photofiles.find(["n" * 5000 + "*"])

    def test_a_folder_that_can_t_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(DataError, match="the folder photos can't be read: Permission denied"):
            photofiles.find(["photos"])

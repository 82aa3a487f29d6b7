"""Photograph files: read, and brought to the size that a network takes (the numbers are those of `preprocessing`)."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gbprewrite.errors import DataError
from gbprewrite.photos.preprocessing import CENTRE, Preprocessing

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it logs would go to standard error

# Pillow reads more, some by other programs (Ghostscript), and tells formats by their bytes, whatever a file is called.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
MOST = 2**27  # pixels between the two steps of resizing: what a narrow image is blown up to
ROW = 16  # pixels that take as much of Pillow's memory as a row does by itself
SHADES = np.round(np.arange(2**16) / 257).astype(np.uint8)  # of 16-bit grey


def opened(path: str | os.PathLike[str]) -> Image.Image:
    """An image file, of which the header is read: an image of one of `FORMATS`. Raises as `PIL.Image.open`."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(None, "it is a pipe or a device, not a file")
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is an error below, or does not matter
        return Image.open(path, formats=[known for known in FORMATS if known in Image.OPEN])


def read(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as an 8-bit image of mode L (grey files) or RGB.

    The EXIF orientation is applied. What is transparent becomes white. 16-bit grey is divided by 257. Of an animation
    the first frame is taken. Raises DataError for a file that can't be read, is no image, is cut short, holds more
    pixels than Pillow deems safe (they are counted before they are read), or holds 32-bit values, which have no agreed
    range.
    """
    path = Path(path)
    try:
        with opened(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_pixels(file, path)
            with _silent() if file.format == "TIFF" else contextlib.nullcontext():
                file.load()
            return _eight_bits(ImageOps.exif_transpose(file), path)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image (PNG, JPEG, WebP, TIFF, ... are read). Give a photograph.") from None
    except Image.DecompressionBombError:
        raise _too_many(path) from None
    except MemoryError:
        raise DataError(f"{path} needs more memory than there is. Make it smaller first.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} can't be read: {reason}. Check the path, or save the image again.") from None
    except Exception as error:  # of whatever kind a damaged file brings Pillow's readers to
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged, or of a kind that can't be converted: {reason}. Save it again.") from None


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what libtiff writes to standard error past Python; what is wrong is an exception too."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 2)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        yield


def _check_pixels(file: Image.Image, path: Path) -> None:
    if Image.MAX_IMAGE_PIXELS is None:
        return
    if file.width * file.height > Image.MAX_IMAGE_PIXELS:
        raise _too_many(path)
    if file.height * ROW > Image.MAX_IMAGE_PIXELS:
        raise DataError(f"{path} is {file.height}x{file.width} (height x width), too narrow to be read. Cut it first.")


def _too_many(path: Path) -> DataError:
    return DataError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller first.")


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(SHADES[np.asarray(image)])
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path} holds 32-bit values (mode {image.mode}), which have no agreed range. Save it with 8 or 16 bits, "
            "or give the values themselves to 'gbprewrite run'."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def of(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """An image of 8-bit pixels [H,W,3] or [H,W,1]."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def fit(made: Preprocessing, image: Image.Image) -> Image.Image:
    """The image in the network's size and number of channels, still 8 bits and RGB: what a picture shows.

    Grey is the luma of ITU-R 601. An image that has the network's size already is not resampled. Raises DataError
    with resize "none" for an image of another size than the network's, and for one that is millions of times as high as
    wide.
    """
    width, height = made.width or image.width, made.height or image.height
    if width * height > MOST:
        raise DataError(f"{height}x{width} (height x width) are more pixels than {MOST:,}. Choose a smaller --size.")
    if width * image.height > MOST and made.resize != "none":
        raise DataError(
            f"the image is {image.height}x{image.width} (height x width), too narrow to be brought to "
            f"{height}x{width}. Cut it first."
        )
    image = image.convert("L" if made.channels == 1 else "RGB")
    return image if image.size == (width, height) else RESIZED[made.resize](image, width, height)


def _crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scaled until 7/8 of the tighter side fit the size, then the centre: ImageNet's evaluation."""
    factor = max(Fraction(width, image.width), Fraction(height, image.height)) / CENTRE
    scaled = round(image.width * factor), round(image.height * factor)
    left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
    across, down = image.width / scaled[0], image.height / scaled[1]
    # Cropping first spares the memory of a panorama scaled as a whole.
    return _resampled(image, width, height, (left * across, top * down, (left + width) * across, (top + height) * down))


def _stretch(image: Image.Image, width: int, height: int) -> Image.Image:
    return _resampled(image, width, height, (0, 0, image.width, image.height))


def _resampled(image: Image.Image, width: int, height: int, box: tuple[float, float, float, float]) -> Image.Image:
    """A part of an image in another size: columns first, then rows, rounded to 8 bits after each.

    In one call Pillow chooses the order by the sizes, and not always the same in each of its versions.
    """
    left, top, right, bottom = box
    narrow = image.resize((width, image.height), Image.Resampling.BICUBIC, (left, 0, right, image.height))
    return narrow.resize((width, height), Image.Resampling.BICUBIC, (0, top, width, bottom))


def _refuse(image: Image.Image, width: int, height: int) -> Image.Image:
    raise DataError(
        f"the image is {image.height}x{image.width}, the model takes {height}x{width} (height x width). "
        "Let it be resized (--resize crop or --resize stretch), or give an image of that size."
    )


# Keys of preprocessing.RESIZES → to (width, height).
RESIZED: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "crop": _crop,
    "stretch": _stretch,
    "none": _refuse,
}

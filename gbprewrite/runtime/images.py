"""Photograph files: read, and brought to the size that a network takes (the numbers are `preprocessing.py`'s)."""

import os
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gbprewrite.errors import DataError
from gbprewrite.preprocessing import CENTRE, Preprocessing


def read(path: str | os.PathLike[str]) -> Image.Image:
    """An image file as an 8-bit image of mode L (grey files) or RGB.

    The EXIF orientation is applied. What is transparent becomes white. 16-bit grey is divided by 257. Of an animation
    the first frame is taken. Raises DataError for a file that can't be read, is no image, is cut short, holds more
    pixels than Pillow deems safe, or holds 32-bit values, which have no agreed range.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                return _eight_bits(ImageOps.exif_transpose(file), path)
    except UnidentifiedImageError:
        raise DataError(f"{path} is no image (PNG, JPEG, WebP, TIFF, ... are read). Give a photograph.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller first.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{path} can't be read: {reason}. Check the path, or save the image again.") from None
    except (SyntaxError, ValueError, EOFError) as error:  # Pillow's ways to report damaged chunks
        raise DataError(f"{path} is damaged, or of a kind that can't be converted: {error}. Save it again.") from None


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image, np.float64) / 257).astype(np.uint8))
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
    with resize "none" for an image of another size than the network's.
    """
    image = image.convert("L" if made.channels == 1 else "RGB")
    width, height = made.width or image.width, made.height or image.height
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

"""A photograph → the array that a network expects, with nothing guessed in silence: the numbers.

`images` reads and resizes files with Pillow; `graft.photographs` writes the same as operators into a model.

The value fed for a channel c of a pixel (0..255) is always

    (pixel · scale − mean[c]) / std[c]

so `mean` and `std` have the unit of pixel · scale, and stand in the order in which the channels are fed (blue first
with BGR). Presets are rows of `PRESETS`; every option overrides the part of the preset that it names.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gbprewrite.errors import DataError, UsageError
from gbprewrite.photos.evidence import Evidence
from gbprewrite.plaintext import cut

Array = npt.NDArray[Any]

LEAST_SPAN = 100  # of the integers that pixels become: fewer levels would round a photograph away
DEFAULT_SIZE = (224, 224)  # of models that take any size
# ImageNet classifiers are evaluated on the central 7/8 of the shorter side: 224 of 256 (Krizhevsky et al. 2012).
CENTRE = Fraction(7, 8)
LAYOUTS = ("auto", "nchw", "nhwc")
RESIZES = {
    "crop": "centre cropped to 7/8 of the shorter side unless it has that size (bicubic)",
    "stretch": "stretched to that size (bicubic)",
    "none": "not resized",
}
WRONG = "If the network was trained otherwise, the maps are wrong (--preset, --mean, --std, --scale, --bgr)"


class Preset(NamedTuple):
    """A customary preprocessing; mean and std in the order red, green, blue, or one number for all channels."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    text: str


PRESETS = {
    "imagenet": Preset(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False, "RGB as torchvision's networks"),
    "caffe": Preset(1.0, (123.0, 117.0, 104.0), (1.0,), True, "BGR, 0 to 255 minus 104, 117, 123"),
    "unit": Preset(1 / 255, (0.0,), (1.0,), False, "RGB, 0 to 1"),
}


@dataclass(frozen=True)
class Options:
    """What the caller says about the preprocessing; None is 'not said'.

    size is (height, width); mean and std hold one number or one for each channel as fed; resize is a key of `RESIZES`.
    """

    preset: str | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool | None = None
    size: tuple[int, int] | None = None
    layout: str = "auto"
    resize: str = "crop"


@dataclass(frozen=True)
class Preprocessing:
    """Everything that happens between a photograph and a network's input; made by `plan`.

    mean and std have one number for each channel, as fed. height and width are None when each image keeps its own.
    `guesses` are the decisions that neither the caller nor the model made, `facts` those that the model made. Maps have
    the layout of the input, unless they are of an inner tensor with a `map_layout` of its own.
    """

    height: int | None
    width: int | None
    channels: int
    layout: str
    dtype: np.dtype[Any]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    resize: str
    guesses: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    map_layout: str = ""

    def array(self, image: Any) -> Array:
        """An image that `images.fit` gave, uint8 [H,W] or [H,W,3], as the network's input: [1,C,H,W] or [1,H,W,C]."""
        pixels = np.asarray(image, np.float64)
        pixels = pixels.reshape(*pixels.shape[:2], self.channels)
        if self.bgr:
            pixels = pixels[:, :, ::-1]
        values = (pixels * self.scale - self.mean) / self.std
        values = values if self.dtype.kind not in "iu" else np.rint(values)
        return np.ascontiguousarray(values.transpose(_AXES[self.layout])[None], self.dtype)

    def channels_last(self, values: Array) -> Array:
        """A map shaped like the input without its batch axis → [H,W,C] with red first: the way back of `array`.

        A map of one channel may have another height and width, and its channel first in either layout (Grad-CAM).
        Raises DataError for a map that is no picture, which only an inner tensor's can be.
        """
        if values.ndim != 3:
            raise DataError(
                f"the map of one image has the shape {list(values.shape)}, which is no picture. Use 'gbprewrite run', "
                "or name a tensor of channels, height and width with --input NAME."
            )
        first = values.shape[0] == 1 != values.shape[2] and self.height != 1
        values = values.transpose(np.argsort(_AXES["nchw" if first else self.map_layout or self.layout]))
        return values[:, :, ::-1] if self.bgr else values

    def text(self) -> str:
        """One line: size, layout, channels, formula and the range of the values."""
        size = f"{self.height or 'any'}x{self.width or 'any'}"
        colour = "grey" if self.channels == 1 else "BGR" if self.bgr else "RGB"
        scaled = "pixel" if self.scale == 1 else f"pixel * {_ratio(self.scale)}"
        formula = f"{scaled} - {_listing(self.mean)}" if any(self.mean) else scaled
        if set(self.std) != {1}:
            formula = f"({formula}) / {_listing(self.std)}"
        ends = [(p * self.scale - m) / s for p in (0, 255) for m, s in zip(self.mean, self.std, strict=True)]
        values = f"values {min(ends):.3g} to {max(ends):.3g}"
        return f"{size} {self.layout.upper()} {colour}, {formula} ({values}), {RESIZES[self.resize]}"


_AXES = {"nchw": (2, 0, 1), "nhwc": (0, 1, 2)}


def plan(
    name: str,
    shape: Sequence[int | str] | None,
    dtype: npt.DTypeLike,
    options: Options | None = None,
    evidence: Evidence | None = None,
) -> Preprocessing:
    """Work out the preprocessing for the input `name` of a network: from what the caller says, else from what the
    model tells (`evidence.read`) and the input's shape, else by a guess.

    Raises UsageError when options contradict the input or each other or are needed to decide, and DataError when the
    input is no image.
    """
    options, evidence = options or Options(), evidence or Evidence()
    guesses: list[str] = []
    evidence = _of_integers(np.dtype(dtype), evidence)
    layout = _layout(name, shape, options.layout, evidence.layout)
    assert shape is not None
    dims = dict(zip(layout, shape, strict=True))
    channels = _channels(name, dims["c"] if _known(dims["c"]) else evidence.channels, guesses)
    height, width = _size(name, dims["h"], dims["w"], options, guesses)
    scale, mean, std, bgr = _values(channels, options, evidence, guesses)
    _check_integers(name, np.dtype(dtype), scale, mean, std)
    return Preprocessing(
        *(height, width, channels, layout, np.dtype(dtype), scale, mean, std, bgr, _resize(options.resize)),
        guesses=tuple(guesses),
        facts=evidence.facts,
    )


def _of_integers(dtype: np.dtype[Any], evidence: Evidence) -> Evidence:
    """An input of integers takes pixels as they are; signed bytes count them from -128."""
    if dtype.kind not in "iu":
        return evidence
    values = (1.0, 128.0, "-128 to 127") if dtype == np.int8 else (1.0, 0.0, "0 to 255")
    fact = f"its input holds {dtype} values, so pixels from {values[2]} are fed"
    return evidence._replace(values=values, facts=(*evidence.facts, fact))


def _check_integers(name: str, dtype: np.dtype[Any], scale: float, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise UsageError where pixels would become values that an input of integers can't hold."""
    if dtype.kind in "iu":
        ends = [(p * scale - m) / s for p in (0, 255) for m, s in zip(mean, std, strict=True)]
        limits = np.iinfo(dtype)
        if min(ends) < limits.min or max(ends) > limits.max or max(ends) - min(ends) < LEAST_SPAN:
            raise UsageError(
                f"the input {name!r} holds {dtype} values, {limits.min} to {limits.max}, and pixels would become "
                f"{min(ends):.3g} to {max(ends):.3g}. The model scales them itself: leave --preset, --scale, --mean "
                "and --std out."
            )


def _layout(name: str, shape: Sequence[int | str] | None, wanted: str, shown: str | None) -> str:
    """nchw or nhwc: what was asked for, or what the model shows, or where 1 or 3 sits."""
    if wanted not in LAYOUTS:
        raise UsageError(f"--layout {wanted}: choose from {', '.join(LAYOUTS)}.")
    if shape is None or len(shape) != 4:
        rank = "no known shape" if shape is None else f"the shape {_shape(shape)}"
        raise DataError(
            f"the input {name!r} has {rank}, which is no batch of images (N,C,H,W or N,H,W,C). Give its values as an "
            "array with 'gbprewrite run'."
        )
    if wanted != "auto":
        return wanted
    if shown is not None:
        return shown
    fitting = [layout for layout, axis in (("nchw", 1), ("nhwc", 3)) if shape[axis] in (1, 3)]
    if len(fitting) == 1:
        return fitting[0]
    if not fitting and all(isinstance(shape[axis], int) for axis in (1, 3)):
        raise DataError(
            f"the input {name!r} of shape {_shape(shape)} has neither 1 nor 3 channels, so it takes no photograph. "
            "Give its values as an array with 'gbprewrite run'."
        )
    why = "both N,C,H,W and N,H,W,C fit" if fitting else "neither axis 1 nor axis 3 is known to be 1 or 3"
    raise UsageError(
        f"the layout of the input {name!r} can't be told from its shape {_shape(shape)}: {why}. "
        "Say which with --layout nchw or --layout nhwc."
    )


def _channels(name: str, given: int | str | None, guesses: list[str]) -> int:
    if given is None:
        guesses.append(f"the input {name!r} does not say how many channels it takes: 3 assumed")
        return 3
    if given not in (1, 3):
        raise DataError(
            f"the input {name!r} takes {given} channels; a photograph has 1 (grey) or 3 (colour). If the layout was "
            "misread, use --layout; else give the values as an array with 'gbprewrite run'."
        )
    return int(given)


def _size(
    name: str, height: int | str, width: int | str, options: Options, guesses: list[str]
) -> tuple[int | None, int | None]:
    """(height, width): the model's where it is static, else --size, else each image's own or 224."""
    if options.size and min(options.size) < 1:
        raise UsageError(f"--size {options.size[0]}x{options.size[1]}: height and width must be at least 1.")
    static = [int(d) if _known(d) else None for d in (height, width)]
    if options.size and any(s not in (None, o) for s, o in zip(static, options.size, strict=True)):
        raise UsageError(
            f"--size {options.size[0]}x{options.size[1]}: the input {name!r} only takes {height}x{width} (height x "
            "width). Leave --size out."
        )
    own = (None, None) if options.resize == "none" else DEFAULT_SIZE
    wanted = options.size or own
    found = static[0] or wanted[0], static[1] or wanted[1]
    if None in static and wanted is DEFAULT_SIZE:
        guesses.append(f"the input {name!r} takes any size: {found[0]}x{found[1]} assumed (--size HEIGHTxWIDTH)")
    return found


def _values(
    channels: int, options: Options, evidence: Evidence, guesses: list[str]
) -> tuple[float, tuple[float, ...], tuple[float, ...], bool]:
    """(scale, mean, std, bgr): the preset's, overridden by what the caller says."""
    if options.preset is not None and options.preset not in PRESETS:
        raise UsageError(f"--preset {options.preset}: choose from {', '.join(PRESETS)}.")
    preset = _preset(channels, options, evidence, guesses)
    bgr = preset.bgr and channels == 3 if options.bgr is None else options.bgr
    if bgr and channels == 1:
        raise UsageError("--bgr: the model takes 1 channel (grey), which has no order. Leave --bgr out.")
    step = -1 if bgr else 1
    scale = preset.scale if options.scale is None else options.scale
    mean = _each("mean", preset.mean[::step] if options.mean is None else options.mean, channels)
    std = _each("std", preset.std[::step] if options.std is None else options.std, channels)
    if not scale or not all(std):
        raise UsageError("--scale and --std must not be 0.")
    if max(map(abs, mean)) > 255 * abs(scale) * (1 + 1e-6):
        raise UsageError(
            f"--mean {_listing(mean)}: outside of the values 0 to {255 * scale:g} that pixel * {_ratio(scale)} gives. "
            "The mean counts in these units; for means of 0..255 add --scale 1."
        )
    return scale, mean, std, bgr


def _preset(channels: int, options: Options, evidence: Evidence, guesses: list[str]) -> Preset:
    """What the caller's own numbers override: the preset asked for, else what the model tells, else a guess."""
    told = evidence.bgr if channels == 3 else False
    if options.preset:
        return PRESETS[options.preset]
    if any(v is not None for v in (options.scale, options.mean, options.std)):
        return PRESETS["unit"]._replace(bgr=bool(told))
    if evidence.values is not None:
        if told is None and options.bgr is None:
            guesses.append("the model does not tell the order of its channels: RGB assumed (--bgr)")
        scale, mean, text = evidence.values
        return Preset(scale, (mean,), (1.0,), bool(told), text)
    if evidence.preset is not None and channels == 3:
        guesses.extend(f"{why}. {WRONG}" for why in evidence.assumptions)
        return PRESETS[evidence.preset]
    base = "unit" if channels == 1 else "imagenet"
    guesses.append(f"nothing said about the values: preset {base} assumed. {WRONG}")
    return PRESETS[base]._replace(bgr=bool(told))


def _each(option: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for each channel."""
    if len(values) not in (1, channels):
        raise UsageError(
            f"--{option} {_listing(values)}: {len(values)} numbers, but the model takes {channels} channel(s). "
            "Give one number, or one for each channel."
        )
    return tuple(values) * (channels // len(values))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers separated by commas, fractions such as 1/255 among them. Raises UsageError."""
    try:
        return tuple(_number(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"--{option} {cut(text, 80)!r}: not numbers. Write for example 0.5 or 1/255, with commas between several: "
            "0.485,0.456,0.406."
        ) from None


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    parts = float(above), float(below) if slash else 1.0
    value = parts[0] / parts[1]
    if not all(map(math.isfinite, (*parts, value))):
        raise ValueError(text)
    return value


def number(option: str, text: str) -> float:
    """Read one number. Raises UsageError."""
    found = numbers(option, text)
    if len(found) != 1:
        raise UsageError(f"--{option} {cut(text, 80)!r}: one number, please, such as 0.5 or 1/255.")
    return found[0]


def size(text: str) -> tuple[int, int]:
    """Read a size: 224, or HEIGHTxWIDTH such as 48x192. Raises UsageError."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(re.fullmatch(r"\d{1,9}", p.strip()) for p in parts):
        raise UsageError(f"--size {cut(text, 80)!r}: not a size. Write 224, or HEIGHTxWIDTH such as 48x192.")
    return int(parts[0]), int(parts[-1])


def _resize(name: str) -> str:
    if name not in RESIZES:
        raise UsageError(f"--resize {name}: choose from {', '.join(RESIZES)}.")
    return name


def _known(dim: int | str) -> bool:
    return isinstance(dim, int) and dim > 0


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _ratio(value: float) -> str:
    """1/255 rather than 0.00392157."""
    fraction = Fraction(value).limit_denominator(1000)
    plain = fraction.denominator == 1 or abs(fraction - Fraction(value)) > 1e-12
    return f"{value:g}" if plain else f"{fraction}"


def _listing(values: Sequence[float]) -> str:
    """0.5, or (0.485, 0.456, 0.406) where the channels differ."""
    texts = [f"{v:g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"

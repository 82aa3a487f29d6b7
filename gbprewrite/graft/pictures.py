"""Maps as pictures, by ONNX operators: for services that have nothing but the runtime.

A *heatmap* is the largest channel of |map| (Simonyan et al. 2013, section 3.1), scaled to 0..1 or 0..255. An *overlay*
is that under a colour map over the grey photograph, the stronger the more opaque. `runtime/pictures.py` draws the same
with numpy.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.cotangents import Stacked
from gbprewrite.backward.units import Seeds
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model.tensors import HALF, Tensor, fixed, numpy_dtype, onnx_type
from gbprewrite.photos.preprocessing import Preprocessing
from gbprewrite.select.channels import channel_axes
from gbprewrite.select.selection import Selection

FORMS = ("raw", "heatmap", "overlay")
DTYPES = ("uint8", "float")
OPACITY = 0.9  # of the strongest values over a photograph
LUMA = (19595, 38470, 7471)  # of red, green and blue in 65536ths: ITU-R 601-2, as Pillow rounds it


class Settings(NamedTuple):
    """In which forms a map is given, and how heatmaps and overlays are made; see `gbprewrite.convert`."""

    forms: tuple[str, ...] = ("raw",)
    heatmap_dtype: str = "uint8"
    scaling: str = "percentile:99"
    colormap: str = "inferno"

    @property
    def percentile(self) -> float | None:
        """Of |map|, that is full strength; None where the smallest and the largest value make the scale."""
        return None if self.scaling == "minmax" else float(self.scaling.removeprefix("percentile:"))


def settings(given: Mapping[str, Any]) -> Settings:
    """The settings, checked. Raises UsageError for what does not exist, and for what no form asked for reads."""
    forms = (given["forms"],) if isinstance(given["forms"], str) else tuple(dict.fromkeys(given["forms"]))
    made = Settings(**{**given, "forms": forms})
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise UsageError(f"--as {', '.join(unknown) or 'is empty'}: choose from {', '.join(FORMS)}.")
    for name, users in (("heatmap_dtype", {"heatmap"}), ("scaling", {"heatmap", "overlay"}), ("colormap", {"overlay"})):
        if getattr(made, name) != Settings._field_defaults[name] and not users & set(forms):
            raise UsageError(
                f"--{name.replace('_', '-')} is for --as {' or '.join(sorted(users))}, which was not given."
            )
    if made.heatmap_dtype not in DTYPES:
        raise UsageError(f"--heatmap-dtype {made.heatmap_dtype}: choose {' or '.join(DTYPES)}.")
    if made.scaling != "minmax" and not _is_percentile(made.scaling):
        raise UsageError(
            f"--scaling {made.scaling}: choose minmax, or percentile:P with P above 0 and up to 100, such as "
            "percentile:99."
        )
    if "overlay" in forms:
        _table(made.colormap)
    return made


def _is_percentile(text: str) -> bool:
    prefix, _, number = text.partition(":")
    try:
        return prefix == "percentile" and 0 < float(number) <= 100
    except ValueError:
        return False


def _table(colormap: str) -> Any:
    """The 256 colours of a matplotlib colour map, float32 [256, 3], 0 to 255. Raises UsageError."""
    import matplotlib  # takes a third of a second, and the other forms do without

    if colormap not in matplotlib.colormaps:
        raise UsageError(
            f"--colormap {colormap}: matplotlib has no colour map of this name. Choose for example inferno, viridis or "
            "gray."
        )
    return matplotlib.colormaps[colormap].resampled(256)(np.arange(256), bytes=True)[:, :3].astype(np.float32)


def map_name(input: str, method: str, form: str) -> str:
    """The name of a graph output, without a prefix."""
    return f"{input}_{method}" if form == "raw" else f"{input}_{method}_{form}"


class Pictured(NamedTuple):
    """What a picture is made of: the map [N, (K,) ...], the axis of its channels without K, whether it has the axis K
    of classes, and the input of which it is, with what a photograph goes through on its way to it."""

    map: Tensor
    channel_axis: int
    many: bool
    input: Tensor
    preprocessing: Preprocessing | None


def heatmap(op: Builder, given: Pictured, told: Settings) -> Tensor:
    """[N, (K,) H, W]: uint8 0..255, or 0..1 of the map's dtype"""
    shares = _shares(op, given, told)
    if told.heatmap_dtype == "float":
        return op.cast_to(shares, given.map)
    return op.Cast(op.Round(op.Mul(_numbers(op, shares), 255.0)), to=TensorProto.UINT8)


def overlay(op: Builder, given: Pictured, told: Settings) -> Tensor:
    """uint8 [N, (K,) H, W, 3], red first"""
    shares, last = _numbers(op, _shares(op, given, told)), np.array([-1], np.int64)
    places = op.Cast(op.Round(op.Mul(shares, 255.0)), to=TensorProto.INT32)
    colours = op.cast_to(op.Gather(op.constant(_table(told.colormap)), places, axis=0), shares)
    opacity = op.Unsqueeze(op.Mul(shares, OPACITY), last)
    grey = op.Unsqueeze(op.cast_to(_grey(op, given), shares), last)
    if given.many:
        grey = op.Unsqueeze(grey, np.array([1], np.int64))
    mixed = op.Add(op.Mul(opacity, colours), op.Mul(op.Sub(1.0, opacity), grey))
    return op.Cast(op.Round(mixed), to=TensorProto.UINT8)


class Picture(NamedTuple):
    """How a form is made, and the axes that it has behind the positions."""

    formula: Callable[[Builder, Pictured, Settings], Tensor]
    last: tuple[int, ...] = ()


PICTURES = {"heatmap": Picture(heatmap), "overlay": Picture(overlay, (3,))}


class Pictures:
    """Makes graph outputs of maps, in every form."""

    def __init__(
        self, op: Builder, chosen: Selection, seeds: Seeds, told: Settings, preprocessing: Preprocessing | None
    ) -> None:
        """Of the chosen inputs. Raises ModelError where a form needs channels and positions and there are none."""
        self.op, self.many, self.told, self.preprocessing = op, seeds.many, told, preprocessing
        self._axes: dict[int, int] = {}
        for form in (f for f in told.forms if f != "raw"):
            for x in chosen.inputs:
                if len(x.shape) < 3 or (form == "overlay" and len(x.shape) != 4):
                    raise ModelError(
                        f"--as {form} needs maps of images, and the input {x.name!r} has shape {list(x.shape)}. Leave "
                        "--as out, or choose another --input."
                    )
            self._axes = {id(x): axis for x, axis in zip(chosen.inputs, channel_axes(chosen), strict=True)}

    def output(self, made: Stacked, x: Tensor, form: str, name: str) -> gs.Variable:
        """The maps of one input as a graph output in one form."""
        if form == "raw":
            return self.op.output(made.tensor, name, made.shape)
        axis, shape = self._axes[id(x)], list(made.shape)
        given = Pictured(
            self.op.shaped_like(made.tensor, gs.Variable("", shape=shape)), axis, self.many, x, self.preprocessing
        )
        self.op.enter(form)
        del shape[axis + self.many]
        picture = PICTURES[form]
        return self.op.output(picture.formula(self.op, given, self.told), name, [*shape, *picture.last])


def _shares(op: Builder, given: Pictured, told: Settings) -> Tensor:
    """The largest channel of |map|, as a share of full strength, 0 to 1, [N, (K,) H, W]."""
    axis = given.channel_axis + given.many
    sizes = op.ReduceMax(op.Abs(op.wide(given.map)), np.array([axis], np.int64), keepdims=0)
    lead = 1 + given.many
    rows = op.reshape(sizes, [*op.dims(sizes)[:lead], op.product(op.dims(sizes)[lead:])])
    last = np.array([lead], np.int64)
    most = op.ReduceMax(rows, last, keepdims=1)
    if told.percentile is None:
        least = op.ReduceMin(rows, last, keepdims=1)
        shares = op.Div(op.Sub(rows, least), _or_one(op, op.Sub(most, least)))
    else:
        limit = _percentile(op, rows, told.percentile / 100)
        limit = op.Where(op.Equal(limit, 0.0), most, limit)  # nearly all are zero
        shares = op.Min(op.Div(rows, _or_one(op, limit)), 1.0)
    return op.reshape_like(shares, sizes)


def _numbers(op: Builder, shares: Tensor) -> Tensor:
    """Nought in place of NaN, of which integers know nothing: a map of a class that does not exist."""
    return op.Where(op.IsNaN(shares), np.zeros((), numpy_dtype(shares)), shares)


def _or_one(op: Builder, v: Tensor) -> Tensor:
    return op.Where(op.Equal(v, 0.0), np.ones((), numpy_dtype(v)), v)


def _percentile(op: Builder, rows: Tensor, share: float) -> Tensor:
    """numpy.percentile of the last axis, kept with size 1: linear between the two values around (n - 1) · share."""
    axis = len(rows.shape) - 1
    size = op.dim(rows, axis)
    if fixed(size):
        place = share * (size - 1)
        below, weight = int(place), op.constant(np.array(place - int(place), numpy_dtype(rows)))
        above = op.vector([size - below])
    else:
        wanted = op.Mul(op.Cast(op.Sub(size, 1), to=TensorProto.DOUBLE), share)
        floor = op.Floor(wanted)
        weight = op.cast_to(op.Sub(wanted, floor), rows)
        above = op.Sub(size, op.Cast(floor, to=TensorProto.INT64))
    top = op.TopK(rows, above, outputs=2, axis=axis)[0]
    low = op.ReduceMin(top, np.array([axis], np.int64), keepdims=1)
    # The value before the last of the sorted ones; of a single one that one itself.
    second = op.Max(op.Sub(above, 2), np.array([0], np.int64))
    high = op.Gather(top, second, axis=axis)
    return op.Add(low, op.Mul(op.Sub(high, low), op.cast_to(weight, rows)))


def _grey(op: Builder, given: Pictured) -> Tensor:
    """The photograph that was fed, in grey, 0..255 [N, H, W]: the way back of the preprocessing, then Pillow's luma."""
    made, x = given.preprocessing, given.input
    assert made is not None
    values = op.Cast(x, to=TensorProto.FLOAT) if onnx_type(x) in (*HALF, TensorProto.DOUBLE) else x
    axis = 1 if made.layout == "nchw" else 3
    shape = [1 if a != axis else -1 for a in range(4)]
    std, mean = (np.array(v, np.float32).reshape(shape) for v in (made.std, made.mean))
    pixels = op.Clip(op.Round(op.Div(op.Add(op.Mul(values, std), mean), float(made.scale))), 0.0, 255.0)
    if made.channels == 1:
        return op.Squeeze(pixels, np.array([axis], np.int64))
    luma = np.array(LUMA[::-1] if made.bgr else LUMA, np.float32).reshape(shape)
    summed = op.ReduceSum(op.Mul(pixels, luma), np.array([axis], np.int64), keepdims=0)
    return op.Floor(op.Div(op.Add(summed, 32768.0), 65536.0))  # exact: below 2^24

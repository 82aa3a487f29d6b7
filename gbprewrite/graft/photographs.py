"""The preprocessing of photographs as the first nodes of a model: uint8 images in.

The nodes compute what `photos.images.fit` (Pillow) and `Preprocessing.array` (numpy) do. Pillow's resampling
(https://pillow.readthedocs.io/en/stable/handbook/concepts.html#filters-comparison-table) is two products with matrices
that are made from the image's size, each rounded to 8 bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from gbprewrite.backward.builder import Builder
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.graft import record as report
from gbprewrite.model.file import opset_of
from gbprewrite.model.messages import names_inside, put_nodes
from gbprewrite.model.tensors import Dim, Tensor, node_proto
from gbprewrite.photos.preprocessing import CENTRE, Options, Preprocessing

FLOAT = TensorProto.FLOAT
CUBIC = -0.5  # the parameter of Keys' cubic convolution that Pillow takes
MOST_PIXELS = 2**16  # of a side
PRECISION = 22  # bits of its weights behind the point


def embed(model: ModelProto, input: str, name: str, made: Preprocessing) -> dict[str, Any]:
    """Put the preprocessing of an input in front of a model, in place: it takes `name`, uint8 [N, height, width, C].

    The old input stays as an inner tensor under its name; `take_out` undoes all of it. Returns the row of the record.
    """
    place = next(i for i, v in enumerate(model.graph.input) if v.name == input)
    old = model.graph.input[place]
    image = gs.Variable(name, np.dtype(np.uint8), _image_shape(old, made))
    op = Builder(gs.Graph(inputs=[image]), opset_of(model), "")
    op.reserve(_names(model))
    op.enter("preprocess")
    values = _values(op, image, made)
    kind = old.type.tensor_type.elem_type
    if made.layout == "nhwc":
        values = op.Transpose(values, perm=[0, 2, 3, 1])
    op.nodes.append(
        gs.Node("Cast", op.unique(f"preprocess/{input}"), {"to": kind}, [values], [gs.Variable(input)])
    )  # also from float32 to float32: it gives the tensor its name
    constants = {t.name: t for node in op.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    put_nodes(model.graph, [*map(node_proto, op.nodes), *model.graph.node])
    model.graph.initializer.extend(numpy_helper.from_array(t.values, t.name) for t in constants.values())
    model.graph.value_info.append(old)
    model.graph.input[place].CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, image.shape))
    return {"input": input, "name": name, "nodes": len(op.nodes), "initializers": len(constants)}


def take_out(model: ModelProto) -> ModelProto:
    """A converted model without the preprocessing in front of it, in place; one without any comes back as it is."""
    record = report.read_record(model)
    if record is None or record["embedded"] is None:
        return model
    row, graph = record["embedded"], model.graph
    del graph.node[: row["nodes"]]
    del graph.initializer[len(graph.initializer) - row["initializers"] :]
    old = next(v for v in graph.value_info if v.name == row["input"])
    place = next(i for i, v in enumerate(graph.input) if v.name == row["name"])
    graph.input[place].CopyFrom(old)
    graph.value_info.remove(old)
    options = {**record["options"], "embed_preprocessing": False}
    told = record["preprocessing"]
    if "overlay" not in options["forms"]:  # nothing reads it any more
        options["preprocessing"] = told = None
    rest = {"embedded": None, "preprocessing": told, "options": options, "nodes": record["nodes"] - row["nodes"]}
    report.write_record(model, {**record, **rest})
    return model


def known(record: report.Record) -> Preprocessing | None:
    """The preprocessing that a converted file holds, None where it takes its network's own values."""
    return read(record["preprocessing"]) if record["embedded"] is not None else None


def agreed(record: report.Record | None, said: Options | None) -> Preprocessing | None:
    """The same, once nothing else is said. Raises UsageError where something is."""
    own = None if record is None else known(record)
    if own is not None and said not in (None, Options()):
        raise UsageError(
            f"the file has its preprocessing built in ({own.text()}), so that none can be given. Leave --preset, "
            "--mean and the like out, or give the source model."
        )
    return own


def facts(made: Preprocessing) -> dict[str, Any]:
    """The preprocessing in plain types, for a record."""
    return {**asdict(made), "dtype": str(made.dtype), "text": made.text()}


def read(told: Mapping[str, Any]) -> Preprocessing:
    """What `facts` gave. Raises ModelError for other things."""
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items() if k != "text"}
        made = Preprocessing(**{**fields, "dtype": np.dtype(fields["dtype"])})
        if made.text() == told["text"] and _makes_sense(made):  # text() reads every part
            return made
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise ModelError("the record of the file's preprocessing is damaged. Convert the source model again.")


def _makes_sense(made: Preprocessing) -> bool:
    sizes = [made.channels, *(n for n in (made.height, made.width) if n is not None)]
    return (
        all(isinstance(n, int) and 0 < n < MOST_PIXELS for n in sizes)
        and len(made.mean) == len(made.std) == made.channels
        and all(isinstance(n, (int, float)) for n in (made.scale, *made.mean, *made.std))
        and made.dtype.kind in "fiu"
    )


def _image_shape(old: ValueInfoProto, made: Preprocessing) -> list[int | str | None]:
    """[N, height, width, C] of the images: the network's batch, and any size where they are resized."""
    batch = report.value_row(old)["shape"][0]
    size = [made.height, made.width] if made.resize == "none" else [None, None]
    names = ("height", "width")
    return [batch if batch != "?" else "N", *(s or n for s, n in zip(size, names, strict=True)), made.channels]


def _names(model: ModelProto) -> set[str]:
    """Every name of a graph."""
    graph = model.graph
    tensors = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    return tensors | {v.name for v in (*graph.input, *graph.initializer)} | names_inside(graph)


def _values(op: Builder, image: Tensor, made: Preprocessing) -> Tensor:
    """(pixel · scale − mean) / std of the resized image, float32 [N, C, H, W] in the order that is fed."""
    pixels = op.Transpose(image, perm=[0, 3, 1, 2])
    pixels = op.Cast(pixels, to=FLOAT) if made.resize == "none" else _resized(op, pixels, made)
    if made.bgr:
        pixels = op.Gather(pixels, np.array([2, 1, 0], np.int64), axis=1)
    values = op.Mul(pixels, float(made.scale)) if made.scale != 1 else pixels
    mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (made.mean, made.std))
    values = op.Sub(values, mean) if mean.any() else values
    return op.Div(values, std) if (std != 1).any() else values


def _resized(op: Builder, pixels: Tensor, made: Preprocessing) -> Tensor:
    """Brought to the network's size as Pillow does it: columns first, then rows, rounded to 8 bits after each.

    In float64 the products and sums of 8-bit pixels and weights of `PRECISION` bits are exact.
    """
    assert made.height is not None
    assert made.width is not None
    given, wanted = (op.dim(pixels, 2), op.dim(pixels, 3)), (made.height, made.width)
    rows, columns = (
        _cubic(op, *side) for side in zip(given, _boxes(op, given, wanted, made.resize), wanted, strict=True)
    )
    narrow = _rounded(op, op.MatMul(op.Cast(pixels, to=TensorProto.DOUBLE), op.Transpose(columns, perm=[1, 0])))
    return op.Cast(_rounded(op, op.MatMul(rows, narrow)), to=FLOAT)


def _rounded(op: Builder, v: Tensor) -> Tensor:
    """To 8 bits, halves upwards."""
    return op.Clip(op.Floor(op.Add(v, 0.5)), 0.0, 255.0)


class Box(NamedTuple):
    """The part of one side of an image that is kept, in (fractions of) pixels: float32 [1], as Pillow takes them."""

    start: Tensor
    end: Tensor


def _boxes(op: Builder, given: Sequence[Dim], wanted: Sequence[int], resize: str) -> list[Box]:
    """Of height and width; the numbers of `images.RESIZED`.

    There they are fractions: here whole numbers below 2^53 and one division, which float64 rounds to the same.
    """
    sizes = [op.Cast(op.vector([size]), to=TensorProto.DOUBLE) for size in given]
    if resize == "stretch":
        return [Box(op.Cast(op.Mul(size, 0.0), to=FLOAT), op.Cast(size, to=FLOAT)) for size in sizes]
    # The scale is the larger of wanted / (7/8 given) of both sides.
    wide = op.GreaterOrEqual(op.Mul(sizes[0], float(wanted[1])), op.Mul(sizes[1], float(wanted[0])))
    whole = op.And(*(op.Equal(size, float(w)) for size, w in zip(sizes, wanted, strict=True)))
    boxes = []
    for side in range(2):
        scaled = op.Where(wide, *(_scaled(op, sizes[side], sizes[i], wanted[i]) for i in (1, 0)))
        before = op.Floor(op.Div(op.Sub(scaled, float(wanted[side])), 2.0))
        pixel = op.Div(sizes[side], scaled)  # pixels of the image for one of the scaled image
        start, end = op.Mul(before, pixel), op.Mul(op.Add(before, float(wanted[side])), pixel)
        start, end = op.Where(whole, op.Mul(sizes[side], 0.0), start), op.Where(whole, sizes[side], end)
        boxes.append(Box(op.Cast(start, to=FLOAT), op.Cast(end, to=FLOAT)))
    return boxes


def _scaled(op: Builder, size: Tensor, other: Tensor, wanted: int) -> Tensor:
    """The size of a side when 7/8 of some side are scaled to what is wanted of it."""
    whole = op.Div(op.Mul(size, float(wanted * CENTRE.denominator)), op.Mul(other, float(CENTRE.numerator)))
    return op.Round(whole)


def _cubic(op: Builder, size: Dim, box: Box, wanted: int) -> Tensor:
    """float64 [wanted, size]: cubic interpolation of a part of `size` pixels, smoothed where it is made smaller."""
    start, span = (op.Cast(v, to=TensorProto.DOUBLE) for v in (box.start, op.Sub(box.end, box.start)))
    scale = op.Div(span, float(wanted))
    places = op.Add(op.Cast(op.range(wanted), to=TensorProto.DOUBLE), 0.5)
    centres = op.Unsqueeze(op.Add(start, op.Mul(places, scale)), np.array([1], np.int64))
    apart = op.Add(op.Sub(op.Cast(op.range(size), to=TensorProto.DOUBLE), centres), 0.5)
    weights = _keys(op, op.Abs(op.Mul(apart, op.Reciprocal(op.Max(scale, 1.0)))))
    weights = op.Div(weights, op.ReduceSum(weights, np.array([1], np.int64), keepdims=1))
    return op.Div(op.Round(op.Mul(weights, 2.0**PRECISION)), 2.0**PRECISION)


def _keys(op: Builder, x: Tensor) -> Tensor:
    """The cubic convolution kernel of |x| (Keys 1981, equation 15)."""
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(x, CUBIC + 2), CUBIC + 3), x), x), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(x, 5.0), x), 8.0), x), 4.0), CUBIC)
    return op.Where(op.Less(x, 1.0), near, op.Where(op.Less(x, 2.0), far, op.Mul(x, 0.0)))

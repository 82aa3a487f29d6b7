"""ONNX's reference evaluator, with the operators corrected that version 1.23 gets wrong or lacks.

It is the yardstick of `gbprewrite verify` and of the tests: any model in float64, without a runtime. Each correction
says what it corrects and is held against onnxruntime in tests/test_reference.py; everything else is ONNX's own.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_grid_sample

from gbprewrite.model.messages import copied, graphs

Array = np.ndarray[Any, Any]


def evaluate(model: ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """Run a model; its outputs by name."""
    names = [o.name for o in model.graph.output]
    return dict(zip(names, evaluator(model).run(None, feeds), strict=True))


def evaluator(model: ModelProto) -> ReferenceEvaluator:
    """The corrected evaluator of a model; build it once where it runs often."""
    return ReferenceEvaluator(model, new_ops=CORRECTIONS)


def in_float64(model: ModelProto) -> ModelProto:
    """A copy in which every weight, input, output and cast of a smaller float type is float64.

    The scales of Resize and Upsample stay float32, as the standard has them.
    """
    wide = copied(model)
    every = list(graphs(wide.graph))
    nodes = [node for graph in every for node in graph.node]
    scales = {n.input[i] for n in nodes for i in _SCALES.get(n.op_type, ()) if i < len(n.input)}
    for graph in every:
        _widen(graph, scales)
    return wide


def _widen(graph: GraphProto, scales: set[str]) -> None:
    """Make one graph float64, in place, but for the values named in `scales`."""
    small = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for tensor in graph.initializer:
        if tensor.data_type in small and tensor.name not in scales:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type in small:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        if node.op_type == "LayerNormalization":  # its statistics stay float32 by its signature
            for value in graph.output:
                if value.name in node.output[1:]:
                    value.type.tensor_type.elem_type = TensorProto.FLOAT
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in small:
                attribute.i = TensorProto.DOUBLE
            if attribute.HasField("t") and attribute.t.data_type in small and node.output[0] not in scales:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float64)))
            if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = np.array(helper.get_attribute_value(attribute), np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))


_SCALES = {"Resize": (1, 2), "Upsample": (1,)}


def _same_pads(auto_pad: str, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, strides, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if auto_pad == "SAME_UPPER" else large + small


class _Window:
    """kernel, strides, dilations and pads of a windowed operator, with the standard's defaults."""

    def __init__(
        self, sizes: Sequence[int], kernel: Sequence[int], strides: Any, dilations: Any, pads: Any, auto_pad: str
    ) -> None:
        n = len(sizes)
        self.kernel, self.strides, self.dilations = list(kernel), list(strides or [1] * n), list(dilations or [1] * n)
        self.reach = [d * (k - 1) + 1 for k, d in zip(kernel, self.dilations, strict=True)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pads = _same_pads(auto_pad, sizes, self.reach, self.strides)
        elif auto_pad == "VALID" or not pads:
            pads = [0] * (2 * n)
        self.begin, self.end = list(pads[:n]), list(pads[n:])

    def outputs(self, sizes: Sequence[int], ceil_mode: int = 0) -> list[int]:
        """Number of windows along each axis; one that would start in the end padding does not count."""
        found = []
        for n, r, s, b, e in zip(sizes, self.reach, self.strides, self.begin, self.end, strict=True):
            count = (n + b + e - r) // s + 1 if not ceil_mode else -(-(n + b + e - r) // s) + 1
            found.append(count - 1 if ceil_mode and (count - 1) * s >= n + b else count)
        return found

    def taps(self, outputs: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
        """(position in the kernel, index of what it meets in the padded tensor) for every tap."""
        for tap in itertools.product(*map(range, self.kernel)):
            index = [
                slice(t * d, t * d + s * (o - 1) + 1, s)
                for t, d, s, o in zip(tap, self.dilations, self.strides, outputs, strict=True)
            ]
            yield tap, (Ellipsis, *index)

    def padded(self, x: Array, outputs: Sequence[int], value: float) -> Array:
        """x behind its begin padding, long enough for every window."""
        width = [(0, 0), (0, 0)]
        for n, r, s, b, o in zip(x.shape[2:], self.reach, self.strides, self.begin, outputs, strict=True):
            width.append((b, max(s * (o - 1) + r - n - b, 0)))
        return np.pad(x, width, constant_values=value)


class AffineGrid(OpRun):
    """float64: ONNX's computes its grid in float32."""

    def _run(self, theta, size, align_corners=0):  # type: ignore[no-untyped-def]
        axes = [np.linspace(-1, 1, s) if align_corners else (2 * np.arange(s) + 1) / s - 1 for s in size[2:]]
        grid = np.meshgrid(*axes, indexing="ij")[::-1]  # x, the last axis, comes first
        points = np.stack([*grid, np.ones(size[2:])], -1)
        y = points.reshape(1, -1, points.shape[-1]) @ theta.swapaxes(1, 2)
        return (y.reshape(theta.shape[0], *size[2:], theta.shape[1]).astype(theta.dtype),)


class Conv(OpRun):
    """Not wrong, but minutes long on a network; this one lets BLAS do the work."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, pads=None, strides=None
    ):
        n, c, *sizes = x.shape
        window = _Window(sizes, w.shape[2:], strides, dilations, pads, auto_pad)
        outputs = window.outputs(sizes)
        padded = window.padded(x, outputs, 0)
        filters = w.reshape(group, w.shape[0] // group, c // group, *w.shape[2:])
        y = np.zeros((n, group, w.shape[0] // group, math.prod(outputs)), x.dtype)
        for tap, index in window.taps(outputs):
            y += filters[(..., *tap)] @ padded[index].reshape(n, group, c // group, -1)
        y = y.reshape(n, w.shape[0], *outputs)
        return (y if b is None else y + b.reshape(-1, *[1] * len(sizes)),)


class ConvTranspose(OpRun):
    """Groups: ONNX's slices the weights by output channels, and fills one channel a group."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad="NOTSET", dilations=None, group=1, kernel_shape=None, output_padding=None,
        output_shape=None, pads=None, strides=None,
    ):  # fmt: skip
        n, c, *sizes = x.shape
        window = _Window(sizes, w.shape[2:], strides, dilations, pads if auto_pad == "NOTSET" else None, "NOTSET")
        extra = output_padding or [0] * len(sizes)
        full = [s * (o - 1) + r for s, o, r in zip(window.strides, sizes, window.reach, strict=True)]
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = output_shape or [o * s for o, s in zip(sizes, window.strides, strict=True)]
            extra = [max(e, t - f) for f, e, t in zip(full, extra, wanted, strict=True)]
            total = [f + e - t for f, e, t in zip(full, extra, wanted, strict=True)]
            window.begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            window.end = [t - a for t, a in zip(total, window.begin, strict=True)]
        filters = w.reshape(group, c // group, w.shape[1], *w.shape[2:])
        y = np.zeros((n, group * w.shape[1], *[f + e for f, e in zip(full, extra, strict=True)]), x.dtype)
        flat = x.reshape(n, group, c // group, -1)
        for tap, index in window.taps(sizes):
            y[index] += (filters[(..., *tap)].swapaxes(1, 2) @ flat).reshape(n, -1, *sizes)
        cut = tuple(slice(a, m - e) for m, a, e in zip(y.shape[2:], window.begin, window.end, strict=True))
        y = y[(slice(None), slice(None), *cut)]
        return (y if b is None else y + b.reshape(-1, *[1] * len(sizes)),)


class MaxPool(OpRun):
    """SAME_LOWER pads, storage_order, and dilated windows' indices."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, auto_pad="NOTSET", ceil_mode=0, dilations=None, kernel_shape=None, pads=None, storage_order=0,
        strides=None,
    ):  # fmt: skip
        n, c, *sizes = x.shape
        window = _Window(sizes, kernel_shape, strides, dilations, pads, auto_pad)
        outputs = window.outputs(sizes, ceil_mode)
        lowest = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf  # numpy has bfloat16 as "V"
        padded = window.padded(x, outputs, lowest)
        places = np.arange(n * c * math.prod(sizes)).reshape(n, c, *sizes)
        if storage_order:
            places = np.arange(places.size).reshape(n, c, *sizes[::-1]).transpose(0, 1, *range(1 + len(sizes), 1, -1))
        placed = window.padded(places, outputs, -1)
        taps = [index for _, index in window.taps(outputs)]
        values = np.stack([padded[i] for i in taps])
        # A padded position never wins, not even against -inf.
        inside = np.stack([placed[i] for i in taps])
        first = (values if x.dtype.kind in "iu" else np.where(inside >= 0, values, -np.inf)).argmax(0)[None]
        y = np.take_along_axis(values, first, 0)[0]
        if len(self.onnx_node.output) < 2:
            return (y,)
        return y, np.take_along_axis(inside, first, 0)[0].astype(np.int64)


class GlobalMaxPool(OpRun):
    """Ranks other than 4."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """Missing."""

    def _run(self, x, p=2):  # type: ignore[no-untyped-def]
        return ((np.abs(x) ** p).sum(tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class GroupNormalization(OpRun):
    """float64: its body goes through float32 (opset 21, where scale and bias are given for each channel)."""

    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=None, stash_type=1):  # type: ignore[no-untyped-def]
        groups = x.reshape(x.shape[0], num_groups, -1)
        centred = groups - groups.mean(2, keepdims=True)
        z = (centred / np.sqrt((centred**2).mean(2, keepdims=True) + epsilon)).reshape(x.shape)
        per_channel = [-1] + [1] * (x.ndim - 2)
        return (z * scale.reshape(per_channel) + bias.reshape(per_channel),)


class HardSigmoid(OpRun):
    """A slope so steep that it overflows means a step, and is no reason for a warning."""

    def _run(self, x, alpha=0.2, beta=0.5):  # type: ignore[no-untyped-def]
        with np.errstate(over="ignore"):
            return (np.clip(alpha * x + beta, 0, 1).astype(x.dtype),)


class LRN(OpRun):
    """ONNX's loops over the batch where it means the channels, and knows rank 4 only."""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):  # type: ignore[no-untyped-def]
        before = (size - 1) // 2
        square = np.pad(x * x, [(0, 0), (before, size - 1 - before)] + [(0, 0)] * (x.ndim - 2))
        total = sum(square[:, i : i + x.shape[1]] for i in range(size))
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


class LpNormalization(OpRun):
    """p = 1 of negative values."""

    def _run(self, x, axis=-1, p=2):  # type: ignore[no-untyped-def]
        norm = (np.abs(x) ** p).sum(axis, keepdims=True) ** (1 / p)
        return (np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class Erf(OpRun):
    """float64: ONNX's goes through float32."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype),)


class Gelu(OpRun):
    """float64: its function body has an Erf of its own."""

    def _run(self, x, approximate="none"):  # type: ignore[no-untyped-def]
        if approximate == "tanh":
            return (x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return ((x / 2 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))).astype(x.dtype),)


class GatherElements(OpRun):
    """Indices that are fewer than the data along other axes too."""

    def _run(self, x, indices, axis=0):  # type: ignore[no-untyped-def]
        part = x[tuple(slice(None) if a == axis % x.ndim else slice(n) for a, n in enumerate(indices.shape))]
        return (np.take_along_axis(part, indices, axis),)


class GridSample(op_grid_sample.GridSample):
    """float64: ONNX's turns its coordinates into float32."""

    def _gs_denormalize_coordinates(self, n, dims, align_corners):  # type: ignore[no-untyped-def]
        return np.array([self._gs_denormalize(v, d, align_corners) for v, d in zip(n, dims, strict=False)])


class DeformConv(OpRun):
    """float64: ONNX's reads through its GridSample."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, offset, b=None, mask=None, dilations=None, group=1, kernel_shape=None, offset_group=1, pads=None,
        strides=None,
    ):  # fmt: skip
        n, c, *sizes = x.shape
        window = _Window(sizes, w.shape[2:], strides, dilations, pads, "NOTSET")
        outputs = list(offset.shape[2:])
        offset = offset.reshape(n, offset_group, *window.kernel, 2, *outputs)
        weight = np.ones((n, offset_group, *window.kernel, *outputs)) if mask is None else mask
        weight = weight.reshape(n, offset_group, *window.kernel, *outputs)
        y = np.zeros((n, w.shape[0], *outputs), x.dtype)
        for tap in itertools.product(*map(range, window.kernel)):
            moved = []  # where this tap reads, for every offset group
            for axis in range(2):
                still = np.arange(outputs[axis]) * window.strides[axis] - window.begin[axis]
                still += tap[axis] * window.dilations[axis]
                moved.append(
                    offset[(slice(None), slice(None), *tap, axis)] + still.reshape((-1, 1) if axis == 0 else -1)
                )
            for channel in range(c):
                which = channel * offset_group // c
                read = self._bilinear(x[:, channel], moved[0][:, which], moved[1][:, which])
                read = read * weight[(slice(None), which, *tap)]
                per_group = w.shape[0] // group
                mine = channel * group // c
                for out in range(mine * per_group, (mine + 1) * per_group):
                    y[:, out] += w[(out, channel % w.shape[1], *tap)] * read
        return (y if b is None else y + b.reshape(-1, 1, 1),)

    @staticmethod
    def _bilinear(x: Array, rows: Array, columns: Array) -> Array:
        """x [N, H, W] at positions [N, ...]; zeros outside."""
        padded = np.pad(x, [(0, 0), (1, 1), (1, 1)])
        r, c = (np.clip(v + 1, 0, s - 1) for v, s in zip((rows, columns), padded.shape[1:], strict=True))
        r0, c0 = (np.minimum(np.floor(v).astype(int), s - 2) for v, s in zip((r, c), padded.shape[1:], strict=True))
        image = np.arange(len(x)).reshape(-1, *[1] * (rows.ndim - 1))
        total = np.zeros(rows.shape)
        for i, j in itertools.product((0, 1), (0, 1)):
            share = np.abs(1 - i - (r - r0)) * np.abs(1 - j - (c - c0))
            total += share * padded[image, r0 + i, c0 + j]
        return total


class Pad(OpRun):
    """Negative widths, which cut."""

    def _run(self, x, pads=None, constant_value=None, axes=None, mode="constant", value=0.0):  # type: ignore[no-untyped-def]
        widths = np.zeros((x.ndim, 2), np.int64)
        over = range(x.ndim) if axes is None else axes
        for axis, width in zip(over, np.asarray(pads).reshape(2, -1).T, strict=True):
            widths[axis] = width
        cut = tuple(slice(max(-b, 0), n - max(-e, 0)) for n, (b, e) in zip(x.shape, widths.tolist(), strict=True))
        grown = np.maximum(widths, 0)
        if mode != "constant":
            return (np.pad(x[cut], grown, mode=mode),)
        fill = value if constant_value is None else np.asarray(constant_value).item()
        return (np.pad(x[cut], grown, constant_values=fill),)


class _Coerced(OpRun):
    """Until opset 13 the input is one matrix, all axes from `axis` on in a row."""

    def rows(self, x: Array) -> tuple[Array, int]:
        """The input as the operator of this opset reads it, and the axis to work on."""
        given = {a.name: a.i for a in self.onnx_node.attribute}  # OpRun knows the newest default only
        if self.run_params["opsets"][""] >= 13:
            return x, given.get("axis", -1)
        axis = given.get("axis", 1) % x.ndim
        return x.reshape(math.prod(x.shape[:axis]), -1), 1


class Softmax(_Coerced):
    """Opsets before 13."""

    def _run(self, x, axis=None):  # type: ignore[no-untyped-def]
        rows, over = self.rows(x)
        grown = np.exp(rows - rows.max(over, keepdims=True))
        return ((grown / grown.sum(over, keepdims=True)).reshape(x.shape).astype(x.dtype),)


class LogSoftmax(_Coerced):
    """Opsets before 13."""

    def _run(self, x, axis=None):  # type: ignore[no-untyped-def]
        rows, over = self.rows(x)
        shifted = rows - rows.max(over, keepdims=True)
        return ((shifted - np.log(np.exp(shifted).sum(over, keepdims=True))).reshape(x.shape).astype(x.dtype),)


def _bins(count: int, start: int, end: int, size: int) -> list[slice]:
    """The places of each bin of a region along one axis, both ends of it included; bins may overlap."""
    length = max(end - start + 1, 1) / count
    low = [start + math.floor(i * length) for i in range(count)]
    high = [start + math.ceil((i + 1) * length) for i in range(count)]
    return [slice(max(a, 0), max(min(b, size), 0)) for a, b in zip(low, high, strict=True)]


class MaxRoiPool(OpRun):
    """ONNX 1.23 has none."""

    def _run(self, x, rois, pooled_shape=None, spatial_scale=1.0):  # type: ignore[no-untyped-def]
        y = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
        for r, (image, *corners) in enumerate(rois):
            left, top, right, bottom = (int(np.copysign(np.floor(abs(v * spatial_scale) + 0.5), v)) for v in corners)
            rows, columns = (
                _bins(*region) for region in zip(pooled_shape, (top, left), (bottom, right), x.shape[2:], strict=True)
            )
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
                window = x[int(image), :, row, column].reshape(x.shape[1], -1)
                y[r, :, i, j] = window.max(1) if window.size else 0
        return (y,)


CORRECTIONS = [
    AffineGrid,
    Conv,
    ConvTranspose,
    DeformConv,
    Erf,
    GatherElements,
    Gelu,
    GlobalLpPool,
    GlobalMaxPool,
    GridSample,
    GroupNormalization,
    HardSigmoid,
    LRN,
    LogSoftmax,
    LpNormalization,
    MaxPool,
    MaxRoiPool,
    Pad,
    Softmax,
]

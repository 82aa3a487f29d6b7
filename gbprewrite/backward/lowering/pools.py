"""Adjoints of max and average pooling."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.convolutions import CONV_INPUT_GRAD
from gbprewrite.backward.lowering.table import Lowerings
from gbprewrite.backward.lowering.unpooling import comparison, open_comparison
from gbprewrite.backward.lowering.windows import Window, conv_transpose, window_of
from gbprewrite.model import bounds
from gbprewrite.model.bounds import check_constant
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype


def unpool(op: Builder, dy: Tensor, x: Tensor, y: Tensor, *, storage_order: int = 0, **attributes: Any) -> Tensor:
    """dx[switch] += dy of y = MaxPool(x), whose attributes these are."""
    window = window_of(op, x, **{k: v for k, v in attributes.items() if k != "ceil_mode"})
    return UNPOOL(op, dy, x, y, window, attributes)


def switches(op: Builder, dy: Tensor, x: Tensor, y: Tensor, window: Window, attributes: Mapping[str, Any]) -> Tensor:
    """The Indices of a second MaxPool, and one scatter for each plane.

    MaxUnpool would overwrite where windows overlap. The switches come from a MaxPool of their own: asking the forward
    one for Indices would take it out of onnxruntime's fast layout. Indices count through the whole tensor, Mod brings
    them back to their plane, which keeps every node on CUDA and lets the CPU work on planes in parallel. It also suits
    runtimes whose indices begin anew with each image, as OpenCV's.
    """
    indices = op.MaxPool(x, outputs=2, **attributes)[1]
    plane, windows = op.product(op.dims(x)[2:]), op.product(op.dims(dy)[2:])
    rows = _planes(op, x, plane)
    index = op.Mod(_planes(op, indices, windows), op.vector([plane]))
    nothing = op.filled(op.shape_of(rows), 0, dy)
    return op.reshape_like(op.scatter_add(nothing, index, _planes(op, dy, windows), axis=1), x)


UNPOOL = Lowerings("unpool", comparison, open_comparison, switches)


def _planes(op: Builder, v: Tensor, size: Dim) -> Tensor:
    n, c = v.shape[:2]
    if fixed(n) and fixed(c):
        return op.reshape(v, [n * c, size])
    return op.declare(op.Reshape(v, op.vector([-1, size])), [None, size if fixed(size) else None])


def average_pool_grad(
    op: Builder, dy: Tensor, x: Tensor, *, count_include_pad: int, ceil_mode: int = 0, **attributes: Any
) -> Tensor:
    """Every window spreads dy / count over the elements it counted."""
    window = window_of(op, x, **attributes)
    if window.symmetric and not any(window.begin) and window.reach == list(x.shape[2:]) == list(window.kernel):
        return op.expand_like(op.Div(dy, float(np.prod(window.kernel))), x)  # one window that sees everything
    return AVERAGE_POOL_GRAD(op, dy, x, window, bool(count_include_pad))


def repetition(op: Builder, dy: Tensor, x: Tensor, window: Window, with_pads: bool) -> Tensor | None:
    """Each share repeated over its window, by a Resize.

    Where: the windows lie side by side and leave nothing out, so that each place gets one share of one window.
    Why: repeating is exact in Resize, and onnxruntime does it in its blocked layout.
    """
    if not _tiles(dy, x, window):
        return None
    share = op.Div(dy, float(np.prod(window.kernel)))
    scales = np.array([1, 1, *window.kernel], np.float32)
    modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return op.shaped_like(op.Resize(share, None, scales, **modes), x)


def shares(op: Builder, dy: Tensor, x: Tensor, window: Window, with_pads: bool) -> Tensor:
    """The sum over the windows that cover a place of their shares, a transposed convolution with ones."""
    counts = _counts(op, dy, x, window, with_pads)
    if isinstance(counts, np.ndarray):
        counts = counts.astype(numpy_dtype(dy))
    return _window_sum(op, op.Div(dy, counts), x, window)


AVERAGE_POOL_GRAD = Lowerings("average_pool_grad", repetition, shares)


def _tiles(dy: Tensor, x: Tensor, window: Window) -> bool:
    """Whether the windows lie side by side and leave nothing out."""
    if len(window.kernel) != 2 or window.kernel != window.strides or set(window.dilations) != {1}:
        return False
    if not all(map(fixed, [*dy.shape[2:], *x.shape[2:], *window.begin, *window.end])):
        return False
    return all(s == k * o for s, k, o in zip(x.shape[2:], window.kernel, dy.shape[2:], strict=True))


def window_sum_grad(op: Builder, dy: Tensor, x: Tensor, *, ceil_mode: int = 0, **attributes: Any) -> Tensor:
    """Adjoint of the sum over windows."""
    return _window_sum(op, dy, x, window_of(op, x, **attributes))


def _window_sum(op: Builder, v: Tensor, x: Tensor, window: Window) -> Tensor:
    """A transposed depthwise convolution with ones."""
    channels = x.shape[1]
    check_constant((channels if fixed(channels) else 1) * math.prod(window.kernel), "a window of ones")
    if fixed(channels):
        ones = op.constant(np.ones([channels, 1, *window.kernel], numpy_dtype(v)))
        return op.shaped_like(CONV_INPUT_GRAD(op, v, x, ones, window, channels), x)
    one = op.constant(np.ones([1, 1, *window.kernel], numpy_dtype(v)))
    planes = op.Reshape(v, op.vector([-1, 1, *op.dims(v)[2:]]))
    op.declare(planes, [None, 1, *v.shape[2:]])
    return op.reshape_like(conv_transpose(op, planes, one, window, op.dims(x)[2:], 1), x)


def _counts(op: Builder, dy: Tensor, x: Tensor, window: Window, with_pads: bool) -> Any:
    """Elements counted by each window: the outer product of the counts along each axis."""
    total: Any = None
    for axis in range(len(window.kernel)):
        count = _counts_along(op, dy, x, window, with_pads, axis)
        if total is None:
            total = count
        elif _are_small(total, count):
            total = total * count
        else:
            total, count = (v.astype(numpy_dtype(dy)) if isinstance(v, np.ndarray) else v for v in (total, count))
            total = op.Mul(total, count)
    return total


def _counts_along(op: Builder, dy: Tensor, x: Tensor, window: Window, with_pads: bool, axis: int) -> Any:
    """The same along one axis, an array where all is known, else a tensor; in a shape that broadcasts."""
    size, outputs = op.dim(x, axis + 2), op.dim(dy, axis + 2)
    begin, end = window.begin[axis], window.end[axis]
    kernel, dilation = window.kernel[axis], window.dilations[axis]
    shape = [1, 1] + [-1 if a == axis else 1 for a in range(len(window.kernel))]
    if all(map(fixed, (size, outputs, begin, end))):
        check_constant(outputs, "what each window counts, a list")
        starts: Any = np.arange(outputs) * window.strides[axis] - begin
        low, high = (-begin, size + end) if with_pads else (0, size)
        before, within = (np.clip(-((starts - edge) // dilation), 0, kernel) for edge in (low, high))
        return (within - before).reshape(shape)
    check_constant(kernel, "the steps of its window, a list")
    offsets = np.arange(kernel) * dilation
    starts = op.Sub(op.Mul(op.range(outputs), window.strides[axis]), op.vector([begin]))
    at = op.Add(op.Unsqueeze(starts, np.array([1])), offsets.astype(np.int64))
    low = op.vector([op.calc("Sub", 0, begin)]) if with_pads else np.array([0])
    high = op.vector([op.calc("Add", size, end) if with_pads else size])
    inside = op.And(op.GreaterOrEqual(at, low), op.Less(at, high))
    summed = op.ReduceSum(op.cast_to(inside, dy), np.array([1]), keepdims=0)
    return op.Reshape(summed, np.array(shape, np.int64))


def _are_small(a: Any, b: Any) -> bool:
    """Whether both are arrays whose product may be written into the file."""
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.size * b.size <= bounds.CONSTANT

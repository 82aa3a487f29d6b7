"""Adjoints of max and average pooling, in the spelling that is asked for."""

import math
from typing import Any

import numpy as np

from gbprewrite.backward.lowering import unpooling
from gbprewrite.backward.lowering.convolutions import Convolutions
from gbprewrite.backward.lowering.windows import Window
from gbprewrite.model import bounds
from gbprewrite.model.bounds import check_constant
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype


class Pools(Convolutions):
    """Unpooling, and shares of averages."""

    def unpool(self, dy: Tensor, x: Tensor, y: Tensor, *, kernel_shape: Any, **window: Any) -> Tensor:
        """dx[switch] += dy: by comparison with the maxima, or by the Indices of a second MaxPool."""
        taken = {k: v for k, v in window.items() if k not in ("ceil_mode", "storage_order")}
        made = self.window(x, kernel_shape, **taken)
        if self.spelling.comparisons and unpooling.applies(self, dy, x, made):
            return unpooling.unpool(self, dy, x, y, made, window.get("ceil_mode") or 0)
        return self._unpool_by_switches(dy, x, kernel_shape=kernel_shape, **window)

    def _unpool_by_switches(self, dy: Tensor, x: Tensor, *, storage_order: int = 0, **window: Any) -> Tensor:
        """One scatter for each plane.

        MaxUnpool would overwrite where windows overlap. The switches come from a MaxPool of their own: asking the
        forward one for Indices would take it out of onnxruntime's fast layout. Indices count through the whole tensor,
        Mod brings them back to their plane, which keeps every node on CUDA and lets the CPU work on planes in parallel.
        """
        switches = self.MaxPool(x, outputs=2, **window)[1]
        plane, windows = self.product(self.dims(x)[2:]), self.product(self.dims(dy)[2:])
        rows = self._planes(x, plane)
        index = self.Mod(self._planes(switches, windows), self.vector([plane]))
        nothing = self.filled(self.shape_of(rows), 0, dy)
        return self.reshape_like(self.scatter_add(nothing, index, self._planes(dy, windows), axis=1), x)

    def _planes(self, v: Tensor, size: Dim) -> Tensor:
        n, c = v.shape[:2]
        if fixed(n) and fixed(c):
            return self.reshape(v, [n * c, size])
        made = self.Reshape(v, self.vector([-1, size]))
        made.shape = [None, size if fixed(size) else None]
        return made

    def average_pool_grad(
        self, dy: Tensor, x: Tensor, *, count_include_pad: int, ceil_mode: int = 0, kernel_shape: Any,
        **window: Any,
    ) -> Tensor:  # fmt: skip
        """Every window spreads dy / count over the elements it counted."""
        made = self.window(x, kernel_shape, **window)
        if made.symmetric and not any(made.begin) and made.reach == list(x.shape[2:]) == list(made.kernel):
            return self.expand_like(self.Div(dy, float(np.prod(made.kernel))), x)  # one window that sees everything
        if self.spelling.convolutions and self._tiles(dy, x, made):
            share = self.Div(dy, float(np.prod(made.kernel)))
            scales = np.array([1, 1, *made.kernel], np.float32)
            modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
            return self.shaped_like(self.Resize(share, None, scales, **modes), x)
        counts = self._counts(dy, x, made, bool(count_include_pad))
        if isinstance(counts, np.ndarray):
            counts = counts.astype(numpy_dtype(dy))
        return self._window_sum(self.Div(dy, counts), x, made)

    @staticmethod
    def _tiles(dy: Tensor, x: Tensor, window: Window) -> bool:
        """Whether the windows lie side by side and leave nothing out, so that each place gets one share of one window.

        Repeating is exact in Resize, and onnxruntime does it in its blocked layout.
        """
        plain = len(window.kernel) == 2 and window.kernel == window.strides and set(window.dilations) == {1}
        known = all(map(fixed, [*dy.shape[2:], *x.shape[2:], *window.begin, *window.end]))
        return (
            plain
            and known
            and all(s == k * o for s, k, o in zip(x.shape[2:], window.kernel, dy.shape[2:], strict=True))
        )

    def window_sum_grad(self, dy: Tensor, x: Tensor, *, ceil_mode: int = 0, kernel_shape: Any, **window: Any) -> Tensor:
        """Adjoint of the sum over windows."""
        return self._window_sum(dy, x, self.window(x, kernel_shape, **window))

    def _window_sum(self, v: Tensor, x: Tensor, window: Window) -> Tensor:
        """A transposed depthwise convolution with ones."""
        channels = x.shape[1]
        check_constant((channels if fixed(channels) else 1) * math.prod(window.kernel), "a window of ones")
        if fixed(channels):
            ones = self.constant(np.ones([channels, 1, *window.kernel], numpy_dtype(v)))
            made = self._as_convs(v, x, ones, window, channels)
            if made is None:
                made = self.transposed(v, ones, window, self.dims(x)[2:], channels)
            return self.shaped_like(made, x)
        ones = np.ones([1, 1, *window.kernel], numpy_dtype(v))
        planes = self.Reshape(v, self.vector([-1, 1, *self.dims(v)[2:]]))
        planes.shape = [None, 1, *v.shape[2:]]
        return self.reshape_like(self.transposed(planes, self.constant(ones), window, self.dims(x)[2:], 1), x)

    def _counts(self, dy: Tensor, x: Tensor, window: Window, with_pads: bool) -> Any:
        """Elements counted by each window: the outer product of the counts along each axis."""
        total: Any = None
        n = len(window.kernel)
        for axis in range(n):
            size, outputs = self.dim(x, axis + 2), self.dim(dy, axis + 2)
            begin, end = window.begin[axis], window.end[axis]
            kernel, dilation = window.kernel[axis], window.dilations[axis]
            shape = [1, 1] + [-1 if a == axis else 1 for a in range(n)]
            if all(map(fixed, (size, outputs, begin, end))):
                check_constant(outputs, "what each window counts, a list")
                starts: Any = np.arange(outputs) * window.strides[axis] - begin
                low, high = (-begin, size + end) if with_pads else (0, size)
                before, within = (np.clip(-((starts - edge) // dilation), 0, kernel) for edge in (low, high))
                count: Any = (within - before).reshape(shape)
            else:
                check_constant(kernel, "the steps of its window, a list")
                offsets = np.arange(kernel) * dilation
                starts = self.Sub(self.Mul(self.range(outputs), window.strides[axis]), self.vector([begin]))
                at = self.Add(self.Unsqueeze(starts, np.array([1])), offsets.astype(np.int64))
                low = self.vector([self.calc("Sub", 0, begin)]) if with_pads else np.array([0])
                high = self.vector([self.calc("Add", size, end) if with_pads else size])
                inside = self.And(self.GreaterOrEqual(at, low), self.Less(at, high))
                summed = self.ReduceSum(self.cast_to(inside, dy), np.array([1]), keepdims=0)
                count = self.Reshape(summed, np.array(shape, np.int64))
            if total is None:
                total = count
            elif _are_small(total, count):
                total = total * count
            else:
                total, count = (self._number(v, dy) for v in (total, count))
                total = self.Mul(total, count)
        return total

    def _number(self, v: Any, like: Tensor) -> Any:
        return v.astype(numpy_dtype(like)) if isinstance(v, np.ndarray) else v


def _are_small(a: Any, b: Any) -> bool:
    """Whether both are arrays whose product may be written into the file."""
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.size * b.size <= bounds.CONSTANT

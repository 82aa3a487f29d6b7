"""Switch-unpooling by comparison, one axis at a time: dx[switch] += dy without a MaxPool that returns Indices.

The maximum of a window is the maximum, along one axis, of the maxima along the others. So its first place in row order
is found axis by axis: the first row whose maximum is the window's, then the first column in that row. A cotangent goes
back in the same steps, and each is a handful of whole-tensor products, where scatter and Indices go element by element.

Channels come last, so that every strided slice moves whole runs of numbers. A step along one axis sees its tensors as
[outer, length, inner]; these reshapes also keep onnxruntime's optimiser from moving the transpositions inwards.

Heights and widths may be open. Then lengths are computed when the model runs, so that all shares of a cotangent are
padded by numbers, to one length that reaches over both ends of x, and cut once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.windows import Window
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype


class Axis(NamedTuple):
    """One axis of a pool: its window, its lengths before and after pooling, and the size of what lies behind it."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    end: int
    length: Dim
    outputs: Dim
    inner: Dim

    @property
    def reach(self) -> int:
        """Length that the dilated kernel covers."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def places(self) -> list[tuple[int, int]]:
        """(row, phase) of each element of the window that stands at output 0: it sees x at stride · row + phase."""
        return [divmod(step * self.dilation - self.begin, self.stride) for step in range(self.kernel)]


def comparison(
    op: Builder, dy: Tensor, x: Tensor, y: Tensor, window: Window, attributes: Mapping[str, Any]
) -> Tensor | None:
    """Comparisons with the maxima; ties fall to the first maximum in row order, as in PyTorch.

    Where: channels, padding and lengths are known, and neither window nor stride is long: each of their steps gets
    nodes of its own.
    Why: onnxruntime's CPU takes 26 times as long for a MaxPool with Indices, and scatters one number after the other.
    On CUDA, Indices count ties by columns (and were wrong where a dilated window has padding in front of it, see
    https://github.com/microsoft/onnxruntime/issues/29637), and scattering adds in any order; comparisons give the CPU's
    maps, the same each time.
    """
    return _compared(op, dy, x, y, window, attributes) if _known(dy.shape, x.shape) else None


def open_comparison(
    op: Builder, dy: Tensor, x: Tensor, y: Tensor, window: Window, attributes: Mapping[str, Any]
) -> Tensor | None:
    """The same where heights and widths are open.

    Where: as for `comparison`, but for the lengths.
    Why: as there, on the CPU. On CUDA the arithmetic of lengths would leave the device.
    """
    return _compared(op, dy, x, y, window, attributes)


def _known(*shapes: Sequence[Any] | None) -> bool:
    """Whether the lengths along all axes of positions are known."""
    return all(shape is not None and all(map(fixed, shape[2:])) for shape in shapes)


def _compared(
    op: Builder, dy: Tensor, x: Tensor, y: Tensor, window: Window, attributes: Mapping[str, Any]
) -> Tensor | None:
    if max(*window.kernel, *window.strides) > bounds.WINDOW or dy.shape is None:
        return None
    if not all(map(fixed, [x.shape[1], *window.begin, *window.end])) or numpy_dtype(x) not in (np.float32, np.float64):
        return None
    ceil_mode = attributes.get("ceil_mode") or 0
    axes = _axes(op, dy, x, window, ceil_mode)
    n = len(axes)
    to_last = [0, *range(2, n + 2), 1]
    maxima = [op.Transpose(v, perm=to_last) for v in (y, *_partial_maxima(op, x, window, n, ceil_mode), x)]
    d = op.Transpose(dy, perm=to_last)
    finite = op.finite(dy)
    for axis, pooled, values in zip(axes, maxima[:-1], maxima[1:], strict=True):
        d = _unpool_along(op, d, values, pooled, axis, finite)
    dims = op.dims(x)
    back = op.with_rank(op.Reshape(d, op.vector([dims[0], *dims[2:], dims[1]])), n + 2)
    return op.shaped_like(op.Transpose(back, perm=[0, n + 1, *range(1, n + 1)]), x)


def _axes(op: Builder, dy: Tensor, x: Tensor, window: Window, ceil_mode: int) -> list[Axis]:
    lengths, outputs = op.dims(x)[2:], op.dims(dy)[2:]
    behind = [op.product([*outputs[a + 1 :], x.shape[1]]) for a in range(len(outputs))]
    # With ceil_mode the last window may stand out by all but one step.
    ends = [e + s - 1 if ceil_mode else e for e, s in zip(window.end, window.strides, strict=True)]
    columns = (window.kernel, window.strides, window.dilations, window.begin, ends, lengths, outputs, behind)
    return [Axis(*row) for row in zip(*columns, strict=True)]


def _partial_maxima(op: Builder, x: Tensor, window: Window, n: int, ceil_mode: int) -> list[Tensor]:
    """The maxima along all axes but the first, along all but the first two, ..."""
    made = []
    for done in range(1, n):
        once, none = [1] * done, [0] * done
        dilations = once + window.dilations[done:]
        made.append(
            op.MaxPool(
                x,
                kernel_shape=once + window.kernel[done:],
                strides=once + window.strides[done:],
                dilations=dilations if any(d > 1 for d in dilations) else None,
                pads=[*none, *window.begin[done:], *none, *window.end[done:]],
                ceil_mode=ceil_mode,
            )
        )
    return made


def _unpool_along(op: Builder, d: Tensor, values: Tensor, pooled: Tensor, axis: Axis, finite: bool) -> Tensor:
    """Hand the cotangents of the maxima along one axis to their first place."""
    d, pooled = (_lines(op, v, axis.outputs, axis.inner) for v in (d, pooled))
    nothing = np.array(np.nan, numpy_dtype(values))  # equals no maximum, not even one of -inf
    end = axis.end
    if fixed(axis.length) and fixed(axis.outputs):  # as far as the windows reach, and no copy where they end with x
        end = axis.stride * (axis.outputs - 1) + axis.reach - axis.length - axis.begin
    padded = op.pad(_lines(op, values, axis.length, axis.inner), [1], [axis.begin], [max(end, 0)], nothing)
    last = op.calc("Mul", op.calc("Sub", axis.outputs, 1), axis.stride)
    shares = []
    for start in range(0, axis.reach - axis.dilation, axis.dilation):
        stop = op.vector([op.calc("Add", last, start + 1)])
        here = op.Slice(padded, *(np.array([start]), stop, np.array([1]), np.array([axis.stride])))
        first = op.Equal(here, pooled)
        if finite:
            shares.append(op.Mul(d, op.cast_to(first, d)))
            d = op.Sub(d, shares[-1])
        else:
            none = np.zeros((), numpy_dtype(d))
            shares.append(op.Where(first, d, none))
            d = op.Where(first, none, d)
    return _placed(op, [*shares, d], axis)


def _lines(op: Builder, v: Tensor, length: Dim, inner: Dim) -> Tensor:
    made = op.Reshape(v, op.vector([-1, length, inner]))
    return op.declare(made, [None, length if fixed(length) else None, inner if fixed(inner) else None])


def _placed(op: Builder, shares: Sequence[Tensor], axis: Axis) -> Tensor:
    """The sum of the shares, each at its places: a tensor for every phase of the stride, then these interleaved."""
    first, last = (f(row for row, _ in axis.places) for f in (min, max))
    # Rows behind the last share that a rest of x needs; open, x ends before stride · outputs + reach - begin - end.
    known = fixed(axis.length) and fixed(axis.outputs)
    behind = axis.length - axis.stride * axis.outputs if known else axis.reach - axis.begin - axis.end
    rest = max(0, -(-behind // axis.stride) - last)
    phases: list[Tensor | None] = [None] * axis.stride
    for (row, phase), share in zip(axis.places, shares, strict=True):
        placed = op.pad(share, [1], [row - first], [last - row + rest])
        sum_so_far = phases[phase]
        phases[phase] = placed if sum_so_far is None else op.Add(sum_so_far, placed)
    some = next(p for p in phases if p is not None)
    if axis.stride > 1:
        missing = op.filled(op.shape_of(some), 0, some) if any(p is None for p in phases) else None
        stacked = op.Concat(*(missing if p is None else p for p in phases), axis=2)  # behind one another in memory
        rows = op.calc("Add", axis.outputs, last - first + rest)
        some = _lines(op, stacked, op.calc("Mul", rows, axis.stride), axis.inner)
    return op.slice(some, [1], [-first * axis.stride], [axis.length])

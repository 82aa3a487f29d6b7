"""Switch-unpooling by comparison, one axis at a time: dx[switch] += dy without a MaxPool that returns Indices.

The maximum of a window is the maximum, along one axis, of the maxima along the others. So its first place in row order
is found axis by axis: the first row whose maximum is the window's, then the first column in that row. A cotangent goes
back in the same steps, and each is a handful of whole-tensor products, where scatter and Indices go element by element.

Channels come last, so that every strided slice moves whole runs of numbers. A step along one axis sees its tensors as
[outer, length, inner]; these reshapes also keep onnxruntime's optimiser from moving the transpositions inwards.

Heights and widths may be open. Then lengths are computed when the model runs, so that all shares of a cotangent are
padded by numbers, to one length that reaches over both ends of x, and cut once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gbprewrite.backward.lowering.windows import Window, Windows
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


def applies(op: Windows, dy: Tensor, x: Tensor, window: Window) -> bool:
    """Whether channels and padding are known, and the lengths too where their arithmetic would leave the device.

    Each step of a window and of a stride gets nodes of its own, so neither may be long.
    """
    if max(*window.kernel, *window.strides) > bounds.WINDOW:
        return False
    known = [x.shape[1], *window.begin, *window.end]
    known += [] if op.spelling.open_comparisons or dy.shape is None else [*x.shape[2:], *dy.shape[2:]]
    return dy.shape is not None and all(map(fixed, known)) and numpy_dtype(x) in (np.float32, np.float64)


def unpool(op: Windows, dy: Tensor, x: Tensor, y: Tensor, window: Window, ceil_mode: int) -> Tensor:
    """dx of y = MaxPool(x); ties fall to the first maximum in row order, as in PyTorch."""
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


def _axes(op: Windows, dy: Tensor, x: Tensor, window: Window, ceil_mode: int) -> list[Axis]:
    lengths, outputs = op.dims(x)[2:], op.dims(dy)[2:]
    behind = [op.product([*outputs[a + 1 :], x.shape[1]]) for a in range(len(outputs))]
    # With ceil_mode the last window may stand out by all but one step.
    ends = [e + s - 1 if ceil_mode else e for e, s in zip(window.end, window.strides, strict=True)]
    columns = (window.kernel, window.strides, window.dilations, window.begin, ends, lengths, outputs, behind)
    return [Axis(*row) for row in zip(*columns, strict=True)]


def _partial_maxima(op: Windows, x: Tensor, window: Window, n: int, ceil_mode: int) -> list[Tensor]:
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


def _unpool_along(op: Windows, d: Tensor, values: Tensor, pooled: Tensor, axis: Axis, finite: bool) -> Tensor:
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


def _lines(op: Windows, v: Tensor, length: Dim, inner: Dim) -> Tensor:
    made = op.Reshape(v, op.vector([-1, length, inner]))
    made.shape = [None, length if fixed(length) else None, inner if fixed(inner) else None]
    return made


def _placed(op: Windows, shares: Sequence[Tensor], axis: Axis) -> Tensor:
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

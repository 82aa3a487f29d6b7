"""Switch-unpooling by comparison, one axis at a time: dx[switch] += dy without a MaxPool that returns Indices.

The maximum of a window is the maximum, along one axis, of the maxima along the others. So its first place in row order
is found axis by axis: the first row whose maximum is the window's, then the first column in that row. A cotangent goes
back in the same steps, and each is a handful of whole-tensor products, where scatter and Indices go element by element.

Channels come last, so that every strided slice moves whole runs of numbers. A step along one axis sees its tensors as
[outer, length, inner]; these reshapes also keep onnxruntime's optimiser from moving the transpositions inwards.
"""

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gbprewrite.shapes import Refused, fixed
from gbprewrite.tensors import Tensor, numpy_dtype

if TYPE_CHECKING:
    from gbprewrite.lowering.pools import Pools
    from gbprewrite.lowering.windows import Window


class Axis(NamedTuple):
    """One axis of a pool: its window, its lengths before and after pooling, and the size of what lies behind it."""

    kernel: int
    stride: int
    dilation: int
    begin: int
    length: int
    outputs: int
    inner: int

    @property
    def end(self) -> int:
        """Padding behind the axis that its windows need; negative where they leave a rest."""
        return self.stride * (self.outputs - 1) + self.dilation * (self.kernel - 1) + 1 - self.length - self.begin


def applies(dy: Tensor, x: Tensor, window: "Window") -> bool:
    """Whether every length is a number, and onnxruntime takes the padding of the partial maxima."""
    lengths = [*x.shape[1:], *dy.shape[2:], *window.begin, *window.end]
    if not all(map(fixed, lengths)) or numpy_dtype(x) not in (np.float32, np.float64):
        return False
    return all(max(a.begin, a.end) < a.kernel for a in _axes(x.shape, dy.shape, window)[1:])


def unpool(op: "Pools", dy: Tensor, x: Tensor, y: Tensor, window: "Window") -> Tensor:
    """dx of y = MaxPool(x); ties fall to the first maximum in row order, as in PyTorch."""
    axes = _axes(x.shape, dy.shape, window)
    n = len(axes)
    to_last = [0, *range(2, n + 2), 1]
    maxima = [op.Transpose(v, perm=to_last) for v in (y, *_partial_maxima(op, x, window, axes), x)]
    d = op.Transpose(dy, perm=to_last)
    for axis, pooled, values in zip(axes, maxima[:-1], maxima[1:], strict=True):
        d = _unpool_along(op, d, values, pooled, axis)
    back = op.reshape(d, [op.dim(x, 0), *x.shape[2:], x.shape[1]])
    return op.shaped_like(op.Transpose(back, perm=[0, n + 1, *range(1, n + 1)]), x)


def _axes(before: Sequence[int], after: Sequence[int], window: "Window") -> list[Axis]:
    channels, lengths, outputs = before[1], before[2:], after[2:]
    behind = [prod(outputs[a + 1 :]) * channels for a in range(len(outputs))]
    columns = (window.kernel, window.strides, window.dilations, window.begin, lengths, outputs, behind)
    return [Axis(*row) for row in zip(*columns, strict=True)]


def _partial_maxima(op: "Pools", x: Tensor, window: "Window", axes: Sequence[Axis]) -> list[Tensor]:
    """The maxima along all axes but the first, along all but the first two, ..."""
    made = []
    for done in range(1, len(axes)):
        once, rest = [1] * done, axes[done:]
        pads = [0] * done + [a.begin for a in rest] + [0] * done + [max(a.end, 0) for a in rest]
        dilations = once + window.dilations[done:]
        pooled = op.MaxPool(
            x,
            kernel_shape=once + window.kernel[done:],
            strides=once + window.strides[done:],
            dilations=dilations if any(d > 1 for d in dilations) else None,
            pads=pads,
        )
        pooled.shape = [*x.shape[: done + 2], *(a.outputs for a in rest)]
        made.append(pooled)
    return made


def _unpool_along(op: "Pools", d: Tensor, values: Tensor, pooled: Tensor, axis: Axis) -> Tensor:
    """Hand the cotangents of the maxima along one axis to their first place."""
    d, pooled = (_lines(op, v, axis.outputs, axis.inner) for v in (d, pooled))
    values = _lines(op, values, axis.length, axis.inner)
    nothing = np.array(np.nan, numpy_dtype(values))  # equals no maximum, not even one of -inf
    padded = op.pad(values, [1], [axis.begin], [max(axis.end, 0)], nothing)
    shares = []
    for step in range(axis.kernel - 1):
        here = op.strided(padded, 1, step * axis.dilation, axis.stride, axis.outputs)
        shares.append(op.Mul(d, op.cast_to(op.Equal(here, pooled), d)))
        d = op.Sub(d, shares[-1])
    return _placed(op, [*shares, d], axis)


def _lines(op: "Pools", v: Tensor, length: int, inner: int) -> Tensor:
    made = op.Reshape(v, np.array([-1, length, inner], np.int64))
    made.shape = [None, length, inner]
    return made


def _placed(op: "Pools", shares: Sequence[Tensor], axis: Axis) -> Tensor:
    """The sum of the shares, each at its places: a tensor for every phase of the stride, then these interleaved."""
    rows = -(-axis.length // axis.stride)
    phases: list[Tensor | None] = [None] * axis.stride
    for step, share in enumerate(shares):
        before, phase = divmod(step * axis.dilation - axis.begin, axis.stride)
        if not -axis.outputs < before < rows:
            continue  # in the padding of every window
        placed = op.pad(share, [1], [before], [rows - axis.outputs - before])
        sum_so_far = phases[phase]
        phases[phase] = placed if sum_so_far is None else op.Add(sum_so_far, placed)
    some = next((p for p in phases if p is not None), None)
    if some is None:
        raise Refused("its windows see nothing but padding")
    if axis.stride > 1:
        missing = op.filled(op.shape_of(some), 0, some) if any(p is None for p in phases) else None
        stacked = op.Concat(*(missing if p is None else p for p in phases), axis=2)  # behind one another in memory
        some = _lines(op, stacked, rows * axis.stride, axis.inner)
    return op.slice(some, [1], [0], [axis.length])

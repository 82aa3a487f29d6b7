"""The input gradient of a strided convolution as one plain convolution for each phase of the stride.

With y[o] = Σ_k w[k] · x[s·o + d·k - p], the places i = s·a + φ of one phase φ receive the sum of
w[k] · dy[a + (φ + p - d·k) / s] over the k for which the division leaves no rest: a convolution of dy, not strided,
with every s-th weight in reverse. Together the phases multiply exactly as often as the forward pass. Dumoulin and Visin
2016, section 4, put zeros between the elements of dy instead; Shi et al. 2016, "Is the deconvolution layer the same as
a convolutional layer?", have the phases.
"""

from collections.abc import Sequence
from itertools import product
from math import gcd, prod
from typing import NamedTuple

import numpy as np

from gbprewrite.backward.builder import END, Builder
from gbprewrite.backward.lowering.windows import Window, exchanged
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Tensor, fixed

MOST_PHASES = 1024  # each is a convolution of its own
FEWEST_CHANNELS = 16  # of x: a block of onnxruntime's layout is filled up, so that fewer would cost as much as these


class Taps(NamedTuple):
    """What one phase needs along one axis: weights `last`, `last - every`, ... (`number` of them), and the padding."""

    phase: int
    last: int
    every: int
    number: int
    dilation: int
    begin: int
    end: int


def along(axis: int, window: Window, length: int, outputs: int) -> list[Taps]:
    """The phases of one axis that any weight reaches."""
    kernel, stride, dilation, pad = (
        v[axis] for v in (window.kernel, window.strides, window.dilations, window.begin)
    )  # fmt: skip
    common, rows = gcd(stride, dilation), -(-length // stride)
    found = []
    for phase in range(stride):
        weights = [k for k in range(kernel) if (phase + pad - dilation * k) % stride == 0]
        if weights:
            low, high = ((phase + pad - dilation * k) // stride for k in (weights[-1], weights[0]))
            end = rows + high - outputs
            found.append(Taps(phase, weights[-1], stride // common, len(weights), dilation // common, -low, end))
    return found


def phases(op: Builder, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor | None:
    """A plain convolution for each phase of the stride, and these interleaved.

    Where: it is strided along two axes of known length, x has a block of channels or more, and all phases get a share.
    Why: as for `turned`. Together the phases multiply exactly as often as the forward pass.
    """
    if max(window.strides) == 1 or w.shape is None:
        return None
    lengths = [*x.shape[1:], *dy.shape[1:], *w.shape, *window.begin]
    if len(x.shape) != 4 or not all(map(fixed, lengths)) or x.shape[1] < FEWEST_CHANNELS:
        return None
    if prod(window.strides) > MOST_PHASES or max(window.kernel) > bounds.WINDOW:
        return None
    axes = [along(a, window, x.shape[a + 2], dy.shape[a + 2]) for a in range(2)]
    if any(t.begin < 0 or t.end < 0 for taps in axes for t in taps) or not all(map(_contiguous, axes)):
        return None
    turned = exchanged(op, w, group)
    made = [_phase(op, dy, turned, taps, window, group) for taps in product(*axes)]
    stacked = op.Concat(*made, axis=1) if len(made) > 1 else made[0]
    return _interleaved(op, stacked, x, window.strides, axes)


def _contiguous(taps: Sequence[Taps]) -> bool:
    return bool(taps) and taps[-1].phase - taps[0].phase == len(taps) - 1


def _phase(op: Builder, dy: Tensor, w: Tensor, taps: Sequence[Taps], window: Window, group: int) -> Tensor:
    axes = [a + 2 for a, t in enumerate(taps) if (t.last, t.every, t.number) != (0, 1, window.kernel[a])]
    if axes:  # weights are sliced by nodes, which runtimes fold into constants
        chosen = [taps[a - 2] for a in axes]
        starts, ends = [t.last for t in chosen], [t.last - t.every * t.number for t in chosen]
        ends = [e if e >= 0 else -END for e in ends]
        w = op.Slice(w, *(np.array(v, np.int64) for v in (starts, ends, axes, [-t.every for t in chosen])))
    kernel = [t.number for t in taps]
    pads = [t.begin for t in taps] + [t.end for t in taps]
    return op.Conv(dy, w, kernel_shape=kernel, dilations=[t.dilation for t in taps], pads=pads, group=group)


def _interleaved(op: Builder, v: Tensor, x: Tensor, strides: Sequence[int], axes: Sequence[Sequence[Taps]]) -> Tensor:
    """Phases stacked as channels, to their places. Channels go last: whole runs of them move."""
    channels, n = x.shape[1], len(axes)
    rows = [-(-length // s) for length, s in zip(x.shape[2:], strides, strict=True)]
    present = [len(taps) for taps in axes]
    batch = op.dim(x, 0)
    last = op.reshape(op.Transpose(v, perm=[0, *range(2, n + 2), 1]), [batch, *rows, *present, channels])
    order = [0, *(a for i in range(n) for a in (1 + i, 1 + n + i)), 2 * n + 1]
    if prod(present) > 1:
        last = op.Transpose(last, perm=order)
    else:
        last = op.reshape(last, [batch, *(size for r in rows for size in (r, 1)), channels])
    before = [taps[0].phase for taps in axes]
    after = [s - t - b for s, t, b in zip(strides, present, before, strict=True)]
    last = op.pad(last, [2 + 2 * i for i in range(n)], before, after)
    whole = op.reshape(last, [batch, *(r * s for r, s in zip(rows, strides, strict=True)), channels])
    cut = op.slice(whole, list(range(1, n + 1)), [0] * n, x.shape[2:])
    return op.Transpose(cut, perm=[0, n + 1, *range(1, n + 1)])

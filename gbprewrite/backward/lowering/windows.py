"""Sliding windows and the transposed convolution.

A window (kernel_shape, strides, dilations, pads, auto_pad) reads as on the Conv page. `raw` below is the length that a
transposed convolution has before anything is cut away: stride · (outputs - 1) + dilation · (kernel - 1) + 1.
Sources: Dumoulin and Visin 2016, section 4; https://onnx.ai/onnx/operators/onnx__ConvTranspose.html.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gbprewrite.backward.builder import Builder
from gbprewrite.model.tensors import Dim, Refused, Tensor, fixed, rank


class Window(NamedTuple):
    """A sliding window with everything explicit; pads are dimensions because SAME padding may depend on the input."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[Dim]
    end: list[Dim]

    @property
    def reach(self) -> list[int]:
        """Length that the dilated kernel covers."""
        return [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    @property
    def symmetric(self) -> bool:
        """Whether both ends have the same, known padding."""
        return all(fixed(b) and b == e for b, e in zip(self.begin, self.end, strict=True))


def window_of(
    op: Builder,
    x: Tensor,
    kernel_shape: Sequence[Any],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Window:
    """The window with defaults filled in and auto_pad resolved for the input x."""
    n = rank(x) - 2
    if len(kernel_shape) != n or not all(fixed(k) for k in kernel_shape):
        raise Refused("its kernel shape is not known")
    strides, dilations = list(strides or [1] * n), list(dilations or [1] * n)
    made = Window([int(k) for k in kernel_shape], strides, dilations, [0] * n, [0] * n)
    if auto_pad in ("NOTSET", ""):
        pads = list(pads or [0] * (2 * n))
        return made._replace(begin=pads[:n], end=pads[n:])
    if auto_pad == "VALID":
        return made
    small, large = [], []
    for axis, (s, reach) in enumerate(zip(strides, made.reach, strict=True)):
        total = _same_padding(op, op.dim(x, axis + 2), s, reach)
        half = op.calc("Div", total, 2)
        small.append(half)
        large.append(op.calc("Sub", total, half))
    begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    return made._replace(begin=begin, end=end)


def _same_padding(op: Builder, size: Dim, stride: int, reach: int) -> Dim:
    if stride == 1:
        return reach - 1
    outputs = op.calc("Div", op.calc("Add", size, stride - 1), stride)
    raw = op.calc("Add", op.calc("Mul", op.calc("Sub", outputs, 1), stride), reach)
    return op.calc("Max", op.calc("Sub", raw, size), 0)


def conv_transpose(op: Builder, dy: Tensor, w: Tensor, window: Window, sizes: Sequence[Dim], group: int) -> Tensor:
    """ConvTranspose of dy, cut to `sizes` behind the window's begin pads; positions no window reaches are 0."""
    known = all(fixed(s) for s in sizes) and all(fixed(d) for d in dy.shape[2:]) and all(map(fixed, window.begin))
    attributes = {"strides": window.strides, "dilations": window.dilations, "group": group}
    attributes["kernel_shape"] = window.kernel
    raw = [
        op.calc("Add", op.calc("Mul", op.calc("Sub", op.dim(dy, a + 2), 1), s), r)
        for a, (s, r) in enumerate(zip(window.strides, window.reach, strict=True))
    ]
    wanted = [op.calc("Add", b, s) for b, s in zip(window.begin, sizes, strict=True)]
    if window.symmetric and (known or all(s == 1 for s in window.strides)):
        # Symmetric pads keep the node on CUDA; the remainder of a strided window becomes output_padding.
        extra = [w - (r - b) for w, r, b in zip(wanted, raw, window.end, strict=True)] if known else []
        if all(0 <= e < s for e, s in zip(extra, window.strides, strict=False)):
            return op.ConvTranspose(
                dy, w, pads=[*window.begin, *window.end], output_padding=extra or None, **attributes
            )
    # Asymmetric pads would put ConvTranspose on the CPU: compute without pads, then cut.
    if known:
        extra = [min(max(w - r, 0), s - 1) for w, r, s in zip(wanted, raw, window.strides, strict=True)]
    else:
        extra = [s - 1 for s in window.strides]
    full = op.ConvTranspose(dy, w, output_padding=extra, **attributes)
    axes = list(range(2, 2 + len(sizes)))
    missing = [op.calc("Sub", w, op.calc("Add", r, e)) for w, r, e in zip(wanted, raw, extra, strict=True)]
    if any(not fixed(m) or m > 0 for m in missing):
        missing = [op.calc("Max", m, 0) for m in missing]
        full = op.pad(full, axes, [0] * len(axes), missing)
    return op.slice(full, axes, window.begin, sizes)


def exchanged(op: Builder, w: Tensor, group: int) -> Tensor:
    """Weights of a convolution with its input and output channels in each other's place, in every group."""
    outputs, inputs, *kernel = w.shape
    axes = list(range(2, 2 + len(kernel)))
    if group == 1:
        return op.Transpose(w, perm=[1, 0, *axes])
    if outputs == group and inputs == 1:
        return w
    grouped = op.reshape(w, [group, outputs // group, inputs, *kernel])
    grouped = op.Transpose(grouped, perm=[0, 2, 1, *(a + 1 for a in axes)])
    return op.reshape(grouped, [group * inputs, outputs // group, *kernel])

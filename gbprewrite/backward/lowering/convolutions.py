"""Adjoints of Conv and ConvTranspose."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gbprewrite.backward.builder import END, Builder
from gbprewrite.backward.lowering.phases import phases
from gbprewrite.backward.lowering.scales import CHANNEL_SCALE
from gbprewrite.backward.lowering.table import Lowerings
from gbprewrite.backward.lowering.windows import Window, conv_transpose, exchanged, window_of
from gbprewrite.model.tensors import Dim, Tensor, fixed, rank


def conv_input_grad(
    op: Builder, dy: Tensor, x: Tensor, w: Tensor, *, group: int, kernel_shape: Any, **attributes: Any
) -> Tensor:
    """dx of y = Conv(x, w)."""
    window = window_of(op, x, kernel_size(w, kernel_shape), **attributes)
    dy, w = CHANNEL_SCALE(op, dy, w)
    return op.shaped_like(CONV_INPUT_GRAD(op, dy, x, w, window, group), x)


def turned(op: Builder, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor | None:
    """Conv of dy with the weights turned round and their channels exchanged.

    Weights are turned by nodes, which runtimes fold into constants when they load the file, so that it stores them
    once.

    Where: nothing is strided, and the padding is known and less than the window reaches.
    Why: Conv has the fast kernels (onnxruntime's blocked layout, and any depthwise kernel: seven to eleven times
    faster), ConvTranspose has not.
    """
    if max(window.strides) > 1 or w.shape is None or not all(map(fixed, [*w.shape, *window.begin, *window.end])):
        return None
    pads = [r - 1 - p for r, p in zip(window.reach * 2, [*window.begin, *window.end], strict=True)]
    if any(p < 0 for p in pads):
        return None
    kernel, axes = w.shape[2:], list(range(2, len(w.shape)))
    w = exchanged(op, w, group)
    longer = [a for a, k in zip(axes, kernel, strict=True) if k > 1]
    if longer:
        last, first = np.full(len(longer), -1), np.full(len(longer), -END)
        w = op.Slice(w, last, first, np.array(longer), last)
    made: Tensor = op.Conv(dy, w, pads=pads, dilations=window.dilations, group=group, kernel_shape=window.kernel)
    return made


def transposed(op: Builder, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor:
    """ConvTranspose, cut to the size of x."""
    return conv_transpose(op, dy, w, window, op.dims(x)[2:], group)


CONV_INPUT_GRAD = Lowerings("conv_input_grad", turned, phases, transposed)


def kernel_size(w: Tensor, stated: Sequence[int] | None) -> Sequence[Any]:
    """The kernel's size, by the weights, or by the attribute where these do not tell."""
    sizes = w.shape[2:] if w.shape is not None else []
    return sizes if sizes and all(map(fixed, sizes)) else stated or sizes


def conv_weight_grad(
    op: Builder, dy: Tensor, x: Tensor, w: Tensor, *, group: int, kernel_shape: Any, **attributes: Any
) -> Tensor:
    """dw of y = Conv(x, w): x correlated with dy, where batch and channels change places."""
    window = window_of(op, x, kernel_size(w, kernel_shape), **attributes)
    n, c, *space = op.dims(x)
    swapped = [2, 1, 0, *range(3, 3 + len(space))]
    images = op.Transpose(op.reshape(x, [n, group, op.calc("Div", c, group), *space]), perm=swapped)
    images = op.reshape(images, [op.calc("Div", c, group), op.calc("Mul", n, group), *space])
    filters = op.Transpose(dy, perm=[1, 0, *range(2, 2 + len(space))])
    pads = None
    if all(map(fixed, window.begin)) and all(map(fixed, window.end)):
        pads = [*window.begin, *window.end]
    else:
        images = op.pad(images, list(range(2, 2 + len(space))), window.begin, window.end)
    full = op.Conv(
        images, filters, group=group, pads=pads, strides=window.dilations, dilations=window.strides
    )  # fmt: skip
    axes = list(range(2, 2 + len(space)))
    return op.Transpose(op.slice(full, axes, [0] * len(axes), window.kernel), perm=[1, 0, *axes])


def conv_transpose_input_grad(op: Builder, dy: Tensor, x: Tensor, w: Tensor, **attributes: Any) -> Tensor:
    """dx of y = ConvTranspose(x, w): the convolution."""
    group = attributes.pop("group")
    window = _transposed_window(op, dy, x, w, **attributes)
    pads = [*window.begin, *window.end]
    if not all(map(fixed, pads)):
        dy, pads = op.pad(dy, list(range(2, rank(x))), window.begin, window.end), [0] * len(pads)
    made = op.Conv(
        dy, w, group=group, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
        pads=pads,
    )  # fmt: skip
    sizes = op.dims(x)[2:]
    return op.shaped_like(op.slice(made, list(range(2, rank(x))), [0] * len(sizes), sizes), x)


def conv_transpose_weight_grad(op: Builder, dy: Tensor, x: Tensor, w: Tensor, **attributes: Any) -> Tensor:
    """dw of y = ConvTranspose(x, w): as for Conv, with input and output in each other's place."""
    group = attributes.pop("group")
    window = _transposed_window(op, dy, x, w, **attributes)
    return conv_weight_grad(
        op, x, dy, w, group=group, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
        pads=[*window.begin, *window.end],
    )  # fmt: skip


def _transposed_window(
    op: Builder, y: Tensor, x: Tensor, w: Tensor, *, kernel_shape: Any, strides: Any = None,
    dilations: Any = None, pads: Any = None, auto_pad: str = "NOTSET", output_padding: Any = None,
    output_shape: Any = None,
) -> Window:  # fmt: skip
    """Window of a ConvTranspose; auto_pad and output_shape turned into pads, as the operator's page prescribes."""
    kernel = kernel_size(w, kernel_shape)
    if auto_pad in ("NOTSET", "", "VALID") and not output_shape:
        return window_of(op, x, kernel, strides, dilations, pads if auto_pad != "VALID" else None)
    made = window_of(op, x, kernel, strides, dilations)
    begin, end = [], []
    for axis, (s, reach) in enumerate(zip(made.strides, made.reach, strict=True)):
        target = output_shape[axis] if output_shape else None
        if auto_pad not in ("NOTSET", "") and target is None:
            total: Dim = max(reach - s, 0)  # output = input · stride
        else:
            longest = op.calc("Mul", op.calc("Sub", op.dim(x, axis + 2), 1), s)
            longest = op.calc("Add", longest, (output_padding or [0] * 9)[axis] + reach)
            total = op.calc("Max", op.calc("Sub", longest, target), 0)
        half = op.calc("Div", total, 2)
        begin.append(half if auto_pad == "SAME_UPPER" else op.calc("Sub", total, half))
        end.append(op.calc("Sub", total, begin[-1]))
    return made._replace(begin=begin, end=end)

"""Adjoints of Conv and ConvTranspose, in the spelling that is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.lowering import phases
from gbprewrite.backward.lowering.verbs import END
from gbprewrite.backward.lowering.windows import Window, Windows
from gbprewrite.model.tensors import HALF, Dim, Tensor, fixed, onnx_type, rank

PRODUCTS = (2.0**-64, 2.0**100)  # of weights and scales that leave float32 in neither direction


class Convolutions(Windows):
    """Gradients of a convolution to its input and its weights."""

    def conv_input_grad(
        self, dy: Tensor, x: Tensor, w: Tensor, *, group: int, kernel_shape: Any, **attributes: Any
    ) -> Tensor:
        """dx of y = Conv(x, w): the transposed convolution, or a convolution with turned weights where that is one."""
        window = self.window(x, self._kernel(w, kernel_shape), **attributes)
        dy, w = self._scaled_weights(dy, w)
        made = self._as_convs(dy, x, w, window, group)
        if made is not None:
            return self.shaped_like(made, x)
        return self.shaped_like(self.transposed(dy, w, window, self.dims(x)[2:], group), x)

    def _scaled_weights(self, dy: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(cotangent, weights), with what multiplies each channel of the cotangent in the weights instead.

        So BatchNormalization behind a convolution costs no pass of its own on the way back: runtimes multiply the
        weights when they load the file, which stores them once.
        """
        node = dy.inputs[0] if isinstance(dy, gs.Variable) and dy.inputs else None
        if not self.spelling.scaled_weights or node is None or node.op != "Mul" or not self.is_weight(w):
            return dy, w
        plain, scale = node.inputs
        of_channels = [w.shape[0], *[1] * (len(w.shape) - 2)]
        if onnx_type(w) in HALF:  # no kernel of onnxruntime's CPU multiplies these beforehand
            return dy, w
        if list(scale.shape or ()) not in (of_channels, [1, *of_channels]) or not self.is_weight(scale):
            return dy, w
        if plain.shape is None or len(plain.shape) != len(w.shape):
            return dy, w
        largest = self.magnitudes.of(w).most * self.magnitudes.of(scale).most
        if not PRODUCTS[0] < largest < PRODUCTS[1]:
            return dy, w
        scale = self.Reshape(scale, np.array([-1, *[1] * (len(w.shape) - 1)], np.int64))
        return plain, self.Mul(w, self.cast_to(scale, w))

    def is_weight(self, v: Tensor) -> bool:
        """Whether a value is a constant of the model, or computed from constants alone; worked out once for each."""
        todo = [v]
        while todo:
            current = todo[-1]
            if isinstance(current, gs.Constant) or current.name in self.weights:
                self.from_weights[id(current)] = True
            elif not current.inputs:
                self.from_weights[id(current)] = False
            else:
                read = [t for t in current.inputs[0].inputs if t.name]
                answers = [self.from_weights.get(id(t)) for t in read]
                if None in answers and False not in answers:
                    todo.append(read[answers.index(None)])
                    continue
                self.from_weights[id(current)] = False not in answers
            todo.pop()
        return self.from_weights[id(v)]

    @staticmethod
    def _kernel(w: Tensor, stated: Sequence[int] | None) -> Sequence[Any]:
        """The kernel's size, by the weights, or by the attribute where these do not tell."""
        sizes = w.shape[2:] if w.shape is not None else []
        return sizes if sizes and all(map(fixed, sizes)) else stated or sizes

    def _as_convs(self, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor | None:
        """dx by convolutions; None where these can't do it."""
        if not self.spelling.convolutions or w.shape is None:
            return None
        if max(window.strides) > 1:
            return phases.input_grad(self, dy, x, w, window, group)
        return self._turned_conv(dy, x, w, window, group)

    def _turned_conv(self, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor | None:
        """Conv of dy with the weights turned round and their channels exchanged.

        Equal to the transposed convolution when nothing is strided. Conv has the fast kernels (onnxruntime's blocked
        layout, and any depthwise kernel: seven to eleven times faster), ConvTranspose has not. Weights are turned by
        nodes, which runtimes fold into constants when they load the file, so that it stores them once.
        """
        begin, end = window.begin, window.end
        if not all(map(fixed, [*w.shape, *begin, *end])):
            return None
        pads = [r - 1 - p for r, p in zip(window.reach * 2, [*begin, *end], strict=True)]
        if any(p < 0 for p in pads):
            return None
        kernel, axes = w.shape[2:], list(range(2, len(w.shape)))
        w = self.exchanged(w, group)
        turned = [a for a, k in zip(axes, kernel, strict=True) if k > 1]
        if turned:
            last, first = np.full(len(turned), -1), np.full(len(turned), -END)
            w = self.Slice(w, last, first, np.array(turned), last)
        return self.Conv(dy, w, pads=pads, dilations=window.dilations, group=group, kernel_shape=window.kernel)

    def conv_weight_grad(
        self, dy: Tensor, x: Tensor, w: Tensor, *, group: int, kernel_shape: Any, **attributes: Any
    ) -> Tensor:
        """dw of y = Conv(x, w): x correlated with dy, where batch and channels change places."""
        window = self.window(x, self._kernel(w, kernel_shape), **attributes)
        n, c, *space = self.dims(x)
        swapped = [2, 1, 0, *range(3, 3 + len(space))]
        images = self.Transpose(self.reshape(x, [n, group, self.calc("Div", c, group), *space]), perm=swapped)
        images = self.reshape(images, [self.calc("Div", c, group), self.calc("Mul", n, group), *space])
        filters = self.Transpose(dy, perm=[1, 0, *range(2, 2 + len(space))])
        pads = None
        if all(map(fixed, window.begin)) and all(map(fixed, window.end)):
            pads = [*window.begin, *window.end]
        else:
            images = self.pad(images, list(range(2, 2 + len(space))), window.begin, window.end)
        full = self.Conv(
            images, filters, group=group, pads=pads, strides=window.dilations, dilations=window.strides
        )  # fmt: skip
        axes = list(range(2, 2 + len(space)))
        return self.Transpose(self.slice(full, axes, [0] * len(axes), window.kernel), perm=[1, 0, *axes])

    def conv_transpose_input_grad(self, dy: Tensor, x: Tensor, w: Tensor, **attributes: Any) -> Tensor:
        """dx of y = ConvTranspose(x, w): the convolution."""
        group = attributes.pop("group")
        window = self._transposed_window(dy, x, w, **attributes)
        pads = [*window.begin, *window.end]
        if not all(map(fixed, pads)):
            dy, pads = self.pad(dy, list(range(2, rank(x))), window.begin, window.end), [0] * len(pads)
        made = self.Conv(
            dy, w, group=group, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
            pads=pads,
        )  # fmt: skip
        sizes = self.dims(x)[2:]
        return self.shaped_like(self.slice(made, list(range(2, rank(x))), [0] * len(sizes), sizes), x)

    def conv_transpose_weight_grad(self, dy: Tensor, x: Tensor, w: Tensor, **attributes: Any) -> Tensor:
        """dw of y = ConvTranspose(x, w): as for Conv, with input and output in each other's place."""
        group = attributes.pop("group")
        window = self._transposed_window(dy, x, w, **attributes)
        return self.conv_weight_grad(
            x, dy, w, group=group, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
            pads=[*window.begin, *window.end],
        )  # fmt: skip

    def _transposed_window(
        self, y: Tensor, x: Tensor, w: Tensor, *, kernel_shape: Any, strides: Any = None,
        dilations: Any = None, pads: Any = None, auto_pad: str = "NOTSET", output_padding: Any = None,
        output_shape: Any = None,
    ) -> Window:  # fmt: skip
        """Window of a ConvTranspose; auto_pad and output_shape turned into pads, as the operator's page prescribes."""
        kernel = self._kernel(w, kernel_shape)
        if auto_pad in ("NOTSET", "", "VALID") and not output_shape:
            return self.window(x, kernel, strides, dilations, pads if auto_pad != "VALID" else None)
        made = self.window(x, kernel, strides, dilations)
        begin, end = [], []
        for axis, (s, reach) in enumerate(zip(made.strides, made.reach, strict=True)):
            target = output_shape[axis] if output_shape else None
            if auto_pad not in ("NOTSET", "") and target is None:
                total: Dim = max(reach - s, 0)  # output = input · stride
            else:
                longest = self.calc("Mul", self.calc("Sub", self.dim(x, axis + 2), 1), s)
                longest = self.calc("Add", longest, (output_padding or [0] * 9)[axis] + reach)
                total = self.calc("Max", self.calc("Sub", longest, target), 0)
            half = self.calc("Div", total, 2)
            begin.append(half if auto_pad == "SAME_UPPER" else self.calc("Sub", total, half))
            end.append(self.calc("Sub", total, begin[-1]))
        return made._replace(begin=begin, end=end)

    def sum_but_channels(self, dy: Tensor) -> Tensor:
        """Sum over everything but axis 1."""
        return self.ReduceSum(dy, np.array([0, *range(2, rank(dy))], np.int64), keepdims=0)

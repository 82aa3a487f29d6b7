"""Spellings of the adjoints that ONNX can write in more than one way, each with its precondition and its reason.

A window (kernel_shape, strides, dilations, pads, auto_pad) reads as on the Conv page. `raw` below is the length that a
transposed convolution has before anything is cut away: stride · (outputs - 1) + dilation · (kernel - 1) + 1.
Sources: Dumoulin and Visin 2016, section 4; https://onnx.ai/onnx/operators/onnx__ConvTranspose.html.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.shapes import Dim, Refused, Shapes, constant_of, fixed, rank
from gbprewrite.tensors import Tensor, numpy_dtype, onnx_type

STEEPEST = 2.0**126  # times the smallest normal float32 is 1
STEEP = 2.0**100  # leaves room for the upper bound; neighbours of it in float32 differ by more than 2^-100
END = np.iinfo(np.int64).max  # "to the end" in a Slice


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


class Builder(Shapes):
    """`op` as the rules see it: every ONNX operator, the shape verbs, and the adjoints of windowed operators."""

    def gate(self, dy: Tensor, y: Tensor, high: Any = None) -> Tensor:
        """dy where 0 < y (< high), else 0, of a rectifier's output y ≥ 0.

        onnxruntime's CPU keeps Conv, Mul and HardSigmoid in its blocked layout, and leaves it for Greater and Where. So
        in float32 the mask is a HardSigmoid so steep that it is 0 or 1 (denormal y count as part of it). Steepness is a
        power of two: alpha · y + beta is then exact, and 0 at y = high.
        """
        top = constant_of(high) if isinstance(high, gs.Tensor) else None
        if self.portable or numpy_dtype(y) != np.float32 or (high is not None and (top is None or top.size != 1)):
            above = self.Greater(y, 0)
            return self.mask(dy, above if high is None else self.And(above, self.Less(y, high)))
        dx = self.Mul(dy, self.HardSigmoid(y, alpha=STEEPEST, beta=0.0))
        if top is None:
            return dx
        return self.Mul(dx, self.HardSigmoid(y, alpha=-STEEP, beta=float(top.ravel()[0]) * STEEP))

    def mask(self, dy: Tensor, condition: Tensor) -> Tensor:
        """dy where the condition holds, else 0 (a selection, so that an infinite dy does not become NaN)."""
        return self.Where(condition, dy, np.zeros((), numpy_dtype(dy)))

    def window(
        self,
        x: Tensor,
        kernel: Sequence[Any],
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
    ) -> Window:
        """The window with defaults filled in and auto_pad resolved for the input x."""
        n = rank(x) - 2
        if len(kernel) != n or not all(fixed(k) for k in kernel):
            raise Refused("its kernel shape is not known")
        strides, dilations = list(strides or [1] * n), list(dilations or [1] * n)
        made = Window([int(k) for k in kernel], strides, dilations, [0] * n, [0] * n)
        if auto_pad in ("NOTSET", ""):
            pads = list(pads or [0] * (2 * n))
            return made._replace(begin=pads[:n], end=pads[n:])
        if auto_pad == "VALID":
            return made
        small, large = [], []
        for axis, (s, reach) in enumerate(zip(strides, made.reach, strict=True)):
            total = self._same_padding(self.dim(x, axis + 2), s, reach)
            half = self.calc("Div", total, 2)
            small.append(half)
            large.append(self.calc("Sub", total, half))
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return made._replace(begin=begin, end=end)

    def _same_padding(self, size: Dim, stride: int, reach: int) -> Dim:
        if stride == 1:
            return reach - 1
        outputs = self.calc("Div", self.calc("Add", size, stride - 1), stride)
        raw = self.calc("Add", self.calc("Mul", self.calc("Sub", outputs, 1), stride), reach)
        return self.calc("Max", self.calc("Sub", raw, size), 0)

    def transposed(self, dy: Tensor, w: Tensor, window: Window, sizes: Sequence[Dim], group: int) -> Tensor:
        """ConvTranspose of dy, cut to `sizes` behind the window's begin pads; positions no window reaches are 0."""
        known = all(fixed(s) for s in sizes) and all(fixed(d) for d in dy.shape[2:]) and all(map(fixed, window.begin))
        attributes = {"strides": window.strides, "dilations": window.dilations, "group": group}
        attributes["kernel_shape"] = window.kernel
        raw = [
            self.calc("Add", self.calc("Mul", self.calc("Sub", self.dim(dy, a + 2), 1), s), r)
            for a, (s, r) in enumerate(zip(window.strides, window.reach, strict=True))
        ]
        wanted = [self.calc("Add", b, s) for b, s in zip(window.begin, sizes, strict=True)]
        if window.symmetric and (known or all(s == 1 for s in window.strides)):
            # Symmetric pads keep the node on CUDA; the remainder of a strided window becomes output_padding.
            extra = [w - (r - b) for w, r, b in zip(wanted, raw, window.end, strict=True)] if known else []
            if all(0 <= e < s for e, s in zip(extra, window.strides, strict=False)):
                return self.ConvTranspose(
                    dy, w, pads=[*window.begin, *window.end], output_padding=extra or None, **attributes
                )
        # Asymmetric pads would put ConvTranspose on the CPU: compute without pads, then cut.
        if known:
            extra = [min(max(w - r, 0), s - 1) for w, r, s in zip(wanted, raw, window.strides, strict=True)]
        else:
            extra = [s - 1 for s in window.strides]
        full = self.ConvTranspose(dy, w, output_padding=extra, **attributes)
        axes = list(range(2, 2 + len(sizes)))
        missing = [self.calc("Sub", w, self.calc("Add", r, e)) for w, r, e in zip(wanted, raw, extra, strict=True)]
        if any(not fixed(m) or m > 0 for m in missing):
            missing = [self.calc("Max", m, 0) for m in missing]
            full = self.pad(full, axes, [0] * len(axes), missing)
        return self.slice(full, axes, window.begin, sizes)

    def conv_input_grad(
        self, dy: Tensor, x: Tensor, w: Tensor, *, group: int, kernel_shape: Any, **attributes: Any
    ) -> Tensor:
        """dx of y = Conv(x, w): the transposed convolution, or a convolution with turned weights where that is one."""
        window = self.window(x, self._kernel(w, kernel_shape), **attributes)
        turned = self._turned_conv(dy, x, w, window, group)
        if turned is not None:
            return self.shaped_like(turned, x)
        return self.shaped_like(self.transposed(dy, w, window, self.dims(x)[2:], group), x)

    @staticmethod
    def _kernel(w: Tensor, stated: Sequence[int] | None) -> Sequence[Any]:
        """The kernel's size, by the weights, or by the attribute where these do not tell."""
        sizes = w.shape[2:] if w.shape is not None else []
        return sizes if sizes and all(map(fixed, sizes)) else stated or sizes

    def _turned_conv(self, dy: Tensor, x: Tensor, w: Tensor, window: Window, group: int) -> Tensor | None:
        """Conv of dy with the weights turned round and their channels exchanged.

        Equal to the transposed convolution when nothing is strided. Conv has the fast kernels (onnxruntime's blocked
        layout, and any depthwise kernel: seven to eleven times faster), ConvTranspose has not. Weights are turned by
        nodes, which runtimes fold into constants when they load the file, so that it stores them once.
        """
        begin, end = window.begin, window.end
        known = w.shape is not None and all(map(fixed, w.shape)) and all(map(fixed, [*begin, *end]))
        if self.portable or not known or any(s != 1 for s in window.strides):
            return None
        pads = [r - 1 - p for r, p in zip(window.reach * 2, [*begin, *end], strict=True)]
        if any(p < 0 for p in pads):
            return None
        outputs, inputs, *kernel = w.shape
        axes = list(range(2, 2 + len(kernel)))
        if group == 1:
            w = self.Transpose(w, perm=[1, 0, *axes])
        elif outputs != group or inputs != 1:
            grouped = self.reshape(w, [group, outputs // group, inputs, *kernel])
            grouped = self.Transpose(grouped, perm=[0, 2, 1, *(a + 1 for a in axes)])
            w = self.reshape(grouped, [group * inputs, outputs // group, *kernel])
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
        made = self.Conv(
            dy, w, group=group, kernel_shape=window.kernel, strides=window.strides, dilations=window.dilations,
            pads=[*window.begin, *window.end],
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
            size, target = x.shape[axis + 2], output_shape[axis] if output_shape else None
            if auto_pad not in ("NOTSET", "") and target is None:
                total = max(reach - s, 0)  # output = input · stride
            elif fixed(size):
                total = max(s * (size - 1) + (output_padding or [0] * 9)[axis] + reach - target, 0)
            else:
                raise Refused("its output_shape needs a fixed input size")
            half = total // 2
            begin.append(half if auto_pad == "SAME_UPPER" else total - half)
            end.append(total - begin[-1])
        return made._replace(begin=begin, end=end)

    def sum_but_channels(self, dy: Tensor) -> Tensor:
        """Sum over everything but axis 1."""
        return self.ReduceSum(dy, np.array([0, *range(2, rank(dy))], np.int64), keepdims=0)

    def unpool(self, dy: Tensor, x: Tensor, *, storage_order: int = 0, ceil_mode: int = 0, **window: Any) -> Tensor:
        """dx[switch] += dy, one scatter for each plane.

        MaxUnpool would overwrite where windows overlap. The switches come from a MaxPool of their own: asking the
        forward one for Indices would take it out of onnxruntime's fast layout. Indices count through the whole tensor,
        Mod brings them back to their plane, which keeps every node on CUDA and lets the CPU work on planes in parallel.
        """
        switches = self.MaxPool(x, outputs=2, ceil_mode=ceil_mode, **window)[1]
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
        counts = self._counts(dy, x, made, bool(count_include_pad))
        if isinstance(counts, np.ndarray):
            counts = counts.astype(numpy_dtype(dy))
        return self._window_sum(self.Div(dy, counts), x, made)

    def window_sum_grad(self, dy: Tensor, x: Tensor, *, ceil_mode: int = 0, kernel_shape: Any, **window: Any) -> Tensor:
        """Adjoint of the sum over windows."""
        return self._window_sum(dy, x, self.window(x, kernel_shape, **window))

    def _window_sum(self, v: Tensor, x: Tensor, window: Window) -> Tensor:
        """A transposed depthwise convolution with ones."""
        channels = x.shape[1]
        if fixed(channels):
            ones = np.ones([channels, 1, *window.kernel], numpy_dtype(v))
            return self.shaped_like(self.transposed(v, self.constant(ones), window, self.dims(x)[2:], channels), x)
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
            offsets = np.arange(window.kernel[axis]) * window.dilations[axis]
            shape = [1, 1] + [-1 if a == axis else 1 for a in range(n)]
            if all(map(fixed, (size, outputs, begin, end))):
                at = np.arange(outputs)[:, None] * window.strides[axis] - begin + offsets
                low, high = (-begin, size + end) if with_pads else (0, size)
                count: Any = ((at >= low) & (at < high)).sum(1).reshape(shape)
            else:
                starts = self.Sub(self.Mul(self.range(outputs), window.strides[axis]), self.vector([begin]))
                at = self.Add(self.Unsqueeze(starts, np.array([1])), offsets.astype(np.int64))
                low = self.vector([self.calc("Sub", 0, begin)]) if with_pads else np.array([0])
                high = self.vector([self.calc("Add", size, end) if with_pads else size])
                inside = self.And(self.GreaterOrEqual(at, low), self.Less(at, high))
                summed = self.ReduceSum(self.cast_to(inside, dy), np.array([1]), keepdims=0)
                count = self.Reshape(summed, np.array(shape, np.int64))
            if total is None:
                total = count
            elif isinstance(total, np.ndarray) and isinstance(count, np.ndarray):
                total = total * count
            else:
                total, count = (self._number(v, dy) for v in (total, count))
                total = self.Mul(total, count)
        return total

    def _number(self, v: Any, like: Tensor) -> Any:
        return v.astype(numpy_dtype(like)) if isinstance(v, np.ndarray) else v

    def pad(self, v: Tensor, axes: Sequence[int], left: Sequence[Dim], right: Sequence[Dim]) -> Tensor:
        """Zeros before and after v along each of the axes; a negative width cuts.

        Cutting is a Slice: some runtimes do not know negative pads. Widths that are computed must not be negative.
        """
        n = rank(v)
        before: list[Dim] = [0] * n
        after: list[Dim] = [0] * n
        cuts = []
        for axis, a, b in zip(axes, left, right, strict=True):
            before[axis], after[axis] = (max(w, 0) if isinstance(w, int) else w for w in (a, b))
            cuts.append((axis, *(-min(w, 0) if isinstance(w, int) else 0 for w in (a, b))))
        cuts = [cut for cut in cuts if any(cut[1:])]
        if cuts:
            over, starts, ends = zip(*cuts, strict=True)
            v = self.Slice(v, np.array(starts), np.array([-e if e else END for e in ends]), np.array(over))
        if all(fixed(d) and d == 0 for d in before + after):
            return v
        return self.Pad(v, self.vector([*before, *after]))

    def scatter_along(self, dy: Tensor, index: Tensor, axis: int, size: Dim) -> Tensor:
        """Zeros of `size` along the axis, to which the slices of dy are added at a vector of positions."""
        dims = self.dims(dy)
        column = self.reshape(index, [1] * axis + [dims[axis]] + [1] * (len(dims) - axis - 1))
        spread = self.Expand(column, self.vector(dims))
        nothing = self.zeros([*dims[:axis], size, *dims[axis + 1 :]], dy)
        return self.scatter_add(nothing, spread, dy, axis=axis)

    def scatter_nd_add(self, onto: Tensor, indices: Tensor, dy: Tensor) -> Tensor:
        """ScatterND that adds."""
        return self.ScatterND(onto, indices, dy, reduction="add")

    def scatter_add(self, onto: Tensor, index: Tensor, dy: Tensor, axis: int) -> Tensor:
        """ScatterElements that adds. Half precision goes through float32: onnxruntime's CPU has no other sum of it."""
        if onnx_type(dy) not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return self.ScatterElements(onto, index, dy, axis=axis, reduction="add")
        wide = (self.Cast(v, to=TensorProto.FLOAT) for v in (onto, dy))
        return self.cast_to(self.ScatterElements(next(wide), index, next(wide), axis=axis, reduction="add"), dy)

    def eye(self, size: Dim, like: Tensor) -> Tensor:
        """The identity matrix."""
        if isinstance(size, int):
            return self.constant(np.eye(size, dtype=numpy_dtype(like)))
        places = self.range(size)
        return self.cast_to(self.Equal(self.Unsqueeze(places, np.array([1])), places), like)

    def apply_matrix(self, dy: Tensor, matrix: Tensor, axis: int) -> Tensor:
        """dx = A dy along one axis, A of shape [inputs, outputs]."""
        last = rank(dy) - 1
        if axis == last:
            return self.MatMul(dy, self.Transpose(matrix, perm=[1, 0]))
        if axis == last - 1:
            return self.MatMul(matrix, dy)
        perm = list(range(last + 1))
        perm[axis], perm[last] = last, axis
        moved = self.MatMul(self.Transpose(dy, perm=perm), self.Transpose(matrix, perm=[1, 0]))
        return self.Transpose(moved, perm=perm)

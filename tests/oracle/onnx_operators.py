"""ONNX operators as PyTorch functions, at any opset that a file may have been written in.

A function takes the node and its inputs in the order of https://onnx.ai/onnx/operators/; attributes come from the node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

F = torch.nn.functional


class Node(NamedTuple):
    """A node as the functions below see it: `float_type` stands for every float type of the file."""

    proto: NodeProto
    attributes: Mapping[str, Any]
    opset: int
    float_type: torch.dtype

    def get(self, name: str, default: Any = None) -> Any:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else value

    def array(self, value: np.ndarray[Any, Any]) -> Tensor:
        """A tensor of the file, floats in the working type."""
        tensor = torch.from_numpy(np.array(value))
        return tensor.to(self.float_type) if tensor.is_floating_point() else tensor


def integers(tensor: Tensor) -> list[int]:
    return [int(v) for v in tensor.reshape(-1).tolist()]


def listed(n: Node, name: str, given: Tensor | None) -> list[int] | None:
    """Integers that older opsets give as an attribute and newer ones as an input."""
    return integers(given) if given is not None else n.get(name)


# --- windows --------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A sliding window, auto_pad resolved; `extra` is what ceil_mode adds behind the end pads."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    extra: list[int]

    def pad(self, x: Tensor, value: float, extra: bool = True) -> Tensor:
        sides = []
        for begin, end, more in reversed(list(zip(self.begin, self.end, self.extra, strict=True))):
            sides += [begin, end + (more if extra else 0)]
        return F.pad(x, sides, value=value) if any(sides) else x

    def cut(self, x: Tensor) -> Tensor:
        """The windows of a padded image, each one flattened to a last axis."""
        rank = x.dim()
        for axis, (size, stride, dilation) in enumerate(zip(self.kernel, self.strides, self.dilations, strict=True), 2):
            x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.flatten(rank)


def window(n: Node, x: Tensor, kernel: Sequence[int]) -> Window:
    rank = len(kernel)
    strides, dilations = list(n.get("strides", [1] * rank)), list(n.get("dilations", [1] * rank))
    pads, auto = list(n.get("pads", [0] * 2 * rank)), n.get("auto_pad", "NOTSET")
    begin, end, extra = pads[:rank], pads[rank:], [0] * rank
    for i, size in enumerate(x.shape[2:]):
        reach = dilations[i] * (kernel[i] - 1) + 1
        if auto.startswith("SAME"):
            total = max((math.ceil(size / strides[i]) - 1) * strides[i] + reach - size, 0)
            small, large = total // 2, total - total // 2
            begin[i], end[i] = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            begin[i], end[i] = 0, 0
        if n.get("ceil_mode", 0):
            count = math.ceil((size + begin[i] + end[i] - reach) / strides[i]) + 1
            if (count - 1) * strides[i] >= size + begin[i]:  # a window must not start behind the input
                count -= 1
            extra[i] = max((count - 1) * strides[i] + reach - (size + begin[i] + end[i]), 0)
    return Window(list(kernel), strides, dilations, begin, end, extra)


CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def conv(n: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    v = window(n, x, w.shape[2:])
    return CONV[len(v.kernel)](v.pad(x, 0), w, b, v.strides, 0, v.dilations, n.get("group", 1))


def conv_transpose(n: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """All that the kernel reaches, cropped by the pads (or filled up with zeros by output_padding)."""
    kernel, rank = w.shape[2:], w.dim() - 2
    strides, dilations = n.get("strides", [1] * rank), n.get("dilations", [1] * rank)
    more, pads = n.get("output_padding", [0] * rank), n.get("pads", [0] * 2 * rank)
    y = CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, n.get("group", 1), dilations)
    sides = []
    for i in reversed(range(rank)):
        begin, end = pads[i], pads[i + rank]
        size = n.get("output_shape", [x.shape[2 + j] * strides[j] for j in range(rank)])[i]
        if "output_shape" in n.attributes or n.get("auto_pad", "NOTSET").startswith("SAME"):
            full = strides[i] * (x.shape[2 + i] - 1) + more[i] + dilations[i] * (kernel[i] - 1) + 1
            total = max(full - size, 0)
            small, large = total // 2, total - total // 2
            begin, end = (small, large) if n.get("auto_pad", "NOTSET") == "SAME_UPPER" else (large, small)
        sides += [-begin, more[i] - end]
    y = F.pad(y, sides)
    return y if b is None else y + b.reshape([-1] + [1] * rank)


def max_pool(n: Node, x: Tensor) -> Tensor:
    v = window(n, x, n.get("kernel_shape"))
    return MAX_POOL[len(v.kernel)](v.pad(x, -math.inf), v.kernel, v.strides, 0, v.dilations)


def average_pool(n: Node, x: Tensor) -> Tensor:
    """A mean of zero-padded windows, divided by the mean of what counts."""
    v = window(n, x, n.get("kernel_shape"))
    ones = torch.ones_like(x[:1, :1])
    if n.get("count_include_pad", 0):
        ones = F.pad(v.pad(ones, 1, extra=False), [s for e in reversed(v.extra) for s in (0, e)])
    else:
        ones = v.pad(ones, 0)
    return v.cut(v.pad(x, 0)).sum(-1) / v.cut(ones).sum(-1)


def lp_pool(n: Node, x: Tensor) -> Tensor:
    v, p = window(n, x, n.get("kernel_shape")), n.get("p", 2)
    return (v.cut(v.pad(x, 0)).abs() ** p).sum(-1) ** (1 / p)


def global_max_pool(n: Node, x: Tensor) -> Tensor:
    planes = x.flatten(2)
    first = planes.argmax(2, keepdim=True)
    return planes.gather(2, first).reshape([*x.shape[:2]] + [1] * (x.dim() - 2))


# --- normalisation, products ----------------------------------------------------------------------------------------


def batch_normalization(n: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, eps=n.get("epsilon", 1e-5))


def standardised(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True) + epsilon).sqrt()


def instance_normalization(n: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    channels = [-1] + [1] * (x.dim() - 2)
    y = standardised(x, range(2, x.dim()), n.get("epsilon", 1e-5))
    return y * scale.reshape(channels) + shift.reshape(channels)


def layer_normalization(n: Node, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    y = standardised(x, range(n.get("axis", -1) % x.dim(), x.dim()), n.get("epsilon", 1e-5)) * scale
    return y if shift is None else y + shift


def group_normalization(n: Node, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups, channels = n.get("num_groups"), x.shape[1]
    y = standardised(x.reshape(x.shape[0], groups, -1), [2], n.get("epsilon", 1e-5)).reshape(x.shape)
    if n.opset < 21:  # one number per group then, one per channel since
        scale, shift = (v.repeat_interleave(channels // groups) for v in (scale, shift))
    return y * scale.reshape([-1] + [1] * (x.dim() - 2)) + shift.reshape([-1] + [1] * (x.dim() - 2))


def lrn(n: Node, x: Tensor) -> Tensor:
    size = n.get("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = F.pad(x * x, [0, 0] * (x.dim() - 2) + [before, after])
    total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
    return x / (n.get("bias", 1.0) + n.get("alpha", 1e-4) / size * total) ** n.get("beta", 0.75)


def gemm(n: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    product = (a.T if n.get("transA", 0) else a) @ (b.T if n.get("transB", 0) else b)
    y = n.get("alpha", 1.0) * product
    return y if c is None else y + n.get("beta", 1.0) * c


def softmax(n: Node, x: Tensor, f: Callable[..., Tensor] = F.softmax) -> Tensor:
    if n.opset >= 13:
        return f(x, dim=n.get("axis", -1))
    rows = x.reshape(math.prod(x.shape[: n.get("axis", 1) % x.dim()]), -1)  # older opsets: all axes from `axis` on
    return f(rows, dim=1).reshape(x.shape)


def reduced(f: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    """A reduction; f is given the axes and whether to keep them."""

    def reduction(n: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = listed(n, "axes", axes)
        if not over and n.get("noop_with_empty_axes", 0):
            return x
        return f(x, tuple(a % x.dim() for a in over or range(x.dim())), bool(n.get("keepdims", 1)))

    return reduction


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


# --- activations ----------------------------------------------------------------------------------------------------


def clip(n: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    low = n.get("min") if low is None else low.item()
    high = n.get("max") if high is None else high.item()
    return bounded(x, -math.inf if low is None else low, math.inf if high is None else high)


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """clamp, but flat at the kinks themselves, as ReLU and ReLU6 are (torch's clamp has slope 1 there)."""
    return torch.where((x > low) & (x < high), x, x.detach().clamp(low, high))


def hard_sigmoid(n: Node, x: Tensor) -> Tensor:
    return bounded(n.get("alpha", 0.2) * x + n.get("beta", 0.5), 0, 1)


def hard_swish(x: Tensor) -> Tensor:
    return x * bounded(x / 6 + 0.5, 0, 1)


def selu(n: Node, x: Tensor) -> Tensor:
    alpha, gamma = n.get("alpha", 1.67326319217681884765625), n.get("gamma", 1.05070102214813232421875)
    return gamma * F.elu(x, alpha)


# --- movement -------------------------------------------------------------------------------------------------------


def reshape(n: Node, x: Tensor, shape: Tensor) -> Tensor:
    copies = not n.get("allowzero", 0)
    return x.reshape([x.shape[i] if d == 0 and copies else d for i, d in enumerate(integers(shape))])


def flatten(n: Node, x: Tensor) -> Tensor:
    axis = n.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis % x.dim() if axis < 0 else axis]), -1)


def unsqueeze(n: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = listed(n, "axes", axes) or []
    for axis in sorted(a % (x.dim() + len(found)) for a in found):
        x = x.unsqueeze(axis)
    return x


def slice_(n: Node, x: Tensor, *bounds: Tensor) -> Tensor:
    starts, ends, axes, steps = (
        listed(n, name, bounds[i] if i < len(bounds) else None)
        for i, name in enumerate(("starts", "ends", "axes", "steps"))
    )
    for i, (start, end) in enumerate(zip(starts or [], ends or [], strict=True)):
        axis = axes[i] if axes else i
        places = range(x.shape[axis])[slice(start, end, steps[i] if steps else 1)]
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


def gather(n: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = n.get("axis", 0) % x.dim()
    found = x.index_select(axis, indices.reshape(-1) % x.shape[axis])
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


REACH = {  # Pad's modes: where a place outside of 0 .. size - 1 takes its value from
    "edge": lambda place, size: min(max(place, 0), size - 1),
    "wrap": lambda place, size: place % size,
    "reflect": lambda place, size: size - 1 - abs(size - 1 - place % (2 * size - 2)) if size > 1 else 0,
}


def pad(
    n: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    sides = listed(n, "pads", pads) or []
    pairs = [(0, 0)] * x.dim()
    given = zip(sides[: len(sides) // 2], sides[len(sides) // 2 :], strict=True)
    for axis, pair in zip(integers(axes) if axes is not None else range(x.dim()), given, strict=True):
        pairs[axis] = pair
    mode = n.get("mode", "constant")
    if mode != "constant":
        for axis, (begin, end) in enumerate(pairs):
            places = [REACH[mode](place, x.shape[axis]) for place in range(-begin, x.shape[axis] + end)]
            x = x.index_select(axis, torch.tensor(places))
        return x
    fill = n.get("value", 0.0) if value is None else value.item()
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=fill)


def split(n: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis, count = n.get("axis", 0), len(n.proto.output)
    each = -(-x.shape[axis] // count)  # the last part is the smaller one
    return x.split(listed(n, "split", sizes) or each, axis)


def squeeze(n: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = listed(n, "axes", axes)
    return x.squeeze() if over is None else x.squeeze(tuple(over))


def cum_sum(n: Node, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    x = x.flip(along) if n.get("reverse", 0) else x
    y = x.cumsum(along) - (x if n.get("exclusive", 0) else 0)
    return y.flip(along) if n.get("reverse", 0) else y


def depth_to_space(n: Node, x: Tensor) -> Tensor:
    size, (batch, channels, height, width) = n.get("blocksize"), x.shape
    if n.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    blocks = x.reshape(batch, size * size, channels // size**2, height, width).transpose(1, 2)
    return F.pixel_shuffle(blocks.reshape(x.shape), size)


def space_to_depth(n: Node, x: Tensor) -> Tensor:
    size, (batch, channels, height, width) = n.get("blocksize"), x.shape
    blocks = F.pixel_unshuffle(x, size).reshape(batch, channels, size * size, height // size, width // size)
    return blocks.transpose(1, 2).flatten(1, 2)


def expand(n: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, integers(shape)))


NEAREST: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda place: (place - 0.5).ceil(),
    "round_prefer_ceil": lambda place: (place + 0.5).floor(),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def places_of(mode: str, size: int, new: int, scale: float) -> Tensor:
    """Where in the old axis each place of the new one lies."""
    place = torch.arange(new, dtype=torch.float64)
    if mode == "align_corners":
        return place * (size - 1) / (new - 1) if new > 1 else place
    if mode == "asymmetric":
        return place / scale
    if mode == "pytorch_half_pixel" and new == 1:
        return place * 0
    return (place + 0.5) / scale - 0.5


def resize(n: Node, x: Tensor, *given: Tensor | None) -> Tensor:
    """Every axis by itself: an index for nearest, a matrix of two weights per row for linear."""
    _, scales, sizes = (*given, None, None, None)[:3]
    mode, coordinates = n.get("mode", "nearest"), n.get("coordinate_transformation_mode", "half_pixel")
    axes = n.get("axes", list(range(x.dim())))
    for i, axis in enumerate(axes):
        size = x.shape[axis]
        if sizes is not None and sizes.numel():
            new, scale = int(sizes[i]), int(sizes[i]) / size
        else:
            scale = float(scales[i])  # type: ignore[index]
            new = math.floor(size * scale)
        if new == size and scale == 1:
            continue
        place = places_of(coordinates, size, new, scale)
        if mode == "nearest":
            index = NEAREST[n.get("nearest_mode", "round_prefer_floor")](place).clamp(0, size - 1).long()
            x = x.index_select(axis, index)
        else:
            place = place.clamp(0, size - 1)
            weights = (1 - (place[:, None] - torch.arange(size, dtype=torch.float64)).abs()).clamp(min=0)
            x = torch.tensordot(x, weights.to(x.dtype), ([axis], [1])).movedim(-1, axis)
    return x


def upsample(n: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    factors = n.get("scales") if scales is None else scales.tolist()
    if n.get("mode", "nearest") != "nearest":
        raise NotImplementedError(f"Upsample with mode {n.get('mode')}")
    for axis, factor in enumerate(factors):
        if factor != 1:
            places = torch.arange(int(x.shape[axis] * factor), dtype=torch.float64) / factor
            x = x.index_select(axis, places.floor().long())
    return x


# --- constants ------------------------------------------------------------------------------------------------------


def constant(n: Node) -> Tensor:
    (value,) = n.attributes.values()
    return n.array(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value))


def constant_of_shape(n: Node, shape: Tensor) -> Tensor:
    value = n.array(numpy_helper.to_array(n.get("value"))) if n.get("value") else torch.zeros(1, dtype=n.float_type)
    return value.expand(integers(shape))


def cast(n: Node, x: Tensor) -> Tensor:
    return x.to(n.array(np.zeros(0, helper.tensor_dtype_to_np_dtype(n.get("to")))).dtype)


def ratio(n: Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": lambda n, x: x.abs(),
    "Add": lambda n, a, b: a + b,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Celu": lambda n, x: F.celu(x, n.get("alpha", 1.0)),
    "Clip": clip,
    "Concat": lambda n, *x: torch.cat(x, n.get("axis")),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "CumSum": cum_sum,
    "DepthToSpace": depth_to_space,
    "Div": ratio,
    "Dropout": lambda n, x, *_: x,
    "Elu": lambda n, x: F.elu(x, n.get("alpha", 1.0)),
    "Erf": lambda n, x: x.erf(),
    "Exp": lambda n, x: x.exp(),
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gelu": lambda n, x: F.gelu(x, approximate=n.get("approximate", "none")),
    "Gemm": gemm,
    "GlobalAveragePool": lambda n, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": global_max_pool,
    "Greater": lambda n, a, b: a > b,
    "GroupNormalization": group_normalization,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda n, x: hard_swish(x),
    "Identity": lambda n, x: x,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n.get("alpha", 0.01)),
    "Less": lambda n, a, b: a < b,
    "Log": lambda n, x: x.log(),
    "LogSoftmax": lambda n, x: softmax(n, x, F.log_softmax),
    "LpPool": lp_pool,
    "MatMul": lambda n, a, b: a @ b,
    "Max": lambda n, a, b: torch.maximum(a, b),
    "MaxPool": max_pool,
    "Mean": lambda n, *x: sum(x) / len(x),
    "Min": lambda n, a, b: torch.minimum(a, b),
    "Mish": lambda n, x: x * F.softplus(x, threshold=1e9).tanh(),
    "Mul": lambda n, a, b: a * b,
    "Neg": lambda n, x: -x,
    "PRelu": lambda n, x, slope: torch.where(x < 0, slope * x, x),
    "Pad": pad,
    "Pow": lambda n, x, power: x**power,
    "Reciprocal": lambda n, x: 1 / x,
    "ReduceL1": reduced(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduced(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": reduced(torch.logsumexp),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceProd": reduced(product),
    "ReduceSum": reduced(torch.sum),
    "ReduceSumSquare": reduced(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": lambda n, x: x.relu(),
    "Reshape": reshape,
    "Resize": resize,
    "Selu": selu,
    "Shape": lambda n, x: torch.tensor(x.shape)[n.get("start") : n.get("end")],
    "Sigmoid": lambda n, x: x.sigmoid(),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": lambda n, x: F.softplus(x, threshold=1e9),
    "Softsign": lambda n, x: F.softsign(x),
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Sqrt": lambda n, x: x.sqrt(),
    "Squeeze": squeeze,
    "Sub": lambda n, a, b: a - b,
    "Sum": lambda n, *x: sum(x),
    "Tanh": lambda n, x: x.tanh(),
    "ThresholdedRelu": lambda n, x: torch.where(x > n.get("alpha", 1.0), x, 0),
    "Tile": lambda n, x, repeats: x.repeat(integers(repeats)),
    "Transpose": lambda n, x: x.permute(list(n.get("perm", range(x.dim())[::-1]))),
    "Unsqueeze": unsqueeze,
    "Upsample": upsample,
    "Where": lambda n, condition, a, b: torch.where(condition, a, b),
}

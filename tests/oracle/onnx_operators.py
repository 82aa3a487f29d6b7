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
MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(n: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    v = window(n, x, w.shape[2:])
    return CONV[len(v.kernel)](v.pad(x, 0), w, b, v.strides, 0, v.dilations, n.get("group", 1))


def max_pool(n: Node, x: Tensor) -> Tensor:
    v = window(n, x, n.get("kernel_shape"))
    return MAX_POOL[len(v.kernel)](v.pad(x, -math.inf), v.kernel, v.strides, 0, v.dilations)


def average_pool(n: Node, x: Tensor) -> Tensor:
    """A mean of zero-padded windows, divided by the mean of what counts."""
    v = window(n, x, n.get("kernel_shape"))
    pool = AVERAGE_POOL[len(v.kernel)]
    ones = torch.ones_like(x[:1, :1])
    if n.get("count_include_pad", 0):
        ones = F.pad(v.pad(ones, 1, extra=False), [s for e in reversed(v.extra) for s in (0, e)])
    else:
        ones = v.pad(ones, 0)
    return pool(v.pad(x, 0), v.kernel, v.strides) / pool(ones, v.kernel, v.strides)


# --- normalisation, products ----------------------------------------------------------------------------------------


def batch_normalization(n: Node, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, shift, eps=n.get("epsilon", 1e-5))


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


def pad(n: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    if n.get("mode", "constant") != "constant":
        raise NotImplementedError(f"Pad with mode {n.get('mode')}")
    sides = listed(n, "pads", pads) or []
    pairs = list(zip(sides[: x.dim()], sides[x.dim() :], strict=True))
    fill = n.get("value", 0.0) if value is None else value.item()
    return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=fill)


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
    "Add": lambda n, a, b: a + b,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": lambda n, *x: torch.cat(x, n.get("axis")),
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "Div": ratio,
    "Dropout": lambda n, x, *_: x,
    "Elu": lambda n, x: F.elu(x, n.get("alpha", 1.0)),
    "Exp": lambda n, x: x.exp(),
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": lambda n, x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda n, x: hard_swish(x),
    "Identity": lambda n, x: x,
    "LRN": lrn,
    "LeakyRelu": lambda n, x: F.leaky_relu(x, n.get("alpha", 0.01)),
    "LogSoftmax": lambda n, x: softmax(n, x, F.log_softmax),
    "MatMul": lambda n, a, b: a @ b,
    "Max": lambda n, a, b: torch.maximum(a, b),
    "MaxPool": max_pool,
    "Mul": lambda n, a, b: a * b,
    "PRelu": lambda n, x, slope: torch.where(x < 0, slope * x, x),
    "Pad": pad,
    "Relu": lambda n, x: x.relu(),
    "Reshape": reshape,
    "Selu": selu,
    "Shape": lambda n, x: torch.tensor(x.shape)[n.get("start") : n.get("end")],
    "Sigmoid": lambda n, x: x.sigmoid(),
    "Slice": slice_,
    "Softmax": softmax,
    "Softplus": lambda n, x: F.softplus(x, threshold=1e9),
    "Sub": lambda n, a, b: a - b,
    "Sum": lambda n, *x: sum(x),
    "Tanh": lambda n, x: x.tanh(),
    "ThresholdedRelu": lambda n, x: torch.where(x > n.get("alpha", 1.0), x, 0),
    "Transpose": lambda n, x: x.permute(list(n.get("perm", range(x.dim())[::-1]))),
    "Unsqueeze": unsqueeze,
    "Upsample": upsample,
}

"""The layers that random networks are built from: one small function each, in a table by name.

A layer reads an image (rank 3 to 5: batch, channels, one to three spatial dimensions), draws its options, appends its
nodes and returns the name of an image; None where it can't be put, such as a reflecting Pad wider than the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from tests.proof.random_net import Net

Layer = Callable[[Net, str], str | None]
LAYERS: dict[str, Layer] = {}
IDIOMS = {"silu", "gelu with erf", "gelu with tanh", "hard-sigmoid written out", "mish written out"}


def layer(name: str) -> Callable[[Layer], Layer]:
    def register(f: Layer) -> Layer:
        LAYERS[name] = f
        return f

    return register


def since(opset: int, f: Layer) -> Layer:
    return lambda net, x: f(net, x) if net.opset >= opset else None


# --- convolution ------------------------------------------------------------------------------------------------------


def padding(net: Net, rank: int, most: int) -> dict[str, Any]:
    """Explicit pads or an auto_pad."""
    kind = net.pick("none", "same on both sides", "any", "SAME_UPPER", "SAME_LOWER", "VALID")
    if kind == "none":
        return {}
    if kind == "same on both sides":
        return {"pads": net.integers(rank, 0, most) * 2}
    return {"pads": net.integers(2 * rank, 0, most)} if kind == "any" else {"auto_pad": kind}


def reaches(net: Net, x: str, kernel: list[int], dilations: list[int]) -> bool:
    """Whether windows fit into the image even without pads."""
    return all(d * (k - 1) < size for k, d, size in zip(kernel, dilations, net.shape(x)[2:], strict=True))


@layer("Conv")
def conv(net: Net, x: str) -> str | None:
    rank, channels = net.dims(x), net.shape(x)[1]
    group = net.pick(*(g for g in range(1, channels + 1) if channels % g == 0))
    kernel, dilations, strides = net.integers(rank, 1, 3), net.integers(rank, 1, 2), net.integers(rank, 1, 2)
    if not reaches(net, x, kernel, dilations):
        return None
    out = group * net.integer(1, 3)
    fan = channels // group * math.prod(kernel)
    weights = [net.weight(out, channels // group, *kernel, scale=fan**-0.5)]
    weights += [net.weight(out, scale=0.3)] if net.flip() else []
    more = padding(net, rank, 2)
    dilations = [1] * rank if str(more.get("auto_pad")).startswith("SAME") else dilations
    return net.add("Conv", x, *weights, group=group, strides=strides, dilations=dilations, **more)


@layer("Conv by a part of the image")
def own_kernel(net: Net, x: str) -> str:
    """A kernel that the input decides: both operands have a gradient."""
    rank = net.dims(x)
    axes = [0, *range(2, rank + 2)]
    ends = [1, *net.integers(rank, 1, 2)]
    bounds = [0] * (rank + 1), ends, axes
    kernel = net.add("Slice", x, *(net.indices(*b) for b in bounds))
    return net.add("Conv", x, kernel, pads=net.integers(rank, 0, 1) * 2, strides=net.integers(rank, 1, 2))


@layer("ConvTranspose")
def conv_transpose(net: Net, x: str) -> str | None:
    rank, channels = net.dims(x), net.shape(x)[1]
    group = net.pick(*(g for g in range(1, channels + 1) if channels % g == 0))
    kernel, dilations, strides = net.integers(rank, 1, 3), net.integers(rank, 1, 2), net.integers(rank, 1, 3)
    more: dict[str, Any] = {}
    kind = net.pick("none", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape")
    if kind.startswith("SAME") or kind == "VALID":
        more["auto_pad"] = kind
    elif kind == "output_shape" and net.symbolic != "none":
        return None  # refused: the pads follow from the size
    elif kind == "output_shape":
        sizes = zip(net.shape(x)[2:], kernel, dilations, strides, strict=True)
        full = [s * (size - 1) + d * (k - 1) + 1 for size, k, d, s in sizes]
        more["output_shape"] = [net.integer(max(f - 2, 1), f) for f in full]
    elif kind == "pads":
        more["pads"] = [min(p, k - 1) for p, k in zip(net.integers(2 * rank, 0, 1), kernel * 2, strict=True)]
    if kind in ("none", "pads") and net.flip():
        more["output_padding"] = [net.integer(0, s - 1) for s in strides]
    sizes = zip(net.shape(x)[2:], kernel, dilations, strides, strict=True)
    if any(s * (size - 1) + d * (k - 1) + 1 - 2 <= 0 for size, k, d, s in sizes):
        return None
    out = net.integer(1, 2)
    fan = channels // group * math.prod(kernel) / math.prod(strides)
    weights = [net.weight(channels, out, *kernel, scale=fan**-0.5)]
    weights += [net.weight(out * group, scale=0.3)] if net.flip() else []
    return net.add("ConvTranspose", x, *weights, group=group, strides=strides, dilations=dilations, **more)


# --- pools ------------------------------------------------------------------------------------------------------------


def drops_windows(
    net: Net, x: str, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int]
) -> bool:
    """Whether ceil_mode meets a window that starts behind the image.

    The operators ignore it, but shape inference counts it, in onnx and in onnxruntime, which then plans its memory
    wrongly in the source already.
    """
    rank = len(kernel)
    for i, size in enumerate(net.shape(x)[2:]):
        reach = dilations[i] * (kernel[i] - 1) + 1
        last = -(-(size + pads[i] + pads[i + rank] - reach) // strides[i]) * strides[i]
        if last >= size + pads[i]:
            return True
    return False


def pool(kind: str, dilated_since: int, **options: list[Any]) -> Layer:
    def f(net: Net, x: str) -> str | None:
        rank = net.dims(x)
        kernel, strides, dilations = net.integers(rank, 1, 3), net.integers(rank, 1, 3), net.integers(rank, 1, 2)
        more: dict[str, Any] = {name: net.pick(*values) for name, values in options.items()}
        more |= padding(net, rank, 1)
        if str(more.get("auto_pad")).startswith("SAME"):  # onnxruntime refuses windows that leave places out
            strides = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
        if net.opset < dilated_since or str(more.get("auto_pad")).startswith("SAME"):
            dilations = [1] * rank
        if not reaches(net, x, kernel, dilations):
            return None
        if "pads" in more:
            more["pads"] = [min(p, k - 1) for p, k in zip(more["pads"], kernel * 2, strict=True)]
        if "auto_pad" in more:
            more.pop("ceil_mode", None)
        if net.opset >= dilated_since:
            more["dilations"] = dilations
        pads = more.get("pads", [0] * 2 * rank)
        if more.get("ceil_mode") and drops_windows(net, x, kernel, strides, dilations, pads):
            more["ceil_mode"] = 0
        return net.add(kind, x, kernel_shape=kernel, strides=strides, **more)

    return f


LAYERS["MaxPool"] = pool("MaxPool", 11, ceil_mode=[0, 1])
LAYERS["AveragePool"] = pool("AveragePool", 19, ceil_mode=[0, 1], count_include_pad=[0, 1])
LAYERS["LpPool"] = pool("LpPool", 18, p=[1, 2, 3])
LAYERS["GlobalAveragePool"] = lambda net, x: net.add("GlobalAveragePool", x)
LAYERS["GlobalMaxPool"] = lambda net, x: net.add("GlobalMaxPool", x)

# --- normalisation ----------------------------------------------------------------------------------------------------


@layer("BatchNormalization")
def batch_norm(net: Net, x: str) -> str | None:
    c = net.shape(x)[1]
    weights = net.weight(c), net.weight(c, scale=0.3), net.weight(c, scale=0.3), net.positive(c)
    return net.add("BatchNormalization", x, *weights, epsilon=net.pick(None, 1e-3))


@layer("InstanceNormalization")
def instance_norm(net: Net, x: str) -> str | None:
    c, positions = net.shape(x)[1], math.prod(net.shape(x)[2:])
    if positions < 3:
        return None
    return net.add("InstanceNormalization", x, net.weight(c), net.weight(c, scale=0.3), epsilon=net.pick(None, 1e-2))


@layer("LayerNormalization")
def layer_norm(net: Net, x: str) -> str | None:
    axis = net.integer(1, net.dims(x) + 1)
    shape = net.shape(x)[axis:]
    if net.opset < 17 or math.prod(shape) < 3:
        return None
    weights = [net.weight(*shape)] + ([net.weight(*shape, scale=0.3)] if net.flip() else [])
    return net.add("LayerNormalization", x, *weights, axis=net.pick(axis, axis - len(net.shape(x))))


@layer("GroupNormalization")
def group_norm(net: Net, x: str) -> str | None:
    c, positions = net.shape(x)[1], math.prod(net.shape(x)[2:])
    groups = net.pick(*(g for g in range(1, c + 1) if c % g == 0))
    if net.opset < 18 or positions * c // groups < 3:
        return None
    size = groups if net.opset < 21 else c
    return net.add("GroupNormalization", x, net.weight(size), net.weight(size, scale=0.3), num_groups=groups)


@layer("LRN")
def lrn(net: Net, x: str) -> str | None:
    size = net.pick(1, 3, 5) if net.dims(x) == 2 else 0
    return net.add("LRN", x, size=size, alpha=net.pick(1e-4, 0.5), beta=0.6, bias=net.pick(1.0, 2.0)) if size else None


# --- activations ------------------------------------------------------------------------------------------------------


def activation(kind: str, **options: list[Any]) -> Layer:
    def f(net: Net, x: str) -> str:
        return net.add(kind, x, **{name: net.pick(*values) for name, values in options.items()})

    return f


LAYERS |= {
    "Relu": activation("Relu"),
    "ThresholdedRelu": activation("ThresholdedRelu", alpha=[None, 0.3]),
    "LeakyRelu": activation("LeakyRelu", alpha=[None, 0.2]),
    "Elu": activation("Elu", alpha=[None, 0.5]),
    "Selu": activation("Selu"),
    "Celu": since(12, activation("Celu", alpha=[None, 0.6])),
    "Sigmoid": activation("Sigmoid"),
    "Tanh": activation("Tanh"),
    "HardSigmoid": activation("HardSigmoid", alpha=[None, 0.3], beta=[None, 0.4]),
    "HardSwish": since(14, activation("HardSwish")),
    "Softplus": activation("Softplus"),
    "Softsign": activation("Softsign"),
    "Mish": since(18, activation("Mish")),
    "Gelu": since(20, activation("Gelu", approximate=[None, "tanh"])),
    "Abs": activation("Abs"),
    "Neg": activation("Neg"),
    "Erf": activation("Erf"),
}


@layer("Relu after Relu")
def two_relus(net: Net, x: str) -> str:
    return net.add("Relu", net.add("Relu", x))


@layer("Clip")
def clip(net: Net, x: str) -> str:
    low, high = net.pick((0, 6), (0, 1), (0, None), (-0.5, 0.7), (None, 0.4), (-0.3, None))
    bounds = ["" if bound is None else net.constant(bound) for bound in (low, high)]
    return net.add("Clip", x, *(bounds if bounds[1] else bounds[:1]))


@layer("PRelu")
def prelu(net: Net, x: str) -> str:
    _, channels, *space = net.shape(x)
    ones = [1] * len(space)
    shape = net.pick([channels, *ones], [1], [1, channels, *ones], [channels, *space], [1, *ones])
    return net.add("PRelu", x, net.constant(net.random.uniform(-0.5, 0.8, shape)))


@layer("Max(x, 0)")
def max_zero(net: Net, x: str) -> str:
    pair = [x, net.constant(0.0)]
    return net.add("Max", *(pair if net.flip() else pair[::-1]))


@layer("silu")
def silu(net: Net, x: str) -> str:
    return net.add("Mul", x, net.add("Sigmoid", x))


@layer("mish written out")
def mish(net: Net, x: str) -> str:
    return net.add("Mul", x, net.add("Tanh", net.add("Softplus", x)))


@layer("hard-swish written out")
def hard_swish(net: Net, x: str) -> str:
    shifted = net.add("Add", x, net.constant(3.0))
    ramp = net.add("Clip", shifted, net.constant(0.0), net.constant(6.0))
    form = net.integer(0, 2)
    if form == 0:
        return net.add("Div", net.add("Mul", x, ramp), net.constant(6.0))
    gate = net.add("Div", ramp, net.constant(6.0)) if form == 1 else net.add("Mul", ramp, net.constant(1 / 6))
    return net.add("Mul", x, gate)


@layer("hard-sigmoid written out")
def hard_sigmoid(net: Net, x: str) -> str:
    ramp = net.add("Clip", net.add("Add", x, net.constant(3.0)), net.constant(0.0), net.constant(6.0))
    return net.add("Div", ramp, net.constant(6.0))


@layer("gelu with erf")
def gelu_erf(net: Net, x: str) -> str:
    bell = net.add("Add", net.add("Erf", net.add("Div", x, net.constant(2**0.5))), net.constant(1.0))
    half = net.constant(0.5)
    if net.flip():
        return net.add("Mul", net.add("Mul", x, bell), half)
    return net.add("Mul", net.add("Mul", x, half), bell)


@layer("gelu with tanh")
def gelu_tanh(net: Net, x: str) -> str:
    cube = net.add("Pow", x, net.constant(3.0)) if net.flip() else net.add("Mul", net.add("Mul", x, x), x)
    inner = net.add("Add", x, net.add("Mul", cube, net.constant(0.044715)))
    bell = net.add("Tanh", net.add("Mul", inner, net.constant((2 / math.pi) ** 0.5)))
    return net.add("Mul", net.add("Mul", x, net.constant(0.5)), net.add("Add", bell, net.constant(1.0)))


@layer("arithmetic")
def arithmetic(net: Net, x: str) -> str:
    """Functions of a bounded argument, away from their poles."""
    kind = net.pick("Exp", "Log", "Sqrt", "Reciprocal", "Pow 2", "Pow 1.5", "Div")
    if kind == "Exp":
        return net.add("Exp", net.add("Tanh", x))
    if kind == "Pow 2":
        return net.add("Pow", x, net.constant(2.0))
    positive = net.add("Add", net.add("Softplus", x), net.constant([0.5]))
    if kind == "Div":
        return net.add("Div", x, positive)
    return net.add("Pow", positive, net.constant(1.5)) if kind == "Pow 1.5" else net.add(kind, positive)


# --- products and sums of tensors -------------------------------------------------------------------------------------


def broadcast_shape(net: Net, x: str) -> list[int]:
    """A shape that broadcasts to that of x: some axes 1, some leading ones left out."""
    shape = [net.pick(size, 1) for size in net.shape(x)]
    return shape[net.integer(0, len(shape)) :]


@layer("constant operand")
def constant_operand(net: Net, x: str) -> str:
    kind, shape = net.pick("Add", "Sub", "Mul", "Div"), broadcast_shape(net, x)
    # A negative scalar: clip(x + c, 0, 6) · w with 0 < c < 6 is read as half a hard-swish, not as a ReLU6.
    constant = net.positive(*shape) if kind in ("Mul", "Div") else net.constant(-net.random.uniform(0.1, 1, shape))
    swapped = kind in ("Add", "Sub", "Mul") and net.flip()
    return net.add(kind, *((constant, x) if swapped and (kind != "Add" or shape) else (x, constant)))


@layer("second input")
def second_input(net: Net, x: str) -> str | None:
    if len(net.inputs) > 1:
        return None
    other = net.input(*broadcast_shape(net, x))
    return net.add(net.pick("Add", "Sub", "Mul"), *net.pick((x, other), (other, x)))


def partner(net: Net, x: str) -> str | None:
    """Another image that x can be joined with, x itself among them."""
    found = []
    for other in net.images:
        try:
            torch.broadcast_shapes(net.shape(x), net.shape(other))
        except RuntimeError:
            continue
        found.append(other)
    return net.pick(*found) if found else None


@layer("two operands")
def two_operands(net: Net, x: str) -> str | None:
    other = partner(net, x)
    if other is None:
        return None
    kind = net.pick("Add", "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")
    if kind == "Div":
        other = net.add("Add", net.add("Sigmoid", other), net.constant([0.5]))
    pair = (x, other) if kind == "Div" or net.flip() else (other, x)
    return net.add(kind, *pair, *([x] if kind in ("Sum", "Mean") else []))


@layer("residual")
def residual(net: Net, x: str) -> str | None:
    """x + f(x), f a convolution that keeps the shape."""
    rank, channels = net.dims(x), net.shape(x)[1]
    weight = net.weight(channels, channels, *[3] * rank, scale=(channels * 3**rank) ** -0.5)
    y = net.add("Conv", x, weight, pads=[1] * 2 * rank)
    return net.add("Relu", net.add("Add", y, x)) if net.flip() else net.add("Add", net.add("Relu", y), x)


@layer("squeeze and excitation")
def excitation(net: Net, x: str) -> str:
    rank, channels = net.dims(x), net.shape(x)[1]
    mean = net.add("GlobalAveragePool", x)
    few = net.add("Relu", net.add("Conv", mean, net.weight(2, channels, *[1] * rank), net.positive(2)))
    gate = net.add(net.pick("Sigmoid", "HardSigmoid"), net.add("Conv", few, net.weight(channels, 2, *[1] * rank)))
    return net.add("Mul", *net.pick((x, gate), (gate, x)))


@layer("Concat")
def concat(net: Net, x: str) -> str | None:
    axis = net.integer(0, len(net.shape(x)) - 1)

    def rest(name: str) -> list[int]:
        return [size for a, size in enumerate(net.shape(name)) if a != axis] + [len(net.shape(name))]

    others = [o for o in net.images if rest(o) == rest(x)]
    chosen = [x] + [net.pick(*others) for _ in range(net.integer(1, 2)) if others]
    if axis == 0 and net.shape(x)[0] * len(chosen) > 4:
        return None
    return net.add("Concat", *chosen, axis=net.pick(axis, axis - len(net.shape(x))))


@layer("branches")
def branches(net: Net, x: str) -> str:
    """Two 1x1 convolutions side by side, concatenated or added."""
    rank, channels = net.dims(x), net.shape(x)[1]
    sides = []
    for kind in ("Relu", net.pick("Relu", "Tanh", "LeakyRelu")):
        weight = net.weight(2, channels, *[1] * rank, scale=channels**-0.5)
        sides.append(net.add(kind, net.add("Conv", x, weight)))
    return net.add("Concat", *sides, axis=1) if net.flip() else net.add("Add", *sides)


@layer("Where")
def where(net: Net, x: str) -> str:
    test = net.add(net.pick("Greater", "Less"), x, net.constant(net.pick(0.3, -0.4)))
    return net.add("Where", test, *net.pick((net.add("Tanh", x), x), (x, net.constant([0.7])), (net.constant(0.2), x)))


@layer("MatMul inside")
def matmul(net: Net, x: str) -> str:
    last = net.shape(x)[-1]
    if net.flip():
        return net.add("MatMul", x, net.weight(last, net.integer(1, 4), scale=last**-0.5))
    order = list(range(len(net.shape(x))))
    turned = net.add("Transpose", x, perm=[*order[:-2], order[-1], order[-2]])
    return net.add("MatMul", *net.pick((x, turned), (turned, x)))


# --- movement ---------------------------------------------------------------------------------------------------------


def split_sizes(net: Net, size: int) -> list[int]:
    first = net.integer(1, size - 1)
    return [first, size - first]


@layer("Split")
def split(net: Net, x: str) -> str | None:
    axes = [a for a, size in enumerate(net.shape(x)) if size > 1]
    if not axes:
        return None
    axis = net.pick(*axes)
    size = net.shape(x)[axis]
    if size % 2 == 0 and net.flip():
        parts = net.add("Split", x, outputs=2, axis=axis, num_outputs=2 if net.opset >= 18 else None)
    else:
        parts = net.listed("Split", x, 13, "split", split_sizes(net, size), outputs=2, axis=axis)
    use = net.pick("first", "last", "swapped", "one twice")
    if use in ("first", "last"):
        return parts[use == "last"]
    return net.add("Concat", *(parts[::-1] if use == "swapped" else [parts[0], parts[0]]), axis=axis)


@layer("Slice")
def slice_(net: Net, x: str) -> str | None:
    axes = sorted({net.integer(0, len(net.shape(x)) - 1) for _ in range(net.integer(1, 2))})
    starts, ends, steps = [], [], []
    for axis in axes:
        size, step = net.shape(x)[axis], net.pick(1, 2, -1, -2)
        low = net.integer(0, size - 1)
        high = net.integer(low, size - 1)
        past = high + 1 if high + 1 < size else net.pick(size, 2**31 - 1)
        before = low - 1 if low else net.pick(-size - 1, -(2**31))
        starts.append(low if step > 0 else high - net.pick(0, size))
        ends.append(past if step > 0 else before)
        steps.append(step)
    listing = [starts, ends, axes, steps] if any(s != 1 for s in steps) or net.flip() else [starts, ends, axes]
    return net.add("Slice", x, *(net.indices(*v) for v in listing))


@layer("Pad")
def pad(net: Net, x: str) -> str | None:
    mode = net.pick("constant", "reflect", "edge", "wrap")
    if mode == "wrap" and net.opset < 19:
        return None
    rank = len(net.shape(x))
    low = -1 if mode == "constant" else 0
    sides = [0] * 2 * rank
    for axis in range(2 if net.flip() else 1, rank):
        most = min(2, net.shape(x)[axis] - 1) if mode in ("reflect", "wrap") else 2
        least = low if net.shape(x)[axis] > 2 else 0
        sides[axis], sides[axis + rank] = net.integer(least, most), net.integer(least, most)
    values = [net.constant(net.pick(0.0, 0.5))] if mode == "constant" and net.flip() else []
    if net.opset >= 18 and net.flip():
        axes = list(range(1, rank))
        sides = [sides[a] for a in axes] + [sides[a + rank] for a in axes]
        return net.add("Pad", x, net.indices(*sides), *(values or [""]), net.indices(*axes), mode=mode)
    return net.add("Pad", x, net.indices(*sides), *values, mode=mode)


@layer("Reshape")
def reshape(net: Net, x: str) -> str:
    """Two neighbouring axes into one, or one into two; by constants, zeros and -1."""
    shape = net.shape(x)
    axis = net.integer(0, len(shape) - 2)
    joined = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
    if len(joined) >= 3:
        return net.add("Reshape", x, net.indices(*joined))
    target = [0, -1, *shape[2:]] if len(shape) < 5 and axis else [-1, *shape[1:]]
    return net.add("Reshape", x, net.indices(*target))


@layer("flat and back")
def flat_and_back(net: Net, x: str) -> str:
    """To rank 2 and back again, the shape being read from x at run time or known."""
    flat = net.add("Flatten", x, axis=net.integer(0, len(net.shape(x)))) if net.flip() else None
    flat = flat or net.add("Reshape", x, net.indices(net.shape(x)[0], -1))
    if net.flip():
        flat = net.add(net.pick("Relu", "Tanh"), flat)
    shape = net.add("Shape", x) if net.flip() else net.indices(*net.shape(x))
    return net.add("Reshape", flat, shape)


@layer("shape arithmetic")
def shape_arithmetic(net: Net, x: str) -> str:
    """What exporters write for x.view(n, -1, w): Shape, Gather, Unsqueeze, Concat, Reshape."""
    shape = net.add("Shape", x)
    ends = [net.add("Gather", shape, net.constant(place, np.int64), axis=0) for place in (0, -1)]
    first, last = (net.listed("Unsqueeze", e, 13, "axes", [0]) for e in ends)
    return net.add("Reshape", x, net.add("Concat", first, net.indices(-1), last, axis=0))


@layer("Transpose")
def transpose(net: Net, x: str) -> str:
    order = list(range(len(net.shape(x))))
    swap = net.integer(1, len(order) - 2) if net.flip() else 0
    order[swap], order[swap + 1] = order[swap + 1], order[swap]
    return net.add("Transpose", x, perm=order)


@layer("Unsqueeze")
def unsqueeze(net: Net, x: str) -> str | None:
    rank = len(net.shape(x))
    if rank > 4:
        return None
    axis = net.integer(1, rank)
    return net.listed("Unsqueeze", x, 13, "axes", [net.pick(axis, axis - rank - 1)])


@layer("Squeeze")
def squeeze(net: Net, x: str) -> str | None:
    rank = len(net.shape(x))
    axes = [a for a, size in enumerate(net.shape(x)) if size == 1 and a > 0]
    if not axes or rank < 4:
        return None
    axis = net.pick(*axes)
    return net.listed("Squeeze", x, 13, "axes", [net.pick(axis, axis - rank)])


COORDINATES = ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")


@layer("Resize")
def resize(net: Net, x: str) -> str | None:
    """The spatial axes; nearest by whole factors only, where no place falls between two."""
    mode, shape = net.pick("nearest", "linear"), net.shape(x)
    more = {"coordinate_transformation_mode": net.pick(*(COORDINATES if mode == "linear" else COORDINATES[:2]))}
    if mode == "nearest":
        more["nearest_mode"] = net.pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        factors: list[float] = [net.pick(1, 2, 3) for _ in shape[2:]]
    else:
        factors = [net.pick(1.0, 2.0, 1.5, 0.5) for _ in shape[2:]]
    sizes = [int(size * f) for size, f in zip(shape[2:], factors, strict=True)]
    if 0 in sizes:
        return None
    roi = "" if net.opset >= 13 else net.constant([])
    if net.flip():
        return net.add("Resize", x, roi, net.constant([1, 1, *factors]), mode=mode, **more)
    none = "" if net.opset >= 13 else net.constant([])
    return net.add("Resize", x, roi, none, net.indices(*shape[:2], *sizes), mode=mode, **more)


@layer("DepthToSpace")
def depth_to_space(net: Net, x: str) -> str | None:
    if net.dims(x) != 2 or net.shape(x)[1] % 4:
        return None
    return net.add("DepthToSpace", x, blocksize=2, mode=net.pick(None, "DCR", "CRD"))


@layer("SpaceToDepth")
def space_to_depth(net: Net, x: str) -> str | None:
    if net.dims(x) != 2 or any(size % 2 for size in net.shape(x)[2:]):
        return None
    return net.add("SpaceToDepth", x, blocksize=2)


@layer("Gather")
def gather(net: Net, x: str) -> str:
    axis = net.integer(1, len(net.shape(x)) - 1)
    size = net.shape(x)[axis]
    if net.flip() and len(net.shape(x)) > 3:  # one place: the axis goes
        return net.add("Gather", x, net.constant(net.integer(-size, size - 1), np.int64), axis=axis)
    places = net.integers(net.integer(1, 4), -size, size - 1)
    return net.add("Gather", x, net.indices(*places), axis=net.pick(axis, axis - len(net.shape(x))))


@layer("Expand")
def expand(net: Net, x: str) -> str:
    shape = [2 if size == 1 and a and net.flip() else net.pick(size, 1) for a, size in enumerate(net.shape(x))]
    return net.add("Expand", x, net.indices(*shape))


@layer("Tile")
def tile(net: Net, x: str) -> str:
    return net.add("Tile", x, net.indices(1, *(net.pick(1, 1, 2) for _ in net.shape(x)[1:])))


@layer("CumSum")
def cum_sum(net: Net, x: str) -> str:
    axis = net.constant(net.integer(1, len(net.shape(x)) - 1), np.int64)
    return net.add("CumSum", x, axis, exclusive=net.pick(None, 1), reverse=net.pick(None, 1))


@layer("nothing")
def nothing(net: Net, x: str) -> str:
    """Operators that leave a value as it is."""
    kind = net.pick("Identity", "Dropout", "Cast")
    return net.add("Cast", net.add("Cast", x, to=11), to=1) if kind == "Cast" else net.add(kind, x)


# --- reductions -------------------------------------------------------------------------------------------------------


def reduction(kind: str, listed_since: int, net: Net, x: str) -> str | None:
    rank = len(net.shape(x))
    axes = sorted({net.integer(1, rank - 1) for _ in range(net.integer(1, 2))})
    keep = net.pick(None, 1, 0)
    if kind == "ReduceProd" and math.prod(net.shape(x)[a] for a in axes) > 12:
        return None
    spelt = [net.pick(a, a - rank) for a in axes]
    y = net.listed(kind, x, listed_since, "axes", spelt, keepdims=keep)
    if keep != 0:
        return y
    return net.listed("Unsqueeze", y, 13, "axes", axes) if rank - len(axes) < 3 or net.flip() else y


MEASURES = ("Max", "Mean", "Min", "Prod", "L1", "L2", "LogSumExp", "SumSquare")
LAYERS |= {f"Reduce{kind}": partial(reduction, f"Reduce{kind}", 18) for kind in MEASURES}
LAYERS["ReduceSum"] = partial(reduction, "ReduceSum", 13)


@layer("Softmax")
def softmax(net: Net, x: str) -> str:
    rank = len(net.shape(x))
    axis = net.integer(1, rank - 1)
    return net.add(net.pick("Softmax", "LogSoftmax"), x, axis=net.pick(None, axis, axis - rank))

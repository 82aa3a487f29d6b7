"""The layers that random networks are built from: one small function each, in a table by name.

A layer reads an image (rank 3 to 5: batch, channels, one to three spatial dimensions), draws its options, appends its
nodes and returns the name of an image; None where it can't be put, such as a reflecting Pad wider than the image.
"""

from __future__ import annotations

import math
from typing import Any

from tests.proof.random_net import LAYERS, Layer, Net, layer

IDIOMS = {"silu", "gelu with erf", "gelu with tanh", "hard-sigmoid written out", "mish written out"}


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
    more["kernel_shape"] = net.pick(None, kernel)
    return net.add("Conv", x, *weights, group=group, strides=strides, dilations=dilations, **more)


@layer("Conv by a part of the image")
def own_kernel(net: Net, x: str) -> str:
    """A kernel that the input decides: both operands have a gradient."""
    rank = net.dims(x)
    axes = [0, *range(2, rank + 2)]
    ends = [1, *(net.integer(1, min(size, 2)) for size in net.shape(x)[2:])]
    bounds = [0] * (rank + 1), ends, axes
    kernel = net.add("Slice", x, *(net.indices(*b) for b in bounds))
    spelt = {"kernel_shape": ends[1:], "pads": net.integers(rank, 0, 1) * 2, "strides": net.integers(rank, 1, 2)}
    return net.add("Conv", x, kernel, **spelt)


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
        sizes = net.shape(x)[2:]
        full = [
            s * (size - 1) + d * (k - 1) + 1 for size, k, d, s in zip(sizes, kernel, dilations, strides, strict=True)
        ]
        more["output_shape"] = [net.integer(max(f - 2, size), f) for f, size in zip(full, sizes, strict=True)]
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
    "Sigmoid": lambda net, x: net.add("Sigmoid", net.bounded(x, 6)),
    "Tanh": lambda net, x: net.add("Tanh", net.bounded(x, 3)),
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
        return net.add("Exp", net.add("Tanh", net.bounded(x, 3)))
    if kind == "Pow 2":
        return net.add("Pow", x, net.constant(2.0))
    positive = net.add("Add", net.add("Softplus", x), net.constant([0.5]))
    if kind == "Div":
        return net.add("Div", x, positive)
    return net.add("Pow", positive, net.constant(1.5)) if kind == "Pow 1.5" else net.add(kind, positive)

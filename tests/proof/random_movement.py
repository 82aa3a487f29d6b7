"""More layers of random networks: joining branches, moving values around, reductions."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch

from tests.proof.random_net import LAYERS, Net, layer

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
    kind = net.pick("tensors", "constant last", "constant first")
    if kind == "tensors":
        return net.add("Where", test, net.add("Tanh", net.bounded(x, 3)), x)
    constant = net.constant(net.pick(0.2, [0.7]))
    return net.add("Where", test, *((x, constant) if kind == "constant last" else (constant, x)))


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
        flat = net.add("Relu", flat) if net.flip() else net.add("Tanh", net.bounded(flat, 3))
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
    net.moved |= swap == 0
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
    if net.dims(x) != 2:
        return None
    x = x if net.shape(x)[1] % 4 == 0 else net.add("Concat", x, x, x, x, axis=1)
    return net.add("DepthToSpace", x, blocksize=2, mode=net.pick(None, "DCR", "CRD"))


@layer("SpaceToDepth")
def space_to_depth(net: Net, x: str) -> str | None:
    if net.dims(x) != 2:
        return None
    x = net.add("Pad", x, net.indices(*[0] * 6, *(size % 2 for size in net.shape(x)[2:])))
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

"""hypothesis strategies for random CNNs as ONNX files: layers, shapes, branches, opsets, targets, all drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import ModelProto

from tests.proof import random_movement  # noqa: F401, for its layers
from tests.proof.random_layers import IDIOMS
from tests.proof.random_net import LAYERS, Array, Draw, Net

# Half of all layers are of these kinds, as in the CNNs that people train.
COMMON = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization", "Relu", "Clip", "residual")
# With these the oracle does not say what `rectify all` should do: gates are told from activations by their readers.
UNCLEAR = {"HardSigmoid", "Sigmoid", "Tanh", "Celu", "Gelu", "Mish", "Softsign"}


class Graph(NamedTuple):
    """A model, what to feed it, and how to explain it; `layers` are the names of what it was built from.

    `score` is the tensor that the converter should find by itself behind the one it is asked for, and `cotangent` what
    the target stands for there; `more`: what the converted file is fed besides.
    """

    model: ModelProto
    feeds: dict[str, Array]
    score: str
    cotangent: Array
    options: dict[str, Any]
    more: dict[str, Array]
    layers: tuple[str, ...] = ()

    @property
    def rectify_all(self) -> bool:
        return bool(self.options["rectify"])

    def __repr__(self) -> str:
        """What hypothesis prints of a graph that fails."""
        return f"{self.options}\n{onnx.printer.to_text(self.model)}\nfeeds {self.feeds}"


def image(net: Net) -> str:
    rank = net.integer(1, 3)
    most = {1: 12, 2: 8, 3: 5}[rank]
    return net.input(net.integer(1, 3), net.integer(1, 4), *net.integers(rank, 1, most))


def body(net: Net, layers: int) -> str:
    """The last image of a body whose layers mostly follow each other, but may start again from an earlier image."""
    last = image(net)
    net.images.append(last)
    names = sorted(LAYERS)
    for _ in range(layers):
        source = last if net.integer(0, 3) else net.pick(*net.images)
        name = net.pick(*(COMMON if net.flip() else names))
        made = LAYERS[name](net, source)
        made = made and net.tamed(made)
        if made and 3 <= len(net.shape(made)) <= 5:
            net.images.append(made)
            net.layers.append(name)
            last = made
    return last


def meet(net: Net, last: str) -> str:
    """Branches that nobody reads yet, each of them summed up, join the last image."""
    read = {name for node in net.nodes for name in node.input}
    for leaf in [name for name in net.images if name not in read and name != last][:2]:
        total = net.add("ReduceSum", leaf, keepdims=0)
        last = net.add("Add", last, net.add("Mul", total, net.constant(net.values[leaf].numel() ** -0.5)))
    return last


def head(net: Net, x: str) -> tuple[str, str]:
    """(output, score): one or two fully connected layers, or the image itself, perhaps with a final Softmax."""
    kind = net.pick("image", "Gemm", "pool and Gemm", "MatMul", "mean and Gemm")
    if kind != "image":
        x = linear(net, flat(net, x, kind), kind)
        if net.flip() and bool((net.values[x] > 0).any()):
            x = linear(net, net.add("Relu", x), "Gemm")
        net.layers.append(kind)
    final = net.pick(None, None, "Softmax", "LogSoftmax", "Sigmoid")
    if final is None or (net.opset < 13 and len(net.shape(x)) > 2):  # older Softmax has one class per position
        return x, x
    x = net.bounded(x, 6)
    return net.add(final, x, **({} if final == "Sigmoid" else {"axis": 1})), x


def flat(net: Net, x: str, kind: str) -> str:
    batch = net.shape(x)[0]
    if kind == "pool and Gemm":
        x = net.add("GlobalAveragePool", x)
    if kind == "mean and Gemm":
        axes = list(range(2, len(net.shape(x))))
        return net.listed("ReduceMean", x, 18, "axes", axes, keepdims=0)
    return net.add("Flatten", x) if net.flip() else net.add("Reshape", x, net.indices(batch, -1))


def linear(net: Net, x: str, kind: str) -> str:
    width, classes = net.shape(x)[1], net.integer(1, 5)
    if kind == "MatMul":
        return net.add("Add", net.add("MatMul", x, net.weight(width, classes, scale=width**-0.5)), net.weight(classes))
    turned = net.flip()
    weight = net.weight(*((classes, width) if turned else (width, classes)), scale=width**-0.5)
    bias = [net.weight(*net.pick([classes], [1, classes], [1]), scale=0.5)] if net.flip() else []
    return net.add("Gemm", x, weight, *bias, transB=int(turned), alpha=net.pick(None, 0.5), beta=net.pick(None, 2.0))


def target_of(net: Net, score: str) -> tuple[str, Array, dict[str, Array]]:
    """(target, the cotangent that it stands for, what the converted file is fed because of it).

    Classes and units are counted behind the samples, so only where these are still on the first axis.
    """
    shape = net.shape(score)
    kind = net.pick("seed", "seed", *(("index", "unit", "input") if net.samples_first() else ()))
    if kind == "seed":
        seed = net.random.standard_normal(shape).astype(np.float32)
        return kind, seed, {"seed": seed}
    cotangent = np.zeros(shape, np.float32)
    if kind == "unit":
        place = net.places(shape[1:])
        cotangent[:, *place] = 1
        return "unit:" + ",".join(map(str, place)), cotangent, {}
    one = net.integer(0, shape[1] - 1)
    classes = net.integers(shape[0], 0, shape[1] - 1) if kind == "input" else [one] * shape[0]
    cotangent[range(shape[0]), classes] = 1
    return (kind if kind == "input" else str(one)), cotangent, {"target": np.array(classes, np.int64)}


@st.composite
def graphs(draw: Draw, most_layers: int = 12) -> Graph:
    """Random CNNs of up to `most_layers` layers; a layer that can't be put where it was drawn is left out."""
    net = Net(draw)
    last = body(net, net.integer(1, most_layers))
    asked, before = head(net, meet(net, last) if net.flip() else last)
    others = [net.pick(*net.images[1:])] if len(net.images) > 1 and not net.integer(0, 3) else []
    model = net.model([asked, *(name for name in others if name != asked)])
    if len(net.images) > 1 and not net.integer(0, 5):  # an inner tensor
        asked = before = net.images[-1]
    through_softmax = asked == before or net.flip()
    score = asked if through_softmax else before
    target, cotangent, more = target_of(net, score)
    clear = not IDIOMS.intersection(net.layers) and UNCLEAR.isdisjoint(n.op_type for n in net.nodes)
    rectify = ["all"] if clear and net.flip() else []
    options = {"score": asked, "target": target, "through_softmax": through_softmax, "rectify": rectify}
    if target == "input" or target.isdecimal():
        options["class_axis"] = 1
    return Graph(model, net.inputs, score, cotangent, options, more, tuple(net.layers))

"""What a model itself tells about the photographs that it wants: metadata, denotations, its first nodes, its producer.

Sources: onnx/docs/MetadataProps.md (Image.BitmapPixelFormat, Image.NominalPixelRange) and TypeDenotation.md,
DimensionDenotation.md (IMAGE, DATA_CHANNEL); the rest is what the first nodes compute.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
Range = tuple[float, float, str]  # scale, mean, text: pixel * scale - mean is fed

BYTES, UNIT = (1.0, 0.0, "0 to 255"), (1 / 255, 0.0, "0 to 1")
RANGES: dict[str, Range] = {
    "NominalRange_0_255": BYTES,
    "Normalized_0_1": UNIT,
    "Normalized_1_1": (1 / 127.5, 1.0, "-1 to 1"),
}
BLUE_FIRST = {"Rgb8": False, "Rgba8": False, "Bgr8": True, "Bgra8": True}
# Producers whose networks are customarily fed one way: part of the name → preset, and why. An assumption, no fact.
PRODUCERS = {"caffe": ("caffe", "networks of Caffe are customarily fed BGR minus the mean")}
IMAGENET_MEAN = np.array([123.675, 116.28, 103.53])  # red, green, blue
DEAF = 0.05
MOVED = ("Cast", "Identity", "Transpose")
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "BatchNormalization")


class Evidence(NamedTuple):
    """What was found; None is 'nothing'. `facts` are certain, `assumptions` are not; each is a sentence to print."""

    layout: str | None = None
    channels: int | None = None
    bgr: bool | None = None
    values: Range | None = None
    preset: str | None = None
    facts: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def read(model: ModelProto, name: str, appended: int = 0) -> Evidence:
    """Everything that a model tells about its input `name`; `appended` nodes at its end are a conversion's."""
    own = list(model.graph.node)[: len(model.graph.node) - appended]
    # What was found first stands: what a file states goes before what is read from its nodes, and that before a custom.
    sources = (_stated(model, name), _computed(model, name, own), _produced(model) or _answering(model, name, own))
    known = [e for e in sources if e is not None and not (e.preset and any(s and s.values for s in sources))]
    single: dict[str, Any] = dict.fromkeys(("layout", "channels", "bgr", "values", "preset"))
    for one in reversed(known):
        single |= {field: getattr(one, field) for field in single if getattr(one, field) is not None}
    facts = tuple(fact for one in known for fact in one.facts)
    return Evidence(**single, facts=facts, assumptions=tuple(said for one in known for said in one.assumptions))


def _stated(model: ModelProto, name: str) -> Evidence:
    """Metadata, denotations, and the input's documentation."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    value = next(i for i in model.graph.input if i.name == name)
    order, extent = (metadata.get(f"Image.{key}") for key in ("BitmapPixelFormat", "NominalPixelRange"))
    axes = [d.denotation for d in value.type.tensor_type.shape.dim]
    facts = [f"{text} (in its metadata)" for text in (order, extent) if text in {*RANGES, *BLUE_FIRST, "Gray8"}]
    bgr = BLUE_FIRST.get(order or "")
    if bgr is None and re.search(r"\bBGR\b", value.doc_string):
        bgr = True
        facts.append(f"BGR (in the documentation of {name!r})")
    layout = {1: "nchw", 3: "nhwc"}.get(axes.index("DATA_CHANNEL")) if "DATA_CHANNEL" in axes else None
    return Evidence(layout, None, bgr, RANGES.get(extent or ""), facts=tuple(facts))


def _computed(model: ModelProto, name: str, own: Sequence[NodeProto]) -> Evidence:
    """What the first nodes do: a Transpose or Conv shows the axes, arithmetic the range that it normalises."""
    constants = _Constants(model)
    axes, gain, offset, passed = "nchw", np.ones(1), np.zeros(1), []
    channels: int | None = None
    layout: str | None = None
    for node in _first_nodes(own, name):
        if node.op_type == "Transpose":
            axes = _transposed(axes, node)
        elif node.op_type in ARITHMETIC:
            step = _affine(node, constants)
            if step is None:
                break
            gain, offset = gain * step[0], offset * step[0] + step[1]
            passed.append(node.op_type)
        elif node.op_type == "Conv":
            kernel = constants.get(node.input[1])
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            channels = None if kernel is None else int(kernel.shape[1]) * group
            layout = {"nchw": "nchw", "nhwc": "nhwc"}.get(_fed_as(axes))
    with np.errstate(all="ignore"):  # a damaged constant gives no finite centre, and so no evidence
        centre, deviation = -offset / gain, 1 / np.abs(gain)
    extent = _normalised(centre, deviation) if passed else None
    if extent is None:
        return Evidence(layout, channels)
    fact = f"it normalises its input itself ({', '.join(passed)}), so pixels from {extent[2]} are fed"
    return Evidence(layout, channels, _order(centre), extent, facts=(fact,))


def _produced(model: ModelProto) -> Evidence | None:
    """A producer's custom."""
    for part, (preset, why) in PRODUCERS.items():
        if part in model.producer_name.lower():
            said = f"it was made by {model.producer_name}, and {why}: preset {preset} assumed"
            return Evidence(preset=preset, assumptions=(said,))
    return None


def _answering(model: ModelProto, name: str, own: Sequence[NodeProto]) -> Evidence | None:
    """Whether the first Conv is deaf to values that were divided by their deviation.

    Beside its bias, or the deviation that a BatchNormalization behind it expects, such a photograph moves it little:
    then it was trained on 0 to 255. The share is 0.02 for open_nsfw and 0.76 or more for the other public networks.
    """
    nodes = list(_first_nodes(own, name))
    if not nodes or nodes[-1].op_type != "Conv" or any(n.op_type in ARITHMETIC for n in nodes):
        return None
    constants, conv = _Constants(model), nodes[-1]
    kernel = constants.get(conv.input[1])
    behind = next((n for n in model.graph.node if n.op_type in ARITHMETIC and conv.output[0] in n.input), None)
    if len(conv.input) > 2:
        expected = constants.get(conv.input[2])
    elif behind is not None and behind.op_type == "BatchNormalization":
        variance = constants.get(behind.input[4])
        expected = None if variance is None else np.sqrt(np.abs(variance))
    else:
        expected = None
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] != 3 or expected is None or not expected.all():
        return None
    share = float(np.median(_answer(kernel.astype(np.float64)) / np.abs(expected)))
    if share > DEAF:
        return None
    said = (
        f"its first Conv answers values of deviation 1 by only {share:.0%} of what it expects, as if it was trained on "
        "0 to 255: preset caffe assumed, the usual one of that range"
    )
    return Evidence(preset="caffe", assumptions=(said,))


def _answer(kernel: Array) -> Array:
    """The deviation of a convolution's outputs on photographs of deviation 1, [O].

    Neighbouring pixels of photographs correlate by about 0.95, less the farther they are, and colours by about 0.9.
    """
    places = np.stack(np.meshgrid(*map(np.arange, kernel.shape[1:]), indexing="ij"), -1).reshape(-1, 3)
    apart = np.abs(places[:, None] - places[None])
    likeness = 0.95 ** np.hypot(apart[..., 1], apart[..., 2]) * 0.9 ** (apart[..., 0] > 0)
    flat = kernel.reshape(len(kernel), -1)
    deviation: Array = np.sqrt(np.maximum(np.einsum("oi,ij,oj->o", flat, likeness, flat), 0))
    return deviation


class _Constants:
    """Values by name, read when they are asked for."""

    def __init__(self, model: ModelProto) -> None:
        self._tensors = {t.name: t for t in model.graph.initializer}
        self._nodes = {n.output[0]: n for n in model.graph.node if n.op_type == "Constant"}

    def get(self, name: str) -> Array | None:
        """The value, or None of what is computed."""
        if name in self._nodes:
            value = helper.get_attribute_value(self._nodes[name].attribute[0])
            return numpy_helper.to_array(value) if hasattr(value, "data_type") else None
        return numpy_helper.to_array(self._tensors[name]) if name in self._tensors else None


def _first_nodes(nodes: Sequence[NodeProto], name: str) -> Iterator[NodeProto]:
    """The nodes that the input passes one after another, up to the first that is neither move nor arithmetic."""
    while True:
        users = [n for n in nodes if name in n.input and n.op_type != "Shape"]
        if len(users) != 1:
            return
        yield users[0]
        if users[0].op_type not in (*MOVED, *ARITHMETIC):
            return
        name = users[0].output[0]


def _transposed(axes: str, node: NodeProto) -> str:
    """Which of its input's four axes each axis of the result is, written with the letters of N, C, H, W."""
    order = next((list(a.ints) for a in node.attribute if a.name == "perm"), [])
    return "".join(axes[i] for i in order) if sorted(order) == [0, 1, 2, 3] else axes


def _fed_as(axes: str) -> str:
    """The layout of the input when its axes, named n, c, h, w in this order, arrive at a Conv as `axes`."""
    meaning = dict(zip(axes, "nchw", strict=True))  # a Conv takes N, C, H, W
    return "".join(meaning[letter] for letter in "nchw")


def _affine(node: NodeProto, constants: _Constants) -> tuple[Array, Array] | None:
    """(gain, offset) of y = gain · x + offset for each channel; None where it is not that simple."""
    if node.op_type == "BatchNormalization":
        parameters = [constants.get(name) for name in node.input[1:5]]
        if any(p is None for p in parameters):
            return None
        scale, shift, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        if (variance + epsilon <= 0).any():
            return None
        gain = scale / np.sqrt(variance + epsilon)
        return gain, shift - mean * gain
    values = [constants.get(name) for name in node.input]
    known = next((v for v in values if v is not None), None)
    if known is None or all(v is not None for v in values) or known.size not in (1, 3):
        return None
    value, one, first = known.astype(np.float64).ravel(), np.ones(1), values[0] is not None
    if node.op_type == "Div":
        return None if first or not value.all() else (1 / value, np.zeros(1))
    if node.op_type == "Sub":
        return (-one, value) if first else (one, -value)
    return (value, np.zeros(1)) if node.op_type == "Mul" else (one, value)


def _normalised(centre: Array, deviation: Array) -> Range | None:
    """The range of pixels that a normalisation with this mean and deviation is made for; None when it is unclear."""
    if not (np.isfinite(centre).all() and np.isfinite(deviation).all()):
        return None
    if (centre > 60).all() and (centre < 200).all():
        return BYTES
    if (centre > 0.2).all() and (centre < 0.8).all() and (deviation <= 1).all():
        return UNIT
    return BYTES if (np.abs(centre) < 1e-6).all() and (deviation >= 100).all() else None


def _order(centre: Array) -> bool | None:
    """Whether blue is first, where the mean is ImageNet's, in any unit; None elsewhere."""
    if centre.size != 3 or not centre.all():
        return None
    for bgr, mean in ((False, IMAGENET_MEAN), (True, IMAGENET_MEAN[::-1])):
        if np.allclose(centre / centre.sum(), mean / mean.sum(), rtol=0.02):
            return bgr
    return None

"""Where the channels are: the feature tensors between an input and the score, and the channel axis of each.

Conv and its like take their channels on axis 1; what moves or changes values one by one hands the axis on, forwards
and backwards. So the axis is also known of the input of a channels-last network, whose Transpose comes first.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.errors import ModelError, NoFeatureLayer, UsageError
from gbprewrite.model.tensors import Tensor, is_float, is_quantised
from gbprewrite.select.explained import Explained
from gbprewrite.select.score import named
from gbprewrite.select.selection import Selection
from gbprewrite.view import operators, paths
from gbprewrite.view.idioms import producer
from gbprewrite.view.quantised import meaning_of, only_in_view

WINDOWED = (
    *("BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "DepthToSpace", "GroupNormalization"),
    *("InstanceNormalization", "LRN", "QLinearConv", "SpaceToDepth", *operators.POOLS),
    *("QLinearAveragePool", "QLinearGlobalAveragePool"),
)
# Axis by axis, output and inputs of equal rank are the same thing.
ALIGNED = (
    *("Abs", "Add", "Cast", "Concat", "DequantizeLinear", "Div", "Dropout", "Erf", "Exp", "Identity", "Max", "Mean"),
    *("Min", "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Resize", "Saturation", "Slice", "Split", "Sqrt", "Sub"),
    *("QLinearAdd", "QLinearConcat", "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid"),
    *("Sum", "Upsample", "Where", *operators.ACTIVATIONS, *operators.RECTIFIERS),
)

TURNED = ("Cast", "Dropout", "Identity", "Squeeze", "Transpose", "Unsqueeze")
MOST_BESIDE = 8  # branches that are named


class FeatureLayer(NamedTuple):
    """A tensor of feature maps between an input and the score, and the axis of the channels of both.

    `beside` names the last feature maps of branches that reach the score without this layer: its map misses these. Of
    levels that QLinear operators read, `step` is their scale and zero point.
    """

    tensor: Tensor
    channel_axis: int
    input_axis: int
    beside: tuple[str, ...] = ()
    step: list[Tensor] | None = None

    @property
    def spatial_axes(self) -> list[int]:
        """All axes but the batch and the channels."""
        return [a for a in range(1, len(self.tensor.shape)) if a != self.channel_axis]


def feature_layers(graph: gs.Graph, chosen: Selection, name: str | None, parts: Explained) -> list[FeatureLayer]:
    """Of each input the named layer, or its own last one before the score: the one before a global pool.

    Of a score that is joined of `parts` it is the last one that all explained parts depend on.

    Raises UsageError for a name that is no such layer, or that an input does not reach; NoFeatureLayer where an input
    has none, or one of another rank.
    """
    axes = known_axes(chosen.nodes)
    named = _named(graph, chosen, name) if name else None
    if named is not None and parts.by_any is not None and id(named) not in parts.by_any:
        raise UsageError(
            f"--cam-layer {name}: the explained channels of {chosen.score.name!r} do not depend on it, so that its map "
            "would be nought. Leave --cam-layer out, or name a layer before the branches of the head."
        )
    return [_layer_of(x, chosen, axes, named, parts) for x in chosen.inputs]


def _layer_of(
    x: Tensor, chosen: Selection, axes: dict[int, int], named: Tensor | None, parts: Explained
) -> FeatureLayer:
    nodes = paths.between(chosen.nodes, [x], chosen.score)
    if named is not None and not any(named is t for node in nodes for t in node.outputs):
        raise UsageError(
            f"--cam-layer {named.name}: the input {x.name!r} does not reach this layer, so that it has no map there. "
            "Choose the inputs that do with --input NAME, or leave --cam-layer out: then each input has its own layer."
        )
    found = named or _last(nodes, chosen.score, axes, parts)
    if found is None:
        raise NoFeatureLayer(
            "Grad-CAM needs a layer of feature maps (channels and positions, as a convolution makes them), and there "
            f"is none between the input {x.name!r} and the score {chosen.score.name!r}. Name a tensor with --cam-layer "
            "NAME, choose another input with --input NAME, or use another --method."
        )
    if len(x.shape) != len(found.shape):
        raise NoFeatureLayer(
            f"Grad-CAM at {found.name!r} {found.shape} gives no map of the input {x.name!r} {x.shape}, which has "
            "another rank. Choose an input with --input NAME, or a layer with --cam-layer NAME."
        )
    beside = tuple(t.name for t in _beside(parts.nodes(nodes), x, found, chosen.score, axes))
    step = None if is_float(found) else _step(found)
    return FeatureLayer(found, axes.get(id(found), 1), axes.get(id(x), 1), beside, step)


def _beside(
    nodes: Sequence[gs.Node], x: Tensor, layer: Tensor, score: Tensor, axes: dict[int, int]
) -> Iterator[Tensor]:
    """The last feature maps on ways from the input to the score that lead around a layer, the nearest score first."""
    around: Tensor | None = layer
    for _ in range(MOST_BESIDE):
        nodes = paths.between([n for n in nodes if not any(around is t for t in n.outputs)], [x], score)
        around = _last(nodes, score, axes)
        if around is None:
            return
        yield around


def channel_axes(chosen: Selection) -> list[int]:
    """The axis of the channels of each input. Raises ModelError where no operator on the way to the score tells it."""
    axes = known_axes(chosen.nodes)
    for x in chosen.inputs:
        if id(x) not in axes:
            raise ModelError(
                f"nothing tells which axis of the input {x.name!r} {x.shape} holds its channels: no convolution or "
                "pool reads it. Leave --as out, or choose another --input."
            )
    return [axes[id(x)] for x in chosen.inputs]


def _last(
    nodes: Sequence[gs.Node], score: Tensor, axes: dict[int, int], parts: Explained | None = None
) -> Tensor | None:
    """Grad-CAM's layer: of the nodes between an input and the score the last feature maps of more than one position, on
    which all explained parts of the score depend."""
    read = {id(t) for node in nodes for t in node.inputs} - _turned(score)
    for tensor in (t for node in reversed(nodes) for t in node.outputs):
        if id(tensor) in axes and id(tensor) in read and tensor is not score and _is_spatial(tensor):
            if parts is not None and not parts.common(tensor):
                continue
            sizes = [s for a, s in enumerate(tensor.shape) if a not in (0, axes[id(tensor)])]
            if any(size != 1 for size in sizes):
                return tensor
    return None


def _turned(score: Tensor) -> set[int]:
    """id() of the tensors that hold the score's own values, before their axes were turned: a channels-last model keeps
    its classes last, and its layer is the same as without."""
    same, node = set(), producer(score)
    while node is not None and node.op in TURNED:
        same.add(id(node.inputs[0]))
        node = producer(node.inputs[0])
    return same


def _named(graph: gs.Graph, chosen: Selection, name: str) -> Tensor:
    tensor = named(graph, name, "--cam-layer")
    if not any(tensor is t for node in chosen.nodes for t in node.outputs) or tensor is chosen.score:
        raise UsageError(
            f"--cam-layer {name}: it does not lie between the input and the score {chosen.score.name!r}. "
            "'gbprewrite layers MODEL' lists what does."
        )
    if not _is_spatial(tensor):
        raise UsageError(
            f"--cam-layer {name}: it has shape {tensor.shape}, and Grad-CAM needs feature maps: a batch, channels, and "
            "one or more axes of positions. 'gbprewrite layers MODEL' lists the shapes."
        )
    return tensor


def _is_spatial(tensor: Tensor) -> bool:
    """Whether a tensor that the file has holds numbers, or levels between QLinear operators, for positions."""
    numbers = not only_in_view(tensor) if is_float(tensor) else _step(tensor) is not None
    return numbers and tensor.shape is not None and len(tensor.shape) > 2


def _step(levels: Tensor) -> list[Tensor] | None:
    return meaning_of(levels, ("Saturation",)) if is_quantised(levels) else None


def known_axes(nodes: Sequence[gs.Node]) -> dict[int, int]:
    """id() of a tensor → axis of its channels, wherever an operator on the way tells."""
    known: dict[int, int] = {}
    for ordered in (nodes, nodes[::-1], nodes):
        for node in ordered:
            for a, b, perm in _links(node):
                if perm is None:
                    known.setdefault(id(a), 1)
                    known.setdefault(id(b), 1)
                elif id(a) in known:
                    known.setdefault(id(b), perm.index(known[id(a)]))
                elif id(b) in known:
                    known[id(a)] = perm[known[id(b)]]
    return known


def _links(node: gs.Node) -> Iterator[tuple[Tensor, Tensor, list[int] | None]]:
    """(input, output, which axis of the input each axis of the output is); None: channels on axis 1 in both."""
    if node.op in WINDOWED:
        yield node.inputs[0], node.outputs[0], None
        return
    for y in (t for t in node.outputs if node.op in ("Transpose", *ALIGNED) and t.shape is not None):
        rank = len(y.shape)
        perm = list(range(rank)) if node.op in ALIGNED else list(node.attrs.get("perm") or range(rank)[::-1])
        yield from ((x, y, perm) for x in node.inputs if x.shape is not None and len(x.shape) == rank > 2)

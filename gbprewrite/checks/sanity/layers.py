"""The weighted layers between score and input, and the values that a randomised layer gets.

A layer is a node that multiplies by weights (`OPENERS`) together with what belongs to it further on: the bias, a
normalisation behind it, the slopes of a PRelu. What has no such node before it (a normalisation behind a residual sum,
say) is a layer of its own. Running means and variances are statistics rather than weights and stay, as in the code of
Adebayo et al., which draws trainable variables anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gbprewrite.backward.coverage import known
from gbprewrite.errors import ModelError
from gbprewrite.graft import record as report
from gbprewrite.graft.restore import restore
from gbprewrite.model.messages import copied, elements
from gbprewrite.view import paths
from gbprewrite.view.forward import view

Array = npt.NDArray[Any]

# operator → what its inputs are; "" is no weight
ROLES: dict[str, tuple[str, ...]] = {
    "Conv": ("", "kernel", "offset"),
    "ConvTranspose": ("", "kernel", "offset"),
    "DeformConv": ("", "kernel", "", "offset"),
    "Gemm": ("kernel", "kernel", "offset"),
    "MatMul": ("kernel", "kernel"),
    "Einsum": ("kernel", "kernel"),
    "BatchNormalization": ("", "scale", "offset"),
    "GroupNormalization": ("", "scale", "offset"),
    "InstanceNormalization": ("", "scale", "offset"),
    "LayerNormalization": ("", "scale", "offset"),
    "RMSNormalization": ("", "scale"),
    "PRelu": ("", "slope"),
    "Add": ("offset", "offset"),
    "Sub": ("offset", "offset"),
    "Mul": ("scale", "scale"),
    "Div": ("", "scale"),
}
OPENERS = ("Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum")
# Constants of these are a layer's bias or scale where they hold a number for each of its channels, else no weights.
AFFINE = ("Add", "Sub", "Mul", "Div")
CHANNELS_LAST = dict.fromkeys(("Gemm", "MatMul", "Einsum", "LayerNormalization", "RMSNormalization"), -1)
QUANTISED = ("ConvInteger", "MatMulInteger", "QGemm", "QLinearConv", "QLinearMatMul")
# Operators whose first input alone carries a weight on: the others are shapes, axes, scales and zero points.
FIRST = (
    *("Cast", "DequantizeLinear", "Expand", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Slice", "Squeeze"),
    *("Transpose", "Unsqueeze"),
)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
INTEGERS = (
    *(TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
    TensorProto.INT32,
)

BOUND = 2  # standard deviations at which TensorFlow's truncated normal ends: Adebayo's initialiser
KEPT = 0.8796256610342398  # the standard deviation that truncating at BOUND leaves of 1
PRELU_SLOPE = 0.25  # He et al. 2015, section 2.1


class Layer(NamedTuple):
    """A weighted layer: the name of its first node (its output's name where it has none of its own), that node's
    operator, and initializer → role (a key of `DRAWS`)."""

    name: str
    operator: str
    weights: Mapping[str, str]


def layers(converted: ModelProto) -> list[Layer]:
    """The layers of a converted model between its score and its inputs, from the score down.

    An initializer that several layers share belongs to the first of them from the score. Raises ModelError when there
    is none, or weights lie inside an integer operator.
    """
    record = report.read_record(converted)
    assert record is not None
    source = restore(copied(converted))
    graph = view(source, known())
    tensors = {t.name: t for t in [*graph.inputs, *(t for n in graph.nodes for t in n.outputs)]}
    inputs = [tensors[name] for name in {m["input"] for m in record["maps"]}]
    found = _Finder(source, paths.path(graph, inputs, tensors[record["score"]])).layers()
    if not found:
        raise ModelError(
            f"no weights lie between the score {record['score']!r} and the input, so there is nothing to randomise. "
            "Choose a later score with --score NAME."
        )
    return found


class _Finder:
    """Walks the path from the input on, opening layers and handing what follows to them."""

    def __init__(self, source: ModelProto, path: Sequence[gs.Node]) -> None:
        self.path = path
        self.stored = {t.name: t for t in source.graph.initializer}
        self.producers: dict[str, NodeProto] = {}
        for node in source.graph.node:
            self.producers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.stored[node.output[0]] = node.attribute[0].t
        self.inputs = {v.name for v in source.graph.input} - self.stored.keys()
        self.made_by = {t.name: node for node in path for t in node.outputs}
        self.layer_of: dict[int, dict[str, str]] = {}  # id of a node → the weights of its layer
        self.channels: dict[int, Any] = {}  # id of the weights of a layer → how many channels it has, where known
        self.opened: list[Layer] = []

    def layers(self) -> list[Layer]:
        """From the score down, each with the weights that no layer before it has."""
        for node in self.path:
            self._visit(node)
        taken: set[str] = set()
        found = []
        for layer in reversed(self.opened):
            own = {name: role for name, role in layer.weights.items() if name not in taken}
            taken |= own.keys()
            if own:
                found.append(layer._replace(weights=own))
        return found

    def _visit(self, node: gs.Node) -> None:
        if node.op in QUANTISED:
            raise ModelError(
                f"the weights of the {node.op} node {node.name!r} are integers inside the operator, which this test "
                "does not draw. Test the float model, or the quantised one with QuantizeLinear and DequantizeLinear."
            )
        weights = {
            name: role
            for role, tensor in zip(ROLES.get(node.op, ()), node.inputs, strict=False)
            if role and tensor.name and tensor.name not in self.made_by
            for name in self._behind(tensor.name)
        }
        if not weights:
            return
        if node.op in OPENERS:
            self._open(node, weights)
            return
        owner = self._owner(node)
        if node.op in AFFINE:
            channels = None if owner is None else self.channels[id(owner)]
            weights = {name: role for name, role in weights.items() if elements(self.stored[name].dims) == channels}
        if owner is not None:
            owner.update({name: role for name, role in weights.items() if name not in owner})
            self.layer_of[id(node)] = owner
        elif node.op not in AFFINE:
            self._open(node, weights)

    def _open(self, node: gs.Node, weights: dict[str, str]) -> None:
        written = self.producers.get(node.outputs[0].name)
        name = written.name if written is not None and written.name else node.outputs[0].name
        if any(layer.name == name for layer in self.opened):  # names of nodes need not be unique
            name = node.outputs[0].name
        self.layer_of[id(node)] = weights
        shape = node.outputs[0].shape
        self.channels[id(weights)] = shape[CHANNELS_LAST.get(node.op, 1)] if shape else None
        self.opened.append(Layer(name, node.op, weights))

    def _owner(self, node: gs.Node) -> dict[str, str] | None:
        """The layer that a node follows, as long as nothing flows together in between."""
        while True:
            data = {t.name for t in node.inputs if t.name in self.made_by}
            if len(data) != 1:
                return None
            node = self.made_by[data.pop()]
            if id(node) in self.layer_of:
                return self.layer_of[id(node)]

    def _behind(self, name: str) -> list[str]:
        """The stored tensors from which a value is computed; none where the network's input takes part."""
        found, todo, seen = [], [name], set()
        while todo:
            name = todo.pop()
            if name in seen or not name:
                continue
            seen.add(name)
            if name in self.stored:
                found.append(name)
            elif name in self.inputs or name in self.made_by:
                return []
            elif name in self.producers:
                node = self.producers[name]
                todo += node.input[:1] if node.op_type in FIRST else node.input
        return [name for name in found if self.stored[name].data_type in (*FLOATS, *INTEGERS)]


Draw = Callable[[np.random.Generator, Array], Array]


def kernel(rng: np.random.Generator, values: Array) -> Array:
    """A normal distribution around 0 cut off at two standard deviations, of the standard deviation around 0 that the
    values have. Quantised kernels are shuffled, which keeps their levels."""
    if not _is_float(values):
        shuffled: Array = rng.permutation(values.ravel()).reshape(values.shape)
        return shuffled
    spread = np.sqrt(np.mean(np.square(values, dtype=np.float64)))
    drawn = rng.standard_normal(values.shape)
    while (far := np.abs(drawn) > BOUND).any():
        drawn[far] = rng.standard_normal(int(far.sum()))
    fresh: Array = (drawn * (spread / KEPT)).astype(values.dtype)
    return fresh


def _constant(value: float) -> Draw:
    return lambda rng, values: np.full_like(values, value)


# What training starts with, where that is customary: biases and offsets at 0, scales at 1.
DRAWS: dict[str, Draw] = {
    "kernel": kernel,
    "offset": _constant(0),
    "scale": _constant(1),
    "slope": _constant(PRELU_SLOPE),
}


def _is_float(values: Array) -> bool:
    return helper.np_dtype_to_tensor_dtype(values.dtype) in FLOATS


class Weights:
    """The weights of a model's layers, randomised and put back in place.

    Values depend on the seed, the draw and the layer alone: a layer has the same ones in a cascade and by itself.
    """

    def __init__(self, model: ModelProto, found: Sequence[Layer], seed: int) -> None:
        """Take a model, which is changed from now on: weights in Constant nodes become initializers."""
        self.model, self.layers, self.seed = model, found, seed
        wanted = {name for layer in found for name in layer.weights}
        _store(model, wanted)
        self._tensors = {t.name: t for t in model.graph.initializer if t.name in wanted}
        self._original = {name: t.SerializeToString() for name, t in self._tensors.items()}
        self._drawn: set[tuple[int, int]] = set()

    def randomise(self, numbers: Sequence[int], draw: int = 0) -> None:
        """Randomise the layers of these numbers, and give all others their trained values."""
        wanted = {(number, draw) for number in numbers}
        for number, _ in self._drawn - wanted:
            for name in self.layers[number].weights:
                self._tensors[name].ParseFromString(self._original[name])
        for number, _ in wanted - self._drawn:
            rng = np.random.default_rng([self.seed, draw, number])
            for name, role in self.layers[number].weights.items():
                original = numpy_helper.to_array(TensorProto.FromString(self._original[name]))
                self._tensors[name].CopyFrom(numpy_helper.from_array(DRAWS[role](rng, original), name))
        self._drawn = wanted


def _store(model: ModelProto, names: set[str]) -> None:
    """Turn the Constant nodes of these outputs into initializers."""
    lifted = [n for n in model.graph.node if n.op_type == "Constant" and n.output[0] in names]
    for node in lifted:
        model.graph.initializer.append(node.attribute[0].t)
        model.graph.initializer[-1].name = node.output[0]
        model.graph.node.remove(node)

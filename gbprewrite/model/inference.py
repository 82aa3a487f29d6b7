"""Shapes, types and constants: all that a model says about its values without being run.

ONNX's own shape inference stops at a Pad or Reshape whose operand is computed. Such operands mostly depend on weights
and known shapes alone, so inference and constant folding take turns until neither finds more.
"""

import contextlib
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gbprewrite.model import bounds, foldable, propagation
from gbprewrite.model.file import without_weights
from gbprewrite.model.messages import elements, graphs, put_nodes
from gbprewrite.model.qlinear import SpeltOut
from gbprewrite.model.symbols import UNKNOWN, unify
from gbprewrite.model.tensors import SMALL, read_type

MOVES = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze")
PLACEHOLDER = -1_000_003  # and below, one for each unknown dimension; fits int32, and no shape holds such numbers
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def infer(model: ModelProto) -> ModelProto:
    """The model's skeleton with the type and shape of every value that can be told.

    Weights of more than SMALL elements become typed inputs; nodes whose outputs are known become initializers. Raises
    onnx.shape_inference.InferenceError when the model contradicts itself.
    """
    skeleton = typed_skeleton(model)
    _forget(skeleton, "?")  # two unknown dimensions, not twice the same one
    spelt = SpeltOut(skeleton)
    room = max(bounds.FOLDED, skeleton.ByteSize())
    rounds = bounds.ROUNDS + bounds.NODES_LOOKED_AT // (len(skeleton.graph.node) + 1)
    for number in range(rounds):
        _name_sizes(skeleton)
        skeleton = propagation.infer_shapes(skeleton)
        if not _Folding(skeleton, room).run() or number == rounds - 1:
            break
        _forget(skeleton, UNKNOWN)  # inference's own names, which would stand in the way of what it knows now
    spelt.put_back(skeleton)
    unify(skeleton.graph)
    return skeleton


def _forget(model: ModelProto, name: str) -> None:
    """Make the dimensions with names that begin so unknown ones."""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith(name):
                dim.Clear()


def _name_sizes(model: ModelProto) -> None:
    """Name the unknown sizes of inputs: inference carries names along, and else forgets which size it was."""
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                dim.dim_param = f"{UNKNOWN}{value.name}_{axis}"


def typed_skeleton(model: ModelProto) -> ModelProto:
    """A copy in which weights are typed inputs that are large, not at hand, or for a caller to replace.

    Without those that no node reads.
    """
    skeleton = without_weights(model, SMALL)
    kept = {t.name for t in skeleton.graph.initializer} | {i.name for i in skeleton.graph.input}
    read = {name for g in graphs(model.graph) for n in g.node for name in n.input}
    read |= {o.name for g in graphs(model.graph) for o in g.output}
    if not kept <= read:  # a file may hold a million that nobody reads
        used = [t for t in skeleton.graph.initializer if t.name in read]
        del skeleton.graph.initializer[:]
        skeleton.graph.initializer.extend(used)
    for tensor in model.graph.initializer:
        if tensor.name not in kept and tensor.name in read:
            skeleton.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return skeleton


def types_of(inferred: ModelProto) -> dict[str, TypeProto]:
    """The type of every value that inference knows, initializers included."""
    return types_in(inferred.graph)


def types_in(graph: GraphProto) -> dict[str, TypeProto]:
    """The types that one graph states."""
    types = {v.name: v.type for v in [*graph.value_info, *graph.output, *graph.input]}
    return types | {t.name: helper.make_tensor_type_proto(t.data_type, t.dims) for t in graph.initializer}


def _ranks_read(graph: GraphProto) -> dict[str, int]:
    """How many axes a value has at the least, because a node that reads it names one of them, or all."""
    found: dict[str, int] = {}
    for node in graph.node:
        named = {a.name: a for a in node.attribute}
        rank = 0
        if "axis" in named and node.op_type in ("Concat", "Gather", "LogSoftmax", "Softmax", "Split"):
            rank = named["axis"].i + 1 if named["axis"].i >= 0 else -named["axis"].i
        elif node.op_type == "Transpose" and "perm" in named:
            rank = len(named["perm"].ints)
        elif node.op_type == "Gemm":
            rank = 2
        for name in node.input if node.op_type == "Concat" else node.input[: 2 if node.op_type == "Gemm" else 1]:
            found[name] = max(found.get(name, 0), rank)
    return found


CONSTANTS: dict[str, Callable[[AttributeProto], np.ndarray[Any, Any]]] = {
    "value": lambda a: numpy_helper.to_array(a.t),
    "value_float": lambda a: np.array(a.f, np.float32),
    "value_floats": lambda a: np.array(a.floats, np.float32),
    "value_int": lambda a: np.array(a.i, np.int64),
    "value_ints": lambda a: np.array(a.ints, np.int64),
}


class _Folding:
    """One walk over a model: known values become initializers, half-known shapes are declared.

    A half-known value is the shape [N, 200] of a dynamic batch: each unknown entry is a placeholder, a number that
    stands for its symbol and that operators in MOVES carry along.
    """

    def __init__(self, model: ModelProto, room: int) -> None:
        """`room`: bytes that the initializers may have together."""
        self.model, self.graph = model, model.graph
        self.room = room - sum(t.ByteSize() for t in self.graph.initializer)
        self.types = types_of(model)
        # A default that the caller may override is no constant.
        given = {i.name for i in model.graph.input}
        self.known = {t.name: t for t in model.graph.initializer if t.name not in given}
        self.half_known: dict[str, TensorProto] = {}
        self.symbols: list[str | None] = []
        self.ranks_read = _ranks_read(self.graph)

    def run(self) -> bool:
        """Fold the model in place; False when nothing more was found."""
        outputs = {o.name for o in self.graph.output}
        left, declared = [], False
        for node in self.graph.node:
            if node.domain in ("", "ai.onnx") and node.op_type == "Split" and self._fold_split(node, outputs):
                continue
            if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
                left.append(node)
                continue
            value = self._value(node)
            if value is None:
                declared |= self._declare(node)
            elif self._placeholders(value).any():
                self.half_known[node.output[0]] = self._kept(value, node.output[0])
            elif node.output[0] not in outputs:
                self.known[node.output[0]] = self._kept(value, node.output[0])
                self.graph.initializer.append(self.known[node.output[0]])
                continue
            left.append(node)
        folded = len(left) < len(self.graph.node)
        if folded:
            put_nodes(self.graph, left)
            # What was said of a value before it was known would be believed before the value.
            said = [v for v in self.graph.value_info if v.name not in self.known]
            del self.graph.value_info[:]
            self.graph.value_info.extend(said)
        return folded or declared

    def _kept(self, value: np.ndarray[Any, Any], name: str) -> TensorProto:
        tensor = numpy_helper.from_array(value, name)
        self.room -= tensor.ByteSize()
        return tensor

    def _fold_split(self, node: NodeProto, outputs: set[str]) -> bool:
        """Fold a Split of a known value, the one operator of several outputs that shape arithmetic uses."""
        if any(name and name not in self.known for name in node.input) or outputs & set(node.output):
            return False
        if elements(self.known[node.input[0]].dims) > SMALL or self.room < 0:
            return False
        graph = helper.make_graph(
            [node],
            "fold",
            [],
            [helper.make_empty_tensor_value_info(name) for name in node.output],
            [self.known[name] for name in node.input if name],
        )
        whole = helper.make_model(graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version)
        for name, part in zip(node.output, ReferenceEvaluator(whole).run(None, {}), strict=True):
            self.known[name] = self._kept(np.asarray(part), name)
            self.graph.initializer.append(self.known[name])
        return True

    def _value(self, node: NodeProto) -> np.ndarray[Any, Any] | None:
        """The value of a node's output, where weights and shapes alone decide it and it is small."""
        if node.op_type in ("Shape", "Size"):
            return self._shape_value(node)
        if node.op_type in RANDOM or any(a.HasField("g") for a in node.attribute):
            return None
        if node.op_type == "CastLike" and node.input[1] in self.types:  # of its second operand only the type matters
            kind = self.types[node.input[1]].tensor_type.elem_type
            node = helper.make_node("Cast", node.input[:1], node.output, to=kind)
        tensors = self._operands(node)
        if not (tensors or node.op_type == "Constant"):
            return None
        size = foldable.result_size(node, [tensors.get(name) for name in node.input])
        sizes = [elements(t.dims) for t in tensors.values()] + [elements(self._shape(node.output[0]) or [0])]
        if size is None or max(size, *sizes) > SMALL or self.room < 0:
            return None
        if node.op_type == "Constant" and node.attribute[0].name in CONSTANTS:
            return CONSTANTS[node.attribute[0].name](node.attribute[0])
        graph = helper.make_graph(
            [node], "fold", [], [helper.make_empty_tensor_value_info(node.output[0])], list(tensors.values())
        )
        one_node = helper.make_model(
            graph, opset_imports=list(self.model.opset_import), ir_version=self.model.ir_version
        )
        # What the evaluator can't run simply stays unknown, and is asked of the graph at run time.
        with contextlib.suppress(Exception):
            (value,) = ReferenceEvaluator(one_node).run(None, {})
            half_known = any(name in self.half_known for name in tensors)
            if isinstance(value, (np.ndarray, np.generic)) and np.size(value) <= SMALL:
                return np.asarray(value) if not half_known or value.dtype in (np.int32, np.int64) else None
        return None

    def _operands(self, node: NodeProto) -> dict[str, TensorProto]:
        """The node's inputs when all are known; of what a node moves, half-known is enough."""
        moved = {"Concat": len(node.input)}.get(node.op_type, 1) if node.op_type in MOVES else 0
        found: dict[str, TensorProto] = {}
        for i, name in enumerate(node.input):
            value = self.known.get(name) or (self.half_known.get(name) if i < moved else None)
            if name and value is None:
                return {}
            if value is not None:
                found[name] = value
        return found

    def _shape(self, name: str) -> list[int] | None:
        """The shape of a value, None unless all of it is known."""
        shape = self._dims(name)
        return None if shape is None or not all(isinstance(d, int) for d in shape) else shape

    def _dims(self, name: str) -> list[Any] | None:
        return read_type(self.types[name])[1] if name in self.types else None

    def _shape_value(self, node: NodeProto) -> np.ndarray[Any, Any] | None:
        dims = self._dims(node.input[0])
        if dims is None:
            return None
        if node.op_type == "Size":
            return np.array(elements(dims), np.int64) if self._shape(node.input[0]) is not None else None
        ends = {a.name: a.i for a in node.attribute}
        part = dims[slice(ends.get("start"), ends.get("end"))]
        return np.array([d if isinstance(d, int) else self._placeholder(d) for d in part], np.int64)

    def _placeholder(self, symbol: str | None) -> int:
        if symbol is None or symbol not in self.symbols:
            self.symbols.append(symbol)
            return PLACEHOLDER - len(self.symbols) + 1
        return PLACEHOLDER - self.symbols.index(symbol)

    def _placeholders(self, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if value.dtype.kind != "i":
            return np.zeros(value.shape, bool)
        return (value <= PLACEHOLDER) & (value > PLACEHOLDER - len(self.symbols))

    def _declare(self, node: NodeProto) -> bool:
        """Write down the shape of a node that inference gives up on; False when there is none to say."""
        if node.op_type == "Concat":
            return self._declare_parts(node)
        declared = {"Reshape": self._reshaped, "Einsum": self._contracted, "Squeeze": self._squeezed}
        if node.op_type not in declared or self._dims(node.output[0]) is not None or node.input[0] not in self.types:
            return False
        dims = declared[node.op_type](node)
        if dims is None:
            return False
        self._write(node.output[0], self.types[node.input[0]], dims)
        return True

    def _declare_parts(self, node: NodeProto) -> bool:
        """What a Concat joins has one rank: say it of the parts whose rank is open."""
        ranks = [len(dims) for dims in map(self._dims, node.input) if dims is not None]
        open_ones = [name for name in node.input if name in self.types and self._dims(name) is None] if ranks else []
        for name in open_ones:
            self._write(name, self.types[name], [None] * ranks[0])
        return bool(open_ones)

    def _write(self, name: str, kind: TypeProto, dims: list[Any]) -> None:
        there = [v for v in [*self.graph.value_info, *self.graph.output] if v.name == name]
        for value in there or [self.graph.value_info.add(name=name)]:
            value.type.CopyFrom(helper.make_tensor_type_proto(kind.tensor_type.elem_type, dims))

    def _squeezed(self, node: NodeProto) -> list[Any] | None:
        """Of a Squeeze without axes: what is not 1, where what reads it needs as many axes as that.

        An open size may be 1 at run time and its axis go too; the model itself would fail then.
        """
        dims = self._dims(node.input[0])
        if dims is None or any(node.input[1:]):
            return None
        left = [d for d in dims if d != 1]
        return left if self.ranks_read.get(node.output[0], 0) >= len(left) else None

    def _contracted(self, node: NodeProto) -> list[Any] | None:
        operands = [self._dims(name) for name in node.input]
        if any(dims is None for dims in operands):
            return None
        known = [dims or [] for dims in operands]
        equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
        terms, result = subscripts(equation, [len(dims) for dims in known])
        sizes: dict[str, Any] = {}
        for term, dims in zip(terms, known, strict=True):
            for label, size in zip(term, dims, strict=True):
                sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
        return [sizes[label] for label in result]

    def _reshaped(self, node: NodeProto) -> list[Any] | None:
        source, length = self._dims(node.input[0]), self._shape(node.input[1])
        if node.input[1] in self.half_known:
            target = numpy_helper.to_array(self.half_known[node.input[1]])
        elif length is not None:
            target = np.full(length, -1)  # the rank, at least
        else:
            return None
        dims: list[Any] = []
        for axis, (size, unknown) in enumerate(zip(target.tolist(), self._placeholders(target), strict=True)):
            if unknown:
                dims.append(self.symbols[PLACEHOLDER - size])
            elif size == 0 and source is not None and axis < len(source):
                dims.append(source[axis])
            else:
                dims.append(size if size > 0 else None)
        return dims


def subscripts(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """(subscripts of each operand, of the result): implicit results written out, ellipses turned into labels."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(once)
    spare = [c for c in string.ascii_letters if c not in equation]
    widths = [r - len(t.replace("...", "")) for t, r in zip(terms, ranks, strict=True)]
    most = max(widths) if "..." in left else 0
    broadcast = "".join(spare[:most])
    terms = [t.replace("...", broadcast[most - w :] if w else "") for t, w in zip(terms, widths, strict=True)]
    return terms, result.replace("...", broadcast)

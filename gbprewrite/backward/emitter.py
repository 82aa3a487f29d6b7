"""op.Mul(a, b): one backward node at a time, with its types, its name and its origin.

Equal nodes are built once (hash-consing over the forward graph as well), so rules may recompute freely: what the
forward pass already has is reused, and several methods share their masks.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import GraphProto, helper, numpy_helper, shape_inference

from gbprewrite.model.tensors import SMALL, Tensor, elements_of, fixed, node_proto, numpy_dtype, read_type, type_proto

Operand: TypeAlias = gs.Tensor | np.ndarray | float | int | None
Size: TypeAlias = int | str | None


class Contradiction(Exception):
    """Two shapes are claimed of one tensor that can't both be: a defect of a rule, or of the model."""


class Scope(NamedTuple):
    """What is being built, for the names of its nodes: a part of the file, and the node of the model that is undone."""

    tag: str
    node: str | None = None

    def __str__(self) -> str:
        return self.tag if self.node is None else f"{self.tag}/{self.node}"


class Emitter:
    """Builds nodes behind a forward graph; `nodes` is what was built, in order."""

    def __init__(
        self,
        forward: gs.Graph,
        opset: int,
        prefix: str = "",
        *,
        taken: Iterable[str] = (),
        around: Self | None = None,
    ) -> None:
        """`taken` are names that the forward graph leaves out. A graph inside a node sees what was built `around` it,
        and takes no name twice."""
        self.opset = opset
        self.prefix = prefix
        self.nodes: list[gs.Node] = []
        self.declared: list[gs.Variable] = []  # whose shapes are better known than by ONNX's inference
        self.forward: set[int] = {id(n) for n in forward.nodes}  # the model's own nodes
        self.forward |= around.forward if around else set()
        self._taken = frozenset(taken)
        self._scope = around.scope if around else Scope("grad")
        self._names: set[str] = around._names if around else set()
        self._last_numbers: dict[str, int] = around._last_numbers if around else {}  # where a free name is looked for
        self._constants: dict[Any, gs.Constant] = {}
        self._built: set[int] = set()
        self._schemas: dict[str, onnx.defs.OpSchema] = {}
        known: dict[Any, list[Tensor]] = {}
        self._names.update(n.name for n in forward.nodes)
        tensors = [*forward.inputs, *(t for n in forward.nodes for t in [*n.inputs, *n.outputs])]
        self._names.update(t.name for t in tensors)
        for node in forward.nodes:
            if node.domain in (None, "", "ai.onnx"):
                known.setdefault(self._key(node.op, node.inputs, node.attrs, len(node.outputs)), node.outputs)
        self._known: MutableMapping[Any, list[Tensor]] = ChainMap(known, around._known) if around else known

    @property
    def scope(self) -> Scope:
        """What is being built."""
        return self._scope

    def enter(self, tag: str, node: str | None = None) -> None:
        """Name what is built from here on for this part of the file, and for this node of the model."""
        self._scope = Scope(tag, node)

    def __getattr__(self, operator: str) -> Callable[..., Any]:
        if not operator[:1].isupper():
            raise AttributeError(operator)

        def emit(*inputs: Operand, outputs: int = 1, **attributes: Any) -> Any:
            made = self.emit(operator, inputs, attributes, outputs)
            return made[0] if outputs == 1 else made

        return emit

    def emit(self, operator: str, inputs: Sequence[Operand], attributes: dict[str, Any], outputs: int) -> list[Tensor]:
        """Build one node, or find it: an equal node gives its outputs again."""
        tensors = self._tensors(inputs)
        attributes = {k: v for k, v in attributes.items() if v is not None}
        key = self._key(operator, tensors, attributes, outputs)
        if key in self._known:
            return self._known[key]
        name = self.unique(f"{self.prefix}{self.scope}/{operator}")
        # Nodes tell what they undo. Values have short names, which the file holds once more for each of their readers.
        short = self.unique(f"{self.prefix}{self.scope.tag}/{len(self._names)}")
        made = [gs.Variable(short if i == 0 else f"{short}:{i}") for i in range(outputs)]
        node = gs.Node(operator, name, attributes, tensors, made)
        self._infer(node)
        self.nodes.append(node)
        self._built.update(id(t) for t in made)
        self._known[key] = made
        return made

    def branched(self, condition: Tensor, branches: dict[str, GraphProto], like: Sequence[Tensor]) -> list[Tensor]:
        """An If; its outputs have the types and shapes of `like`."""
        name = self.unique(f"{self.prefix}{self.scope}/If")
        made = [gs.Variable(f"{name}:{i}", x.dtype, x.shape) for i, x in enumerate(like)]
        self.nodes.append(gs.Node("If", name, dict(branches), [condition], made))
        self._built.update(id(t) for t in made)
        return list(made)

    def constants(self) -> list[gs.Constant]:
        """The constants that were made here."""
        return list(self._constants.values())

    def constant(self, value: Any, dtype: Any = None) -> gs.Constant:
        """An initializer; equal values are stored once."""
        array = np.ascontiguousarray(np.asarray(value, dtype))
        array = array.reshape(np.shape(value))  # ascontiguousarray makes a vector of a scalar
        key = (array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            made = gs.Constant(self.unique(f"{self.prefix}grad/constant"), array)
            self._constants[key] = made
        return self._constants[key]

    def name(self, tensor: Tensor, name: str) -> Tensor:
        """Give a built tensor a telling name; forward tensors, and tensors that have one already, keep theirs."""
        if id(tensor) in self._built:
            self._built.discard(id(tensor))
            tensor.name = self.unique(self.prefix + name)
        return tensor

    def output(self, tensor: Tensor, name: str, shape: Sequence[Size] | None = None) -> gs.Variable:
        """A new graph output of exactly this name, and of a shape that inference may not find."""
        made = gs.Variable(name)
        node = gs.Node("Identity", self.unique(f"{name}/Identity"), {}, [self._tensors([tensor])[0]], [made])
        self._infer(node)
        if shape is not None:
            self.declare(made, shape)
        self.nodes.append(node)
        return made

    @staticmethod
    def declare(v: Tensor, shape: Sequence[Size], dtype: Any = None) -> Tensor:
        """v, of which more is known than ONNX's inference finds: its shape, and its dtype where that is given.

        A size is a number, a name, or None for one that nothing tells. Raises Contradiction where v is known to have
        other numbers, or another rank.
        """
        known = v.shape
        clash = known is not None and (
            len(known) != len(shape) or any(fixed(a) and fixed(b) and a != b for a, b in zip(known, shape, strict=True))
        )
        if clash:
            raise Contradiction(f"{v.name!r} has the shape {list(known)}, and is declared to have {list(shape)}")
        v.shape = list(shape)
        if dtype is not None:
            v.dtype = np.dtype(dtype)
        return v

    def reserve(self, names: Iterable[str]) -> None:
        """Keep these names for outputs."""
        self._names.update(names)

    def unique(self, name: str) -> str:
        candidate, count = name, self._last_numbers.get(name, 1)
        while candidate in self._names or candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._last_numbers[name] = count
        self._names.add(candidate)
        return candidate

    def _tensors(self, inputs: Sequence[Operand]) -> list[Tensor]:
        kind = next((numpy_dtype(t) for t in inputs if isinstance(t, gs.Tensor)), None)
        made: list[Tensor] = []
        for value in inputs:
            if value is None:
                made.append(gs.Variable.empty())
            elif isinstance(value, gs.Tensor):
                made.append(value)
            else:
                made.append(self.constant(value, None if isinstance(value, (np.ndarray, np.generic)) else kind))
        return made

    @staticmethod
    def _key(operator: str, inputs: Iterable[Tensor], attributes: dict[str, Any], outputs: int) -> Any:
        return operator, tuple(t.name or None for t in inputs), repr(sorted(attributes.items())), outputs

    def _infer(self, node: gs.Node) -> None:
        schema = self._schemas.get(node.op)
        if schema is None:
            schema = self._schemas[node.op] = onnx.defs.get_schema(node.op, self.opset)
        proto = node_proto(node)
        types = {t.name: type_proto(t) for t in node.inputs if t.name}
        data = {
            t.name: numpy_helper.from_array(t.values, t.name)
            for t in node.inputs
            if isinstance(t, gs.Constant) and elements_of(t) <= SMALL
        }
        found = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        for tensor in node.outputs:
            if tensor.name in found:
                tensor.dtype, tensor.shape = read_type(found[tensor.name])

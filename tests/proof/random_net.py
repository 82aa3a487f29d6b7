"""A network that grows node by node, with the value of every tensor at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from tests.oracle.onnx_operators import OPERATORS, Node

Array = np.ndarray[Any, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]
LARGEST = 1500  # elements of a tensor that the layers may make


class Net:
    """Nodes, weights, and `values` name -> float64 tensor for the one input that the graph will be run on.

    `symbolic`: which dimensions of the inputs have a name instead of a number.

    `images` are the values of rank 3 and more that layers may read; `draw` is hypothesis's.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.opset = draw(st.integers(11, 21))
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.spelling = draw(st.sampled_from(("initializer", "node", "behind Identity")))
        self.symbolic = draw(st.sampled_from(("none", "batch", "all")))
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: dict[str, Array] = {}
        self.values: dict[str, Tensor] = {}
        self.images: list[str] = []
        self.layers: list[str] = []
        self.moved = False  # whether a layer has moved the axis of the samples

    # --- choices

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def integer(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def integers(self, count: int, low: int, high: int) -> list[int]:
        return [self.integer(low, high) for _ in range(count)]

    def places(self, sizes: Sequence[int]) -> list[int]:
        return [self.integer(0, size - 1) for size in sizes]

    def shape(self, name: str) -> list[int]:
        return list(self.values[name].shape)

    def dims(self, name: str) -> int:
        """Number of spatial dimensions of an image."""
        return self.values[name].dim() - 2

    def samples_first(self) -> bool:
        """Whether every image has the samples on its first axis, all of them."""
        return not self.moved and len({self.shape(name)[0] for name in self.images}) == 1

    # --- growing

    def name(self, kind: str) -> str:
        return f"{kind.lower()}{len(self.values)}"

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.random.standard_normal(shape).astype(np.float32)
        self.values[name] = torch.from_numpy(self.inputs[name]).double()
        return name

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """An initializer, a Constant node, or the output of an Identity (weights that a network shares)."""
        array, name = np.asarray(value, dtype), self.name("c")
        if self.spelling == "behind Identity" and array.ndim > 1:
            self.weights.append(numpy_helper.from_array(array, f"{name}_shared"))
            self.nodes.append(helper.make_node("Identity", [f"{name}_shared"], [name]))
        elif self.spelling == "node":
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        tensor = torch.from_numpy(array.copy())
        self.values[name] = tensor.double() if tensor.is_floating_point() else tensor
        return name

    def indices(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def weight(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        return self.constant(self.random.standard_normal(shape) * scale + shift)

    def positive(self, *shape: int) -> str:
        return self.constant(self.random.uniform(0.5, 1.5, shape))

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and run it; the name of its output, or a list of names."""
        kept = {name: value for name, value in attributes.items() if value is not None}
        first = self.name(kind)
        names = [first, *(f"{first}_{i}" for i in range(1, outputs))]
        proto = helper.make_node(kind, inputs, names, **kept)
        found = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        node = Node(proto, found, self.opset, torch.float64)
        made = OPERATORS[kind](node, *(self.values[i] if i else None for i in inputs))
        made = made if isinstance(made, tuple) else (made,)
        self.nodes.append(proto)
        self.values.update(zip(names, made, strict=True))
        return first if outputs == 1 else names

    def listed(self, kind: str, x: str, since: int, name: str, values: Sequence[int], **more: Any) -> Any:
        """A node whose integers are an attribute before opset `since` and an input from then on."""
        if self.opset < since:
            return self.add(kind, x, **{name: list(values)}, **more)
        return self.add(kind, x, self.indices(*values), **more)

    def tamed(self, name: str) -> str | None:
        """The value, scaled where it has become very large or small; None when it is useless to go on with
        (a dead ReLU: nothing comes back through it)."""
        value = self.values[name]
        size = float(value.square().mean().sqrt())
        spread = float(value.std(correction=0))
        if not np.isfinite(size) or value.numel() > LARGEST or size < 1e-6 or (value.numel() > 1 and spread < 1e-6):
            return None
        return name if 0.05 < size < 20 else self.add("Mul", name, self.constant(np.float32(1 / size)))

    def bounded(self, name: str, most: float) -> str:
        """The value, scaled to at most `most`: of 1 - tanh(9)² float32 has no digit left."""
        greatest = float(self.values[name].abs().max())
        return name if greatest <= most else self.add("Mul", name, self.constant(np.float32(most / greatest)))

    # --- the model

    def model(self, outputs: Sequence[str]) -> ModelProto:
        made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, self._dims(o)) for o in outputs]
        inputs = [helper.make_tensor_value_info(i, TensorProto.FLOAT, self._dims(i)) for i in self.inputs]
        graph = helper.make_graph(self.nodes, "random", inputs, made, self.weights)
        opset = helper.make_opsetid("", self.opset)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8 if self.opset < 20 else 10)

    def _dims(self, name: str) -> list[int | str | None]:
        sizes = self.shape(name)
        if self.symbolic == "none" or not sizes:
            return list(sizes)
        if name not in self.inputs:
            return [None] * len(sizes)
        if self.symbolic == "batch":
            return [f"{name}_batch", *sizes[1:]]
        return [f"{name}_{axis}" for axis in range(len(sizes))]


# --- the table that random networks are built from --------------------------------------------------------------------

Layer = Callable[[Net, str], str | None]
LAYERS: dict[str, Layer] = {}


def layer(name: str) -> Callable[[Layer], Layer]:
    def register(f: Layer) -> Layer:
        LAYERS[name] = f
        return f

    return register

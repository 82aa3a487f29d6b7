"""Gradient, guided and deconvnet maps of an ONNX file: an interpreter in PyTorch, differentiated by autograd.

It reads the source file in whatever opset it is written, so it proves gbprewrite's normalising too, and it decides by
itself which nodes are rectifiers. The rules of the methods are those of Springenberg et al. 2015 (guided) and Zeiler
and Fergus 2014 (deconvnet), in `torch_oracle`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from tests.oracle.onnx_operators import OPERATORS, Node, hard_swish
from tests.oracle.torch_oracle import Activate, Rectify

ACTIVATIONS = {"Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Selu", "Sigmoid", "Softplus", "Tanh"}
GATES = {"HardSigmoid", "Sigmoid", "Tanh"}  # no activations where they multiply something
SAME_VALUES = {"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Unsqueeze"}


class At(torch.autograd.Function):
    """The value another run found, with the derivative of this one: what follows is differentiated at that value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.reshape(x.shape).clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return dy, None


class Explanation(NamedTuple):
    """`maps` input -> tensor like it; `index` the class explained [N], None for a cotangent of one's own."""

    maps: dict[str, Tensor]
    index: Tensor | None


class Oracle:
    """An ONNX model in PyTorch, all its floats in one type.

    `rectifiers`, `activations` and `hard_swishes` (a product written out: last node -> x) are keyed by output name.
    """

    def __init__(self, model: ModelProto, float_type: torch.dtype = torch.float64) -> None:
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        attributes = [{a.name: helper.get_attribute_value(a) for a in p.attribute} for p in model.graph.node]
        protos = zip(model.graph.node, attributes, strict=True)
        self.nodes = [Node(proto, found, opset, float_type) for proto, found in protos]
        self.maker = {name: n for n in self.nodes for name in n.proto.output}
        self.outputs = [o.name for o in model.graph.output]
        loader = Node(NodeProto(), {}, opset, float_type)
        self.load = loader.array
        self.constants = {t.name: self.load(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        varying = set(self.inputs)
        self.varying: list[Node] = []
        for n in self.nodes:
            if varying.intersection(n.proto.input):
                varying.update(n.proto.output)
                self.varying.append(n)
            else:
                self._run(n, self.constants)
        self.rectifiers: dict[str, tuple[float, float]] = {}
        self.activations: set[str] = set()
        self.hard_swishes: dict[str, str] = {}
        for n in self.varying:
            self._classify(n)

    # --- which nodes the methods act on

    def _classify(self, n: Node) -> None:
        kind, name = n.proto.op_type, n.proto.output[0]
        if kind == "Relu" or (kind == "Max" and any(self._scalar(i) == 0 for i in n.proto.input)):
            self.rectifiers[name] = 0.0, math.inf
        elif kind == "ThresholdedRelu":
            self.rectifiers[name] = n.get("alpha", 1.0), math.inf
        elif kind == "Clip":
            low, high = self._bounds(n)
            if low == 0 and not self._is_ramp(n, high):
                self.rectifiers[name] = 0.0, high
        elif kind in ACTIVATIONS and not (kind in GATES and self._multiplies(name)):
            self.activations.add(name)

    def _bounds(self, n: Node) -> tuple[float, float]:
        given = [self._scalar(i) for i in n.proto.input[1:]]
        low, high = (*given, None, None)[:2]
        low = n.get("min", -math.inf) if low is None else low
        return low, n.get("max", math.inf) if high is None else high

    def _is_ramp(self, n: Node, high: float) -> bool:
        """clip(x + c, 0, high) that goes on as a factor or scaled: a hard-sigmoid or hard-swish written out."""
        add = self.maker.get(n.proto.input[0])
        if add is None or add.proto.op_type != "Add" or math.isinf(high):
            return False
        shift = next((s for s in map(self._scalar, add.proto.input) if s is not None), None)
        if shift is None or not 0 < shift < high:
            return False
        (x,) = (i for i in add.proto.input if i not in self.constants)
        readers = self._readers(n.proto.output[0])
        if all(r.proto.op_type in ("Mul", "Div") for r in readers):
            self._follow_ramp(n, x, high)
            return True
        return False

    def _follow_ramp(self, clip_node: Node, x: str, high: float) -> None:
        """Note a hard-swish: the ramp meets a factor x and a factor 1/high, in either order."""
        name, scale, factors = clip_node.proto.output[0], 1.0, 0
        while len(readers := self._readers(name)) == 1 and readers[0].proto.op_type in ("Mul", "Div"):
            (reader,) = readers
            (other,) = (i for i in reader.proto.input if i != name)
            value = self._scalar(other)
            if value is None and other != x:
                return
            if value is not None:
                scale *= 1 / value if reader.proto.op_type == "Div" else value
            factors += value is None
            name = reader.proto.output[0]
            if factors == 1 and math.isclose(scale * high, 1, rel_tol=1e-4):
                self.hard_swishes[name] = x
                return

    def _readers(self, name: str) -> list[Node]:
        return [n for n in self.nodes if name in n.proto.input]

    def _scalar(self, name: str) -> float | None:
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.numel() == 1 else None

    def _multiplies(self, name: str) -> bool:
        """Whether a value is a factor of another one that the input decides too, perhaps after being reshaped."""
        for n in self._readers(name):
            if n.proto.op_type == "Mul" and not any(i in self.constants for i in n.proto.input):
                return True
            if n.proto.op_type in SAME_VALUES and self._multiplies(n.proto.output[0]):
                return True
        return False

    # --- running it

    def _run(self, n: Node, values: dict[str, Tensor]) -> None:
        function = OPERATORS.get(n.proto.op_type)
        if function is None or n.proto.domain not in ("", "ai.onnx"):
            raise NotImplementedError(f"the oracle has no {n.proto.domain}::{n.proto.op_type}")
        made = function(n, *(values[i] if i else None for i in n.proto.input))
        made = made if isinstance(made, tuple) else (made,)
        values.update(zip(n.proto.output, made, strict=False))  # further outputs (a mask of Dropout) are never read

    def path(self, score: str) -> set[str]:
        """Names of the values that a score depends on."""
        found: set[str] = set()
        todo = [score]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += self.maker[name].proto.input if name in self.maker else []
        return found

    def forward(
        self,
        feeds: Mapping[str, Any],
        method: str = "gradient",
        rectify_all: bool = False,
        at: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Every value of the graph; going backward from it, rectifiers act by the rule of `method`.

        `at`: values of inner tensors to differentiate at, as another program found them in lower precision. There both
        take the same side of every kink, so their maps can be compared however near an activation is to zero.
        """
        values = dict(self.constants)
        for name, value in feeds.items():
            values[name] = value if isinstance(value, Tensor) else self.load(value)
        for n in self.varying:
            name = n.proto.output[0]
            if method == "gradient":
                self._run(n, values)
            elif name in self.rectifiers:
                (x,) = (values[i] for i in n.proto.input if i and i not in self.constants)
                with torch.no_grad():
                    self._run(n, values)
                values[name] = Rectify.apply(x, values[name], method, *self.rectifiers[name])
            elif rectify_all and name in self.activations:
                x, *rest = (values[i] for i in n.proto.input)
                f = OPERATORS[n.proto.op_type]
                values[name] = Activate.apply(x, lambda v, n=n, f=f, rest=rest: f(n, v, *rest), method)
            elif rectify_all and name in self.hard_swishes:
                values[name] = Activate.apply(values[self.hard_swishes[name]], hard_swish, method)
            else:
                self._run(n, values)
            values.update({o: At.apply(values[o], self.load(at[o])) for o in n.proto.output if o in at})
        return values

    def before_softmax(self, output: str) -> tuple[str, int]:
        """The score behind an output, before a final Softmax, LogSoftmax or Sigmoid, and its class axis."""
        name = output
        while (n := self.maker.get(name)) is not None:
            kind = n.proto.op_type
            if kind in ("Softmax", "LogSoftmax"):
                return n.proto.input[0], n.get("axis", -1 if n.opset >= 13 else 1)
            if kind == "Sigmoid":
                return n.proto.input[0], 1
            if kind not in SAME_VALUES:
                break
            name = n.proto.input[0]
        return output, 1

    def explain(
        self,
        feeds: Mapping[str, Any],
        score: str,
        method: str = "gradient",
        *,
        class_axis: int = 1,
        cotangent: Any = None,
        rectify_all: bool = False,
        at: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
    ) -> Explanation:
        """Maps of the highest class of `score` (summed over its other axes), or of ⟨cotangent, score⟩."""
        leaves = {name: self.load(feeds[name]).requires_grad_() for name in self.inputs}
        value = self.forward(leaves, method, rectify_all, at)[score]
        index = None
        if cotangent is None:
            axis = class_axis % value.dim()
            rest = [a for a in range(1, value.dim()) if a != axis]
            sums = value.detach().sum(rest, keepdim=True) if rest else value.detach()
            highest = sums.argmax(axis, keepdim=True)
            index = highest.reshape(-1)
            cotangent = torch.zeros_like(sums).scatter_(axis, highest, 1).expand_as(value)
        made = torch.autograd.grad(value, list(leaves.values()), torch.as_tensor(cotangent, dtype=value.dtype))
        return Explanation(dict(zip(leaves, made, strict=True)), index)

"""Which function of an earlier tensor each tensor of the view is, where it is one element by element.

A form of a tensor y is a tensor x of the same shape, its base, and the pieces of f with y = f(x). Most tensors have no
base but themselves. Behind comparisons, masks and simple arithmetic a tensor has several: itself, and those before it.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, constant_of, is_float, producer, same_shape
from gbprewrite.view import piecewise
from gbprewrite.view.element_functions import ELEMENTWISE, Function
from gbprewrite.view.piecewise import IDENTITY, Pieces, Unknown, constant

MOST_BASES = 5
MOST_FORMS = 50_000  # for one graph, some seconds; beyond them the nearest base alone is followed
HANDED_ON = (
    *("Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile", "Slice"),
    *("Gather", "Cast", "CastLike", "Split"),
)
REDUCED = {"ReduceMax": "Max", "ReduceMin": "Min", "ReduceSum": "Sum", "ReduceMean": "Mean"}


class Forms:
    """The forms of the tensors of one view, gathered node by node in the graph's order."""

    def __init__(self, weights: frozenset[str] = frozenset()) -> None:
        self.weights = weights  # names of initializers whose values the view leaves out
        self._of: dict[int, dict[int, Pieces]] = {}
        self._tensors: dict[int, Tensor] = {}
        self._numbers: dict[int, float | None] = {}
        self._weights: set[int] = set()
        self._left = MOST_FORMS
        self._alive: list[Tensor] = []  # so that no tensor gets the id() of one that a raised node has dropped

    def of(self, t: Tensor) -> list[tuple[Tensor, Pieces]]:
        """(base, pieces), the nearest base first."""
        return [(self._tensors[key], pieces) for key, pieces in self._forms(t).items()]

    def number(self, t: Tensor) -> float | None:
        """The one number that a tensor is proved to hold everywhere, else None."""
        if id(t) not in self._numbers and isinstance(t, gs.Constant):
            self._alive.append(t)
            self._numbers[id(t)] = number_in(t.values)
        return self._numbers.get(id(t))

    def is_zero(self, t: Tensor) -> bool:
        """Whether a tensor is proved to hold nothing but zeros."""
        return self.number(t) == 0

    def look_at(self, node: gs.Node) -> None:
        """Learn what a node makes of what is known of its inputs."""
        self._alive += [*node.inputs, *node.outputs]
        if node.domain not in (None, "", "ai.onnx") or not node.outputs or _drops_at_random(node):
            return
        self._follow_numbers(node)
        y = node.outputs[0]
        if self._numbers.get(id(y)) is not None or y.dtype is None:
            return
        found = self._found(node)
        if found:
            own = {id(y): IDENTITY} if is_float(y) else {}
            self._of[id(y)] = dict(list((own | found).items())[:MOST_BASES])
            self._tensors[id(y)] = y

    def _follow_numbers(self, node: gs.Node) -> None:
        """Mark what holds one number everywhere, and what is made of weights alone."""
        first = node.inputs[0] if node.inputs else None
        if node.op == "ConstantOfShape":
            self._numbers[id(node.outputs[0])] = number_in(_value_of(node, np.zeros(1)))
        elif node.op == "Constant":  # a large one, which folding has left
            self._numbers[id(node.outputs[0])] = number_in(_value_of(node, np.zeros(0)))
            self._weights.add(id(node.outputs[0]))
        elif first is not None and node.op in HANDED_ON:
            number = self.number(first)
            outputs = node.outputs if node.op == "Split" else node.outputs[:1]
            if number is None and self.is_weight(first):
                self._weights.update(id(y) for y in outputs)
            elif number is not None and _keeps(node, number):
                self._numbers |= dict.fromkeys(map(id, outputs), number)
        elif node.op == "Neg" and first is not None and self.is_weight(first) and self.number(first) is None:
            self._weights.add(id(node.outputs[0]))
        elif node.op == "Concat":
            numbers = {self.number(t) for t in node.inputs}
            self._numbers[id(node.outputs[0])] = numbers.pop() if len(numbers) == 1 else None
        elif node.op == "Mul" and any(self.is_zero(t) for t in node.inputs):
            self._numbers[id(node.outputs[0])] = 0.0

    def is_weight(self, t: Tensor) -> bool:
        """Whether a tensor is the same in every run."""
        return isinstance(t, gs.Constant) or id(t) in self._weights or (not t.inputs and t.name in self.weights)

    def _forms(self, t: Tensor) -> dict[int, Pieces]:
        if id(t) not in self._of and t.dtype is not None and is_float(t):
            self._tensors[id(t)] = t
            return {id(t): IDENTITY}
        return self._of.get(id(t), {})

    def _found(self, node: gs.Node) -> dict[int, Pieces]:
        """The forms of a node's output, except itself."""
        operator, operands, sized = node.op, list(node.inputs), False
        if node.op in REDUCED:
            operator, operands, sized = REDUCED[node.op], self._stack(node), True
        elif node.op == "ScatterND":
            operator, operands, sized = "Where", _selection(node), True
        rule = ELEMENTWISE.get(operator)
        if rule is None or not operands:
            return {}
        if node.op in ("Identity", "Dropout", "Cast", "CastLike", "Expand"):
            operands = operands[:1]
        known = [None if not t.name else self._same_everywhere(t) for t in operands]
        varying = [t for t, k in zip(operands, known, strict=True) if t.name and k is None]
        if not varying:
            return self._evaluated(node, rule, known)
        found: dict[int, Pieces] = {}
        for key in self._common(varying)[: None if self._left > 0 else 1]:
            base = self._tensors[key]
            if not sized and not self._has_shape(node, base, operands, known):
                continue
            given = [self._forms(t)[key] if t.name and k is None else k for t, k in zip(operands, known, strict=True)]
            while given[-1] is None:  # an optional input that is left out
                given.pop()
            self._left -= 1
            try:
                pieces = rule(node, *given)
            except (Unknown, OverflowError, TypeError):
                continue
            if (number := pieces.number()) is not None:
                self._numbers[id(node.outputs[0])] = number
                return {}
            found[key] = pieces
        return found

    def _evaluated(self, node: gs.Node, rule: Function, known: Sequence[Pieces | None]) -> dict[int, Pieces]:
        """What comes of numbers alone is a number."""
        try:
            number = rule(node, *known).number()
        except (Unknown, OverflowError, TypeError, AttributeError):
            return {}
        if number is not None:
            self._numbers[id(node.outputs[0])] = number
        return {}

    def _same_everywhere(self, t: Tensor) -> Pieces | None:
        number = self.number(t)
        if number is not None:
            return constant(number) if math.isfinite(number) else None
        if not self.is_weight(t):
            return None
        self._tensors[id(t)] = t
        return piecewise.symbol(id(t))

    def weight(self, symbol: Hashable) -> Tensor | None:
        """The weight of several values that a symbol stands for."""
        return self._tensors[symbol] if isinstance(symbol, int) else None

    def _common(self, tensors: Sequence[Tensor]) -> list[int]:
        """The bases that all tensors have, the nearest first."""
        places = [{key: i for i, key in enumerate(self._forms(t))} for t in tensors]
        shared = [key for key in places[0] if all(key in other for other in places)]
        return sorted(shared, key=lambda key: sum(place[key] for place in places))

    def _has_shape(self, node: gs.Node, base: Tensor, operands: Sequence[Tensor], known: Sequence[Any]) -> bool:
        """Whether the output is proved to have the base's shape: nothing stretches it."""
        if same_shape(node.outputs[0], base):
            return True
        if node.op == "Expand":
            whole = _whole_shape_of(node.inputs[1])
            return whole is not None and self._as_large(whole, base)
        return all(k is None or self.fits(t, base) for t, k in zip(operands, known, strict=True))

    def fits(self, t: Tensor, base: Tensor) -> bool:
        """Whether a tensor broadcasts to the shape of another, which stays as it is."""
        if same_shape(t, base) or t.shape == []:
            return True
        if t.shape is not None and base.shape is not None and len(t.shape) <= len(base.shape):
            ends = base.shape[len(base.shape) - len(t.shape) :]
            if all(d == 1 or (d is not None and d == e) for d, e in zip(t.shape, ends, strict=True)):
                return True
        node = producer(t)
        if node is None:
            return False
        if node.op in ("ConstantOfShape", "Expand"):
            whole = _whole_shape_of(node.inputs[-1])
            return whole is not None and self._as_large(whole, base)
        if node.op in ELEMENTWISE and node.op != "PRelu":
            inputs = node.inputs[:1] if node.op == "CastLike" else node.inputs
            return all(self.fits(v, base) or self._as_large(v, base) for v in inputs if v.name)
        return False

    def _as_large(self, t: Tensor, base: Tensor) -> bool:
        return same_shape(t, base) or id(base) in self._forms(t) or id(t) in self._forms(base)

    def _stack(self, node: gs.Node) -> list[Tensor]:
        """What is stacked along the one axis that a node reduces; nothing where it is no stack."""
        stack, shape = producer(node.inputs[0]), node.inputs[0].shape
        axes = _axes(node)
        if stack is None or stack.op != "Concat" or len(axes) != 1 or shape is None:
            return []
        axis = axes[0] % len(shape)
        if stack.attrs["axis"] % len(shape) != axis:
            return []
        kept, repeats = bool(node.attrs.get("keepdims", 1)), node.op in ("ReduceMax", "ReduceMin")
        parts = [self._layer(t, axis, kept, repeats) for t in stack.inputs]
        return [t for t in parts if t is not None] if all(t is not None for t in parts) else []

    def _layer(self, t: Tensor, axis: int, kept: bool, repeats: bool) -> Tensor | None:
        """One part of a stack, without the axis of the stack where that goes; None for more than one layer.

        A number may fill several layers where it does not matter how often it `repeats`.
        """
        if self.number(t) is not None and (repeats or (t.shape is not None and t.shape[axis] == 1)):
            return t
        if t.shape is None or t.shape[axis] != 1:
            return None
        if kept:
            return t
        node = producer(t)
        if node is None or node.op != "Unsqueeze" or [n % len(t.shape) for n in _axes(node)] != [axis]:
            return None
        return node.inputs[0]


def _axes(node: gs.Node) -> list[int]:
    """The axes that an operator names in an attribute or in a constant; none where they are computed."""
    value = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return [int(n) for n in (node.attrs.get("axes", []) if value is None else value.ravel())]


def _drops_at_random(node: gs.Node) -> bool:
    """Whether a node is a Dropout that may be active."""
    training = constant_of(node.inputs[2]) if node.op == "Dropout" and len(node.inputs) > 2 else np.zeros(1)
    return training is None or bool(training.any())


def _keeps(node: gs.Node, number: float) -> bool:
    """Whether an operator that hands values on hands on this one: all but a Cast to a type that may lack it."""
    y = node.outputs[0]
    return node.op not in ("Cast", "CastLike") or (y.dtype is not None and (is_float(y) or number in (0, 1)))


def _value_of(node: gs.Node, default: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    value = node.attrs.get("value", default)
    return np.asarray(getattr(value, "values", value))


def number_in(value: np.ndarray[Any, Any]) -> float | None:
    """The one number that an array holds, None for several."""
    if not value.size or value.dtype.kind not in "fiubV":
        return None
    first = value.flat[0]
    stored_once = not any(value.strides)
    return float(first) if stored_once or (first == value.flat[-1] and (value == first).all()) else None


def _whole_shape_of(shape: Tensor) -> Tensor | None:
    """The tensor whose whole shape a tensor is."""
    node = producer(shape)
    if node is None or node.op != "Shape" or node.attrs.get("start") or "end" in node.attrs:
        return None
    found: Tensor = node.inputs[0]
    return found


def _selection(node: gs.Node) -> list[Tensor]:
    """Of a ScatterND at the places where a mask holds: mask, updates, data. Nothing for any other.

    Values that were gathered at these places are updates in the shape of what they come from.
    """
    data, indices, updates = node.inputs
    mask = _mask_of(indices)
    if mask is None or node.attrs.get("reduction", "none") != "none":
        return []
    source = producer(updates)
    while source is not None and source.op in ("Reshape", "Expand", "Slice"):  # there are as many as places
        source = producer(source.inputs[0]) if source.op != "Slice" or len(source.inputs) == 4 else None
    if source is not None and source.op == "GatherND" and not source.attrs.get("batch_dims"):
        gathered = _mask_of(source.inputs[1])
        if gathered is not None and _unexpanded(gathered) is _unexpanded(mask):
            updates = source.inputs[0]
    return [mask, updates, data]


def _mask_of(indices: Tensor) -> Tensor | None:
    """The mask whose places, one in a row, are indices."""
    turned = producer(indices)
    places = producer(turned.inputs[0]) if turned is not None and turned.op == "Transpose" else None
    return places.inputs[0] if places is not None and places.op == "NonZero" else None


def _unexpanded(t: Tensor) -> Tensor:
    node = producer(t)
    return node.inputs[0] if node is not None and node.op == "Expand" else t

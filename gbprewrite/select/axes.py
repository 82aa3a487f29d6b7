"""What each axis of each value holds: samples, channels, or positions; followed through the graph from its inputs.

Conv and its like make channels on axis 1, MatMul and Gemm on their last axis. Operators that move axes take along what
these hold, those that compute value by value hand it on, and a Reshape deals it out anew (see `regrouping`). What
nothing tells is UNKNOWN, never guessed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.inference import subscripts
from gbprewrite.model.tensors import Tensor, constant_of
from gbprewrite.select.regrouping import (
    BATCH,
    BESIDE,
    CHANNELS,
    CLASSES,
    ONE,
    POSITIONS,
    SINGLE,
    UNKNOWN,
    Axis,
    Part,
    agreed,
    regrouped,
    resized,
    roles,
    size_of,
)
from gbprewrite.select.shape_operands import operand_sizes
from gbprewrite.view import operators

CONVOLUTIONS = ("Conv", "ConvInteger", "ConvTranspose", "DeformConv", "QLinearConv")
PRODUCTS = {"MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "Gemm": 1, "QGemm": 3}  # the place of the right factor
# Channels on axis 1 and positions behind them, if nothing else is known of these axes.
WINDOWED = (
    *("BatchNormalization", "DepthToSpace", "GroupNormalization", "InstanceNormalization", "LRN", "SpaceToDepth"),
    *("GridSample", "QLinearAveragePool", "QLinearGlobalAveragePool", *operators.POOLS),
)
# Each axis of the output is that axis of the first input, of whatever size; or of all inputs.
OF_FIRST = (
    *("Cast", "Compress", "CumSum", "DequantizeLinear", "Dropout", "Expand", "Identity", "LayerNormalization"),
    *(
        "LpNormalization",
        "MeanVarianceNormalization",
        "Pad",
        "QuantizeLinear",
        "Resize",
        "Saturation",
        "Slice",
        "Split",
    ),
    *("Tile", "TopK", "Upsample", *operators.ACTIVATIONS, *operators.RECTIFIERS, "Softmax", "LogSoftmax", "Hardmax"),
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "CastLike", "Ceil", "Cos", "Cosh", "CumProd", "Erf"),
    *("Exp", "Floor", "GatherElements", "IsInf", "IsNaN", "Log", "Neg", "Not", "QLinearLeakyRelu", "QLinearSigmoid"),
    *("Reciprocal", "ReverseSequence", "RMSNormalization", "Round", "Scatter", "ScatterElements", "ScatterND"),
    *("Shrink", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Trilu"),
)
OF_ALL = (
    *("Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "QLinearAdd", "QLinearMul", "Sub", "Sum", "Where"),
    *("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Or", "Xor"),
)
RESIZING = ("Compress", "Expand", "GatherElements", "Pad", "Resize", "Slice", "Split", "Tile", "TopK", "Upsample")
RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
KEEP_SIZES = {*OF_FIRST, *OF_ALL, *RESHAPES, "Transpose"} - {*RESIZING}  # sizes of outputs are those of inputs
REDUCTIONS = (
    *("ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
NOT_VALUES = ("Shape", "Size")  # of the tensor, not of what it holds


class Axes:
    """What the axes of each tensor hold.

    Attributes:
        of: id() of a tensor → its axes, None where their number is not known. What depends on no input is not there.
        unbatched: id() of inputs whose first axis does not hold samples, since the network reads it as channels.
    """

    def __init__(self, graph: gs.Graph, inputs: Sequence[Tensor]) -> None:
        self.unbatched: set[int] = set()
        while True:
            known = len(self.unbatched)
            self.of: dict[int, list[Axis] | None] = {id(x): self._given(x) for x in inputs}
            self._made = 0
            self.follow(graph.nodes)
            if len(self.unbatched) == known:
                return

    def _given(self, x: Tensor) -> list[Axis] | None:
        if x.shape is None:
            return None
        first = UNKNOWN if id(x) in self.unbatched else BATCH
        parts = (Part(UNKNOWN if at else first, size_of(d), by=str(id(x))) for at, d in enumerate(x.shape))
        return [(part,) for part in parts]

    def follow(self, nodes: Iterable[gs.Node]) -> None:
        """Learn what the outputs of these nodes hold, in order."""
        for node in nodes:
            self._made += 1
            branches = [a for a in node.attrs.values() if isinstance(a, gs.Graph)]
            if branches:
                self._follow_branches(node, branches)
            elif node.op not in NOT_VALUES and any(id(t) in self.of for t in node.inputs):
                found = self._outputs(node)
                self.of.update({id(y): self._fitting(found, y, _keeps_sizes(node, y)) for y in node.outputs})

    def with_classes(self, score: Tensor, axis: int, nodes: Sequence[gs.Node]) -> list[Axis] | None:
        """What the last of these nodes gives, where one axis of what the first one reads holds the classes."""
        before = self.of.get(id(score))
        kept, made = dict(self.of), self._made
        if before is not None:
            self.of[id(score)] = [_classes(p) if at == axis % len(before) else p for at, p in enumerate(before)]
        self.follow(nodes)
        found = self.of.get(id(nodes[-1].outputs[0])) if nodes else self.of.get(id(score))
        self.of, self._made = kept, made
        return found

    def _fitting(
        self, found: Sequence[Axis] | None, y: Tensor, same: Callable[[int], bool] = lambda at: False
    ) -> list[Axis] | None:
        """What was found, in the sizes of the output unless that of an axis is the `same` by another name; of another
        number of axes nothing is known."""
        if y.shape is None:
            return None
        if found is None or len(found) != len(y.shape):
            return [(Part(UNKNOWN, size_of(d)),) for d in y.shape]
        return [axis if same(at) else resized(axis, y.shape[at]) for at, axis in enumerate(found)]

    def _follow_branches(self, node: gs.Node, branches: Sequence[gs.Graph]) -> None:
        """An If gives what its branches give, where they agree."""
        for branch in branches:
            self.follow(branch.nodes)
        ends = [b.outputs for b in branches if node.op == "If"]
        for i, y in enumerate(node.outputs):
            found = [self.of.get(id(outputs[i])) for outputs in ends]
            alike = [f for f in found if f is not None and y.shape is not None and len(f) == len(y.shape)]
            told = len(alike) == len(found) and alike
            self.of[id(y)] = self._fitting([agreed(axes) for axes in zip(*alike, strict=True)] if told else None, y)

    def _outputs(self, node: gs.Node) -> Sequence[Axis] | None:
        """What the axes of a node's outputs hold."""
        y = node.outputs[0]
        if y.shape is None or node.domain not in (None, "", "ai.onnx", "com.microsoft"):
            return None
        x = self.of.get(id(node.inputs[0]))
        if node.op in PRODUCTS:
            return self._product(node)
        if node.op in (*OF_FIRST, *OF_ALL):
            return self._aligned(node.inputs[:1] if node.op in OF_FIRST else node.inputs, y)
        if node.op in ("Concat", "QLinearConcat"):
            return self._joined(node)
        if x is None:
            return self._looked_up(node) if node.op == "Gather" else None
        if node.op in RESHAPES:
            return _reshaped(node, x, y)
        if node.op in MOVES:
            return MOVES[node.op](self, node, x)
        if node.op in REDUCTIONS:
            return _reduced(node, x)
        same = node.inputs[0].shape == y.shape and None not in y.shape
        return x if same else None

    def _aligned(self, inputs: Sequence[Tensor], y: Tensor) -> list[Axis]:
        """Axis by axis what those inputs hold that are not stretched along it."""
        found: list[Axis] = []
        for at, size in enumerate(y.shape):
            told = []
            for x in inputs:
                axes = self.of.get(id(x))
                back = len(y.shape) - at
                if axes is not None and back <= len(axes) and (size == 1 or x.shape[-back] != 1):
                    told.append(axes[-back])
            found.append(agreed(told) if told else (Part(SINGLE if size == 1 else UNKNOWN, size_of(size)),))
        return found

    def _windowed(self, node: gs.Node, x: list[Axis]) -> list[Axis]:
        """[samples, channels, positions...]; Conv makes new channels."""
        if len(x) < 2:
            return x
        for axis in x[1:]:  # samples are never slid over: then the input has none
            self.unbatched |= {int(p.by) for p in axis if p.role == BATCH and roles(axis) == {BATCH} and p.by}
        own = roles(x[1]) <= {UNKNOWN, BATCH, SINGLE} or node.op in CONVOLUTIONS
        channels = self._channels(node, node.outputs[0], 1) if own else x[1]
        behind = [(Part(POSITIONS, a[0].size),) if roles(a) <= {UNKNOWN} else a for a in x[2:]]
        return [x[0], channels, *behind]

    def _channels(self, node: gs.Node, y: Tensor, axis: int) -> Axis:
        return (Part(CHANNELS, size_of(y.shape[axis]), self._made, f"{node.op} {node.name!r}"),)

    def _product(self, node: gs.Node) -> list[Axis] | None:
        """Rows of the left factor and columns of the right one; those of weights are channels."""
        a, b, y = node.inputs[0], node.inputs[PRODUCTS[node.op]], node.outputs[0]
        left, right = self.of.get(id(a)), self.of.get(id(b))
        if "Gemm" in node.op and len(y.shape) == 2:
            rows = left[1 if node.attrs.get("transA") else 0] if left else self._channels(node, y, 0)
            columns = right[0 if node.attrs.get("transB") else 1] if right else self._channels(node, y, 1)
            return [rows, columns]
        unknown = [t for t, axes in ((a, left), (b, right)) if axes is None and (id(t) in self.of or t.shape is None)]
        if unknown or min(len(a.shape), len(b.shape)) < 2 or len(y.shape) < 2:
            one_row = left is not None and right is None and len(b.shape or ()) == 1
            return left[:-1] if one_row and left is not None else self._of_a_row(node, left, b, y)
        rows = left[-2] if left else self._channels(node, y, len(y.shape) - 2)
        columns = right[-1] if right else self._channels(node, y, len(y.shape) - 1)
        around = [axes[:-2] for axes in (left, right) if axes is not None]
        lead = []
        for back in range(len(y.shape) - 2, 0, -1):
            told = [axes[-back] for axes in around if len(axes) >= back]
            lead.append(agreed(told) if told else (Part(UNKNOWN, None),))
        return [*lead, rows, columns]

    def _of_a_row(self, node: gs.Node, left: list[Axis] | None, b: Tensor, y: Tensor) -> list[Axis] | None:
        """A vector times weights."""
        if left is not None and len(left) == 1 and id(b) not in self.of and len(y.shape) == 1:
            return [self._channels(node, y, 0)]
        return None

    def _transposed(self, node: gs.Node, x: list[Axis]) -> list[Axis]:
        perm = node.attrs.get("perm") or list(range(len(x)))[::-1]
        return [x[p] for p in perm]

    def _gathered(self, node: gs.Node, x: list[Axis]) -> list[Axis]:
        axis, index = node.attrs.get("axis", 0) % len(x), node.inputs[1].shape
        count = 1 if index is None else len(index)
        return [*x[:axis], *([x[axis]] * count), *x[axis + 1 :]]

    def _looked_up(self, node: gs.Node) -> list[Axis] | None:
        """Rows of a table of weights."""
        index, y = self.of.get(id(node.inputs[1])), node.outputs[0]
        if index is None or node.attrs.get("axis", 0) or len(y.shape) != len(index) + 1:
            return None
        return [*index, self._channels(node, y, len(index))]

    def _joined(self, node: gs.Node) -> list[Axis] | None:
        """Axis by axis what the parts hold that depend on the inputs (a class token does not); along its own axis that
        of all of them."""
        parts = [p for p in (self.of.get(id(t)) for t in node.inputs) if p is not None]
        return [agreed(axes) for axes in zip(*parts, strict=True)] if len({*map(len, parts)}) == 1 else None

    def _summed(self, node: gs.Node, x: list[Axis]) -> list[Axis] | None:
        """Einsum: each letter is an axis; one that only weights have holds channels."""
        y = node.outputs[0]
        if any(t.shape is None for t in node.inputs):
            return None
        letters: Any = subscripts  # rules come without types
        terms, result = letters(node.attrs["equation"], [len(t.shape) for t in node.inputs])
        told: dict[str, list[Axis]] = {}
        for term, t in zip(terms, node.inputs, strict=True):
            for letter, axis in zip(term, self.of.get(id(t)) or (), strict=False):
                told.setdefault(letter, []).append(axis)
        return [agreed(told[c]) if c in told else self._channels(node, y, at) for at, c in enumerate(result)]


MOVES: dict[str, Callable[[Axes, gs.Node, list[Axis]], list[Axis] | None]] = {
    **dict.fromkeys((*CONVOLUTIONS, *WINDOWED), Axes._windowed),
    "Transpose": Axes._transposed,
    "Gather": Axes._gathered,
    "Einsum": Axes._summed,
}


def _keeps_sizes(node: gs.Node, y: Tensor) -> Callable[[int], bool]:
    """Whether an axis of an output is as long as what was found of it, whatever its size is called."""
    if node.op in (*KEEP_SIZES, *PRODUCTS, *REDUCTIONS, "Einsum"):
        return lambda at: True
    slides = node.op in (*CONVOLUTIONS, *WINDOWED)  # over all axes but that of the samples
    before = node.inputs[0].shape or []
    alike = [d is not None and d == e for d, e in zip(before, y.shape or [], strict=False)]
    return lambda at: (slides and not at) or (at < len(alike) and alike[at])


def _classes(axis: Axis) -> Axis:
    """An axis along which a Softmax runs. Where it holds channels and more, the channels are the classes."""
    mixed = CHANNELS in roles(axis) and len(roles(axis)) > 1
    return tuple(p._replace(role=BESIDE if mixed and p.role != CHANNELS else CLASSES) for p in axis)


def _reshaped(node: gs.Node, x: list[Axis], y: Tensor) -> list[Axis]:
    """The axes put together or dealt out anew; sizes as the operand names them, rather than as the output does."""
    if node.op == "Flatten":
        at = node.attrs.get("axis", 1) % (len(x) + 1)
        halves = (tuple(p for axis in half for p in axis) for half in (x[:at], x[at:]))
        return [half or (Part(SINGLE, ONE),) for half in halves]
    dims = list(y.shape)
    if node.op == "Reshape":
        told = operand_sizes(node.inputs[1]) or []
        kept = [] if node.attrs.get("allowzero") else list(node.inputs[0].shape)
        for at, size in enumerate(told if len(told) == len(dims) else []):
            size = kept[at] if size == 0 and at < len(kept) else size
            if not isinstance(dims[at], int) and size not in (None, -1):
                dims[at] = size
        unnamed = [at for at, size in enumerate(told) if size in (None, -1) and not isinstance(dims[at], int)]
        if len(told) == len(dims) and len(unnamed) == 1:
            dims[unnamed[0]] = None
    return regrouped(x, dims)


def _reduced(node: gs.Node, x: list[Axis]) -> list[Axis] | None:
    """Without the axes that are reduced, or with a single value along them."""
    given: Any = node.attrs.get("axes", node.attrs.get("axis", 0 if node.op.startswith("Arg") else None))
    if len(node.inputs) > 1 and node.inputs[1].name:
        given = constant_of(node.inputs[1])
        if given is None:
            return None
    if given is None and node.attrs.get("noop_with_empty_axes"):
        return x
    axes = [] if given is None else [int(a) % len(x) for a in np.ravel(given)]
    axes = axes or list(range(len(x)))
    if node.attrs.get("keepdims", 1):
        return [tuple(p._replace(size=ONE) for p in a[:1]) if at in axes else a for at, a in enumerate(x)]
    return [a for at, a in enumerate(x) if at not in axes]

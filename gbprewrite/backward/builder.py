"""`op` as the rules see it: every ONNX operator, and the verbs that hide whether a shape is known.

A *dimension* is an int when the graph fixes it, else a one-element int64 tensor computed at run time. The verbs take
values and dimensions and never ask their caller which of the two he has.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.backward.emitter import Emitter
from gbprewrite.backward.magnitudes.graph import Magnitudes
from gbprewrite.model import bounds
from gbprewrite.model.tensors import HALF, Dim, Tensor, fixed, numpy_dtype, onnx_type, rank, same_shape

END = np.iinfo(np.int64).max  # "to the end" in a Slice


class Walk(NamedTuple):
    """The reverse walk as a rule may ask for it, which the builder is handed: the walk reads the rules, not they it."""

    pull_back: Callable[..., list[Tensor | None]]
    pull_back_branch: Callable[..., list[Tensor]]


class Builder(Emitter):
    """The emitter, the verbs, and what is known of the values: how large they are, and which are weights."""

    def __init__(
        self,
        forward: gs.Graph,
        opset: int,
        prefix: str = "",
        lowerings: frozenset[str] = frozenset(),
        *,
        walk: Walk | None = None,
        weights: Mapping[str, TensorProto] = MappingProxyType({}),
        deep: bool = False,
        **names: Any,
    ) -> None:
        """`lowerings` are the names of those that are preferred to the portable ones; see `lowering.table`.

        `walk` is absent where nothing is pulled back. `weights` holds, by name, constants whose values the forward
        graph leaves out. In a `deep` network bounds of each layer say nothing of all. For `names` see `Emitter`.
        """
        super().__init__(forward, opset, prefix, **names)
        self.lowerings, self.walk, self.weights, self.deep = lowerings, walk, weights, deep
        self.magnitudes = Magnitudes(weights, self.forward, deep)

    def inside(self, branch: gs.Graph) -> Self:
        """A builder for a graph inside a node: it sees what was built around it, and takes no name twice."""
        return type(self)(
            branch, self.opset, self.prefix, self.lowerings,
            walk=self.walk, weights=self.weights, deep=self.deep, taken=self._taken, around=self,
        )  # fmt: skip

    def pull_back(self, y: Tensor, dy: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """Cotangents of the inputs of a value that was itself built here; for rules that are decompositions."""
        assert self.walk is not None
        return self.walk.pull_back(self, y, dy, inputs)

    def pull_back_branch(
        self, branch: gs.Graph, dys: Sequence[Tensor | None], inputs: Sequence[Tensor], rule_of: Callable[..., Any]
    ) -> list[Tensor]:
        """Cotangents of what a branch captures, as outputs of its own, of a builder inside the branch."""
        assert self.walk is not None
        return self.walk.pull_back_branch(self, branch, dys, inputs, rule_of)

    def finite(self, v: Tensor) -> bool:
        """Whether v can't be infinite or NaN: for any finite input, or, in a deep network, for any usual one."""
        return self.magnitudes.finite(v)

    def bounded(self, v: Tensor, most: float) -> Tensor:
        """v, of which it is known that |v| <= most."""
        self.magnitudes.bound(v, most)
        return v

    def dims(self, x: Tensor) -> list[Dim]:
        """The dimensions of x."""
        return [self.dim(x, axis) for axis in range(rank(x))]

    def dim(self, x: Tensor, axis: int) -> Dim:
        """One dimension of x."""
        axis %= rank(x)
        size = x.shape[axis]
        return int(size) if fixed(size) else self.int64_vector(self.Shape(x, start=axis, end=axis + 1), 1)

    def calc(self, operator: str, a: Dim, b: Dim) -> Dim:
        """Add, Sub, Mul, Div (floor, of non-negatives), Max, Min of dimensions."""
        if isinstance(a, int) and isinstance(b, int):
            return {
                "Add": a + b, "Sub": a - b, "Mul": a * b, "Div": a // b if b else 0, "Max": max(a, b), "Min": min(a, b)
            }[operator]  # fmt: skip
        if isinstance(b, int) and (operator, b) in (("Add", 0), ("Sub", 0), ("Mul", 1), ("Div", 1)):
            return a
        if isinstance(a, int) and (operator, a) in (("Add", 0), ("Mul", 1)):
            return b
        return self.int64_vector(getattr(self, operator)(self.vector([a]), self.vector([b])), 1)

    def product(self, dims: Sequence[Dim]) -> Dim:
        """Product of dimensions."""
        total: Dim = 1
        for dim in dims:
            total = self.calc("Mul", total, dim)
        return total

    def vector(self, dims: Sequence[Dim]) -> Tensor:
        """Dimensions as one int64 tensor."""
        if all(isinstance(d, int) for d in dims):
            return self.constant(np.array(dims, np.int64))
        parts = [self.constant(np.array([d], np.int64)) if isinstance(d, int) else d for d in dims]
        return parts[0] if len(parts) == 1 else self.int64_vector(self.Concat(*parts, axis=0), len(parts))

    def shape_of(self, x: Tensor) -> Tensor:
        """The shape of x as an int64 tensor."""
        if x.shape is not None and all(fixed(d) for d in x.shape):
            return self.constant(np.array(x.shape, np.int64))
        return self.Shape(x)

    def reshape(self, v: Tensor, dims: Sequence[Dim]) -> Tensor:
        """v with these dimensions; one unknown among them becomes -1 in a constant."""
        known = [d if isinstance(d, int) else None for d in dims]
        if v.shape is not None and list(v.shape) == known:
            return v
        if known.count(None) <= 1 and (None not in known or 0 not in known):
            made = self.Reshape(v, np.array([-1 if d is None else d for d in known], np.int64))
        else:
            made = self.Reshape(v, self.vector(dims), allowzero=1 if 0 in known else None)
        return made if made.shape is not None else self.declare(made, known)

    def reshape_like(self, v: Tensor, x: Tensor) -> Tensor:
        """v with the shape of x (same number of elements)."""
        if same_shape(v, x):
            return v
        if x.shape is None:
            return self.shaped_like(self.Reshape(v, self.Shape(x), allowzero=1), x)
        unknown = sum(not fixed(d) for d in x.shape)
        if unknown <= 1:
            return self.shaped_like(self.reshape(v, self.dims(x)), x)
        return self.shaped_like(self.Reshape(v, self.Shape(x)), x)

    def expand_like(self, v: Tensor, x: Tensor) -> Tensor:
        """v broadcast to the shape of x."""
        return v if same_shape(v, x) else self.shaped_like(self.Expand(v, self.shape_of(x)), x)

    def zeros(self, dims: Sequence[Dim], like: Tensor) -> Tensor:
        """Zeros with these dimensions and the dtype of `like`."""
        return self.filled(self.vector(dims), 0, like)

    def zeros_like(self, x: Tensor) -> Tensor:
        """Zeros shaped and typed like x."""
        return self.shaped_like(self.filled(self.shape_of(x), 0, x), x)

    def ones_like(self, x: Tensor) -> Tensor:
        """Ones shaped and typed like x."""
        return self.shaped_like(self.filled(self.shape_of(x), 1, x), x)

    def filled(self, shape: Tensor, value: float, like: Tensor) -> Tensor:
        """A tensor of one value. (ConstantOfShape has bfloat16 from opset 20 on.)"""
        early = onnx_type(like) == TensorProto.BFLOAT16 and self.opset < 20
        made = self.ConstantOfShape(shape, value=np.array([value], np.float32 if early else numpy_dtype(like)))
        return self.cast_to(made, like)

    def sum_to(self, v: Tensor, x: Tensor) -> Tensor:
        """Undo broadcasting: sum v over the axes along which x was repeated."""
        if same_shape(v, x):
            return v
        if x.shape is None or v.shape is None:
            return self._sum_to_at_run_time(v, x)
        lead = len(v.shape) - len(x.shape)
        axes = list(range(lead))
        for axis, size in enumerate(x.shape):
            other = v.shape[axis + lead]
            if size == 1 and other != 1:
                axes.append(axis + lead)
            elif not fixed(size) and other != 1 and (size is None or size != other):
                return self._sum_to_at_run_time(v, x)
        if axes:
            v = self.ReduceSum(v, np.array(axes, np.int64), keepdims=1)
        return self.reshape_like(v, x) if lead else self.shaped_like(v, x)

    def _sum_to_at_run_time(self, v: Tensor, x: Tensor) -> Tensor:
        ones = self.Sub(self.Shape(self.Shape(v)), self.Shape(self.Shape(x)))
        target = self.Concat(self.Expand(np.array([1], np.int64), ones), self.Shape(x), axis=0)
        repeated = self.And(self.Equal(target, 1), self.Not(self.Equal(self.Shape(v), 1)))
        axes = self.Reshape(self.NonZero(repeated), np.array([-1], np.int64))
        summed = self.ReduceSum(v, axes, keepdims=1, noop_with_empty_axes=1)
        return self.shaped_like(self.Reshape(summed, self.Shape(x), allowzero=1), x)

    def as_float(self, dim: Dim, like: Tensor) -> Any:
        """A dimension as a number of the dtype of `like`, ready for arithmetic."""
        return float(dim) if isinstance(dim, int) else self.cast_to(dim, like)

    def wide(self, v: Tensor) -> Tensor:
        """v in float32 where it has half precision: squares, sums and counts overflow 16 bits."""
        return self.Cast(v, to=TensorProto.FLOAT) if onnx_type(v) in HALF else v

    def divided(self, v: Tensor, count: Dim) -> Tensor:
        """v / count."""
        if isinstance(count, int) and count <= 256:  # 16 bits hold these exactly
            return self.Div(v, float(count))
        return self.cast_to(self.Div(self.wide(v), self.as_float(count, self.wide(v))), v)

    def cast_to(self, v: Tensor, like: Tensor) -> Tensor:
        """v with the dtype of `like`."""
        return v if onnx_type(v) == onnx_type(like) else self.Cast(v, to=onnx_type(like))

    def range(self, size: Dim) -> Tensor:
        """int64 [0, 1, ..., size-1]; a long one is computed, so that the file stays small."""
        if isinstance(size, int) and size <= 64:
            return self.constant(np.arange(size, dtype=np.int64))
        scalar = np.array(size, np.int64) if isinstance(size, int) else self.Reshape(size, np.array([], np.int64))
        return self.Range(np.array(0, np.int64), scalar, np.array(1, np.int64))

    def slice(self, v: Tensor, axes: Sequence[int], starts: Sequence[Dim], sizes: Sequence[Dim]) -> Tensor:
        """v[start : start + size] along each of the axes."""
        todo = [
            (axis, start, size)
            for axis, start, size in zip(axes, starts, sizes, strict=True)
            if v.shape is None or not fixed(start) or not fixed(size) or (start, size) != (0, v.shape[axis])
        ]
        if not todo:
            return v
        ends = [self.calc("Add", start, size) for _, start, size in todo]
        return self.Slice(
            v, self.vector([s for _, s, _ in todo]), self.vector(ends), np.array([a for a, _, _ in todo], np.int64)
        )

    def with_rank(self, v: Tensor, size: int) -> Tensor:
        """v, of which inference could not tell the rank."""
        return v if v.shape is not None else self.declare(v, [None] * size)

    def shaped_like(self, v: Tensor, x: Tensor) -> Tensor:
        """What inference can't know and the verb does: v has the shape of x. The file says so too: see graft.

        ONNX's inference is overruled where it finds another one: it takes a onesided STFT for a whole one (onnx 1.23).
        """
        if x.shape is not None and isinstance(v, gs.Variable):
            if v.shape != x.shape:
                self.declared.append(v)
            v.shape = list(x.shape)
        return v

    def int64_vector(self, v: Tensor, size: int) -> Tensor:
        """v, of which it is known that it holds `size` int64 numbers."""
        return self.declare(v, [size], np.int64)

    def sum_but_channels(self, dy: Tensor) -> Tensor:
        """Sum over everything but axis 1."""
        return self.ReduceSum(dy, np.array([0, *range(2, rank(dy))], np.int64), keepdims=0)

    def pad(
        self, v: Tensor, axes: Sequence[int], left: Sequence[Dim], right: Sequence[Dim], value: Any = None
    ) -> Tensor:
        """Zeros, or a value, before and after v along each of the axes; a negative width cuts.

        Cutting is a Slice: some runtimes do not know negative pads. Widths that are computed must not be negative.
        """
        n = rank(v)
        before: list[Dim] = [0] * n
        after: list[Dim] = [0] * n
        cuts = []
        for axis, a, b in zip(axes, left, right, strict=True):
            before[axis], after[axis] = (max(w, 0) if isinstance(w, int) else w for w in (a, b))
            cuts.append((axis, *(-min(w, 0) if isinstance(w, int) else 0 for w in (a, b))))
        cuts = [cut for cut in cuts if any(cut[1:])]
        if cuts:
            over, starts, ends = zip(*cuts, strict=True)
            v = self.Slice(v, np.array(starts), np.array([-e if e else END for e in ends]), np.array(over))
        if all(fixed(d) and d == 0 for d in before + after):
            return v
        return self.Pad(v, self.vector([*before, *after]), value)

    def scatter_along(self, dy: Tensor, index: Tensor, axis: int, size: Dim) -> Tensor:
        """Zeros of `size` along the axis, to which the slices of dy are added at a vector of positions."""
        dims = self.dims(dy)
        column = self.reshape(index, [1] * axis + [dims[axis]] + [1] * (len(dims) - axis - 1))
        spread = self.Expand(column, self.vector(dims))
        nothing = self.zeros([*dims[:axis], size, *dims[axis + 1 :]], dy)
        return self.scatter_add(nothing, spread, dy, axis=axis)

    def scatter_nd_add(self, onto: Tensor, indices: Tensor, dy: Tensor) -> Tensor:
        """ScatterND that adds, half precision through float32 as in `scatter_add`."""
        return self.cast_to(self.ScatterND(self.wide(onto), indices, self.wide(dy), reduction="add"), dy)

    def scatter_add(self, onto: Tensor, index: Tensor, dy: Tensor, axis: int) -> Tensor:
        """ScatterElements that adds. Half precision goes through float32: onnxruntime's CPU has no other sum of it."""
        summed = self.ScatterElements(self.wide(onto), index, self.wide(dy), axis=axis, reduction="add")
        return self.cast_to(summed, dy)

    def eye(self, size: Dim, like: Tensor) -> Tensor:
        """The identity matrix."""
        if isinstance(size, int) and size * size <= bounds.CONSTANT:
            return self.constant(np.eye(size, dtype=numpy_dtype(like)))
        places = self.range(size)
        return self.cast_to(self.Equal(self.Unsqueeze(places, np.array([1])), places), like)

"""Verbs above single operators that the adjoints share: padding, scattering, matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from gbprewrite.backward.builder import Shapes
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype, onnx_type, rank

END = np.iinfo(np.int64).max  # "to the end" in a Slice


class Verbs(Shapes):
    """Padding, scattering, matrices."""

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
        if onnx_type(dy) not in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
            return self.ScatterElements(onto, index, dy, axis=axis, reduction="add")
        wide = (self.Cast(v, to=TensorProto.FLOAT) for v in (onto, dy))
        return self.cast_to(self.ScatterElements(next(wide), index, next(wide), axis=axis, reduction="add"), dy)

    def eye(self, size: Dim, like: Tensor) -> Tensor:
        """The identity matrix."""
        if isinstance(size, int) and size * size <= bounds.CONSTANT:
            return self.constant(np.eye(size, dtype=numpy_dtype(like)))
        places = self.range(size)
        return self.cast_to(self.Equal(self.Unsqueeze(places, np.array([1])), places), like)

    def times_matrix(self, dy: Tensor, matrix: Tensor, axis: int) -> Tensor:
        """dx = A dy along one axis, A of shape [inputs, outputs]."""
        last = rank(dy) - 1
        if axis == last:
            return self.MatMul(dy, self.Transpose(matrix, perm=[1, 0]))
        if axis == last - 1:
            return self.MatMul(matrix, dy)
        perm = list(range(last + 1))
        perm[axis], perm[last] = last, axis
        moved = self.MatMul(self.Transpose(dy, perm=perm), self.Transpose(matrix, perm=[1, 0]))
        return self.Transpose(moved, perm=perm)

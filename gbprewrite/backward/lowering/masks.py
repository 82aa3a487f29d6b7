"""Masks of zeros and ones: products with them, where what they meet is finite, and else selections.

0 · ∞ and 0 · NaN are NaN, while a unit that is off hands nothing back whatever arrives: 0, as in PyTorch. Cotangents
become infinite at a square root of 0, at a quotient by 0, and where extreme weights overflow.
"""

from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.lowering.verbs import Verbs
from gbprewrite.backward.magnitudes.graph import Magnitudes
from gbprewrite.model.tensors import HALF, Tensor, constant_of, numpy_dtype, onnx_type

STEEPEST = 2.0**126  # times the smallest normal float32 is 1
NOUGHT = -(2.0**-100)  # changes no mask; OpenVINO takes a beta of 0 for one left out, which is 0.5
STEEP = 2.0**100  # leaves room for the upper bound; neighbours of it in float32 differ by more than 2^-100
HIGH = (2.0**-70, 2.0**26)  # upper bounds between which this holds, and STEEP · y does not overflow
DEEP = 20  # nodes between score and inputs, from which on a network is deep: AlexNet has 21, LeNet 9
ROOM = 2.0**2  # what float rounding, and the order of a sum, may add to a bound
USUAL = 2.0**100  # the largest usual size in a deep network; 2^28 times that is still a float32


class Masks(Verbs):
    """Values where a condition holds, and 0 elsewhere."""

    @cached_property
    def magnitudes(self) -> Magnitudes:
        """How large the values of each tensor can be."""
        return Magnitudes(self.weights, self.forward)

    def finite(self, v: Tensor) -> bool:
        """Whether v can't be infinite or NaN: for any finite input, or, in a deep network, for any usual one.

        A bound for any input grows with each layer, up to 2^300 in networks whose cotangents stay near 1.
        """
        found = self.magnitudes.of(v)
        limit = float(np.finfo(numpy_dtype(v)).max) if onnx_type(v) not in HALF else 65504.0
        return found.most * ROOM < limit or (self.deep and limit > USUAL > found.usual)

    def bounded(self, v: Tensor, most: float) -> Tensor:
        """v, of which it is known that |v| <= most."""
        self.magnitudes.bound(v, most)
        return v

    def kept(self, v: Tensor, condition: Tensor) -> Tensor:
        """v where the condition holds, else 0: a product where v is finite, which any provider computes fast."""
        if self.finite(v):
            return self.Mul(v, self.cast_to(condition, v))
        return self._selected(v, condition)

    def _selected(self, v: Tensor, condition: Tensor) -> Tensor:
        return self.Where(condition, v, np.zeros((), numpy_dtype(v)))

    def mask(self, dy: Tensor, condition: Tensor) -> Tensor:
        """dy where the condition holds, else 0.

        onnxruntime's CPU takes some ten times as long for Where as for a product.
        """
        if not self.spelling.products or onnx_type(dy) in HALF:
            return self._selected(dy, condition)
        return self.kept(dy, condition)

    def apply_matrix(self, dy: Tensor, matrix: Tensor, axis: int) -> Tensor:
        """dx = A dy along one axis, A of shape [inputs, outputs], of a cotangent: what A has 0 for does not reach it.

        So an infinite dy leaves those places finite that it has no part in.
        """
        if self.finite(dy):
            return self.times_matrix(dy, matrix, axis)
        finite = self.Less(self.Abs(self.wide(dy)), np.array(np.inf, numpy_dtype(self.wide(dy))))
        bad = self.cast_to(self.Not(finite), self.wide(dy))
        taken = self.cast_to(self.Not(self.Equal(self.wide(matrix), 0)), bad)
        reached = self.Greater(self.times_matrix(bad, taken, axis), 0)
        clean = self.times_matrix(self._selected(dy, finite), matrix, axis)
        return self.Where(reached, self.times_matrix(dy, matrix, axis), clean)

    def gate(self, dy: Tensor, y: Tensor, high: Any = None) -> Tensor:
        """dy where 0 < y (< high), else 0, of a rectifier's output y >= 0.

        onnxruntime's CPU keeps Conv, Mul and HardSigmoid in its blocked layout, and leaves it for Greater and Where. So
        in float32 the mask is a HardSigmoid so steep that it is 0 or 1. Steepness is a power of two: alpha · y + beta
        is then exact, and 0 at y = high.
        """
        top = constant_of(high) if isinstance(high, gs.Tensor) else high
        steep = high is None or (top is not None and top.size == 1 and HIGH[0] <= float(top.ravel()[0]) <= HIGH[1])
        if not self.spelling.products or numpy_dtype(y) != np.float32 or not steep or not self.finite(dy):
            above = self.Greater(y, 0)
            return self.mask(dy, above if high is None else self.And(above, self.Less(y, high)))
        dx = self.Mul(dy, self._above_zero(y))
        if top is None:
            return dx
        return self.Mul(dx, self.HardSigmoid(y, alpha=-STEEP, beta=float(top.ravel()[0]) * STEEP))

    def _above_zero(self, y: Tensor) -> Tensor:
        """1 where y > 0, of y >= 0.

        Only a denormal y stays below 1, and would be 1 by another step. A deep network does without: its values are
        denormal only where its weights or inputs are.
        """
        mask: Tensor = self.HardSigmoid(y, alpha=STEEPEST, beta=NOUGHT)
        return mask if self.deep else self.HardSigmoid(mask, alpha=STEEPEST, beta=NOUGHT)

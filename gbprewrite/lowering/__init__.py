"""Spellings of the adjoints that ONNX can write in more than one way, each with its precondition and its reason.

`Builder` stands on layers: verbs, windows, convolutions, pools. What is preferred is a matter of gbprewrite.spellings.
"""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.lowering.pools import Pools
from gbprewrite.shapes import constant_of
from gbprewrite.tensors import HALF, Tensor, numpy_dtype, onnx_type

STEEPEST = 2.0**126  # times the smallest normal float32 is 1
NOUGHT = -(2.0**-100)  # changes no mask; OpenVINO takes a beta of 0 for one left out, which is 0.5
STEEP = 2.0**100  # leaves room for the upper bound; neighbours of it in float32 differ by more than 2^-100


class Builder(Pools):
    """`op` as the rules see it: every ONNX operator, the shape verbs, the adjoints, and the masks of rectifiers."""

    def gate(self, dy: Tensor, y: Tensor, high: Any = None) -> Tensor:
        """dy where 0 < y (< high), else 0, of a rectifier's output y ≥ 0.

        onnxruntime's CPU keeps Conv, Mul and HardSigmoid in its blocked layout, and leaves it for Greater and Where. So
        in float32 the mask is a HardSigmoid so steep that it is 0 or 1 (denormal y count as part of it). Steepness is a
        power of two: alpha · y + beta is then exact, and 0 at y = high.
        """
        top = constant_of(high) if isinstance(high, gs.Tensor) else None
        if (
            not self.spelling.products
            or numpy_dtype(y) != np.float32
            or (high is not None and (top is None or top.size != 1))
        ):
            above = self.Greater(y, 0)
            return self.mask(dy, above if high is None else self.And(above, self.Less(y, high)))
        dx = self.Mul(dy, self.HardSigmoid(y, alpha=STEEPEST, beta=NOUGHT))
        if top is None:
            return dx
        return self.Mul(dx, self.HardSigmoid(y, alpha=-STEEP, beta=float(top.ravel()[0]) * STEEP))

    def mask(self, dy: Tensor, condition: Tensor) -> Tensor:
        """dy where the condition holds, else 0.

        onnxruntime's CPU takes some thirty times as long for Where as for a product. Selecting keeps an infinite dy
        from becoming NaN, which matters in half precision.
        """
        if not self.spelling.products or onnx_type(dy) in HALF:
            return self.Where(condition, dy, np.zeros((), numpy_dtype(dy)))
        return self.Mul(dy, self.cast_to(condition, dy))

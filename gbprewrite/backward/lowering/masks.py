"""Masks of zeros and ones: products with them, where what they meet is finite, and else selections.

0 · ∞ and 0 · NaN are NaN, while a unit that is off hands nothing back whatever arrives: 0, as in PyTorch. Cotangents
become infinite at a square root of 0, at a quotient by 0, and where extreme weights overflow.
"""

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.table import Lowerings
from gbprewrite.model.tensors import HALF, Tensor, constant_of, numpy_dtype, onnx_type

STEEPEST = 2.0**126  # times the smallest normal float32 is 1
NOUGHT = -(2.0**-100)  # changes no mask; OpenVINO takes a beta of 0 for one left out, which is 0.5
STEEP = 2.0**100  # leaves room for the upper bound; neighbours of it in float32 differ by more than 2^-100
HIGH = (2.0**-70, 2.0**26)  # upper bounds between which this holds, and STEEP · y does not overflow


def mask(op: Builder, dy: Tensor, condition: Tensor) -> Tensor:
    """dy where the condition holds, else 0."""
    return MASK(op, dy, condition)


def gate(op: Builder, dy: Tensor, y: Tensor, high: Any = None) -> Tensor:
    """dy where 0 < y (< high), else 0, of a rectifier's output y >= 0; `high` is a number or a tensor."""
    return GATE(op, dy, y, high)


def product(op: Builder, dy: Tensor, condition: Tensor) -> Tensor | None:
    """dy times the condition as zeros and ones.

    Where: dy can't be infinite, and is not of half precision, which has little room up to that.
    Why: onnxruntime's CPU takes some ten times as long for Where as for a product.
    """
    if onnx_type(dy) in HALF or not op.finite(dy):
        return None
    made: Tensor = op.Mul(dy, op.cast_to(condition, dy))
    return made


def selection(op: Builder, dy: Tensor, condition: Tensor) -> Tensor:
    """Where. In half precision, and where dy may be infinite, the only one."""
    made: Tensor = op.Where(condition, dy, np.zeros((), numpy_dtype(dy)))
    return made


MASK = Lowerings("mask", product, selection)


def steep_sigmoid(op: Builder, dy: Tensor, y: Tensor, high: Any) -> Tensor | None:
    """dy times a HardSigmoid so steep that it is 0 or 1.

    Steepness is a power of two: alpha · y + beta is then exact, and 0 at y = high.

    Where: y is float32, dy can't be infinite, and `high` is one number in the range in which this is exact.
    Why: onnxruntime's CPU keeps Conv, Mul and HardSigmoid in its blocked layout, and leaves it for Greater and Where.
    """
    top = constant_of(high) if isinstance(high, gs.Tensor) else high
    steep = high is None or (top is not None and top.size == 1 and HIGH[0] <= float(top.ravel()[0]) <= HIGH[1])
    if numpy_dtype(y) != np.float32 or not steep or not op.finite(dy):
        return None
    dx: Tensor = op.Mul(dy, _above_zero(op, y))
    return dx if top is None else op.Mul(dx, op.HardSigmoid(y, alpha=-STEEP, beta=float(top.ravel()[0]) * STEEP))


def _above_zero(op: Builder, y: Tensor) -> Tensor:
    """1 where y > 0, of y >= 0.

    Only a denormal y stays below 1, and would be 1 by another step. A deep network does without: its values are
    denormal only where its weights or inputs are.
    """
    made: Tensor = op.HardSigmoid(y, alpha=STEEPEST, beta=NOUGHT)
    return made if op.deep else op.HardSigmoid(made, alpha=STEEPEST, beta=NOUGHT)


def compared(op: Builder, dy: Tensor, y: Tensor, high: Any) -> Tensor:
    """A mask of comparisons."""
    above = op.Greater(y, 0)
    return mask(op, dy, above if high is None else op.And(above, op.Less(y, high)))


GATE = Lowerings("gate", steep_sigmoid, compared)

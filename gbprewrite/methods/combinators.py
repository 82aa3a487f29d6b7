"""What a method does at the rule of a rectifier: small functions laid over it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from gbprewrite.backward.lowering.masks import mask
from gbprewrite.backward.rules.table import Formula
from gbprewrite.model.tensors import Refused, Tensor, fixed, is_float

Combinator = Callable[[Formula], Formula]


def gradient(rule: Formula) -> Formula:
    """dx = dy · f'(x)"""
    return rule


def guided(rule: Formula) -> Formula:
    """dx = max(dy, 0) · f'(x); behind a ReLU dy·(x>0)·(dy>0)"""
    return lambda op, dy, *args, **attributes: rule(op, op.Relu(dy), *args, **attributes)


def deconvnet(rule: Formula) -> Formula:
    """dx = max(dy, 0), whatever x was"""
    return lambda op, dy, *args, **attributes: op.Relu(dy)


def rectgrad(rule: Formula, tau: float = 0.0, share: float | None = None) -> Formula:
    """dx = dy · f'(x) where y · dy > τ; τ is a number, or the quantile `share` of y · dy in each sample and layer"""

    def combined(op: Any, dy: Any, y: Any, *args: Any, **attributes: Any) -> Any:
        if not is_float(y):
            raise Refused("rectgrad multiplies by the output of a rectifier, and this one is quantised; use guided")
        relevance = op.Mul(y, dy)
        limit = tau if share is None else quantile(op, relevance, share)
        return rule(op, mask(op, dy, op.Greater(relevance, limit)), y, *args, **attributes)

    return combined


def quantile(op: Any, v: Tensor, share: float) -> Tensor:
    """The value that a share of each sample's values does not exceed, [N, 1, ...]; always one of these values."""
    behind = len(v.shape) - 1
    rows = op.Reshape(op.wide(v), np.array([0, -1] if behind > 0 else [1, -1], np.int64))
    size = op.product(op.dims(v)[1 if behind > 0 else 0 :])
    if fixed(size):
        above = op.vector([size - int(share * (size - 1))])
    else:
        place = op.Floor(op.Mul(op.Cast(op.Sub(size, 1), to=TensorProto.DOUBLE), share))
        above = op.Sub(size, op.Cast(place, to=TensorProto.INT64))
    top = op.TopK(rows, above, outputs=2, axis=1)[0]
    least = op.ReduceMin(top, np.array([1], np.int64), keepdims=1)
    return op.cast_to(op.Reshape(least, np.array([-1] + [1] * max(behind, 0), np.int64)), v)

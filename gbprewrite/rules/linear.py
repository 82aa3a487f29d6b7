"""Matrix products. Source: https://onnx.ai/onnx/operators/onnx__MatMul.html and onnx__Gemm.html."""

import numpy as np

from gbprewrite.rules import vjp
from gbprewrite.shapes import rank


@vjp("MatMul")
def matmul(op, dy, y, a, b):
    """da = dy · bᵀ,  db = aᵀ · dy"""
    if rank(a) == 1 or rank(b) == 1:
        return _with_a_vector(op, dy, a, b)
    return lambda: op.MatMul(dy, swap(op, b)), lambda: op.MatMul(swap(op, a), dy)


def _with_a_vector(op, dy, a, b):
    """Vectors become matrices, as numpy.matmul reads them, and back."""
    row = op.Unsqueeze(a, np.array([0])) if rank(a) == 1 else a
    column = op.Unsqueeze(b, np.array([1])) if rank(b) == 1 else b
    if rank(b) == 1:
        dy = op.Unsqueeze(dy, np.array([-1]))
    if rank(a) == 1:
        dy = op.Unsqueeze(dy, np.array([-2]))

    def da():
        full = op.MatMul(dy, swap(op, column))
        return op.Squeeze(full, np.array([-2])) if rank(a) == 1 else full

    def db():
        full = op.MatMul(swap(op, row), dy)
        return op.Squeeze(full, np.array([-1])) if rank(b) == 1 else full

    return da, db


@vjp("Gemm")
def gemm(op, dy, y, a, b, c=None, *, alpha, beta, transA, transB):  # noqa: N803 (ONNX's own names)
    """da = α dy · bᵀ,  db = α aᵀ · dy,  dc = β dy, each transposed as transA and transB say"""

    def da():
        if transA:
            return op.Gemm(b, dy, alpha=alpha, transA=transB, transB=1)
        return op.Gemm(dy, b, alpha=alpha, transB=1 - transB)

    def db():
        if transB:
            return op.Gemm(dy, a, alpha=alpha, transA=1, transB=transA)
        return op.Gemm(a, dy, alpha=alpha, transA=1 - transA)

    return da, db, lambda: dy if beta == 1 else op.Mul(dy, beta)


def swap(op, x):
    """The last two axes exchanged."""
    axes = list(range(rank(x)))
    return op.Transpose(x, perm=[*axes[:-2], axes[-1], axes[-2]])

"""Matrix products. Source: https://onnx.ai/onnx/operators/onnx__MatMul.html and onnx__Gemm.html."""

import string

import numpy as np

from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.bounds import check_constant
from gbprewrite.model.inference import subscripts
from gbprewrite.model.tensors import Refused, fixed, numpy_dtype, rank

LABELS = string.ascii_letters


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


@vjp("Trilu")
def trilu(op, dy, y, x, k=None, *, upper):
    """dx = the same triangle of dy"""
    return op.Trilu(dy, k, upper=upper)


@vjp("Det")
def det(op, dy, y, x):
    """dx = dy · cofactors of x: the signed determinants of the matrices without one row and one column"""
    n = x.shape[-1]
    if not fixed(n):
        raise Refused("its size is not known")
    check_constant(n * n, "a list of rows and columns")
    column = op.reshape(dy, [*op.dims(dy), 1, 1])
    if n == 1:
        return op.reshape_like(column, x)
    rest = np.array([[j for j in range(n) if j != i] for i in range(n)], np.int64)
    r = rank(x)
    minors = op.Gather(op.Gather(x, rest, axis=r - 2), rest, axis=r)  # [..., n, n-1, n, n-1]
    minors = op.Transpose(minors, perm=[*range(r - 2), r - 2, r, r - 1, r + 1])
    sign = (-1.0) ** np.add.outer(np.arange(n), np.arange(n))
    return op.Mul(column, op.Mul(op.Det(minors), sign.astype(numpy_dtype(x))))


@vjp("Einsum")
def einsum(op, dy, y, *xs, equation):
    """dxᵢ = Einsum of dy and the other operands, to the subscripts of xᵢ"""
    terms, result = subscripts(equation, [rank(x) for x in xs])

    def of(i):
        others = [(terms[j], xs[j]) for j in range(len(xs)) if j != i]
        operands = [(result, dy), *others]
        wanted, target = "", terms[i]
        for place, label in enumerate(target):
            if label in wanted:  # a diagonal: its cotangent lies on the diagonal again
                label = next(c for c in LABELS if c not in "".join((*terms, result, wanted)))
                operands.append((target[place] + label, op.eye(op.dim(xs[i], place), dy)))
            elif not any(label in term for term, _ in operands):  # summed away, so every position counts
                operands.append((label, op.filled(op.vector([op.dim(xs[i], place)]), 1, dy)))
            wanted += label
        return op.Einsum(*(t for _, t in operands), equation=f"{','.join(term for term, _ in operands)}->{wanted}")

    return tuple((lambda i=i: of(i)) for i in range(len(xs)))


def swap(op, x):
    """The last two axes exchanged."""
    axes = list(range(rank(x)))
    return op.Transpose(x, perm=[*axes[:-2], axes[-1], axes[-2]])

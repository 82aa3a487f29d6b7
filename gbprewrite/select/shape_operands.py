"""The sizes that an operand of Reshape or Expand names, where it is computed from the shapes of other values.

Exporters give the axes of outputs names of their own, which hide that a size is the batch's; the operand tells.
"""

from typing import Any

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, constant_of

DEEPEST = 20  # nodes between a Shape and what reads it
MOST = 64  # axes
PASSES = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape")


def operand_sizes(tensor: Tensor) -> list[Any] | None:
    """An integer vector as sizes: numbers, names of dimensions, None for what is computed otherwise; or None."""
    return _sizes(tensor, DEEPEST, {})


def _sizes(tensor: Tensor, depth: int, known: dict[int, list[Any] | None]) -> list[Any] | None:
    """The same; a vector that several nodes on the way read is looked at once, and a long one is no shape."""
    if id(tensor) not in known:
        found = _looked_up(tensor, depth, known)
        known[id(tensor)] = found if found is None or len(found) <= MOST else None
    return known[id(tensor)]


def _looked_up(tensor: Tensor, depth: int, known: dict[int, list[Any] | None]) -> list[Any] | None:
    constant = constant_of(tensor)
    if constant is not None:
        return [int(n) for n in constant.ravel()] if constant.size <= MOST else None
    node = tensor.inputs[0] if isinstance(tensor, gs.Variable) and tensor.inputs else None
    if node is None or not depth:
        return _unknown(tensor)
    if node.op == "Shape":
        shape = node.inputs[0].shape
        return None if shape is None else list(shape)[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]
    inner = [_sizes(t, depth - 1, known) for t in node.inputs]
    if node.op in PASSES:
        return inner[0]
    if node.op == "Concat" and None not in inner:
        return [size for part in inner for size in part or ()]
    numbers = [constant_of(t) for t in node.inputs[1:]]
    if inner[0] is None or not numbers or any(n is None for n in numbers):
        return _unknown(tensor)
    if node.op == "Gather":
        return [inner[0][int(i)] for i in numbers[0].ravel()]  # type: ignore[union-attr]
    if node.op == "Slice" and len(numbers) < 4:
        begin, end = (int(n.ravel()[0]) for n in numbers[:2])  # type: ignore[union-attr]
        return inner[0][begin:end]
    return _unknown(tensor)


def _unknown(tensor: Tensor) -> list[Any] | None:
    """As many sizes as the vector has, none of them known."""
    if tensor.shape is None or len(tensor.shape) > 1 or not all(isinstance(d, int) for d in tensor.shape):
        return None
    length = tensor.shape[0] if tensor.shape else 1
    return [None] * length if length <= MOST else None

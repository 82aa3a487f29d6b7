"""What ONNX allows to be written in two ways, in one: the standard's domain as "", weights dense.

Sources: https://github.com/onnx/onnx/blob/main/docs/IR.md (operator sets; "ai.onnx" and "" are the same domain) and
SparseTensorProto in onnx.proto3 (values, their indices in coordinate format, dims).
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from gbprewrite.errors import ModelError
from gbprewrite.model.messages import elements, graphs

STANDARD = ("", "ai.onnx")
DENSE_BYTES = 16_000_000  # that sparse weights may take when they are written out, and
GROWTH = 64  # times what they take in the file: four-byte values of which one in two hundred is there


def name_domain(model: ModelProto) -> None:
    """Write the standard's domain as "", in place, in every import and node.

    Where a model imports it more than once, the last version counts, as it does in onnxruntime.
    """
    for holder in (model, *model.functions):
        versions = [entry.version for entry in holder.opset_import if entry.domain in STANDARD]
        if len(versions) > 1 or any(entry.domain == "ai.onnx" for entry in holder.opset_import):
            others = [entry for entry in holder.opset_import if entry.domain not in STANDARD]
            del holder.opset_import[:]
            holder.opset_import.extend([helper.make_opsetid("", versions[-1]), *others])
    for node in (n for g in _every_graph(model) for n in g.node if n.domain == "ai.onnx"):
        node.domain = ""


def write_out_sparse(model: ModelProto) -> None:
    """Make sparse initializers and sparse Constants dense, in place, as runtimes do when they load the file.

    Raises ModelError where indices contradict the dimensions, or where little data would become a huge tensor.
    """
    spent = 0
    for graph in _every_graph(model):
        if isinstance(graph, GraphProto):  # a function has none
            for sparse in graph.sparse_initializer:
                spent += _cost(sparse, spent)
                graph.initializer.append(_dense(sparse))
            del graph.sparse_initializer[:]
        for attribute in (a for n in graph.node if n.op_type == "Constant" for a in n.attribute):
            if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                spent += _cost(attribute.sparse_tensor, spent)
                attribute.CopyFrom(helper.make_attribute("value", _dense(attribute.sparse_tensor)))


def _every_graph(model: ModelProto) -> Iterator[GraphProto]:
    """The main graph, the bodies of functions, and all graphs inside their nodes."""
    yield from graphs(model.graph)
    for function in model.functions:
        yield from graphs(function)  # it has nodes as a graph does


def _cost(sparse: SparseTensorProto, spent: int) -> int:
    """Bytes of the dense tensor. Raises ModelError where they are out of proportion, together with what is spent."""
    size = int(helper.tensor_dtype_to_np_dtype(sparse.values.data_type).itemsize)
    dense = elements(sparse.dims) * size
    if any(d < 0 for d in sparse.dims) or dense + spent > DENSE_BYTES + GROWTH * sparse.ByteSize():
        raise ModelError(
            f"the sparse tensor {sparse.values.name!r} holds {elements(sparse.values.dims):,} values and says that "
            f"they belong to one of shape {list(sparse.dims)}, which would take {dense:,} bytes. Export the model with "
            "dense weights."
        )
    return dense


def _dense(sparse: SparseTensorProto) -> TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    places = _places(indices, tuple(sparse.dims), len(values) if values.ndim == 1 else -1)
    if places is None:
        raise ModelError(
            f"the sparse tensor {sparse.values.name!r} contradicts itself: {list(values.shape)} values, indices of "
            f"shape {list(indices.shape)}, dimensions {list(sparse.dims)}. Export the model again."
        )
    flat = np.zeros(math.prod(sparse.dims), values.dtype)
    flat[places] = values
    return numpy_helper.from_array(flat.reshape(tuple(sparse.dims)), sparse.values.name)


def _places(indices: npt.NDArray[np.int64], dims: tuple[int, ...], count: int) -> npt.NDArray[np.int64] | None:
    """Places in the flat tensor: they are written [values], or by their coordinates [values, rank]."""
    if indices.ndim == 2 and indices.shape == (count, len(dims)) and ((indices >= 0) & (indices < dims)).all():
        return np.ravel_multi_index(tuple(indices.T), dims) if count else np.zeros(0, np.int64)
    if indices.ndim == 1 and len(indices) == count and ((indices >= 0) & (indices < math.prod(dims))).all():
        return indices
    return None

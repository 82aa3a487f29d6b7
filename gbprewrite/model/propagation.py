"""ONNX's shape inference, in memory that the file decides.

With data propagation it writes down every integer vector that shapes may be computed from, a message for each element,
and does not ask how long a vector is: one that is declared with 2^31 elements takes a hundred gigabytes.
"""

import onnx
from onnx import GraphProto, ModelProto, TypeProto

from gbprewrite.model.messages import graphs
from gbprewrite.model.ranks import check_ranks

# The operators that onnx 1.23 propagates data through.
PROPAGATED = ("Add", "Cast", "Concat", "Gather", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze")
# The shape of their output is computed from propagated data.
SHAPED_BY_DATA = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}
WRITTEN = 4_000_000  # elements of vectors, of some 70 bytes each


def infer_shapes(model: ModelProto) -> ModelProto:
    """The model with the types and shapes that ONNX's inference finds: with data propagation, where that is bounded.

    Raises onnx.shape_inference.InferenceError when the model contradicts itself, ModelError for millions of axes.
    """
    check_ranks(model.graph)
    plain = onnx.shape_inference.infer_shapes(model)
    if not is_bounded(plain):
        return plain
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def is_bounded(inferred: ModelProto) -> bool:
    """Whether the vectors that would be written down are known to be short, from what plain inference found."""
    return sum(_vectors(graph) for graph in graphs(inferred.graph)) <= WRITTEN


def _vectors(graph: GraphProto) -> int:
    """Elements of the vectors that the propagating nodes of one graph read and make; too many where that is open."""
    types = {v.name: v.type for v in [*graph.input, *graph.output, *graph.value_info]}
    known = {t.name for t in graph.initializer}
    # Data may tell how long these are, and inference without data does not.
    open_ones = {
        node.output[0]
        for node in graph.node
        if node.op_type in SHAPED_BY_DATA
        and len(node.input) > SHAPED_BY_DATA[node.op_type]
        and node.input[SHAPED_BY_DATA[node.op_type]] not in known
        and _length(types.get(node.output[0])) is None
    }
    total = sum(int(t.dims[0]) for t in graph.initializer if len(t.dims) == 1)
    for name in {v for n in graph.node if n.op_type in PROPAGATED for v in [*n.input, *n.output]}:
        if name in open_ones:
            return WRITTEN + 1
        total += _length(types.get(name)) or 0
    return total


def _length(kind: TypeProto | None) -> int | None:
    """Elements of a vector, 0 for a value of another rank, None where that is not known."""
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    if len(dims) != 1:
        return 0
    return dims[0].dim_value if dims[0].HasField("dim_value") else None

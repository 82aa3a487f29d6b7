"""How many axes the values of a graph may have, before anything writes a shape down.

A Gather has the axes of its data and of its indices, so that thirty of them, each of itself, have 2^30; onnx's checker,
its shape inference and runtimes write them all. Networks have some eight.
"""

from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from gbprewrite.errors import ModelError
from gbprewrite.model.messages import elements

MOST = 4096  # axes of one value, by a bound that does not look at what takes axes away
TOGETHER = 20_000_000  # of all values
USUAL = 8  # of a shape that is computed
SHAPED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}  # and which operand says how


def check_ranks(graph: GraphProto) -> None:
    """Raise ModelError where the values of a graph would have more axes than memory holds."""
    weights = {t.name: t for t in graph.initializer}
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.input} | {
        name: len(t.dims) for name, t in weights.items()
    }
    lengths: dict[str, int | None] = {name: elements(t.dims) for name, t in weights.items()}
    total = 0
    for node in graph.node:
        rank = _rank(node, [ranks.get(name, 1) for name in node.input], [lengths.get(name) for name in node.input])
        ranks.update(dict.fromkeys(node.output, rank))
        if node.op_type == "ConstantOfShape" and node.input[:1] and lengths.get(node.input[0]) == 1:
            lengths[node.output[0]] = _number(weights.get(node.input[0]))
        total += rank
        if rank > MOST or total > TOGETHER:
            raise ModelError(
                f"the values of the model get up to {rank:,} axes at {node.op_type} {node.name or node.output[0]!r}, "
                f"{total:,} in all up to there, which no network needs. Export the model again."
            )


def _rank(node: NodeProto, ranks: list[int], lengths: list[int | None]) -> int:
    """The most axes that a node's outputs have."""
    if node.op_type in SHAPED and len(lengths) > SHAPED[node.op_type]:
        length = lengths[SHAPED[node.op_type]]
        return USUAL if length is None else length
    if node.op_type in ("Gather", "GatherND"):
        return sum(ranks) - 1 if ranks else 0
    if node.op_type == "Unsqueeze":
        axes = next((len(a.ints) for a in node.attribute if a.name == "axes"), 0)
        return ranks[0] + (axes or (lengths[1] if len(lengths) > 1 and lengths[1] is not None else 1)) if ranks else 0
    if node.op_type == "Constant":
        return next((len(a.t.dims) for a in node.attribute if a.HasField("t")), 1)
    return max(ranks, default=0) + (node.op_type == "OneHot")


def _number(tensor: TensorProto | None) -> int | None:
    if tensor is None or tensor.data_type != TensorProto.INT64 or tensor.external_data:
        return None
    return int(numpy_helper.to_array(tensor).ravel()[0])

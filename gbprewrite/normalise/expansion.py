"""How large a model becomes once the bodies of its local functions stand in the place of their calls."""

from collections.abc import Iterable

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from gbprewrite.errors import ModelError
from gbprewrite.model import bounds, ordering


def check_expansion(model: ModelProto) -> None:
    """Raise ModelError where putting the bodies of local functions in the place of their calls makes too much.

    Functions that call others twice, thirty deep, would make a thousand million nodes.
    """
    made: dict[ordering.FunctionKey, tuple[int, int]] = {}
    for function in ordering.function_order(model):
        made[ordering.function_key(function)] = _expanded(function, made)
    nodes, size = _expanded(model.graph, made)
    own = sum(len(body.node) for body in [model.graph, *model.functions])
    room = bounds.EXPANDED_BYTES + 4 * sum(f.ByteSize() for f in model.functions)
    if nodes > bounds.EXPANDED_NODES + 4 * own or size > room:
        raise ModelError(
            f"the model's {len(made)} local function(s), each put in the place of its calls, become {nodes:,} nodes "
            f"({size:,} bytes), and the file has {own:,} nodes: it multiplies itself. Export the model again, with "
            "its functions inlined."
        )


def _expanded(body: GraphProto | FunctionProto, made: dict[ordering.FunctionKey, tuple[int, int]]) -> tuple[int, int]:
    """(nodes, bytes) of a body in which every call is replaced; graphs inside nodes count."""
    nodes, size = 0, 0
    for node in _every_node(body):
        inner = made.get(ordering.call_key(node))
        if inner is None:
            nodes, size = nodes + 1, size + (node.ByteSize() if not _holds_graphs(node) else 0)
        else:  # the inliner puts a prefix before every name: the function's, and the call's number
            prefix = len(node.op_type) + 16
            nodes, size = nodes + inner[0], size + inner[1] + 4 * prefix * inner[0]
    return nodes, size


def _every_node(body: GraphProto | FunctionProto) -> Iterable[NodeProto]:
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _every_node(inner)


def _holds_graphs(node: NodeProto) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)

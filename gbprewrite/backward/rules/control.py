"""Control flow: an If whose condition is computed at run time.

Its backward pass is a branch of an If of its own, which computes again what it needs of the forward values: a value
inside a branch can't be seen from outside, and the source stays as it is.

Source: https://onnx.ai/onnx/operators/onnx__If.html.
"""

from collections.abc import Sequence

import onnx_graphsurgeon as gs
from onnx import GraphProto, NodeProto, helper, numpy_helper

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.rules.table import vjp
from gbprewrite.model.messages import reads
from gbprewrite.model.tensors import Refused, Tensor, is_float, node_proto, onnx_type
from gbprewrite.view.forward import Branch
from gbprewrite.view.randomness import draws


@vjp("If", all_outputs=True)
def if_(op, dys, ys, condition, *captured, then_branch, else_branch, rule_of):
    """dx = an If of the same condition, whose branches pull dy back through the branches"""
    if not all(map(is_float, captured)):
        raise Refused("a branch takes quantised values from around it")
    if any(draws(node) for branch in (then_branch, else_branch) for node in branch.nodes):
        raise Refused("a branch draws random numbers, and the way back would have to draw the same again")
    dys = [op.Identity(dy) if isinstance(dy, gs.Constant) else dy for dy in dys]
    made = {}
    for name, branch in (("then_branch", then_branch), ("else_branch", else_branch)):
        inner = op.inside(branch)
        made[name] = written(inner, branch, inner.pull_back_branch(branch, dys, captured, rule_of))
    return None, *op.branched(condition, made, captured)


def written(op: Builder, branch: Branch, outputs: Sequence[Tensor]) -> GraphProto:
    """What was built in a branch as a graph that runs: the built nodes and the forward ones that the outputs need."""
    needed = {t.name for t in outputs}
    nodes: list[NodeProto] = []
    for node in [*map(node_proto, reversed(op.nodes)), *reversed(branch.forward.node)]:
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(reads(node))
    made = helper.make_graph(
        nodes[::-1],
        branch.forward.name or "branch",
        [],
        [helper.make_tensor_value_info(t.name, onnx_type(t), None) for t in outputs],
        [t for t in branch.forward.initializer if t.name in needed],
    )
    made.initializer.extend(numpy_helper.from_array(c.values, c.name) for c in op.constants() if c.name in needed)
    return made

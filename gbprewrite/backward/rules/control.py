"""Control flow: an If whose condition is computed at run time.

Source: https://onnx.ai/onnx/operators/onnx__If.html.
"""

import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Refused
from gbprewrite.backward.rules import vjp
from gbprewrite.model.tensors import is_float
from gbprewrite.view.randomness import draws


@vjp("If", all_outputs=True)
def if_(op, dys, ys, condition, *captured, then_branch, else_branch, rule_of):
    """dx = an If of the same condition, whose branches pull dy back through the branches"""
    from gbprewrite.backward.walk import pull_back_branch  # which reads the table of rules
    from gbprewrite.view.conditional import written

    if not all(map(is_float, captured)):
        raise Refused("a branch takes quantised values from around it")
    if any(draws(node) for branch in (then_branch, else_branch) for node in branch.nodes):
        raise Refused("a branch draws random numbers, and the way back would have to draw the same again")
    dys = [op.Identity(dy) if isinstance(dy, gs.Constant) else dy for dy in dys]
    made = {}
    for name, branch in (("then_branch", then_branch), ("else_branch", else_branch)):
        inner = op.inside(branch)
        made[name] = written(inner, branch, pull_back_branch(inner, branch, dys, captured, rule_of))
    return None, *op.branched(condition, made, captured)

"""What the explained channels of a score are made of, and which inner tensors they all depend on.

A detector joins its scores from several scales, and beside its boxes. Grad-CAM at a layer of one scale is nothing for
the anchors of another, and at a layer of the box branch nothing for a class. So its layer is one that all of them
depend on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, fixed
from gbprewrite.select import subset
from gbprewrite.select.columns import UNCHANGED, Piece, pieces
from gbprewrite.select.heads import MOVED, SCORING, dependent
from gbprewrite.select.selection import Selection
from gbprewrite.select.target import Target
from gbprewrite.view.idioms import producer


class Explained(NamedTuple):
    """id() of the tensors that every explained part of the score depends on, of those that any of them does, and of
    those behind the parts; None where the score is not joined of parts, so that any tensor before it will do."""

    by_all: set[int] | None = None
    by_any: set[int] | None = None
    behind: set[int] | None = None

    def nodes(self, nodes: Sequence[gs.Node]) -> list[gs.Node]:
        """Those that lead to an explained part, or from one."""
        if self.by_any is None or self.behind is None:
            return list(nodes)
        known = self.by_any | self.behind
        return [n for n in nodes if any(id(t) in known for t in n.outputs)]

    def common(self, tensor: Tensor) -> bool:
        """Whether all explained parts depend on a tensor."""
        return self.by_all is None or id(tensor) in self.by_all


def explained(graph: gs.Graph, chosen: Selection, target: Target, channels: str | None) -> Explained:
    """What a target's channels are made of, in the whole score or along the axis of its classes."""
    score, depends = chosen.score, dependent(graph, chosen.inputs, chosen.score)
    axis = chosen.class_axis if not chosen.counting.moves and chosen.class_axis is not None else None
    found = _pieces(score, axis, depends)
    if found is None:
        return _reach(chosen.nodes, _joined(score))
    if len(found) < 2:
        return Explained()
    if axis is not None:
        wanted = _channels(target, channels, int(score.shape[axis]), axis, chosen.counting.batch_axis)
        found = [p for p in found if any(p.start <= c < p.stop for c in wanted)]
    return _reach(chosen.nodes, list({id(p.joined): p.joined for p in found}.values()))


def _pieces(score: Tensor, axis: int | None, depends: set[int]) -> list[Piece] | None:
    """Along the axis of the classes, or the first that can be taken apart."""
    if score.shape is None or (axis is not None and not fixed(score.shape[axis])):
        return None
    axes = [axis] if axis is not None else [a for a, d in enumerate(score.shape) if a and fixed(d)]
    return next((found for a in axes if (found := pieces(score, a, depends)) is not None), None)


def _channels(target: Target, channels: str | None, length: int, axis: int, batch: int | None) -> Sequence[int]:
    """Along the axis of the classes those that a target may explain."""
    if target.searches and channels is not None:
        return subset.numbers_of(channels, length, "the score")
    if target.kind == "unit":
        at = axis - (batch is not None and batch < axis)
        return target.numbers[at : at + 1]
    return target.numbers if target.numbers and not target.searches else range(length)


def _joined(score: Tensor) -> list[Tensor]:
    """What a score of no fixed axis, as of selected boxes, is moved, chosen and joined from."""
    todo, seen, leaves = [score], {id(score)}, []
    while todo:
        t = todo.pop()
        node = producer(t)
        if node is None or node.op not in (*MOVED, *SCORING, *UNCHANGED):
            leaves.append(t)
            continue
        for x in node.inputs if node.op == "Concat" else node.inputs[:1]:
            if id(x) not in seen:
                seen.add(id(x))
                todo.append(x)
    return leaves if len(leaves) > 1 else []


def _reach(nodes: Sequence[gs.Node], leaves: Sequence[Tensor]) -> Explained:
    """One walk back, with a bit for each leaf that depends on a tensor, and one on."""
    if not leaves or any(leaf is t for leaf in leaves for t in nodes[-1].outputs):
        return Explained()
    reached = {id(leaf): 1 << i for i, leaf in enumerate(leaves)}
    for node in reversed(nodes):
        bits = 0
        for t in node.outputs:
            bits |= reached.get(id(t), 0)
        if bits:
            for t in node.inputs:
                reached[id(t)] = reached.get(id(t), 0) | bits
    every = (1 << len(leaves)) - 1
    behind = {id(leaf) for leaf in leaves}
    for node in nodes:
        if any(id(t) in behind for t in node.inputs):
            behind |= {id(t) for t in node.outputs}
    return Explained({t for t, bits in reached.items() if bits == every}, set(reached), behind)

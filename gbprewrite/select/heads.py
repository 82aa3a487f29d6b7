"""Heads that are no plain classifier: which channels of a score are class scores, and which are boxes or other values.

What decides is how the parts of a score are made (`columns`): a part behind a Sigmoid or Softmax is scores; one with
arithmetic that differs from position to position (grids, anchors, strides), or behind Exp, is coordinates. Four
channels that are joined to scores from a branch of their own are taken for boxes; `why` says so.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, constant_of, is_float
from gbprewrite.select.columns import Piece, Step, pieces
from gbprewrite.view import paths
from gbprewrite.view.idioms import producer

SCORING = ("Sigmoid", "HardSigmoid", "Softmax", "LogSoftmax")
CURVED = ("Exp", "Pow")  # sizes of boxes are written so
SCALED = ("Mul", "Div")
MOVED = (
    *("Cast", "Concat", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "ReduceMax", "Reshape", "Slice"),
    *("Split", "Squeeze", "TopK", "Transpose", "Unsqueeze"),
)
CHOSEN_FROM = ("NonMaxSuppression", "TopK", "NonZero")  # in this order, what chose a detector's boxes
IN_WORDS = {"scores": "class scores", "boxes": "boxes", "objectness": "objectness", "other": "other values"}


class Part(NamedTuple):
    """Channels start to stop: "scores", "boxes", "objectness" or "other"; `why` says what this is based on."""

    start: int
    stop: int
    role: str
    why: str

    def text(self) -> str:
        """`channels 4-83 are class scores (behind Sigmoid 'Sigmoid_1')`"""
        one = self.stop == self.start + 1
        numbers = f"channel {self.start} is" if one else f"channels {self.start}-{self.stop - 1} are"
        return f"{numbers} {IN_WORDS[self.role]} ({self.why})"


class Head(NamedTuple):
    """The axis of a score along which its parts lie, one part where it is all boxes.

    `corners` of the boxes: "xyxy", "xywh" (centre and size), or None where their arithmetic does not tell.
    """

    axis: int
    parts: tuple[Part, ...]
    corners: str | None

    def of(self, role: str) -> list[Part]:
        """The parts of this role."""
        return [part for part in self.parts if part.role == role]

    def role(self, channel: int) -> str:
        """Of a channel."""
        return next(part.role for part in self.parts if part.start <= channel < part.stop)

    @property
    def mixed(self) -> bool:
        """Whether class scores stand beside something else."""
        return len(self.parts) > 1

    @property
    def scored(self) -> str:
        """The channels of class scores, as --channels has them."""
        return ",".join(f"{part.start}:{part.stop}" for part in self.of("scores") or self.of("objectness"))

    def text(self) -> str:
        """What each part is, as a list."""
        return "; ".join(part.text() for part in self.parts)


def dependent(graph: gs.Graph, inputs: Sequence[Tensor], score: Tensor) -> set[int]:
    """id() of the tensors between inputs and score that depend on the inputs by real numbers."""
    nodes = paths.path(graph, inputs, score)
    return {id(t) for t in inputs} | {id(t) for n in nodes for t in n.outputs}


def recognise(score: Tensor, depends: set[int]) -> Head | None:
    """The parts of a score that holds class scores and other things along one of its axes, or boxes alone; None for any
    other score."""
    if score.shape is None or len(score.shape) < 2:
        return None
    for axis in range(1, len(score.shape)):
        found = pieces(score, axis, depends)
        if found is None:
            continue
        parts = _parts(found, depends)
        roles = {part.role for part in parts}
        if (len(roles) > 1 and roles & {"scores", "objectness"}) or (len(parts) == 1 and roles == {"boxes"}):
            return Head(axis, tuple(parts), _corners(found, parts))
    return None


class _Range(NamedTuple):
    """Channels that are made alike, and the pieces that make them."""

    start: int
    stop: int
    kind: str
    made: list[Piece]


def _parts(found: Sequence[Piece], depends: set[int]) -> list[Part]:
    """In order; empty where the same channels are made in different ways, as those of another axis are."""
    cuts = sorted({cut for piece in found for cut in (piece.start, piece.stop)})
    ranges = []
    for start, stop in pairwise(cuts):
        made = [p for p in found if p.start <= start and stop <= p.stop]
        kinds = {_kind(piece, depends) for piece in made}
        if len(kinds) != 1:
            return []
        ranges.append(_Range(start, stop, kinds.pop(), made))
    all_kinds = {r.kind for r in ranges}
    if all_kinds == {"coordinates"}:
        part = _coordinates(ranges, cuts[0], cuts[-1])
        # A bias that differs along another axis is no grid: boxes are joined from what places and what sizes them.
        return [part] if part.role == "boxes" and len(ranges) > 1 else []
    if all_kinds == {"scores"}:
        return []  # of several classifiers, or of both sides of one
    return _named(ranges) if "scores" in all_kinds else _by_number(ranges)


def _kind(piece: Piece, depends: set[int]) -> str:
    """ "scores", "coordinates", "raw" (as a convolution or product made them), or "other"."""
    steps = [s for s in piece.steps if s.kind != "chosen" and not _gated(s)]
    if len(steps) > 1 and _is_complement(steps[0]) and scoring(steps[1]):
        steps = steps[1:]
    if not steps:
        return _kind_of_source(piece.source, depends) if piece.source.shape else "other"
    if scoring(steps[0]):
        return "scores"
    if any(s.kind in ("positions", "mixed") or s.node.op in CURVED for s in steps):
        return "coordinates"
    return "other"


def scoring(step: Step) -> bool:
    """Whether a step makes scores: a Sigmoid, or a Softmax along the channels."""
    if step.node.op in ("Softmax", "LogSoftmax"):
        return bool(step.node.attrs.get("axis", -1) % len(step.node.outputs[0].shape) == step.axis)
    return step.node.op in SCORING


def _is_complement(step: Step) -> bool:
    """Whether a step computes 1 - x, the probability of the other one of two classes."""
    one = constant_of(step.node.inputs[0]) if step.node.op == "Sub" else None
    return one is not None and bool((one == 1).all())


def _gated(step: Step) -> bool:
    """Whether a step multiplies by a score, as objectness times class score does."""
    made_by = [producer(t) for t in step.node.inputs]
    return step.kind == "mixed" and step.node.op == "Mul" and all(n is not None and behind_scoring(n) for n in made_by)


def behind_scoring(node: gs.Node | None) -> gs.Node | None:
    """The Sigmoid or Softmax whose values a node hands on, moved or chosen from."""
    seen = 0
    while node is not None and seen < 1000 and (node.op in MOVED or node.op == "Mul"):
        node, seen = producer(node.inputs[0]), seen + 1
    return node if node is not None and node.op in SCORING else None


def _kind_of_source(source: Tensor, depends: set[int]) -> str:
    """Of a tensor without the axis: a score that was given an axis of its own, or what a convolution made."""
    node = producer(source)
    if node is not None and node.op in MOVED and behind_scoring(node):
        return "scores"
    return "raw" if id(source) in depends else "other"


def _named(ranges: Sequence[_Range]) -> list[Part]:
    """Parts of a score of which some are scores by an activation."""
    parts: list[Part] = []
    score_ranges = [r for r in ranges if r.kind == "scores"]
    for group in _groups(ranges):
        start, stop = group[0].start, group[-1].stop
        if group[0].kind != "scores":
            parts.append(_coordinates(group, start, stop))
            continue
        first, shares = group[0], _shared_source(group, ranges)
        why = _activation_in_words(first)
        alone = len(group) > 1 or len(score_ranges) > len(group)  # a branch of its own beside the classes'
        if first is score_ranges[0] and stop - start > 1 and first.stop == start + 1 and alone:
            parts += [Part(start, start + 1, "objectness", "one channel of its own before the class scores")]
            start += 1
        elif first is score_ranges[0] and stop - start > 1 and shares:
            parts += [Part(start, start + 1, "objectness", "the first score of a convolution that makes boxes too")]
            start += 1
        parts.append(Part(start, stop, "scores", why))
    return parts


def _groups(ranges: Sequence[_Range]) -> list[list[_Range]]:
    """Neighbours that are scores, or are not."""
    groups: list[list[_Range]] = []
    for one in ranges:
        if groups and (groups[-1][-1].kind == "scores") == (one.kind == "scores"):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _shared_source(group: Sequence[_Range], ranges: Sequence[_Range]) -> bool:
    """Whether scores and coordinates are cut from the same convolutions."""
    own = {id(p.source) for r in group for p in r.made}
    return any(id(p.source) in own for r in ranges if r.kind == "coordinates" for p in r.made)


def _coordinates(group: Sequence[_Range], start: int, stop: int) -> Part:
    located = [s for r in group for p in r.made for s in p.steps if s.kind == "positions" or s.node.op in CURVED]
    if stop - start == 4 and located:
        return Part(start, stop, "boxes", f"with a value for each position, by {node_in_words(located[0].node)}")
    if stop - start == 4:
        return Part(start, stop, "boxes", "four channels of a branch of their own")
    return Part(start, stop, "other", "behind no Sigmoid or Softmax")


def _activation_in_words(made: _Range) -> str:
    piece = made.made[0]
    node = next((s.node for s in piece.steps if scoring(s)), None) or behind_scoring(producer(piece.source))
    return f"behind {node_in_words(node)}" if node is not None else "scores"


def node_in_words(node: gs.Node) -> str:
    """`Sigmoid 'Sigmoid_1'`"""
    return f"{node.op} {node.name!r}"


def _by_number(ranges: Sequence[_Range]) -> list[Part]:
    """Parts without an activation, from branches of their own: four channels beside another number are boxes."""
    sizes = [r.stop - r.start for r in ranges]
    boxes = [i for i, size in enumerate(sizes) if size == 4]
    own = len({id(p.joined) for r in ranges for p in r.made}) >= len(ranges)
    if len(boxes) != 1 or not 2 <= len(ranges) <= 3 or not own or any(r.kind == "other" for r in ranges):
        return []
    rest = [i for i in range(len(ranges)) if i not in boxes]
    if len(rest) == 2 and sizes[rest[0]] != 1:
        return []
    why = {boxes[0]: ("boxes", "four channels of a branch of their own"), rest[-1]: ("scores", "of another branch")}
    one = ("objectness", "one channel of a branch of its own")
    return [Part(r.start, r.stop, *why.get(i, one)) for i, r in enumerate(ranges)]


# --- boxes ----------------------------------------------------------------------------------------------------------


def _corners(found: Sequence[Piece], parts: Sequence[Part]) -> str | None:
    boxes = [part for part in parts if part.role == "boxes"]
    if len(boxes) != 1:
        return None
    return corners([p for p in found if boxes[0].start <= p.start and p.stop <= boxes[0].stop], boxes[0].start)


def corners(made: Sequence[Piece], start: int) -> str | None:
    """What four channels are by their arithmetic: "xywh", centre and size; "xyxy", corners; or None."""
    first = [p for p in made if (p.start, p.stop) == (start, start + 2)]
    second = [p for p in made if (p.start, p.stop) == (start + 2, start + 4)]
    if not first or not second:
        return None
    if _curved(second[0]) and not _curved(first[0]):
        return "xywh"
    one, other = (_placing(p) for p in (first[0], second[0]))
    if one is None or other is None:
        return None
    if (one.node.op, other.node.op) == ("Add", "Sub") and {*map(id, one.node.inputs)} == {*map(id, other.node.inputs)}:
        return "xywh"
    return "xyxy" if (one.node.op, other.node.op) == ("Sub", "Add") else None


def _curved(piece: Piece) -> bool:
    return any(step.node.op in CURVED for step in piece.steps)


def _placing(piece: Piece) -> Step | None:
    """The step that adds or takes away, behind what only scales."""
    return next((s for s in piece.steps if s.node.op not in SCALED and s.kind != "chosen"), None)


def beside(graph: gs.Graph, score: Tensor, class_axis: int | None) -> Tensor | None:
    """The output of boxes for the positions of a score: its shape with 4 in place of the classes; None without one, or
    with several."""
    if score.shape is None:
        return None
    if len(score.shape) == 1:
        fitting = [t for t in _floats(graph) if len(t.shape) == 2 and t.shape[1] == 4]
    else:
        axis = 1 if class_axis is None else class_axis % len(score.shape)
        wanted = [*score.shape[:axis], 4, *score.shape[axis + 1 :]]
        fitting = [t for t in _floats(graph) if _without_ones(t.shape) == _without_ones(wanted)]
    fitting = [t for t in fitting if t is not score]
    return fitting[0] if len(fitting) == 1 else None


def _floats(graph: gs.Graph) -> list[Tensor]:
    return [t for t in graph.outputs if is_float(t) and t.shape is not None]


def _without_ones(shape: Sequence[Any]) -> list[Any]:
    return [*shape[:1], *(d for d in shape[1:] if d != 1)]

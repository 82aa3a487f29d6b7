"""What a detector's user means: what is said or asked where a target may meet its boxes, where these stand, and which
output holds its class scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.errors import UsageError
from gbprewrite.model.tensors import Tensor, fixed, is_float
from gbprewrite.select import subset
from gbprewrite.select.heads import (
    CHOSEN_FROM,
    IN_WORDS,
    MOVED,
    SCORING,
    Head,
    behind_scoring,
    beside,
    dependent,
    node_in_words,
    recognise,
)
from gbprewrite.select.target import Target
from gbprewrite.view.idioms import producer

if TYPE_CHECKING:
    from gbprewrite.select.selection import Selection

CLASS_TARGETS = ("argmax", "index", "list", "topk", "input")
FAR = 1000  # nodes behind an output that are looked at for its class scores


class Boxes(NamedTuple):
    """Where the boxes of a score's positions stand: channels start to start + 4 along an axis of an output; `corners`
    as in `heads.Head`."""

    output: str
    axis: int
    start: int
    corners: str | None


class Found(NamedTuple):
    """What is known of a score as a detector's: its parts (one only where it is no mixed head), its boxes, the operator
    that selected the boxes that are left (empty where all are), the output that names the classes of these, the axis of
    a single class, and what must be said of the target."""

    head: Head | None
    boxes: Boxes | None
    selected: str
    labels: str | None
    one_class: int | None
    notes: list[str]

    def to_json(self) -> dict[str, Any] | None:
        """Plain types for the record; None where the score is no detector's."""
        if self.head is None and self.boxes is None:
            return None
        return {
            "axis": self.head.axis if self.head else None,
            "parts": [part._asdict() for part in self.head.parts] if self.head else [],
            "boxes": self.boxes and self.boxes._asdict(),
            "selected": self.selected,
            "labels": self.labels,
        }


def find(graph: gs.Graph, inputs: Sequence[Tensor], chosen: "Selection", target: Target, channels: str | None) -> Found:
    """Look at the score that was chosen. Raises UsageError for a target that would search coordinates unasked."""
    score = chosen.output
    depends = dependent(graph, inputs, score)
    head = recognise(score, depends)
    if head is None and chosen.score.shape == score.shape:
        head = recognise(chosen.score, depends)
    is_output = any(score is t for t in graph.outputs)
    if head is not None and head.mixed and is_output and target.searches and channels is None:
        raise UsageError(question(head, score))
    by = selected(score) if score.shape is not None and len(score.shape) == 1 else ""
    if by and target.kind in ("argmax", "topk"):
        raise UsageError(
            f"the score {score.name!r} {_words(score.shape)} holds one score for each box that {by} left, and the "
            f"target {target.text} is for classes. Say which box is meant: --target strongest for the surest, "
            "strongest:3 for the first three, or unit:2 for the third."
        )
    said = _summed(chosen, target, is_output) if head is None else []
    said += [] if head is None else notes(head, target, channels, int(score.shape[head.axis]), chosen.class_axis)
    beside_it = four_beside(graph.outputs, score) if head is None else None
    if beside_it is not None:
        said.append(
            f"{score.name!r} has four values for each position of {beside_it.name!r}, as boxes have: a coordinate may "
            f"be explained. Class scores are likely --score {beside_it.name}"
        )
    labels, one = _labels(graph) if by else None, _one_class(graph, score)
    return Found(head, _boxes(graph, inputs, chosen, head), by, labels, one, said)


def counted(chosen: "Selection", found: Found, class_axis: int | None) -> "Selection":
    """The selection as its head is counted, unless the user said how: classes along the axis of the parts; the scores
    of selected boxes as those of one sample, each a position."""
    made, notes_ = chosen.counting, [*chosen.notes, *found.notes]
    if found.selected and _one_sample(chosen.inputs):
        why = f"its values are those of the boxes that {found.selected} left"
        made = made._replace(batch_axis=None, class_axis=None, why=why, question="", mixed="")
    elif (
        found.one_class is not None and class_axis is None and len(made.shape) == 3 and made.shape[found.one_class] == 1
    ):
        made = made._replace(class_axis=found.one_class, why="another output has the same positions", question="")
    elif found.head is not None and found.head.mixed and class_axis is None and made.class_axis != found.head.axis:
        made = made._replace(class_axis=found.head.axis, why="its parts lie along it", question="")
    return chosen._replace(counting=made, notes=notes_)


def _summed(chosen: "Selection", target: Target, is_output: bool) -> list[str]:
    """A word about targets that sum over the positions of a score [N, A, C], which a detector's user may not mean."""
    counting = chosen.counting
    rest = [d for a, d in enumerate(counting.shape) if a not in (counting.batch_axis, counting.class_axis) and d != 1]
    if target.kind not in CLASS_TARGETS or len(counting.shape) != 3 or len(rest) != 1 or not is_output:
        return []
    many = rest[0] if fixed(rest[0]) else "all"
    return [
        f"target {target.text} sums each class over {many} positions of {chosen.output.name!r} "
        f"{_words(counting.shape)}, as anchors or queries are; --target strongest explains the strongest of them, "
        "strongest:3 three"
    ]


def _boxes(graph: gs.Graph, inputs: Sequence[Tensor], chosen: "Selection", head: Head | None) -> Boxes | None:
    if head is not None:
        parts = head.of("boxes")
        found = len(parts) == 1 and head.mixed
        return Boxes(chosen.output.name, head.axis, parts[0].start, head.corners) if found else None
    made = beside(graph, chosen.output, chosen.class_axis)
    if made is None:
        return None
    known = recognise(made, dependent(graph, inputs, made))
    axis = max(a for a, d in enumerate(made.shape) if d == 4)
    return Boxes(made.name, axis, 0, known.corners if known else None)


def _one_class(graph: gs.Graph, score: Tensor) -> int | None:
    """The axis of a detector's one class, [N, A, 1] beside values [N, A, 4] or more of the same anchors."""
    shape = score.shape
    if shape is None or len(shape) != 3 or list(shape[1:]).count(1) != 1:
        return None
    axis = 1 + list(shape[1:]).index(1)
    others = [t.shape for t in graph.outputs if t is not score and t.shape is not None and len(t.shape) == 3]
    beside_it = [s for s in others if s[3 - axis] == shape[3 - axis] and fixed(s[axis]) and s[axis] >= 4]
    return axis if beside_it and shape[3 - axis] is not None else None


def _one_sample(inputs: Sequence[Tensor]) -> bool:
    """Whether nothing says that a run has several samples, whose selected boxes would stand in one list."""
    return not any(x.shape and fixed(x.shape[0]) and x.shape[0] != 1 for x in inputs)


def _labels(graph: gs.Graph) -> str | None:
    """The output of class numbers beside scores of selected boxes, [D] both."""
    found = [t.name for t in graph.outputs if not is_float(t) and t.shape is not None and len(t.shape) == 1]
    return found[0] if len(found) == 1 else None


def question(head: Head, score: Tensor) -> str:
    """The message of a UsageError, for a target that would search coordinates as well as scores."""
    sure = head.of("objectness")
    surest = (
        f" --target strongest --channels {sure[0].start} explains the surest box by its objectness." if sure else ""
    )
    return (
        f"the score {score.name!r} {_words(score.shape)} is a detector's head: along axis {head.axis} {head.text()}. A "
        f"coordinate is no class, so say what is meant: --target strongest --channels {head.scored} explains the "
        f"highest class score, --target strongest:3 --channels {head.scored} those of three boxes.{surest} With "
        "--channels : every channel is looked at."
    )


def notes(head: Head, target: Target, channels: str | None, length: int, class_axis: int | None) -> list[str]:
    """What must be said of a target that may explain a coordinate, a sentence or none."""
    if target.kind in ("input", "seed"):
        scores = "" if not head.scored else f"; class scores are {head.scored}"
        return [f"{head.text()}{scores}: what is given at run time may be a coordinate"]
    explained = _explained(head, target, channels, length, class_axis)
    others = sorted({head.role(c) for c in explained} - {"scores", "objectness"})
    if not others:
        return []
    named = " and ".join(IN_WORDS[role] for role in others)
    why = "; ".join(part.text() for part in head.parts if part.role in others)
    found = "is explained" if not target.searches else "may be explained"
    return [f"target {target.text} on {named}: a coordinate or another value that is no class {found} ({why})"]


def _explained(head: Head, target: Target, channels: str | None, length: int, class_axis: int | None) -> Sequence[int]:
    """The channels of the head that a target explains, or searches."""
    if target.searches:
        along = channels is not None and class_axis == head.axis
        return subset.numbers_of(str(channels), length, "the score") if along else range(length)
    if target.kind == "unit":
        at = head.axis - 1
        return [c for c in target.numbers[at : at + 1] if c < length]
    if class_axis != head.axis:
        return range(length)
    return [c for c in target.numbers if c < length]


# --- several outputs ------------------------------------------------------------------------------------------------


def advice(graph: gs.Graph, outputs: Sequence[Tensor]) -> str:
    """Which of several outputs holds class scores, and how they are explained; empty where nothing tells."""
    able = [t for t in outputs if four_beside(outputs, t) is None]  # boxes may be behind a Sigmoid too, as DETR's are
    scored = {t.name: (t, made) for t in able if (made := _made_by(t)) is not None}
    if len(scored) != 1:
        return _beside_boxes(outputs) if not scored else ""
    (score, made), *_ = scored.values()
    before = made.inputs[0]
    others = ", ".join(t.name for t in outputs if t is not score and t is not before)
    shown = f", {before.name} the same before it" if any(before is t for t in outputs) else ""
    none = f", {others} none" if others else ""
    said = f" {score.name} holds scores (behind {node_in_words(made)}){shown}{none}:"
    logits = _before_selection(score) if selected(score) else None
    if logits is None:
        return f"{said} use --score {score.name}{_strongest(score)}."
    return (
        f"{said} --score {score.name} --target strongest explains the surest of the boxes that the model's own "
        f"selection ({selected(score)}) leaves, --target strongest:3 the first three. The class scores of all boxes "
        f"before it are {logits.name} {_words(logits.shape)}: --score {logits.name} --target strongest."
    )


def _made_by(output: Tensor) -> gs.Node | None:
    """The Sigmoid or Softmax whose values an output holds, or chooses from."""
    return behind_scoring(producer(output))


def _beside_boxes(outputs: Sequence[Tensor]) -> str:
    """Class scores without an activation: the one output whose shape is that of boxes but for its last axis."""
    boxes = [(t, other) for t in outputs if (other := four_beside(outputs, t)) is not None]
    if len(boxes) != 1:
        return ""
    ((four, score),) = boxes
    return (
        f" {four.name} has four values for each position of {score.name}, as boxes have: the class scores are likely "
        f"--score {score.name}{_strongest(score)}."
    )


def four_beside(outputs: Sequence[Tensor], t: Tensor) -> Tensor | None:
    """The one output that has other than four values at each position where a tensor has four, as boxes have."""
    made = _made_by(t)
    if t.shape is None or len(t.shape) < 3 or t.shape[-1] != 4 or (made is not None and "Softmax" in made.op):
        return None
    places = list(t.shape[:-1])
    alike = [o for o in outputs if o.shape is not None and list(o.shape[:-1]) == places and o.shape[-1] != 4]
    return alike[0] if len(alike) == 1 else None


def _strongest(score: Tensor) -> str:
    """The target for a score of many positions."""
    return " --target strongest" if score.shape is not None and len(score.shape) > 2 else ""


def _words(shape: Sequence[Any]) -> str:
    return f"[{', '.join('?' if d is None or str(d).startswith('unk__') else str(d) for d in shape)}]"


def selected(score: Tensor) -> str:
    """The operator by which a detector chose the boxes whose scores these are: NonMaxSuppression, TopK, NonZero or If;
    empty where it did not."""
    todo, seen = [score], {id(score)}
    found: list[str] = []
    while todo and len(seen) < FAR:
        node = producer(todo.pop())
        if node is None or node.op in SCORING:
            continue
        branches = [n.op for a in node.attrs.values() if isinstance(a, gs.Graph) for n in a.nodes]
        found += [op for op in (node.op, *branches) if op in CHOSEN_FROM]
        inputs = node.inputs if node.op in MOVED or node.op in (*CHOSEN_FROM, "If", "Cast") else []
        for t in inputs:
            if id(t) not in seen:
                seen.add(id(t))
                todo.append(t)
    return next((op for op in CHOSEN_FROM if op in found), "")


def _before_selection(score: Tensor) -> Tensor | None:
    """The class scores of all boxes, from which an output was chosen: the nearest tensor behind the Sigmoid or Softmax
    that has three axes."""
    node, behind = producer(score), False
    for _ in range(FAR):
        if node is None:
            return None
        behind = behind or node.op in SCORING
        x = node.inputs[0]
        if behind and x.shape is not None and len(x.shape) > 2 and is_float(x):
            return _whole(x)
        if node.op not in (*MOVED, *SCORING):
            return None
        node = producer(x)
    return None


def _whole(x: Tensor) -> Tensor:
    """The scores of all scales, where a tensor holds one scale's part of them."""
    node = producer(x)
    while node is not None and node.op in ("Slice", "Split"):
        x, node = node.inputs[0], producer(node.inputs[0])
    return x

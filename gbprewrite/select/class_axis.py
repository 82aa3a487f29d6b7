"""How a score is counted: which of its axes holds the samples, which the classes, and why.

Worked out from a final Softmax, from the node that makes the logits, and from what moves axes behind it (`axes`); never
assumed. Where it can't be told, the user is asked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from gbprewrite.errors import UsageError
from gbprewrite.model.symbols import UNKNOWN as UNNAMED
from gbprewrite.select.axes import CONVOLUTIONS
from gbprewrite.select.regrouping import BATCH, BESIDE, CHANNELS, CLASSES, POSITIONS, SINGLE, UNKNOWN, Axis, roles


class Counting(NamedTuple):
    """How a score is counted.

    Attributes:
        name, shape: of the tensor whose axes are meant: the score, moved as the model moves it behind the activation.
        batch_axis: of the samples; None where the score is of one sample and has no axis for it.
        class_axis: of the classes; None where there is one class, 0, or where `question` says that nobody knows.
        why: the reason, as a clause: "the final Softmax runs along it".
        question: the message of a UsageError, empty where the axis is known.
        mixed: another one, where the samples share an axis with something else.
        moves: the nodes that bring the score into this shape.
        unbatched: whether the model's inputs have no axis of samples either.
        said_above: a position of a segmentation says each class whose score is above this number; None where it says
            the class of the highest score.
    """

    name: str
    shape: Sequence[Any]
    batch_axis: int | None
    class_axis: int | None
    why: str
    question: str = ""
    mixed: str = ""
    moves: Sequence[gs.Node] = ()
    unbatched: bool = False
    said_above: float | None = None

    def known(self) -> "Counting":
        """Itself. Raises UsageError where it can't be told which axis holds the classes."""
        if self.question:
            raise UsageError(self.question)
        return self

    def of_samples(self) -> "Counting":
        """Itself. Raises UsageError where each sample has several rows, so that none is the highest class of it."""
        if self.mixed:
            raise UsageError(self.mixed)
        return self

    def order(self) -> list[int]:
        """The axes with that of the samples first."""
        rest = [a for a in range(len(self.shape)) if a != self.batch_axis]
        return rest if self.batch_axis is None else [self.batch_axis, *rest]


def in_words(class_axis: int | None, why: str) -> str:
    """`class axis 1: the final Softmax runs along it`"""
    axis = "no class axis" if class_axis is None else f"class axis {class_axis}"
    return f"{axis}: {why}" if why else "class axis not known, and not needed"


def classes_second(values: NDArray[Any], batch_axis: int | None, class_axis: int | None) -> NDArray[Any]:
    """A view [samples, classes, ...] of a score's values, as a record says how it is counted."""
    if batch_axis is None:
        values, class_axis = values[None], None if class_axis is None else class_axis + 1
    else:
        values = np.moveaxis(values, batch_axis, 0)
        class_axis = class_axis if class_axis is None or class_axis > batch_axis else class_axis + 1
    return np.expand_dims(values, 1) if class_axis is None else np.moveaxis(values, class_axis, 1)


def samples_first(values: NDArray[Any], batch_axis: int | None) -> NDArray[Any]:
    """A view [samples, ...] of a score's values."""
    return values[None] if batch_axis is None else np.moveaxis(values, batch_axis, 0)


def counting(
    name: str, shape: Sequence[Any], holds: Sequence[Axis], asked: int | None, batches: Sequence[Any]
) -> Counting:
    """Which axes of a tensor hold samples and classes, from what each of them `holds`.

    `asked` is the user's --class-axis; `batches` are the sizes of the inputs' first axes. Raises UsageError where the
    user asks for an axis that can't be it.
    """
    batch = _batch_axis(shape, holds, batches)
    if asked is not None:
        return _as_asked(name, shape, batch, holds, asked)
    behind = [a for a in range(len(shape)) if a != batch]
    axis, why = _found(shape, holds, behind)
    made = Counting(name, shape, batch, axis, why + _samples_in_words(shape, batch, holds))
    if batch == 0 and roles(holds[0]) - {BATCH, SINGLE} and (roles(holds[0]) != {UNKNOWN} or shape[0] not in batches):
        made = made._replace(mixed=_mixed(name, shape, holds[0], behind))
    if axis is None and not why:
        return made._replace(question=_question(name, shape, holds, batch, behind))
    return made


def _batch_axis(shape: Sequence[Any], holds: Sequence[Axis], batches: Sequence[Any]) -> int | None:
    """The axis that the inputs' samples lead to; else the first, unless it holds something else."""
    found = [a for a, axis in enumerate(holds) if BATCH in roles(axis)]
    if len(found) == 1 or 0 in found:
        return found[0]
    if not shape or roles(holds[0]) <= {CHANNELS, CLASSES} or found:
        return None
    if shape[0] == 1:
        return 0
    fixed = {b for b in batches if isinstance(b, int)}
    other = isinstance(shape[0], int) and fixed and shape[0] not in fixed
    return 0 if roles(holds[0]) == {UNKNOWN} and not other else None


def _as_asked(name: str, shape: Sequence[Any], batch: int | None, holds: Sequence[Axis], asked: int) -> Counting:
    rank = len(shape)
    axis = asked % rank if -rank <= asked < rank else None
    if axis == batch == 0 and rank == 1 and BATCH not in roles(holds[0]):
        batch = None
    if axis is None or axis == batch:
        choices = [a for a in range(rank) if a != batch]
        said = "it has no axis" if not rank else f"axis {batch} is the batch" if batch is not None else f"rank {rank}"
        allowed = f"so choose {_listed(choices)}" if choices else "so leave --class-axis out"
        raise UsageError(f"--class-axis {asked}: the score {name!r} has shape {words(shape)}; {said}, {allowed}.")
    return Counting(name, shape, batch, axis, f"--class-axis says so{_samples_in_words(shape, batch, holds)}")


def _listed(axes: Sequence[int]) -> str:
    """`1`, `0 or 2`, `1 to 3`"""
    if len(axes) > 2 and list(axes) == list(range(axes[0], axes[-1] + 1)):
        return f"{axes[0]} to {axes[-1]}"
    return " or ".join(map(str, axes))


def _found(shape: Sequence[Any], holds: Sequence[Axis], behind: Sequence[int]) -> tuple[int | None, str]:
    """The class axis and the reason; (None, "") where nothing tells."""
    if not behind:
        return None, "one value for each sample" if shape else "it is one number"
    classes = [a for a in behind if CLASSES in roles(holds[a])]
    if len(classes) == 1 and roles(holds[classes[0]]) <= {CLASSES, BESIDE}:
        return classes[0], "the final Softmax runs along it"
    if not classes:
        channels = [a for a in behind if roles(holds[a]) == {CHANNELS}]
        channels = [a for a in channels if shape[a] != 1] or channels
        newest = max((p.made for a in channels for p in holds[a]), default=0)
        last = [a for a in channels if max(p.made for p in holds[a]) == newest]
        maker = max((p for a in last for p in holds[a]), key=lambda p: p.made).by if last else ""
        # A convolution has its channels on this very axis; a product may have positions there, beside older channels.
        if len(last) == 1 and (len(channels) == 1 or maker.startswith(CONVOLUTIONS)):
            return last[0], f"{maker} makes the values along it"
        if last:
            return None, ""
    if len(behind) == 1:
        return behind[0], "it is the only axis behind the batch" if len(shape) > 1 else "it is the only axis"
    long = [a for a in behind if shape[a] != 1]
    if all(roles(holds[a]) <= {POSITIONS, SINGLE} for a in behind):
        return None, "its axes hold positions alone, so each sample has one class, number 0"
    if len(long) == 1:
        return long[0], "it is the only axis behind the batch with more than one value"
    return None, "" if long else "each sample has one value"


def _samples_in_words(shape: Sequence[Any], batch: int | None, holds: Sequence[Axis]) -> str:
    """What must be said of the samples, where these are not simply the first axis."""
    if batch is None:
        return "; it is of one sample, and has no axis of samples" if shape else ""
    if batch:
        return f"; the samples are on axis {batch}"
    mixed = roles(holds[0]) - {BATCH, UNKNOWN, SINGLE} if holds and BATCH in roles(holds[0]) else set()
    return "; axis 0 holds the samples and other things, and each row is explained for itself" if mixed else ""


def _mixed(name: str, shape: Sequence[Any], first: Axis, behind: Sequence[int]) -> str:
    rows = f", or --class-axis {behind[-1]} to explain each row of axis 0 for itself" if behind else ""
    score = f"the score {name!r} {words(shape)}"
    found = f"{score} has several rows for each sample on axis 0, so that none has the highest class of a sample"
    if roles(first) == {UNKNOWN}:
        found = f"it can't be told whether {score} has one row for each sample on axis 0, or several"
    return (
        f"{found}. Name a class (--target INDEX), or use --score NAME with the tensor before the samples were put "
        f"together with other things ('gbprewrite layers MODEL --all' lists it){rows}."
    )


def _question(name: str, shape: Sequence[Any], holds: Sequence[Axis], batch: int | None, behind: Sequence[int]) -> str:
    long = [a for a in behind if shape[a] != 1]
    rows = [f"axis {a} ({_size(shape[a])} values, {_in_words(holds[a])})" for a in long]
    option = " or ".join(f"--class-axis {a}" for a in long)
    return (
        f"which axis of the score {name!r} {words(shape)} holds the classes can't be told: {'; '.join(rows)}. Say it: "
        f"{option}. Or explain a single value: --target strongest."
    )


def _in_words(axis: Axis) -> str:
    held = {
        BATCH: "samples",
        UNKNOWN: "of unknown meaning",
        SINGLE: "single",
        CLASSES: "a part of the Softmax's classes",
    }
    said = [held.get(p.role, f"made by {p.by}" if p.role == CHANNELS else p.role) for p in axis if p.size != (1, ())]
    return " and ".join(dict.fromkeys(said)) or "single"


def words(shape: Sequence[Any]) -> str:
    """`[N, 5, ?]`"""
    return f"[{', '.join(map(_size, shape))}]"


def _size(dim: Any) -> str:
    return "?" if dim is None or str(dim).startswith(UNNAMED) else str(dim)

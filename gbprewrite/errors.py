"""Every error that gbprewrite raises on purpose.

GbprewriteError              what, where, why, what to do; the command line exits with its `exit_status`
├── UsageError               the call itself is wrong (exit status 2)
├── ModelError               the model file, or what it holds (1)
│   ├── NoFeatureLayer       no layer of feature maps for Grad-CAM
│   └── UnsupportedOperators every obstacle on the way from the score to the input, listed at once
├── DataError                an image, an array, a label file (1)
├── OutputError              a path that can't be written (1)
└── RuntimeUnavailable       no onnxruntime, or not the provider that was asked for (1)

NotFinite is a warning: a model's own scores, or a map, hold NaN or infinity.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from gbprewrite.plaintext import plain


class GbprewriteError(Exception):
    """Base of the tree; `str(error)` is the whole message for the user."""

    exit_status = 1
    has_lines = False  # whether line ends are the message's own, and not part of a name


class UsageError(GbprewriteError):
    """The call asks for something that can't be meant: an unknown output, a target out of range."""

    exit_status = 2


class ModelError(GbprewriteError):
    """The model can't be read, is invalid, or can't be explained as asked."""


class NoFeatureLayer(ModelError):
    """Between input and score is no layer with channels and positions, which Grad-CAM needs."""


class Obstacle(NamedTuple):
    """One node that stands in the way, and why."""

    node: str
    operator: str
    why: str


class UnsupportedOperators(ModelError):
    """Nodes on the path from the score to the input have no rule; `obstacles` names each of them."""

    has_lines = True

    def __init__(self, obstacles: Sequence[Obstacle], hint: str = "") -> None:
        self.obstacles, self.hint = tuple(obstacles), hint
        lines = "\n".join(f"  {plain(o.operator)} (node {o.node!r}): {plain(o.why)}" for o in self.obstacles)
        super().__init__(
            f"{len(self.obstacles)} node(s) between the score and the input can't be differentiated:\n{lines}\n"
            "Nothing was written. Explain an earlier tensor with --score NAME, differentiate with respect to "
            "another input with --input NAME, or re-export the model without these operators ('gbprewrite ops' lists "
            f"the rules).{hint and ' '}{plain(hint)}"
        )

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Obstacle, ...], str]]:
        """Exceptions pickle by their message alone; without this, a multiprocessing.Pool would wait for ever."""
        return type(self), (self.obstacles, self.hint)


class DataError(GbprewriteError):
    """An image, array or label file that can't be used."""


class OutputError(GbprewriteError):
    """The output path exists or can't be written."""


class RuntimeUnavailable(GbprewriteError):
    """onnxruntime is missing, or the provider that was asked for does not run here."""


class NotFinite(UserWarning):
    """A score that the model itself gives, or a map, holds NaN or infinity; the message says which and why."""


def first_line(error: BaseException) -> str:
    """An exception in one line, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__

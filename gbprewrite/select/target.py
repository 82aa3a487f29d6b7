"""What the user asks to be explained, read from what is written."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gbprewrite.errors import UsageError
from gbprewrite.plaintext import cut

SPELLINGS = (
    "argmax, INDEX, INDEX,INDEX,..., topk:K, unit:C,H,W, channel:C, strongest, strongest:K, region, region:C, input, "
    "or seed"
)


WORDS = ("argmax", "strongest", "region", "input", "seed")


class Target(NamedTuple):
    """kind is argmax, index, list, topk, unit, channel, strongest, region, input or seed; numbers are the indices, K
    (also of `strongest:K`), the unit, the channel, or the class of the region."""

    kind: str
    numbers: tuple[int, ...] = ()
    text: str = ""

    @property
    def many(self) -> bool:
        """Whether the maps get an axis of classes."""
        return self.kind in ("list", "topk") or (self.kind == "strongest" and bool(self.numbers))

    @property
    def one_unit(self) -> bool:
        """Whether each map explains one unit of the score, so that its index has a coordinate for each axis."""
        return self.kind in ("unit", "channel", "strongest")

    @property
    def searches(self) -> bool:
        """Whether the values of the score decide what is explained."""
        return self.kind in ("argmax", "topk", "strongest") or (self.kind == "region" and not self.numbers)

    @property
    def roles(self) -> tuple[str, ...]:
        """What the file gains besides the maps: explained_index, and the inputs `target` or `seed`."""
        if self.kind == "seed":
            return ("seed",)
        return ("explained_index", "target") if self.kind == "input" else ("explained_index",)


def parse_target(target: str | int | Sequence[int]) -> Target:
    """Read a target; raises UsageError that names the spellings."""
    text = target.strip() if isinstance(target, str) else ",".join(map(str, np.atleast_1d(target).tolist()))
    if np.ndim(target) == 1 and len(np.atleast_1d(target)) == 1:
        text += ","  # a list of one class, which keeps its axis
    if text in WORDS:
        return Target(text, (), text)
    match = re.fullmatch(r"(unit:|channel:|topk:|strongest:|region:|)(\d{1,18}(?:,\d{1,18})*)(,?)", text)
    if match:
        prefix, numbers = match[1], tuple(map(int, match[2].split(",")))
        if prefix == "unit:" and not match[3]:
            return Target("unit", numbers, text)
        if prefix in ("channel:", "region:") and len(numbers) == 1 and not match[3]:
            return Target(prefix[:-1], numbers, text)
        if prefix in ("topk:", "strongest:") and len(numbers) == 1 and numbers[0] > 0 and not match[3]:
            return Target(prefix[:-1], numbers, text)
        if not prefix:
            return Target("index" if len(numbers) == 1 and not match[3] else "list", numbers, text)
    raise UsageError(f"--target {cut(text, 80)!r} is not understood. Choose {SPELLINGS}; indices count from 0.")


def aim(
    target: str | int | Sequence[int] | None, score: str | None, layer: str | None, methods: Iterable[str]
) -> tuple[Target, str | None]:
    """What is explained, and the name of the tensor that has it: `layer` names one whose strongest unit is meant unless
    a target says otherwise. Raises UsageError where two are named, or `layer` may be meant as Grad-CAM's."""
    wanted = parse_target(target if target is not None else "argmax" if layer is None else "strongest")
    if layer is not None and score is not None:
        raise UsageError(f"--layer {layer} and --score {score} both name what is explained. Give one of them.")
    cams = [m for m in methods if m in ("gradcam", "guided_gradcam")]
    if layer is not None and cams and not (target is not None and wanted.one_unit):
        raise UsageError(
            f"--layer {layer} with --method {cams[0]} may mean two things. To take Grad-CAM there, use --cam-layer "
            f"{layer}; to explain a unit of it, add --channel C, --unit C,H,W or --target strongest."
        )
    return wanted, layer if score is None else score

"""Tables of lowerings: the ways in which one adjoint can be written, best first.

    UNPOOL = Lowerings("unpool", comparison, open_comparison, switches)
    dx = UNPOOL(op, dy, x, y, window, attributes)

A lowering is a function of the builder and of what the adjoint is made of. It gives None, and builds nothing, where it
does not apply; its docstring says so under "Where:", and under "Why:" what was measured that makes it worth its place,
or which fault of a runtime it goes round. The last of a table is the portable one: it applies always, to plain
operators that every runtime has.

A target of `--optimize-for` is a set of names of lowerings (see `targets`), and tests/test_lowering.py holds each
lowering of each table to the portable one.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

TABLES: dict[str, "Lowerings[Any]"] = {}


class Lowerings(Generic[Result]):
    """The lowerings of one adjoint; a call gives the first that the builder may take and that applies."""

    def __init__(self, adjoint: str, *lowerings: Callable[..., Result | None]) -> None:
        """Register a table under the name of its adjoint. Names of lowerings are unique among all tables."""
        *preferred, self.portable = lowerings
        self.preferred = tuple(preferred)
        held = {name for table in TABLES.values() for name in table.names} | TABLES.keys()
        assert held.isdisjoint([adjoint, *self.names]), f"{adjoint}: a name that is held already"
        TABLES[adjoint] = self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the lowerings, best first, the portable one last."""
        return tuple(lowering.__name__ for lowering in (*self.preferred, self.portable))

    def __call__(self, op: Any, *operands: Any) -> Result:
        """What the first lowering gives that is among `op.lowerings` and applies, or else the portable one."""
        for lowering in self.preferred:
            if lowering.__name__ in op.lowerings:
                made = lowering(op, *operands)
                if made is not None:
                    return made
        made = self.portable(op, *operands)
        assert made is not None, f"{self.portable.__name__} has to apply always"
        return made

"""What the axes of a tensor hold, in parts, and how a Reshape deals these parts out anew.

A `Part` is a run of values along an axis: the samples, the channels that one node made, positions. An axis that a
Reshape has put together has several, outermost first; one that it has split off has a piece of one.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Size = tuple[int, tuple[str, ...]]  # a number times named sizes: 4·n·h is (4, ("h", "n"))
ONE: Size = (1, ())
BATCH, CHANNELS, POSITIONS, SINGLE, UNKNOWN = "batch", "channels", "positions", "single", "unknown"
CLASSES, BESIDE = "classes", "beside"


class Part(NamedTuple):
    """`role` is what it holds: samples (BATCH), the CHANNELS that the node `by` made (number `made` of the graph), the
    CLASSES of a Softmax, what that runs along BESIDE them, POSITIONS, a SINGLE value of no meaning, or UNKNOWN. `size`
    is None where nothing tells."""

    role: str
    size: Size | None
    made: int = 0
    by: str = ""


Axis = tuple[Part, ...]


def size_of(dim: Any) -> Size | None:
    """The size of a dimension as graphsurgeon keeps it."""
    if isinstance(dim, str):
        return 1, (dim,)
    return None if dim is None or int(dim) < 1 else (int(dim), ())


def product(sizes: Iterable[Size | None]) -> Size | None:
    """None where a factor is not known."""
    number = 1
    names: list[str] = []
    for size in sizes:
        if size is None:
            return None
        number *= size[0]
        names += size[1]
    return number, tuple(sorted(names))


def quotient(a: Size, b: Size) -> Size | None:
    """a / b, None where that is no size."""
    left = list(a[1])
    for name in b[1]:
        if name not in left:
            return None
        left.remove(name)
    return None if a[0] % b[0] else (a[0] // b[0], tuple(left))


def roles(axis: Axis) -> set[str]:
    """What an axis holds, without single values unless it holds nothing else."""
    return {p.role for p in axis if p.size != ONE} or {p.role for p in axis}


def resized(axis: Axis, dim: Any) -> Axis:
    """An axis whose size an operator may have changed."""
    size = size_of(dim)
    if size is not None and product(p.size for p in axis) == size:
        return axis
    (role, *others) = roles(axis)
    newest = max(axis, key=lambda p: p.made)
    if others:
        return (Part(UNKNOWN, size),)
    return (newest._replace(role=role, size=size),)


def agreed(axes: Sequence[Axis]) -> Axis:
    """What values that are combined one by one hold together: of equal roles the newest, UNKNOWN where they differ."""
    telling = [a for a in axes if not roles(a) <= {SINGLE, UNKNOWN}] or list(axes)
    if any(roles(a) != roles(telling[0]) for a in telling):
        return (Part(UNKNOWN, product(p.size for p in telling[0])),)
    return max(telling, key=lambda a: max(p.made for p in a))


def regrouped(axes: Sequence[Axis], dims: Sequence[Any]) -> list[Axis]:
    """What the axes of a reshaped tensor of these dimensions hold."""
    parts = [p for axis in axes for p in axis]
    sizes = _solved(parts, [size_of(d) for d in dims])
    if product(p.size for p in parts) is not None and None not in sizes:
        dealt = _dealt(parts, sizes)
        if dealt is not None:
            return dealt
    return _ends(axes, sizes)


def _solved(parts: Sequence[Part], sizes: list[Size | None]) -> list[Size | None]:
    """The sizes, where one of them has a name that the parts do not know: what is left for it."""
    names = {n for p in parts if p.size for n in p.size[1]}
    new = [i for i, s in enumerate(sizes) if s is None or not names.issuperset(s[1])]
    total = product(p.size for p in parts)
    if len(new) == 1 and total is not None:
        others = product(s for i, s in enumerate(sizes) if i != new[0])
        sizes[new[0]] = None if others is None else quotient(total, others)
    return sizes


def _dealt(parts: Sequence[Part], sizes: Sequence[Size | None]) -> list[Axis] | None:
    """The parts in order, each axis taking as many as it has room for; None where one would have to be cut unevenly."""
    left = deque(parts)
    found: list[Axis] = []
    for size in sizes:
        assert size is not None
        if size == ONE:
            found.append((left.popleft() if left and left[0].size == ONE else Part(SINGLE, ONE),))
            continue
        taken: list[Part] = []
        while size != ONE:
            while left and left[0].size == ONE:
                left.popleft()
            if not left:
                return None
            part = left.popleft()
            assert part.size is not None
            rest, over = quotient(size, part.size), quotient(part.size, size)
            if rest is not None:
                taken.append(part)
                size = rest
            elif over is not None:
                taken.append(part._replace(size=size))
                left.appendleft(part._replace(size=over))
                size = ONE
            else:
                return None
        found.append(tuple(taken))
    return found


def _ends(axes: Sequence[Axis], sizes: Sequence[Size | None]) -> list[Axis]:
    """Where the middle can't be told: the axes kept at both ends, and what lies between in the one that is left."""
    own = [product(p.size for p in axis) for axis in axes]
    shorter = min(len(own), len(sizes))
    front = 0
    while front < shorter and own[front] is not None and own[front] == sizes[front]:
        front += 1
    back = 0
    while back < shorter - front and own[-1 - back] is not None and own[-1 - back] == sizes[-1 - back]:
        back += 1
    middle = range(front, len(sizes) - back)
    left = axes[front : len(axes) - back]
    inner = tuple(p for axis in left for p in axis)
    if len(middle) > 1 and len(inner) > len(left):  # parts that were put together before may be apart again
        parted = _ends([(p,) for p in inner], [sizes[i] for i in middle])
        return [*axes[:front], *parted, *axes[len(axes) - back :]]
    made: list[Axis] = [*axes[:front]]
    for i in middle:
        made.append(inner if len(middle) == 1 and inner else (Part(UNKNOWN, sizes[i]),))
    return [*made, *axes[len(axes) - back :]]

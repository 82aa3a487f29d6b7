"""Functions of one number in pieces: what masks, comparisons, Min, Max and arithmetic make of x, element by element.

Two spellings of one function come to the same pieces, so that nobody has to list the spellings: x · (x > 0),
x - min(x, 0) and (x + |x|) / 2 all are 0 below 0, and x above.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

ONE: Hashable = "1"
EXP: Hashable = "exp(x)"
MOST_BREAKS, MOST_SYMBOLS, HIGHEST_POWER = 8, 3, 2
Polynomial: TypeAlias = tuple[float, ...]  # the constant first, no zeros at the end
REMEMBERED = 4096  # results: a network repeats the same few functions in each of its layers


class Part(dict[Hashable, Polynomial]):
    """Σ symbol · polynomial; of the symbols EXP alone depends on x. Never changed, so that it can be looked up."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


Split: TypeAlias = Callable[[Sequence[Part]], Part]


class Unknown(Exception):
    """The function has no such pieces, or too many."""


@dataclass(frozen=True)
class Pieces:
    """What a function is below the first break, at it, between it and the second, at the second, and so on."""

    parts: tuple[Part, ...]
    breaks: tuple[float, ...] = ()

    def number(self) -> float | None:
        """The value of a constant function, None for any other."""
        return None if self.breaks else number_of(self.parts[0])

    def is_continuous(self) -> bool:
        """Whether the parts on both sides of each break meet in its value."""
        for i, x in enumerate(self.breaks):
            below, at, above = self.parts[2 * i : 2 * i + 3]
            if not _at_break(below, x) == at == _at_break(above, x):
                return False
        return True


def number_of(part: Part) -> float | None:
    """The value of a part that is one number, else None."""
    polynomial = part.get(ONE, ())
    return None if set(part) - {ONE} or len(polynomial) > 1 else (*polynomial, 0.0)[0]


@lru_cache(REMEMBERED)
def constant(value: float) -> Pieces:
    """The same number everywhere."""
    return Pieces((_part({ONE: (value,)}),))


def symbol(name: Hashable) -> Pieces:
    """A value that is not known, the same for all x."""
    return Pieces((Part({name: (1.0,)}),))


IDENTITY = Pieces((Part({ONE: (0.0, 1.0)}),))


def _part(terms: Mapping[Hashable, Iterable[float]]) -> Part:
    """Without zeros, which an empty part stands for. Raises Unknown where it grows too large, or is no number."""
    made = Part()
    for name, terms_of_one in terms.items():
        polynomial = list(terms_of_one)
        while polynomial and polynomial[-1] == 0:
            polynomial.pop()
        if any(math.isnan(c) for c in polynomial) or len(polynomial) > HIGHEST_POWER + 1:
            raise Unknown
        if polynomial:
            made[name] = tuple(polynomial)
    if len(made) > MOST_SYMBOLS:
        raise Unknown
    return made


def _at(polynomial: Polynomial, x: float) -> float:
    value = 0.0
    for c in reversed(polynomial):
        value = value * x + c
    return value


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _at_break(part: Part, x: float) -> Part:
    terms: dict[Hashable, Polynomial] = {name: (_at(p, x),) for name, p in part.items() if name != EXP}
    if EXP in part:
        terms[ONE] = (terms.get(ONE, (0.0,))[0] + _at(part[EXP], x) * _exp(x),)
    return _part(terms)


def _refined(f: Pieces, breaks: Iterable[float]) -> Pieces:
    """The same function, cut at further breaks."""
    wanted = sorted({*f.breaks, *breaks})
    if len(wanted) > MOST_BREAKS:
        raise Unknown
    parts: list[Part] = [f.parts[0]]
    there = 0
    for x in wanted:
        if there < len(f.breaks) and f.breaks[there] == x:
            parts += f.parts[2 * there + 1 : 2 * there + 3]
            there += 1
        else:
            parts += [_at_break(parts[-1], x), parts[-1]]
    return Pieces(tuple(parts), tuple(wanted))


def _simplified(parts: Sequence[Part], breaks: Sequence[float]) -> Pieces:
    """Without breaks at which nothing changes."""
    kept, left = [parts[0]], []
    for i, x in enumerate(breaks):
        at, after = parts[2 * i + 1 : 2 * i + 3]
        if after != kept[-1] or at != _at_break(after, x):
            kept += [at, after]
            left.append(x)
    return Pieces(tuple(kept), tuple(left))


def combined(split: Split, *functions: Pieces) -> Pieces:
    """The function whose parts `split` makes of theirs. Raises Unknown."""
    if not any(f.breaks for f in functions):
        return Pieces((split([f.parts[0] for f in functions]),))
    breaks = {x for f in functions for x in f.breaks}
    cut = [_refined(f, breaks) for f in functions]
    parts = [split(own) for own in zip(*(f.parts for f in cut), strict=True)]
    return _simplified(parts, sorted(breaks))


@lru_cache(REMEMBERED)
def added(f: Pieces, g: Pieces) -> Pieces:
    """f + g"""

    def split(parts: Sequence[Part]) -> Part:
        a, b = parts
        return _part({name: _sum(a.get(name, ()), b.get(name, ())) for name in {**a, **b}})

    return combined(split, f, g)


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    width = max(len(a), len(b))
    return tuple((a[i] if i < len(a) else 0.0) + (b[i] if i < len(b) else 0.0) for i in range(width))


@lru_cache(REMEMBERED)
def multiplied(f: Pieces, g: Pieces) -> Pieces:
    """f · g, of which one has no symbols in each of its parts."""

    def split(parts: Sequence[Part]) -> Part:
        a, b = parts if not set(parts[1]) - {ONE} else parts[::-1]
        if set(b) - {ONE}:
            raise Unknown
        return _part({name: _product(p, b.get(ONE, ())) for name, p in a.items()})

    return combined(split, f, g)


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    made = [0.0] * max(len(a) + len(b) - 1, 0)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            made[i + j] += p * q
    return tuple(made) if a and b else ()


@lru_cache(REMEMBERED)
def negated(f: Pieces) -> Pieces:
    """-f"""
    return multiplied(f, constant(-1.0))


@lru_cache(REMEMBERED)
def signs(f: Pieces) -> Pieces:
    """-1, 0 or 1 as f is below, at or above zero, where f has no symbols but exp(x)."""
    roots = [x for i, part in enumerate(f.parts) if i % 2 == 0 for x in _roots(part)]
    cut = _refined(f, roots)
    parts = []
    for i, part in enumerate(cut.parts):
        value = _value(part, _inside(cut.breaks, i))
        parts.append(_part({ONE: ((value > 0) - (value < 0),)}))
    return _simplified(parts, cut.breaks)


def _value(part: Part, x: float) -> float:
    if set(part) - {ONE, EXP}:
        raise Unknown
    return _at(part.get(ONE, ()), x) + (_at(part[EXP], x) * _exp(x) if EXP in part else 0.0)


def _roots(part: Part) -> list[float]:
    if set(part) - {ONE, EXP} or (EXP in part and max(map(len, part.values())) > 1):
        raise Unknown
    if EXP in part:  # a exp(x) + c, with one root where the signs differ
        share = -(*part.get(ONE, ()), 0.0)[0] / part[EXP][0]
        return [math.log(share)] if 0 < share < math.inf else []
    c, b, a = (*part.get(ONE, ()), 0.0, 0.0, 0.0)[:3]
    if a == 0:
        found = [-c / b] if b else []
    else:
        square = b * b - 4 * a * c
        found = [(-b + side * math.sqrt(square)) / (2 * a) for side in (-1, 1)] if square >= 0 else []
    return [x for x in found if math.isfinite(x)]


def _inside(breaks: Sequence[float], i: int) -> float:
    """A number of the i-th part."""
    if i % 2:
        return breaks[i // 2]
    low, high = (breaks[k] if 0 <= k < len(breaks) else None for k in (i // 2 - 1, i // 2))
    if low is None or high is None:
        end = high if low is None else low
        return 0.0 if end is None else end + (1.0 + abs(end)) * (-1 if low is None else 1)
    return low + (high - low) / 2


@lru_cache(REMEMBERED)
def tested(f: Pieces, holds: Callable[[float], bool]) -> Pieces:
    """1 where the sign of f passes a test, else 0."""
    return combined(lambda parts: _part({ONE: (float(holds(_known(parts[0]))),)}), signs(f))


def _known(part: Part) -> float:
    value = number_of(part)
    if value is None:
        raise Unknown
    return value


def is_positive(sign: float) -> bool:
    """The test of x > 0."""
    return sign > 0


@lru_cache(REMEMBERED)
def chosen(condition: Pieces, f: Pieces, g: Pieces) -> Pieces:
    """f where the condition is not 0, else g."""
    return combined(lambda parts: parts[1] if _known(parts[0]) else parts[2], condition, f, g)


@lru_cache(REMEMBERED)
def largest(f: Pieces, g: Pieces) -> Pieces:
    """max(f, g)"""
    return chosen(tested(added(f, negated(g)), is_positive), f, g)


@lru_cache(REMEMBERED)
def smallest(f: Pieces, g: Pieces) -> Pieces:
    """min(f, g)"""
    return negated(largest(negated(f), negated(g)))


@lru_cache(REMEMBERED)
def magnitude(f: Pieces) -> Pieces:
    """|f|"""
    return multiplied(f, signs(f))


@lru_cache(REMEMBERED)
def root(f: Pieces) -> Pieces:
    """√f, of squares of c · x and of constants."""

    def split(parts: Sequence[Part]) -> Part:
        c, b, a = (*parts[0].get(ONE, ()), 0.0, 0.0, 0.0)[:3]
        if set(parts[0]) - {ONE} or b or (a and c) or min(a, c) < 0:
            raise Unknown
        return _part({ONE: (math.sqrt(c), math.sqrt(a))})

    return magnitude(combined(split, f))


@lru_cache(REMEMBERED)
def rounded(f: Pieces, to: Callable[[float], float]) -> Pieces:
    """A function of constants: ceil, floor, round, and what a Cast to integers does."""
    return combined(lambda parts: _part({ONE: (float(to(_known(parts[0]))),)}), f)


@lru_cache(REMEMBERED)
def exponential(f: Pieces) -> Pieces:
    """exp f, where f is x or a constant."""

    def split(parts: Sequence[Part]) -> Part:
        if parts[0] == IDENTITY.parts[0]:
            return Part({EXP: (1.0,)})
        return _part({ONE: (_exp(_known(parts[0])),)})

    return combined(split, f)

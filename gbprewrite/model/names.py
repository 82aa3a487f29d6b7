"""Names in messages: which come close to one that does not exist, and lists that stay readable.

Models hold up to some hundred thousand names, of up to thousands of letters. What is done with them here takes a
fraction of a second whatever they are.
"""

import difflib
from collections.abc import Iterable, Sequence

CUTOFF = 0.6  # difflib's: the share of letters in common from which on a name counts as close
LONGEST = 200  # letters: nobody mistypes a longer name, and comparing two takes time with the square
COMPARED = 2000  # names, those of the nearest lengths
RANKED = 100  # of them, by the letters in common, whatever their order
SHOWN = 10  # names of a list
LETTERS = 100  # of a name in a list


def similar(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of the known names that are spelt alike, the nearest first; else three that hold the name."""
    short = [k for k in dict.fromkeys(known) if len(k) <= LONGEST]
    if not name or len(name) > LONGEST:
        return []
    by_length = sorted(short, key=lambda k: abs(len(k) - len(name)))[:COMPARED]
    matcher = difflib.SequenceMatcher(b=name)

    def quick(candidate: str) -> float:
        matcher.set_seq1(candidate)
        return min(matcher.real_quick_ratio(), matcher.quick_ratio())

    likely = sorted(((quick(k), k) for k in by_length), reverse=True)[:RANKED]
    found = difflib.get_close_matches(name, [k for ratio, k in likely if ratio >= CUTOFF], cutoff=CUTOFF)
    return found or [k for k in short if name.lower() in k.lower()][:3]


def shortlist(names: Iterable[str], nothing: str = "none") -> str:
    """Names in a row, the first of many, each cut where it is long."""
    every: Sequence[str] = list(names)
    shown = ", ".join(n if len(n) <= LETTERS else f"{n[:LETTERS]}..." for n in every[:SHOWN])
    return f"{shown} and {len(every) - SHOWN:,} more" if len(every) > SHOWN else shown or nothing

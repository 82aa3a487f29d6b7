"""How far a long run is, on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

MANY = 4  # items from which on a run counts as long


def bar(count: int, told: bool = True) -> Progress:
    """A progress bar on standard error for `count` items, or one that shows nothing: for few, or no terminal.

    What is printed meanwhile (by print: click.echo writes past it) goes above the bar, and stays in a pipe where there
    is one.
    """
    return Progress(
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not (told and count >= MANY and sys.stderr.isatty()),
    )


@contextmanager
def share(told: bool = True) -> Iterator[Callable[[str, float], None]]:
    """A progress bar of one long piece of work, as a function of what is done now and the share that is behind."""
    with bar(MANY, told) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda what, done: shown.update(task, description=what, completed=done)

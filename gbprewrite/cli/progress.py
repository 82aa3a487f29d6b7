"""How far a long run is, on a terminal."""

import sys

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

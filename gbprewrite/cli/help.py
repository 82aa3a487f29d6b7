"""Print a page of the documentation, which ships with the package."""

import sys
from importlib.resources import files

import click

from gbprewrite.cli import printing
from gbprewrite.errors import UsageError

PAGES = files("gbprewrite") / "docs"


def topics() -> list[str]:
    """The names of the pages."""
    return sorted(page.name.removesuffix(".md") for page in PAGES.iterdir() if page.name.endswith(".md"))


@click.command(name="help")
@click.argument("topic", required=False)
def help_(topic: str | None) -> None:
    """Print the page TOPIC of the documentation; without TOPIC, list the pages."""
    if topic is None:
        width = max(map(len, topics()))
        printing.say(*(f"{name:{width}}  {_text(name).split(chr(10), 1)[0].lstrip('# ')}" for name in topics()))
        return
    if topic not in topics():
        raise UsageError(f"there is no page {topic!r}. Choose from {', '.join(topics())}.")
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        with console.capture() as capture:
            console.print(Markdown(_text(topic)))
        printing.show(capture.get().rstrip("\n"))
    else:
        printing.say(*_text(topic).rstrip("\n").split("\n"))


def _text(topic: str) -> str:
    return (PAGES / f"{topic}.md").read_text(encoding="utf-8")

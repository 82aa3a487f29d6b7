"""Show what a model is, and the rules that it meets."""

from pathlib import Path

import click

import gbprewrite
from gbprewrite import console
from gbprewrite.cli.options import FILE, json_option, print_json


@click.command()
@click.argument("model", type=FILE)
@json_option
def inspect(model: Path, as_json: bool) -> None:
    """Show what MODEL is and which rule each nonlinearity meets; of a converted file, what was done to it."""
    found = gbprewrite.inspect(model)
    if as_json:
        print_json(found.to_json())
    else:
        console.print_inspection(model, found)

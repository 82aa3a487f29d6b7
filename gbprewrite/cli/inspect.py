"""Show what a model is, and the rules that it meets."""

from pathlib import Path

import click

import gbprewrite
from gbprewrite.cli import console
from gbprewrite.cli.options import FILE, INPUT_SHAPE, json_option, print_json
from gbprewrite.model.input_shapes import Shapes


@click.command()
@click.argument("model", type=FILE)
@INPUT_SHAPE
@json_option
def inspect(model: Path, input_shapes: Shapes | None, as_json: bool) -> None:
    """Show what MODEL is and which rule each nonlinearity meets; of a converted file, what was done to it."""
    found = gbprewrite.inspect(model, input_shapes=input_shapes)
    if as_json:
        print_json(found.to_json())
    else:
        console.print_inspection(model, found)

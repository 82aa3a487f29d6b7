"""List the layers of a model."""

from pathlib import Path

import click

import gbprewrite
from gbprewrite.cli import console
from gbprewrite.cli.options import FILE, INPUT_SHAPE, json_option, print_json
from gbprewrite.model.input_shapes import Shapes


@click.command()
@click.argument("model", type=FILE)
@click.option(
    "--score", metavar="NAME", help="The output, or inner tensor, that the layers lead to. Default: every output."
)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Every tensor, also those that only a normalisation or an activation reads. Default: one for each stage.",
)
@INPUT_SHAPE
@json_option
def layers(model: Path, score: str | None, every: bool, input_shapes: Shapes | None, as_json: bool) -> None:
    """List what --layer can name in MODEL: the tensors between input and score, in order, with their shapes."""
    found = gbprewrite.layers(model, score, every=every, input_shapes=input_shapes)
    if as_json:
        print_json({"layers": [layer._asdict() for layer in found]})
    else:
        console.print_layers(found)

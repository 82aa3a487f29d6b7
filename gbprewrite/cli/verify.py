"""Check a converted model on this machine."""

from pathlib import Path

import click

import gbprewrite
from gbprewrite.cli import console, progress
from gbprewrite.cli.options import FILE, json_option, print_json, provider_option
from gbprewrite.runtime import arrayfiles
from gbprewrite.runtime.explainer import load_converted, slots_of


@click.command()
@click.argument("converted", type=FILE)
@click.option("--source", type=FILE, metavar="MODEL", help="The model that CONVERTED was made from, for comparison.")
@click.option(
    "--input",
    "specs",
    metavar="NAME=FILE",
    multiple=True,
    help="Check it on this input, as for 'gbprewrite run'. Default: random numbers.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out the gradient and the maps, which take dozens of passes in float64. The verdict then names them, "
    "and is not 'ok'.",
)
@provider_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    converted: Path,
    source: Path | None,
    specs: tuple[str, ...],
    quick: bool,
    provider: str,
    as_json: bool,
) -> None:
    """Check on this machine that a CONVERTED model keeps its outputs and that every map is right.

    Exit status 1 when a check fails.
    """
    model, _ = load_converted(converted)
    inputs = arrayfiles.read_inputs(specs, slots_of(model))
    with progress.share(not as_json) as told:
        found = gbprewrite.verify(model, source, inputs=inputs, providers=provider, quick=quick, progress=told)
    if as_json:
        print_json(found.to_json())
    else:
        console.print_verification(converted, found)
    ctx.exit(1 if found.failed else 0)

"""Methods beside each other."""

from typing import Any

import click

from gbprewrite.cli import console
from gbprewrite.cli.options import given
from gbprewrite.cli.photographs import Said, photograph_options, work


@click.command()
@photograph_options
@click.option(
    "--no-switches",
    is_flag=True,
    help="Below gradient, deconvnet and guided the same without the switches of max pools, which hand their signal "
    "down evenly then (Springenberg et al. 2014).",
)
@click.pass_context
def compare(ctx: click.Context, /, said: Said, no_switches: bool, **options: Any) -> None:
    """Compare methods on MODEL: write IMAGE.compare.png, the photo beside a column for each method.

    From one file, in one run: gradient, deconvnet, guided, Grad-CAM and Guided Grad-CAM, or each --method. An IMAGE is
    a file, a folder, or a quoted pattern, as for explain. How alike the maps are is printed at the end.
    """
    from gbprewrite.pictures.comparison import Comparison  # brings matplotlib

    comparison = Comparison(said.model, no_switches=no_switches, **given(options))
    status = work(said, comparison)
    if not (said.as_json or said.quiet):
        console.print_likeness(comparison.methods, comparison.facts()["likeness"])
    ctx.exit(status)

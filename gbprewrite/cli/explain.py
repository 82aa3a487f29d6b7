"""Pictures of where a model looked."""

from pathlib import Path
from typing import Any

import click

from gbprewrite.cli.options import (
    FILE,
    TARGETS,
    conversion_options,
    force_option,
    given,
    json_option,
    preprocessing_options,
    print_json,
    provider_option,
    quiet_option,
)
from gbprewrite.runtime import images
from gbprewrite.runtime import labels as class_labels


@click.command()
@click.argument("model", type=FILE)
@click.argument("photos", metavar="IMAGE...", type=FILE, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=FILE, metavar="DIR", help="The folder for the pictures. Default: beside each image."
)
@preprocessing_options
@click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="Names of the classes: a JSON list, a JSON dictionary from index to label, or one label a line.",
)
@conversion_options(TARGETS)
@provider_option
@force_option
@json_option
@quiet_option
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    model: Path,
    photos: tuple[Path, ...],
    output: Path | None,
    preprocessing: images.Options,
    labels: Path | None,
    provider: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show where MODEL looked: write IMAGE.guided.png, the photo beside its maps, and list the top classes.

    MODEL is converted in memory unless it is a converted one. An image that can't be used is reported, the others go
    on, and the exit status is 1.
    """
    from gbprewrite.runtime import explain as explanations  # brings matplotlib, which the other commands can do without

    names = class_labels.read(labels) if labels else None
    explainer = explanations.PhotoExplainer(
        model, preprocessing=preprocessing, labels=names, providers=provider, **given(options)
    )
    places = explanations.picture_paths(photos, explainer.methods, output, force)
    if not (as_json or quiet):
        click.echo(explanations.setting_text(explainer))
    outcomes = []
    for outcome in explanations.pictures(explainer, photos, places):
        outcomes.append(outcome)
        if outcome.error or not (as_json or quiet):
            click.echo(outcome.text(), err=bool(outcome.error))
    if as_json:
        facts = {**explanations.setting(explainer), "images": [outcome.to_json() for outcome in outcomes]}
        print_json(facts)
    ctx.exit(max(outcome.exit_status for outcome in outcomes))

"""The parameter randomisation test."""

from pathlib import Path
from typing import Any

import click

from gbprewrite.checks.sanity import METHODS as COMPARED
from gbprewrite.cli import console, progress
from gbprewrite.cli.options import (
    CONVERSION,
    FILE,
    NEW_FILE,
    Command,
    MethodType,
    force_option,
    given,
    json_option,
    output_option,
    preprocessing_options,
    print_json,
    provider_option,
    quiet_option,
)
from gbprewrite.methods.table import METHODS
from gbprewrite.photos import labels as class_labels
from gbprewrite.photos.preprocessing import Options


def _conversion_options(command: Command) -> Command:
    """The options of gbprewrite.convert without --target: the class that the trained network sees stays explained."""
    for option in reversed(CONVERSION):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=FILE)
@click.argument("photos", metavar="IMAGE...", nargs=-1, required=True)
@output_option("MODEL's name with .sanity.png in place of .onnx, beside it")
@click.option(
    "--csv", "table", type=NEW_FILE, metavar="PATH", help="Also write every number: one row for each comparison."
)
@click.option(
    "--method",
    multiple=True,
    default=COMPARED,
    type=MethodType(list(METHODS)),
    help=f"A kind of map to test; repeatable. Default: {', '.join(COMPARED)}.",
)
@click.option(
    "--layer",
    multiple=True,
    metavar="NAME",
    help="Compare maps only where this layer is reached; repeatable. Default: at every weighted layer.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed for the random weights.")
@click.option("--draws", type=int, default=1, show_default=True, help="How often every network is randomised.")
@click.option(
    "--classes",
    type=int,
    default=5,
    show_default=True,
    help="How many of each image's highest classes the class sensitivity compares.",
)
@preprocessing_options
@click.option("--labels", type=FILE, metavar="FILE", help="Names of the classes, as for 'gbprewrite explain'.")
@_conversion_options
@provider_option
@force_option
@json_option
@quiet_option
def sanity(
    model: Path,
    photos: tuple[str, ...],
    output: Path | None,
    table: Path | None,
    method: tuple[str, ...],
    layer: tuple[str, ...],
    seed: int,
    draws: int,
    classes: int,
    preprocessing: Options,
    labels: Path | None,
    provider: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Test whether maps of MODEL depend on what it has learned, and on the class (Adebayo et al. 2018).

    Weights are drawn at random, from the score down (cascading) and in one layer alone (independent); the maps of the
    same class are compared with those of the trained network, and the curves drawn. An IMAGE is a file, a folder, or a
    quoted pattern. Needs the extra `sanity`: pip install 'gbprewrite[sanity]'.
    """
    # These bring matplotlib, which the other commands can do without.
    from gbprewrite.checks.sanity import outputs
    from gbprewrite.checks.sanity.randomisation import RandomisationTest
    from gbprewrite.photos import files as photofiles

    path = output or outputs.default_path(model)
    found_photos = photofiles.find(photos).images
    outputs.check(path, table, [model, *found_photos, *([labels] if labels else [])], force)
    test = RandomisationTest(
        model, found_photos, method, preprocessing=preprocessing,
        labels=class_labels.read(labels) if labels else None, layer=layer, seed=seed, draws=draws, classes=classes,
        providers=provider, **given(options),
    )  # fmt: skip
    with progress.bar(len(test.steps), not (as_json or quiet)) as bar:
        steps = bar.track(test.steps, description="randomising")
        found = test.report(comparison for step in steps for comparison in test.run(step))
    outputs.write(found, path, table, force)
    facts = {"picture": str(path), "csv": str(table) if table else None, **found.to_json()}
    facts["preprocessing"] = {"text": test.preprocessing.text(), "guesses": list(test.preprocessing.guesses)}
    if as_json:
        print_json(facts)
    elif not quiet:
        console.print_sanity(facts)

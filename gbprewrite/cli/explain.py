"""Pictures of where a model looked."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gbprewrite.cli import progress
from gbprewrite.cli.drawing import drawing_options
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
from gbprewrite.preprocessing import Options
from gbprewrite.runtime import labels as class_labels


@click.command()
@click.argument("model", type=FILE)
@click.argument("photos", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=FILE, metavar="DIR", help="The folder for the pictures. Default: beside each image."
)
@click.option("--pictures/--no-pictures", default=True, help="Write a picture for each image. Default: yes.")
@click.option("--sheet", type=FILE, metavar="PATH", help="Also write one contact sheet (.png) of all images.")
@click.option("--html", type=FILE, metavar="PATH", help="Also write a report: one HTML file that holds the pictures.")
@click.option(
    "--save", type=click.Choice(["npy"]), help="npy: also write each map as it is, [classes, H, W, channels]."
)
@drawing_options
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
    photos: tuple[str, ...],
    output: Path | None,
    pictures: bool,
    sheet: Path | None,
    html: Path | None,
    save: str | None,
    drawing: dict[str, Any],
    preprocessing: Options,
    labels: Path | None,
    provider: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show where MODEL looked: write IMAGE.guided.png, the photo beside its maps, and list the top classes.

    An IMAGE is a file, a folder (the images in it), or a quoted pattern such as 'photos/*.jpg'. MODEL is converted in
    memory unless it is a converted one. An image that can't be used is reported, the others go on, and the exit status
    is 1.
    """
    # These bring matplotlib, which the other commands can do without.
    from gbprewrite.runtime import explain as explanations
    from gbprewrite.runtime import gallery, photofiles
    from gbprewrite.runtime import pictures as maps

    style = maps.style(**drawing)
    found = photofiles.find(photos)
    names = class_labels.read(labels) if labels else None
    explainer = explanations.PhotoExplainer(
        model, preprocessing=preprocessing, labels=names, providers=provider, **given(options)
    )
    wanted = gallery.Wanted(output, pictures, save == "npy", sheet, html)
    outputs = gallery.outputs(wanted, model, explainer, found.images, style, force)
    told, count = not (as_json or quiet), len(found.images)
    if told:
        click.echo(explanations.setting_text(explainer) + _left_out(found.own))
    facts, status, failed = [], 0, 0
    run = gallery.explained(explainer, found.images, outputs, style)
    with progress.bar(count, told) as bar:
        for outcome in bar.track(run, count, description="explaining"):
            status, failed = max(status, outcome.exit_status), failed + bool(outcome.error)
            if as_json:
                facts.append(outcome.to_json())
            if outcome.error or told:
                text = outcome.text() if count <= gallery.FEW else outcome.line()
                print(text, file=sys.stderr if outcome.error else sys.stdout)
    if as_json:
        print_json({**explanations.setting(explainer), "images": facts})
    if told:
        _print_summary(count, failed, gallery.shared(outputs))
    ctx.exit(status)


def _left_out(own: Sequence[Path]) -> str:
    return f"\nnote:           pictures that gbprewrite wrote are left out: {len(own)}, such as {own[0]}" if own else ""


def _print_summary(count: int, failed: int, shared: Mapping[Path, str]) -> None:
    """The files that hold all images; and how many there were, where that can't be seen at a glance."""
    lines = [f"{kind}: {path}" for path, kind in shared.items()]
    if count > 1:
        lines.append(f"{count - failed} of {count} images explained")
    if lines:
        click.echo("\n".join(["", *lines]))

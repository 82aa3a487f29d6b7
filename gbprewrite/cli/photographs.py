"""Photographs in, pictures of maps out: what `explain` and `compare` have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import click

from gbprewrite.cli import printing, progress
from gbprewrite.cli.drawing import drawing_options
from gbprewrite.cli.options import (
    FILE,
    NEW_FILE,
    TARGETS,
    Command,
    collected,
    conversion_options,
    force_option,
    json_option,
    preprocessing_options,
    print_json,
    provider_option,
    quiet_option,
)
from gbprewrite.photos import labels as class_labels
from gbprewrite.photos.preprocessing import Options

if TYPE_CHECKING:
    from gbprewrite.pictures.explain import ExplainedPhoto, PhotoExplainer

ARGUMENTS = (
    click.argument("model", type=FILE),
    click.argument("photos", metavar="IMAGE...", nargs=-1, required=True),
)
OUTPUTS = (
    click.option(
        "-o",
        "--output",
        "folder",
        type=NEW_FILE,
        metavar="DIR",
        help="The folder for the pictures. Default: beside each image.",
    ),
    click.option("--pictures/--no-pictures", default=True, help="Write a picture for each image. Default: yes."),
    click.option("--sheet", type=NEW_FILE, metavar="PATH", help="Also write one contact sheet (.png) of all images."),
    click.option(
        "--html", type=NEW_FILE, metavar="PATH", help="Also write a report: one HTML file that holds the pictures."
    ),
    click.option(
        "--save",
        "arrays",
        type=click.Choice(["npy"]),
        callback=lambda _ctx, _param, value: value is not None,
        help="npy: also write each map as it is, [classes, H, W, channels].",
    ),
)
LABELS = click.option(
    "--labels",
    type=FILE,
    metavar="FILE",
    help="Names of the classes: a JSON list, a JSON dictionary from index to label, or one label a line.",
)


class Said(NamedTuple):
    """What the options of both commands say."""

    model: Path
    photos: tuple[str, ...]
    outputs: dict[str, Any]
    drawing: dict[str, Any]
    preprocessing: Options
    labels: Path | None
    provider: str
    force: bool
    as_json: bool
    quiet: bool


def photograph_options(command: Command) -> Command:
    """All arguments and options; what concerns gbprewrite.convert arrives by keyword, the rest as `said`."""
    command = collected(command, (), "said", Said._fields, Said)
    options = (conversion_options(TARGETS), provider_option, force_option, json_option, quiet_option)
    every = (*ARGUMENTS, _outputs_options, drawing_options, preprocessing_options, LABELS, *options)
    for option in reversed(every):
        command = option(command)
    return command


def _outputs_options(command: Command) -> Command:
    """-o and the others, collected as `outputs`: arguments of gallery.Wanted."""
    return collected(command, OUTPUTS, "outputs", ("folder", "pictures", "sheet", "html", "arrays"), dict)


class Job(Protocol):
    """In which the two commands differ; everything but `open` is read when the explainer is there."""

    @property
    def ending(self) -> str | None:
        """A picture is `IMAGE.<ending>.png`; None for the methods."""

    @property
    def columns(self) -> int | None:
        """Methods beside each other; None for as many as fit."""

    def open(self, **options: Any) -> "PhotoExplainer":
        """The explainer, from keywords of `PhotoExplainer` beside those of the conversion."""

    def add(self, explained: "ExplainedPhoto") -> None:
        """Take note of an explained photograph."""

    def facts(self) -> dict[str, Any]:
        """What --json prints beside the images."""


def work(said: Said, job: Job) -> int:
    """Explain each image and write what is wanted. Returns the exit status: 1 when an image failed."""
    # These bring matplotlib, which the other commands can do without.
    from gbprewrite.photos import files as photofiles
    from gbprewrite.pictures import explain as explanations
    from gbprewrite.pictures import gallery
    from gbprewrite.pictures import panels as maps

    style = maps.style(**said.drawing)
    found = photofiles.find(said.photos)
    names = class_labels.read(said.labels) if said.labels else None
    explainer = job.open(preprocessing=said.preprocessing, labels=names, providers=said.provider)
    style = style._replace(columns=job.columns)
    read = [said.labels] if said.labels else []
    wanted = gallery.Wanted(**said.outputs, ending=job.ending)
    outputs = gallery.outputs(wanted, said.model, explainer, found.images, style, said.force, read)
    told, count = not (said.as_json or said.quiet), len(found.images)
    if told:
        printing.say(*explanations.setting_text(explainer).split("\n"), *_left_out(found.own))
    facts, status, failed = [], 0, 0
    run = gallery.explained(explainer, found.images, outputs, style)
    with progress.bar(count, told) as bar:
        for outcome in bar.track(run, count, description="explaining"):
            status, failed = max(status, outcome.exit_status), failed + bool(outcome.error)
            if outcome.explained is not None:
                job.add(outcome.explained)
                for note in outcome.explained.notes:
                    printing.warn(f"{outcome.image}: {note}")
            if said.as_json:
                facts.append(outcome.to_json())
            if outcome.error:
                printing.complain(outcome.error)
            elif told:
                printing.say(*(outcome.text() if count <= gallery.FEW else outcome.line()).split("\n"))
    if said.as_json:
        print_json({**explanations.setting(explainer), **job.facts(), "images": facts})
    if told:
        _print_summary(count, failed, gallery.shared(outputs))
    return status


def _left_out(own: Sequence[Path]) -> list[str]:
    return [f"note:           pictures that gbprewrite wrote are left out: {len(own)}, such as {own[0]}"] if own else []


def _print_summary(count: int, failed: int, shared: Mapping[Path, str]) -> None:
    """The files that hold all images; and how many there were, where that can't be seen at a glance."""
    lines = [f"{kind}: {path}" for path, kind in shared.items()]
    if count > 1:
        lines.append(f"{count - failed} of {count} images explained")
    if lines:
        printing.say("", *lines)

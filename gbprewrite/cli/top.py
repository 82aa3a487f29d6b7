"""The images that excite feature maps most."""

import re
from pathlib import Path
from typing import Any

import click

from gbprewrite.cli import console, printing, progress
from gbprewrite.cli.options import (
    CLASS_AXIS,
    FILE,
    INPUT_SHAPE,
    NEW_FILE,
    RECTIFY,
    force_option,
    given,
    json_option,
    preprocessing_options,
    print_json,
    provider_option,
    quiet_option,
)
from gbprewrite.errors import DataError, UsageError
from gbprewrite.model import file as modelfile
from gbprewrite.photos.preprocessing import Options
from gbprewrite.plaintext import cut


def _channels(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,18}(,\d{1,18})*", text):
        raise UsageError(f"--channels {cut(text, 80)!r}: not understood. Write numbers from 0 such as 0,5,17.")
    return tuple(map(int, text.split(",")))


@click.command()
@click.argument("model", type=FILE)
@click.argument("photos", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--layer", metavar="NAME", required=True, help="The tensor, or the node that makes it; see 'gbprewrite layers'."
)
@click.option(
    "--channels",
    metavar="C,C,...",
    required=True,
    callback=_channels,
    help="Its feature maps to look at, counted from 0, such as 0,5,17.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=9,
    show_default=True,
    help="How many images to show for each channel.",
)
@click.option(
    "--method",
    type=click.Choice(["deconvnet", "guided", "gradient"]),
    default="deconvnet",
    show_default=True,
    help="The kind of map.",
)
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    metavar="PATH",
    help="The sheet (.png), or the folder for it. Default: beside MODEL, with the layer's name and .top.png for .onnx.",
)
@preprocessing_options
@INPUT_SHAPE
@CLASS_AXIS
@RECTIFY
@provider_option
@force_option
@json_option
@quiet_option
@click.pass_context
def top(
    ctx: click.Context,
    /,
    model: Path,
    photos: tuple[str, ...],
    layer: str,
    channels: tuple[int, ...],
    count: int,
    method: str,
    output: Path | None,
    preprocessing: Options,
    provider: str,
    force: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Find the images that excite channels of a layer of MODEL most, and draw what in them does.

    For each channel the sheet shows the maps of its strongest unit in each of these images, and beside them the part of
    the image that the unit sees (Zeiler and Fergus 2013, figure 2). An IMAGE is a file, a folder, or a quoted pattern;
    memory does not grow with their number. One that can't be used is reported, the others go on, and the exit status
    is 1.
    """
    # These bring matplotlib, which the other commands can do without.
    from gbprewrite.photos import files as photofiles
    from gbprewrite.pictures import gallery, topsheet
    from gbprewrite.pictures.top import TopImages

    path = topsheet.place(output, model, layer)
    found = photofiles.find(photos).images
    gallery.check([path], [*modelfile.read_beside(model, [path]), *found], force)
    top = TopImages(
        model, layer, channels, method, count=count, preprocessing=preprocessing, providers=provider, **given(options)
    )
    failed: dict[Path, DataError] = {}
    gone: dict[Path, DataError] = {}
    with progress.bar(len(found), not (as_json or quiet)) as bar:
        for image, error in bar.track(top.search(found), len(found), description="searching"):
            if error:
                failed[image] = error
                printing.complain(error)
        drawn = [topsheet.draw(top, c, gone) for c in bar.track(top.channels, description="explaining")]
    topsheet.write(path, [picture for picture, _ in drawn], force)
    facts = {"sheet": str(path), **top.setting(), "images": len(found)}
    facts["failed"] = {str(image): str(error) for image, error in {**failed, **gone}.items()}
    facts["channels"] = [channel for _, channel in drawn]
    if as_json:
        print_json(facts)
    elif not quiet:
        console.print_top(facts)
    for error in gone.values():
        printing.complain(error)
    ctx.exit(1 if facts["failed"] else 0)

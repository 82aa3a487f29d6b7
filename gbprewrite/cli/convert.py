"""Write a copy of a model that also computes maps."""

from pathlib import Path
from typing import Any

import click

import gbprewrite
from gbprewrite import files
from gbprewrite.cli import console
from gbprewrite.cli.options import (
    AT_RUN_TIME,
    FILE,
    TARGETS,
    conversion_options,
    force_option,
    given,
    json_option,
    output_option,
    preprocessing_options,
    print_json,
    quiet_option,
)
from gbprewrite.graft import pictures as heatmaps
from gbprewrite.graft.restore import load
from gbprewrite.methods.asked import methods_of
from gbprewrite.methods.table import METHODS
from gbprewrite.model import file as modelfile
from gbprewrite.model.loading import check_loads
from gbprewrite.photos.preprocessing import Options


def default_path(model: Path, methods: tuple[str, ...]) -> Path:
    """`model.<methods>.onnx` beside the model; the methods of a converted file's name are replaced."""
    stem = model.name.removesuffix(".onnx")
    head, _, tail = stem.rpartition(".")
    if head and set(tail.split("+")) <= METHODS.keys():
        stem = head
    return model.with_name(f"{stem}.{'+'.join(methods_of(methods or ('guided',)))}.onnx")


@click.command()
@click.argument("model", type=FILE)
@output_option("MODEL's name with .guided (or the methods, joined by +) before .onnx, beside it")
@conversion_options(TARGETS + AT_RUN_TIME)
@click.option(
    "--maps-only", is_flag=True, help="Leave out the model's own outputs, and everything that the maps don't need."
)
@click.option(
    "--as",
    "forms",
    type=click.Choice(heatmaps.FORMS),
    multiple=True,
    help="raw: the map itself, the default; heatmap: the largest channel of |map|, scaled, [N, H, W]; overlay: that in "
    "colour over the grey photograph, uint8 [N, H, W, 3]. Repeat it for several. An overlay reads the preprocessing "
    "options.",
)
@click.option(
    "--heatmap-dtype",
    type=click.Choice(heatmaps.DTYPES),
    help="uint8: 0 to 255, the default; float: 0 to 1, in the map's own type.",
)
@click.option(
    "--scaling",
    metavar="SCALING",
    help="Of heatmaps and overlays. percentile:P: this percentile of |map| is full strength, and what is stronger is "
    "clipped (default: percentile:99); minmax: from the smallest value to the largest.",
)
@click.option("--colormap", metavar="NAME", help="Matplotlib colour map for overlays. Default: inferno.")
@click.option(
    "--embed-preprocessing",
    is_flag=True,
    help="The file takes photographs as they are, uint8 [N, height, width, channels], red first, in place of its image "
    "input, and resizes and normalises them itself: as the options below say, or as the model tells.",
)
@preprocessing_options
@click.option(
    "--no-check",
    is_flag=True,
    help="Do not load the file once. Where onnxruntime is installed, a file that it does not load is an error, unless "
    "it does not load MODEL either.",
)
@force_option
@json_option
@quiet_option
def convert(
    model: Path,
    output: Path | None,
    force: bool,
    as_json: bool,
    quiet: bool,
    preprocessing: Options,
    no_check: bool,
    **options: Any,
) -> None:
    """Write a copy of MODEL that also computes maps of its inputs."""
    wanted = given(options) | ({"preprocessing": preprocessing} if preprocessing != Options() else {})
    path = output or default_path(model, options["method"])
    source = load(model, options["replace"])
    planned = modelfile.places(path, source)
    files.check_unread(planned, modelfile.read_beside(model, planned))
    for place in planned:
        files.check_writable(place, force)
    files.check_suffix(path, ".onnx")
    result = gbprewrite.convert(source, **wanted)
    del source
    said: list[str | None] = []
    modelfile.save(result, path, force, lambda part: None if no_check else said.append(check_loads(part, model)))
    facts = console.conversion_facts(model, path, result) | {"load_note": next(iter(said), None)}
    if as_json:
        print_json(facts)
    elif not quiet:
        console.print_conversion(facts)

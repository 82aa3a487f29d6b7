"""Options on how maps are drawn, for the commands that write pictures."""

import click

from gbprewrite.cli.options import Command, collected

SHOWS = ("published", "signed", "absolute", "positive")
NAMES = ("show", "percentile", "colormaps", "overlay")  # the arguments of pictures.style
DRAWING = (
    click.option(
        "--show",
        type=click.Choice(SHOWS),
        multiple=True,
        help="published (the default): as the method's paper prints it, guided and deconvnet in colour around grey, "
        "gradient as absolute; signed: the sum over the channels; absolute: the largest channel of |map|; positive: "
        "the largest channel of max(map, 0). Repeat it to see several.",
    ),
    click.option(
        "--percentile",
        type=float,
        metavar="P",
        help="Full colour is this percentile of |map|; what is stronger is clipped. Default: 99.",
    ),
    click.option(
        "--colormap",
        "colormaps",
        metavar="NAME",
        multiple=True,
        help="A colour map of matplotlib: a diverging one serves signed maps (default RdBu_r), any other the absolute "
        "and positive ones (default inferno). Repeat it to set both.",
    ),
    click.option("--overlay", is_flag=True, help="Show each map over the photo, too."),
)


def drawing_options(command: Command) -> Command:
    """--show and the other arguments of pictures.style, collected as `drawing`."""
    return collected(command, DRAWING, "drawing", NAMES, dict)

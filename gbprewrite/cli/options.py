"""Options that several commands share."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from gbprewrite.backward.lowering.targets import TARGETS as RUNTIMES
from gbprewrite.cli import printing
from gbprewrite.errors import UsageError
from gbprewrite.methods.asked import PLACE
from gbprewrite.methods.settings import BASELINES
from gbprewrite.methods.table import METHODS
from gbprewrite.model import input_shapes
from gbprewrite.photos import preprocessing

Command = TypeVar("Command", bound=Callable[..., Any])
Options = dict[str, Any]
FILE = click.Path(path_type=Path)


class NewFile(click.Path):
    """The place of a file or folder that is to be written; "-" is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "-" and param is not None:
            raise UsageError(
                f"{param.opts[0]} -: nothing is written to standard output, which has the report. Give a path (./- for "
                "a file of this name)."
            )
        return super().convert(value, param, ctx)


NEW_FILE = NewFile(path_type=Path)


def _split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(","))


TARGETS = (
    "What is explained: argmax (the default), INDEX, INDEX,INDEX,..., or topk:K. Or one unit: strongest (the default "
    "with --layer), channel:C or unit:C,H,W, see --channel and --unit. Or the K strongest units at different "
    "positions: strongest:K. Or of a segmentation a class summed over the positions that say it: region:C, or region "
    "for the class of the largest region."
)
AT_RUN_TIME = (
    " Or what is given at run time: input (an int64 input `target`), or seed (an input shaped like the score)."
)


# Parameter names are those of gbprewrite.convert, so that a command hands them on as they are.
class MethodType(click.Choice[str]):
    """A method by its name, or one of the user's own by its place, module:NAME."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name or place; modules in the working folder are found too, as by `python -m`."""
        if not isinstance(value, str) or not re.fullmatch(PLACE, value):
            return super().convert(value, param, ctx)
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # last, so that no file there stands for another module
        return value


METHOD = click.option(
    "--method",
    multiple=True,
    type=MethodType(list(METHODS)),
    help="The kind of map; repeat it for several maps from one shared forward pass. Default: guided. One of your own: "
    "MODULE:NAME (see gbprewrite.extend). smoothgrad and "
    "integrated_gradients run the network on further points, --samples and --steps of them.",
)
LAYER = (
    click.option(
        "--layer",
        metavar="NAME",
        help="Explain a unit of this inner tensor, or of the node that makes it; 'gbprewrite layers' lists them. Its "
        "strongest unit, without --channel and --unit.",
    ),
    click.option(
        "--channel", type=click.IntRange(min=0), metavar="C", help="Explain the strongest unit of this channel."
    ),
    click.option("--unit", metavar="C,H,W", help="Explain the unit at this position (one index per axis)."),
)
CLASS_AXIS = click.option(
    "--class-axis",
    type=int,
    metavar="AXIS",
    help="The axis of the classes, in the shape of the output. Default: worked out from a final Softmax or the node "
    "that makes the logits; the report says which, and why.",
)
CHANNELS = click.option(
    "--channels",
    metavar="RANGES",
    help="The channels along the class axis that argmax, topk:K, strongest and strongest:K look at: 4:84, 4:, or "
    "0,2,3:7, as Python counts. Default: all.",
)
RECTIFY = click.option(
    "--rectify",
    metavar="NAMES",
    multiple=True,
    callback=_split,
    help="Activations that guided and deconvnet treat like ReLU: all, or operators such as Gelu,Elu.",
)
INPUT_SHAPE = click.option(
    "--input-shape",
    "input_shapes",
    metavar="NAME=SIZES",
    multiple=True,
    callback=lambda _ctx, _param, values: input_shapes.parse(values) or None,
    help="The shape of an input that the model leaves out or open, such as image=1,3,224,224; repeatable. A name in "
    "place of a number (image=N,3,224,224) leaves a size open.",
)
CONVERSION = (
    INPUT_SHAPE,
    click.option(
        "--score", metavar="NAME", help="The output, or any inner tensor, that is explained. Default: the only output."
    ),
    click.option(
        "--input",
        "inputs",
        metavar="NAME",
        multiple=True,
        help="An input to differentiate, or an inner tensor of floats; repeatable. Default: every float input that the "
        "score depends on, or the first floats behind an image of integers.",
    ),
    CLASS_AXIS,
    CHANNELS,
    click.option("--opset", type=int, metavar="N", help="Opset of the result. Default: the source's, but at least 18."),
    click.option(
        "--through-softmax",
        is_flag=True,
        help="Explain the probability itself, not the score before a final Softmax, LogSoftmax or Sigmoid.",
    ),
    RECTIFY,
    click.option(
        "--optimize-for",
        type=click.Choice(list(RUNTIMES)),
        help="Runtime to optimise for: cpu (default, same as auto), cuda, or portable (basic operators only).",
    ),
    click.option(
        "--cam-layer",
        metavar="NAME",
        help="The tensor, or the node that makes it, at which Grad-CAM is taken. Default: the last feature maps before "
        "the score, those that a global pool reads.",
    ),
    click.option(
        "--rectgrad-tau",
        type=float,
        metavar="NUMBER",
        help="RectGrad's threshold of activation times cotangent. Default: 0, which is guided.",
    ),
    click.option(
        "--rectgrad-quantile",
        type=float,
        metavar="SHARE",
        help="RectGrad's threshold as a quantile over the units of each layer, such as 0.9.",
    ),
    click.option("--steps", type=int, metavar="N", help="Points that integrated gradients averages over. Default: 32."),
    click.option(
        "--baseline",
        type=click.Choice(BASELINES),
        help="Where integrated gradients begins: zeros (the default), or input: a new input <input>_baseline.",
    ),
    click.option(
        "--samples",
        type=int,
        metavar="N",
        help="Noisy copies that SmoothGrad averages over; their noise is a new input <input>_noise. Default: 16.",
    ),
    click.option("--prefix", metavar="TEXT", help="Prefix for all added names."),
    click.option(
        "--replace", is_flag=True, help="If MODEL is already converted, discard its maps and convert the source again."
    ),
)


def conversion_options(targets: str) -> Callable[[Command], Command]:
    """--method, --target and the other options of gbprewrite.convert; `targets` is the help of --target.

    --channel and --unit arrive as the target that they stand for.
    """

    def decorated(command: Command) -> Command:
        @wraps(command)
        def targeted(channel: int | None, unit: str | None, target: str | None, **others: Any) -> Any:
            return command(target=_target(target, channel, unit), **others)

        target = click.option("--target", metavar="TARGET", help=targets)
        for option in reversed((METHOD, target, *LAYER, *CONVERSION)):
            targeted = option(targeted)
        return cast(Command, targeted)

    return decorated


def _target(target: str | None, channel: int | None, unit: str | None) -> str | None:
    """The one target that was given. Raises UsageError for several."""
    said = {
        "--target": target,
        "--channel": None if channel is None else f"channel:{channel}",
        "--unit": None if unit is None else f"unit:{unit}",
    }
    found = {option: text for option, text in said.items() if text is not None}
    if len(found) > 1:
        raise UsageError(f"{' and '.join(found)} each say what is explained. Give one of them.")
    return next(iter(found.values()), None)


def given(options: Options) -> Options:
    """The options that the user gave, under the library's names; the library's defaults stand for the others.

    Raises UsageError for an empty text, such as a shell variable that is not set gives.
    """
    found = {name: value for name, value in options.items() if value is not False and value not in (None, ())}
    for name, value in found.items():
        if name != "prefix" and (value == "" or (isinstance(value, tuple) and "" in value)):
            option = "input" if name == "inputs" else name.replace("_", "-")
            raise UsageError(f"--{option} was given an empty text. Give a value, or leave the option out.")
    return found


def collected(
    command: Command, options: Sequence[Any], name: str, names: Iterable[str], make: Callable[..., Any]
) -> Command:
    """The command with these options, whose values it gets as one argument `name`: what `make` makes of `names`."""

    @wraps(command)
    def wrapped(**given: Any) -> Any:
        return command(**{name: make(**{n: given.pop(n) for n in names})}, **given)

    for option in reversed(options):
        wrapped = option(wrapped)
    return cast(Command, wrapped)


def print_json(facts: Options) -> None:
    """The one object that --json prints."""
    printing.say(*json.dumps(facts, indent=2, default=str).split("\n"))


provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Execution provider: cuda, cpu, or auto (CUDA if it loads, else CPU).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
force_option = click.option("--force", "-f", is_flag=True, help="Overwrite an existing file.")


def output_option(default: str) -> Callable[[Command], Command]:
    """-o PATH, its help naming the default."""
    return click.option("-o", "--output", type=NEW_FILE, metavar="PATH", help=f"The file to write. Default: {default}.")


def _parsed(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    return lambda _ctx, _param, value: None if value is None else read(value)


# Parameter names are the fields of preprocessing.Options.
PREPROCESSING = (
    click.option(
        "--preset",
        type=click.Choice(list(preprocessing.PRESETS)),
        help="The preprocessing of the model's training: "
        + "; ".join(f"{name} ({preset.text})" for name, preset in preprocessing.PRESETS.items())
        + ". The options below override its parts. Default: what the model tells (metadata, a normalisation as its "
        "first nodes), else a guess: unit where the model takes grey or --scale, --mean or --std is given, caffe where "
        "its producer or its first Conv suggests it, else imagenet. Both are printed.",
    ),
    click.option(
        "--scale",
        metavar="NUMBER",
        callback=_parsed(lambda text: preprocessing.number("scale", text)),
        help="The network is fed (pixel * SCALE - MEAN) / STD, a pixel being 0 to 255. Default: the preset's.",
    ),
    click.option(
        "--mean",
        metavar="NUMBERS",
        callback=_parsed(lambda text: preprocessing.numbers("mean", text)),
        help="In units of pixel * SCALE; one number, or one for each channel as fed (blue first with --bgr), such as "
        "0.485,0.456,0.406. Default: the preset's.",
    ),
    click.option(
        "--std",
        metavar="NUMBERS",
        callback=_parsed(lambda text: preprocessing.numbers("std", text)),
        help="One value, or one per channel in the order the network expects. Default: the preset's.",
    ),
    click.option("--bgr/--rgb", default=None, help="Blue or red is the first channel. Default: the preset's."),
    click.option(
        "--size",
        metavar="SIZE",
        callback=_parsed(preprocessing.size),
        help="224, or HEIGHTxWIDTH. Default: the model's, or 224 where it takes any.",
    ),
    click.option(
        "--layout",
        type=click.Choice(preprocessing.LAYOUTS),
        default="auto",
        help="Where the channels are. Default: as the model's first nodes or its input's shape show.",
    ),
    click.option(
        "--resize",
        type=click.Choice(list(preprocessing.RESIZES)),
        default="crop",
        help="; ".join(f"{name}: {text}" for name, text in preprocessing.RESIZES.items()) + ". Default: crop.",
    ),
)


def preprocessing_options(command: Command) -> Command:
    """--preset, --mean and the other options of preprocessing.Options, collected as `preprocessing`."""

    names = [field.name for field in dataclasses.fields(preprocessing.Options)]
    return collected(command, PREPROCESSING, "preprocessing", names, preprocessing.Options)

"""Options that several commands share."""

import dataclasses
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from gbprewrite.errors import UsageError
from gbprewrite.policies import METHODS
from gbprewrite.runtime import images

Command = TypeVar("Command", bound=Callable[..., Any])
Options = dict[str, Any]
FILE = click.Path(path_type=Path)


def _split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.strip() for value in values for name in value.split(","))


TARGETS = (
    "What is explained: argmax (the default), INDEX, INDEX,INDEX,..., topk:K, or unit:C,H,W (one position of a spatial "
    "score)."
)
AT_RUN_TIME = (
    " Or what is given at run time: input (an int64 input `target`), or seed (an input shaped like the score)."
)
# Parameter names are those of gbprewrite.convert, so that a command hands them on as they are.
METHOD = click.option(
    "--method",
    multiple=True,
    type=click.Choice(list(METHODS)),
    help="The kind of map; repeat it for several maps from one shared forward pass. Default: guided.",
)
CONVERSION = (
    click.option(
        "--score", metavar="NAME", help="The output, or any inner tensor, that is explained. Default: the only output."
    ),
    click.option(
        "--input",
        "inputs",
        metavar="NAME",
        multiple=True,
        help="An input to differentiate; repeatable. Default: every float input that the score depends on.",
    ),
    click.option(
        "--class-axis", type=int, metavar="AXIS", help="The axis of the classes. Default: 1, or a final Softmax's axis."
    ),
    click.option("--opset", type=int, metavar="N", help="Opset of the result. Default: the source's, but at least 18."),
    click.option(
        "--through-softmax",
        is_flag=True,
        help="Explain the probability itself, not the score before a final Softmax, LogSoftmax or Sigmoid.",
    ),
    click.option(
        "--rectify",
        metavar="NAMES",
        multiple=True,
        callback=_split,
        help="Activations that guided and deconvnet treat like ReLU: all, or operators such as Gelu,Elu.",
    ),
    click.option(
        "--optimize-for",
        type=click.Choice(["auto", "portable"]),
        help="auto (the default): the spellings that onnxruntime runs fastest; portable: the plainest ones, for other "
        "runtimes.",
    ),
    click.option("--prefix", metavar="TEXT", help="Put before every name that the file gains."),
    click.option("--replace", is_flag=True, help="Of a converted model, convert the source part again."),
)


def conversion_options(targets: str) -> Callable[[Command], Command]:
    """--method, --target and the other options of gbprewrite.convert; `targets` is the help of --target."""

    def decorated(command: Command) -> Command:
        target = click.option("--target", metavar="TARGET", help=targets)
        for option in reversed((METHOD, target, *CONVERSION)):
            command = option(command)
        return command

    return decorated


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


def print_json(facts: Options) -> None:
    """The one object that --json prints."""
    click.echo(json.dumps(facts, indent=2, default=str))


provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="Where it runs; auto takes CUDA when a session really runs on it.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
force_option = click.option("--force", "-f", is_flag=True, help="Overwrite an existing file.")


def output_option(default: str) -> Callable[[Command], Command]:
    """-o PATH, its help naming the default."""
    return click.option("-o", "--output", type=FILE, metavar="PATH", help=f"The file to write. Default: {default}.")


def _parsed(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    return lambda _ctx, _param, value: None if value is None else read(value)


# Parameter names are the fields of images.Options.
PREPROCESSING = (
    click.option(
        "--preset",
        type=click.Choice(list(images.PRESETS)),
        help="The preprocessing of the model's training: "
        + "; ".join(f"{name} ({preset.text})" for name, preset in images.PRESETS.items())
        + ". The options below override its parts. Default: a guess, which is printed: unit where the model takes grey "
        "or --scale, --mean or --std is given, else imagenet.",
    ),
    click.option(
        "--scale",
        metavar="NUMBER",
        callback=_parsed(lambda text: images.number("scale", text)),
        help="The network is fed (pixel * SCALE - MEAN) / STD, a pixel being 0 to 255. Default: the preset's.",
    ),
    click.option(
        "--mean",
        metavar="NUMBERS",
        callback=_parsed(lambda text: images.numbers("mean", text)),
        help="In units of pixel * SCALE; one number, or one for each channel as fed (blue first with --bgr), such as "
        "0.485,0.456,0.406. Default: the preset's.",
    ),
    click.option(
        "--std",
        metavar="NUMBERS",
        callback=_parsed(lambda text: images.numbers("std", text)),
        help="One number or one for each channel, as fed. Default: the preset's.",
    ),
    click.option("--bgr/--rgb", default=None, help="Blue or red is the first channel. Default: the preset's."),
    click.option(
        "--size",
        metavar="SIZE",
        callback=_parsed(images.size),
        help="224, or HEIGHTxWIDTH. Default: the model's, or 224 where it takes any.",
    ),
    click.option(
        "--layout",
        type=click.Choice(images.LAYOUTS),
        default="auto",
        help="Where the channels are. Default: where the input's shape says 1 or 3.",
    ),
    click.option(
        "--resize",
        type=click.Choice(list(images.RESIZES)),
        default="crop",
        help="; ".join(f"{name}: {resize.text}" for name, resize in images.RESIZES.items()) + ". Default: crop.",
    ),
)


def preprocessing_options(command: Command) -> Command:
    """--preset, --mean and the other options of images.Options, collected as `preprocessing`."""

    @wraps(command)
    def collected(**given: Any) -> Any:
        fields = {field.name: given.pop(field.name) for field in dataclasses.fields(images.Options)}
        return command(preprocessing=images.Options(**fields), **given)

    for option in reversed(PREPROCESSING):
        collected = option(collected)
    return cast(Command, collected)

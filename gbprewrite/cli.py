"""The command line: parse, call, print; no logic."""

import dataclasses
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

import gbprewrite
from gbprewrite import console, files, modelfile, report
from gbprewrite.convert import load
from gbprewrite.errors import GbprewriteError, UsageError
from gbprewrite.policies import METHODS
from gbprewrite.runtime import arrayfiles, images
from gbprewrite.runtime import labels as class_labels
from gbprewrite.runtime.explainer import load_converted, slots_of

Command = TypeVar("Command", bound=Callable[..., Any])
Options = dict[str, Any]
FILE = click.Path(path_type=Path)


class Program(click.Group):
    """A group that turns every GbprewriteError into one paragraph and its exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GbprewriteError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_status)


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


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gbprewrite.__version__, prog_name="gbprewrite")
def main() -> None:
    """Put guided backpropagation, deconvnet and gradient maps into any CNN's .onnx file."""


def default_path(model: Path, methods: tuple[str, ...]) -> Path:
    """`model.<methods>.onnx` beside the model; the methods of a converted file's name are replaced."""
    stem = model.name.removesuffix(".onnx")
    head, _, tail = stem.rpartition(".")
    if head and set(tail.split("+")) <= METHODS.keys():
        stem = head
    return model.with_name(f"{stem}.{'+'.join(dict.fromkeys(methods or ('guided',)))}.onnx")


@main.command()
@click.argument("model", type=FILE)
@output_option("MODEL's name with .guided (or the methods, joined by +) before .onnx, beside it")
@conversion_options(TARGETS + AT_RUN_TIME)
@force_option
@json_option
@quiet_option
def convert(model: Path, output: Path | None, force: bool, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a copy of MODEL that also computes maps of its inputs."""
    wanted = given(options)
    path = output or default_path(model, options["method"])
    source = load(model, options["replace"])
    files.check_other(path, model)
    files.check_writable(path, force)
    result = gbprewrite.convert(source, **wanted)
    modelfile.save(result, path, force)
    facts = console.conversion_facts(model, path, result)
    if as_json:
        print_json(facts)
    elif not quiet:
        console.print_conversion(facts)


@main.command()
@click.argument("converted", type=FILE)
@click.option("--source", type=FILE, metavar="MODEL", help="The model that CONVERTED was made from, for comparison.")
@click.option(
    "--input",
    "specs",
    metavar="NAME=FILE",
    multiple=True,
    help="Check it on this input, as for 'gbprewrite run'. Default: random numbers.",
)
@provider_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, converted: Path, source: Path | None, specs: tuple[str, ...], provider: str, as_json: bool
) -> None:
    """Check on this machine that a CONVERTED model keeps its outputs and that its maps are right.

    Exit status 1 when a check fails.
    """
    model, _ = load_converted(converted)
    inputs = arrayfiles.read_inputs(specs, slots_of(model))
    found = gbprewrite.verify(model, source, inputs=inputs, providers=provider)
    if as_json:
        print_json(found.to_json())
    else:
        console.print_verification(converted, found)
    ctx.exit(0 if found.ok else 1)


@main.command()
@click.argument("converted", type=FILE)
@click.option(
    "--input",
    "specs",
    metavar="NAME=FILE",
    multiple=True,
    required=True,
    help="An input as NAME=x.npy (x.npy alone where there is one input), repeatable; or an .npz whose keys are the "
    "input names. A run-time target or seed is given in the same way.",
)
@output_option("CONVERTED's name with .npz for .onnx, beside it")
@provider_option
@force_option
@json_option
@quiet_option
def run(
    converted: Path, specs: tuple[str, ...], output: Path | None, provider: str, force: bool, as_json: bool, quiet: bool
) -> None:
    """Run a CONVERTED model on arrays and write all of its outputs into an .npz file."""
    path = output or converted.with_name(f"{converted.name.removesuffix('.onnx')}.npz")
    model, _ = load_converted(converted)
    files.check_other(path, converted)
    files.check_writable(path, force)
    explainer = gbprewrite.Explainer(model, providers=provider)
    explanation = explainer(arrayfiles.read_inputs(specs, explainer.slots))
    named = explainer.named(explanation)
    arrayfiles.save(path, named, force)
    if as_json:
        print_json(console.run_facts(path, named, explainer))
    elif not quiet:
        console.print_run(console.run_facts(path, named, explainer))


@main.command()
@click.argument("model", type=FILE)
@json_option
def inspect(model: Path, as_json: bool) -> None:
    """Show what MODEL is and which rule each nonlinearity meets; of a converted file, what was done to it."""
    found = gbprewrite.inspect(model)
    if as_json:
        print_json(found.to_json())
    else:
        console.print_inspection(model, found)


@main.command()
@json_option
def ops(as_json: bool) -> None:
    """List the operators that have a rule, with its formula."""
    rows = [dict(zip(("operator", "formula", "kind"), row, strict=True)) for row in report.rule_table()]
    if as_json:
        print_json({"operators": rows})
    else:
        console.print_operators(rows)


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


@main.command()
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

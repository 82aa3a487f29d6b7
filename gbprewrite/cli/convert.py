"""Write a copy of a model that also computes maps."""

from pathlib import Path
from typing import Any

import click

import gbprewrite
from gbprewrite import console, files, modelfile
from gbprewrite.cli.options import (
    AT_RUN_TIME,
    FILE,
    TARGETS,
    conversion_options,
    force_option,
    given,
    json_option,
    output_option,
    print_json,
    quiet_option,
)
from gbprewrite.convert import load
from gbprewrite.policies import METHODS


def default_path(model: Path, methods: tuple[str, ...]) -> Path:
    """`model.<methods>.onnx` beside the model; the methods of a converted file's name are replaced."""
    stem = model.name.removesuffix(".onnx")
    head, _, tail = stem.rpartition(".")
    if head and set(tail.split("+")) <= METHODS.keys():
        stem = head
    return model.with_name(f"{stem}.{'+'.join(dict.fromkeys(methods or ('guided',)))}.onnx")


@click.command()
@click.argument("model", type=FILE)
@output_option("MODEL's name with .guided (or the methods, joined by +) before .onnx, beside it")
@conversion_options(TARGETS + AT_RUN_TIME)
@click.option(
    "--maps-only", is_flag=True, help="Leave out the model's own outputs, and everything that the maps don't need."
)
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

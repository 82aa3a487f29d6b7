"""Run a converted model on arrays."""

import warnings
from pathlib import Path

import click

import gbprewrite
from gbprewrite import files
from gbprewrite.cli import console, printing
from gbprewrite.cli.options import (
    FILE,
    force_option,
    json_option,
    output_option,
    print_json,
    provider_option,
    quiet_option,
)
from gbprewrite.model import file as modelfile
from gbprewrite.runtime import arrayfiles
from gbprewrite.runtime.explainer import load_converted, slots_of


@click.command()
@click.argument("converted", type=FILE)
@click.option(
    "--input",
    "specs",
    metavar="NAME=FILE",
    multiple=True,
    required=True,
    help="An input as NAME=x.npy (x.npy alone where there is one input), repeatable; or an .npz whose keys are the "
    "input names. A run-time target or seed, a baseline, or SmoothGrad's noise (which is drawn if it is not given) is "
    "given in the same way.",
)
@output_option("CONVERTED's name with .npz for .onnx, beside it")
@provider_option
@click.option(
    "--tf32/--no-tf32",
    default=True,
    show_default=True,
    help="Let CUDA round float32 factors to 10 bits, onnxruntime's default: faster, maps agree with the CPU's to some "
    "1e-3. No difference on the CPU.",
)
@click.option(
    "--cuda-graph",
    is_flag=True,
    help="Capture the run on CUDA and replay it for each further piece of a batch: for models of small fixed batches.",
)
@force_option
@json_option
@quiet_option
def run(
    converted: Path,
    specs: tuple[str, ...],
    output: Path | None,
    provider: str,
    tf32: bool,
    cuda_graph: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a CONVERTED model on arrays and write all of its outputs into an .npz file.

    Its keys are the outputs' names, with "_" for what would be a path or does not print; the report says which. A score
    or a map that is NaN or infinite is named on standard error.
    """
    path = output or converted.with_name(f"{converted.name.removesuffix('.onnx')}.npz")
    model, _ = load_converted(converted)
    read = [*modelfile.read_beside(converted, [path]), *arrayfiles.paths(specs, slots_of(model))]
    files.check_unread([path], read)
    files.check_writable(path, force)
    files.check_suffix(path, ".npz")
    explainer = gbprewrite.Explainer(model, providers=provider, tf32=tf32, cuda_graph=cuda_graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gbprewrite.NotFinite)  # said below
        explanation = explainer(arrayfiles.read_inputs(specs, explainer.slots))
    named, left = arrayfiles.storable(explainer.named(explanation))
    arrayfiles.save(path, named, force)
    for note in explanation.notes:
        printing.warn(note)
    facts = console.run_facts(path, named, explainer, arrayfiles.keys(named), left)
    facts["notes"] = list(explanation.notes)
    if as_json:
        print_json(facts)
    elif not quiet:
        console.print_run(facts)

"""The command line: parse, call, print; no logic. One module for each command."""

import click

import gbprewrite
from gbprewrite.cli.compare import compare
from gbprewrite.cli.convert import convert
from gbprewrite.cli.explain import explain
from gbprewrite.cli.help import help_
from gbprewrite.cli.inspect import inspect
from gbprewrite.cli.layers import layers
from gbprewrite.cli.ops import ops
from gbprewrite.cli.program import Program
from gbprewrite.cli.run import run
from gbprewrite.cli.sanity import sanity
from gbprewrite.cli.top import top
from gbprewrite.cli.verify import verify


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(gbprewrite.__version__, prog_name="gbprewrite")
def main() -> None:
    """Put guided backpropagation, deconvnet, gradient, Grad-CAM and other maps into any CNN's .onnx file."""


for command in (convert, verify, run, inspect, layers, explain, compare, top, sanity, ops, help_):
    main.add_command(command)

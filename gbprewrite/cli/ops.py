"""List the operators."""

import click

from gbprewrite.backward import coverage
from gbprewrite.cli import console
from gbprewrite.cli.options import json_option, print_json


@click.command()
@json_option
def ops(as_json: bool) -> None:
    """List every operator: with a rule, by its body, without a gradient, or refused."""
    rows = [dict(zip(("operator", "formula", "kind"), row, strict=True)) for row in coverage.rule_table()]
    if as_json:
        print_json({"operators": rows})
    else:
        console.print_operators(rows)

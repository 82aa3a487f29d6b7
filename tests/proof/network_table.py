"""The table of errors of timm's, the segmentation and the video networks: python -m tests.proof.network_table --help"""

import sys
from itertools import product
from typing import TextIO

import click

from tests.proof import torch_setup  # noqa: F401  (torch and torchvision, before what needs them)

from tests.proof.networks import EXPORTERS, export, prove  # isort: skip
from tests.proof import dense_zoo, timm_zoo
from tests.proof.zoo import HEADER, Row

NETWORKS = timm_zoo.NETWORKS | dense_zoo.NETWORKS


def line(row: Row, size: tuple[int, ...], rectify_all: bool) -> str:
    """A row as Markdown; an error over its limit is set bold."""
    label = f"{row.method}, rectify all" if rectify_all and row.method != "gradient" else row.method
    error = f"{row.error:.1e}" if row.error <= row.limit else f"**{row.error:.1e}**"
    name = f"{row.network}, {'x'.join(map(str, size))}"
    return f"| {name} | {row.exporter} | {label} | {error} | {row.torch_error:.1e} | {row.limit:.0e} |"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(NETWORKS)), metavar="[NETWORK]...")
@click.option("-o", "--output", type=click.File("w"), default="-", help="Write here instead of to the terminal.")
def main(names: tuple[str, ...], output: TextIO) -> None:
    """Relative L2 errors of the maps against PyTorch in float64, for NETWORKs or all of them, as a Markdown table."""
    print(*HEADER, sep="\n", file=output, flush=True)
    rows = []
    for name, exporter in product(names or NETWORKS, EXPORTERS):
        network = NETWORKS[name]
        model = export(network, exporter)
        for rectify_all in (False, True) if name in timm_zoo.MIXED else (False,):
            found = prove(network, model, exporter, rectify_all).rows
            found = found[1:] if rectify_all else found  # the gradient is the same
            print(*(line(row, network.shape, rectify_all) for row in found), sep="\n", file=output, flush=True)
            rows += found
    worst = max(rows, key=lambda row: row.error / row.limit)
    failed = sum(row.error > row.limit for row in rows)
    print(f"\n{len(rows)} maps, {failed} over their limit; nearest to it {worst.network} {worst.method} with "
          f"{worst.error:.1e} of {worst.limit:.0e}.", file=output)  # fmt: skip
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

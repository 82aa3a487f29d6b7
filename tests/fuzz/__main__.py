"""`python -m tests.fuzz --mutations 10000`: judge mutated files, list the faults, exit with 1 where there is one."""

import sys
from collections import Counter
from pathlib import Path

import click

from tests.fuzz.campaign import Case, campaign, cases, line
from tests.fuzz.judge import FAULTS, judge
from tests.fuzz.models import MODELS


@click.command()
@click.option("--mutations", default=1000, show_default=True, help="Number of mutated files.")
@click.option("--first", default=0, show_default=True, help="Number of the first one; others give other files.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(MODELS)), help="Mutate only this model.")
@click.option("--jobs", default=2, show_default=True, help="Number of workers.")
@click.option("--log", type=click.Path(path_type=Path), help="Write a line of JSON for each file here.")
@click.option("--keep", type=(click.Choice(list(MODELS)), int), help="Write one file, MODEL NUMBER, and judge it here.")
def main(
    mutations: int, first: int, models: tuple[str, ...], jobs: int, log: Path | None, keep: tuple[str, int] | None
) -> None:
    """Judge mutated model files."""
    if keep is not None:
        Path("mutant.onnx").write_bytes(Case(*keep).data(Path()))
        click.echo(judge(Path("mutant.onnx")))
        return
    counts: Counter[str] = Counter()
    slowest, largest = 0.0, 0.0
    with open(log, "w") if log else click.get_text_stream("stdout") as out:
        for case, outcome in campaign(cases(mutations, first, models), jobs):
            counts[outcome.kind] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
            if log or outcome.kind in FAULTS:
                print(line(case, outcome), file=out, flush=True)
    click.echo(f"{sum(counts.values())} files: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    click.echo(f"slowest conversion {slowest:.1f} s, largest worker {largest:.0f} MB")
    sys.exit(1 if any(counts[kind] for kind in FAULTS) else 0)


if __name__ == "__main__":
    main()

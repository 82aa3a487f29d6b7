"""The commands. Each contender has a process of its own, which is kept alive and told to run one timed round at a time.

Rounds alternate, so that a noisy minute meets everybody; a round is the median of its calls, a time the median of the
rounds. Every map is compared once with this project's portable file, so that the right thing is timed. Memory is what
a process has used when it has loaded the model and made its first map; converting has a process of its own. The class
that is explained is handed to the peers ready-made; this project's files find it themselves.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from tests.bench import chart, machine, report
from tests.bench import operators as profiling
from tests.bench import placement as placing
from tests.bench import scaling as growth
from tests.bench.comparison import Files, Pace, Row, Setting, compare, cores
from tests.bench.contenders import CONTENDERS, FORWARD, METHODS, OURS, REFERENCE, TOP5, default_contenders
from tests.bench.networks import DEFAULT, NAMES, Unavailable, network

PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32", "float16")}
BATCHES = {"cpu": (1,), "cuda": (1, 8, 32)}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gbprewrite-bench"


def _split(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in (value or "").split(","))))


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """`1,all`: all is every core that this process may use."""
    try:
        return tuple(dict.fromkeys(cores() if part == "all" else int(part) for part in _split(ctx, param, value)))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,8") from None


def _names(known: Sequence[str]) -> Any:
    def checked(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
        names = _split(ctx, param, value)
        for name in names:
            if name not in known and not name.endswith(".onnx"):
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return names

    return checked


class Group(click.Group):
    """A command that needs a network or a conversion that can't be had ends with its reason."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Unavailable as error:
            raise click.ClickException(str(error)) from None


cache_option = click.option("--cache", type=click.Path(path_type=Path), default=CACHE, show_default=True,
                            help="Where the networks are kept.")  # fmt: skip
out_option = click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True,
                          help="Where the results go.")  # fmt: skip
threads_option = click.option("--threads", default="1,all", show_default=True, callback=_numbers)
rounds_option = click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
seconds_option = click.option("--seconds", default=0.5, show_default=True, help="Length of a contender's round.")
networks_option = click.option(
    "--networks", default=",".join(DEFAULT), show_default=True, callback=_names(NAMES),
    help="Comma-separated; the path of an .onnx file is a network too.",
)  # fmt: skip


@click.group(cls=Group, invoke_without_command=True, context_settings={"show_default": True})
@networks_option
@click.option("--contenders", callback=_names(tuple(CONTENDERS)), help=f"Of {', '.join(CONTENDERS)}. Default: all.")
@click.option("--methods", default=",".join(METHODS), callback=_names(METHODS))
@threads_option
@click.option("--batch", callback=_numbers, help="Default: 1; 1,8,32 with CUDA.")
@click.option("--provider", default="cpu", type=click.Choice(["cpu", "cuda"]))
@click.option("--precisions", callback=_names(PRECISIONS["cuda"]), help="Default: float32; all three with CUDA.")
@click.option("--dry-run", is_flag=True, help="With --provider cuda: go through its code on the CPU.")
@rounds_option
@seconds_option
@out_option
@cache_option
@click.pass_context
def main(ctx: click.Context, networks: tuple[str, ...], out: Path, cache: Path, **options: Any) -> None:
    """Time forward pass and map of every contender on every network; write results.json, table.md and chart.png."""
    if ctx.invoked_subcommand:
        return
    options = {name: value for name, value in options.items() if value is not None}
    provider = options["provider"]
    options["contenders"] = options["contenders"] or default_contenders(provider)
    options["batch"] = options["batch"] or BATCHES[provider]
    options["precisions"] = options["precisions"] or PRECISIONS[provider]
    options["threads"] = options["threads"] if provider == "cpu" else options["threads"][-1:]
    here, rows = machine.describe(), list[Row]()
    for name in networks:
        rows += _of_network(name, cache, options)
        report.write(out, here, {"networks": networks} | options, rows)
        report.console.print(f"{name}: {len(rows)} rows in {out}/results.json", markup=False)
    _finish(out, here, rows)


def _finish(out: Path, here: dict[str, str], rows: list[Row]) -> None:
    runtime = here.get("onnxruntime") or here.get("onnxruntime-gpu")
    chart.draw(rows, out / "chart.png", f"{here['processor']}, onnxruntime {runtime}")
    report.show(rows)
    report.console.print(f"{out}/results.json, {out}/table.md, {out}/chart.png", markup=False)


def _of_network(name: str, cache: Path, options: dict[str, Any]) -> list[Row]:
    """All settings of one network."""
    names, rows = options["contenders"], list[Row]()
    kinds = product(options["precisions"], options["batch"], options["methods"], options["threads"])
    settings = [
        Setting(method, batch, threads, options["provider"], precision, options["dry_run"])
        for precision, batch, method, threads in kinds
    ]
    try:
        found = network(name, cache)
    except Unavailable as error:
        everybody = dict.fromkeys((FORWARD, *names))
        return [Row(name, contender, **vars(s), reason=str(error)) for s in settings for contender in everybody]
    pace = Pace(options["rounds"], options["seconds"])
    with tempfile.TemporaryDirectory(prefix="gbprewrite-bench-") as folder, report.console.status("") as status:
        files = Files(found, Path(folder))
        for setting in settings:
            heading = f"{name}, {setting.method}, {setting.precision}, batch {setting.batch}, {setting.threads} threads"
            rows += compare(files, setting, names, pace, lambda text: status.update(f"{heading}: {text}"))  # noqa: B023
    return rows


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@out_option
def render(folders: tuple[Path, ...], out: Path) -> None:
    """Table and chart of the results in FOLDERS; where two have the same row, the later one's stands."""
    machines, options, parts = zip(*(report.read(folder / "results.json") for folder in folders), strict=True)
    if len({here["processor"] for here in machines}) > 1:
        raise click.UsageError("these results come from different processors")
    rows = report.merged(parts)
    report.write(out, machines[-1], options[-1], rows)
    _finish(out, machines[-1], rows)


@main.command()
@click.option("--network", "networks", default="squeezenet1_1", show_default=True, callback=_names(NAMES))
@click.option("--method", default="guided", type=click.Choice(METHODS))
@click.option("--contender", default=OURS, type=click.Choice([OURS, REFERENCE, TOP5]))
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--nodes", default=0, metavar="N", help="Also the N nodes that take longest, with what they write.")
@out_option
@cache_option
def operators(networks: tuple[str, ...], contender: str, nodes: int, out: Path, cache: Path, **options: Any) -> None:
    """Profile networks: time and nodes of each operator type, of the forward pass alone and with the map.

    Writes operators-NETWORK.md.
    """
    setting = Setting(**options)
    for name in networks:
        with tempfile.TemporaryDirectory() as folder:
            files = Files(network(name, cache), Path(folder))
            x = np.load(files.inputs(setting.batch))
            paths = {"forward": files.source(setting.precision), contender: files.of(contender, setting)[0]}
            profiles = {label: profiling.profile(path, x, setting.threads) for label, path in paths.items()}
        columns, lines = profiling.by_operator(profiles)
        report.print_table(", ".join([name, *(f"{k} {v}" for k, v in options.items())]), columns, lines)
        report.write_table(out / f"operators-{files.network.name}.md", machine.describe(), columns, lines)
        if nodes:
            report.print_table(contender, *profiling.by_node(profiles[contender], nodes))


@main.command()
@click.option("--repeats", default=3, show_default=True, help="Fresh processes for each file.")
@click.option("--sizes", default=",".join(map(str, growth.SIZES)), show_default=True, callback=_numbers)
@click.option("--networks", default=",".join(growth.LARGE), show_default=True, callback=_names(NAMES))
@click.option("--gigabytes", type=float, help="Also a model of that size with external data; twice that goes to disk.")
@out_option
@cache_option
def scaling(
    repeats: int, sizes: tuple[int, ...], networks: tuple[str, ...], gigabytes: float | None, out: Path, cache: Path
) -> None:
    """Time converting: synthetic graphs of growing size, and large networks. Writes scaling.md."""
    if len(sizes) < 2:
        raise click.UsageError("--sizes: growth shows only between two sizes or more")
    rows = dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder, report.console.status("") as status:
        for size in sizes:
            status.update(f"{size} nodes")
            path = Path(folder) / "source.onnx"
            onnx.save(growth.synthetic(size), path)
            rows[f"synthetic {size}"] = growth.measure(path, Path(folder), repeats)
        power = growth.exponent(list(rows.values()))
        for name in networks:
            status.update(name)
            rows[name] = growth.measure(network(name, cache).source, Path(folder), repeats)
        if gigabytes:
            status.update(f"{gigabytes} GB")
            path = Path(folder) / "large.onnx"
            growth.large(path, gigabytes)
            rows[f"{gigabytes:g} GB"] = growth.measure(path, Path(folder), repeats)
    columns = ["graph", "nodes", "convert s", "ms per node", "import s", "peak MB"]
    lines = [
        [name, f"{row['nodes']:.0f}", f"{row['convert_seconds']:.2f}",
         f"{1e3 * row['convert_seconds'] / row['nodes']:.2f}", f"{row['import_seconds']:.2f}",
         f"{row['peak_bytes'] / 1e6:.0f}"]
        for name, row in rows.items()
    ]  # fmt: skip
    report.print_table("Converting, from reading the file to having written it", columns, lines)
    report.console.print(f"seconds ~ nodes^{power:.2f} over the larger half of the synthetic graphs")
    report.write_table(out / "scaling.md", machine.describe(), columns, lines)


@main.command()
@networks_option
@click.option("--method", default="guided", type=click.Choice(METHODS))
@click.option("--threads", default=1, show_default=True)
@click.option("--batch", default="1,8", show_default=True, callback=_numbers)
@rounds_option
@seconds_option
@out_option
@cache_option
def topk(networks: tuple[str, ...], method: str, threads: int, batch: tuple[int, ...], **options: Any) -> None:
    """The cost of maps of the five best classes in one call, in backward passes of one class. Writes topk.md."""
    columns = ["network", "batch", "forward ms", "with one map", "with five maps", "backward passes"]
    lines: list[list[str]] = []
    pace = Pace(options["rounds"], options["seconds"])
    for name, size in product(networks, batch):
        with tempfile.TemporaryDirectory() as folder, report.console.status("") as status:
            files = Files(network(name, options["cache"]), Path(folder))
            rows = compare(files, Setting(method, size, threads), (OURS, TOP5), pace, status.update)
        forward, one, five = (1e3 * (row.seconds or np.nan) for row in rows)
        cells = (f"{forward:.1f}", f"{one:.1f}", f"{five:.1f}", f"{(five - forward) / (one - forward):.2f}")
        lines.append([files.network.name, str(size), *cells])
        report.print_reasons(rows)
    report.print_table(f"{method}, {threads} threads", columns, lines)
    report.write_table(options["out"] / "topk.md", machine.describe(), columns, lines)


@main.command()
@click.option("--networks", default="", callback=_split, help="Names, or .onnx files. Default: everything.")
@click.option("--files", default="base,companions", show_default=True, callback=_split, help="Methods of a file each.")
@click.option("--opsets", default="18", show_default=True, callback=_numbers)
@click.option("--exporter", default="torchscript", show_default=True, type=click.Choice(["torchscript", "dynamo"]))
@click.option("--python", default=sys.executable, help="A Python that has onnxruntime-gpu. Default: this one.")
@out_option
def placement(
    networks: tuple[str, ...], files: tuple[str, ...], opsets: tuple[int, ...], exporter: str, python: str, out: Path
) -> None:
    """Where CUDA would run every network of the zoo, by ../shared/cuda_placement/place.py. Writes placement.md.

    Exit status 1 where a converted file falls short of what its source reaches alone.
    """
    unknown = [name for name in files if name not in placing.FILES]
    if unknown:
        raise click.UsageError(f"--files {unknown[0]}: choose from {', '.join(placing.FILES)}")
    if not placing.PLACE.exists():
        raise Unavailable(f"{placing.PLACE} is not there")
    found: list[placing.Row] = []
    with report.console.status("") as status:
        for rows in placing.every_row(networks, exporter, opsets, files, [python, str(placing.PLACE)]):
            found += rows
            status.update(found[-1].network)
            report.write_table(out / "placement.md", machine.describe(), placing.COLUMNS, [r.cells for r in found])
    report.print_table("Placement on CUDA", placing.COLUMNS, [row.cells for row in found])
    report.console.print(placing.summary(found))
    click.get_current_context().exit(int(any(row.ours for row in found)))

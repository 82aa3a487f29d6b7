"""Whether a converted file's record and its graph tell the same story: the record may have been changed, or forged."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onnx import ModelProto

from gbprewrite.graft.pictures import FORMS
from gbprewrite.methods.asked import PLACE
from gbprewrite.methods.table import METHODS
from gbprewrite.model.tensors import read_type
from gbprewrite.select.target import Target

Record = Mapping[str, Any]
GIVEN = ("baseline", "noise")  # kinds of inputs that a file gains beside target and seed
MOST_AXES = 16  # of a score whose rank the file does not tell
# The arguments of `convert` that a record may hold.
OPTIONS = {
    *("method", "target", "score", "layer", "inputs", "class_axis", "channels", "opset", "through_softmax"),
    *("rectify", "optimize_for", "maps_only", "prefix", "replace", "cam_layer", "rectgrad_tau", "rectgrad_quantile"),
    *("steps", "baseline", "samples", "forms", "heatmap_dtype", "scaling", "colormap", "embed_preprocessing"),
    *("preprocessing", "input_shapes"),
}


def contradiction(record: Record, target: Target, model: ModelProto) -> str | None:
    """The first thing that a record, whose types are right, says against the file or against itself, in words."""
    return next(_contradictions(record, target, model), None)


def _contradictions(record: Record, target: Target, model: ModelProto) -> Iterator[str]:
    graph = model.graph
    inputs, outputs = ({v.name for v in values} for values in (graph.input, graph.output))
    values = inputs | outputs | {t.name for t in graph.initializer} | {o for n in graph.node for o in n.output}
    names = {role: record[f"{role}_name"] for role in ("explained_index", "target", "seed")}
    yield from _methods(record)
    if (missing := {m["output"] for m in record["maps"]} - outputs) or len(_outputs(record)) < len(record["maps"]):
        yield f"it names outputs that the file does not have, or one twice: {', '.join(missing) or 'a map'}"
    if {role for role, name in names.items() if name is not None} != set(target.roles):
        yield f"its target {record['target']!r} does not go with the names that it gives to {', '.join(names)}"
    if names["explained_index"] is not None and names["explained_index"] not in outputs:
        yield f"the file has no output {names['explained_index']!r}"
    gained = {names["target"], names["seed"], *(row["name"] for row in record["given"])} - {None}
    if record["embedded"] is not None:
        gained.add(record["embedded"]["name"])
    if gained - inputs:
        yield f"it names inputs that the file does not have: {', '.join(sorted(gained - inputs))}"
    read = {*(m["input"] for m in record["maps"]), *(row["input"] for row in record["given"])}
    if not record["options"].get("maps_only"):
        read |= {record["score"], record["output"]}
    if read - values:
        yield f"it names values that the file does not have: {', '.join(sorted(read - values))}"
    if any(row["kind"] not in GIVEN for row in record["given"]):
        yield "it names inputs of an unknown kind"
    yield from _counts(record, model)
    yield from _axes(record, target, model)
    yield from _options(record)


def _outputs(record: Record) -> set[str]:
    return {m["output"] for m in record["maps"]}


def _methods(record: Record) -> Iterator[str]:
    methods, maps, own = record["methods"], record["maps"], record["own_methods"]
    if not all(map(_is_own, own.values())) or not set(own) <= set(methods) - METHODS.keys():
        yield "it does not say of its user's own methods where they are, and what their titles and limits are"
        return
    if not methods or set(methods) - METHODS.keys() - own.keys() or len(set(methods)) < len(methods):
        yield f"its methods are none, or none of this version, or one twice: {', '.join(methods)}"
    held = record["options"].get("method", [])
    asked = held if isinstance(held, list) else [held]
    # A place would be imported when the file is converted again.
    if not {str(m) for m in asked} <= {*METHODS, *own, *(row["at"] for row in own.values())}:
        yield f"its options name methods that it does not have: {', '.join(map(str, asked))}"
    if {m["method"] for m in maps} != set(methods) or any(m["form"] not in FORMS for m in maps):
        yield "its maps are not those of its methods"
    rows = [*record["rectifiers"], *record["activations"]]
    if any(row["rules"].get(m).__class__ is not str for row in rows for m in methods):
        yield "it lacks the rule of a nonlinearity"


def _is_own(row: Any) -> bool:
    """Whether this is what a record says of a method of its user's own; its place is imported later on."""
    if not isinstance(row, dict) or row.keys() != {"at", "title", "limit"}:
        return False
    place = row["at"] is None or (isinstance(row["at"], str) and re.fullmatch(PLACE, row["at"]) is not None)
    return place and isinstance(row["title"], str) and isinstance(row["limit"], str)


def _counts(record: Record, model: ModelProto) -> Iterator[str]:
    parts = [record["added"], *([record["embedded"]] if record["embedded"] else [])]
    for what, there in (("nodes", len(model.graph.node)), ("initializers", len(model.graph.initializer))):
        counts = [part[what] for part in parts]
        if min(counts) < 0 or sum(counts) > there:
            yield f"it says that {sum(counts):,} {what} were added, and the file has {there:,}"
    if (record["embedded"] is None) is not (record["preprocessing"] is None) and record["embedded"] is not None:
        yield "the file takes photographs, and it does not say what they go through"


def _axes(record: Record, target: Target, model: ModelProto) -> Iterator[str]:
    ranks = dict(_ranks(model))
    # A Softmax keeps the axes; what moves its values is recorded, but for a seed, which is shaped like the score.
    kept = not record["moved"] and target.kind != "seed"
    alike = ranks.get(record["output"], MOST_AXES) if kept else MOST_AXES
    for name in ("class_axis", "batch_axis"):
        counted = record["output" if record["moved"] else "score"]
        axis, rank = record[name], ranks.get(counted, alike)
        if axis is not None and not -rank <= axis < rank:
            yield f"its {name.replace('_', ' ')} is {axis}, and the score {record['score']!r} has no such axis"
    made_here = {name for node in model.graph.node for name in node.output}
    if not record["options"].get("maps_only") and not made_here.issuperset(record["moved"]):
        yield "it says that the score is moved to where no node moves it"
    for row in record["maps"]:
        x, made = ranks.get(row["input"]), ranks.get(row["output"])
        if row["form"] == "raw" and x is not None and made is not None and made != x + target.many:
            yield (
                f"its target is {record['target']!r}, and the map {row['output']!r} has {made} axes, of an input with "
                f"{x}"
            )


def _ranks(model: ModelProto) -> Iterable[tuple[str, int]]:
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        shape = read_type(value.type)[1]
        if shape is not None:
            yield value.name, len(shape)


def _options(record: Record) -> Iterator[str]:
    unknown = sorted(set(record["options"]) - OPTIONS)
    if unknown:
        yield f"it holds options that this version does not have: {', '.join(unknown)}"
    forms = record["options"].get("forms")
    if not isinstance(forms, list) or not isinstance(record["options"].get("maps_only"), bool):
        yield "its options lack what every conversion says"

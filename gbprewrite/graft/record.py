"""What was rewritten, what was left, and why: the record in the file, and the inspection of any model."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper

from gbprewrite.backward.rules.table import VJP
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.graft import recorded
from gbprewrite.methods.asked import own, place_of
from gbprewrite.methods.table import METHODS
from gbprewrite.methods.work import Method
from gbprewrite.model.file import opset_of, sha256
from gbprewrite.plaintext import cut
from gbprewrite.select import rectifiers
from gbprewrite.select.channels import FeatureLayer
from gbprewrite.select.selection import Selection
from gbprewrite.select.target import Target, parse_target
from gbprewrite.version import __version__
from gbprewrite.view import operators
from gbprewrite.view.paths import with_branches

OR_NOTHING = "or nothing"  # marks a part of SHAPE in whose place a record may hold None
KEY = "gbprewrite"  # of the record in the file's metadata_props
Record = Mapping[str, Any]
# What a record holds, and of what types; a file in which it does not was changed by other hands.
TREATMENT = {"node": str, "operator": str, "kind": str, "role": str, "rules": dict}
PART = {"start": int, "stop": int, "role": str, "why": str}
BOXES = {"output": str, "axis": int, "start": int, "corners": str | None}
HEAD: dict[str, Any] = {
    **{"axis": int | None, "selected": str, "labels": str | None},
    **{"parts": [PART], "boxes": {**BOXES, OR_NOTHING: None}},
}
SHAPE: dict[str, Any] = {
    **dict.fromkeys(("version", "target", "output", "score"), str),
    **dict.fromkeys(("target_name", "seed_name", "explained_index_name", "cam_layer", "flaw"), str | None),
    **dict.fromkeys(("class_axis", "batch_axis"), int | None),
    "class_axis_reason": str,
    "said_above": float | None,
    "unbatched": bool,
    "notes": [str],
    **dict.fromkeys(("nodes", "opset"), int),
    "methods": [str],
    "own_methods": dict,
    "stepped_over": [str],
    "masks": [str],
    "inner_inputs": [{"name": str, "inputs": [str], "channel_axis": int | None}],
    "moved": [str],
    "rectifiers": [TREATMENT],
    "activations": [TREATMENT],
    "maps": [{"input": str, "method": str, "form": str, "output": str}],
    "embedded": {"input": str, "name": str, "nodes": int, "initializers": int, OR_NOTHING: None},
    "preprocessing": {"text": str, "facts": [str], "guesses": [str], OR_NOTHING: None},
    "head": {**HEAD, OR_NOTHING: None},
    "cam_layers": [{"input": str, "layer": str, "beside": [str]}],
    "given": [{"kind": str, "input": str, "name": str}],
    "pools": [{"node": str, "operator": str, "rule": str}],
    "added": {"nodes": int, "initializers": int},
    "source": {"sha256": str, "nodes": int, "opset": int},
    "options": dict,
}

# What records of 0.1.0 lack, and what holds for their files.
SINCE_0_1: dict[str, Any] = {
    **{"batch_axis": 0, "class_axis_reason": "not said by gbprewrite 0.1", "said_above": None, "unbatched": False},
    **{"notes": [], "masks": [], "inner_inputs": [], "moved": [], "head": None, "own_methods": {}},
}


def read_record(model: ModelProto) -> Record | None:
    """The record of a converted file, None for any other model. Raises ModelError for a damaged one."""
    entries = [entry for entry in model.metadata_props if entry.key == KEY]
    if not entries:
        return None
    words: str | None = "it is there twice"
    if len(entries) == 1:
        try:
            record = _completed(json.loads(entries[0].value))
            words = _contradiction(record, model)
            if words is None:
                return dict(record)
        except (ValueError, RecursionError):  # not JSON, or not even UTF-8
            words = "it is no JSON"
    raise ModelError(
        f"the record that gbprewrite keeps in the file's metadata (key {KEY!r}) is damaged, of a version that "
        f"{__version__} can't read, or of a file that was changed since: {words}. Convert the source model again."
    )


def _completed(record: Any) -> Any:
    """A record of 0.1.0 with what this version reads besides; any other as it is."""
    if not isinstance(record, dict) or not {"options", "maps", "cam_layer"} <= record.keys():
        return record
    if "cam_layers" not in record and _is(record["maps"], SHAPE["maps"]) and isinstance(record["options"], dict):
        inputs = dict.fromkeys(row["input"] for row in record["maps"]) if record["cam_layer"] else {}
        rows = [{"input": x, "layer": record["cam_layer"], "beside": []} for x in inputs]
        return {**SINCE_0_1, **record, "cam_layers": rows, "options": {"channels": None, **record["options"]}}
    return {"own_methods": {}, **record}


def _contradiction(record: Any, model: ModelProto) -> str | None:
    """What a record lacks of what this version writes, or says against the model, in words; None where all is well."""
    if not _is(record, SHAPE):
        return "it lacks an entry, or has one of another type"
    try:
        target = parse_target(record["target"])
    except UsageError:
        return f"its target is {cut(record['target'], 80)!r}"
    return recorded.contradiction(record, target, model)


def given_names(record: Record) -> set[str]:
    """The inputs that a file gained: target or seed, noise, baselines."""
    single = {record["target_name"], record["seed_name"]} - {None}
    return {*single, *(row["name"] for row in record["given"])}


def _is(value: Any, shape: Any) -> bool:
    """Whether a value read from JSON has the types of SHAPE."""
    if isinstance(shape, dict):
        if OR_NOTHING in shape:
            return value is None or _is(value, {k: s for k, s in shape.items() if k != OR_NOTHING})
        return isinstance(value, dict) and all(k in value and _is(value[k], s) for k, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_is(v, shape[0]) for v in value)
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


def write_record(model: ModelProto, record: Record) -> None:
    """Put a record into the file's metadata, in place of one that is there."""
    there = [e for e in model.metadata_props if e.key == KEY]
    entry = there[0] if there else model.metadata_props.add()
    held = {key: value for key, value in record.items() if key != "own_methods" or value}  # most files have none
    entry.key, entry.value = KEY, json.dumps(held, sort_keys=True, ensure_ascii=False)


def source_facts(model: ModelProto) -> dict[str, Any]:
    """The part of the record that must be taken before the source is worked on.

    `sha256` is of the model (its deterministic serialisation, external data included), not of the file's bytes.
    """
    return {"source": {"sha256": sha256(model), "nodes": len(model.graph.node), "opset": opset_of(model)}}


def record(
    model: ModelProto,
    added: tuple[int, int],
    chosen: Selection,
    methods: Mapping[str, Method],
    target: Target,
    names: Mapping[str, str],
    maps: Mapping[tuple[str, str, str], str],
    found: Sequence[rectifiers.Nonlinearity],
    marked: set[int],
) -> dict[str, Any]:
    """What was done to a model: `added` nodes and initializers stand at the end of their lists."""
    added_methods = own(methods.values())
    return {
        "version": __version__,
        "methods": list(methods),
        **({"own_methods": {m.name: _own_row(m) for m in added_methods}} if added_methods else {}),
        "target": target.text,
        "output": chosen.output.name,
        "score": chosen.score.name,
        "stepped_over": [n.name for n in chosen.stepped_over],
        "class_axis": chosen.class_axis,
        "class_axis_reason": chosen.counting.why,
        "batch_axis": chosen.counting.batch_axis,
        "said_above": chosen.counting.said_above,
        "unbatched": chosen.counting.unbatched,
        "moved": [n.outputs[0].name for n in chosen.counting.moves],
        "notes": chosen.notes,
        "maps": [{"input": x, "method": m, "form": form, "output": name} for (x, m, form), name in maps.items()],
        **{f"{role}_name": names[role] if role in target.roles else None for role in names},
        "rectifiers": treatments([n for n in found if id(n.node) in marked], methods, marked),
        "activations": treatments([n for n in found if id(n.node) not in marked], methods, marked),
        "pools": pools(with_branches(chosen.nodes, chosen.inputs), methods.values()),
        "nodes": len(model.graph.node),
        "added": {"nodes": added[0], "initializers": added[1]},
        "opset": opset_of(model),
    }


def _own_row(method: Method) -> dict[str, str | None]:
    """Of a method of the user's own: where another process finds it, and what reports say of it."""
    return {"at": place_of(method), "title": method.title, "limit": method.limit}


def cam_layers(chosen: Selection, layers: Sequence[FeatureLayer]) -> dict[str, Any]:
    """Grad-CAM's layer where all inputs have the same, and that of each input; `beside`: branches that it misses."""
    names = {layer.tensor.name for layer in layers}
    rows = [
        {"input": x.name, "layer": layer.tensor.name, "beside": list(layer.beside)}
        for x, layer in zip(chosen.inputs if layers else [], layers, strict=True)
    ]
    return {"cam_layer": names.pop() if len(names) == 1 else None, "cam_layers": rows}


def limits(record: Record) -> dict[str, str]:
    """Method → what its maps can't show, for each method that says so."""
    said = {
        name: METHODS[name].limit if name in METHODS else record["own_methods"][name]["limit"]
        for name in record["methods"]
    }
    return {name: limit for name, limit in said.items() if limit}


def cam_text(record: Record) -> list[str]:
    """Grad-CAM's layers in words, a line for each; no line where no method reads one."""
    of_layer: dict[str, list[Mapping[str, Any]]] = {}
    for row in record["cam_layers"]:
        of_layer.setdefault(row["layer"], []).append(row)
    lines = []
    for layer, rows in of_layer.items():
        whose = f" (of {', '.join(row['input'] for row in rows)})" if len(of_layer) > 1 else ""
        beside = list(dict.fromkeys(name for row in rows for name in row["beside"]))
        missed = f"; its map misses the branches that reach the score from {', '.join(beside)}" if beside else ""
        lines.append(f"{layer}{whose}{missed}")
    return lines


def corrections(declared: Iterable[Mapping[str, Any]], model: ModelProto) -> str | None:
    """A sentence on the outputs that a source declares with another shape than its nodes make, None without any."""
    made = {row["name"]: row for row in map(value_row, model.graph.output)}
    wrong = [
        f"{said['name']!r} as {said['shape']}, and its nodes make {found['shape']}"
        for said, found in ((row, made.get(row["name"])) for row in declared)
        if found and said["shape"] and found["shape"] and _differ(said["shape"], found["shape"])
    ]
    return f"the source declares its output {'; '.join(wrong)}: the result says what they make" if wrong else None


def _differ(said: Sequence[int | str], found: Sequence[int | str]) -> bool:
    return len(said) != len(found) or any(isinstance(s, int) and s != f for s, f in zip(said, found, strict=True))


def holds_only_maps(record: Record | None) -> bool:
    """Whether a converted file lacks parts of its source."""
    return record is not None and bool(record["options"].get("maps_only"))


def treatments(
    found: Sequence[rectifiers.Nonlinearity], methods: Mapping[str, Method], marked: set[int]
) -> list[dict[str, Any]]:
    """A row for each nonlinearity: node, operator, kind, role, and its rule under each method."""
    return [
        {
            "node": n.node.name,
            "operator": n.node.op,
            "kind": n.kind,
            "role": n.role,
            "rules": {name: method.formula(n.node, marked) for name, method in methods.items()},
        }
        for n in found
    ]


def pools(nodes: Iterable[gs.Node], methods: Collection[Method] = ()) -> list[dict[str, Any]]:
    """A row for each pool, with the rules that it meets under these methods."""
    tables = sorted([m.rules for m in methods] or [VJP], key=lambda table: table is not VJP)  # the gradient's first

    def rule(operator: str) -> str:
        return "; or ".join(dict.fromkeys(table[operator].text if operator in table else "no rule" for table in tables))

    return [{"node": n.name, "operator": n.op, "rule": rule(n.op)} for n in nodes if n.op in operators.POOLS]


def value_row(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, dtype and shape of a graph input or output."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        return {"name": value.name, "dtype": value.type.WhichOneof("value") or "unknown", "shape": None}
    shape: list[int | str] | None = None
    if kind.HasField("shape"):
        # Some exporters write -1 for a dimension that is open.
        shape = [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in kind.shape.dim]
    return {"name": value.name, "dtype": str(helper.tensor_dtype_to_np_dtype(kind.elem_type)), "shape": shape}

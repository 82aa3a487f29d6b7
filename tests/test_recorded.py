"""A record that was forged, or belongs to another file, is refused in words; no command trips over one."""

import copy
import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.errors import GbprewriteError, ModelError
from gbprewrite.graft import record as report
from gbprewrite.graft import recorded
from tests.small import cnn, normal

METHODS = ["guided", "gradient"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def converted() -> onnx.ModelProto:
    """A file with everything that a record tells of: rectifiers, pools, two methods."""
    return gbprewrite.convert(cnn(), METHODS)


def _forged(converted: onnx.ModelProto, change: Change) -> onnx.ModelProto:
    made = copy.deepcopy(converted)
    record = json.loads(made.metadata_props[0].value)
    change(record)
    report.write_record(made, record)
    return made


FORGED: dict[str, tuple[Change, str]] = {
    "classes that the maps lack": (lambda r: r.update(target="topk:3"), "topk:3"),
    "a target that is none": (lambda r: r.update(target="classes"), "classes"),
    "a target of 5,000 digits": (lambda r: r.update(target="9" * 5000), "target"),
    "a target at run time": (lambda r: r.update(target="input"), "does not go with the names"),
    "a cotangent": (lambda r: r.update(target="seed"), "does not go with the names"),
    "a method that is none": (lambda r: r.update(methods=["magic", "gradient"]), "magic"),
    "a method twice": (lambda r: r.update(methods=["guided", "gradient", "guided"]), "twice"),
    "no method": (lambda r: r.update(methods=[], maps=[]), "methods"),
    "a map for another input": (lambda r: r["maps"][0].update(input="photo"), "photo"),
    "a map for another output": (lambda r: r["maps"][0].update(output="photo"), "photo"),
    "one map for two": (lambda r: r["maps"][0].update(output=r["maps"][1]["output"]), "twice"),
    "a form that is none": (lambda r: r["maps"][0].update(form="mosaic"), "maps"),
    "another score": (lambda r: r.update(score="nowhere"), "nowhere"),
    "another output": (lambda r: r.update(output="nowhere"), "nowhere"),
    "an axis too far": (lambda r: r.update(class_axis=9), "class axis is 9"),
    "a batch axis too far": (lambda r: r.update(batch_axis=-70), "batch axis is -70"),
    "more nodes than there are": (lambda r: r["added"].update(nodes=10**9), "1,000,000,000 nodes"),
    "fewer nodes than none": (lambda r: r["added"].update(nodes=-1), "-1 nodes"),
    "more weights than there are": (lambda r: r["added"].update(initializers=10**30), "initializers"),
    "nodes that are true": (lambda r: r["added"].update(nodes=True), "another type"),
    "an unknown option": (lambda r: r["options"].update(model="x"), "model"),
    "a method of one's own whose place is a command": (
        lambda r: r.update(own_methods={"guided": {"at": "os; rm", "title": "", "limit": ""}}), "own methods"
    ),
    "one of ours for one's own": (
        lambda r: r.update(own_methods={"guided": {"at": None, "title": "", "limit": ""}}), "own methods"
    ),
    "a method of one's own that is a number": (lambda r: r.update(own_methods={"mine": 3}), "own methods"),
    "options that name a module": (lambda r: r["options"].update(method=["antigravity:X"]), "options name methods"),
    "options whose method is a number": (lambda r: r["options"].update(method=5), "options name methods"),
    "no options": (lambda r: r.update(options={}), "options"),
    "rules that are numbers": (lambda r: r["rectifiers"][0]["rules"].update(guided=3), "rule"),
    "an input of an unknown kind": (
        lambda r: r.update(given=[{"kind": "wish", "input": "image", "name": "image"}]), "unknown kind"
    ),
    "photographs without a word on them": (
        lambda r: r.update(embedded={"input": "image", "name": "image", "nodes": 0, "initializers": 0}), "photographs"
    ),
}  # fmt: skip


@pytest.mark.parametrize("command", [gbprewrite.inspect, gbprewrite.layers, gbprewrite.Explainer])
@pytest.mark.parametrize("name", FORGED)
def test_forged_records(name: str, command: Callable[..., object], converted: onnx.ModelProto) -> None:
    change, word = FORGED[name]
    with pytest.raises(ModelError, match="is damaged, of a version") as error:
        command(_forged(converted, change))
    assert word in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["no JSON", "[" * 100_000, "[]", "null", '{"nodes": ' + "9" * 5000 + "}"])
def test_what_is_no_record(text: str, converted: onnx.ModelProto) -> None:
    made = copy.deepcopy(converted)
    made.metadata_props[0].value = text
    with pytest.raises(ModelError, match="is damaged, of a version"):
        gbprewrite.inspect(made)


def test_two_records(converted: onnx.ModelProto) -> None:
    made = copy.deepcopy(converted)
    made.metadata_props.append(made.metadata_props[0])
    with pytest.raises(ModelError, match="twice"):
        gbprewrite.inspect(made)


def test_a_file_that_another_program_changed(converted: onnx.ModelProto) -> None:
    made = copy.deepcopy(converted)
    made.graph.node.append(onnx.helper.make_node("Identity", ["image"], ["copy"]))
    with pytest.raises(ModelError, match="another program changed it"):
        gbprewrite.layers(made)
    image = normal(2, 3, 12, 12)
    np.testing.assert_array_equal(  # what it computes is the same
        gbprewrite.Explainer(made)(image).map("guided"), gbprewrite.Explainer(converted)(image).map("guided")
    )


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**40,
    10**30,
    0.5,
    "",
    "image",
    "x" * 300,
    [],
    ["image"],
    [[]],
    {},
    {"a": 1},
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every part of a record."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from _places(value[key], (*path, key))


def _put(record: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value


def test_no_part_of_a_record_is_taken_for_granted(converted: onnx.ModelProto) -> None:
    places = list(_places(json.loads(converted.metadata_props[0].value)))
    rng = np.random.default_rng(0)
    for path in places:
        value = VALUES[rng.integers(len(VALUES))]
        made = _forged(converted, lambda r, p=path, v=value: _put(r, p, v))  # type: ignore[misc]
        for command in (gbprewrite.inspect, gbprewrite.layers, lambda m: gbprewrite.Explainer(m)(normal(1, 3, 12, 12))):
            try:
                command(made)
            except GbprewriteError:
                pass
            except Exception as error:
                pytest.fail(f"{path} = {value!r}: {type(error).__name__}: {error}")


def test_a_record_of_0_1_0(converted: onnx.ModelProto) -> None:
    """Entries that came later have the value that its files go by."""
    made = copy.deepcopy(converted)
    record = dict(report.read_record(made) or {})
    for name in (*report.SINCE_0_1, "cam_layers"):
        del record[name]
    del record["options"]["channels"]
    report.write_record(made, record)
    image = normal(2, 3, 12, 12)
    np.testing.assert_array_equal(
        gbprewrite.Explainer(made)(image).map("guided"), gbprewrite.Explainer(converted)(image).map("guided")
    )
    assert [layer.name for layer in gbprewrite.layers(made)] == [layer.name for layer in gbprewrite.layers(converted)]


def test_the_options_of_a_record_are_those_of_convert() -> None:
    assert inspect.signature(gbprewrite.convert).parameters.keys() - {"model"} == recorded.OPTIONS

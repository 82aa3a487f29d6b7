"""Nodes in any order are sorted as they run; cycles are found, and named."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.errors import ModelError
from gbprewrite.model import ordering
from tests.small import cnn, normal, run


def _shuffled(built: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    nodes = list(built.graph.node)
    random.Random(seed).shuffle(nodes)
    shuffled = onnx.ModelProto.FromString(built.SerializeToString())
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes)
    return shuffled


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_network_gives_the_maps_of_the_sorted_one(seed: int) -> None:
    image = normal(2, 3, 12, 12)
    wanted = run(gbprewrite.convert(cnn()), image=image)
    found = run(gbprewrite.convert(_shuffled(cnn(), seed)), image=image)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_sorted_nodes_stay_as_they_are() -> None:
    built = cnn()
    before = built.SerializeToString(deterministic=True)
    ordering.sort(built)
    assert built.SerializeToString(deterministic=True) == before


def test_every_order_of_a_diamond_is_sorted_as_near_to_it_as_it_runs() -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N"])
    made = {"a": ["x"], "b": ["a"], "c": ["a"], "d": ["b", "c"]}
    for order in itertools.permutations(made):
        nodes = [onnx.helper.make_node("Sum", made[name], [name]) for name in order]
        built = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [x], []))
        ordering.sort(built)
        middle = ["b", "c"] if order.index("b") < order.index("c") else ["c", "b"]
        assert [n.output[0] for n in built.graph.node] == ["a", *middle, "d"]


def test_nodes_of_branches_and_functions_are_sorted() -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 18, "own" : 1]>
    g (float[N] x, bool c) => (float[N] z) {
        z = Neg (y)
        y = If (c) <
            then_branch = t () => (float[N] p) { p = Exp (q) q = Neg (f) },
            else_branch = e () => (float[N] r) { r = Neg (x) }
        >
        f = own.twice (x)
    }
    <domain: "own", opset_import: ["" : 18]> twice (u) => (w) { w = Add (v, v) v = Neg (u) }
    """
    built = onnx.parser.parse_model(text)
    ordering.sort(built)
    assert [n.op_type for n in built.graph.node] == ["twice", "If", "Neg"]
    assert [n.op_type for n in built.graph.node[1].attribute[0].g.node] == ["Neg", "Exp"]
    assert [n.op_type for n in built.functions[0].node] == ["Neg", "Add"]


def _main(nodes: str) -> str:
    return f"g (float[N] x, bool c) => (float[N] y) {{ {nodes} }}"


def _branch(nodes: str) -> str:
    other = "else_branch = e () => (float[N] r) { r = Neg (x) }"
    return f"y = If (c) <then_branch = t () => (float[N] p) {{ {nodes} }}, {other}>"


RING = " ".join(f"v{i} = Neg (v{(i + 1) % 1000})" for i in range(1000))
FUNCTIONS = """
    <domain: "own", opset_import: ["" : 18, "own" : 1]> f (u) => (w) { v = own.h (u) w = Neg (v) }
    <domain: "own", opset_import: ["" : 18, "own" : 1]> h (u) => (w) { w = own.f (u) }"""
CYCLES = {
    "two nodes": (_main("a = Neg (b) b = Exp (a) y = Add (x, b)"), ["Neg 'a' needs Exp 'b' needs Neg 'a'"]),
    "itself": (_main("a = Mul (a, x) y = Neg (a)"), ["Mul 'a' needs Mul 'a'"]),
    "beside the score": (_main("a = Neg (b) b = Exp (a) y = Neg (x)"), ["wait for each other"]),
    "by a branch": (_main(_branch("p = Neg (q)") + " q = Exp (y)"), ["If 'y' needs Exp 'q' needs If 'y'"]),
    "inside a branch": (_main(_branch("p = Neg (q) q = Exp (p)")), ["Neg 'p' needs Exp 'q' needs Neg 'p'"]),
    "one of many": (_main(f"{RING} y = Add (x, v0)"), ["Neg 'v0' needs Neg 'v1' needs", "(994 more)"]),
    "a value made twice": (_main("y = Neg (x) y = Exp (x)"), ["'y'", "Neg 'y' and Exp 'y'", "made once"]),
    "functions": (_main("y = own.f (x)") + FUNCTIONS, ["f needs h needs f", "never end"]),
}


@pytest.mark.parametrize("name", CYCLES)
@pytest.mark.parametrize("command", [gbprewrite.convert, gbprewrite.inspect], ids=lambda f: f.__name__)
def test_cycles_are_refused_by_name(name: str, command: Callable[..., object]) -> None:
    text, words = CYCLES[name]
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18, "own" : 1]> {text}')
    with pytest.raises(ModelError) as error:
        command(parsed)
    assert all(word in str(error.value) for word in words), str(error.value)

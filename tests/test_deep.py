"""Deep models: nothing recurses over a graph, and time grows with the number of nodes."""

import sys
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

import gbprewrite
from gbprewrite.view import idioms
from tests.small import model, run

BLOCKS = 2000


@pytest.fixture(autouse=True)
def shallow() -> Iterator[None]:
    """Little room for recursion, so that a chain of any length shows it."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(500)
    yield
    sys.setrecursionlimit(limit)


def excited(blocks: int) -> onnx.ModelProto:
    """Squeeze-and-excitation blocks, each of which is x → x of x > 0: twice x, times a gate of sigmoid(0)."""
    lines, x = [], "x"
    for b in range(blocks):
        lines.append(f"c{b} = Conv ({x}, w) e{b} = Relu (c{b}) g{b} = GlobalAveragePool (e{b})")
        lines.append(f"k{b} = Conv (g{b}, s) a{b} = Sigmoid (k{b}) m{b} = Mul (e{b}, a{b})")
        x = f"m{b}"
    lines.append(f"p = GlobalAveragePool ({x}) y = Flatten (p)")
    text = f"g (float[1, 3, 4, 4] x) => (float[1, 3] y) {{ {' '.join(lines)} }}"
    eye = np.eye(3, dtype=np.float32)[:, :, None, None]
    return model(text, w=2 * eye, s=0 * eye)


def test_two_thousand_blocks_of_squeeze_and_excitation() -> None:
    x = np.abs(np.random.default_rng(0).normal(size=(1, 3, 4, 4))).astype(np.float32)
    found = run(gbprewrite.convert(excited(BLOCKS), target=1), optimise=False, x=x)
    want = np.zeros((1, 3, 4, 4))
    want[:, 1] = 1 / 16
    np.testing.assert_array_equal(found["x_guided"], want)


def test_layers_of_two_thousand_blocks() -> None:
    assert len(gbprewrite.layers(excited(BLOCKS), every=True)) == 6 * BLOCKS + 2


@pytest.mark.parametrize("operator", ["Identity (t{})", "Transpose <perm = [0, 1]> (t{})", "Neg (t{})"])
def test_long_chains(operator: str) -> None:
    chain = " ".join(f"t{i + 1} = {operator.format(i)}" for i in range(1200))
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ t0 = Relu (x) {chain} y = Relu (t1200) }}"
    x = np.float32([[1, -2, 3], [4, 5, -6]])
    found = run(gbprewrite.convert(model(text), target="seed"), optimise=False, x=x, seed=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(found["x_guided"], (x > 0).astype(np.float32))
    gbprewrite.layers(model(text))


def test_products_of_many_constants_are_not_walked_from_each_of_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, producer = [0], idioms.producer

    def counted(tensor: gs.Tensor) -> gs.Node | None:
        asked[0] += 1
        return producer(tensor)

    monkeypatch.setattr(idioms, "producer", counted)
    chain = " ".join(f"t{i + 1} = {('Mul', 'Div')[i % 2]} (t{i}, k)" for i in range(1200))
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ t0 = Relu (x) {chain} y = Relu (t1200) }}"
    gbprewrite.layers(model(text, k=np.float32(1)))
    assert asked[0] < 100 * 1200


def test_a_long_chain_of_quantised_moves() -> None:
    chain = " ".join(f"t{i + 1} = Identity (t{i})" for i in range(1200))
    text = (
        f"g (float[2, 3] x) => (float[2, 3] y) {{ r = Neg (x) t0 = QuantizeLinear (r, s, z) {chain} "
        "y = DequantizeLinear (t1200, s, z) }"
    )
    quantised = model(text, s=np.float32(0.5), z=np.uint8(128))
    x, seed = np.float32([[1, -2, 3], [4, 5, -6]]), np.ones((2, 3), np.float32)
    found = run(gbprewrite.convert(quantised, "gradient", "seed"), optimise=False, x=x, seed=seed)
    np.testing.assert_array_equal(found["x_gradient"], -seed)
    assert gbprewrite.layers(quantised)


def _calls_inside_branches(depth: int) -> onnx.ModelProto:
    """F0 is Relu; each further function calls the one before it inside an If."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions, branch = [], helper.make_node("Relu", ["x"], ["q"])
    outputs = {name: [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)] for name in "qp"}
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["p"])], "else", [], outputs["p"])
    for level in range(depth):
        then = helper.make_graph([branch], "then", [], outputs["q"])
        body = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
        functions.append(helper.make_function("f", f"F{level}", ["x", "c"], ["y"], [body], imports))
        branch = helper.make_node(f"F{level}", ["x", "c"], ["q"], domain="f")
    called = model("g (float[2, 3] x, bool c) => (float[2, 3] y) { y = f.F (x, c) }")
    called.graph.node[0].op_type = f"F{depth - 1}"
    called.graph.node[0].domain = "f"
    del called.opset_import[:]
    called.opset_import.extend(imports)
    called.functions.extend(functions)
    return called


def test_nested_branches() -> None:
    x, seed = np.float32([[1, -2, 3], [4, 5, -6]]), np.ones((2, 3), np.float32)
    converted = gbprewrite.convert(_calls_inside_branches(20), "gradient", "seed")
    for taken, want in ((True, (x > 0).astype(np.float32)), (False, -seed)):
        found = run(converted, x=x, c=np.array(taken), seed=seed)
        np.testing.assert_array_equal(found["x_gradient"], want)


def test_branches_nested_deeper_than_a_file_can_hold() -> None:
    with pytest.raises(gbprewrite.ModelError, match="nests more than 30 graphs"):
        gbprewrite.convert(_calls_inside_branches(60), "gradient", "seed")

"""What ONNX allows to be written in two ways: the name of the standard's domain, and sparse weights."""

import itertools

import numpy as np
import onnx
import pytest
from onnx import SparseTensorProto, helper, numpy_helper

import gbprewrite
from tests.small import Array, model, normal, run

X = np.float32([[1, -2], [0.5, 3]])
W = np.float32([[0, 2, 0], [-1, 0, 0]])


def _dense(opset: int = 18) -> onnx.ModelProto:
    text = """g (float[N, 2] x) => (float[N, 3] y) {
        a = MatMul (x, w)
        s = Softmax <axis = 1> (a)
        y = Relu (a)
    }"""
    return model(text, opset, w=W)


def _check(converted: onnx.ModelProto) -> None:
    found = run(converted, x=X)
    np.testing.assert_array_equal(found["y"], np.maximum(X @ W, 0))
    np.testing.assert_array_equal(found["x_gradient"], ((X @ W)[:, [1]] > 0) * W[:, 1])


@pytest.mark.parametrize(
    "imports",
    [[("ai.onnx", 18)], [("", 18)], [("", 18), ("ai.onnx", 18)], [("", 12), ("ai.onnx", 18)], [("ai.onnx", 13)]],
    ids=str,
)
@pytest.mark.parametrize("named", ["ai.onnx", "", "mixed"])
def test_the_standard_by_its_long_name(imports: list[tuple[str, int]], named: str) -> None:
    source = _dense()
    del source.opset_import[:]
    source.opset_import.extend(helper.make_opsetid(*entry) for entry in imports)
    for node, domain in zip(source.graph.node, itertools.cycle(["ai.onnx", ""] if named == "mixed" else [named])):
        node.domain = domain
    np.testing.assert_array_equal(run(source, x=X)["y"], np.maximum(X @ W, 0))  # onnxruntime takes it
    _check(gbprewrite.convert(source, "gradient", 1))
    assert gbprewrite.inspect(source).opset == imports[-1][1]


@pytest.mark.parametrize(("first", "last"), [(12, 13), (13, 12)])
def test_the_last_of_two_versions_counts(first: int, last: int) -> None:
    source = model("g (float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Softmax <axis = 1> (x) }", first)
    source.opset_import.append(helper.make_opsetid("ai.onnx", last))
    x, seed = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    converted = gbprewrite.convert(source, "gradient", "seed", through_softmax=True)
    np.testing.assert_array_equal(run(converted, x=x, seed=seed)["y"], run(source, x=x)["y"])


def test_the_long_name_inside_branches_and_functions() -> None:
    source = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["ai.onnx" : 18, "own" : 1]>
        g (float[N, 2] x, bool c) => (float[N, 2] y) {
            a = own.f (x)
            y = If (c) <then_branch = t () => (float[N, 2] p) { p = Relu (a) },
                        else_branch = e () => (float[N, 2] q) { q = Neg (a) }>
        }
        <domain: "own", opset_import: ["ai.onnx" : 18]>
        f (v) => (w) { w = Add (v, v) }
    """)
    for node in [*source.graph.node[1:], *source.functions[0].node]:
        node.domain = "ai.onnx"
        for attribute in node.attribute:
            attribute.g.node[0].domain = "ai.onnx"
    converted = gbprewrite.convert(source, "gradient", "seed")
    ones = np.ones_like(X)
    for taken, want in ((True, 2.0 * (X > 0)), (False, -2 * ones)):
        np.testing.assert_array_equal(run(converted, x=X, c=np.array(taken), seed=ones)["x_gradient"], want)


def _sparse(coordinates: bool, values: Array | None = None, dims: tuple[int, ...] = (2, 3)) -> SparseTensorProto:
    """W in either format of indices."""
    indices = np.array([[0, 1], [1, 0]]) if coordinates else np.array([1, 3])
    kept = np.float32([2, -1]) if values is None else values
    return helper.make_sparse_tensor(
        numpy_helper.from_array(kept, "w"), numpy_helper.from_array(indices, "w_indices"), dims
    )


def _initialised(sparse: SparseTensorProto) -> onnx.ModelProto:
    source = _dense()
    del source.graph.initializer[:]
    source.graph.sparse_initializer.append(sparse)
    return source


@pytest.mark.parametrize("coordinates", [True, False])
def test_sparse_initializers(coordinates: bool) -> None:
    source = _initialised(_sparse(coordinates))
    np.testing.assert_array_equal(run(source, x=X)["y"], np.maximum(X @ W, 0))
    _check(gbprewrite.convert(source, "gradient", 1))
    assert gbprewrite.inspect(source).parameters == 6


@pytest.mark.parametrize("coordinates", [True, False])
def test_sparse_constants(coordinates: bool) -> None:
    source = _dense()
    del source.graph.initializer[:]
    source.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=_sparse(coordinates)))
    _check(gbprewrite.convert(source, "gradient", 1))


def test_sparse_initializers_of_branches() -> None:
    source = model("""g (float[N, 2] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] p) { p = MatMul (x, w) },
                    else_branch = e () => (float[N, 3] q) { q = MatMul (x, v) }>
    }""", v=np.ones((2, 3), np.float32))  # fmt: skip
    next(a.g for a in source.graph.node[0].attribute if a.name == "then_branch").sparse_initializer.append(
        _sparse(coordinates=True)
    )
    converted = gbprewrite.convert(source, "gradient", "seed")
    seed = np.ones((2, 3), np.float32)
    for taken, want in ((True, seed @ W.T), (False, seed @ np.ones((3, 2)))):
        np.testing.assert_array_equal(run(converted, x=X, c=np.array(taken), seed=seed)["x_gradient"], want)


def _beyond() -> SparseTensorProto:
    made = _sparse(coordinates=False)
    made.indices.CopyFrom(numpy_helper.from_array(np.array([1, 6]), "w_indices"))
    return made


@pytest.mark.parametrize(
    ("sparse", "words"),
    [
        (_sparse(False, dims=(100_000, 100_000)), ["'w' holds 2 values", "40,000,000,000 bytes", "dense weights"]),
        (_beyond(), ["'w' contradicts itself", "[2] values", "dimensions [2, 3]"]),
        (_sparse(True, dims=(6,)), ["'w' contradicts itself", "indices of shape [2, 2]"]),
        (_sparse(False, np.float32([1, 2, 3])), ["'w' contradicts itself", "[3] values"]),
    ],
)
def test_sparse_tensors_that_make_no_sense(sparse: SparseTensorProto, words: list[str]) -> None:
    with pytest.raises(gbprewrite.ModelError) as raised:
        gbprewrite.convert(_initialised(sparse), "gradient", 1)
    assert all(word in str(raised.value) for word in words)

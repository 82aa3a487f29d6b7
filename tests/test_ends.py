"""Outputs without a gradient: the error leads to what lies before them, by name, and `layers` lists it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import gbprewrite
from tests.small import Array, model, normal, run

PLANES, X = normal(4, 3, 1, 1), normal(2, 3, 6, 7, seed=1)
DENSE = normal(3, 4, seed=2)
ROW = "g (float[N, 3, 6, 7] x) => ({out} y) {{ p = GlobalAveragePool (x) f = Flatten (p) z = Gemm (f, w) {rest} }}"


def zipmap() -> onnx.ModelProto:
    """A classifier as skl2onnx and others end it: a label, and a sequence of dictionaries."""
    made = model(ROW.format(out="float[N, 4]", rest="y = Softmax <axis = 1> (z) k = ArgMax <axis = 1> (y)"), w=DENSE)
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    made.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [4], [b"a", b"b", b"c", b"d"]))
    label = helper.make_node("ArrayFeatureExtractor", ["labels", "k"], ["label"], domain="ai.onnx.ml")
    names = ["a", "b", "c", "d"]
    loss = helper.make_node("ZipMap", ["y"], ["loss"], domain="ai.onnx.ml", classlabels_strings=names)
    made.graph.node.extend([label, loss])
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.STRING, [1, "N"]))
    made.graph.output.append(helper.make_value_info("loss", helper.make_sequence_type_proto(kind)))
    return made


CASES = {
    "ArgMax of maps": (
        model(
            "g (float[N, 3, 6, 7] x) => (int64[N, 6, 7] y) { z = Conv (x, w) y = ArgMax <axis = 1, keepdims = 0> (z) }",
            w=PLANES,
        ),
        ["--score z [N, 4, 6, 7]"],
    ),
    "ArgMax of a row": (model(ROW.format(out="int64[N, 1]", rest="y = ArgMax <axis = 1> (z)"), w=DENSE), ["--score z"]),
    "ArgMax of probabilities": (
        model(
            ROW.format(out="int32[N, 1]", rest="s = Softmax (z) a = ArgMax <axis = 1> (s) y = Cast <to = 6> (a)"),
            w=DENSE,
        ),
        ["--score z [N, 4] (or s, behind its Softmax)"],
    ),
    "above a threshold": (
        model(
            ROW.format(out="bool[N, 4]", rest="s = Sigmoid (z) t = Constant <value_float = 0.5> () y = Greater (s, t)"),
            w=DENSE,
        ),
        ["--score z", "behind its Sigmoid"],
    ),
    "ArgMax as a float": (
        model(ROW.format(out="float[N, 1]", rest="a = ArgMax <axis = 1> (z) y = Cast <to = 1> (a)"), w=DENSE),
        ["--score z"],
    ),
    "the numbers of the highest": (
        model(ROW.format(out="int64[N, 2]", rest="k = Constant <value_ints = [2]> () v, y = TopK (z, k)"), w=DENSE),
        ["--score z [N, 4]"],
    ),
    "ZipMap": (zipmap(), ["--score z [N, 4] (or y, behind its Softmax)"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_leads_on(name: str) -> None:
    source, words = CASES[name]
    with pytest.raises(gbprewrite.ModelError, match="no output depends on a float input") as caught:
        gbprewrite.convert(source, "gradient")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    score = words[0].split()[1]
    assert gbprewrite.convert(source, "gradient", score=score).graph.output[-2].name == "x_gradient"
    assert score in [layer.name for layer in gbprewrite.layers(source, every=True)]
    assert gbprewrite.layers(source)


def test_an_integer_score_leads_on() -> None:
    with pytest.raises(gbprewrite.UsageError, match=r"--score y: it holds int64.*can be explained: --score z \[N, 4\]"):
        gbprewrite.convert(CASES["ArgMax of a row"][0], score="y")


def test_what_is_named_gives_the_right_map() -> None:
    source, _ = CASES["ArgMax of maps"]
    found = run(gbprewrite.convert(source, "gradient", score="z"), x=X)
    sums: Array = np.einsum("ck,nkhw->nc", PLANES.reshape(4, 3), X)
    np.testing.assert_array_equal(found["explained_index"], sums.argmax(1))
    wanted = PLANES[sums.argmax(1)].reshape(2, 3, 1, 1) * np.ones((1, 1, 6, 7))
    np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-6)

"""Detectors' heads: which channels are scores, boxes and objectness, what is asked and said of a target, and which
output is suggested.

The heads are written in ONNX's text as the exporters write them; what each part is follows from how it was written.
"""

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.backward.coverage import known
from gbprewrite.errors import UsageError
from gbprewrite.graft import record as report
from gbprewrite.normalise.dialect import normalise
from gbprewrite.select import heads, starts
from gbprewrite.view.forward import view
from tests.detectors import DECODED, conv, end_to_end, head, separate, yolov5, yolov8, yolov10, yolox
from tests.small import model, normal, run

HEADS = {
    "yolov8": (yolov8, 1, "xywh", {"boxes": (0, 4), "scores": (4, 10)}),
    "yolov10": (yolov10, 2, "xyxy", {"boxes": (0, 4), "scores": (4, 10)}),
    "yolov5": (yolov5, 2, "xywh", {"boxes": (0, 4), "objectness": (4, 5), "scores": (5, 8)}),
    "yolox": (lambda: yolox(True), 2, "xywh", {"boxes": (0, 4), "objectness": (4, 5), "scores": (5, 8)}),
    "yolox, raw boxes": (lambda: yolox(False), 2, None, {"boxes": (0, 4), "objectness": (4, 5), "scores": (5, 8)}),
    "yolox, all raw": (lambda: yolox(False, False), 2, None, {"boxes": (0, 4), "objectness": (4, 5), "scores": (5, 8)}),
    "end to end": (end_to_end, 2, None, {"boxes": (0, 4), "scores": (4, 5), "other": (5, 6)}),
}


def found(source: onnx.ModelProto) -> heads.Head | None:
    made = normalise(source, known())
    graph = view(made, known())
    score = graph.outputs[0]
    return heads.recognise(score, heads.dependent(graph, starts.real_inputs(graph, made), score))


@pytest.mark.parametrize("name", HEADS)
def test_what_each_part_is(name: str) -> None:
    source, axis, corners, roles = HEADS[name]
    seen = found(source())
    assert seen is not None
    assert (seen.axis, seen.corners) == (axis, corners)
    assert {part.role: (part.start, part.stop) for part in seen.parts} == roles


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("target", [None, "argmax", "topk:2", "strongest", "strongest:2"])
def test_a_target_that_searches_is_a_question(name: str, target: str | None) -> None:
    source, axis, _, roles = HEADS[name]
    first, stop = roles["scores"]
    with pytest.raises(UsageError) as error:
        gbprewrite.convert(source(), "gradient", target)
    assert "channels 0-3 are boxes" in str(error.value)
    assert f"--target strongest --channels {first}:{stop}" in str(error.value)
    assert f"along axis {axis}" in str(error.value)


@pytest.mark.parametrize("name", HEADS)
def test_the_suggested_target_explains_the_highest_class_score(name: str) -> None:
    source, axis, _, roles = HEADS[name]
    first, stop = roles["scores"]
    built = gbprewrite.convert(source(), "gradient", "strongest", channels=f"{first}:{stop}", class_axis=axis)
    x = normal(1, 3, 4, 4, seed=7)
    given = run(built, x=x)
    y = np.full(given["y"].shape, -np.inf)
    allowed = (slice(None),) * axis + (slice(first, stop),)
    y[allowed] = given["y"][allowed]
    np.testing.assert_array_equal(given["explained_index"], [np.unravel_index(y[0].argmax(), y[0].shape)])
    assert report.read_record(built)["notes"] == []  # type: ignore[index]


@pytest.mark.parametrize(
    ("target", "channels", "note"),
    [
        ("2", None, "target 2 on boxes: a coordinate or another value that is no class is explained"),
        ("2,7", None, "is explained (channels 0-3 are boxes"),
        ("unit:1,3", None, "target unit:1,3 on boxes"),
        ("strongest", ":", "may be explained"),
        ("argmax", "3:10", "may be explained"),
        ("input", None, "what is given at run time may be a coordinate"),
        ("seed", None, "class scores are 4:10"),
        ("7", None, None),
        ("unit:8,3", None, None),
        ("channel:5", None, None),
        ("topk:2", "4:", None),
    ],
)
def test_a_coordinate_is_explained_with_a_word(target: str, channels: str | None, note: str | None) -> None:
    record = report.read_record(gbprewrite.convert(yolov8(), "gradient", target, channels=channels))
    assert record is not None
    assert record["head"]["parts"][0]["role"] == "boxes"
    assert record["head"]["boxes"] == {"output": "y", "axis": 1, "start": 0, "corners": "xywh"}
    assert len(record["notes"]) == (note is not None)
    assert note is None or note in record["notes"][0]


def test_boxes_of_their_own_are_explained_with_a_word() -> None:
    source = separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Softmax <axis = 2> (kt)", DECODED)
    record = report.read_record(gbprewrite.convert(source, "gradient", score="box", class_axis=2))
    assert record is not None
    assert "coordinate" in record["notes"][0]
    queries = separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Identity (kt)", "box = Sigmoid (bt)")
    record = report.read_record(gbprewrite.convert(queries, "gradient", score="box", class_axis=2))
    assert record is not None
    assert any("a coordinate may be explained" in note for note in record["notes"])


SEVERAL = {
    "Softmax beside decoded boxes": (
        separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Softmax <axis = 2> (kt)", DECODED),
        ["score holds scores (behind Softmax", "use --score score --target strongest"],
    ),
    "Sigmoid beside raw boxes": (
        separate("float[1, 16, 4] box, float[1, 16, 3] score", "score = Sigmoid (kt)", "box = Identity (bt)"),
        ["score holds scores (behind Sigmoid", "use --score score --target strongest"],
    ),
    "logits beside boxes": (
        separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Identity (kt)", "box = Sigmoid (bt)"),
        ["box has four values for each position of score", "--score score --target strongest"],
    ),
    "both raw": (
        separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Identity (kt)", "box = Identity (bt)"),
        ["box has four values for each position of score", "--score score --target strongest"],
    ),
    "logits and probabilities": (
        separate("float[1, 16, 3] kt, float[1, 16, 3] score", "score = Softmax (kt)"),
        ["score holds scores (behind Softmax 'Softmax_8'), kt the same before it: use --score score"],
    ),
    "chosen by TopK": (
        separate(
            "float[D] score, float[D, 4] box",
            "g = Sigmoid (kt) m = ReduceMax <keepdims = 0> (g, b2) flat = Squeeze (m, zero)",
            "score, i = TopK (flat, five)",
            "bs = Squeeze (bt, zero) box = Gather <axis = 0> (bs, i)",
        ),
        ["score holds scores", "selection (TopK)", "--score score --target strongest", "before it are kt [1, 16, 3]"],
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_output_of_class_scores_is_suggested(name: str) -> None:
    source, said = SEVERAL[name]
    source.graph.initializer.extend(
        [onnx.numpy_helper.from_array(np.array([2]), "b2"), onnx.numpy_helper.from_array(np.array([5]), "five")]
    )
    with pytest.raises(UsageError) as error:
        gbprewrite.convert(source, "gradient")
    for words in said:
        assert words in str(error.value)


PLAIN = {
    "logits": head("float[1, 5] y", conv("k", "f", 5, 1), "p = GlobalAveragePool (k) y = Flatten (p)"),
    "segmentation": head("float[1, 5, 4, 4] y", conv("k", "f", 5, 1), "y = Sigmoid (k)"),
    "two groups of logits": head(
        "float[1, 9, 4, 4] y", conv("k", "f", 5, 1), conv("m", "f", 4, 2), "u = Relu (k) v = Relu (m)",
        "y = Concat <axis = 1> (u, v)",
    ),
    "four positions, and a bias along the classes": model(
        """g (float[1, 3, 4, 4] x) => (float[1, 4, 5] y) { m = ReduceMean <keepdims = 0> (x, a)
        t = Transpose <perm = [0, 2, 1]> (m) p = MatMul (t, w) q = Add (b, p) y = LogSoftmax <axis = -1> (q) }""",
        a=np.array([2]), w=normal(3, 5), b=normal(5),
    ),
    "both sides of one probability": head(
        "float[1, 2] y", conv("k", "f", 1, 1), "p = GlobalAveragePool (k) q = Flatten (p) s = Sigmoid (q)",
        "one = Constant <value_float = 1.0> () n = Sub (one, s) y = Concat <axis = 1> (n, s)",
    ),
    "one probability before those of others": head(
        "float[1, 4] y", conv("k", "f", 1, 1), conv("m", "f", 3, 2), "u = GlobalAveragePool (k)",
        "v = GlobalAveragePool (m) a = Flatten (u) b = Flatten (v) s = Sigmoid (a) t = Sigmoid (b)",
        "y = Concat <axis = 1> (s, t)",
    ),
    "two scales of scores": separate(
        "float[1, 32, 3] y", "g = Sigmoid (kt) g2 = Sigmoid (kt) y = Concat <axis = 1> (g, g2)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_mixed_head(name: str) -> None:
    assert found(PLAIN[name]) is None


def test_a_graph_that_joins_itself_again_and_again_ends() -> None:
    joins = " ".join(f"j{i + 1} = Concat <axis = 2> (j{i}, j{i})" for i in range(18))
    source = head("float[1, 4, H, 4] y", f"j0 = Identity (f) {joins} y = Identity (j18)")
    assert found(source) is None


def test_one_class_of_many_anchors() -> None:
    """BlazeFace: [N, A, 1] beside [N, A, 16]; each anchor is a position, not a class."""
    source = head(
        "float[1, 16, 1] score, float[1, 16, 8] values", conv("kc", "f", 1, 1), conv("bc", "f", 8, 2),
        "kr = Reshape (kc, l) score = Transpose <perm = [0, 2, 1]> (kr)",
        "br = Reshape (bc, l) values = Transpose <perm = [0, 2, 1]> (br)",
        l=np.array([1, -1, 16]),
    )  # fmt: skip
    x = normal(1, 3, 4, 4, seed=7)
    found = run(gbprewrite.convert(source, "gradient", "strongest:3", score="score"), x=x)
    order = np.argsort(-found["score"][0, :, 0], kind="stable")[:3]
    np.testing.assert_array_equal(found["explained_index"], [[[anchor, 0] for anchor in order]])


def test_the_boxes_that_a_selection_leaves_are_explained_in_its_order() -> None:
    """score[k] = sigmoid(w f) of one anchor and class: its gradient is y (1 - y) w, through the trunk's ReLU."""
    source = separate(
        "float[D] score, float[D, 4] box",
        "g = Sigmoid (kt) m = ReduceMax <keepdims = 0> (g, two_axis) flat = Squeeze (m, zero)",
        "score, i = TopK (flat, five) bs = Squeeze (bt, zero) box = Gather <axis = 0> (bs, i)",
    )
    added = {"two_axis": [2], "five": [5]}
    source.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in added.items())
    x = 0.1 * normal(1, 3, 4, 4, seed=7)
    found = run(gbprewrite.convert(source, "gradient", "strongest:2", score="score"), x=x)
    np.testing.assert_array_equal(found["explained_index"], [[[0], [1]]])
    w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in source.graph.initializer}
    before = np.einsum("oi,ip->op", w["wc"][:, :, 0, 0], x[0].reshape(3, 16).astype(np.float64))
    y = 1 / (1 + np.exp(-w["wkc"][:, :, 0, 0] @ np.maximum(before, 0)))
    for k, anchor in enumerate(np.argsort(-y.max(0), kind="stable")[:2]):
        number, expected = y[:, anchor].argmax(), np.zeros((3, 16))
        slope = y[number, anchor] * (1 - y[number, anchor]) * w["wkc"][number, :, 0, 0] * (before[:, anchor] > 0)
        expected[:, anchor] = w["wc"][:, :, 0, 0].T @ slope
        np.testing.assert_allclose(found["x_gradient"][0, k].reshape(3, 16), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(UsageError, match="one score for each box that TopK left"):
        gbprewrite.convert(source, "gradient", score="score")

"""Detectors' heads: which channels are scores, boxes and objectness, what is asked and said of a target, and which
output is suggested.

The heads are written in ONNX's text as the exporters write them; what each part is follows from how it was written.
"""

import re
from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite import heads, report, select
from gbprewrite.errors import UsageError
from gbprewrite.normalise import normalise
from gbprewrite.view import view
from tests.small import model, normal, run

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(4)), 0).reshape(1, 2, 16).astype(np.float32)
LONG = {"anchors": GRID + 0.5, "strides": np.full((1, 16), 8, np.float32), "two": np.array(2, np.float32)}
WIDE = {name: np.ascontiguousarray(value.transpose(0, 2, 1)) for name, value in (("grid", GRID),)}
TO_LONG, TO_WIDE = np.array([1, -1, 16]), np.array([1, 16, -1])


def conv(name: str, source: str, channels: int, seed: int) -> tuple[str, dict[str, Any]]:
    return f"{name} = Conv ({source}, w{name})", {f"w{name}": normal(channels, 4, 1, 1, seed=seed)}


def trunk() -> tuple[str, dict[str, Any]]:
    return "c = Conv (x, wc) f = Relu (c)", {"wc": normal(4, 3, 1, 1)}


def head(outputs: str, *lines: Any, **weights: Any) -> onnx.ModelProto:
    """A trunk and these lines, text or (text, weights)."""
    text, given = [], dict(weights)
    for line in (trunk(), *lines):
        words, found = line if isinstance(line, tuple) else (line, {})
        text.append(words)
        given |= found
    known = {k: v for k, v in given.items() if re.search(rf"\b{k}\b", " ".join(text))}
    return model(f"g (float[1, 3, 4, 4] x) => ({outputs}) {{ {' '.join(text)} }}", **known)


SHAPES = {"l": TO_LONG, "s": TO_WIDE, "zero": np.array([0]), "h": np.array([2]), "e": np.array([4]), "a": np.array([1])}


def yolov8() -> onnx.ModelProto:
    """Distances to four sides, made centre and size, times strides; class scores behind Sigmoid; [N, 4 + C, A]."""
    return head(
        "float[1, 10, 16] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 6, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) d = Relu (bl) lt = Slice (d, zero, h, a) rb = Slice (d, h, e, a)",
        "p = Sub (anchors, lt) q = Add (anchors, rb) sum = Add (p, q) mid = Div (sum, two) wh = Sub (q, p)",
        "cw = Concat <axis = 1> (mid, wh) boxes = Mul (cw, strides) s1 = Sigmoid (kl)",
        "y = Concat <axis = 1> (boxes, s1)",
        **{**LONG, **SHAPES},
    )


def yolov10() -> onnx.ModelProto:
    """The same with corners, cut by Split, and channels last."""
    return head(
        "float[1, 16, 10] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 6, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) d = Relu (bl) lt, rb = Split <axis = 1, num_outputs = 2> (d)",
        "p = Sub (anchors, lt) q = Add (anchors, rb) cw = Concat <axis = 1> (p, q) boxes = Mul (cw, strides)",
        "s1 = Sigmoid (kl) z = Concat <axis = 1> (boxes, s1) y = Transpose <perm = [0, 2, 1]> (z)",
        **{**LONG, **SHAPES},
    )


def yolov5() -> onnx.ModelProto:
    """One convolution for all: Sigmoid, cut, decoded by grid and anchors, joined again; two scales; [N, A, 5 + C]."""

    def scale(n: str) -> str:
        return f"""t{n} = Transpose <perm = [0, 2, 3, 1]> (o{n}) r{n} = Reshape (t{n}, s) g{n} = Sigmoid (r{n})
            xy{n}, wh{n}, conf{n} = Split <axis = 2> (g{n}, parts) m{n} = Mul (xy{n}, two) u{n} = Add (m{n}, grid)
            v{n} = Mul (u{n}, stride) n{n} = Mul (wh{n}, two) q{n} = Pow (n{n}, two) z{n} = Mul (q{n}, sizes)
            y{n} = Concat <axis = 2> (v{n}, z{n}, conf{n})"""

    sizes = {"parts": np.array([2, 2, 4]), "sizes": normal(1, 16, 2), "stride": np.array(8, np.float32)}
    return head(
        "float[1, 32, 8] y",
        conv("o1", "f", 8, 1),
        conv("o2", "f", 8, 2),
        scale("1"),
        scale("2"),
        "y = Concat <axis = 1> (y1, y2)",
        **{**LONG, **WIDE, **SHAPES, **sizes},
    )


def yolox(decoded: bool, scored: bool = True) -> onnx.ModelProto:
    """Three branches, [4, 1, C], joined, moved behind, and perhaps decoded by a grid and Exp."""
    sigmoids = "os = Sigmoid (o) ks = Sigmoid (k)" if scored else "os = Identity (o) ks = Identity (k)"
    decode = """xy = Slice (t, zero, h, b2) wh = Slice (t, h, e, b2) rest = Slice (t, e, end, b2)
        u = Add (xy, grid) v = Mul (u, stride) n = Exp (wh) z = Mul (n, stride) y = Concat <axis = -1> (v, z, rest)"""
    return head(
        "float[1, 16, 8] y",
        conv("b", "f", 4, 1),
        conv("o", "f", 1, 2),
        conv("k", "f", 3, 3),
        f"{sigmoids} j = Concat <axis = 1> (b, os, ks) i = Reshape (j, l) t = Transpose <perm = [0, 2, 1]> (i)",
        decode if decoded else "y = Identity (t)",
        **{**WIDE, **SHAPES, "b2": np.array([2]), "end": np.array([2**62]), "stride": np.array(8, np.float32)},
    )


def end_to_end() -> onnx.ModelProto:
    """Six values for each of three boxes that TopK chose: corners, score, class number; [N, K, 6]."""
    return head(
        "float[1, 3, 6] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 5, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) bt = Transpose <perm = [0, 2, 1]> (bl) p = Sub (centre, bt)",
        "g = Sigmoid (kl) best = ReduceMax <keepdims = 0> (g, a) v, i = TopK (best, three)",
        "i3 = Unsqueeze (i, b2) i4 = Expand (i3, wide) chosen = GatherElements <axis = 1> (p, i4)",
        "n = ArgMax <axis = 1, keepdims = 0> (g) ni = GatherElements <axis = 1> (n, i) nf = Cast <to = 1> (ni)",
        "v3 = Unsqueeze (v, b2) n3 = Unsqueeze (nf, b2) y = Concat <axis = 2> (chosen, v3, n3)",
        **{**SHAPES, "centre": normal(1, 16, 4), "b2": np.array([2]), "wide": np.array([1, 3, 4])},
        three=np.array([3]),
    )


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
    made = normalise(source)
    graph = view(made)
    score = graph.outputs[0]
    return heads.recognise(score, heads.dependent(graph, select.real_inputs(graph, made), score))


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


DECODED = """xy, wh = Split <axis = 2, num_outputs = 2> (bt) u = Add (xy, grid) n = Exp (wh) m = Div (n, two)
    p = Sub (u, m) q = Add (u, m) box = Concat <axis = 2> (p, q)"""


def separate(outputs: str, *lines: str) -> onnx.ModelProto:
    """Class scores kt [1, 16, 3] and box values bt [1, 16, 4], as SSD, RetinaNet and DETR have them."""
    moved = """kr = Reshape (kc, l) kt = Transpose <perm = [0, 2, 1]> (kr)
        br = Reshape (bc, l) bt = Transpose <perm = [0, 2, 1]> (br)"""
    made = conv("kc", "f", 3, 1), conv("bc", "f", 4, 2)
    return head(outputs, *made, moved, *lines, **{**LONG, **WIDE, **SHAPES, "one": np.array([1])})


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
        ["box holds scores"],
    ),
    "both raw": (
        separate("float[1, 16, 3] score, float[1, 16, 4] box", "score = Identity (kt)", "box = Identity (bt)"),
        ["box has four values for each position of score", "--score score --target strongest"],
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


@pytest.mark.parametrize("name", [name for name in SEVERAL if name != "logits beside boxes"])
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

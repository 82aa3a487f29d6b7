"""Old spellings brought to the dialect: the model must compute what it computed before, in the same runtime."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.inference import infer
from gbprewrite.modelfile import opset_of
from gbprewrite.normalise import UPGRADES, normalise
from gbprewrite.tensors import read_type
from tests.small import Array, cnn, model, normal, run

X = "float[2, 3, 4, 4] x"
Y = "float[a, b, c, d] y"
NORM = {"v": normal(3), "w": normal(3) ** 2}
SCALES = {"s": np.float32([1, 1, 2, 1.5])}
DENSE = {"m": normal(48, 3), "v": normal(3)}
ROIS = {"r": np.float32([[0, 0, 3, 3], [1, 0, 2, 3]]), "i": np.array([0, 1])}
# operator and the opset whose spelling is tested: (output, body, weights)
SPELLINGS: dict[tuple[str, int], tuple[str, str, dict[str, Array]]] = {
    ("BatchNormalization", 7): (Y, "y = BatchNormalization (x, v, v, v, w)", NORM),
    ("BatchNormalization", 8): (Y, "y = BatchNormalization <spatial = 1> (x, v, v, v, w)", NORM),
    **{
        (name, 6): (Y, f"p = Abs (x) y = {name} <axis = 1, broadcast = 1> (p, v)", {"v": normal(3)})
        for name in ("Add", "Sub", "Mul", "Div", "Pow")
    },
    ("BatchNormalization", 6): (Y, "y = BatchNormalization <is_test = 1> (x, v, v, v, w)", NORM),
    ("Dropout", 6): (Y, "y = Dropout <is_test = 1> (x)", {}),
    ("Gemm", 6): ("float[a, b] y", "f = Flatten (x) y = Gemm <broadcast = 1> (f, m, v)", DENSE),
    ("PRelu", 6): (Y, "y = PRelu (x, v)", {"v": normal(3)}),
    ("Clip", 7): (Y, "y = Clip <min = -0.5, max = 0.25> (x)", {}),
    ("Clip", 10): (Y, "y = Clip <max = 0.25> (x)", {}),
    ("Dropout", 7): (Y, "y = Dropout <ratio = 0.5> (x)", {}),
    ("Dropout", 11): (Y, "y = Dropout <ratio = 0.5> (x)", {}),
    ("GridSample", 16): (Y, "y = GridSample <mode = \"bilinear\"> (x, g)", {"g": normal(2, 3, 3, 2)}),
    ("Hardmax", 11): (Y, "y = Hardmax <axis = 1> (x)", {}),
    ("LogSoftmax", 11): (Y, "y = LogSoftmax <axis = 1> (x)", {}),
    ("Pad", 7): (Y, "y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1], value = 0.5> (x)", {}),
    ("Pad", 10): (Y, 'y = Pad <pads = [0, 0, 1, 2, 0, 0, 0, 1], mode = "reflect"> (x)', {}),
    ("ReduceSum", 11): (Y, "y = ReduceSum <axes = [1, 2]> (x)", {}),
    ("Resize", 10): (Y, "y = Resize (x, s)", SCALES),
    ("RoiAlign", 10): (Y, "y = RoiAlign (x, r, i)", ROIS),
    ("Scatter", 10): (Y, "y = Scatter <axis = 1> (x, i, u)", {"i": np.array([[[[2, 0]]]]), "u": normal(1, 1, 1, 2)}),
    ("Slice", 9): (Y, "y = Slice <starts = [1, -3], ends = [3, 9], axes = [1, 2]> (x)", {}),
    ("Softmax", 7): (Y, "y = Softmax (x)", {}),
    ("Softmax", 12): (Y, "y = Softmax <axis = 2> (x)", {}),
    ("Split", 11): (Y, "y, z = Split <axis = 1, split = [1, 2]> (x)", {}),
    ("Split", 13): (Y, "y, z = Split <axis = 2> (x)", {}),
    ("Squeeze", 11): ("float[a, b, c] y", "q = ReduceSum <axes = [1]> (x) y = Squeeze <axes = [1]> (q)", {}),
    ("TopK", 7): (Y, "y, i = TopK <k = 2> (x)", {}),
    ("Unsqueeze", 11): ("float[a, b, c, d, e] y", "y = Unsqueeze <axes = [-1]> (x)", {}),
    ("Upsample", 7): (Y, 'y = Upsample <scales = [1.0, 1.0, 2.0, 3.0], mode = "nearest"> (x)', {}),
    ("Upsample", 9): (Y, 'y = Upsample <mode = "linear"> (x, s)', SCALES),
    **{
        (name, 13): (Y, f"p = Abs (x) y = {name} <axes = [1, -1], keepdims = 1> (p)", {})
        for name in UPGRADES
        if name.startswith("Reduce") and name != "ReduceSum"
    },
}  # fmt: skip


def _column(v: Array) -> Array:
    return v.reshape(-1, 1, 1)


# onnxruntime begins with opset 7; what the operators' pages said of opset 6
OPSET_6: dict[tuple[str, int], Any] = {
    ("Add", 6): lambda x, v: abs(x) + _column(v),
    ("Sub", 6): lambda x, v: abs(x) - _column(v),
    ("Mul", 6): lambda x, v: abs(x) * _column(v),
    ("Div", 6): lambda x, v: abs(x) / _column(v),
    ("Pow", 6): lambda x, v: abs(x) ** _column(v),
    ("BatchNormalization", 6): lambda x, v, w: _column(v) * (x - _column(v)) / np.sqrt(_column(w) + 1e-5) + _column(v),
    ("Dropout", 6): lambda x: x,
    ("Gemm", 6): lambda x, m, v: x.reshape(2, -1) @ m + v,
    ("PRelu", 6): lambda x, v: np.where(x > 0, x, x * _column(v)),
}


@pytest.mark.parametrize("key", SPELLINGS, ids=lambda k: f"{k[0]}-{k[1]}")
def test_upgraded_model_computes_the_same(key: tuple[str, int]) -> None:
    output, body, weights = SPELLINGS[key]
    source = model(f"g ({X}) => ({output}) {{ {body} }}", key[1], **weights)
    x = normal(2, 3, 4, 4, seed=5)
    before = run(source, False, x=x)["y"] if key not in OPSET_6 else OPSET_6[key](x, **weights)
    upgraded = normalise(source)
    assert opset_of(upgraded) == 18
    onnx.checker.check_model(upgraded, full_check=True)
    np.testing.assert_allclose(run(upgraded, False, x=x)["y"], before, rtol=1e-6, atol=1e-7)


def test_every_upgrade_is_tested() -> None:
    assert {name for name, _ in SPELLINGS} == set(UPGRADES)


def test_initializers_of_ir_3_leave_the_inputs() -> None:
    text = "g (float[N, 3] x, float[3] w) => (float[N, 3] y) { a = Mul (x, w) y = Relu (a) }"
    source = model(text, 9, 3, w=normal(3))
    built = gbprewrite.convert(source)
    assert [i.name for i in built.graph.input] == ["x"]
    assert [o.name for o in built.graph.output] == ["y", "x_guided", "explained_index"]


def test_overridable_initializers_of_later_files_stay_inputs() -> None:
    text = "g (float[N, 3] x, float[3] w) => (float[N, 3] y) { a = Mul (x, w) y = Relu (a) }"
    built = gbprewrite.convert(model(text, 13, 8, w=normal(3)))
    assert [i.name for i in built.graph.input] == ["x", "w"]
    assert [o.name for o in built.graph.output] == ["y", "x_guided", "explained_index"]


def test_local_functions_are_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[N, 3] x) => (float[N, 3] y) { y = local.activate (x) }
    <domain: "local", opset_import: ["" : 18]>
    activate (v) => (r) { h = Neg (v) r = Relu (h) }"""
    found = run(
        gbprewrite.convert(onnx.parser.parse_model(text), target="seed"),
        x=np.float32([[1, -1, -1]]),
        seed=np.float32([[1, 1, -1]]),
    )
    np.testing.assert_array_equal(found["x_guided"], [[0, -1, 0]])


def test_minus_one_is_read_as_an_open_dimension() -> None:
    source = model("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
    source.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    built = gbprewrite.convert(source, target="seed")
    assert run(built, x=normal(5, 3), seed=normal(5, 3))["x_guided"].shape == (5, 3)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too old": (5, {}, "opset 5.*6 to"),
    "too new": (99, {}, "opset 99.*6 to"),
    "down": (18, {"opset": 17}, "--opset 17.*18 to"),
    "down to before an operator": (23, {"opset": 21}, r"--opset 21.*23: RMSNormalization.*changed since"),
    "beyond": (18, {"opset": 99}, "--opset 99"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_opsets_out_of_reach(name: str) -> None:
    opset, options, message = REFUSED[name]
    body = "y = RMSNormalization (x, w)" if "before" in name else "y = Relu (x)"
    source = model(f"g (float[N, 3] x) => (float[N, 3] y) {{ {body} }}", opset, w=normal(3))
    with pytest.raises(gbprewrite.GbprewriteError, match=message):
        gbprewrite.convert(source, **options)


def test_batch_normalization_that_no_opset_can_express() -> None:
    source = model(
        "g (float[2, 3] x) => (float[2, 3] y) { y = BatchNormalization <spatial = 0> (x, v, v, v, v) }", 7, v=normal(3)
    )
    with pytest.raises(gbprewrite.ModelError, match="spatial=0"):
        gbprewrite.convert(source, "gradient")


# Shapes that ONNX's inference leaves open by itself: what infer() finds for y
INFERRED: dict[str, tuple[str, list[Any]]] = {
    "pads computed from a rank": (
        """s = Shape (x) r = Shape (s) h = ConstantOfShape <value = int64[1] {1}> (r) p = Concat <axis = 0> (h, h)
        y = Pad (x, p)""",
        [None, 5, None],
    ),
    "dynamic batch through casts": (
        """s = Shape (x) i = Cast <to = 6> (s) b = Slice (i, zero, one) j = Cast <to = 7> (b)
        t = Concat <axis = 0> (j, twelve) q = Expand (x, three_four) y = Reshape (q, t)""",
        ["N", 12],
    ),
    "length of the shape only": ("s = Shape (x) t = Abs (s) y = Reshape (x, t)", [None, None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", INFERRED)
def test_inference_and_folding_take_turns(name: str) -> None:
    body, expected = INFERRED[name]
    weights = {"zero": [0], "one": [1], "twelve": [12], "three_four": [1, 3, 4]}
    text = f"g (float[N, 3, M] x) => (float[] y) {{ {body} }}"
    built = model(text, **{n: np.array(v) for n, v in weights.items() if n in body})
    built.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = infer(built)
    dtype, shape = read_type(inferred.graph.output[0].type)
    assert dtype == np.float32
    assert shape is not None
    assert [d if isinstance(e, (int, str)) else None for d, e in zip(shape, expected, strict=True)] == expected


def test_question_marks_are_two_unknown_dimensions() -> None:
    source = model("g (float[1, 2, H, W] x) => (float[1, 2, H, W] y) { y = Relu (x) }")
    for axis in (2, 3):
        source.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "?"
    assert read_type(infer(source).graph.input[0].type)[1] == [1, 2, None, None]


def test_downgrade_to_where_cuda_has_kernels() -> None:
    """From opset 22 on onnxruntime has no CUDA kernel for MaxPool; the operators of a CNN say the same in 21."""
    source, x = cnn(22), normal(2, 3, 12, 12)
    built = gbprewrite.convert(source, ("gradient", "guided"), opset=21)
    assert opset_of(built) == 21
    as_it_is = run(gbprewrite.convert(source, ("gradient", "guided")), image=x)
    for name, value in run(built, image=x).items():
        np.testing.assert_allclose(value, as_it_is[name], rtol=1e-5, atol=1e-6)


def test_a_branch_with_a_constant_condition_is_taken() -> None:
    """A condition that depends on a rank alone, and a branch in a branch that uses the same inner names."""
    text = """g (float[N, 3] x) => (float[N, 3] y) {
        s = Shape (x) r = Size (s) c = Equal (r, two) n = Not (c)
        z = If (c) <
            then_branch = t () => (float[N, 3] a) {
                b = Neg (x)
                a = If (n) <then_branch = u () => (float[N, 3] d) { d = Identity (x) },
                            else_branch = w () => (float[N, 3] e) { b = Relu (b) e = Identity (b) }>
            },
            else_branch = f () => (float[N, 3] b) { b = Exp (x) }>
        y = Add (x, z) }"""
    source = model(text.replace("b = Relu (b) e = Identity (b)", "q = Relu (b) e = Identity (q)"), two=np.array(2))
    built = gbprewrite.convert(source, ("gradient", "guided"), "seed")
    assert not any(n.op_type == "If" for n in built.graph.node)
    x, seed = np.float32([[1, -1, -2]]), np.float32([[1, 1, -1]])
    found = run(built, x=x, seed=seed)
    np.testing.assert_array_equal(found["y"], run(source, x=x)["y"])
    np.testing.assert_array_equal(found["x_gradient"], [[1, 0, 0]])  # y = x + relu(-x)
    np.testing.assert_array_equal(found["x_guided"], [[1, 0, -1]])


def test_a_default_that_may_be_overridden_decides_no_branch() -> None:
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] a) { a = Relu (x) },
                    else_branch = e () => (float[N, 3] b) { b = Neg (x) }> }"""
    with pytest.raises(gbprewrite.UnsupportedOperators, match="chosen at run time"):
        gbprewrite.convert(model(text, c=np.array(True)), "gradient", "seed")

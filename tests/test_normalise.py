"""Old spellings brought to the dialect: the model must compute what it computed before, in the same runtime."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.backward.coverage import known
from gbprewrite.graft import record as report
from gbprewrite.model.file import opset_of
from gbprewrite.model.inference import infer
from gbprewrite.model.tensors import read_type
from gbprewrite.normalise.dialect import normalise
from gbprewrite.normalise.opsets import UPGRADES
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
    upgraded = normalise(source, known())
    assert opset_of(upgraded) == 18
    onnx.checker.check_model(upgraded, full_check=True)
    np.testing.assert_allclose(run(upgraded, False, x=x)["y"], before, rtol=1e-6, atol=1e-7)


def _batch_normalised(x: Array, scale: Array, shift: Array) -> Array:
    """By the batch's own mean and variance, in float64."""
    axes = (0, *range(2, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return scale.reshape(shape) * (x - mean) / np.sqrt(variance + 1e-5) + shift.reshape(shape)


@pytest.mark.parametrize("opset", [7, 8, 9, 12, 13])
@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4), (2, 3, 4, 4)])
def test_five_outputs_of_batch_normalization_mean_training(opset: int, shape: tuple[int, ...]) -> None:
    """All five are read; y and its gradient are those of the batch's own statistics, as in onnxruntime."""
    given = {name: normal(3, seed=i) for i, name in enumerate(("scale", "shift", "mean"), 1)}
    dims = ["N", *map(str, shape[1:])]
    parameters = "scale, shift, mean, variance"
    text = f"""g (float[{", ".join(dims)}] x) => (float[{", ".join(dims)}] y, float[3] a, float[3] b, float[3] e) {{
        n, a, b, c, d = BatchNormalization <momentum = 0.7> (x, {parameters})
        e = Add (c, d)
        y = Relu (n)
    }}"""
    source = model(text, opset, variance=normal(3) ** 2 + 0.5, **given)
    x, seed = 3 * normal(*shape, seed=7) + 1, normal(*shape, seed=8)
    converted = gbprewrite.convert(source, "gradient", "seed", score="y")
    found, before = run(converted, x=x, seed=seed), run(source, x=x)
    for name in ("y", "a", "b", "e"):
        np.testing.assert_allclose(found[name], before[name], rtol=1e-5, atol=1e-6)

    def score(values: Array) -> float:
        normalised = _batch_normalised(values, given["scale"].astype(np.float64), given["shift"].astype(np.float64))
        return float((np.maximum(normalised, 0) * seed).sum())

    wide, step = x.astype(np.float64), 1e-6
    want = np.zeros(shape)
    for place in np.ndindex(*shape):
        moved = np.zeros(shape)
        moved[place] = step
        want[place] = (score(wide + moved) - score(wide - moved)) / (2 * step)
    np.testing.assert_allclose(found["x_gradient"], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes", "trains"),
    [
        (6, "y, a, b, c, d", "<is_test = 1>", False),
        (6, "y, a, b, c, d", "<is_test = 0>", True),
        (6, "y", "<is_test = 1>", False),
        (9, "y, a, b, c, d", "", True),
        (9, "y", "", False),
    ],
)
def test_outputs_that_nobody_reads(opset: int, outputs: str, attributes: str, trains: bool) -> None:
    given = {name: normal(3, seed=i) for i, name in enumerate(("scale", "shift", "mean"), 1)}
    variance = normal(3) ** 2 + 0.5
    text = f"g ({X}) => ({Y}) {{ {outputs} = BatchNormalization {attributes} (x, scale, shift, mean, variance) }}"
    x = normal(2, 3, 4, 4, seed=5)
    upgraded = normalise(model(text, opset, variance=variance, **given), known())
    onnx.checker.check_model(upgraded, full_check=True)
    scale, shift, mean = map(_column, given.values())
    stored = scale * (x - mean) / np.sqrt(_column(variance) + 1e-5) + shift
    want = _batch_normalised(x.astype(np.float64), scale, shift) if trains else stored
    np.testing.assert_allclose(run(upgraded, x=x)["y"], want, rtol=1e-4, atol=1e-5)


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


# Operands that are initializers and inputs at once: (body, default, another value), which the maps must follow
OVERRIDABLE: dict[str, tuple[str, Array, Array]] = {
    "Clip's bound": ("y = Clip (r, o)", np.array(0.2, np.float32), np.array(0.7, np.float32)),
    "pads": ("y = Pad (r, o)", np.array([0, 0, 0, 1]), np.array([0, 1, 0, 0])),
    "pads by reflection": (
        *('y = Pad <mode = "reflect"> (r, o)', np.array([0, 0, 0, 1]), np.array([0, 2, 0, 1])),
    ),
    "axes of a Pad": ("y = Pad (r, two, none, o)", np.array([0]), np.array([1])),
    "the start of a slice": ("y = Slice (r, o, two)", np.array([0, 0]), np.array([0, 1])),
    "a shape": ("y = Reshape (r, o)", np.array([-1, 4]), np.array([2, -1])),
    "repeats": ("y = Tile (r, o)", np.array([1, 1]), np.array([1, 2])),
    "a factor that would make an idiom": (
        *("s = Mul (r, o) g = Sigmoid (s) y = Mul (r, g)", np.array(1, np.float32), np.array(3, np.float32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OVERRIDABLE)
def test_maps_follow_an_overridden_operand(name: str) -> None:
    """Of files of IR 4 and later a default is no constant: the caller may give another value."""
    body, default, other = OVERRIDABLE[name]
    kind = "float" if default.dtype == np.float32 else "int64"
    text = f"g (float[2, 4] x, {kind}{list(default.shape)} o) => (float[a, b] y) {{ r = Relu (x) {body} }}"
    text = text.replace("[] o", " o")
    weights = {"two": np.array([2, 4]), "none": np.array(0, np.float32)}
    built = gbprewrite.convert(model(text, o=default, **weights), ("gradient", "guided"), "seed")
    x = normal(2, 4)
    for value in (default, other):
        fixed = model(text, o=value, **weights)
        del fixed.graph.input[1]
        seed = normal(*run(fixed, x=x)["y"].shape, seed=1)
        expected = run(gbprewrite.convert(fixed, ("gradient", "guided"), "seed"), x=x, seed=seed)
        found = run(built, x=x, seed=seed, **({} if value is default else {"o": value}))
        for output in ("y", "x_gradient", "x_guided"):
            np.testing.assert_allclose(found[output], expected[output], rtol=1e-5, atol=1e-6, err_msg=output)


def test_where_a_constant_is_needed_the_error_says_that_it_may_be_overridden() -> None:
    text = "g (float[1, 4, 4] x, int64[2] o) => (float[a, b, c, d] y) { y = Col2Im (x, o, two) }"
    weights = {"o": np.array([3, 3]), "two": np.array([2, 2])}
    wanted = r"shape is computed at run time(.|\n)*inputs too.*: o.*off"
    with pytest.raises(gbprewrite.UnsupportedOperators, match=wanted):
        gbprewrite.convert(model(text, **weights), "gradient", "seed")
    built = gbprewrite.convert(model(text, ir=3, **weights), "gradient", "seed")
    assert [i.name for i in built.graph.input] == ["x", "seed"]


@pytest.mark.parametrize(("domain", "name"), [("", "Relu"), ("ai.onnx", "Relu"), ("com.microsoft", "QuickGelu")])
def test_functions_named_like_an_operator_are_not_run_in_its_place(domain: str, name: str) -> None:
    source = model("g (float[2, 3] x) => (float[2, 3] y) { n = Neg (x) y = Relu (n) }")
    source.graph.node[1].op_type, source.graph.node[1].domain = name, domain
    imports = [onnx.helper.make_opsetid(d, 18 if d in ("", "ai.onnx") else 1) for d in {"", domain}]
    body = [onnx.helper.make_node("Abs", ["i"], ["o"])]
    source.functions.append(onnx.helper.make_function(domain, name, ["i"], ["o"], body, imports))
    if domain == "com.microsoft":
        source.opset_import.append(imports[-1] if imports[-1].domain else imports[0])
    x = normal(2, 3)
    built = run(gbprewrite.convert(source, "gradient", "seed"), x=x, seed=np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(built["y"], run(source, x=x)["y"])
    if name == "Relu":
        np.testing.assert_array_equal(built["x_gradient"], np.where(x < 0, -1, 0))


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
    "squeezed, and transposed behind it": (
        "q = ReduceSum (x, one) s = Squeeze (q) y = Transpose <perm = [1, 0]> (s)", [None, None]
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
    assert read_type(infer(source).graph.input[0].type)[1] == [1, 2, "unk__x_2", "unk__x_3"]


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
    text = """g (float[N, 3] x, float[N, 3] k) => (float[N, 3] y) {
        s = Shape (x) r = Size (s) c = Equal (r, two) n = Not (c)
        z = If (c) <
            then_branch = t () => (float[N, 3] a) {
                b = Neg (x)
                a = If (n) <then_branch = u () => (float[N, 3] d) { d = Identity (x) },
                            else_branch = w () => (float[N, 3] e) { b = Relu (b) e = Identity (b) }>
            },
            else_branch = f () => (float[N, 3] b) { b = Exp (x) }>
        y = Add (k, z) }"""
    source = model(text.replace("b = Relu (b) e = Identity (b)", "q = Relu (b) e = Identity (q)"), two=np.array(2))
    built = gbprewrite.convert(source, ("gradient", "guided"), "seed", inputs=["x"])
    assert not any(n.op_type == "If" for n in built.graph.node)
    x, seed = np.float32([[1, -1, -2]]), np.float32([[1, 1, -1]])
    found = run(built, x=x, k=2 * x, seed=seed)
    np.testing.assert_array_equal(found["y"], run(source, x=x, k=2 * x)["y"])
    np.testing.assert_array_equal(found["x_gradient"], [[0, -1, 1]])  # y = k + relu(-x)
    np.testing.assert_array_equal(found["x_guided"], [[0, -1, 0]])


def test_a_default_that_may_be_overridden_decides_no_branch() -> None:
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] a) { a = Relu (x) },
                    else_branch = e () => (float[N, 3] b) { b = Neg (x) }> }"""
    built = gbprewrite.convert(model(text, c=np.array(True)), ("gradient", "guided"), "seed")
    x, seed = normal(2, 3), normal(2, 3, seed=1)
    np.testing.assert_array_equal(run(built, x=x, seed=seed)["x_guided"], np.maximum(seed, 0) * (x > 0))
    np.testing.assert_array_equal(run(built, x=x, seed=seed, c=np.array(False))["x_guided"], -seed)


def test_clip_bounds_cast_to_the_type_of_their_operand() -> None:
    """As PyTorch's dynamo exporter writes ReLU6 when nothing optimises it."""
    text = """g (float[1, 4] x) => (float[1, 4] y) {
        z = Constant <value_float = 0.0> () s = Constant <value_float = 6.0> ()
        low = CastLike (z, x) high = CastLike (s, x) y = Clip (x, low, high) }"""
    (row,) = gbprewrite.inspect(model(text)).nonlinearities
    assert (row["kind"], row["role"]) == ("Clip(x, 0, 6)", "rectifier")


def test_declared_shapes_that_the_nodes_contradict_give_way() -> None:
    """As jax2onnx 0.17 declares a Relu between transposes that it has taken out."""
    text = """g (float[1, 2, 5, 7] x) => (float[1, 2, 2, 3] y) { a = Relu (x)
        y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a) }"""
    sound, flawed = model(text), model(text)
    flawed.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [1, 5, 7, 2]))
    feeds = {"x": normal(1, 2, 5, 7), "seed": normal(1, 2, 2, 3, seed=1)}
    expected, found = (run(gbprewrite.convert(m, "deconvnet", "seed"), **feeds) for m in (sound, flawed))
    np.testing.assert_array_equal(found["x_deconvnet"], expected["x_deconvnet"])


@pytest.mark.parametrize("body", ["y = Relu (a)", "y = Mul (a, a)", "y = Concat <axis = 1> (a, a)"])
@pytest.mark.parametrize("declared", ["N, 9, 4, 4", "3, 9, 4, 4", "N, 2, 4", "3, C, 4, 4"])
@pytest.mark.parametrize("target", ["seed", "argmax", 0])
def test_outputs_declared_wrongly(body: str, declared: str, target: str | int) -> None:
    """onnxruntime only warns of them; what the nodes make counts, and the record says so."""
    source = model(
        f"g (float[N, 3, 4, 4] x) => (float[{declared}] y) {{ a = Conv (x, w) {body} }}", w=normal(2, 3, 1, 1)
    )
    right = model(
        f"g (float[N, 3, 4, 4] x) => (float[N, C, 4, 4] y) {{ a = Conv (x, w) {body} }}", w=normal(2, 3, 1, 1)
    )
    x = normal(2, 3, 4, 4, seed=1)
    feeds = {"x": x} | ({"seed": run(right, x=x)["y"]} if target == "seed" else {})
    built = gbprewrite.convert(source, "gradient", target)
    wanted = run(gbprewrite.convert(right, "gradient", target), **feeds)["x_gradient"]
    np.testing.assert_array_equal(run(built, **feeds)["x_gradient"], wanted)
    assert "the source declares its output 'y' as" in report.read_record(built)["flaw"]


@pytest.mark.parametrize("opened", ["", "W"])
def test_numbers_that_an_opened_input_leaves_behind(opened: str) -> None:
    """The width was 6 when the model was exported; somebody has opened it since, on the input alone."""
    text = """g (float[N, 1, 4, 6] x, bool flag) => (float[N, 2, 4, 6] y) {
        z = If (flag) <
            then_branch = t () => (float[N, 1, 4, 6] p) { p = Relu (x) },
            else_branch = e () => (float[N, 1, 4, 6] q) { q = Neg (x) }>
        m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (z)
        u = Resize <mode = "nearest"> (m, , twice)
        g = GlobalAveragePool (z)
        c = Add (u, g)
        y = Concat <axis = 1> (c, z) }"""
    source = model(text, twice=np.float32([1, 1, 2, 2]))
    width = source.graph.input[0].type.tensor_type.shape.dim[3]
    width.Clear()
    if opened:
        width.dim_param = opened
    converted = gbprewrite.convert(source, "gradient", "seed")
    x, seed = np.abs(normal(2, 1, 4, 8)) + 1, normal(2, 2, 4, 8, seed=1)
    found = run(converted, x=x, seed=seed, flag=np.array(True))
    x[..., 0, 0] += 1000  # no maximum of another window moves
    other = run(converted, x=x, seed=seed, flag=np.array(True))
    slope = np.sum((other["y"] - found["y"]) * seed, (1, 2, 3)) / 1000
    np.testing.assert_allclose(other["x_gradient"][:, 0, 0, 0], slope, rtol=1e-3, atol=1e-3)


def test_pools_behind_a_function_whose_shape_inference_does_not_know() -> None:
    """ceil_mode is settled by shapes, and GroupNormalization of opset 18 to 20 has none until its body stands there."""
    source = model(
        """g (float[1, 1, 1, 3] x) => (float[1, 1, 1, 1] y) {
            n = GroupNormalization <num_groups = 1> (x, one, zero)
            c = Conv <strides = [1, 2]> (n, w)
            y = MaxPool <ceil_mode = 1, kernel_shape = [1, 1], strides = [1, 2]> (c) }""",
        **{"opset": 18, "one": normal(1) ** 0, "zero": normal(1) * 0, "w": normal(1, 1, 1, 1) ** 0},
    )
    x = normal(1, 1, 1, 3)
    found = run(gbprewrite.convert(source, "gradient", "seed"), x=x, seed=np.ones((1, 1, 1, 1), np.float32))
    scale = np.sqrt(x.var() + 1e-5)
    n = ((x - x.mean()) / scale).ravel()
    np.testing.assert_allclose(found["y"].ravel(), n[:1], rtol=1e-5)
    expected = (np.array([1, 0, 0]) - 1 / 3 - n * n[0] / 3) / scale
    np.testing.assert_allclose(found["x_gradient"].ravel(), expected, atol=1e-5)

"""Which axis holds the classes, and which the samples: worked out for every form of head, or asked.

Every network is linear up to its final activation: z[n, c] = Σₖ w[c, k] · x[n, k] at each position. So the map of class
c is w[c] at every position, whatever moves z afterwards; that is what a right class axis gives.
"""

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import gbprewrite
from gbprewrite.graft import record as report
from tests.head_forms import ASKED, BIAS, FORMS, NHWC, SINGLE, WEIGHTS, C, Form, H, K, W, constants
from tests.small import Array, model, normal, run

CONSTANTS = constants()
OTHERS: list[tuple[Any, bool]] = [(3, False), ("topk:2", True), ([4, 0], True), ("input", False)]


def built(text: str, output: str, x: str, opset: int = 18) -> Any:
    weights = {name: value for name, value in CONSTANTS.items() if re.search(rf"\b{name}\b", text)}
    return model(f"g (float[{x}] x) => (float[{output}] y) {{ {text} }}", opset, **weights)


def of(form: Form) -> Any:
    """The model of a form."""
    return built(form.text, form.output, form.x, form.opset)


def expected(form: Form, shape: tuple[int, ...], classes: Array) -> Array:
    """w[c] at every position, of sample n's class c; in the layout of x."""
    made = WEIGHTS[classes].reshape(len(classes), K, 1, 1) * np.ones((1, 1, H, W), np.float32)
    made = made * np.float32(form.spread)
    return (made.transpose(0, 2, 3, 1) if form.x == NHWC else made).reshape(shape)


@pytest.mark.parametrize("name", FORMS)
def test_head(name: str) -> None:
    form = FORMS[name]
    sizes = {"N": 2, "h": H, "w0": W}
    shape = tuple(sizes.get(d) or int(d) for d in form.x.split(", "))
    x = normal(*shape, seed=3)
    samples = shape[0] if form.x.startswith("N") else 1
    for target, many in (("argmax", False), OTHERS[list(FORMS).index(name) % len(OTHERS)]):
        converted = gbprewrite.convert(of(form), "gradient", target)
        record = report.read_record(converted)
        assert record is not None
        assert (record["class_axis"], record["batch_axis"]) == (form.classes, form.samples), record["class_axis_reason"]
        feeds = {"target": np.arange(samples) % C} if target == "input" else {}
        found = run(converted, x=x, **feeds)
        images = (x.transpose(0, 3, 1, 2) if form.x == NHWC else x).reshape(samples, K, -1)
        z = np.einsum("ck,nkp->nc", WEIGHTS.reshape(C, K), images) + (BIAS * H * W if "bias" in form.text else 0)
        order = np.argsort(-z, axis=1)
        classes = {"argmax": order[:, 0], "topk:2": order[:, :2], "input": np.arange(samples) % C}.get(str(target))
        wanted = np.broadcast_to(target, (samples, 2) if many else samples) if classes is None else classes
        np.testing.assert_array_equal(found["explained_index"], wanted)
        maps = found["x_gradient"]
        for k in range(2 if many else 1):
            one = maps.reshape(samples, 2, -1)[:, k].reshape(shape) if many else maps
            column = wanted[:, k] if many else wanted
            np.testing.assert_allclose(one, expected(form, shape, column), rtol=1e-5, atol=1e-6)


VERIFIED = (
    *("squeezed", "channels-last segmentation, Sigmoid", "anchors, Sigmoid before", "Softmax over rows"),
    *("time, samples, LogSoftmax", "no batch at all", "Softmax, first of the batch", "old Softmax over all"),
)


@pytest.mark.parametrize("name", VERIFIED)
@pytest.mark.parametrize("target", ["argmax", "topk:2", "input", "strongest", "seed"])
def test_verify(name: str, target: str) -> None:
    converted = gbprewrite.convert(of(FORMS[name]), ["gradient", "smoothgrad"], target, samples=2)
    found = gbprewrite.verify(converted, providers="cpu")
    assert {check.status for check in found.checks} == {"passed"}, found


@pytest.mark.parametrize("name", ASKED)
def test_where_nothing_tells_the_user_is_asked(name: str) -> None:
    text, output, axes = ASKED[name]
    source = built(text, output, f"N, {K}, {H}, {W}")
    with pytest.raises(gbprewrite.UsageError, match=re.escape(f"[{output}]")) as caught:
        gbprewrite.convert(source, "gradient")
    said = str(caught.value)
    assert "can't be told" in said
    assert " or ".join(f"--class-axis {a}" for a in axes) in said
    assert all(f"axis {a} (" in said for a in axes)
    for axis in axes:
        record = report.read_record(gbprewrite.convert(source, "gradient", class_axis=axis))
        assert record is not None
        assert (record["class_axis"], record["class_axis_reason"]) == (axis, "--class-axis says so")
    record = report.read_record(gbprewrite.convert(source, "gradient", "strongest"))  # needs none
    assert record is not None
    assert record["class_axis"] is None


@pytest.mark.parametrize("name", SINGLE)
def test_without_an_axis_of_classes_there_is_one_class(name: str) -> None:
    text, output, samples, reason, x_shape = SINGLE[name]
    source = built(text, output, x_shape)
    shape = tuple(2 if d == "N" else int(d) for d in x_shape.split(", "))
    for target in ("argmax", 0, "topk:1", [0], "input"):
        converted = gbprewrite.convert(source, "gradient", target)
        record = report.read_record(converted)
        assert record is not None
        assert (record["class_axis"], record["batch_axis"]) == (None, samples)
        assert reason in record["class_axis_reason"]
        count = 2 if x_shape.startswith("N") else 1
        feeds = {"target": np.zeros(count, np.int64)} if target == "input" else {}
        found = run(converted, x=normal(*shape), **feeds)
        assert found["explained_index"].ravel().tolist() == [0] * count
        wanted = WEIGHTS[0] if x_shape != NHWC else WEIGHTS[0].reshape(1, 1, K)
        ones = np.ones(shape, np.float32)
        np.testing.assert_allclose(found["x_gradient"].reshape(shape), wanted * ones, rtol=1e-5)
    with pytest.raises(gbprewrite.UsageError, match=r"--target 1: out of range.*1 class .*0 to 0"):
        gbprewrite.convert(source, "gradient", 1)


def maps_of(text: str, opset: int, target: Any) -> dict[str, Array]:
    source = built(text, f"N, {C}, {H}, {W}", f"N, {K}, {H}, {W}", opset)
    return run(gbprewrite.convert(source, ["gradient", "input_x_gradient"], target), x=normal(2, K, H, W, seed=4))


@pytest.mark.parametrize(
    "target", ["argmax", 2, "2,0", "topk:3", "strongest", "strongest:2", "channel:1", "unit:4,3,5", "region"]
)
def test_two_exports_of_one_network_explain_the_same(target: str) -> None:
    """Opset 11 knows no Softmax over axis 1 of maps: exporters move the axis to the end, or positions into rows."""
    last = "Transpose <perm = [0, 2, 3, 1]>"
    ways = [
        ("z = Conv (x, w) y = Softmax <axis = 1> (z)", 13),
        (f"z = Conv (x, w) t = {last} (z) s = Softmax <axis = 3> (t) y = Transpose <perm = [0, 3, 1, 2]> (s)", 11),
        (f"z = Conv (x, w) t = {last} (z) q = Shape (t) f = Reshape (t, to_rows) s = Softmax <axis = 1> (f) "
         "v = Reshape (s, q) y = Transpose <perm = [0, 3, 1, 2]> (v)", 11),
    ]  # fmt: skip
    first, *others = (maps_of(text, opset, target) for text, opset in ways)
    for other in others:
        for name in ("x_gradient", "x_input_x_gradient", "explained_index"):
            np.testing.assert_array_equal(first[name], other[name], err_msg=name)


WRONG: dict[str, tuple[str, int, str]] = {
    "the batch": ("segmentation", 0, r"--class-axis 0: .* \[N, 5, 4, 6\]; axis 0 is the batch, so choose 1 to 3"),
    "beyond": ("segmentation", 4, "so choose 1 to 3"),
    "the samples on axis 1": ("time, samples, classes", 1, "axis 1 is the batch, so choose 0 or 2"),
    "beyond one sample": ("squeezed", 1, r"has shape \[5\].*so choose 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_axis_that_can_not_be_it(name: str) -> None:
    form, axis, message = WRONG[name]
    with pytest.raises(gbprewrite.UsageError, match=message):
        gbprewrite.convert(of(FORMS[form]), "gradient", class_axis=axis)


def test_a_softmax_of_which_some_values_are_taken_is_left_and_says_so() -> None:
    text = "q = ReduceMean <keepdims = 0> (x, space) z = Gemm <transB = 1> (q, wm, bias) s = Softmax (z) "
    source = built(f"{text} y = Gather <axis = 1> (s, any_two)", "N, 2", f"N, {K}, {H}, {W}")
    record = report.read_record(gbprewrite.convert(source, "gradient", 1))
    assert record is not None
    assert (record["score"], record["stepped_over"], record["class_axis"]) == ("y", [], 1)
    (note,) = record["notes"]
    assert "Softmax is not stepped over, since Gather" in note
    assert "--score z" in note


@pytest.mark.parametrize("activation", ["Softmax", "Identity"])
def test_ranks_that_are_no_classes_are_said(activation: str) -> None:
    text = f"q = ReduceMean <keepdims = 0> (x, space) z = Gemm <transB = 1> (q, wm, bias) s = {activation} (z)"
    source = built(f"{text} v, i = TopK (s, two) y = Identity (v)", "N, 2", f"N, {K}, {H}, {W}")
    source.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    record = report.read_record(gbprewrite.convert(source, "gradient"))
    assert record is not None
    (note,) = record["notes"]
    assert "indices count their ranks" in note
    assert f"--score {'z' if activation == 'Softmax' else 's'}." in note


def test_a_sound_without_a_batch() -> None:
    """Its one axis is what the Conv slides over, and holds no samples."""
    text = """g (float[24] x) => (float[1, 5] y) {
        r = Reshape (x, shape) z = Conv (r, w) p = GlobalAveragePool (z) y = Flatten (p)
    }"""
    w = normal(5, 1, 1)
    converted = gbprewrite.convert(model(text, shape=np.array([1, 1, 24]), w=w), "gradient", [3, 1])
    record = report.read_record(converted)
    assert record is not None
    assert (record["class_axis"], record["batch_axis"], record["unbatched"]) == (1, 0, True)
    maps = run(converted, x=normal(24))["x_gradient"]
    np.testing.assert_allclose(maps, np.repeat(w[[3, 1], 0] / 24, 24, axis=1), rtol=1e-5)
    assert gbprewrite.verify(converted, providers="cpu").ok


def test_frames_that_pass_as_samples_are_those_of_a_clip_again() -> None:
    text = "f = Reshape (x, to_frames) z = Conv (f, w) p = GlobalAveragePool (z) q = Flatten (p)"
    source = built(
        f"{text} v = Reshape (q, to_clips) y = ReduceMean <keepdims = 0> (v, second)", f"N, {C}", f"N, 2, {K}, {H}, {W}"
    )
    x = normal(3, 2, K, H, W)
    found = run(gbprewrite.convert(source, "gradient"), x=x)
    classes = np.einsum("ck,ntkhw->nc", WEIGHTS.reshape(C, K), x).argmax(1)
    np.testing.assert_array_equal(found["explained_index"], classes)
    wanted = WEIGHTS[classes][:, None] * np.full((3, 2, 1, H, W), 1 / (2 * H * W), np.float32)
    np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-5)


ROWS = "z = Conv (x, w) t = Transpose <perm = [0, 2, 3, 1]> (z) y = Reshape (t, to_rows)"


@pytest.mark.parametrize("target", ["argmax", "strongest", "topk:2", "channel:1"])
def test_several_rows_for_each_sample_are_asked_about(target: Any) -> None:
    source = built(ROWS, "R, 5", f"N, {K}, {H}, {W}")
    with pytest.raises(
        gbprewrite.UsageError, match=r"several rows for each sample on axis 0.*--class-axis 1 to explain"
    ):
        gbprewrite.convert(source, "gradient", target)
    x = normal(2, K, H, W)
    found = run(gbprewrite.convert(source, "gradient", target, class_axis=1), x=x)  # each row by itself, as asked
    assert found["explained_index"].shape[0] == 2 * H * W
    if target == "argmax":
        z: Array = np.einsum("ck,nkhw->nhwc", WEIGHTS.reshape(C, K), x)
        wanted = WEIGHTS.reshape(C, K)[z.argmax(3)].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-5)


@pytest.mark.parametrize("target", [2, "input", "unit:2"])
def test_a_named_class_of_several_rows_is_summed_over_them(target: Any) -> None:
    source = built(ROWS, "R, 5", f"N, {K}, {H}, {W}")
    feeds = {"target": np.full(2 * H * W, 2)} if target == "input" else {}
    found = run(gbprewrite.convert(source, "gradient", target), x=normal(2, K, H, W), **feeds)
    wanted = WEIGHTS[2] * np.ones((2, K, H, W), np.float32)
    np.testing.assert_allclose(found["x_gradient"], wanted, rtol=1e-6)


def test_rows_of_one_sample_are_positions() -> None:
    record = report.read_record(gbprewrite.convert(built(ROWS, "24, 5", f"1, {K}, {H}, {W}"), "gradient"))
    assert record is not None
    assert (record["class_axis"], record["batch_axis"]) == (1, None)


@pytest.mark.parametrize("name", ["Softmax, an axis more", "Softmax, squeezed", "Transpose, Softmax, Transpose"])
def test_a_converted_file_is_read_again(name: str) -> None:
    """With the shapes of inner values declared, as exporters do: the axes count in the shape of the output."""
    converted = gbprewrite.convert(onnx.shape_inference.infer_shapes(of(FORMS[name])), "gradient", 3)
    assert gbprewrite.Explainer(converted, providers="cpu").record["class_axis"] == FORMS[name].classes
    assert gbprewrite.verify(converted, providers="cpu").ok


def test_a_record_that_moves_the_score_nowhere_is_refused() -> None:
    converted = gbprewrite.convert(of(FORMS["Softmax, squeezed"]), "gradient")
    record = report.read_record(converted)
    assert record is not None
    report.write_record(converted, {**record, "moved": ["nowhere"]})
    with pytest.raises(gbprewrite.ModelError, match="moved to where no node moves it"):
        gbprewrite.Explainer(converted, providers="cpu")


def test_maps_alone_of_a_moved_score() -> None:
    converted = gbprewrite.convert(of(FORMS["Softmax, squeezed"]), "gradient", 3, maps_only=True)
    x = normal(1, K, H, W)
    whole = run(gbprewrite.convert(of(FORMS["Softmax, squeezed"]), "gradient", 3), x=x)
    np.testing.assert_array_equal(gbprewrite.Explainer(converted, providers="cpu")(x).map(), whole["x_gradient"])


@pytest.mark.parametrize(
    "head", ["y = Identity (t)", "y = LogSoftmax (t)", "s = Softmax (t) y = Transpose <perm = [1, 0, 2]> (s)"]
)
def test_many_points_of_an_open_time_and_batch(head: str) -> None:
    """Integrated gradients of a linear network, from zeros, are x times its gradient."""
    text = f"z = Conv (x, w) r = Reshape (z, to_maps) t = Transpose <perm = [2, 0, 1]> (r) {head}"
    source = built(text, "A, B, 5", f"N, {K}, h, w0")
    x = normal(2, K, H, W)
    for target in ("argmax", [1, 4]):
        found = run(gbprewrite.convert(source, "integrated_gradients", target, steps=3), x=x)
        z: Array = np.einsum("ck,nkhw->nc", WEIGHTS.reshape(C, K), x)
        classes = z.argmax(1)[:, None] if target == "argmax" else np.array([[1, 4]] * 2)
        wanted = x[:, None] * WEIGHTS[classes].reshape(2, -1, K, 1, 1)
        maps = found["x_integrated_gradients"].reshape(wanted.shape)
        np.testing.assert_allclose(maps, wanted, rtol=1e-4, atol=1e-6)


def test_axes_written_as_one_number_without_a_dimension() -> None:
    source = model("g (float[N, 3, 5] x) => (float[N, 3] y) { y = ReduceMean <keepdims = 0> (x, a) }", a=np.array(2))
    built = gbprewrite.convert(source, "gradient", 1)  # onnxruntime loads such a model, and does not run it
    (found,) = ReferenceEvaluator(built).run(["x_gradient"], {"x": np.ones((1, 3, 5), np.float32)})
    np.testing.assert_allclose(found[0], np.float32([[0] * 5, [0.2] * 5, [0] * 5]), rtol=1e-6)

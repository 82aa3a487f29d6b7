"""What is explained: classes, lists, units, run-time targets and seeds; and what happens out of range."""

from typing import Any

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.graft import record as report
from tests.small import cnn, model, normal, run

X = normal(4, 3, 12, 12, seed=9)


def gradient_of(wanted: Any, **feeds: Any) -> dict[str, Any]:
    return run(gbprewrite.convert(cnn(), "gradient", wanted), image=X, **feeds)


def by_seed(columns: list[int]) -> Any:
    """The same map with the cotangent written by hand: row n explains class columns[n]."""
    seed = np.zeros((4, 5), np.float32)
    seed[range(4), columns] = 1
    return gradient_of("seed", seed=seed)["image_gradient"]


LOGITS = run(gbprewrite.convert(cnn(), "gradient", "seed", score="logits"), image=X, seed=np.zeros((4, 5), np.float32))
ORDER = np.argsort(-LOGITS["probabilities"], axis=1, kind="stable")


def test_argmax() -> None:
    found = gradient_of("argmax")
    np.testing.assert_array_equal(found["explained_index"], ORDER[:, 0])
    np.testing.assert_array_equal(found["image_gradient"], by_seed(list(ORDER[:, 0])))


@pytest.mark.parametrize("target", [3, "3"])
def test_index(target: Any) -> None:
    found = gradient_of(target)
    np.testing.assert_array_equal(found["explained_index"], [3, 3, 3, 3])
    np.testing.assert_array_equal(found["image_gradient"], by_seed([3] * 4))


@pytest.mark.parametrize("target", ["0,4,2", [0, 4, 2]])
def test_list_adds_an_axis_behind_the_batch(target: Any) -> None:
    found = gradient_of(target)
    np.testing.assert_array_equal(found["explained_index"], [[0, 4, 2]] * 4)
    assert found["image_gradient"].shape == (4, 3, 3, 12, 12)
    for k, index in enumerate((0, 4, 2)):
        np.testing.assert_allclose(found["image_gradient"][:, k], by_seed([index] * 4), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("target", ["3,", [3]])
def test_a_list_of_one_class_keeps_its_axis(target: Any) -> None:
    found = gradient_of(target)
    np.testing.assert_array_equal(found["explained_index"], [[3]] * 4)
    np.testing.assert_array_equal(found["image_gradient"][:, 0], by_seed([3] * 4))


def test_top_k() -> None:
    found = gradient_of("topk:2")
    np.testing.assert_array_equal(found["explained_index"], ORDER[:, :2])
    for k in range(2):
        np.testing.assert_allclose(found["image_gradient"][:, k], by_seed(list(ORDER[:, k])), rtol=1e-6, atol=1e-9)


def test_run_time_input() -> None:
    target = np.array([4, 0, 2, 2])
    found = gradient_of("input", target=target)
    np.testing.assert_array_equal(found["explained_index"], target)
    np.testing.assert_array_equal(found["image_gradient"], by_seed(list(target)))


def test_run_time_input_out_of_range_is_nan_for_its_sample_only() -> None:
    found = gradient_of("input", target=np.array([4, 5, -1, 2]))["image_gradient"]
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[[0, 3]], by_seed([4, 0, 0, 2])[[0, 3]])


def test_softmax_is_stepped_over_unless_asked_for() -> None:
    over, through = (gbprewrite.convert(cnn(), "gradient", 1, through_softmax=t) for t in (False, True))
    named = gbprewrite.convert(cnn(), "gradient", 1, score="logits")
    maps = [run(m, image=X)["image_gradient"] for m in (over, named, through)]
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.allclose(maps[0], maps[2])


SPATIAL = "g (float[N, 3, H, W] x) => (float[N, 2, H, W] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"
W = normal(2, 3, 3, 3)


@pytest.mark.parametrize("class_axis", [None, 1, -3])
def test_a_class_of_a_spatial_score_is_summed_over_the_rest(class_axis: int | None) -> None:
    x = normal(2, 3, 6, 7)
    found = run(gbprewrite.convert(model(SPATIAL, w=W), "gradient", 1, class_axis=class_axis), x=x)
    seed = np.zeros((2, 2, 6, 7), np.float32)
    seed[:, 1] = 1
    expected = run(gbprewrite.convert(model(SPATIAL, w=W), "gradient", "seed"), x=x, seed=seed)
    np.testing.assert_allclose(found["x_gradient"], expected["x_gradient"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["explained_index"], [1, 1])


def test_unit() -> None:
    x = normal(2, 3, 6, 7)
    found = run(gbprewrite.convert(model(SPATIAL, w=W), "gradient", "unit:1,2,3"), x=x)
    expected = np.zeros((2, 3, 6, 7), np.float32)
    expected[:, :, 1:4, 2:5] = W[1]  # the unit's receptive field
    np.testing.assert_allclose(found["x_gradient"], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["explained_index"], [[1, 2, 3]] * 2)


def test_unit_beyond_a_dynamic_size_is_nan() -> None:
    built = gbprewrite.convert(model(SPATIAL, w=W), "gradient", "unit:0,6,0")
    assert np.isnan(run(built, x=normal(1, 3, 6, 7))["x_gradient"]).all()
    assert np.isfinite(run(built, x=normal(1, 3, 7, 7))["x_gradient"]).all()


def strongest_of(activations: Any) -> Any:
    """The coordinates [N, rank - 1] of each sample's highest value, the first of several."""
    flat = activations.reshape(len(activations), -1).argmax(1)
    return np.stack(np.unravel_index(flat, activations.shape[1:]), 1)


def by_unit(layer: str, method: str, units: Any) -> Any:
    """The maps of one unit a sample, each from a conversion with the target "unit:..."."""
    maps = []
    for n, unit in enumerate(units):
        built = gbprewrite.convert(cnn(), method, f"unit:{','.join(map(str, unit))}", score=layer)
        maps.append(run(built, image=X[n : n + 1])[f"image_{method}"])
    return np.concatenate(maps)


def inner(name: str) -> Any:
    """An inner tensor's value, from the source model itself."""
    source = cnn()
    source.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(source, image=X)[name]


LAYERS = {"a": "Conv_0", "b": "Relu_1", "c": "MaxPool_2", "e": "Relu_4", "f": "GlobalAveragePool_5", "logits": "Gemm_7"}


@pytest.mark.parametrize("method", ["gradient", "guided", "deconvnet"])
@pytest.mark.parametrize("layer", ["b", "e"])
def test_the_strongest_unit_of_a_layer(layer: str, method: str) -> None:
    found = run(gbprewrite.convert(cnn(), method, layer=layer), image=X)
    np.testing.assert_array_equal(found["explained_index"], strongest_of(inner(layer)))
    expected = by_unit(layer, method, found["explained_index"])
    assert np.abs(expected).sum((1, 2, 3)).all()
    np.testing.assert_allclose(found[f"image_{method}"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_strongest_unit_of_a_channel(layer: str) -> None:
    found = run(gbprewrite.convert(cnn(), "gradient", "channel:2", layer=LAYERS[layer]), image=X)
    units = strongest_of(inner(layer)[:, 2:3]) + ([2] + [0] * (inner(layer).ndim - 2))
    np.testing.assert_array_equal(found["explained_index"], units)
    expected = by_unit(layer, "gradient", units)
    np.testing.assert_allclose(found["image_gradient"], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["gradient", "guided", "deconvnet"])
def test_the_activation_as_seed_scales_the_map_of_a_unit(method: str) -> None:
    """Zeiler and Fergus hand the activation down; a seed of 1 differs by that factor alone."""
    built = gbprewrite.convert(cnn(), method, "strongest", score="e")
    found = run(built, image=X)
    places = (np.arange(4), *found["explained_index"].T)
    values = inner("e")
    seed = np.zeros_like(values)
    seed[places] = values[places]
    handed = run(gbprewrite.convert(cnn(), method, "seed", score="e"), image=X, seed=seed)[f"image_{method}"]
    scaled = found[f"image_{method}"] * values[places][:, None, None, None]
    np.testing.assert_allclose(scaled, handed, rtol=1e-4, atol=1e-6)


def test_the_first_of_several_strongest_units() -> None:
    text = "g (float[N, 2, 3, 3] x) => (float[N, 2, 3, 3] y) { y = Relu (x) }"
    x = np.full((2, 2, 3, 3), 4, np.float32)
    x[:, 0] = 1
    found = run(gbprewrite.convert(model(text), "gradient", "strongest"), x=x)
    np.testing.assert_array_equal(found["explained_index"], [[1, 0, 0]] * 2)
    np.testing.assert_array_equal(np.argwhere(found["x_gradient"]), [[0, 1, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(("target", "index"), [("channel:4", [1, 2, 4]), ("strongest", [0, 1, 3])])
def test_channels_last(target: str, index: list[int]) -> None:
    """The coordinates are the tensor's own: here [H, W, C]."""
    text = "g (float[N, 3, 4, C] x) => (float[N, 3, 4, C] y) { y = Relu (x) }"
    x = np.zeros((1, 3, 4, 5), np.float32)
    x[0, 1, 2, 4], x[0, 0, 1, 3] = 7, 8
    found = run(gbprewrite.convert(model(text), "gradient", target, class_axis=3), x=x)
    np.testing.assert_array_equal(found["explained_index"], [index])
    np.testing.assert_array_equal(np.argwhere(found["x_gradient"]), [[0, *index]])


def test_units_of_dynamic_sizes() -> None:
    x = normal(2, 3, 6, 7)
    found = run(gbprewrite.convert(model(SPATIAL, w=W), "gradient", "channel:1"), x=x)
    y = run(model(SPATIAL, w=W), x=x)["y"]
    np.testing.assert_array_equal(found["explained_index"], strongest_of(y[:, 1:]) + np.array([1, 0, 0]))


def test_a_channel_beyond_a_dynamic_number_is_nan() -> None:
    text = "g (float[N, C, 4, 4] x) => (float[N, C, 4, 4] y) { y = Relu (x) }"
    built = gbprewrite.convert(model(text), "gradient", "channel:3", class_axis=1)
    assert np.isnan(run(built, x=normal(2, 3, 4, 4))["x_gradient"]).all()
    assert np.isfinite(run(built, x=normal(2, 4, 4, 4))["x_gradient"]).all()
    with pytest.raises(gbprewrite.DataError, match="the target does not exist"):
        gbprewrite.Explainer(built)(normal(2, 3, 4, 4))


@pytest.mark.parametrize("target", ["strongest", "channel:2"])
def test_a_converted_file_is_asked_for_the_same_layer(target: str) -> None:
    built = gbprewrite.convert(cnn(), "gradient", target, layer="Relu_4")
    for layer in ("Relu_4", "e", None):
        assert gbprewrite.Explainer(built, target=target, layer=layer)(X).index is not None
    with pytest.raises(gbprewrite.UsageError, match="layer 'c' can't be had"):
        gbprewrite.Explainer(built, layer="c")


def test_verify_agrees_with_units() -> None:
    built = gbprewrite.convert(cnn(), ["gradient", "guided"], "channel:2", layer="e")
    found = gbprewrite.verify(built)
    assert {check.status for check in found.checks} == {"passed"}, found


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "spelling": ({"target": "best"}, "not understood"),
    "negative": ({"target": "-1"}, "not understood"),
    "index": ({"target": 5}, "5 classes.*0 to 4"),
    "list": ({"target": [0, 7]}, "5 classes.*0 to 4"),
    "topk": ({"target": "topk:6"}, "5 classes"),
    "topk of nothing": ({"target": "topk:0"}, "not understood"),
    "unit rank": ({"target": "unit:1,2"}, "2 coordinates.*needs 1"),
    "unit range": ({"target": "unit:9"}, "axis 1.*has 5 positions"),
    "channel": ({"target": "channel:4", "layer": "b"}, "--target channel:4.*'b' has 4 channels.*run from 0 to 3"),
    "channels": ({"target": "channel:1,2", "layer": "b"}, "not understood"),
    "layer": ({"layer": "logit"}, "logit .*no such tensor or node. Did you mean logits"),
    "layer and score": ({"layer": "b", "score": "e"}, "--layer b and --score e both"),
    "layer of Grad-CAM": ({"layer": "b", "method": "gradcam"}, "--cam-layer b; to explain a unit of it, add --channel"),
    "class at Grad-CAM's": ({"layer": "b", "method": "guided_gradcam", "target": 1}, "may mean two things"),
    "class axis": ({"class_axis": 2}, "--class-axis 2.*choose 1"),
    "batch axis": ({"class_axis": 0}, "--class-axis 0.*axis 0 is the batch"),
    "score": ({"score": "nothing"}, "--score nothing.*probabilities"),
    "input": ({"inputs": ["nothing"]}, "--input nothing.*image"),
    "method": ({"method": "magic"}, "--method magic.*gradient, guided, deconvnet"),
    "no method": ({"method": []}, "--method is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_wishes(name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(gbprewrite.UsageError, match=message):
        gbprewrite.convert(cnn(), **options)


def test_several_outputs_must_be_told_apart() -> None:
    text = "g (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) { y = Relu (x) z = Neg (y) }"
    with pytest.raises(gbprewrite.UsageError, match=r"2 outputs could be explained: y .*, z .*--score NAME"):
        gbprewrite.convert(model(text))
    assert gbprewrite.convert(model(text), score="z").graph.output[2].name == "x_guided"


def test_every_float_input_gets_a_map() -> None:
    text = """g (float[N, 3] a, float[N, 3] b, int64[N, 3] i) => (float[N, 3] y) {
        c = Mul (a, b) f = Cast <to = 1> (i) d = Add (c, f) y = Relu (d) }"""
    built = gbprewrite.convert(model(text), ("gradient", "guided"), 0)
    maps = ["a_gradient", "b_gradient", "a_guided", "b_guided"]
    assert [o.name for o in built.graph.output] == ["y", *maps, "explained_index"]
    built = gbprewrite.convert(model(text), inputs=["b"])
    assert [o.name for o in built.graph.output] == ["y", "b_guided", "explained_index"]
    with pytest.raises(gbprewrite.UsageError, match="--input i: it holds int64"):
        gbprewrite.convert(model(text), inputs=["i"])


def test_integer_input_only() -> None:
    text = "g (int64[N, 3] i) => (float[N, 3] y) { f = Cast <to = 1> (i) y = Relu (f) }"
    with pytest.raises(gbprewrite.ModelError, match=r"no float input.*i \(int64\)"):
        gbprewrite.convert(model(text))


@pytest.mark.parametrize(
    ("target", "shape"), [(1, ["N"]), ([0, 1], ["N", 2]), ("unit:1", ["N", 1]), ("topk:2", ["N", 2])]
)
def test_the_index_keeps_the_batch(target: Any, shape: list[Any]) -> None:
    built = gbprewrite.convert(cnn(), "gradient", target)
    assert report.value_row(built.graph.output[-1]) == {"name": "explained_index", "dtype": "int64", "shape": shape}


def test_no_sample_is_told_from_another_where_the_score_has_a_batch_of_its_own() -> None:
    """x [N, 8] becomes a score [2N, 4]: a target out of range voids every map."""
    text = "g (float[N, 8] x) => (float[M, 4] y) { r = Reshape (x, rows) y = Relu (r) }"
    built = gbprewrite.convert(model(text, rows=np.array([-1, 4])), "gradient", "input")
    x = normal(3, 8)
    good = run(built, x=x, target=np.array([0, 1, 2, 3, 0, 1]))["x_gradient"]
    bad = run(built, x=x, target=np.array([0, 1, 9, 3, 0, 1]))["x_gradient"]
    assert good.shape == bad.shape == (3, 8)
    assert np.isfinite(good).all()
    assert np.isnan(bad).all()


def test_an_inner_tensor_is_explained_as_named() -> None:
    text = "g (float[N, 3] x) => (float[N, 3] y) { a = Sigmoid (x) b = Mul (a, a) y = Relu (b) }"
    record = report.read_record(gbprewrite.convert(model(text), "gradient", 0, score="a"))
    assert record is not None
    assert record["score"] == "a"


def test_a_scalar_input_has_a_scalar_map() -> None:
    text = "g (float[2, 3] x, float s) => (float[2, 3] y) { a = Mul (x, s) y = Relu (a) }"
    built = gbprewrite.convert(model(text), "gradient", "input")
    feeds = {"x": np.float32([[1, 2, 3], [4, 5, 6]]), "s": np.array(2, np.float32)}
    assert run(built, **feeds, target=np.array([0, 2]))["s_gradient"] == np.float32(7)
    assert np.isnan(run(built, **feeds, target=np.array([0, 3]))["s_gradient"])

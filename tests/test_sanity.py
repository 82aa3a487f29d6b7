"""The parameter randomisation test: its measures against SciPy and scikit-image, its layers and draws on small models,
its outcome on networks where it is known by hand, and the command."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import gbprewrite
from gbprewrite.checks.sanity import layers as weighted
from gbprewrite.checks.sanity import outputs, similarity
from gbprewrite.checks.sanity.randomisation import RandomisationTest, sanity
from gbprewrite.errors import DataError, ModelError, RuntimeUnavailable, UsageError
from gbprewrite.photos.preprocessing import Options
from gbprewrite.runtime.explainer import Explainer
from tests.small import model, normal

scipy_stats = pytest.importorskip("scipy.stats")
skimage_metrics = pytest.importorskip("skimage.metrics")
skimage_feature = pytest.importorskip("skimage.feature")

SHARED = Path(__file__).parents[2] / "shared"
UNIT = Options(preset="unit")
SIDE = 12


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# --- measures -------------------------------------------------------------------------------------------------------

A, B = normal(64, 48, 3, seed=1), normal(64, 48, 3, seed=2)
MIXED = (A + 0.5 * B).astype(np.float32)


def shown(values: np.ndarray) -> np.ndarray:
    """|map| summed over the channels, clipped at its 99th percentile, from 0 to 1."""
    sizes = np.abs(values.astype(np.float64)).sum(2)
    return np.minimum(sizes / np.percentile(sizes, 99), 1)


def ranks(values: np.ndarray) -> np.ndarray:
    return values.ravel().argsort().argsort().astype(float)


def hog(values: np.ndarray, cell: int) -> np.ndarray:
    return skimage_feature.hog(shown(values), orientations=9, pixels_per_cell=(cell, cell), cells_per_block=(1, 1))


@pytest.mark.parametrize("other", [MIXED, B, A], ids=["alike", "unlike", "equal"])
def test_measures_are_those_of_the_libraries(other: np.ndarray) -> None:
    wanted = {
        "spearman": scipy_stats.pearsonr(ranks(A.astype(float).sum(2)), ranks(other.astype(float).sum(2)))[0],
        "spearman_abs": scipy_stats.pearsonr(
            ranks(np.abs(A).astype(float).sum(2)), ranks(np.abs(other).astype(float).sum(2))
        )[0],
        "ssim": skimage_metrics.structural_similarity(shown(A), shown(other), data_range=1),
        "hog": scipy_stats.pearsonr(hog(A, 12), hog(other, 12))[0],
    }
    found = {name: measure(A, other) for name, measure in similarity.MEASURES.items()}
    assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("measure", similarity.MEASURES)
def test_what_measures_see(measure: str) -> None:
    formula = similarity.MEASURES[measure]
    assert formula(A, A) == pytest.approx(1)
    assert formula(A, 7 * A) == pytest.approx(1)  # a factor changes no map
    assert formula(A, B) < formula(A, MIXED) < 1
    assert np.isnan(formula(A, np.zeros_like(A)))
    assert formula(A, -A) == pytest.approx(-1 if measure == "spearman" else 1)


@pytest.mark.parametrize(("side", "defined"), [(2, False), (3, True), (28, True)])
def test_small_maps_have_ssim_where_a_window_fits(side: int, defined: bool) -> None:
    small = A[:side, :side]
    assert (similarity.MEASURES["ssim"](small, small) == 1) == defined


def test_class_sensitivity_is_the_mean_over_pairs() -> None:
    maps = [A, B, MIXED]
    flat = [m.astype(float).sum(2).ravel() for m in maps]
    pairs = [scipy_stats.spearmanr(flat[i], flat[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert similarity.class_sensitivity(maps) == pytest.approx(1 - np.mean(np.abs(pairs)))
    assert similarity.class_sensitivity([A, 3 * A, -A]) == pytest.approx(0)
    assert np.isnan(similarity.class_sensitivity([A]))


# --- layers ---------------------------------------------------------------------------------------------------------

CONV = "a = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
HEAD = "h = GlobalAveragePool ({0})  f = Flatten (h)  y = Gemm (f, v, u)"
W, HEADS = {"w": normal(4, 3, 3, 3), "b": normal(4)}, {"v": normal(4, 5, seed=2), "u": normal(5, seed=3)}
NORM = {name: np.abs(normal(4, seed=9)) + 0.5 for name in ("s", "o", "mu", "var")}
GEMM = ("y", {"v": "kernel", "u": "offset"})
FIRST = ("a", {"w": "kernel", "b": "offset"})


def network(body: str, last: str, **weights: np.ndarray) -> onnx.ModelProto:
    text = f"net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 5] y) {{ {body} {HEAD.format(last)} }}"
    return model(text, **weights, **HEADS)


LEVELS = np.random.default_rng(5).integers(-99, 99, (4, 3, 3, 3), np.int8)
SCALES = {"ws": np.float32(0.01), "wz": np.int8(0)}
NETWORKS = {
    "a bias belongs to its kernel": (network(f"{CONV} r = Relu (a)", "r", **W), [GEMM, FIRST]),
    "a normalisation belongs to the convolution before it": (
        network(f"{CONV} n = BatchNormalization (a, s, o, mu, var) r = Relu (n)", "r", **W, **NORM),
        [GEMM, ("a", {"w": "kernel", "b": "offset", "s": "scale", "o": "offset"})],
    ),
    "behind its ReLU as well": (
        network(f"{CONV} r = Relu (a) n = BatchNormalization (r, s, o, mu, var)", "n", **W, **NORM),
        [GEMM, ("a", {"w": "kernel", "b": "offset", "s": "scale", "o": "offset"})],
    ),
    "but behind a sum it is a layer of its own": (
        network(
            f"{CONV} r = Relu (a) c = Conv (r, k) t = Add (c, r) n = BatchNormalization (t, s, o, mu, var)", "n",
            **W, **NORM, k=normal(4, 4, 1, 1),
        ),
        [GEMM, ("n", {"s": "scale", "o": "offset"}), ("c", {"k": "kernel"}), FIRST],
    ),
    "Mul and Add with a number for each channel": (
        network(
            "a = Conv (x, w) m = Mul (a, g) n = Add (e, m) r = Relu (n)", "r",
            w=W["w"], g=normal(4, 1, 1), e=normal(1, 4, 1, 1),
        ),
        [GEMM, ("a", {"w": "kernel", "g": "scale", "e": "offset"})],
    ),
    "but not the preprocessing, nor a single factor": (
        network(
            f"q = Sub (x, mean) p = Div (q, six) {CONV.replace('(x', '(p')} m = Mul (a, six) r = Relu (m)", "r",
            **W, mean=normal(3, 1, 1), six=np.float32(6),
        ),
        [GEMM, FIRST],
    ),
    "strided and grouped": (
        network(
            f"{CONV.replace('pads', 'strides = [2, 2], pads')} r = Relu (a) "
            "p = MaxPool <kernel_shape = [2, 2]> (r) c = Conv <group = 4, pads = [1, 1, 1, 1]> (p, k) "
            "d = Conv <group = 2> (c, l) e = Relu (d)", "e", **W, k=normal(4, 1, 3, 3), l=normal(4, 2, 1, 1),
        ),
        [GEMM, ("d", {"l": "kernel"}), ("c", {"k": "kernel"}), FIRST],
    ),
    "slopes": (
        network(f"{CONV} r = Relu (a) p = PRelu (r, g)", "p", **W, g=normal(4, 1, 1)),
        [GEMM, ("a", {"w": "kernel", "b": "offset", "g": "slope"})],
    ),
    "a shared kernel belongs to the upper layer": (
        network(f"{CONV} r = Relu (a) c = Conv (r, k) d = Conv (c, k) e = Relu (d)", "e", **W, k=normal(4, 4, 1, 1)),
        [GEMM, ("d", {"k": "kernel"}), FIRST],
    ),
    "kernels behind Identity, Transpose and Reshape": (
        network(
            "i = Identity (k) j = Transpose <perm = [1, 0]> (i) w = Reshape (j, shape) a = Conv (x, w) r = Relu (a)",
            "r", k=normal(27, 4), shape=np.array([4, 3, 3, 3]),
        ),
        [GEMM, ("a", {"k": "kernel"})],
    ),
    "kernels in a Constant": (
        network("w = Constant <value = float[4, 3] {1,2,3,4,5,6,7,8,9,1,2,3}> () z = Unsqueeze (w, axes) "
                "a = Conv (x, z) r = Relu (a)", "r", axes=np.array([2, 3])),
        [GEMM, ("a", {"w": "kernel"})],
    ),
    "computed kernels": (
        network("w = Mul (k, g) a = Conv (x, w) r = Relu (a)", "r", k=W["w"], g=normal(4, 1, 1, 1)),
        [GEMM, ("a", {"k": "kernel", "g": "kernel"})],
    ),
    "quantised kernels": (
        network("w = DequantizeLinear (k, ws, wz) a = Conv (x, w) r = Relu (a)", "r", k=LEVELS, **SCALES),
        [GEMM, ("a", {"k": "kernel"})],
    ),
    "MatMul, and the bias behind it": (
        model(
            f"net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 5] y) {{ {CONV} r = Relu (a) g = GlobalAveragePool (r) "
            "f = Flatten (g) m = MatMul (f, v) y = Add (m, u) }", **W, **HEADS
        ),
        [("m", {"v": "kernel", "u": "offset"}), FIRST],
    ),
}  # fmt: skip


def converted(source: onnx.ModelProto, *methods: str) -> onnx.ModelProto:
    return gbprewrite.convert(source, methods or ("gradient", "guided", "deconvnet"), "input")


@pytest.mark.parametrize("case", NETWORKS)
def test_layers_from_the_score_down(case: str) -> None:
    source, wanted = NETWORKS[case]
    assert [(one.name, dict(one.weights)) for one in weighted.layers(converted(source))] == wanted


def test_layers_are_called_by_their_nodes_where_these_have_names() -> None:
    source = network(f"{CONV} r = Relu (a)", "r", **W)
    source.graph.node[0].name = source.graph.node[-1].name = "twice"
    assert [one.name for one in weighted.layers(converted(source))] == ["y", "twice"]


def with_weights(source: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The source with these weights, wherever it keeps them."""
    changed = onnx.ModelProto()
    changed.CopyFrom(source)
    tensors = {t.name: t for t in changed.graph.initializer}
    tensors.update({n.output[0]: n.attribute[0].t for n in changed.graph.node if n.op_type == "Constant"})
    for name, value in values.items():
        tensors[name].CopyFrom(numpy_helper.from_array(value, name))
    return changed


@pytest.mark.parametrize("case", NETWORKS)
def test_randomised_files_are_conversions_of_the_randomised_source(case: str) -> None:
    """Backward nodes read the same weights as the forward ones: nothing of the trained network stays behind."""
    source = NETWORKS[case][0]
    made = converted(source)
    found = weighted.layers(made)
    weights = weighted.Weights(made, found, seed=4)
    x, targets = normal(2, 3, SIDE, SIDE, seed=6), np.array([1, 3])
    for numbers in (range(len(found)), [len(found) - 1]):
        weights.randomise(numbers)
        names = {name for number in numbers for name in found[number].weights}
        drawn = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer if t.name in names}
        assert drawn.keys() == names
        ours = Explainer(made, providers="cpu")(x, targets=targets)
        theirs = Explainer(converted(with_weights(source, drawn)), providers="cpu")(x, targets=targets)
        for name, values in {**theirs.maps, **theirs.outputs}.items():
            np.testing.assert_allclose({**ours.maps, **ours.outputs}[name], values, rtol=1e-5, atol=1e-6)


def test_weights_are_put_back() -> None:
    made = converted(NETWORKS["a bias belongs to its kernel"][0])
    before = made.SerializeToString()
    weights = weighted.Weights(made, weighted.layers(made), seed=0)
    seen = []
    for numbers, draw in (((0, 1), 0), ((1,), 0), ((1,), 1), ((0, 1), 0)):
        weights.randomise(numbers, draw)
        seen.append({t.name: t.raw_data for t in made.graph.initializer})
    assert seen[0] == seen[3]
    assert seen[1]["w"] == seen[0]["w"] != seen[2]["w"]  # of layer 1: the same alone and in the cascade
    assert seen[1]["v"] == seen[2]["v"] != seen[0]["v"]
    weights.randomise([])
    assert made.SerializeToString() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_kernels_are_drawn_from_a_truncated_normal(dtype: type) -> None:
    trained = (0.3 * np.random.default_rng(1).standard_normal((50, 40, 5, 5))).astype(dtype)
    drawn = weighted.DRAWS["kernel"](np.random.default_rng(7), trained)
    assert (drawn.dtype, drawn.shape) == (trained.dtype, trained.shape)
    assert drawn.std(dtype=np.float64) == pytest.approx(trained.std(dtype=np.float64), rel=0.02)
    unit = scipy_stats.truncnorm(-2, 2)
    assert unit.std() == pytest.approx(weighted.KEPT, abs=1e-6)
    law = scipy_stats.truncnorm(-2, 2, scale=trained.std(dtype=np.float64) / unit.std())
    assert scipy_stats.kstest(drawn.ravel().astype(float), law.cdf).pvalue > 0.01


@pytest.mark.parametrize("role", weighted.DRAWS)
def test_other_draws(role: str) -> None:
    values = normal(64, seed=8)
    drawn = weighted.DRAWS[role](np.random.default_rng(0), values)
    wanted = {"offset": 0, "scale": 1, "slope": 0.25}
    assert role == "kernel" or (drawn == wanted[role]).all()
    levels = np.arange(-64, 64, dtype=np.int8)
    shuffled = weighted.DRAWS["kernel"](np.random.default_rng(0), levels)
    assert sorted(shuffled) == levels.tolist() != shuffled.tolist()


# --- outcomes known by hand -----------------------------------------------------------------------------------------


def one_feature() -> onnx.ModelProto:
    """One feature that all classes share: score[c] = v[c] · mean of ReLU(conv(x)), with v > 0."""
    text = f"""net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 5] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu (a)  h = GlobalAveragePool (r)  f = Flatten (h)
        y = Gemm (f, v) }}"""
    return model(text, w=normal(1, 3, 3, 3, seed=1), v=np.array([[1, 2, 3, 4, 5]], np.float32))


def test_a_network_of_one_feature_has_one_map(photo: Path) -> None:
    """Its gradient is v[c] times one map, its guided and deconvnet maps max(v[c], 0) times one map: randomising v turns
    the first at most over and leaves the others, or makes them zero, which has no ranks; all classes share a map."""
    found = sanity(one_feature(), [photo], preprocessing=UNIT, layer=["y"], draws=12, providers="cpu")
    assert len(found.comparisons) == 2 * 12 * 3
    assert all(found.class_sensitivity(method) == pytest.approx(0) for method in found.methods)
    for randomisation in ("cascading", "independent"):
        values = {m: found.values(randomisation, m, "spearman")[0] for m in found.methods}
        signs = values["gradient"]
        assert set(np.round(signs, 9)) == {-1, 1}
        for method in ("guided", "deconvnet"):
            assert np.isnan(values[method][signs < 0]).all()
            np.testing.assert_allclose(values[method][signs > 0], 1)
        np.testing.assert_allclose(found.values(randomisation, "gradient", "spearman_abs"), 1)
        assert found.curve(randomisation, "guided", "spearman") == pytest.approx([1])


def test_of_a_linear_network_the_weights_are_the_maps(photo: Path) -> None:
    """score = v x: the gradient is a column of v, so every number follows from the weights alone."""
    text = f"net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 5] y) {{ f = Flatten (x)  y = MatMul (f, v) }}"
    trained = normal(3 * SIDE * SIDE, 5, seed=2)
    found = sanity(model(text, v=trained), [photo], method=["gradient"], preprocessing=UNIT, seed=11, draws=2)

    def column(weights: np.ndarray, c: int) -> np.ndarray:
        return weights[:, c].reshape(3, SIDE, SIDE).astype(np.float64)

    (explained,) = found.photos[0].explained.index
    x = np.asarray(Image.open(photo), np.float64).transpose(2, 0, 1).ravel() / 255
    assert explained == (x @ trained).argmax()
    pairs = [(a, b) for a in range(5) for b in range(a)]
    alike = [scipy_stats.spearmanr(*(column(trained, c).sum(0).ravel() for c in pair)).statistic for pair in pairs]
    assert found.class_sensitivity("gradient") == pytest.approx(1 - np.mean(np.abs(alike)))
    for one in found.comparisons:
        drawn = weighted.DRAWS["kernel"](np.random.default_rng([11, one.draw, 0]), trained)
        before, after = (column(weights, explained) for weights in (trained, drawn))
        signed = scipy_stats.spearmanr(before.sum(0).ravel(), after.sum(0).ravel()).statistic
        sizes = scipy_stats.spearmanr(np.abs(before).sum(0).ravel(), np.abs(after).sum(0).ravel()).statistic
        assert (one.similarity["spearman"], one.similarity["spearman_abs"]) == pytest.approx((signed, sizes))


def test_cascades_randomise_everything_above(photo: Path) -> None:
    source = NETWORKS["but behind a sum it is a layer of its own"][0]
    found = sanity(source, [photo], method=["guided"], preprocessing=UNIT, seed=5, providers="cpu")
    assert found.measured == ("y", "n", "c", "a")
    made = converted(source, "guided")
    weights = weighted.Weights(made, weighted.layers(made), seed=5)
    x = np.asarray(Image.open(photo), np.float32).transpose(2, 0, 1)[None] / 255

    def guided() -> np.ndarray:
        explanation = Explainer(made, providers="cpu")(x, targets=found.photos[0].explained.index[0])
        return explanation.map("guided")[0].transpose(1, 2, 0)

    trained = guided()
    for randomisation, numbers in {"cascading": ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3]),
                                   "independent": ([0], [1], [2], [3])}.items():  # fmt: skip
        wanted = []
        for random in numbers:
            weights.randomise(random)
            wanted.append(similarity.MEASURES["spearman_abs"](trained, guided()))
        assert found.curve(randomisation, "guided", "spearman_abs") == pytest.approx(wanted)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_squeezenet_has_the_published_shape() -> None:
    """Adebayo et al. 2018, figures 2 to 4: gradients change with the first random layer, guided ones with the last."""
    top, middle, lowest = "conv10_1", "fire5/squeeze1x1_1", "conv1_1"
    found = sanity(
        SHARED / "models" / "squeezenet11.onnx", [SHARED / "photos" / f"{name}.png" for name in ("chelsea", "coffee")],
        method=["gradient", "guided"], preprocessing=Options(preset="caffe"), layer=[top, middle, lowest],
        providers="cpu",
    )  # fmt: skip
    assert [photo.explained.index for photo in found.photos] == [(285,), (967,)]
    assert (len(found.layers), found.measured) == (26, (top, middle, lowest))
    gradient, guided = (found.curve("cascading", method, "spearman") for method in ("gradient", "guided"))
    assert (np.abs(gradient) < 0.2).all()
    assert (guided[:2] > 0.9).all()
    assert guided[2] < 0.7
    assert found.class_sensitivity("guided") < 0.01 < 0.1 < found.class_sensitivity("gradient")


# --- errors ---------------------------------------------------------------------------------------------------------

WEIGHTLESS = f"""net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 3] y) {{
    r = Relu (x)  h = GlobalAveragePool (r)  y = Flatten (h) }}"""
INTEGER = f"""net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 4] y) {{
    q = QuantizeLinear (x, ws, wz)  c = QLinearConv (q, ws, wz, k, ws, wz, ws, wz)  d = DequantizeLinear (c, ws, wz)
    r = Relu (d)  h = GlobalAveragePool (r)  y = Flatten (h) }}"""


@pytest.mark.parametrize(
    ("source", "options", "error", "words"),
    [
        (model(WEIGHTLESS), {}, ModelError, "no weights lie between the score 'y' and the input"),
        (model(INTEGER, k=LEVELS, **SCALES), {}, ModelError, "QLinearConv node .* integers inside the operator"),
        (one_feature(), {"layer": ["z"]}, UsageError, "--layer z: the model has no such weighted layer.*y, a"),
        (one_feature(), {"draws": 0}, UsageError, "--draws 0: at least 1"),
        (one_feature(), {"classes": 0}, UsageError, "--classes 0: at least 1"),
        (one_feature(), {"seed": -1}, UsageError, "--seed -1: at least 0"),
        (one_feature(), {"method": ["grad"]}, UsageError, "--method grad"),
    ],
)
def test_what_can_not_be_tested(
    photo: Path, source: onnx.ModelProto, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        RandomisationTest(source, [photo], preprocessing=UNIT, providers="cpu", **options)


def test_overflow_is_an_error(photo: Path) -> None:
    """The trained rows of v meet the zeros of u; at random both are about 1e30, and their product is no float32."""
    body = "f = Flatten (x) g = MatMul (f, v) y = MatMul (g, u)"
    text = f"net (float[N, 3, {SIDE}, {SIDE}] x) => (float[N, 2] y) {{ {body} }}"
    v = normal(3 * SIDE * SIDE, 2) * np.float32([1e30, 1])
    u = np.float32([[0, 0], [1e30, 2e30]])
    with pytest.raises(DataError, match=r"layer 'g'.* overflows: its gradient map is not finite"):
        sanity(model(text, v=v, u=u), [photo], method=["gradient"], preprocessing=UNIT, layer=["g"], providers="cpu")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(NETWORKS["a bias belongs to its kernel"][0], tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_command_writes_curves_and_numbers(net: Path, photo: Path, tmp_path: Path, cli: Any) -> None:
    result = cli(
        "sanity", net, photo, "--preset", "unit", "--csv", tmp_path / "n.csv", "--draws", 2, "--provider", "cpu"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    for words in ("net.sanity.png", "n.csv", "2 with weights, seed 0, 2 draw(s)", "class sensitivity", "deconvnet"):
        assert words in result.stdout
    with Image.open(tmp_path / "net.sanity.png") as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture))) > 20
        assert picture.info["Software"].startswith("gbprewrite")  # so that a folder of photographs leaves it out
    with (tmp_path / "n.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 3  # randomisations, layers, draws, methods
    assert {(row["randomisation"], row["layer"], row["draw"]) for row in rows} == {
        (r, layer, draw) for r in ("cascading", "independent") for layer in ("y", "a") for draw in ("0", "1")
    }
    assert all(-1 <= float(row[name] or 0) <= 1 for row in rows for name in similarity.MEASURES)


def test_json_holds_the_means_of_its_rows(net: Path, photo: Path, tmp_path: Path, cli: Any) -> None:
    arguments = ("sanity", net, photo, "--preset", "unit", "--json", "--draws", 3, "--provider", "cpu", "-f")
    facts = json.loads(cli(*arguments).stdout)
    assert json.loads(cli(*arguments).stdout) == facts  # the same seed, the same numbers
    assert json.loads(cli(*arguments, "--seed", 1).stdout)["comparisons"] != facts["comparisons"]
    assert (facts["picture"], facts["csv"]) == (str(tmp_path / "net.sanity.png"), None)
    assert [(row["name"], row["weights"]) for row in facts["layers"]] == [GEMM, FIRST]
    for randomisation, curve in facts["curves"].items():
        for point in curve:
            rows = [
                r for r in facts["comparisons"] if (r["randomisation"], r["layer"]) == (randomisation, point["layer"])
            ]
            known = [r["hog"] for r in rows if r["method"] == "guided" and r["hog"] is not None]
            assert point["guided"]["hog"] == (pytest.approx(np.mean(known)) if known else None)


def test_undefined_similarities_are_counted(photo: Path, tmp_path: Path, cli: Any) -> None:
    onnx.save(one_feature(), tmp_path / "one.onnx")
    arguments = ("sanity", tmp_path / "one.onnx", photo, "--preset", "unit", "--layer", "y", "--draws", 6, "-f")
    rows = json.loads(cli(*arguments, "--json").stdout)["comparisons"]
    count = sum(row["spearman"] is None for row in rows)
    assert count > 0
    assert f"undefined  {count} of {len(rows)} comparisons" in cli(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["PHOTO", "--layer", "conv9"], 2, "--layer conv9"),
        (["PHOTO", "text.png"], 1, "text.png is no image"),
        (["PHOTO", "-o", "old.png"], 1, "old.png exists"),
        (["PHOTO", "-o", "new.png", "--csv", "new.png"], 2, "-o and --csv both name"),
        (["nothing*.png"], 1, "no image matches"),
    ],
)
def test_one_error_and_nothing_written(
    net: Path, photo: Path, monkeypatch: Any, cli: Any, arguments: list[str], status: int, words: str
) -> None:
    monkeypatch.chdir(net.parent)
    Path("text.png").write_text("no image")
    Path("old.png").write_text("old")
    before = {path: path.read_bytes() for path in net.parent.iterdir()}
    result = cli("sanity", net, *(photo if a == "PHOTO" else a for a in arguments), "--preset", "unit")
    assert result.exit_code == status
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in net.parent.iterdir()} == before


@pytest.mark.parametrize("library", ["scipy.stats", "skimage.metrics"])
def test_a_missing_library_names_the_extra(net: Path, photo: Path, monkeypatch: Any, cli: Any, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    result = cli("sanity", net, photo)
    assert result.exit_code == RuntimeUnavailable.exit_status
    assert "pip install 'gbprewrite[sanity]'" in result.stderr
    assert not (net.parent / "net.sanity.png").exists()


def test_the_picture_comes_beside_the_model() -> None:
    assert outputs.default_path(Path("a/net.onnx")) == Path("a/net.sanity.png")

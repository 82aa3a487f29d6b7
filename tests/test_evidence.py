"""What a model tells about its input: metadata, denotations, first nodes, producer; and what becomes of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import gbprewrite
from gbprewrite.graft import record as report
from gbprewrite.photos import evidence
from gbprewrite.photos.preprocessing import Options, plan
from tests.small import model

SHARED = Path(__file__).parents[2] / "shared" / "models"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
KERNEL = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)


def network(before: str = "", last: str = "x", shape: str = "N, 3, 8, 8", **weights: np.ndarray) -> onnx.ModelProto:
    """Nodes on the input x, then a Conv of the tensor `last`, a mean and its score."""
    text = f"""g (float[{shape}] x) => (float[N, 8] y) {{
        {before}
        a = Conv (last, w)
        b = Relu (a)
        c = GlobalAveragePool (b)
        y = Flatten (c)
    }}"""
    arrays = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    return model(text.replace("last", last), w=KERNEL, **arrays)


def channels(values: np.ndarray) -> np.ndarray:
    return np.asarray(values).reshape(3, 1, 1)


BYTES, UNIT = evidence.BYTES, evidence.UNIT
NORMALISES = [
    pytest.param("s = Sub (x, m)", "s", {"m": channels(MEAN * 255)}, BYTES, False, id="mean of bytes"),
    pytest.param("s = Sub (x, m)", "s", {"m": channels(MEAN[::-1] * 255)}, BYTES, True, id="blue first"),
    pytest.param("s = Add (x, m)", "s", {"m": channels(-MEAN[::-1] * 255)}, BYTES, True, id="mean added"),
    pytest.param("r = Mul (k, x)", "r", {"k": 1 / 255}, BYTES, None, id="multiplied by 1/255"),
    pytest.param("r = Div (x, k)", "r", {"k": 255}, BYTES, None, id="divided by 255"),
    pytest.param("r = Div (x, k) s = Sub (r, o)", "s", {"k": 127.5, "o": 1}, BYTES, None, id="to -1 to 1"),
    pytest.param("r = Mul (x, k) s = Sub (r, o)", "s", {"k": 2, "o": 1}, UNIT, None, id="0 to 1 doubled"),
    pytest.param(
        "s = Sub (x, m) r = Div (s, d)",
        "r",
        {"m": channels(MEAN), "d": channels(STD)},
        UNIT,
        False,
        id="ImageNet of 0..1",
    ),
    pytest.param(
        "q = Div (x, k) s = Sub (q, m) r = Div (s, d)",
        "r",
        {"k": 255, "m": channels(MEAN), "d": channels(STD)},
        BYTES,
        False,
        id="ImageNet of bytes",
    ),
    pytest.param(
        "n = BatchNormalization (x, g, b, m, v)",
        "n",
        {"g": np.ones(3), "b": np.zeros(3), "m": MEAN * 255, "v": (STD * 255) ** 2},
        BYTES,
        False,
        id="BatchNormalization",
    ),
]


@pytest.mark.parametrize(("before", "last", "weights", "values", "bgr"), NORMALISES)
def test_a_model_that_normalises_tells_what_it_is_fed(before, last, weights, values, bgr):
    found = evidence.read(network(before, last, **weights), "x")
    assert (found.values, found.bgr, found.layout, found.channels) == (values, bgr, "nchw", 3)
    assert "normalises its input itself" in found.facts[0]


@pytest.mark.parametrize(("before", "last", "weights", "values", "bgr"), NORMALISES)
def test_and_is_fed_plain_pixels(before, last, weights, values, bgr):
    made = plan("x", ("N", 3, 8, 8), np.float32, None, evidence.read(network(before, last, **weights), "x"))
    assert (made.scale, set(made.mean), set(made.std), made.bgr) == (values[0], {0}, {1}, bool(bgr))
    assert len(made.guesses) == (bgr is None)  # the order of the channels, where the numbers don't show it


@pytest.mark.parametrize(
    ("before", "last", "weights"),
    [
        ("", "x", {}),
        ("s = Sub (x, m)", "s", {"m": 0.01}),
        ("r = Mul (x, k)", "r", {"k": 3}),
        ("r = Div (k, x)", "r", {"k": 255}),
        ("r = Div (x, k)", "r", {"k": 0}),
        ("r = Mul (x, k)", "r", {"k": 0}),
        ("s = Sub (x, x)", "s", {}),
        ("s = Add (x, m)", "s", {"m": np.full((1, 3, 8, 8), -120)}),
        (
            "n = BatchNormalization (x, g, b, m, v)",
            "n",
            {"g": np.ones(3), "b": np.zeros(3), "m": np.zeros(3), "v": np.ones(3)},
        ),
        (
            "n = BatchNormalization (x, g, b, m, v)",
            "n",
            {"g": np.ones(3), "b": np.zeros(3), "m": MEAN * 255, "v": -np.ones(3)},
        ),
    ],
)
def test_other_arithmetic_tells_nothing(before, last, weights):
    found = evidence.read(network(before, last, **weights), "x")
    assert (found.values, found.bgr, found.facts, found.assumptions) == (None, None, (), ())


@pytest.mark.parametrize(
    ("shape", "before", "last", "layout"),
    [
        ("N, A, B, C", "", "x", "nchw"),
        ("N, A, B, C", "t = Transpose <perm = [0, 3, 1, 2]> (x)", "t", "nhwc"),
        ("N, 3, 8, 3", "i = Identity (x) t = Transpose <perm = [0, 3, 1, 2]> (i)", "t", "nhwc"),
    ],
)
def test_the_first_nodes_show_the_layout(shape, before, last, layout):
    built = network(before, last, shape)
    found = evidence.read(built, "x")
    assert (found.layout, found.channels) == (layout, 3)
    assert plan("x", ("N", "A", "B", "C"), np.float32, Options(preset="unit"), found).layout == layout


@pytest.mark.parametrize(
    ("metadata", "values", "bgr"),
    [
        ({"Image.NominalPixelRange": "NominalRange_0_255", "Image.BitmapPixelFormat": "Bgr8"}, BYTES, True),
        ({"Image.NominalPixelRange": "Normalized_0_1", "Image.BitmapPixelFormat": "Rgb8"}, UNIT, False),
        ({"Image.NominalPixelRange": "Normalized_1_1"}, (1 / 127.5, 1.0, "-1 to 1"), None),
        ({"Image.NominalPixelRange": "NominalRange_16_235"}, None, None),
    ],
)
def test_metadata_of_images_are_read(metadata, values, bgr):
    built = network()
    onnx.helper.set_model_props(built, metadata)
    found = evidence.read(built, "x")
    assert (found.values, found.bgr) == (values, bgr)
    assert len(found.facts) == (values is not None) + (bgr is not None)


def test_denotations_and_documentation_are_read():
    built = network(shape="N, 3, 8, 3")
    for dim, meaning in zip(
        built.graph.input[0].type.tensor_type.shape.dim, ("BATCH", "FEATURE", "FEATURE", "CHANNEL"), strict=True
    ):
        dim.denotation = f"DATA_{meaning}"
    built.graph.input[0].doc_string = "Image to judge, in BGR format."
    found = evidence.read(built, "x")
    assert (found.layout, found.bgr) == ("nhwc", True)


def deaf(bias: float, kernel: np.ndarray = KERNEL, normalised: bool = False) -> onnx.ModelProto:
    """A first Conv with a bias, or one behind which a BatchNormalization expects the deviation `bias`."""
    last = "n = BatchNormalization (a, g, z, z, v)" if normalised else "n = Identity (a)"
    text = f"""g (float[N, 3, 8, 8] x) => (float[N, 8] y) {{
        a = Conv (x, w{"" if normalised else ", b"})
        {last}
        c = Relu (n)
        d = GlobalAveragePool (c)
        y = Flatten (d)
    }}"""
    each = np.ones(8, np.float32)
    extra = {"g": each, "z": each * 0, "v": each * bias**2} if normalised else {"b": each * bias}
    return model(text, w=kernel, **extra)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("bias", "preset"), [(300, "caffe"), (10, None), (0.1, None), (0, None)])
def test_a_first_conv_that_does_not_answer_was_trained_on_bytes(normalised, bias, preset):
    found = evidence.read(deaf(bias, normalised=normalised), "x")
    assert found.preset == preset
    assert len(found.assumptions) == (preset is not None)


def test_the_answer_is_that_of_a_field_with_these_correlations():
    kernel = KERNEL.astype(np.float64)
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:3, :3].reshape(2, -1)
    space = 0.95 ** np.hypot(y[:, None] - y, x[:, None] - x)
    colours = np.full((3, 3), 0.9) + 0.1 * np.eye(3)
    drawn = rng.multivariate_normal(np.zeros(27), np.kron(colours, space), 100_000)
    np.testing.assert_allclose(evidence._answer(kernel), (drawn @ kernel.reshape(8, -1).T).std(axis=0), rtol=0.02)


def test_a_producer_is_an_assumption_that_facts_overrule():
    built = network()
    built.producer_name = "onnx-caffe2"
    assert evidence.read(built, "x").preset == "caffe"
    made = plan("x", ("N", 3, 8, 8), np.float32, None, evidence.read(built, "x"))
    assert (made.scale, made.mean, made.bgr) == (1, (104, 117, 123), True)
    assert "onnx-caffe2" in made.guesses[0]
    onnx.helper.set_model_props(built, {"Image.NominalPixelRange": "Normalized_0_1"})
    found = evidence.read(built, "x")
    assert (found.preset, found.values, found.assumptions) == (None, UNIT, ())


def test_a_converted_file_tells_the_same():
    built = network("s = Sub (x, m)", "s", m=channels(MEAN * 255))
    converted = gbprewrite.convert(built, ["guided", "gradient"])
    added = report.read_record(converted)["added"]["nodes"]
    assert evidence.read(converted, "x", added) == evidence.read(built, "x")
    # An added node that takes the input, as input times gradient has it, is none of the model's first nodes.
    converted.graph.node.append(onnx.helper.make_node("Mul", ["x", "x_gradient"], ["x_times_gradient"]))
    assert evidence.read(converted, "x", added + 1) == evidence.read(built, "x")


@pytest.mark.parametrize(
    "options", [Options(preset="imagenet"), Options(mean=(0.5,)), Options(scale=1 / 255), Options(bgr=False)]
)
def test_the_caller_overrules_the_model(options):
    built = network("s = Sub (x, m)", "s", m=channels(MEAN[::-1] * 255))
    found = evidence.read(built, "x")
    assert (found.values, found.bgr) == (BYTES, True)
    made = plan("x", ("N", 3, 8, 8), np.float32, options, found)
    if options.bgr is False:
        assert (made.scale, made.bgr) == (1, False)
    else:
        assert made.scale == pytest.approx(1 / 255)
    assert made.guesses == ()


@pytest.mark.parametrize(
    ("name", "text", "guesses", "facts"),
    [
        ("squeezenet11", "224x224 NCHW BGR, pixel - (104, 117, 123)", 1, 0),
        ("open_nsfw", "224x224 NHWC BGR, pixel - (104, 117, 123)", 1, 0),
        ("mnist_cntk", "28x28 NCHW grey, pixel (values 0 to 255)", 0, 2),
        ("efficientnet_lite0", "224x224 NCHW RGB, (pixel * 1/255 - (0.485, 0.456, 0.406))", 1, 0),
        ("textline_direction", "224x224 NCHW RGB, (pixel * 1/255 - (0.485, 0.456, 0.406))", 2, 0),
    ],
)
def test_public_models_are_worked_out_as_far_as_they_tell(name, text, guesses, facts):
    if not SHARED.is_dir():
        pytest.skip("shared/ (real networks) is not here")
    built = onnx.load(SHARED / f"{name}.onnx")
    value = next(i for i in built.graph.input if i.name not in {t.name for t in built.graph.initializer})
    shape = [d.dim_value if d.dim_value > 0 else "?" for d in value.type.tensor_type.shape.dim]
    made = plan(value.name, shape, np.float32, None, evidence.read(built, value.name))
    assert made.text().startswith(text)
    assert (len(made.guesses), len(made.facts)) == (guesses, facts)

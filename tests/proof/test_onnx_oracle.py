"""The oracle's own proof: onnxruntime's values, finite differences, onnx2torch, and the published figure."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

from tests.oracle.onnx_oracle import Oracle  # noqa: E402
from tests.oracle.torch_oracle import METHODS, relative_l2  # noqa: E402
from tests.proof.files import check_values, one_thread  # noqa: E402, F401
from tests.proof.shared_models import INPUTS, model, needs_shared  # noqa: E402


def random(*shape):
    """The same array for the same shape, float32."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def chain(opset, shape, steps):
    """A model that applies operators one after another: (operator, further inputs, attributes)."""
    nodes, weights, current = [], [], "x"
    for i, (kind, more, attributes) in enumerate(steps):
        names = [value if isinstance(value, str) else f"w{i}_{j}" for j, value in enumerate(more)]
        weights += [numpy_helper.from_array(v, n) for n, v in zip(names, more, strict=True) if not isinstance(v, str)]
        nodes.append(helper.make_node(kind, [current, *names], [f"y{i}"], **attributes))
        current = f"y{i}"
    outputs = [helper.make_empty_tensor_value_info(current)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def scalar(value):
    return np.array(value, np.float32)


CHAINS = {
    "padding, old clip": (7, (2, 3, 9, 8), [
        ("Conv", [random(4, 3, 3, 3), random(4)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
        ("Clip", [], {"min": -0.7, "max": 2.5}),
        ("Conv", [random(6, 2, 3, 3)], {"group": 2, "dilations": [2, 1], "pads": [1, 0, 2, 1]}),
        ("MaxPool", [], {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3], "strides": [2, 2]}),
        ("Softmax", [], {}),
    ]),
    "norms, old upsample": (7, (2, 5, 4, 6), [
        ("BatchNormalization", [random(5), random(5), random(5), 0.5 + random(5) ** 2], {"epsilon": 1e-3}),
        ("LRN", [], {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
        ("Upsample", [], {"scales": [1.0, 1.0, 2.0, 3.0]}),
        ("AveragePool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
        ("LogSoftmax", [], {"axis": 2}),
    ]),
    "old slice and pad": (9, (2, 3, 5, 6), [
        ("Upsample", [np.array([1, 1, 1.5, 2], np.float32)], {}),
        ("Slice", [], {"starts": [1, -7], "ends": [100, -1], "axes": [2, 3]}),
        ("Pad", [], {"pads": [0, 0, 1, 0, 0, 0, 2, 1], "value": 0.5}),
        ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
        ("Flatten", [], {"axis": 2}),
    ]),
    "ceil_mode": (11, (2, 3, 8, 9), [
        ("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", [], {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}),
        ("Clip", [scalar(-0.3), scalar(0.9)], {}),
    ]),
    "bounds as inputs": (13, (2, 4, 6), [
        ("Slice", [np.array([4]), np.array([-9]), np.array([2]), np.array([-2])], {}),
        ("Pad", [np.array([0, 1, 0, 0, 0, 2]), scalar(1.5)], {}),
        ("Gather", [np.array([[3, -1], [0, 3]])], {"axis": 1}),
        ("Unsqueeze", [np.array([1])], {}),
        ("Reshape", [np.array([0, -1])], {}),
        ("Gemm", [random(20, 5), random(5)], {"alpha": 0.5, "beta": 2.0}),
        ("Softmax", [], {}),
    ]),
    "activations": (13, (3, 40), [
        ("LeakyRelu", [], {"alpha": 0.2}), ("PRelu", [random(40)], {}), ("Elu", [], {"alpha": 0.7}), ("Selu", [], {}),
        ("Softplus", [], {}), ("HardSigmoid", [], {"alpha": 0.3}), ("Sigmoid", [], {}), ("Tanh", [], {}),
        ("Mul", [scalar(9)], {}), ("Sub", [scalar(5.4)], {}), ("ThresholdedRelu", [], {"alpha": 0.1}),
    ]),
    "hard-swish": (14, (3, 40), [("Mul", [scalar(4)], {}), ("HardSwish", [], {}), ("Max", [scalar(0)], {})]),
}  # fmt: skip


def check_gradient(source, feeds):
    """⟨g, v⟩ against the central difference of a random sum of the outputs along v.

    A little noise over the input first: where a photograph is of one colour, max pooling has ties and no derivative.
    """
    oracle, rng = Oracle(source), np.random.default_rng(3)
    ((name, x),) = feeds.items()
    x, step = torch.from_numpy(x + 0.01 * x.std() * rng.standard_normal(x.shape)), 1e-8
    for output in oracle.outputs:
        shape = oracle.forward({name: x})[output].shape
        cotangent = torch.from_numpy(rng.standard_normal(shape))
        direction = torch.from_numpy(rng.standard_normal(x.shape)) * x.std()

        def along(t, output=output, cotangent=cotangent, direction=direction):
            with torch.no_grad():
                return (oracle.forward({name: x + t * direction})[output] * cotangent).sum().item()

        gradient = oracle.explain({name: x.numpy()}, output, cotangent=cotangent).maps[name]
        difference = (along(step) - along(-step)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_small_networks(name):
    opset, shape, steps = CHAINS[name]
    source, feeds = chain(opset, shape, steps), {"x": random(*shape)}
    check_values(source, feeds)
    check_gradient(source, feeds)


@needs_shared
@pytest.mark.parametrize("name", INPUTS)
def test_values_of_the_shared_models(name):
    check_values(model(name), INPUTS[name]())


@needs_shared
@pytest.mark.parametrize("name", ["cifar10_pytorch17", "mnist_cntk", "mtcnn_onet", "textline_direction"])
def test_gradients_of_the_shared_models(name):
    check_gradient(model(name), INPUTS[name]())


# onnx2torch reads no opset below 9, nor auto_pad, nor weights in Constant nodes: these four are what it can load.
@needs_shared
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # onnx2torch's own
@pytest.mark.parametrize("name", ["cifar10_pytorch17", "efficientnet_lite0", "open_nsfw", "ultraface_rfb320"])
def test_gradients_of_onnx2torch(name):
    pytest.importorskip("tests.proof.torch_setup")  # onnx2torch imports torchvision
    onnx2torch = pytest.importorskip("onnx2torch", reason="the cross-check needs onnx2torch: pip install -e '.[proof]'")
    source, ((x_name, x),) = model(name), INPUTS[name]().items()
    oracle = Oracle(source)
    newer = onnx.version_converter.convert_version(source, 11) if name == "ultraface_rfb320" else source
    leaf = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = onnx2torch.convert(newer).double().eval()(leaf)
    y = found[0] if isinstance(found, list | tuple) else found
    cotangent = random(*y.shape)
    (gradient,) = torch.autograd.grad(y, leaf, torch.from_numpy(cotangent).double())
    ours = oracle.explain({x_name: x}, oracle.outputs[0], cotangent=cotangent).maps[x_name]
    assert relative_l2(ours, gradient) <= 1e-12


# --- the rules of the methods -----------------------------------------------------------------------------------------

FIGURE = {  # Springenberg et al. 2015, figure 1
    "gradient": [[-2, 0, -1], [6, 0, 0], [0, -1, 3]],
    "deconvnet": [[0, 3, 0], [6, 0, 1], [2, 0, 3]],
    "guided": [[0, 0, 0], [6, 0, 0], [0, 0, 3]],
}
FIGURE_X = np.array([[1, -1, 5], [2, -5, -7], [-3, 2, 4]], np.float32)
FIGURE_DY = np.array([[-2, 3, -1], [6, -3, 1], [2, -1, 3]], np.float32)
SPELLINGS = {
    "Relu": (7, [("Relu", [], {})]),
    "Clip with attributes": (7, [("Clip", [], {"min": 0.0, "max": 6.0})]),
    "Clip with inputs": (13, [("Clip", [scalar(0), scalar(6)], {})]),
    "Clip without a maximum": (13, [("Clip", [scalar(0)], {})]),
    "Max": (13, [("Max", [scalar(0)], {})]),
    "ThresholdedRelu": (13, [("ThresholdedRelu", [], {"alpha": 0.0})]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_figure_1(spelling, method):
    opset, steps = SPELLINGS[spelling]
    made = Oracle(chain(opset, (3, 3), steps)).explain({"x": FIGURE_X}, "y0", method, cotangent=FIGURE_DY)
    assert made.maps["x"].tolist() == FIGURE[method]


@pytest.mark.parametrize("method", METHODS)
def test_figure_1_with_prelu_of_slope_zero(method):
    oracle = Oracle(chain(13, (3, 3), [("PRelu", [np.zeros(1, np.float32)], {})]))
    for rectify_all in (False, True):
        made = oracle.explain({"x": FIGURE_X}, "y0", method, cotangent=FIGURE_DY, rectify_all=rectify_all)
        assert made.maps["x"].tolist() == FIGURE[method if rectify_all else "gradient"]


HARD = [("Add", [scalar(3)], {}), ("Clip", [scalar(0), scalar(6)], {})]
SIXTH = ("Div", [scalar(6)], {})
CONV = ("Conv", [random(2, 2, 1, 1)], {})
DECISIONS = {  # steps: rectifiers, activations, hard-swishes written out
    "hard-sigmoid": ([*HARD, SIXTH, CONV], 0, 0, 0),
    "hard-swish": ([*HARD, ("Mul", ["x"], {}), SIXTH], 0, 0, 1),
    "hard-swish, divided first": ([*HARD, SIXTH, ("Mul", ["x"], {})], 0, 0, 1),
    "ReLU6 behind a bias": ([*HARD, CONV], 1, 0, 0),
    "Clip from below 0": ([("Clip", [scalar(-1), scalar(1)], {})], 0, 0, 0),
    "Max with another number": ([("Max", [scalar(1)], {})], 0, 0, 0),
    "gate": ([("Sigmoid", [], {}), ("Identity", [], {}), ("Mul", ["x"], {})], 0, 0, 0),
    "no gate": ([("Sigmoid", [], {}), ("Mul", [scalar(2)], {})], 0, 1, 0),
    "Softmax": ([("Softmax", [], {}), ("Relu", [], {})], 1, 0, 0),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_decisions(name):
    steps, *expected = DECISIONS[name]
    oracle = Oracle(chain(13, (1, 2, 3, 3), steps))
    assert [len(oracle.rectifiers), len(oracle.activations), len(oracle.hard_swishes)] == expected


def test_hard_swish_written_out_is_one_activation():
    """Deconvnet passes max(dy, 0) through it, guided lets its derivative act on that."""
    x, dy = random(1, 2, 3, 3), random(1, 2, 3, 3)[..., ::-1].copy()
    both = [chain(14, x.shape, s) for s in ([*HARD, ("Mul", ["x"], {}), SIXTH], [("HardSwish", [], {})])]
    for method in METHODS:
        written, named = (
            Oracle(m).explain({"x": x}, m.graph.output[0].name, method, cotangent=dy, rectify_all=True) for m in both
        )
        assert relative_l2(written.maps["x"], named.maps["x"]) <= 1e-12


def test_unknown_operator():
    with pytest.raises(NotImplementedError, match="the oracle has no ::Det"):
        Oracle(chain(11, (3, 3), [("Det", [], {})])).forward({"x": random(3, 3)})

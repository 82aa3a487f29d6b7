"""The strongest unit of a layer, and of a channel, against PyTorch: which unit it is, and its maps."""

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")
pytest.importorskip("tests.proof.torch_setup")

import gbprewrite  # noqa: E402
from tests.oracle.torch_oracle import METHODS, explain, relative_l2  # noqa: E402
from tests.proof import zoo  # noqa: E402
from tests.proof.files import one_thread  # noqa: E402, F401

nn = torch.nn
# network → how to cut it behind the layer, and the node that makes the layer in the exported file
LAYERS = {
    "squeezenet1_1": (lambda net: net.features[:10], "/features/features.9/Concat"),
    "resnet18": (lambda net: nn.Sequential(*list(net.children())[:7]), "/layer3/layer3.1/relu_1/Relu"),
    "squeezenet1_0": (lambda net: net.features[:7], "/features/features.6/MaxPool"),
}
CHANNEL = 7


@pytest.fixture(scope="module", params=LAYERS)
def network(request):
    """The network behind the layer in float64, flattened; its file, the layer's node and a batch of two."""
    name = request.param
    cut, node = LAYERS[name]
    x = zoo.pictures(name, 2)
    module = zoo.build(name, x)
    with zoo._quiet():
        source = zoo.by_torchscript(module, zoo.pictures(name, 3))
    return cut(module.double()), source, node, x


def units(y):
    """The strongest unit [N, 3] of each sample."""
    return np.stack(np.unravel_index(y.flatten(1).argmax(1).numpy(), y.shape[1:]), 1)


@pytest.mark.parametrize("target", ["strongest", f"channel:{CHANNEL}"])
def test_units_of_pytorch(network, target):
    prefix, source, node, x = network
    with torch.no_grad():
        y = prefix(x.double())
    expected = units(y) if target == "strongest" else units(y[:, [CHANNEL]]) + np.array([CHANNEL, 0, 0])
    flat = torch.as_tensor(np.ravel_multi_index(tuple(expected.T), y.shape[1:]))
    truth = explain(nn.Sequential(prefix, nn.Flatten()), x.double(), target=flat)

    built = gbprewrite.convert(source, METHODS, target, layer=node)
    session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"x": x.numpy()}), strict=True))
    np.testing.assert_array_equal(found["explained_index"], expected)
    for method in METHODS:
        assert truth.maps[method].abs().amax((1, 2, 3)).all()
        assert relative_l2(found[f"x_{method}"], truth.maps[method]) <= zoo.LIMIT

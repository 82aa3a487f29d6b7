"""torchvision's classifiers: their maps equal PyTorch's in float64. The table of errors: python -m tests.proof.zoo"""

import numpy as np
import pytest

import gbprewrite
from tests.proof import torch_setup  # noqa: F401  (torch and torchvision, or a skip: before zoo)

from tests.proof import choice, zoo  # isort: skip
from tests.proof.kinks import Distance
from tests.proof.torch_setup import torch

FAST = (
    ("mobilenet_v3_small", "torchscript"),  # hard-swish, squeeze and excitation, depthwise
    ("resnet18", "torchscript"),  # residual sums, strides, max-pool with padding
    ("resnet18", "dynamo"),
    ("shufflenet_v2_x1_0", "torchscript"),  # split, reshape, transpose
    ("squeezenet1_1", "torchscript"),  # concatenation, max-pool with ceil_mode, no norms
)
# Networks that the two exporters write in different ways.
IDIOMS = ("convnext_tiny", "efficientnet_b0", "googlenet", "mobilenet_v3_small")


def check(name, exporter):
    record, outputs, rows = zoo.prove(name, exporter)
    exact = zoo.truth(name).exact
    assert outputs["explained_index"].tolist() == exact.target.tolist()
    # Every call of a ReLU that the oracle intercepted is a node that the converter rewrote, and no other node is.
    assert len(record["rectifiers"]) == len(exact.rectified["guided"]) == len(exact.rectified["deconvnet"]) > 0
    assert [row for row in rows if not row.error <= row.limit] == []
    for row in rows:
        assert np.count_nonzero(outputs[f"x_{row.method}"]) > outputs[f"x_{row.method}"].size / 2


@pytest.mark.parametrize(("name", "exporter"), FAST)
def test_a_few_networks(name, exporter):
    check(name, exporter)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), choice.every(zoo.NETWORKS, FAST, IDIOMS))
def test_every_network(name, exporter):
    check(name, exporter)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["guided", "deconvnet"])
@pytest.mark.parametrize("name", zoo.WITHOUT_RELU)
def test_a_network_without_relu_is_no_silent_gradient(name, method):
    kind = {"convnext_tiny": "Gelu"}.get(name, "Swish")
    with pytest.raises(gbprewrite.ModelError, match=rf"{method}.* finds no rectifier.*{kind}.*--rectify all"):
        gbprewrite.convert(zoo.export(name, "torchscript"), method)


@pytest.mark.weekly  # as long as nobody changes SEEDS
@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_no_activation_is_near_a_kink(name):
    """So that a limit of 1e-4 holds for float32; rounding moves activations by some 1e-7 of their scale."""
    module, x, *_ = zoo.truth(name)
    with torch.no_grad(), Distance() as distance:
        module.double()(x.double())
    module.float()
    assert distance.of_kinks > 1e-5
    assert distance.of_ties > 3e-7

"""torchvision's segmentation and video networks, with open height and width: their maps equal PyTorch's in float64."""

import pytest

from tests.proof import torch_setup  # noqa: F401  (torch and torchvision, or a skip: before the networks)

from tests.proof import choice  # isort: skip
from tests.proof.files import one_thread  # isort: skip  # noqa: F401
from tests.proof.networks import check  # isort: skip
from tests.proof.dense_zoo import NETWORKS

FAST = (
    ("lraspp_mobilenet_v3_large", "torchscript"),  # bilinear enlargement to a size computed at run time
)


@pytest.mark.parametrize(("name", "exporter"), FAST)
def test_a_few_networks(name, exporter):
    check(NETWORKS[name], exporter)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), choice.every(NETWORKS, FAST))
def test_every_network(name, exporter):
    check(NETWORKS[name], exporter)

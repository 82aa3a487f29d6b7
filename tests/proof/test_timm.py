"""timm's networks: their maps equal PyTorch's in float64. The table of errors: python -m tests.proof.network_table"""

from itertools import product

import pytest

from tests.proof import torch_setup  # noqa: F401  (torch and torchvision, or a skip: before timm)

from tests.proof import choice  # isort: skip
from tests.proof.files import one_thread  # isort: skip  # noqa: F401
from tests.proof.networks import EXPORTERS, check  # isort: skip
from tests.proof.timm_zoo import MIXED, NETWORKS

FAST = (
    ("lcnet_050", "torchscript"),  # hard-swish, hard-sigmoid gates, depthwise
    ("regnetx_002", "dynamo"),  # grouped convolutions, residual sums
)
# Networks that the two exporters write in different ways.
IDIOMS = ("ghostnet_100", "mixnet_s", "xception41")


@pytest.mark.parametrize(("name", "exporter"), FAST)
def test_a_few_networks(name, exporter):
    check(NETWORKS[name], exporter)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), choice.every(NETWORKS, FAST, IDIOMS))
def test_every_network(name, exporter):
    check(NETWORKS[name], exporter)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), [*product(MIXED, EXPORTERS)])
def test_rectify_all_takes_activations_and_leaves_gates(name, exporter):
    check(NETWORKS[name], exporter, rectify_all=True)

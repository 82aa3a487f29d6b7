"""timm's networks that issue 3 names, as members of tests.proof.networks."""

from functools import partial

import pytest

from tests.proof.networks import Network

timm = pytest.importorskip("timm", reason="these proofs need timm: pip install -e '.[proof]'")

# Weights and pictures without near kinks where no bias could part them: behind a squeeze-and-excitation gate.
SEEDS = {"rexnet_100": 20, "seresnet50": 20}  # the others: 0
HEAVY = (
    *("resnet50.a1_in1k", "seresnet50", "ecaresnet26t", "res2net50_26w_4s", "densenet121", "vovnet39a", "dla34"),
    *("hrnet_w18_small", "repvgg_a0", "selecsls42", "xception41"),
)
SIZES = dict.fromkeys(HEAVY, 64)  # the others: 96
NAMES = (
    *("resnet18d", "resnet50.a1_in1k", "seresnet50", "ecaresnet26t", "skresnet18", "res2net50_26w_4s", "densenet121"),
    *("vovnet39a", "dla34", "hrnet_w18_small", "ghostnet_100", "mobilenetv2_100", "tf_efficientnet_lite0", "mixnet_s"),
    *("lcnet_050", "rexnet_100", "repvgg_a0", "regnetx_002", "selecsls42", "xception41"),
)
# Besides ReLU or ReLU6 these have activations (SiLU, hard-swish) that only `rectify all` takes, and gates that it must
# leave alone.
MIXED = ("mixnet_s", "lcnet_050", "rexnet_100")


def network(name: str) -> Network:
    """A member by timm's name, without downloading its weights."""
    make = partial(timm.create_model, name, pretrained=False)
    size = (3, *[SIZES.get(name, 96)] * 2)
    return Network(name, make, (2, *size), (3, *size), {0: "N"}, SEEDS.get(name, 0))


NETWORKS = {name: network(name) for name in NAMES}

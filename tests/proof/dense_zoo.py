"""torchvision's segmentation and video networks, as members of tests.proof.networks.

Height and width (and a clip's length) are left open in the file, and traced at another size than they are proved at.
"""

from functools import partial
from typing import Any

from tests.proof.networks import Network, nn
from tests.proof.torch_setup import torchvision

AXES = {4: {0: "N", 2: "H", 3: "W"}, 5: {0: "N", 2: "T", 3: "H", 4: "W"}}
SEEDS: dict[str, int] = {}
PICTURES = (2, 3, 80, 64), (3, 3, 64, 96)
CLIPS = (1, 3, 8, 48, 48), (2, 3, 6, 64, 32)


class Pixels(nn.Module):
    """A segmentation network's main output [N, classes, H, W], out of the dict that torchvision gives."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any) -> Any:
        return self.module(x)["out"]


def segmentation(name: str) -> Any:
    """By torchvision's name, 21 classes."""
    return Pixels(getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None))


def video(name: str) -> Any:
    """By torchvision's name, 400 classes."""
    return getattr(torchvision.models.video, name)(weights=None)


def network(make: Any, name: str, shape: tuple[int, ...], traced: tuple[int, ...]) -> Network:
    """A member of either family."""
    return Network(name, partial(make, name), shape, traced, AXES[len(shape)], SEEDS.get(name, 0))


SEGMENTATION = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")
VIDEO = ("r3d_18", "mc3_18", "r2plus1d_18")
NETWORKS = {name: network(segmentation, name, *PICTURES) for name in SEGMENTATION}
NETWORKS |= {name: network(video, name, *CLIPS) for name in VIDEO}

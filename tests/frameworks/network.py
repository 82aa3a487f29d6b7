"""The CNN in PyTorch: its weights, its pictures, and its maps in float64."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.proof.torch_setup import torch  # or a skip that gives the reason

from tests.frameworks.shapes import BATCH, CHANNELS, EPSILON, SIZE  # isort: skip
from tests.oracle.torch_oracle import Maps, explain
from tests.proof.kinks import AwayFromKinks

nn = torch.nn
RECTIFIERS = 5


class Network(nn.Module):  # type: ignore[misc]
    """[N, 3, 49, 49] → logits [N, 6].

    Sizes where TensorFlow's "same" padding of stride 2 is symmetric (odd: 49, 25), where it is not (6), and where
    a pool drops the last row and column (13).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 8, 3, stride=2, padding=1)
        self.stem_norm = nn.BatchNorm2d(8, eps=EPSILON)
        self.stem_pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8, eps=EPSILON)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(8, eps=EPSILON)
        self.pool = nn.MaxPool2d(2, stride=2)
        self.uneven = nn.ZeroPad2d((0, 1, 0, 1))
        self.depthwise = nn.Conv2d(8, 16, 3, stride=2, groups=8)
        self.relu6 = nn.ReLU6()
        self.pointwise = nn.Conv2d(16, 12, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(12, eps=EPSILON)
        self.relu = nn.ReLU()
        self.average = nn.AdaptiveAvgPool2d(1)
        self.dense = nn.Linear(12, 6)

    def forward(self, x: Any) -> Any:
        x = self.stem_pool(self.relu(self.stem_norm(self.stem(x))))
        branch = self.relu(self.first_norm(self.first(x)))
        x = self.pool(self.relu(self.second_norm(self.second(branch)) + x))
        x = self.relu6(self.depthwise(self.uneven(x)))
        x = self.relu(self.pointwise_norm(self.pointwise(x)))
        return self.dense(self.average(x).flatten(1))


def pictures() -> Any:
    """[2, 3, 49, 49] in float32: coarse blobs with noise over them."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(BATCH, CHANNELS, 6, 6, generator=generator)
    blobs = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return blobs + torch.randn(blobs.shape, generator=generator)


@lru_cache
def build() -> Any:
    """The network in float64 and evaluation mode, random; at `pictures` no activation is near a kink."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(27)  # the pictures' classes differ
        module = Network().double().eval()
        for part in module.modules():
            _shake(part)
        with AwayFromKinks():
            module(pictures().double())
    return module.float().double()  # as the files store it


def _shake(part: Any) -> None:
    """Weights that keep the scale of the signal; norms away from the identity that they are born as."""
    if isinstance(part, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.normal_(part.bias, std=0.3)
    elif isinstance(part, nn.BatchNorm2d):
        nn.init.uniform_(part.weight, 0.5, 1.5)
        nn.init.normal_(part.bias, std=0.3)
        nn.init.normal_(part.running_mean, std=0.3)
        nn.init.uniform_(part.running_var, 0.5, 2.0)
    if isinstance(part, nn.Conv2d) and part.groups > 1:
        part.weight *= 3  # so that ReLU6 saturates here and there


def save_weights(path: Path) -> None:
    """PyTorch's state dict as .npz in float32."""
    np.savez(path, **{n: v.float().numpy() for n, v in build().state_dict().items() if not n.endswith("tracked")})


@lru_cache
def truth() -> Maps:
    """The maps [N, 3, 49, 49] in float64, each picture's best class explained."""
    return explain(build(), pictures().double())


def logits() -> Any:
    """[N, 6] in float64"""
    with torch.no_grad():
        return build()(pictures().double())

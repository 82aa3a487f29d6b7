"""AlexNet, ZFNet, VGG-19, two Inceptions, DenseNet, ResNet, ShuffleNet and SqueezeNet out of the onnx wheel."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

import gbprewrite  # noqa: E402
from tests.oracle.torch_oracle import METHODS  # noqa: E402
from tests.proof import files  # noqa: E402
from tests.proof.files import one_thread  # noqa: E402, F401
from tests.proof.light_networks import filled, light, picture  # noqa: E402

RECTIFIERS = {
    "bvlc_alexnet": 7,
    "densenet121": 121,
    "inception_v1": 57,
    "inception_v2": 69,
    "resnet50": 49,
    "shufflenet": 33,
    "squeezenet": 26,
    "vgg19": 18,
    "zfnet512": 7,
}
FAST = ("shufflenet", "squeezenet")
NETWORKS = [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in RECTIFIERS]


def case(name):
    return files.Case(name, partial(filled, name), partial(picture, name), RECTIFIERS[name])


@pytest.fixture(scope="module", params=NETWORKS)
def proof(request):
    return files.Proof(case(request.param))


def test_activations_neither_die_nor_explode(proof):
    """Otherwise the maps would prove little: rectifiers must be half open, and their outputs of the order of 1."""
    at = files.activations(proof.source, proof.feeds, list(proof.oracle.rectifiers))
    assert all(0.2 < np.mean(y > 0) < 0.9 and 0.2 < np.std(y) < 5 for y in at.values())


def test_values_of_the_oracle(proof):
    files.check_values(proof.source, proof.feeds)


def test_maps(proof):
    files.check_maps(proof)


def test_rectifiers(proof):
    files.check_rectifiers(proof)


def test_original_outputs(proof):
    files.check_original_outputs(proof)


def test_file(proof):
    files.check_file(proof)


@pytest.mark.parametrize("name", NETWORKS)
def test_as_shipped(name):
    """Weights that are computed (ConstantOfShape) and no initializers: same outputs, finite maps."""
    source, feeds = light(name), picture(name)
    results = files.run(gbprewrite.convert(source, METHODS), feeds, optimised=False)
    for output, value in files.run(source, feeds, optimised=False).items():
        assert np.array_equal(value, results[output])
    assert all(np.isfinite(value).all() for value in results.values())

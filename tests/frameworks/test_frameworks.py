"""The same CNN from every framework gives the maps that PyTorch gives in float64.

Environments: python -m tests.frameworks.environments FOLDER; then
GBPREWRITE_FRAMEWORKS=FOLDER python -m pytest -m frameworks
"""

import numpy as np
import pytest

import gbprewrite
from tests.frameworks import exports, network
from tests.frameworks.environments import VARIABLE
from tests.oracle.torch_oracle import METHODS, relative_l2
from tests.proof.files import run
from tests.proof.kinks import Distance
from tests.proof.torch_setup import torch

pytestmark = pytest.mark.frameworks
LIMIT, SAME_FUNCTION = 1e-4, 1e-5
FILES = [(name, file) for name, framework in exports.FRAMEWORKS.items() for file in framework.files]


@pytest.fixture
def source(name, file):
    """The file as the framework wrote it."""
    made = exports.export(name)
    if made is None:
        environment = exports.FRAMEWORKS[name].environment
        pytest.skip(f"no {environment} in ${VARIABLE}: python -m tests.frameworks.environments FOLDER {environment}")
    return made.files[file]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_the_file_computes_what_pytorch_does(source):
    """Log-probabilities are the logits, but for a constant."""
    (probabilities,) = run(source, exports.feeds(source, network.pictures().numpy())).values()
    logits, found = network.logits().numpy(), np.log(probabilities.astype(np.float64))
    centred = (v - v.mean(1, keepdims=True) for v in (found, logits))
    assert relative_l2(*centred) <= SAME_FUNCTION


@pytest.mark.parametrize(("name", "file"), FILES)
def test_maps(source):
    result = exports.explain(source, network.pictures().numpy())
    assert len(result.record["rectifiers"]) == network.RECTIFIERS
    assert result.classes == network.truth().target.tolist()
    assert {m: e for m, e in exports.errors(result.maps).items() if not e <= LIMIT} == {}


@pytest.mark.parametrize(("name", "file"), FILES)
def test_own_output_is_unchanged(source):
    """Bit for bit, graph optimisations off."""
    feeds = exports.feeds(source, network.pictures().numpy())
    before = run(source, feeds, optimised=False)
    after = run(gbprewrite.convert(source, METHODS), feeds, optimised=False)
    assert all(np.array_equal(value, after[output]) for output, value in before.items())


@pytest.mark.parametrize(("name", "file"), FILES)
def test_batch_of_one(name, file, source):
    """A dynamic batch stays one, and no picture's map depends on its neighbours."""
    dynamic = exports.FRAMEWORKS[name].files[file]
    assert (exports.shape_of(source)[0] is None) == dynamic
    if dynamic:
        singles = [exports.explain(source, picture[None]) for picture in network.pictures().numpy()]
        maps = {m: np.concatenate([single.maps[m] for single in singles]) for m in singles[0].maps}
        assert {m: e for m, e in exports.errors(maps).items() if not e <= LIMIT} == {}


def test_no_activation_is_near_a_kink():
    """So that rounding flips none; and the pictures' classes differ."""
    with torch.no_grad(), Distance() as distance:
        network.build()(network.pictures().double())
    assert distance.of_kinks > 1e-4
    assert distance.of_ties > 1e-5
    assert len(set(network.truth().target.tolist())) == len(network.pictures())

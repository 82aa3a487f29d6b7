"""`explain` on detectors: the strongest boxes' maps against PyTorch in float64."""

import pytest

pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")
pytest.importorskip("tests.proof.torch_setup")

from tests.proof import detectors
from tests.proof.files import one_thread  # noqa: F401


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("detector", detectors.SMALL, ids=lambda d: d.name)
def test_small_detectors(detector, exporter):
    for row in detectors.compare(detector, exporter):
        assert row.right, row


@pytest.mark.slow
@pytest.mark.parametrize("detector", detectors.ZOO, ids=lambda d: d.name)
def test_detectors_of_the_zoo(detector):
    if detector.name.startswith("ultralytics"):
        pytest.importorskip("ultralytics", reason="pip install --no-deps ultralytics and what it imports")
    for row in detectors.compare(detector, "torchscript"):
        assert row.right, row

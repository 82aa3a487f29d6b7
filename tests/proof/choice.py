"""Which exports of a network are proved in every run, and which with the whole product only.

PyTorch's two exporters differ in what the first stages of a conversion read: opsets, functions, idioms. Every network
is proved in one of them; the second adds something for networks with idioms of their own.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def every(networks: Iterable[str], fast: Collection[tuple[str, str]], idioms: Collection[str] = ()) -> list[Any]:
    """(name, exporter), except the fast ones, which run in the same suite; the second exporter is weekly but for
    idioms."""
    pairs = [(name, exporter) for name in networks for exporter in ("torchscript", "dynamo")]
    return [
        pytest.param(name, exporter, marks=pytest.mark.weekly if exporter == "dynamo" and name not in idioms else ())
        for name, exporter in pairs
        if (name, exporter) not in fast
    ]

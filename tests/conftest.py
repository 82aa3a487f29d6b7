"""Fixtures that several test files use."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from gbprewrite.cli import main
from tests.small import cnn


@pytest.fixture
def cli() -> Callable[..., Result]:
    """The command line: cli("convert", path, "--json") → its result; an exception that escapes fails the test."""

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def cnn_path(tmp_path: Path) -> Path:
    """tests.small.cnn in a file."""
    onnx.save(cnn(), tmp_path / "cnn.onnx")
    return tmp_path / "cnn.onnx"

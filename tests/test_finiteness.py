"""Scores and maps that are NaN or infinite are named, with their cause: by the Explainer, run, explain and verify."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from tests.small import Array, model

Cli = Callable[..., Result]
IMAGE = "(float[N, 1, 4, 4] image) => (float[N, 3] logits)"
HEAD = "p = GlobalAveragePool (r) f = Flatten (p) logits = Gemm (f, w, b)"


def network(bias: list[float], body: str = "r = Relu (image)", image: str = IMAGE) -> onnx.ModelProto:
    """logits = 1, 2, 3 times the mean of r, and a bias."""
    return model(f"g {image} {{ {body} {HEAD} }}", w=np.float32([[1, 2, 3]]), b=np.float32(bias))


VOID = [float("nan")] * 3
PARTLY = [0, float("nan"), 0]
# The network, its inputs in a batch of two, and what is said
CASES: dict[str, tuple[onnx.ModelProto, float, list[str]]] = {
    "NaN": (network(VOID), 1.0, ["the model itself", "'logits'", "6 NaN of 6 values", "sample 0, 1"]),
    "one NaN": (network(PARTLY), 1.0, ["the model itself", "2 NaN of 6 values", "highest class means nothing"]),
    "infinite": (network([0, float("inf"), 0]), 1.0, ["the model itself", "2 infinite of 6 values"]),
    "overflow": (network([0, 0, 0], "r = Exp (image)"), 500.0, ["the model itself", "infinite"]),
    "input": (network([0, 0, 0]), float("nan"), ["the input 'image' is not finite", "32 NaN of 32 values"]),
    "map": (
        network([0, 0, 0], "r = Sqrt (image)"),
        0.0,
        ["the map 'image_gradient'", "32 infinite", "score is: a root"],
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", ["argmax", 2])
def test_the_explainer_warns(name: str, target: str | int) -> None:
    source, value, words = CASES[name]
    explainer = gbprewrite.Explainer(source, "gradient", target, providers="cpu")
    with pytest.warns(gbprewrite.NotFinite) as said:
        found = explainer(np.full((2, 1, 4, 4), value, np.float32))
    assert [str(w.message) for w in said] == list(found.notes)
    assert len(found.notes) == 1
    for word in words:
        assert word in found.notes[0]


def test_nothing_is_said_where_all_is_finite() -> None:
    found = gbprewrite.Explainer(network([0, 0, 0]), providers="cpu")(np.ones((2, 1, 4, 4)))
    assert found.notes == ()


def test_only_the_samples_that_are_not_finite_are_named() -> None:
    x = np.ones((9, 1, 4, 4), np.float32)
    x[2:] = 500
    with pytest.warns(gbprewrite.NotFinite, match=r"sample 2, 3, 4, 5, 6 and 2 more, counting from 0"):
        gbprewrite.Explainer(network([0, 0, 0], "r = Exp (image)"), "gradient", providers="cpu")(x)


@pytest.mark.parametrize("target", [7, -1])
def test_a_run_time_target_that_does_not_exist_is_still_an_error(target: int) -> None:
    explainer = gbprewrite.Explainer(network([0, 0, 0]), "gradient", "input", providers="cpu")
    with pytest.raises(gbprewrite.DataError, match="target does not exist"):
        explainer(np.ones((2, 1, 4, 4)), targets=[0, target])


def test_a_target_that_exists_is_not_blamed_for_a_map_of_nothing_but_nan() -> None:
    """Σ over the root of 0, times 0, is NaN."""
    source = network([0, 0, 0], "s = Sqrt (image) r = Mul (s, s)")
    explainer = gbprewrite.Explainer(source, "gradient", "input", providers="cpu")
    with pytest.warns(gbprewrite.NotFinite, match="the map 'image_gradient'"):
        assert np.isnan(explainer(np.zeros((1, 1, 4, 4)), targets=[1]).map()).all()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    ones: Array = np.ones((2, 1, 4, 4), np.float32)
    np.save("x.npy", ones)
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save("photo.png")
    onnx.save(network(VOID), "void.onnx")
    onnx.save(network(PARTLY), "partly.onnx")
    onnx.save(network([0, 0, 0], "z = Sub (image, image) r = Sqrt (z)"), "map.onnx")
    return tmp_path


@pytest.mark.parametrize("how", [[], ["--quiet"], ["--json"]])
def test_run_says_so(place: Path, how: list[str], cli: Cli) -> None:
    assert cli("convert", "partly.onnx", "--quiet").exit_code == 0
    result = cli("run", "partly.guided.onnx", "--input", "x.npy", *how)
    assert result.exit_code == 0
    assert "warning: the model itself gives a score 'logits' that is not finite (2 NaN of 6 values" in result.stderr
    if how == ["--json"]:
        assert "2 NaN of 6 values" in json.loads(result.stdout)["notes"][0]


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("void", 1, "error: photo.png: the model itself gives a score 'logits' that is not finite (3 NaN of 3 values)"),
        ("partly", 0, "warning: photo.png: the model itself gives a score 'logits' that is not finite (1 NaN of 3"),
        ("map", 1, "error: photo.png: the map 'image_gradient' is not finite"),
    ],
)
def test_explain_says_so(place: Path, name: str, status: int, said: str, cli: Cli) -> None:
    result = cli("explain", f"{name}.onnx", "photo.png", "--method", "gradient", "--preset", "unit", "--quiet")
    assert result.exit_code == status
    assert said in result.stderr
    assert Path("photo.gradient.png").exists() == (status == 0)


@pytest.mark.parametrize("name", ["void", "partly"])
def test_verify_says_whose_doing_it_is(place: Path, name: str, cli: Cli) -> None:
    assert cli("convert", f"{name}.onnx", "--quiet").exit_code == 0
    result = cli("verify", f"{name}.guided.onnx")
    assert result.exit_code == 1
    assert "the score 'logits' is not finite" in result.stderr
    assert "it is the model that gives it" in result.stderr

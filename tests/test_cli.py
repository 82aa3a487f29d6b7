"""The command line: what each command prints and writes, and that every command and option explains itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from click.testing import Result
from PIL import Image

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.cli.convert import default_path
from gbprewrite.graft import record as report
from gbprewrite.model import file as modelfile
from tests.small import cnn, model, normal, run

DIGITS = Path(__file__).parents[1] / "models" / "digits.onnx"
Cli = Callable[..., Result]
COMMANDS = sorted(main.commands)
OPTIONS = [(name, p) for name in COMMANDS for p in main.commands[name].params if isinstance(p, click.Option)]
X = normal(5, 3, 12, 12, seed=9)


def facts(result: Result) -> dict[str, Any]:
    """The one JSON object that a command printed."""
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


@pytest.fixture
def converted(cnn_path: Path, cli: Cli) -> Path:
    assert cli("convert", cnn_path, "--method", "guided", "--method", "gradient", "-q").exit_code == 0
    return cnn_path.with_name("cnn.guided+gradient.onnx")


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, and tables of one width wherever the tests run (pytest-xdist sets COLUMNS)."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestHelp:
    def test_commands(self) -> None:
        first = ["compare", "convert", "explain", "help", "inspect", "layers"]
        assert [*first, "ops", "run", "sanity", "top", "verify"] == COMMANDS

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command(self, name: str, cli: Cli) -> None:
        assert main.commands[name].help
        assert main.commands[name].help.split()[0] in cli(name, "--help").output

    @pytest.mark.parametrize(("name", "option"), OPTIONS, ids=[f"{name}{option.opts[-1]}" for name, option in OPTIONS])
    def test_every_option(self, name: str, option: click.Option, cli: Cli) -> None:
        assert option.help
        text = " ".join(cli(name, "-h").output.split())
        assert option.opts[-1] in text
        assert " ".join(option.help.split()[:3]) in text

    def test_explain_offers_no_run_time_targets(self, cli: Cli) -> None:
        texts = {name: " ".join(cli(name, "--help").output.split()) for name in ("convert", "explain")}
        assert {name: "given at run time" in text for name, text in texts.items()} == {
            "convert": True,
            "explain": False,
        }

    @pytest.mark.parametrize("name", ["scale", "mean", "std", "bgr"])
    def test_defaults_of_the_values_are_the_preset_s(self, name: str) -> None:
        (option,) = (p for p in main.commands["explain"].params if p.name == name)
        assert option.help.endswith("Default: the preset's.")

    def test_version(self, cli: Cli) -> None:
        assert cli("--version").output == f"gbprewrite, version {gbprewrite.__version__}\n"

    def test_module(self) -> None:
        done = subprocess.run([sys.executable, "-m", "gbprewrite", "ops"], capture_output=True, text=True, check=True)
        assert "MaxPool" in done.stdout


class TestConvert:
    def test_report(self, cnn_path: Path, cli: Cli) -> None:
        text = cli("convert", cnn_path).output
        path = cnn_path.with_name("cnn.guided.onnx")
        made = modelfile.load(path)
        for words in (
            f"wrote        {path}",
            "explains     logits, the score before Softmax_8 of probabilities",
            "             class axis 1: the final Softmax runs along it",
            f"nodes        9 before, {len(made.graph.node)} after",
            "rectifiers   2 Relu rewritten",
            "pools        1 MaxPool, 1 GlobalAveragePool",
            "new outputs  image_guided float32 [N, 3, 12, 12]",
            "explained_index int64 [N]",
            f"size         {path.stat().st_size / 1e3:.1f} kB, the source has {cnn_path.stat().st_size / 1e3:.1f} kB",
            f"gbprewrite verify {path}",
            f"gbprewrite explain {path} PHOTO.png",
            f"gbprewrite run {path} --input x.npy",
        ):
            assert words in text

    def test_what_it_writes_is_what_the_library_gives(self, cnn_path: Path, cli: Cli) -> None:
        cli(
            "convert",
            cnn_path,
            "--method",
            "deconvnet",
            "--target",
            "topk:2",
            "--score",
            "logits",
            "--opset",
            20,
            "--prefix",
            "a_",
        )
        made = gbprewrite.convert(cnn(), "deconvnet", "topk:2", score="logits", opset=20, prefix="a_")
        assert cnn_path.with_name("cnn.deconvnet.onnx").read_bytes() == made.SerializeToString(deterministic=True)

    def test_json(self, cnn_path: Path, cli: Cli) -> None:
        found = facts(cli("convert", cnn_path, "--target", "input", "--json"))
        assert found["rectifiers"] == {"Relu": 2}
        assert found["new_inputs"] == [{"name": "target", "dtype": "int64", "shape": ["N"]}]
        assert [row["name"] for row in found["new_outputs"]] == ["image_guided", "explained_index"]
        assert found["bytes"] == {"before": cnn_path.stat().st_size, "after": Path(found["path"]).stat().st_size}
        assert found["next"][-1] == f"gbprewrite run {found['path']} --input image=image.npy --input target=target.npy"

    def test_names_of_array_files(self, tmp_path: Path, cli: Cli) -> None:
        slashed = model("g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) { s = Mul (x, z) y = Relu (s) }")
        for value, name in zip(slashed.graph.input, ("images/left:0", "z"), strict=True):
            slashed.graph.node[0].input[:] = [name if old == value.name else old for old in slashed.graph.node[0].input]
            value.name = name
        modelfile.save(slashed, tmp_path / "m.onnx")
        (*_, line) = facts(cli("convert", tmp_path / "m.onnx", "--json"))["next"]
        assert line.endswith(" --input images/left:0=images_left_0.npy --input z=z.npy")

    def test_flaw_of_the_source(self, tmp_path: Path, cli: Cli) -> None:
        flawed = cnn()
        flawed.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7  # it has 5
        modelfile.save(flawed, tmp_path / "m.onnx")
        text = cli("convert", tmp_path / "m.onnx").output
        words = "the source declares its output 'probabilities' as ['N', 7], and its nodes make ['N', 5]: the result"
        assert f"flaw         {words}" in text
        again = ("convert", tmp_path / "m.onnx", "-o", tmp_path / "again.onnx", "--json")
        assert facts(cli(*again))["flaw"].startswith(words)
        assert f"flaw       {words}" in cli("inspect", tmp_path / "m.guided.onnx").output

    def test_no_flaw_no_line(self, cnn_path: Path, cli: Cli) -> None:
        assert "\nflaw" not in cli("convert", cnn_path).output
        assert "\nflaw" not in cli("inspect", cnn_path.with_name("cnn.guided.onnx")).output

    def test_maps_only(self, cnn_path: Path, cli: Cli) -> None:
        """The advice can be followed: verify needs the source, and the file explains without scores."""
        (verify, *_) = facts(cli("convert", cnn_path, "--maps-only", "--json"))["next"]
        assert cli(*verify.split()[1:]).exit_code == 0
        Image.new("RGB", (12, 12), "red").save(cnn_path.with_name("red.png"))
        text = cli("explain", cnn_path.with_name("cnn.guided.onnx"), cnn_path.with_name("red.png")).output
        assert "the scores are no output of the file: no classes to list" in text

    def test_quiet(self, cnn_path: Path, cli: Cli) -> None:
        assert cli("convert", cnn_path, "--quiet").output == ""
        assert cnn_path.with_name("cnn.guided.onnx").exists()

    def test_rectify_takes_lists(self, tmp_path: Path, cli: Cli) -> None:
        text = "g (float[N, 3] x) => (float[N, 3] y) { a = Elu (x) b = Selu (a) c = LeakyRelu (b) y = Relu (c) }"
        modelfile.save(model(text), tmp_path / "m.onnx")
        found = facts(cli("convert", tmp_path / "m.onnx", "--rectify", "Elu,Selu", "--rectify", "LeakyRelu", "--json"))
        assert (found["rectifiers"].keys(), found["left_plain"]) == ({"Elu", "Selu", "LeakyRelu", "Relu"}, {})

    def test_what_is_left_plain_is_listed(self, tmp_path: Path, cli: Cli) -> None:
        text = "g (float[N, 3] x) => (float[N, 3] y) { a = Elu (x) y = Relu (a) }"
        modelfile.save(model(text), tmp_path / "m.onnx")
        assert "left plain   1 Elu (activation)" in cli("convert", tmp_path / "m.onnx").output

    def test_force_and_replace(self, cnn_path: Path, converted: Path, cli: Cli) -> None:
        cli("convert", cnn_path, "--force", "-o", cnn_path.with_name("fresh.onnx"), "-q")
        assert cli("convert", converted, "--replace", "-q").exit_code == 0
        path = cnn_path.with_name("cnn.guided.onnx")
        assert cli("convert", converted, "--replace", "-q", "--force").exit_code == 0
        again = run(modelfile.load(path), image=X)
        np.testing.assert_array_equal(
            again["image_guided"], run(modelfile.load(cnn_path.with_name("fresh.onnx")), image=X)["image_guided"]
        )

    @pytest.mark.parametrize(
        ("name", "methods", "expected"),
        [
            ("m.onnx", (), "m.guided.onnx"),
            ("m.onnx", ("guided", "gradient"), "m.guided+gradient.onnx"),
            ("m.v1.onnx", ("gradient",), "m.v1.gradient.onnx"),
            ("m.guided+gradient.onnx", ("deconvnet",), "m.deconvnet.onnx"),
            ("m.pb", (), "m.pb.guided.onnx"),
            ("guided.onnx", (), "guided.guided.onnx"),
            ("m.onnx", ("guided", "gradient", "guided"), "m.guided+gradient.onnx"),
        ],
    )
    def test_default_path(self, name: str, methods: tuple[str, ...], expected: str) -> None:
        assert default_path(Path("folder") / name, methods) == Path("folder") / expected

    def test_brackets_in_names_are_no_markup(self, wide: Path, cli: Cli) -> None:
        named = cnn()
        named.graph.node[1].name = "[red]relu[/red] :smile:"
        modelfile.save(named, "[m].onnx")
        assert "wrote        [m].guided.onnx\n" in cli("convert", "[m].onnx").output
        assert "[red]relu[/red] :smile:" in cli("inspect", "[m].onnx").output

    def test_interrupted_run_leaves_nothing(self, cnn_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = sorted(cnn_path.parent.iterdir())
        monkeypatch.setattr(os, "replace", interrupt)
        result = cli("convert", cnn_path)
        assert (result.exit_code, "Aborted" in result.output) == (1, True)
        assert sorted(cnn_path.parent.iterdir()) == before


class TestRun:
    def test_arrays(self, converted: Path, tmp_path: Path, cli: Cli) -> None:
        np.save(tmp_path / "x.npy", X)
        found = facts(cli("run", converted, "--input", f"image={tmp_path / 'x.npy'}", "--provider", "cpu", "--json"))
        expected = run(modelfile.load(converted), image=X)
        with np.load(tmp_path / "cnn.guided+gradient.npz") as held:
            assert sorted(held) == sorted(expected)
            for name in held:
                np.testing.assert_array_equal(held[name], expected[name], strict=True)
        assert found["provider"] == "cpu"
        row = next(row for row in found["arrays"] if row["name"] == "image_guided")
        assert row == {
            "name": "image_guided",
            "dtype": "float32",
            "shape": [5, 3, 12, 12],
            "min": float(expected["image_guided"].min()),
            "max": float(expected["image_guided"].max()),
        }

    def test_run_time_target_from_one_npz(self, cnn_path: Path, tmp_path: Path, cli: Cli) -> None:
        cli("convert", cnn_path, "--target", "input", "-o", tmp_path / "c.onnx", "-q")
        np.savez(tmp_path / "all.npz", image=X, target=[4, 3, 2, 1, 0])
        result = cli("run", tmp_path / "c.onnx", "--input", tmp_path / "all.npz", "-o", tmp_path / "out.npz")
        assert ("image_guided" in result.output, "ran on" in result.output) == (True, True)
        with np.load(tmp_path / "out.npz") as held:
            np.testing.assert_array_equal(held["explained_index"], [4, 3, 2, 1, 0])


class TestVerify:
    def test_right(self, cnn_path: Path, converted: Path, cli: Cli) -> None:
        text = cli("verify", converted, "--source", cnn_path, "--provider", "cpu").output
        assert "checks   6 passed" in text
        assert "verdict  ok" in text
        found = facts(cli("verify", converted, "--json"))
        assert found["ok"]
        assert found["verdict"] == "ok"
        assert [check["status"] for check in found["checks"]] == ["passed"] * 6

    def test_quick(self, converted: Path, cli: Cli) -> None:
        text = cli("verify", converted, "--quick", "--provider", "cpu").output
        assert "checks   3 passed, 3 skipped" in text
        assert "nothing failed, but not checked: directional derivatives, guided map of image" in " ".join(text.split())
        found = facts(cli("verify", converted, "--quick", "--json"))
        assert not found["ok"]
        assert found["unchecked"] == ["directional derivatives", "guided map of image", "gradient map of image"]

    def test_wrong(self, cnn_path: Path, converted: Path, cli: Cli) -> None:
        other = cnn()
        other.graph.initializer[1].CopyFrom(
            onnx.numpy_helper.from_array(normal(4, seed=5), other.graph.initializer[1].name)
        )
        modelfile.save(other, cnn_path, force=True)
        result = cli("verify", converted, "--source", cnn_path)
        assert (result.exit_code, "failed" in result.output) == (1, True)


class TestInspect:
    def test_source(self, cnn_path: Path, cli: Cli) -> None:
        text = cli("inspect", cnn_path).output
        for words in ("image float32 [N, 3, 12, 12]", "rectifier", "GlobalAveragePool", "Softmax", "dx = dy · (x > 0)"):
            assert words in text

    def test_parameters_are_the_source_s(self, cnn_path: Path, converted: Path, cli: Cli) -> None:
        found = [facts(cli("inspect", path, "--json"))["parameters"] for path in (cnn_path, converted)]
        assert found[0] == found[1]

    def test_each_method_has_its_rule(self, wide: Path, cli: Cli) -> None:
        built = model(
            "g (float[N, 3] x) => (float[N, 3] y) { a = Softplus (x) b = Relu (a) c = Relu (b) y = Relu (c) }"
        )
        for node in built.graph.node:
            node.name = f"named_{node.output[0]}"
        modelfile.save(built, "m.onnx")
        rows = [" ".join(line.split()) for line in cli("inspect", "m.onnx").output.splitlines()]
        for row in (
            "1 Softplus activation all dx = dy · sigmoid x named_a",
            "3 Relu rectifier gradient dx = dy · (x > 0) named_b and 2 more",
            "guided dx = max(dy, 0) · (x > 0)",
            "deconvnet dx = max(dy, 0)",
        ):
            assert row in rows

    def test_obstacles(self, tmp_path: Path, cli: Cli) -> None:
        modelfile.save(model("g (float[N, 3] x) => (float[N, 3] y) { a = Det2 (x) y = Relu (a) }"), tmp_path / "m.onnx")
        assert "no rule" in cli("inspect", tmp_path / "m.onnx").output

    def test_converted(self, converted: Path, cli: Cli) -> None:
        text = cli("inspect", converted).output
        for words in ("methods guided, gradient, target argmax", "image_guided (guided of image)", "rectified  2 Relu"):
            assert words in text
        assert facts(cli("inspect", converted, "--json"))["record"] == report.read_record(modelfile.load(converted))


@pytest.mark.parametrize("arguments", [("ops",), ("inspect", DIGITS)], ids=["ops", "inspect"])
def test_lines_in_a_pipe(arguments: tuple[object, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = cli(*arguments).output.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines == [line.rstrip() for line in lines]


def test_ops(cli: Cli) -> None:
    rows = facts(cli("ops", "--json"))["operators"]
    assert {"operator": "Relu", "formula": "dx = dy · (x > 0)", "kind": "rule"} in rows
    text = cli("ops").output
    assert ("dx = dy · (x > 0)" in text, "ArgMax" in text) == (True, True)

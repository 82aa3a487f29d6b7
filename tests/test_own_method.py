"""A method of one's own: in the file, in reports, on the command line, and in a process that does not have it."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from PIL import Image

import gbprewrite
from gbprewrite.backward.coverage import known, missing
from gbprewrite.extend import VJP, Builder, Map, Method, Rule, Tensor, Work, vjp
from gbprewrite.graft.record import read_record
from gbprewrite.methods.asked import specs
from gbprewrite.methods.table import METHODS
from gbprewrite.normalise.dialect import normalise
from gbprewrite.pictures.panels import panels
from gbprewrite.view.forward import view
from tests.small import cnn, model, normal, run


def clipped(rule: Any) -> Any:
    """dx = min(dy, 1) · f'(x)"""
    return lambda op, dy, *args, **attributes: rule(op, op.Min(dy, np.float32(1)), *args, **attributes)


CLIPPED = Method(
    "clipped", clipped, signal="min(dy, 1)", limit="passes on no cotangent above 1", title="clipped gradient"
)
SOURCE = "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"
X, DY = np.float32([[-1, 1, 2, 3]]), np.float32([[5, 5, -5, 0.5]])
FILE = """
from gbprewrite.extend import Method

def clipped(rule):
    return lambda op, dy, *args, **attributes: rule(op, op.Min(dy, 1.0), *args, **attributes)

CLIPPED = Method("clipped", clipped, signal="min(dy, 1)", limit="passes on no cotangent above 1")
NOTHING = 7
"""


def test_maps() -> None:
    found = run(gbprewrite.convert(model(SOURCE), [CLIPPED, "gradient"], "seed"), x=X, seed=DY)
    np.testing.assert_array_equal(found["x_clipped"], [[0, 1, -5, 0.5]])
    np.testing.assert_array_equal(found["x_gradient"], [[0, 5, -5, 0.5]])


def test_the_record_holds_the_formula_that_acted() -> None:
    record = read_record(gbprewrite.convert(model(SOURCE), [CLIPPED, "guided"], "seed"))
    assert record is not None
    assert record["rectifiers"][0]["rules"] == {
        "clipped": "dx = min(dy, 1) · (x > 0)",
        "guided": "dx = max(dy, 0) · (x > 0)",
    }
    assert record["own_methods"] == {
        "clipped": {"at": f"{__name__}:CLIPPED", "title": CLIPPED.title, "limit": CLIPPED.limit}
    }
    assert record["options"]["method"] == [f"{__name__}:CLIPPED", "guided"]


def test_records_of_our_own_methods_are_as_before() -> None:
    assert "own_methods" not in json.loads(gbprewrite.convert(model(SOURCE), "guided", "seed").metadata_props[-1].value)


def test_inspect_lists_it() -> None:
    (row,) = gbprewrite.inspect(model(SOURCE), methods=[CLIPPED]).nonlinearities
    assert row["rules"] == {"clipped": "dx = min(dy, 1) · (x > 0)"}


def test_verify_and_explainer() -> None:
    built = gbprewrite.convert(cnn(), CLIPPED)
    verification = gbprewrite.verify(built)
    assert verification.ok, verification
    assert {c.name: c.status for c in verification.checks}["backward part, as this version writes it"] == "passed"
    explanation = gbprewrite.Explainer(cnn(), CLIPPED)(normal(2, 3, 12, 12))
    assert list(explanation.maps) == ["image_clipped"]


def spread(op: Builder, dy: Tensor, y: Tensor, x: Tensor) -> Any:
    """dx = dy / 2"""
    return op.Mul(dy, 0.5)


def test_a_table_of_its_own() -> None:
    half = Method("half", rules=VJP | {"Relu": Rule(spread)})
    found = run(gbprewrite.convert(model(SOURCE), [half, "gradient"], "seed"), x=X, seed=DY)
    np.testing.assert_array_equal(found["x_half"], DY / 2)
    np.testing.assert_array_equal(found["x_gradient"], DY * (X > 0))
    (row,) = gbprewrite.inspect(model(SOURCE), methods=half).nonlinearities
    assert row["rules"] == {"half": "dx = dy / 2"}


def test_a_table_without_a_rule() -> None:
    alone = Method("alone", rules={"Relu": VJP["Relu"]})
    with pytest.raises(gbprewrite.UnsupportedOperators, match="the method's own table has no rule for it"):
        gbprewrite.convert(model("g (float[N] x) => (float[N] y) { r = Relu (x) y = Exp (r) }"), alone, "seed")


def test_what_it_makes_of_the_cotangents() -> None:
    def doubled(work: Work, method: Method) -> list[Map]:
        made = zip(work.chosen.inputs, work.cotangents(method), strict=True)
        return [Map(x, [dx and work.op.Mul(dx, 2.0) for dx in found]) for x, found in made]

    found = run(gbprewrite.convert(model(SOURCE), Method("doubled", maps=doubled), "seed"), x=X, seed=DY)
    np.testing.assert_array_equal(found["x_doubled"], 2 * DY * (X > 0))


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rules() -> Iterator[None]:
    held = dict(VJP)
    yield
    VJP.clear()
    VJP.update(held)


def test_a_second_rule_is_refused(rules: None) -> None:
    before = VJP["Relu"]
    with pytest.raises(ValueError, match="Relu: there is a rule for it already"):
        vjp("Relu")(spread)
    assert VJP["Relu"] is before
    vjp("Relu", replace=True)(spread)
    assert VJP["Relu"].text == "dx = dy / 2"


class Square(OpRun):
    """The custom operator, for ONNX's reference evaluator."""

    op_domain = "com.acme"

    def _run(self, x: Any) -> tuple[Any]:  # type: ignore[override]
        return (x * x,)


def test_an_operator_of_another_domain(rules: None) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18, "com.acme" : 1]> g (float[N, 4] x) => (float[N, 4] y)'
    source = onnx.parser.parse_model(text + " { r = Relu (x) s = com.acme.Square (r) y = Neg (s) }")
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["N", 4]))
    with pytest.raises(gbprewrite.UnsupportedOperators, match=r"com\.acme::Square"):
        gbprewrite.convert(source, "gradient", "seed")

    @vjp("com.acme::Square")
    def square(op: Any, dy: Any, y: Any, x: Any) -> Any:
        """dx = 2 x dy"""
        return op.Mul(op.Mul(x, 2.0), dy)

    built = gbprewrite.convert(source, "gradient", "seed")
    evaluator = ReferenceEvaluator(built, new_ops=[Square])
    found = dict(zip(evaluator.output_names, evaluator.run(None, {"x": X, "seed": DY}), strict=True))
    np.testing.assert_allclose(found["x_gradient"], -2 * np.maximum(X, 0) * DY)


# --- the command line, and other processes ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_maps.py").write_text(FILE)
    onnx.save(cnn(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_maps", None)


COMMANDS = {  # and what it writes
    "explain m.onnx photo.png --preset unit": "photo.clipped.png",
    "compare m.onnx photo.png --preset unit --method guided": "photo.compare.png",
    "sanity m.onnx photo.png --preset unit": "m.sanity.png",
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.split()[0])
def test_every_command_that_draws_maps_takes_it(command: str, folder: Path, cli: Any) -> None:
    Image.fromarray(np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)).save(folder / "photo.png")
    result = cli(*command.split(), "--method", "own_maps:CLIPPED")
    assert result.exit_code == 0, result.output
    assert (folder / COMMANDS[command]).exists()
    assert "clipped passes on no cotangent above 1" in result.output


def test_the_place_is_where_it_is_made_and_not_who_imports_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "reader.py").write_text("from own_maps import CLIPPED")
    monkeypatch.syspath_prepend(folder)
    reader = importlib.import_module("reader")
    assert specs([reader.CLIPPED]) == ["own_maps:CLIPPED"]
    del sys.modules["reader"]


def test_its_title_stands_over_its_picture() -> None:
    assert (
        panels("clipped", np.ones((2, 2, 1)), np.zeros((2, 2), np.uint8), title=CLIPPED.title)[0].title == CLIPPED.title
    )


def test_on_the_command_line(folder: Path, cli: Any) -> None:
    result = cli("convert", "m.onnx", "--method", "own_maps:CLIPPED", "--method", "guided")
    assert result.exit_code == 0, result.output
    assert "clipped passes on no cotangent above 1" in result.output
    assert (folder / "m.clipped+guided.onnx").exists()
    assert cli("verify", "m.clipped+guided.onnx").exit_code == 0


def test_in_a_process_without_it(folder: Path, cli: Any) -> None:
    assert cli("convert", "m.onnx", "--method", "own_maps:CLIPPED").exit_code == 0
    (folder / "own_maps.py").unlink()
    arguments = [sys.executable, "-c", "from gbprewrite.cli import main; main()", "verify", "m.clipped.onnx", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(gbprewrite.__file__).parents[1])}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    skipped = checks["backward part, as this version writes it"]
    assert skipped["status"] == "skipped"
    assert "the method clipped is not here" in skipped["note"]


WRONG = {
    "a function": (lambda rule: rule, "a function is not a method. Give a name, or a Method"),
    "a table of rules": ({"Relu": clipped}, "a dict is not a method"),
    "a number": (7, "a int is not a method"),
    "a place without a module": ("no_such_module:X", "can't be imported (ModuleNotFoundError"),
    "a place without the name": ("json:X", "can't be imported (AttributeError"),
    "a place of something else": ("json:dumps", "it is a function, not a Method"),
    "a name of ours": (Method("guided", clipped, signal="x"), "two methods have this name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_method(name: str) -> None:
    asked, words = WRONG[name]
    with pytest.raises(gbprewrite.UsageError, match=re.escape(words)):
        gbprewrite.convert(model(SOURCE), asked, "seed")


def test_a_row_says_what_it_must() -> None:
    with pytest.raises(gbprewrite.UsageError, match="signal"):
        Method("clipped", clipped)
    with pytest.raises(gbprewrite.UsageError, match="letters, digits and _"):
        Method("my map")


def test_a_method_of_a_script_is_used_and_not_checked() -> None:
    nameless = Method("nameless", clipped, signal="min(dy, 1)")
    built = gbprewrite.convert(cnn(), nameless)
    checks = {c.name: c for c in gbprewrite.verify(built).checks}
    assert "was made in a script" in checks["backward part, as this version writes it"].note


PARAMETERS = [
    ([gbprewrite.GradCAM(layer="r1")], {"method": "gradcam", "cam_layer": "r1"}),
    ([gbprewrite.RectGrad(quantile=0.9)], {"method": "rectgrad", "rectgrad_quantile": 0.9}),
    ([gbprewrite.SmoothGrad(samples=3)], {"method": "smoothgrad", "samples": 3}),
    (gbprewrite.IntegratedGradients(steps=4), {"method": "integrated_gradients", "steps": 4}),
]


def test_parameters_in_two_places_must_agree() -> None:
    same = gbprewrite.convert(cnn(), gbprewrite.IntegratedGradients(steps=4), steps=4)
    assert read_record(same)["options"]["steps"] == 4  # type: ignore[index]
    with pytest.raises(gbprewrite.UsageError, match="steps=5: the method itself says 4"):
        gbprewrite.convert(cnn(), gbprewrite.IntegratedGradients(steps=4), steps=5)
    with pytest.raises(gbprewrite.UsageError, match="cam_layer is 'a' for one method, and 'b' for another"):
        gbprewrite.convert(cnn(), [gbprewrite.GradCAM("a"), gbprewrite.GuidedGradCAM("b")])


def test_a_table_that_has_the_rule_is_not_said_to_lack_it() -> None:
    """Products of levels have no gradient, whichever table is asked."""
    text = """g (uint8[N, 1, 4, 4] u) => (uint8[N, 1, 4, 4] y) {
        x = DequantizeLinear (u, s, z) p = MaxPool <kernel_shape = [1, 1]> (x) q = QuantizeLinear (p, s, z)
        m = Mul (q, q) y = Identity (m) }"""
    source = model(text, 21, s=np.float32(0.1), z=np.uint8(0))
    node = next(n for n in view(normalise(source, known()), known()).nodes if n.op == "Mul")
    for table in (VJP, METHODS["gradient_no_switches"].rules):
        assert [o.why for o in missing([node], 21, table)] == [o.why for o in missing([node], 21)] != []


@pytest.mark.parametrize(("objects", "keywords"), PARAMETERS, ids=lambda v: str(v)[:30])
def test_parameters_stand_on_the_method(objects: Any, keywords: dict[str, Any]) -> None:
    if "cam_layer" in keywords:
        layer = next(n.output[0] for n in cnn().graph.node if n.op_type == "Conv")
        objects, keywords = [gbprewrite.GradCAM(layer=layer)], {**keywords, "cam_layer": layer}
    both = gbprewrite.convert(cnn(), objects), gbprewrite.convert(cnn(), **keywords)
    assert both[0].SerializeToString(deterministic=True) == both[1].SerializeToString(deterministic=True)

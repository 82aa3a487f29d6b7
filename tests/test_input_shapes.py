"""Inputs without a shape: asked for, and said with --input-shape; open sizes fixed where the user wants that."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.model.input_shapes import Shapes, parse
from tests.small import cnn, model, normal, run


def shapeless() -> onnx.ModelProto:
    """The small CNN, of whose input and output nothing but the type is said."""
    source = cnn()
    for value in (source.graph.input[0], source.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    return source


def _declared(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("first", [2, "N", None])
@pytest.mark.parametrize("built", [shapeless, cnn])
def test_the_maps_are_those_of_the_model_with_shapes(built: object, first: int | str | None) -> None:
    source = shapeless() if built is shapeless else cnn()
    methods = ["gradient", "guided", "gradcam"]
    converted = gbprewrite.convert(source, methods, 1, input_shapes={"image": [first, 3, 12, 12]})
    onnx.checker.check_model(converted, full_check=True)
    x = normal(2, 3, 12, 12)
    want, found = run(gbprewrite.convert(cnn(), methods, 1), image=x), run(converted, image=x)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7)
    kept = [0 if first is None else first, 3, 12, 12]
    assert _declared(converted.graph.input[0]) == kept
    if first is not None:
        assert _declared(converted.graph.output[1]) == kept


def test_a_number_fixes_the_size_wherever_its_name_stands() -> None:
    source = model("""g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) {
        a = Add (x, z)
        y = Relu (a)
    }""")
    converted = gbprewrite.convert(source, "gradient", 0, inputs=["x"], input_shapes={"x": [4, 3]})
    values = [*converted.graph.input, *converted.graph.output]
    assert [_declared(v) for v in values] == [[4, 3], [4, 3], [4, 3], [4, 3], [4]]


def test_inner_sizes_become_known() -> None:
    """A pool over open sizes asks for them at run time; with known ones it needs no Shape."""
    text = "g (float[N, 3, H, W] x) => (float[N, 3] y) { p = GlobalAveragePool (x) y = Flatten (p) }"
    opened = gbprewrite.convert(model(text), "gradient", 0)
    fixed = gbprewrite.convert(model(text), "gradient", 0, input_shapes={"x": [2, 3, 4, 5]})
    assert [any(n.op_type == "Shape" for n in m.graph.node) for m in (opened, fixed)] == [True, False]
    np.testing.assert_array_equal(run(fixed, x=normal(2, 3, 4, 5))["x_gradient"][:, 0], np.full((2, 4, 5), 0.05, "f"))


REFUSED: list[tuple[Shapes, list[str]]] = [
    ({"nose": [1]}, ["--input-shape nose", "no such input", "Its inputs are: image"]),
    ({"image": [1, 3, 12]}, ["--input-shape image=1,3,12", "the model declares N,3,12,12", "Only open sizes"]),
    ({"image": [1, 4, 12, 12]}, ["--input-shape image=1,4,12,12", "declares N,3,12,12"]),
    ({"image": [0, 3, 12, 12]}, ["--input-shape image", "[0, 3, 12, 12]", "no number from 1 on"]),
    ({"image": [-1, 3, 12, 12]}, ["no number from 1 on"]),
]


@pytest.mark.parametrize(("shapes", "words"), REFUSED)
def test_shapes_that_contradict_the_model(shapes: Shapes, words: list[str]) -> None:
    with pytest.raises(gbprewrite.UsageError) as raised:
        gbprewrite.convert(cnn(), input_shapes=shapes)
    assert all(word in str(raised.value) for word in words)


def test_one_name_two_numbers() -> None:
    source = model("g (float[N, N] x) => (float[N, N] y) { y = Relu (x) }")
    with pytest.raises(gbprewrite.UsageError, match="'N' more than once, and it would be both 2 and 3"):
        gbprewrite.convert(source, input_shapes={"x": [2, 3]})


@pytest.mark.parametrize("method", ["guided", "gradcam"])
def test_a_missing_shape_is_asked_for(method: str) -> None:
    with pytest.raises(gbprewrite.ModelError, match="The input image has no shape in the model") as raised:
        gbprewrite.convert(shapeless(), method)
    assert "--input-shape image=1,3,224,224" in str(raised.value)


@pytest.mark.parametrize("text", ["image", "image=", "=1,2", "image=1,,2", "image=1.5", "image=-1,3", "image=²"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(gbprewrite.UsageError, match="write the input's name and its sizes, such as image=1,3,224,224"):
        parse([text])


def test_names_may_hold_equal_signs() -> None:
    assert parse(["a=b=1,N,?"]) == {"a=b": [1, "N", None]}


def _command(tmp_path: Path, line: str) -> Result:
    onnx.save(shapeless(), tmp_path / "m.onnx")
    Image.new("RGB", (12, 12), (200, 30, 90)).save(tmp_path / "photo.png")
    arguments = [a.replace("DIR", str(tmp_path)) for a in line.split()]
    return CliRunner().invoke(main, [*arguments, "--input-shape", "image=1,3,12,12"])


@pytest.mark.parametrize(
    "line",
    [
        "convert DIR/m.onnx -o DIR/c.onnx",
        "explain DIR/m.onnx DIR/photo.png -o DIR/maps",
        "compare DIR/m.onnx DIR/photo.png -o DIR/maps",
        "inspect DIR/m.onnx",
        "layers DIR/m.onnx",
        "top DIR/m.onnx DIR/photo.png --layer e --channels 0 -o DIR/top.png",
    ],
)
def test_every_command_that_reads_a_source_takes_it(tmp_path: Path, line: str) -> None:
    result = _command(tmp_path, line)
    assert result.exit_code == 0, result.output


def test_a_converted_file_verifies_against_its_source(tmp_path: Path) -> None:
    result = _command(tmp_path, "convert DIR/m.onnx -o DIR/c.onnx --json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["new_outputs"][0]["shape"] == [1, 3, 12, 12]
    line = ["verify", str(tmp_path / "c.onnx"), "--source", str(tmp_path / "m.onnx")]
    checked = CliRunner().invoke(main, line)
    assert checked.exit_code == 0, checked.output

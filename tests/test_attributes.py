"""Attributes outside their domain are refused by name, before anything else reads them; all others pass."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from PIL import Image

import gbprewrite
from gbprewrite.cli import main
from gbprewrite.model import attributes
from tests.cases import CASES, Case
from tests.small import cnn, model, normal
from tests.test_operators import build

IMAGE, ROW = "float[2, 4, 6, 6] x", "float[3, 4] x"
# input, body, opset, what the message says of the node and of its attribute
ROWS: list[tuple[str, str, int, str, str]] = [
    (ROW, "y = Gemm <transB = -2> (x, w)", 18, "Gemm node 'y'", "'transB' is -2, and must be 0 or 1"),
    (ROW, "y, z = Split <axis = 1, num_outputs = 1> (x)", 18, "Split node 'y'", "is 1, and must be 2, the number of"),
    (ROW, "y, z = Split <num_outputs = 0> (x)", 18, "Split node 'y'", "'num_outputs' is 0, and must be from 1"),
    (ROW, "y, z = Split <num_outputs = -1> (x)", 18, "Split node 'y'", "'num_outputs' is -1"),
    (ROW, "y, z = Split <num_outputs = 1000000000> (x)", 18, "Split node 'y'", "must be 2"),
    (ROW, "y, z = Split <split = [1, 1, 1]> (x)", 11, "Split node 'y'", "must be 2 lengths, one for each output"),
    (ROW, "y, z = Split <split = [-1, 4]> (x)", 11, "Split node 'y'", "'split' is [-1, 4], and must be from 0"),
    (ROW, "y = Softmax <axis = 2> (x)", 18, "Softmax node 'y'", "must be from -2 to 1: its input has 2 axes"),
    (ROW, "y = Flatten <axis = -3> (x)", 18, "Flatten node 'y'", "must be from -2 to 2"),
    (ROW, "y = Concat <axis = 7> (x, x)", 18, "Concat node", "'axis' is 7"),
    (ROW, "y = Softmax <axis = 1.5> (x)", 18, "Softmax node 'y'", "'axis' is of type FLOAT, and must be of type INT"),
    (ROW, "y = Transpose <perm = [0, 0]> (x)", 18, "Transpose node 'y'", "must be a permutation"),
    (ROW, "y = Transpose <perm = [0, 2, 1]> (x)", 18, "Transpose node 'y'", "a permutation of its 2 axes"),
    (ROW, "i = Cast <to = 99> (x) y = Cast <to = 1> (i)", 18, "Cast node 'i'", "'to' is 99, and must be the number"),
    (ROW, "i = Cast <to = 0> (x) y = Cast <to = 1> (i)", 18, "Cast node 'i'", "'to' is 0"),
    (ROW, 'y = Gelu <approximate = "erf"> (x)', 20, "Gelu node 'y'", "'erf', and must be one of none, tanh"),
    (IMAGE, "y = Conv <strides = [0, 1]> (x, k)", 18, "Conv node 'y'", "'strides' is [0, 1], and must be from 1"),
    (IMAGE, "y = Conv <dilations = [1, 0]> (x, k)", 18, "Conv node 'y'", "'dilations' is [1, 0]"),
    (IMAGE, "y = Conv <pads = [0, -1, 0, 0]> (x, k)", 18, "Conv node 'y'", "'pads' is [0, -1, 0, 0]"),
    (IMAGE, "y = Conv <kernel_shape = [3, 3], pads = [1, 1]> (x, k)", 18, "Conv node 'y'", "two numbers for each axis"),
    (IMAGE, "y = Conv <kernel_shape = [3, 3], strides = [1]> (x, k)", 18, "Conv node 'y'", "one number for each axis"),
    (IMAGE, "y = Conv <kernel_shape = [5, 5]> (x, k)", 18, "Conv node 'y'", "must be [3, 3], the size of its weights"),
    (IMAGE, "y = Conv <group = 0> (x, k)", 18, "Conv node 'y'", "'group' is 0, and must be from 1"),
    (IMAGE, "y = Conv <group = 3> (x, k)", 18, "Conv node 'y'", "'group' is 3, and must be a number that fits"),
    (IMAGE, "y = ConvTranspose <group = 3> (x, k)", 18, "ConvTranspose node 'y'", "input's 4 channels"),
    (IMAGE, 'y = Conv <auto_pad = "SAME"> (x, k)', 18, "Conv node 'y'", "'SAME', and must be one of NOTSET"),
    (IMAGE, "y = MaxPool <kernel_shape = [-2, 2]> (x)", 18, "MaxPool node 'y'", "'kernel_shape' is [-2, 2]"),
    (IMAGE, "y = MaxPool <kernel_shape = [4294967297, 2]> (x)", 18, "MaxPool node 'y'", "to 2147483647 each"),
    (IMAGE, "y = DepthToSpace <blocksize = 0> (x)", 18, "DepthToSpace node 'y'", "'blocksize' is 0"),
    (IMAGE, "y = LRN <size = 2> (x)", 18, "LRN node 'y'", "an odd number"),
    (IMAGE, 'y = Resize <mode = "cube"> (x, , s)', 18, "Resize node 'y'", "must be one of nearest, linear, cubic"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1])
def test_refused_by_the_name_of_the_node(row: tuple[str, str, int, str, str]) -> None:
    given, body, opset, node, words = row
    source = model(
        f"g ({given}) => (float y) {{ {body} }}",
        opset,
        **{"w": normal(5, 4), "k": normal(4, 4, 3, 3), "s": np.ones(4, np.float32)},
    )
    source.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(gbprewrite.ModelError) as raised:
        gbprewrite.convert(source, "gradient", "seed")
    assert node in str(raised.value)
    assert words in str(raised.value)
    with pytest.raises(gbprewrite.ModelError, match=node):
        gbprewrite.inspect(source)


@pytest.mark.parametrize("place", ["branch", "function"])
def test_inside_branches_and_functions(place: str) -> None:
    bad = "Transpose <perm = [1, 1]> (x)"
    texts = {
        "branch": f"""<ir_version: 8, opset_import: ["" : 18]> g (float[3, 4] x, bool c) => (float[3, 4] y) {{
            y = If (c) <then_branch = t () => (float[3, 4] p) {{ p = {bad} }},
                        else_branch = e () => (float[3, 4] q) {{ q = Neg (x) }}>
        }}""",
        "function": f"""<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
            g (float[3, 4] x) => (float[3, 4] y) {{ y = own.f (x) }}
            <domain: "own", opset_import: ["" : 18]> f (x) => (p) {{ p = {bad} }}""",
    }
    with pytest.raises(gbprewrite.ModelError, match="Transpose node 'p': its attribute 'perm'"):
        gbprewrite.convert(onnx.parser.parse_model(texts[place]), "gradient", "seed")


@pytest.mark.parametrize("command", ["run", "verify", "explain"])
def test_a_converted_file_is_not_handed_to_the_runtime_either(tmp_path: Path, command: str) -> None:
    """onnxruntime 1.32 aborts the process while it loads such a Split."""
    converted = gbprewrite.convert(cnn())
    converted.graph.node.append(helper.make_node("Split", ["logits"], ["p", "q"], "bad", axis=1, num_outputs=1))
    onnx.save(converted, tmp_path / "c.onnx")
    np.save(tmp_path / "x.npy", normal(2, 3, 12, 12))
    Image.new("RGB", (12, 12)).save(tmp_path / "photo.png")
    more = {"run": ["--input", str(tmp_path / "x.npy")], "verify": [], "explain": [str(tmp_path / "photo.png")]}
    result = CliRunner().invoke(main, [command, str(tmp_path / "c.onnx"), *more[command]])
    assert result.exit_code == 1
    assert "Split node 'bad': its attribute 'num_outputs' is 1" in result.output


OUTSIDE: dict[type, list[Any]] = {int: [-2, 2**40], list: [[-1, 1], [2**40, 1], [1, 1]], str: ["nonsense"]}


@pytest.mark.parametrize("name", [*attributes.DOMAINS, *attributes.OF_OPERATOR], ids=str)
def test_every_domain_leaves_something_out(name: str | tuple[str, str]) -> None:
    """Of an operator that has the attribute: a value of its type that the table refuses."""
    operator, attribute = name if isinstance(name, tuple) else (None, name)
    schemas = [s for s in onnx.defs.get_all_schemas() if s.domain == "" and attribute in s.attributes]
    old = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and attribute in s.attributes]
    schema = next(s for s in [*schemas, *old] if operator in (None, s.name))
    kind = str(schema.attributes[attribute].type).rpartition(".")[2]
    values = OUTSIDE[{"INT": int, "INTS": list, "STRING": str}[kind]]
    refused = 0
    for value in values:
        source = model("g (float[2] x) => (float[2] y) { y = Relu (x) }", schema.since_version)
        source.graph.node[0].op_type = schema.name
        source.graph.node[0].attribute.append(helper.make_attribute(attribute, value))
        try:
            attributes.check(source)
        except gbprewrite.ModelError as error:
            refused += f"its attribute {attribute!r}" in str(error)
    assert refused


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operator_case_passes(case: Case) -> None:
    source, _ = build(case, np.float32)
    attributes.check(source)

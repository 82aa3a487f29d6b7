"""Small files that ask for hours or gigabytes: each is converted, or refused in words, in little time and memory.

All of them go through one process whose memory is limited; it prints a line for each.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import gbprewrite
from tests.small import model

BYTES = 3 * 2**30  # addresses, of which the libraries take one at rest
SECONDS = 300  # for all of them, on a busy machine; some 10 on one of its own
A_CASE = 30


def _net(nodes: str, inputs: str = "", weights: dict[str, Any] | None = None) -> onnx.ModelProto:
    """A network with these nodes beside its Relu; what they make is `c`, one number that is added to the score."""
    text = f"""g (float[N,2,8,8] x{inputs}) => (float[N,2,8,8] y) {{
        {nodes}
        r = Relu (x)
        y = Add (r, c)
    }}"""
    return model(text, **{name: np.asarray(value) for name, value in (weights or {}).items()})


def _pool(pool: str, image: str = "N,2,8,8") -> onnx.ModelProto:
    return model(f"g (float[{image}] x) => (float[N,2,A,B] y) {{ r = Relu (x) y = {pool} (r) }}")


def _repeated(first: str, last: str, between: str, count: int, **weights: Any) -> onnx.ModelProto:
    """`between` reads f{i} and makes f{i + 1}."""
    chain = [between.format(i, i + 1) for i in range(count)]
    return _net(" ".join([first, *chain, last]), weights=weights)


def _doubling_functions(depth: int) -> onnx.ModelProto:
    body = '<domain: "my", opset_import: ["" : 18, "my" : 1]>'
    functions = [f"{body} F{i} (a) => (b) {{ t = my.F{i + 1} (a) b = my.F{i + 1} (t) }}" for i in range(depth)]
    text = '<ir_version: 8, opset_import: ["" : 18, "my" : 1]> g (float[N,4] x) => (float[N,4] y) { y = my.F0 (x) }'
    return onnx.parser.parse_model("\n".join([text, *functions, f"{body} F{depth} (a) => (b) {{ b = Relu (a) }}"]))


def _chain(count: int, name: str) -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(count - 1)), "y"]
    nodes = [helper.make_node("Relu", [names[i]], [names[i + 1]], name=name) for i in range(count)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), ir_version=8)


def _wide(count: int) -> onnx.ModelProto:
    built = _chain(1, "")
    built.graph.node.append(helper.make_node("Concat", ["y"] * count, ["z"], axis=1))
    built.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4 * count]))
    return built


def _many_outputs(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], [f"o{i}"]) for i in range(count)]
    x, *outputs = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ["x", *(f"o{i}" for i in range(count))]
    )
    return helper.make_model(helper.make_graph(nodes, "g", [x], outputs), ir_version=8)


def _many_weights(count: int) -> onnx.ModelProto:
    built = _chain(1, "")
    built.graph.initializer.extend(
        TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[1], raw_data=b"\0\0\0\0") for i in range(count)
    )
    return built


SUM = "c = ReduceSum <keepdims = 0> (f)"
FLAT = "i = Cast <to = 1> (f) c = ReduceSum <keepdims = 0> (i)"
SQUARE = {"s": np.array([31623]), "two": np.array(2)}
# Name: (model, words of the error, or None where the file is converted).
CASES: dict[str, tuple[Callable[[], onnx.ModelProto], str | None]] = {
    "a constant of 10^9": (lambda: _net(f"p = Pow (s, two) f = ConstantOfShape (p) {SUM}", weights=SQUARE), None),
    "expanded to 10^9": (
        lambda: _net(f"p = Pow (s, two) f = Expand (o, p) {SUM}", weights={**SQUARE, "o": np.ones(1, np.float32)}),
        None,
    ),
    "padded to 10^9": (
        lambda: _net(
            f"p = Pow (s, two) f = Pad (o, p) {SUM}",
            weights={"s": np.array([0, 31623]), "two": np.array(2), "o": np.ones(1, np.float32)},
        ),
        None,
    ),
    "repeated 10^9 times": (
        lambda: _net(f"p = Pow (s, two) f = Tile (o, p) {SUM}", weights={**SQUARE, "o": np.ones(1, np.float32)}),
        None,
    ),
    "counted to 10^9": (
        lambda: _net(f"p = Pow (t, two) f = Range (z, p, w) {FLAT}", weights={
            "t": np.array(31623), "two": np.array(2), "z": np.array(0), "w": np.array(1),
        }),
        None,
    ),
    "a window of 10^9": (
        lambda: _net(f"p = Pow (t, two) f = HammingWindow (p) {SUM}", weights={**SQUARE, "t": np.array(31623)}),
        None,
    ),
    "one hot of 10^9": (
        lambda: _net(f"p = Pow (s, two) f = OneHot (i, p, v) {SUM}", weights={
            **SQUARE, "i": np.array([1]), "v": np.array([0, 1], np.float32),
        }),
        None,
    ),
    "shapes known by propagation only": (
        lambda: _net(f"p = Mul (s, s) f = ConstantOfShape <value = int64[1] {{0}}> (p) {FLAT}", weights=SQUARE), None
    ),
    "an outer product of 4096": (
        lambda: _net(f"f = Mul (a, b) {SUM}", weights={
            "a": np.ones([4096, 1], np.float32), "b": np.ones([1, 4096], np.float32),
        }),
        None,
    ),
    "a vector that doubles 30 times": (
        lambda: _repeated("", FLAT.replace("(f)", "(f30)"), "f{1} = Concat <axis = 0> (f{0}, f{0})", 30,
                          f0=np.arange(4000)),
        None,
    ),
    "a chain of 3,000 constants": (
        lambda: _repeated("f0 = ConstantOfShape (s)", "c = ReduceSum <keepdims = 0> (f3000)", "f{1} = Neg (f{0})",
                          3_000, s=np.array([4096])),
        None,
    ),
    "an input of 2^31 integers": (
        lambda: _net("a = Slice (f, b, e) i = Cast <to = 1> (a) c = ReduceSum <keepdims = 0> (i)",
                     ", int64[2147483648] f", {"b": np.array([0]), "e": np.array([4])}),
        None,
    ),
    "a shape of 2^31 integers": (
        lambda: model(
            "g (float[N,2,8,8] x, int64[2147483648] f) => (float[N,2,8,8] y) {"
            "a = Slice (f, b, e) r = Relu (x) z = Reshape (r, a) y = Add (r, z) }",
            b=np.array([0]), e=np.array([4]),
        ),
        None,
    ),
    "a shape by sums that double 40 times": (
        lambda: model(
            "g (float[N,2,8,8] x) => (float[N,2,8,8] y) { f0 = Shape (x) "
            + " ".join(f"f{i + 1} = Add (f{i}, f{i})" for i in range(40))
            + " r = Relu (x) z = Reshape (r, f40) y = Add (r, z) }",
        ),
        None,
    ),
    "a pool of 10^8": (
        lambda: _pool("AveragePool <kernel_shape = [1, 100000000]>", "1,2,8,200000000"), "4,194,304"
    ),
    "a pool of 3000 by 3000": (
        lambda: _pool("AveragePool <kernel_shape = [3000, 3000], pads = [1500, 1500, 1500, 1500]>"), "a window of ones"
    ),
    "an index whose axes double 28 times": (
        lambda: _repeated("", "c = ReduceSum <keepdims = 0> (w)", "f{1} = Gather (f{0}, f{0})", 28,
                          f0=np.zeros([1, 1], np.int64), w=np.ones(1, np.float32)),
        "axes",
    ),
    "one Concat of 4,000": (lambda: _wide(4_000), None),
    "a pool over 10^8": (
        lambda: _pool("AveragePool <kernel_shape = [1, 3], pads = [0, 1, 0, 1]>", "1,2,8,100000000"), "4,194,304"
    ),
    "a stride of 10^9": (lambda: _pool("MaxPool <kernel_shape = [2, 2], strides = [1000000000, 2]>"), None),
    "a maximum of 3000 by 3000": (
        lambda: _pool("MaxPool <kernel_shape = [3000, 3000], pads = [1500, 1500, 1500, 1500]>"), None
    ),
    "functions that double": (lambda: _doubling_functions(30), "multiplies itself"),
    "1,500 nodes of one name": (lambda: _chain(1_500, "same"), None),
    "1,000 outputs": (lambda: _many_outputs(1000), "and 990 more"),
    "20,000 weights": (lambda: _many_weights(20_000), None),
}  # fmt: skip


def _judge_all() -> None:
    """The process with limited memory: a line of JSON for each case."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    for name, (build, _) in CASES.items():
        built, started, words = build(), time.process_time(), ""
        for work in (lambda m: gbprewrite.convert(m, "gradient", "seed"), gbprewrite.inspect, gbprewrite.layers):
            try:
                work(built)
            except Exception as error:
                words += f"{type(error).__name__}: {error}\n"
        print(json.dumps({"name": name, "seconds": time.process_time() - started, "words": words}), flush=True)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Any]]:
    """What the process said of each case."""
    pytest.importorskip("resource")
    run = subprocess.run(
        [sys.executable, "-c", "from tests import test_bounds; test_bounds._judge_all()"],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    lines = map(json.loads, run.stdout.splitlines())
    return {row["name"]: row for row in lines} | {"": {"end": f"{run.returncode} {run.stderr[-1000:]}"}}


@pytest.mark.parametrize("name", CASES)
def test_little_time_and_memory(name: str, outcomes: dict[str, dict[str, Any]]) -> None:
    assert name in outcomes, f"the process ended before: {outcomes['']['end']}"
    words = CASES[name][1]
    said = outcomes[name]["words"]
    assert (words in said) if words else not said, said
    assert "defect" not in said
    assert "MemoryError" not in said
    assert outcomes[name]["seconds"] < A_CASE

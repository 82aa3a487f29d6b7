"""How the time of converting grows with the graph."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bench.conversion import converted

SIZES = (100, 200, 500, 1000, 2000, 5000, 10000, 20000)
LARGE = ("resnet152", "densenet201")
CHANNELS, SIDE, CLASSES = 4, 8, 10
WIDE = 2048  # channels of the large model
BLOCK = 5  # nodes of a residual block


def synthetic(nodes: int) -> onnx.ModelProto:
    """About that many nodes: residual blocks of Conv, Relu, Conv, Add, Relu; a dynamic batch; ten classes."""
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(operator: str, *inputs: str, **attributes: object) -> str:
        name = f"{operator.lower()}{len(made)}"
        made.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def conv(x: str) -> str:
        weight = 0.2 * rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{len(weights)}"))
        return add("Conv", x, weights[-1].name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    x = "x"
    for _ in range(nodes // BLOCK):
        x = add("Relu", add("Add", x, conv(add("Relu", conv(x)))))
    weights.append(numpy_helper.from_array(rng.standard_normal((CHANNELS, CLASSES)).astype(np.float32), "classes"))
    made.append(helper.make_node("Gemm", [add("Flatten", add("GlobalAveragePool", x)), "classes"], ["y"], "y"))
    graph = helper.make_graph(
        made,
        "synthetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def large(path: Path, gigabytes: float) -> None:
    """Write a chain of wide convolutions of that size, with external data, layer by layer of the same weights."""
    rng = np.random.default_rng(0)
    kernel = (0.007 * rng.standard_normal((WIDE, WIDE, 3, 3))).astype(np.float32)
    weights = [numpy_helper.from_array(kernel[:, :3].copy(), "w0")]
    made, x = list[onnx.NodeProto](), "x"
    for i in range(1 + round(gigabytes * 1e9 / kernel.nbytes)):
        made += [
            helper.make_node("Conv", [x, f"w{i}"], [f"conv{i}"], f"conv{i}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{i}"], [f"relu{i}"], f"relu{i}"),
        ]
        x = f"relu{i}"
        if i:
            weights.append(numpy_helper.from_array(kernel, f"w{i}"))
    made.append(helper.make_node("GlobalAveragePool", [x], ["y"], "y"))
    graph = helper.make_graph(
        made,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDE, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")


def measure(source: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Nodes of the file, and the medians over fresh processes of what `converted` tells."""
    count = len(onnx.load(source, load_external_data=False).graph.node)
    times = [converted("gbprewrite", source, folder / "converted.onnx", method="guided") for _ in range(repeats)]
    return {"nodes": count} | {name: float(np.median([t[name] for t in times])) for name in times[0]}


def exponent(found: list[dict[str, float]]) -> float:
    """p of seconds ~ nodes^p over the larger half of the graphs; 1 is linear."""
    larger = found[(len(found) - 1) // 2 :]
    nodes, seconds = (np.log([row[name] for row in larger]) for name in ("nodes", "convert_seconds"))
    return float(np.polyfit(nodes, seconds, 1)[0])

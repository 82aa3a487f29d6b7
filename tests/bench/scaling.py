"""How the time of converting grows with the graph."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.bench.conversion import converted

SIZES = (100, 200, 500, 1000, 2000, 5000, 10000, 20000)
LARGE = ("resnet152", "densenet201")
CHANNELS, SIDE, CLASSES = 4, 8, 10
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


def measure(source: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Nodes of the file, and the medians of `import_seconds` and `convert_seconds` over fresh processes."""
    count = len(onnx.load(source, load_external_data=False).graph.node)
    times = [converted("gbprewrite", source, folder / "converted.onnx", method="guided") for _ in range(repeats)]
    return {"nodes": count} | {name: float(np.median([t[name] for t in times])) for name in times[0]}


def exponent(found: list[dict[str, float]]) -> float:
    """p of seconds ~ nodes^p over the larger half of the graphs; 1 is linear."""
    larger = found[(len(found) - 1) // 2 :]
    nodes, seconds = (np.log([row[name] for row in larger]) for name in ("nodes", "convert_seconds"))
    return float(np.polyfit(nodes, seconds, 1)[0])

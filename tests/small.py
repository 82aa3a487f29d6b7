"""Small models in ONNX's own text, and how to run them."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

Array = np.ndarray[Any, Any]


def model(text: str, opset: int = 18, ir: int = 8, **weights: Array) -> onnx.ModelProto:
    """A model from a graph in ONNX text; further arguments become initializers."""
    parsed = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {text}')
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in weights.items())
    return parsed


def run(built: onnx.ModelProto, optimise: bool = True, **feeds: Array) -> dict[str, Array]:
    """Outputs by name, from onnxruntime on the CPU."""
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def normal(*shape: int, seed: int = 0) -> Array:
    """float32 normal values."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cnn(opset: int = 18) -> onnx.ModelProto:
    """Conv, Relu, MaxPool, Conv, Relu, GlobalAveragePool, Gemm, Softmax: [N, 3, 12, 12] → probabilities [N, 5]."""
    text = """cnn (float[N, 3, 12, 12] image) => (float[N, 5] probabilities) {
        a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
        b = Relu (a)
        c = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (b)
        d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (c, w2)
        e = Relu (d)
        f = GlobalAveragePool (e)
        g = Flatten (f)
        logits = Gemm <transB = 1> (g, w3, b3)
        probabilities = Softmax <axis = 1> (logits)
    }"""
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "w3": (5, 6), "b3": (5,)}
    return model(text, opset, **{n: normal(*shape, seed=i) for i, (n, shape) in enumerate(shapes.items())})

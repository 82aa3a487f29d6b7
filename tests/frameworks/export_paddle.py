"""PaddlePaddle by paddle2onnx: python -m tests.frameworks.export_paddle WEIGHTS.npz FOLDER [NAME]..."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from tests.frameworks.shapes import BATCH, CHANNELS, EPSILON, SIZE, Weights, write

RENAMED = {"running_mean": "_mean", "running_var": "_variance"}


class Network(nn.Layer):  # type: ignore[misc]
    """The layers of PyTorch's, channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2D(CHANNELS, 8, 3, stride=2, padding=1)
        self.stem_norm = nn.BatchNorm2D(8, epsilon=EPSILON)
        self.stem_pool = nn.MaxPool2D(3, stride=2, padding=1)
        self.first = nn.Conv2D(8, 8, 3, padding=1, bias_attr=False)
        self.first_norm = nn.BatchNorm2D(8, epsilon=EPSILON)
        self.second = nn.Conv2D(8, 8, 3, padding=1, bias_attr=False)
        self.second_norm = nn.BatchNorm2D(8, epsilon=EPSILON)
        self.pool = nn.MaxPool2D(2, stride=2)
        self.depthwise = nn.Conv2D(8, 16, 3, stride=2, padding="SAME", groups=8)
        self.pointwise = nn.Conv2D(16, 12, 1, bias_attr=False)
        self.pointwise_norm = nn.BatchNorm2D(12, epsilon=EPSILON)
        self.average = nn.AdaptiveAvgPool2D(1)
        self.dense = nn.Linear(12, 6)

    def forward(self, image: Any) -> Any:
        x = self.stem_pool(nn.functional.relu(self.stem_norm(self.stem(image))))
        branch = nn.functional.relu(self.first_norm(self.first(x)))
        x = self.pool(nn.functional.relu(self.second_norm(self.second(branch)) + x))
        x = nn.functional.relu6(self.depthwise(x))
        x = nn.functional.relu(self.pointwise_norm(self.pointwise(x)))
        return nn.functional.softmax(self.dense(self.average(x).flatten(1)))


def network(weights: Weights) -> Any:
    layer = Network()
    state = {}
    for name, value in weights.items():
        home, _, kind = name.rpartition(".")
        state[f"{home}.{RENAMED.get(kind, kind)}"] = value.T if name == "dense.weight" else value
    missing, unexpected = layer.set_state_dict(state)
    assert not missing
    assert not unexpected
    layer.eval()
    return layer


def export(weights: Weights, path: Path, batch: int, **options: Any) -> None:
    spec = paddle.static.InputSpec((batch, CHANNELS, SIZE, SIZE), "float32", "image")
    paddle.onnx.export(network(weights), str(path.with_suffix("")), [spec], **options)


def dynamic(weights: Weights, path: Path) -> None:
    export(weights, path, -1)


def fixed(weights: Weights, path: Path) -> None:
    export(weights, path, BATCH, opset_version=17)


EXPORTERS = {f.__name__: f for f in (dynamic, fixed)}

if __name__ == "__main__":
    write(EXPORTERS, f"PaddlePaddle {paddle.__version__}, paddle2onnx {version('paddle2onnx')}")

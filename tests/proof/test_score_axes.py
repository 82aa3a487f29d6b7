"""Heads as PyTorch's exporters write them: the class that is meant, against PyTorch in float64."""

import io

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")
pytest.importorskip("tests.proof.torch_setup")

import gbprewrite  # noqa: E402
from tests.oracle.torch_oracle import METHODS, explain, relative_l2  # noqa: E402
from tests.proof import zoo  # noqa: E402
from tests.proof.files import one_thread  # noqa: E402, F401

nn, functional = torch.nn, torch.nn.functional
CLASSES, LIMIT = 5, 1e-4


class Body(nn.Module):
    """Two convolutions, and layers for a head to use; `head` makes what forward gives."""

    def __init__(self, head, channels=CLASSES):
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.dense, self.maps = nn.Linear(8, channels), nn.Conv2d(8, channels, 1)
        self.head = head

    def features(self, x):
        return functional.relu(self.b(functional.relu(self.a(x))))

    def logits(self, x):
        return self.dense(self.features(x).mean((2, 3)))

    def planes(self, x):
        return self.maps(self.features(x))

    def forward(self, x):
        return self.head(self, x)


def sums(net, x):
    return net.planes(x).sum((2, 3))


def rows(net, x):
    """[N, T, classes] of columns of the features."""
    return net.dense(net.features(x).mean(2).transpose(1, 2))


def groups(net, x):
    return net.planes(x).view(-1, 2, CLASSES, 4, 6)


# name → what is exported, the score of each class [N, classes], channels of the last layer, fixed batch of one
HEADS = {
    "squeezed logits": (lambda n, x: n.logits(x).squeeze(0), Body.logits, CLASSES, True),
    "squeezed, then Softmax": (lambda n, x: n.logits(x).squeeze(0).softmax(0), Body.logits, CLASSES, True),
    "Softmax, then squeezed": (lambda n, x: n.logits(x).softmax(1).squeeze(0), Body.logits, CLASSES, True),
    "first of the batch": (lambda n, x: n.logits(x)[0], Body.logits, CLASSES, True),
    "[N, 1, 1, C]": (
        lambda n, x: n.maps(n.features(x).mean((2, 3), keepdim=True)).permute(0, 2, 3, 1),
        lambda n, x: n.maps(n.features(x).mean((2, 3), keepdim=True)).flatten(1), CLASSES, False,
    ),
    "channels-last maps, Sigmoid": (lambda n, x: n.planes(x).permute(0, 2, 3, 1).sigmoid(), sums, CLASSES, False),
    "channels-last maps": (lambda n, x: n.planes(x).permute(0, 2, 3, 1), sums, CLASSES, False),
    "maps, Softmax": (lambda n, x: n.planes(x).softmax(1), sums, CLASSES, False),
    "maps, Softmax, channels last": (lambda n, x: n.planes(x).softmax(1).permute(0, 2, 3, 1), sums, CLASSES, False),
    "Sigmoid, then Flatten": (lambda n, x: n.logits(x).view(-1, 5, 4).sigmoid().flatten(1), Body.logits, 20, False),
    "Softmax, then Flatten": (
        lambda n, x: n.planes(x).softmax(1).flatten(1), lambda n, x: n.planes(x).flatten(1), CLASSES, False
    ),
    "anchors": (
        lambda n, x: groups(n, x).permute(0, 1, 3, 4, 2).sigmoid().reshape(x.shape[0], -1, CLASSES),
        lambda n, x: groups(n, x).sum((1, 3, 4)), 2 * CLASSES, False,
    ),
    "samples, time, classes": (lambda n, x: rows(n, x).log_softmax(2), lambda n, x: rows(n, x).sum(1), CLASSES, False),
    "time, samples, classes": (
        lambda n, x: rows(n, x).permute(1, 0, 2).log_softmax(2), lambda n, x: rows(n, x).sum(1), CLASSES, False
    ),
    "masks": (lambda n, x: n.planes(x)[:, 0].sigmoid(), sums, 1, False),
    "a mask": (lambda n, x: n.planes(x).sigmoid().squeeze(), sums, 1, True),
    "one number": (lambda n, x: n.logits(x).sum(), lambda n, x: n.logits(x).sum(1, keepdim=True), CLASSES, True),
}  # fmt: skip


def export(module, x, exporter):
    """The model, with an open batch unless it has one sample."""
    names = {"input_names": ["x"], "output_names": ["y"]}
    with zoo._quiet():
        if exporter == "dynamo":
            shapes = ({0: torch.export.Dim("N")},) if len(x) > 1 else None
            made = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            return made.model_proto
        file, axes = io.BytesIO(), {"x": {0: "N"}} if len(x) > 1 else None
        opset = int(exporter.removeprefix("torchscript "))
        torch.onnx.export(module, (x,), file, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
        return onnx.load_from_string(file.getvalue())


def run(built, x):
    session = onnxruntime.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x.numpy()}), strict=True))


def pictures(count):
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("exporter", ["torchscript 11", "torchscript 17", "dynamo"])
@pytest.mark.parametrize("name", HEADS)
def test_the_class_that_is_meant(name, exporter):
    head, scores, channels, single = HEADS[name]
    x = pictures(1 if single else 2)
    source = export(Body(head, channels).eval(), x, exporter)
    truth = Body(scores, channels).double().eval()
    with torch.no_grad():
        count = truth(x.double()).shape[1]
    for target in ("argmax", min(3, count - 1), min(7, count - 1)):
        wanted = None if target == "argmax" else torch.full((len(x),), target)
        right = explain(truth, x.double(), target=wanted)
        found = run(gbprewrite.convert(source, METHODS, target), x)
        np.testing.assert_array_equal(found["explained_index"], right.target)
        for method in METHODS:
            assert right.maps[method].any()
            assert relative_l2(found[f"x_{method}"], right.maps[method]) <= LIMIT


@pytest.mark.parametrize("exporter", ["torchscript 17", "dynamo"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ["none", "softmax", "sigmoid", "mask"])
def test_the_region_of_a_class(activation, last, exporter):
    """The sum of the class's logits over the positions that say it, which PyTorch takes as they are (detached)."""
    channels = 1 if activation == "mask" else CLASSES
    after = {"none": lambda z: z, "softmax": lambda z: z.softmax(1)}.get(activation, torch.sigmoid)

    def said(z):
        if activation in ("sigmoid", "mask"):
            return z > 0
        return z.argmax(1, keepdim=True) == torch.arange(channels).view(1, -1, 1, 1)

    def head(net, x):
        y = after(net.planes(x))
        return y.permute(0, 2, 3, 1) if last else y

    x = pictures(2)
    source = export(Body(head, channels).eval(), x, exporter)
    truth = Body(lambda n, x: (n.planes(x) * said(n.planes(x)).detach()).sum((2, 3)), channels).double().eval()
    with torch.no_grad():
        largest = said(truth.planes(x.double())).sum((2, 3)).argmax(1)
    right = explain(truth, x.double(), target=largest)
    for target in ("region", *([f"region:{int(largest[0])}"] if largest[0] == largest[1] else [])):
        found = run(gbprewrite.convert(source, METHODS, target), x)
        np.testing.assert_array_equal(found["explained_index"], largest)
        for method in METHODS:
            assert relative_l2(found[f"x_{method}"], right.maps[method]) <= LIMIT

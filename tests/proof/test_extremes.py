"""Small networks with extreme weights, on extreme inputs, against PyTorch: every spelling, every value.

A value is right if it is PyTorch's in float64 rounded to float32, or PyTorch's in float32, where float32 overflows on
the way. What PyTorch selects is selected: what it has finite is finite.
"""

import io
import warnings
from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

import gbprewrite  # noqa: E402
from tests.proof.files import one_thread  # noqa: E402, F401

functional = torch.nn.functional
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
SPELLINGS = ("cpu", "cuda", "portable")
WEIGHTS = ((1, 1), (1e30, 1), (1, 1e30), (1e-30, 1), (1e30, 1e30), (1e-30, 1e30))  # of the first and the last layer
RECTIFIERS = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "clip to the largest float": lambda h: functional.hardtanh(h, 0.0, LARGEST),
    "clip to 1e-38": lambda h: functional.hardtanh(h, 0.0, 1e-38),
    "clip to 1e-30": lambda h: functional.hardtanh(h, 0.0, 1e-30),
    "clip to 1e30": lambda h: functional.hardtanh(h, 0.0, 1e30),
    "relu and pool": lambda h: functional.max_pool2d(functional.relu(h), 2),
    "pool with padding": lambda h: functional.relu(functional.max_pool2d(h, 3, 2, 1)),
    "hard-swish": functional.hardswish,
    "maximum": lambda h: torch.maximum(functional.relu(h), functional.relu(h.flip(1))),
    "largest of all": lambda h: torch.amax(functional.relu(h), (2, 3), keepdim=True),
    "leaky": lambda h: functional.leaky_relu(h, 0.1),
    "gelu": lambda h: functional.gelu(h, approximate="tanh"),
}
TAILS = {
    "nothing": lambda h: h,
    "root": torch.sqrt,
    "L2 norm": lambda h: functional.normalize(h, p=2, dim=1),
    "SSD's L2 norm": lambda h: h / (h.pow(2).sum(1, keepdim=True).sqrt() + 1e-10),
    "root of a sum": lambda h: h.sum((2, 3), keepdim=True).sqrt(),
    "pool of a root": lambda h: functional.max_pool2d(torch.sqrt(h), (min(2, h.shape[2]), min(2, h.shape[3]))),
    "squeeze and excitation": lambda h: h * torch.sigmoid(h.mean((2, 3), keepdim=True)),
    "square": lambda h: h * h,
}


class Network(torch.nn.Module):
    """Conv, a rectifier, a tail, the mean over space, and a matrix."""

    def __init__(self, rectifier, tail, scales):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.v = torch.nn.Parameter(torch.randn(4, 3, 3, 3, generator=generator) * scales[0])
        self.w = torch.nn.Parameter(torch.randn(4, 5, generator=generator) * scales[1])
        self.rectifier, self.tail = RECTIFIERS[rectifier], TAILS[tail]

    def forward(self, x):
        """[1, 3, 6, 6] to [1, 5]."""
        h = self.tail(self.rectifier(functional.conv2d(x, self.v, padding=1)))
        return h.flatten(2).mean(2) @ self.w

    def score_and_map(self, x, kind):
        """Of class 1, in float64 or float32."""
        x = torch.tensor(x, dtype=kind, requires_grad=True)
        score = self.to(kind)(x)[0, 1]
        (found,) = torch.autograd.grad(score, x)
        return score.item(), found.numpy()


def inputs():
    x = np.random.default_rng(0).normal(size=(1, 3, 6, 6))
    partly = np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, 0, x)
    made = (x, x * 1e30, x * 1e-30, x * 1e-42, -0.0 * np.abs(x), partly)
    return [a.astype(np.float32) for a in made]


def exported(rectifier, tail):
    """The network with weights of usual size."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Network(rectifier, tail, (1, 1)).eval(), torch.randn(1, 3, 6, 6), target, dynamo=False, opset_version=18,
            input_names=["x"], do_constant_folding=False,
        )  # fmt: skip
    return onnx.load_from_string(target.getvalue())


def weighted(source, network):
    """The file with the weights of a network."""
    for tensor in source.graph.initializer:
        if tensor.name in ("v", "w"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(getattr(network, tensor.name).detach().numpy(), tensor.name))
    return source


def session(built):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(built.SerializeToString(), options, providers=["CPUExecutionProvider"])


def near(found, wanted):
    """Where values agree; what is left of sums of values that cancel is rounding."""
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
    overflowed = ~np.isfinite(found) & (np.abs(wanted) > LARGEST / 1024)  # a part of the sum did
    return (found == wanted) | (np.abs(found - wanted) <= np.where(wanted == 0, 1e-6, 1e-3) * scale + TINY) | overflowed


@pytest.mark.slow
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("rectifier", RECTIFIERS)
def test_extremes(rectifier, tail):
    judged, source = 0, exported(rectifier, tail)
    assert {"v", "w"} <= {t.name for t in source.graph.initializer}
    for scales in WEIGHTS:
        network = Network(rectifier, tail, scales).eval()
        source = weighted(source, network)
        made = {how: gbprewrite.convert(source, "gradient", 1, optimize_for=how) for how in SPELLINGS}
        sessions = {how: session(built) for how, built in made.items()}
        for (number, x), how in product(enumerate(inputs()), SPELLINGS):
            score, single = network.score_and_map(x, torch.float32)
            true, double = network.score_and_map(x, torch.float64)
            scores, found = sessions[how].run([source.graph.output[0].name, "x_gradient"], {"x": x})
            if not np.isfinite([score, *scores.ravel()]).all() or abs(scores[0, 1] - true) > 0.01 * abs(true) + TINY:
                continue  # the network itself leaves float32
            with np.errstate(all="ignore"):
                right = near(found, double.astype(np.float32)) | near(found, single)
            right |= ~np.isfinite(found) & ~np.isfinite(single)
            judged += 1
            assert right.all(), f"{how}, weights {scales}, input {number}: {found[~right][:4]} for {single[~right][:4]}"
    assert judged >= 15

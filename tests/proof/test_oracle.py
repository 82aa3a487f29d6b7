"""The oracle's own proof: published numbers, formulas, Captum."""

import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

from tests.oracle.torch_oracle import METHODS, Rules, explain, relative_l2  # noqa: E402

nn, F = torch.nn, torch.nn.functional
T = torch.tensor

# Springenberg et al. 2015, figure 1
X = T([[1.0, -1, 5], [2, -5, -7], [-3, 2, 4]], dtype=torch.float64)
DY = T([[-2.0, 3, -1], [6, -3, 1], [2, -1, 3]], dtype=torch.float64)
FIGURE_1 = {
    "gradient": [[-2, 0, -1], [6, 0, 0], [0, -1, 3]],
    "deconvnet": [[0, 3, 0], [6, 0, 1], [2, 0, 3]],
    "guided": [[0, 0, 0], [6, 0, 0], [0, 0, 3]],
}
ZERO = torch.zeros((), dtype=torch.float64)
RELUS = {
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place by position": lambda x: F.relu(x, True),
    "F.relu by keyword": lambda x: F.relu(input=x),
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "Tensor.clamp": lambda x: x.clamp(0),
    "Tensor.clamp_": lambda x: x.clamp_(0.0),
    "Tensor.clamp_min": lambda x: x.clamp_min(0),
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    "F.threshold in place": lambda x: F.threshold(x, 0.0, 0.0, True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 100.0),
    "torch.maximum": lambda x: torch.maximum(x, ZERO),
    "torch.maximum of one value": lambda x: torch.maximum(ZERO.reshape(1), x),
}
RELU6S = {
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, 0.0, 6.0),
    "torch.clamp": lambda x: torch.clamp(x, 0, 6),
    "Tensor.clip_": lambda x: x.clip_(min=0, max=T(6.0)),
}


def pull_back(f, x, dy, method, **options):
    """The cotangent of x when f(x) has the cotangent dy."""
    leaf = x.detach().clone().requires_grad_()
    with Rules(method, **options):
        y = f(leaf * 1)
    return torch.autograd.grad(y, leaf, dy)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
def test_springenbergs_figure_1(relu, method):
    assert pull_back(relu, X, DY, method).tolist() == FIGURE_1[method]
    assert relu(X.clone()).tolist() == X.clamp(min=0).tolist()


RELU6_DX = {"gradient": [0, 0, 3, -3, 0, 0], "guided": [0, 0, 3, 0, 0, 0], "deconvnet": [3, 0, 3, 0, 3, 0]}


@pytest.mark.parametrize(("method", "dx"), RELU6_DX.items(), ids=RELU6_DX)
@pytest.mark.parametrize("relu6", RELU6S.values(), ids=RELU6S)
def test_relu6_is_open_between_its_bounds(relu6, method, dx):
    x, dy = T([-1.0, -1, 2, 2, 7, 7]), T([3.0, -3, 3, -3, 3, -3])
    assert pull_back(relu6, x, dy, method).tolist() == dx


OTHERS = {
    "a clamp from below zero": lambda x: x.clamp(-1, 1),
    "a hardtanh": F.hardtanh,
    "a threshold to another value": lambda x: F.threshold(x, 0.0, -1.0),
    "a maximum of two tensors": lambda x: torch.maximum(x, 2 * x),
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("f", OTHERS.values(), ids=OTHERS)
def test_what_is_no_rectifier_keeps_its_derivative(f, method):
    assert torch.equal(pull_back(f, X, DY, method), pull_back(f, X, DY, "gradient"))


def test_an_in_place_relu_changes_what_others_hold():
    def block(relu):
        def f(x):
            y = held = 2 * x
            y = relu(y)
            return y + 3 * held

        return f

    for method in METHODS:
        in_place = pull_back(block(torch.relu_), X, DY, method)
        assert torch.equal(in_place, pull_back(lambda x: 4 * torch.relu(2 * x), X, DY, method))


class Network(nn.Module):
    """Two linear layers [N, 5] -> [N, 3] with `f` between them, all in float64."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        generator = torch.Generator().manual_seed(3)
        shapes = {"a": (5, 20), "b": (20, 3), "bias": (20,)}
        for name, shape in shapes.items():
            values = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))

    def forward(self, x):
        return self.f(x @ self.a + self.bias) @ self.b


SAMPLES = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
HARD = {
    "hardsigmoid": (F.hardsigmoid, False),
    "relu6(x + 3) / 6": (lambda x: F.relu6(x + 3) / 6, False),
    "relu6(x + 3) · (1/6)": (lambda x: F.relu6(x + 3.0) * 0.1666667, False),
    "relu6(x + 3) / 6, in place": (lambda x: F.relu6(x.add_(3), inplace=True).div_(6), False),
    "clamp(3 + x, 0, 6) / tensor": (lambda x: (T(3.0) + x).clamp(0, 6) / T(6.0), False),
    "clamp(x / 6 + 0.5, 0, 1)": (lambda x: (x / 6 + 0.5).clamp(0, 1), False),
    "hardswish": (F.hardswish, True),
    "x · (relu6(x + 3) / 6)": (lambda x: x * (F.relu6(x + 3) / 6), True),
    "x · relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, True),
    "relu6(x + 3) · x / 6, in place": (lambda x: F.relu6(x + 3, inplace=True).mul_(x).div_(6), True),
}


@pytest.mark.parametrize(("f", "swish"), HARD.values(), ids=HARD)
def test_a_clip_inside_a_hard_sigmoid_or_swish_is_no_relu6(f, swish):
    truth = explain(Network(F.hardswish if swish else F.hardsigmoid), SAMPLES, ("gradient",)).maps["gradient"]
    found = explain(Network(f), SAMPLES)
    for method in METHODS:
        assert found.rectified[method] == []
        assert relative_l2(found.maps[method], truth) < 1e-6


def test_a_relu6_of_a_shifted_input_is_one():
    found = explain(Network(lambda x: F.relu6(x + 3) / 5), SAMPLES)
    shifted = Network(lambda x: F.relu6(x) / 5)
    shifted.bias.data += 3
    assert found.rectified["guided"] == ["relu6"]
    for method, expected in explain(shifted, SAMPLES).maps.items():
        assert relative_l2(found.maps[method], expected) < 1e-12


SIGMOID = {
    "alone": (torch.sigmoid, ["sigmoid"]),
    "times a number": (lambda x: 2 * x.sigmoid(), ["sigmoid"]),
    "in place": (lambda x: x.sigmoid_(), ["sigmoid_"]),
    "as a gate": (lambda x: x * x.mean(1, keepdim=True).sigmoid(), []),
    "as a gate that is reshaped": (lambda x: torch.sigmoid(x.sum(1)).unsqueeze(1).expand_as(x).mul(x), []),
    "hard, as a gate": (lambda x: F.hardsigmoid(x) * x, []),
}


@pytest.mark.parametrize(("f", "rectified"), SIGMOID.values(), ids=SIGMOID)
def test_gates_are_never_rectified(f, rectified):
    found = explain(Network(f), SAMPLES, rectify_all=True)
    assert found.rectified["guided"] == found.rectified["deconvnet"] == rectified
    if not rectified:
        assert torch.equal(found.maps["guided"], found.maps["gradient"])


ACTIVATIONS = {
    "silu": (F.silu, torch.nn.SiLU(inplace=True)),
    "gelu": (F.gelu, nn.GELU()),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU(approximate="tanh")),
    "hardswish": (F.hardswish, nn.Hardswish(inplace=True)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2, True)),
    "elu": (lambda x: F.elu(x, 0.7), nn.ELU(0.7, inplace=True)),
    "tanh": (torch.tanh, lambda x: x.tanh_()),
    "softplus": (F.softplus, nn.Softplus()),
}


@pytest.mark.parametrize(("f", "in_place"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_by_their_formulas(f, in_place):
    derivative = torch.autograd.functional.jacobian(lambda x: f(x).sum(), X)
    expected = {"gradient": DY * derivative, "guided": DY.clamp(min=0) * derivative, "deconvnet": DY.clamp(min=0)}
    for method in METHODS:
        for given in (f, in_place):
            dx = pull_back(given, X, DY, method, rectify_all=True)
            torch.testing.assert_close(dx, expected[method], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("method", "peer"), [("guided", "GuidedBackprop"), ("deconvnet", "Deconvolution")])
@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU:UserWarning")
def test_captum_agrees_where_it_sees_every_rectifier(method, peer):
    attribution = pytest.importorskip("captum.attr", reason="captum is not installed")
    torch.manual_seed(0)
    early = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(3, 2)
    late = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)
    module = nn.Sequential(*early, *late).double().eval()
    x = torch.randn(2, 3, 11, 11, dtype=torch.float64)
    found = explain(module, x)
    theirs = getattr(attribution, peer)(module).attribute(x.clone().requires_grad_(), target=found.target)
    torch.testing.assert_close(found.maps[method], theirs, rtol=1e-12, atol=1e-14)
    assert found.rectified[method] == ["relu", "relu"]

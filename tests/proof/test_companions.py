"""Companion methods equal Captum's in float64, on torchvision networks; RectGrad, which it lacks, its paper's formula.

Captum 0.9: InputXGradient, LayerGradCam and LayerAttribution.interpolate, GuidedGradCam, IntegratedGradients, and
Saliency averaged over the same noise (NoiseTunnel draws its own).
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

import gbprewrite
from gbprewrite.checks import reference
from gbprewrite.graft.record import read_record
from tests.proof.torch_setup import torch  # torch and torchvision, or a skip: before zoo
from tests.small import run

from tests.oracle.torch_oracle import relative_l2  # isort: skip
from tests.proof import zoo  # isort: skip

captum = pytest.importorskip("captum.attr", reason="the proofs of companion methods need captum: pip install captum")

# Captum says so whenever it hooks a ReLU; it takes the hooks off again.
pytestmark = pytest.mark.filterwarnings("ignore:Setting (forward, )?backward hooks:UserWarning")
EXACT, LIMIT = 1e-9, 1e-4
SAMPLES, STEPS, TAU, SHARE = 3, 4, 3e-3, 0.9
# network → the module whose output the file's Grad-CAM is taken at: the last one with positions
LAYERS = {"resnet18": lambda m: m.layer4, "vgg11": lambda m: m.avgpool}
Truth = Callable[[Any, Any, Any, Any, Any], Any]  # network, its layer, x, target, noise → map


def rectgrad(threshold: Callable[[Any], Any]) -> Truth:
    """Kim et al. 2019, section 4: R of a ReLU's input is 1(a · R > τ) · R of its output, a the output."""

    def truth(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
        class Relu(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                a = x.clamp(min=0)
                ctx.save_for_backward(a)
                return a

            @staticmethod
            def backward(ctx: Any, r: Any) -> Any:
                product = ctx.saved_tensors[0] * r
                return (product > threshold(product)) * r

        class Replaced(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return Relu.apply(args[0]) if f.__name__ in ("relu", "relu_") else f(*args, **(kwargs or {}))

        x = x.clone().requires_grad_()
        with Replaced():
            score = network(x)
        (dx,) = torch.autograd.grad(score.gather(1, target[:, None]).sum(), x)
        return dx

    return truth


def quantile(product: Any) -> Any:
    rows = product.flatten(1)
    return torch.quantile(rows, SHARE, dim=1, interpolation="lower").reshape(-1, *[1] * (product.dim() - 1))


def gradcam(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
    coarse = captum.LayerGradCam(network, layer).attribute(x, target, relu_attributions=True)
    return captum.LayerAttribution.interpolate(coarse, x.shape[2:], "bilinear")


def guided_gradcam(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
    return captum.GuidedGradCam(network, layer).attribute(x, target, interpolate_mode="bilinear")


def smoothgrad(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
    saliency = captum.Saliency(network)
    return sum(saliency.attribute(x + n, target, abs=False) for n in noise) / len(noise)


def integrated(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
    return captum.IntegratedGradients(network).attribute(x, 0, target, n_steps=STEPS, method="riemann_middle")


def from_a_baseline(network: Any, layer: Any, x: Any, target: Any, noise: Any) -> Any:
    return captum.IntegratedGradients(network).attribute(
        x, noise[: len(x)], target, n_steps=STEPS, method="riemann_middle"
    )


CASES: dict[str, tuple[str, dict[str, Any], Truth]] = {
    "input_x_gradient": (
        "input_x_gradient", {}, lambda m, _, x, t, n: captum.InputXGradient(m).attribute(x, t)
    ),
    "gradcam": ("gradcam", {}, gradcam),
    "guided_gradcam": ("guided_gradcam", {}, guided_gradcam),
    "rectgrad": ("rectgrad", {}, rectgrad(lambda product: 0)),
    "rectgrad above τ": ("rectgrad", {"rectgrad_tau": TAU}, rectgrad(lambda product: TAU)),
    "rectgrad above a quantile": ("rectgrad", {"rectgrad_quantile": SHARE}, rectgrad(quantile)),
    "smoothgrad": ("smoothgrad", {"samples": SAMPLES}, smoothgrad),
    "integrated_gradients": ("integrated_gradients", {"steps": STEPS}, integrated),
    "from a baseline": ("integrated_gradients", {"steps": STEPS, "baseline": "input"}, from_a_baseline),
}  # fmt: skip
FAST = ("gradcam", "guided_gradcam", "rectgrad above a quantile", "integrated_gradients")


def fused(module: Any) -> Any:
    """The network without batch norms, as exporters fold them: both sides then have the very same weights."""
    module = copy.deepcopy(module)
    for part in list(module.modules()):
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            if isinstance(getattr(part, norm, None), torch.nn.BatchNorm2d):
                setattr(part, conv, torch.nn.utils.fusion.fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
                setattr(part, norm, torch.nn.Identity())
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False  # Captum's hooks need it
    return module


@lru_cache(maxsize=1)
def subject(name: str) -> tuple[Any, Any, Any]:
    """The network (float32), pictures, and the file that PyTorch exports."""
    module, x, *_ = zoo.truth(name)
    module = fused(module)
    with zoo._quiet():
        return module, x, zoo.by_torchscript(module, zoo.pictures(name, zoo.TRACED))


def measured(name: str, case: str) -> tuple[float, float]:
    """Relative L2 error against Captum in float64: of the file in float64 (reference evaluator), and in onnxruntime."""
    method, options, truth = CASES[case]
    module, x, exported = subject(name)
    converted = gbprewrite.convert(exported, method, **options)
    noise = 0.1 * torch.randn(SAMPLES, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    given = {"noise": noise, "baseline": noise[: len(x)]}
    record = read_record(converted) or {}
    feeds = {"x": x.numpy(), **{row["name"]: given[row["kind"]].numpy() for row in record["given"]}}
    found = reference.evaluate(reference.in_float64(converted), {k: v.astype(np.float64) for k, v in feeds.items()})
    single = run(converted, **feeds)
    target = torch.from_numpy(found["explained_index"])
    module.double()
    try:
        exact = (
            truth(module, LAYERS[name](module), x.double().requires_grad_(), target, noise.double()).detach().numpy()
        )
    finally:
        module.float()
    assert exact.any()
    assert single["explained_index"].tolist() == target.tolist()
    return relative_l2(found[f"x_{method}"], exact), relative_l2(single[f"x_{method}"], exact)


def check(name: str, case: str) -> None:
    error, single = measured(name, case)
    assert error <= EXACT
    # Weights keep this picture's activations away from their kinks, but not those of the points around it.
    if CASES[case][0] not in ("integrated_gradients", "smoothgrad"):
        assert single <= LIMIT


@pytest.mark.parametrize("case", FAST)
def test_a_few_methods(case: str) -> None:
    check("resnet18", case)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", CASES)
def test_every_method(name: str, case: str) -> None:
    check(name, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_the_thresholds_bite(name: str) -> None:
    """Each leaves a part of guided that is neither all nor nothing."""
    _, x, exported = subject(name)
    guided, *others = (
        run(gbprewrite.convert(exported, method, **options), x=x.numpy())[f"x_{method}"]
        for method, options in (("guided", {}), *(CASES[case][:2] for case in CASES if case.startswith("rectgrad")))
    )
    np.testing.assert_array_equal(others[0], guided)
    for found in others[1:]:
        assert relative_l2(found, guided) > 1e-3
        assert found.any()


def main() -> None:
    """The README's table: python -m tests.proof.test_companions"""
    for case in CASES:
        errors = [f"{error:.1e}" for name in LAYERS for error in measured(name, case)]
        print(" | ".join(["", case, *errors, ""]).strip())


if __name__ == "__main__":
    main()

"""Contenders that need PyTorch: eager, Captum, torch.compile, and onnx2torch with Captum."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.contenders import Job
from tests.bench.networks import Unavailable
from tests.bench.runtimes import Loaded

# torchvision can't be imported beside a PyTorch that its own compiled operators don't fit, unless these are declared.
# (tests.proof.torch_setup does the same, but imports pytest, which would count as memory of the contender.)
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
DECLARED: list[Any] = []  # a library of operators lives as long as its object


def eager(job: Job, channels_last: bool = False) -> Loaded:
    """The gradient of the target's score by autograd."""
    module, x, targets = _on_device(job, _module(job), channels_last)
    return Loaded(lambda: _gradient(job, module, x, targets), _numpy)


def compiled(job: Job, mode: str | None = None) -> Loaded:
    """The same with forward and backward pass compiled by Inductor for this shape."""
    import torch

    module, x, targets = _on_device(job, _module(job), channels_last=False)
    fast = torch.compile(module, dynamic=False, mode=None if job.dry_run else mode)
    return Loaded(lambda: _gradient(job, fast, x, targets), _numpy)


def captum(job: Job, channels_last: bool = False) -> Loaded:
    """Captum's Saliency (with its sign) or GuidedBackprop on the module."""
    return _captum(job, _module(job), channels_last)


def onnx2torch_captum(job: Job) -> Loaded:
    """The same on a module that onnx2torch makes from the ONNX file."""
    _torch(job)
    import onnx
    import onnx2torch

    return _captum(job, onnx2torch.convert(onnx.load(job.file)).eval(), channels_last=False)


def _captum(job: Job, module: Any, channels_last: bool) -> Loaded:
    import torch
    from captum import attr

    for part in module.modules():
        if isinstance(part, torch.nn.ReLU):
            part.inplace = False  # its hooks ask for that
    module, x, targets = _on_device(job, module, channels_last)
    x.requires_grad_()  # else it warns in every call, and does it itself
    if job.method == "gradient":
        saliency = attr.Saliency(module)
        return Loaded(lambda: _synchronised(job, saliency.attribute(x, target=targets, abs=False)), _numpy)
    guided = attr.GuidedBackprop(module)
    return Loaded(lambda: _synchronised(job, guided.attribute(x, target=targets)), _numpy)


def _gradient(job: Job, module: Any, x: Any, targets: Any) -> Any:
    import torch

    leaf = x.detach().requires_grad_()
    score = module(leaf).gather(1, targets[:, None]).sum()
    return _synchronised(job, torch.autograd.grad(score, leaf)[0])


def _synchronised(job: Job, value: Any) -> Any:
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()
    return value


def _numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy()


def _torch(job: Job) -> Any:
    """PyTorch with threads and precision set, and torchvision importable."""
    import torch

    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = job.precision == "tf32"
    if job.device == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} finds no CUDA device")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        DECLARED.append(torch.library.Library("torchvision", "DEF"))
        for operator in OPERATORS:
            DECLARED[0].define(operator)
    return torch


def _module(job: Job) -> Any:
    """The pickled module."""
    if not Path(job.module).exists():
        raise Unavailable("there is no PyTorch module of this network, only an ONNX file")
    return _torch(job).load(job.module, weights_only=False).eval()


def _on_device(job: Job, module: Any, channels_last: bool) -> tuple[Any, Any, Any]:
    """Module, input and targets, in their precision; no weight asks for a gradient."""
    import torch

    kind = {"device": job.device, "dtype": torch.float16 if job.precision == "float16" else torch.float32}
    if channels_last:
        kind |= {"memory_format": torch.channels_last}
    x = torch.tensor(np.load(job.x)).to(**kind)
    targets = torch.tensor(np.load(job.targets)).to(job.device)
    return module.requires_grad_(False).to(**kind), x, targets

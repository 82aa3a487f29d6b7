"""Keeps a network's activations away from the kinks, where float32 and float64 may take different sides.

One ReLU that flips in the first layers changes a gradient by a thousandth of its norm. That says nothing about a
converter, and it would loosen the limit of every proof that it happens in.
"""

from typing import Any

from tests.proof.torch_setup import torch

# function -> where its derivative jumps
KINKS: dict[str, tuple[float, ...]] = {
    "relu": (0.0,),
    "relu_": (0.0,),
    "relu6": (0.0, 6.0),
    "hardtanh": (0.0, 6.0),  # as nn.ReLU6 calls it, the only hardtanh among the networks here
    "hardswish": (-3.0, 3.0),
    "hardsigmoid": (-3.0, 3.0),
}
BIAS = {"conv2d": 2, "linear": 2, "batch_norm": 4}  # function -> position of its bias, one value per channel
SUMS = ("add", "add_", "__add__", "__iadd__")
WIDTH = 0.05  # the most that a bias is moved, in units of the root mean square of what it is added to


class AwayFromKinks(torch.overrides.TorchFunctionMode):
    """While active, moves the bias before every kink a little, to where no activation of this very pass is near it.

    A channel has thousands of activations, so a gap of a ten-thousandth of their scale or so is never far away.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kinks = KINKS.get(func.__name__)
        if kinks and getattr(args[0], "bias_before", None) is not None:
            move(args[0], args[0].bias_before, kinks)
        y = func(*args, **kwargs)
        if func.__name__ in BIAS:
            position = BIAS[func.__name__]
            y.bias_before = args[position] if len(args) > position else kwargs.get("bias")
        elif func.__name__ in SUMS:
            biases = [getattr(v, "bias_before", None) for v in args]
            y.bias_before = next((b for b in biases if b is not None), None)
        elif kinks:
            y.bias_before = None  # in place, y is x
        return y


def move(x: Any, bias: Any, kinks: tuple[float, ...]) -> None:
    """Add to x [N, C, ...] and to bias [C], in place, what brings each channel into the widest gap within reach."""
    values = x.transpose(0, 1).flatten(1)
    reach = WIDTH * x.square().mean().sqrt().item()
    hits = torch.cat([kink - values for kink in kinks], dim=1)  # the shifts that would put an activation on a kink
    edge = hits.new_full((len(hits), 1), reach)
    hits = torch.cat([-edge, hits.clamp(-reach, reach), edge], dim=1).sort(dim=1).values
    widest = hits.diff(dim=1).argmax(dim=1, keepdim=True)
    shift = ((hits.gather(1, widest) + hits.gather(1, widest + 1)) / 2).squeeze(1)
    bias += shift
    x += shift.reshape(-1, *[1] * (x.dim() - 2))


class Distance(torch.overrides.TorchFunctionMode):
    """While active, finds how near activations come to kinks, and the two greatest values of a max-pool's windows to
    each other (no bias can part these), in units of the root mean square of the tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of_kinks = self.of_ties = float("inf")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for kink in KINKS.get(func.__name__, ()):
            self.of_kinks = min(self.of_kinks, _relative((args[0] - kink).abs(), args[0]))
        kwargs = kwargs or {}
        if func.__name__ == "max_pool2d":
            gaps = _gaps(*args, kwargs["stride"], kwargs["padding"])  # as nn.MaxPool2d and torchvision call it
            self.of_ties = min(self.of_ties, _relative(gaps, args[0]))
        return func(*args, **kwargs)


def _relative(distances: Any, x: Any) -> float:
    return float(distances.min() / x.square().mean().sqrt())


def _gaps(x: Any, size: int, stride: int, padding: int) -> Any:
    """The greatest value of each window less the second; equal ones are the zeros of a ReLU, equal in any precision."""
    wide = torch.nn.functional.pad(x, (padding, padding + stride) * 2, value=float("-inf"))  # + stride: ceil_mode
    windows = wide.unfold(2, size, stride).unfold(3, size, stride).flatten(4)
    first, second = windows.topk(2).values.unbind(-1)
    return (first - second)[first > second]

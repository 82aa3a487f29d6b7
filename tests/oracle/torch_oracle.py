"""Gradient, guided and deconvnet maps of a torch.nn.Module, by intercepting functions.

Modules can't be trusted to show every rectifier: torchvision calls F.relu, shares one nn.ReLU between many places and
works in place. A TorchFunctionMode sees every call, whoever makes it. Sources of the rules: Springenberg et al. 2015
(guided), Zeiler and Fergus 2014 (deconvnet).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

METHODS = ("gradient", "guided", "deconvnet")
INFINITY = float("inf")
Range = tuple[float, float] | None  # low < x < high, where a rectifier is the identity; None: no rectifier


class Rectify(torch.autograd.Function):
    """y = f(x), a rectifier that is linear for low < x < high; guided (dy)+·(low<x<high), deconvnet (dy)+."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, method: str, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = method, low, high
        return y.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        method, low, high = ctx.rule
        dx = dy.clamp(min=0)
        if method == "guided":
            dx = dx * ((x > low) & (x < high))
        return dx, None, None, None, None


class Activate(torch.autograd.Function):
    """y = f(x), any elementwise f; guided f'(x)·(dy)+, deconvnet (dy)+."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Callable[[Tensor], Tensor], method: str) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = f, method
        return f(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        f, method = ctx.rule
        dx = dy.clamp(min=0)
        if method == "guided":
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (dx,) = torch.autograd.grad(f(x), x, dx)
        return dx, None, None


# --- which functions rectify ----------------------------------------------------------------------------------------


def _relu(*_: Any, **__: Any) -> Range:
    return 0.0, INFINITY


def _relu6(*_: Any, **__: Any) -> Range:
    return 0.0, 6.0


def _clamp(x: Any, min: Any = None, max: Any = None) -> Range:
    if not _is_zero(min) or (isinstance(max, Tensor) and max.numel() > 1):
        return None
    return 0.0, INFINITY if max is None else float(max)


def _hardtanh(input: Any, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Range:
    return _clamp(input, min_val, max_val)


def _threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Range:
    # At 0 it is ReLU, above it ONNX's ThresholdedRelu.
    return (float(threshold), INFINITY) if value == 0 and threshold >= 0 else None


def _maximum(x: Any, y: Any) -> Range:
    return (0.0, INFINITY) if _is_zero(x) or _is_zero(y) else None


def _is_zero(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.requires_grad and value.item() == 0
    return isinstance(value, int | float) and value == 0


def _scalar(value: Any) -> float | None:
    """The value of a number, or of a tensor without dimensions."""
    if isinstance(value, int | float):
        return float(value)
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else None


def _names(text: str) -> set[Any]:
    """Every callable of these names, also in place, in torch, torch.Tensor, torch.nn.functional and torch._C._nn."""
    homes = (torch, Tensor, functional, torch._C._nn)
    spellings = [s for name in text.split() for s in (name, f"{name}_")]
    return {getattr(home, s) for home in homes for s in spellings if hasattr(home, s)}


RECTIFIERS: dict[Any, Callable[..., Range]] = {
    **dict.fromkeys(_names("relu"), _relu),
    **dict.fromkeys(_names("relu6"), _relu6),
    **dict.fromkeys(_names("clamp clip clamp_min"), _clamp),
    **dict.fromkeys(_names("hardtanh"), _hardtanh),
    **dict.fromkeys(_names("threshold"), _threshold),
    **dict.fromkeys(_names("maximum"), _maximum),
}
ACTIVATIONS = _names("silu gelu hardswish softplus elu selu celu leaky_relu prelu mish rrelu softsign logsigmoid")
GATES = _names("sigmoid tanh hardsigmoid")  # activations, unless their output multiplies something
PRODUCTS = _names("mul multiply") | {Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__}
QUOTIENTS = _names("div divide true_divide") | {Tensor.__truediv__, Tensor.__itruediv__}
SUMS = _names("add") | {Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
MOVES = _names("view reshape unsqueeze squeeze expand expand_as flatten permute transpose")


# --- the mode -------------------------------------------------------------------------------------------------------


class Rules(TorchFunctionMode):
    """While active, rectifiers (and with `rectify_all` activations) go backward by `method`'s rule.

    What a call is may show only later: a sigmoid that multiplies something is a gate, and relu6(x + 3) that is divided
    by 6 is a hard-sigmoid (timm writes it so), no rectifier. So calls have running numbers, a first pass under the
    mode collects in `found` those that must keep their true derivative, and the next one is given them as `plain`.

    `rectify_all` means functions: F.hardswish, but not a hard-swish that is put together from others.
    """

    def __init__(self, method: str, rectify_all: bool = False, plain: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.method, self.rectify_all, self.plain = method, rectify_all, plain
        self.found: set[int] = set()
        self.calls = 0
        self.rectified: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in RECTIFIERS:
            return self._rectifier(func, args, kwargs)
        if func in GATES:
            self.calls += 1
            number = self.calls
            y = self._activation(func, args, kwargs, number in self.plain)
            y._gate = number
            return y
        if func in ACTIVATIONS:
            return self._activation(func, args, kwargs, False)
        y = func(*args, **kwargs)
        if func in PRODUCTS or func in QUOTIENTS:
            self._scaled(y, args[0], args[1], func in QUOTIENTS)
        elif func in SUMS:
            y._shift = next((c for c in map(_scalar, args) if c is not None), None)
        elif func in MOVES and hasattr(args[0], "_gate"):
            y._gate = args[0]._gate
        return y

    def _scaled(self, y: Tensor, a: Any, b: Any, divided: bool) -> None:
        """Look at a product for the gates and ramps among its factors."""
        constant = next((c for c in (_scalar(b), _scalar(a)) if c is not None), None)
        weighted = constant is not None or any(isinstance(v, torch.nn.Parameter) for v in (a, b))
        for v in (a, b):
            if hasattr(v, "_ramp"):
                y._ramp = v._ramp
                self._look_for_ramp(y, 1 / constant if constant and divided else constant)
            if hasattr(v, "_gate") and not weighted and not divided:
                self.found.add(v._gate)

    def _look_for_ramp(self, y: Tensor, scale: float | None) -> None:
        """clip(x + c, 0, top) / top is a hard-sigmoid."""
        number, top = y._ramp
        if scale is not None and abs(scale * top - 1) < 1e-3:
            self.found.add(number)

    def _rectifier(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        self.calls += 1
        number = self.calls
        limits = RECTIFIERS[func](*args, **kwargs)
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim() > 0 and not _is_zero(v)]
        if limits is None or len(tensors) != 1:
            return func(*args, **kwargs)
        (x,), (low, high) = tensors, limits
        shift = getattr(x, "_shift", None)

        def rule(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
            return Rectify.apply(x, f(x).detach(), self.method, low, high)

        # A clamp of what carries no gradient is arithmetic, not a layer.
        if self.method == "gradient" or number in self.plain or not x.requires_grad:
            y = func(*args, **kwargs)
        else:
            y = self._replace(func, args, kwargs, x, rule)
        if shift is not None and 0 < shift < high < INFINITY:
            y._ramp = number, high
            self._look_for_ramp(y, 1.0)
        y._shift = None  # in place, y is x
        return y

    def _activation(self, func: Any, args: Any, kwargs: Any, plain: bool) -> Tensor:
        if self.method == "gradient" or not self.rectify_all or plain:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        return self._replace(func, args, kwargs, x, lambda x, f: Activate.apply(x, f, self.method))

    def _replace(self, func: Any, args: Any, kwargs: Any, x: Tensor, rule: Callable[..., Tensor]) -> Tensor:
        """`func` at x by another backward rule; in place when it is, so that other holders of x see the new value."""
        self.rectified.append(func.__name__)

        def pure(v: Tensor) -> Tensor:
            given = [v.clone() if a is x else a for a in args]
            return func(*given, **{name: v.clone() if a is x else a for name, a in kwargs.items()})

        if _in_place(func, args, kwargs):
            return x.copy_(rule(x.clone(), pure))
        return rule(x, pure)


def _in_place(func: Any, args: Any, kwargs: Any) -> bool:
    if func.__name__.endswith("_"):
        return True
    try:
        names = list(inspect.signature(func).parameters)
    except (TypeError, ValueError):  # a builtin, which has no such option
        return False
    return bool({**dict(zip(names, args, strict=False)), **kwargs}.get("inplace", False))


# --- maps -----------------------------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """`maps` method -> tensor like the input; `target` the class explained per sample; `rectified` names per method."""

    maps: dict[str, Tensor]
    target: Tensor
    rectified: dict[str, list[str]]


def explain(
    module: torch.nn.Module,
    x: Tensor,
    methods: tuple[str, ...] = METHODS,
    *,
    rectify_all: bool = False,
    target: Tensor | None = None,
) -> Maps:
    """Maps of the logits [N, classes] of `module` at `x`, each sample's class taken by argmax unless `target` is given.

    `module` and `x` must have one dtype (float64 for the oracle, float32 to measure PyTorch's own rounding).
    """
    with torch.no_grad(), Rules("gradient") as first:
        logits = module(x)
    if target is None:
        target = logits.argmax(1)
    maps, rectified = {}, {}
    for method in methods:
        leaf = x.detach().clone().requires_grad_()
        with Rules(method, rectify_all, frozenset(first.found)) as rules:
            score = module(leaf * 1).gather(1, target[:, None]).sum()  # · 1: a leaf must not be written in place
        (maps[method],) = torch.autograd.grad(score, leaf)
        rectified[method] = rules.rectified
    return Maps(maps, target, rectified)


def relative_l2(a: Any, b: Any) -> float:
    """‖a − b‖ / ‖b‖ in float64."""
    a, b = (torch.as_tensor(v).double() for v in (a, b))
    return float((a - b).norm() / b.norm())

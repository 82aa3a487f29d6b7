"""How near the values of a network come to the kinks of its operators, node by node of an ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.oracle.onnx_operators import Node, window
from tests.oracle.onnx_oracle import Oracle

Distances = Callable[..., list[Tensor]]


def clip(n: Node, x: Tensor, *bounds: Tensor | None) -> list[Tensor]:
    return [(x - bound).abs() for bound in bounds if bound is not None]


def hard_sigmoid(n: Node, x: Tensor) -> list[Tensor]:
    y = n.get("alpha", 0.2) * x + n.get("beta", 0.5)
    return [y.abs(), (y - 1).abs()]


def max_pool(n: Node, x: Tensor) -> list[Tensor]:
    v = window(n, x, n.get("kernel_shape"))
    return gap(v.cut(v.pad(x, -math.inf)))


def lp_pool(n: Node, x: Tensor) -> list[Tensor]:
    v = window(n, x, n.get("kernel_shape"))
    return [v.cut(v.pad(x, 0)).abs().amax(-1)]


def gap(sets: Tensor) -> list[Tensor]:
    """The greatest value along the last axis less the second."""
    if sets.shape[-1] < 2:
        return []
    first, second = sets.topk(2).values.unbind(-1)
    return [first - second]


def extreme(sign: int) -> Distances:
    def distances(n: Node, x: Tensor, axes: Tensor | None = None) -> list[Tensor]:
        over = axes.tolist() if axes is not None else n.get("axes", list(range(x.dim())))
        kept = [a for a in range(x.dim()) if a not in {o % x.dim() for o in over}]
        return gap(sign * x.permute([*kept, *(o % x.dim() for o in over)]).flatten(len(kept)))

    return distances


# Operators that have a slope at the kink itself which all agree on: flat, or that of the first maximum.
DECIDED: dict[str, Distances] = {
    "Abs": lambda n, x: [x.abs()],
    "Clip": clip,
    "GlobalMaxPool": lambda n, x: gap(x.flatten(2)),
    "MaxPool": max_pool,
    "ReduceL1": lambda n, x, *_: [x.abs()],
    "Relu": lambda n, x: [x.abs()],
}
UNDECIDED: dict[str, Distances] = {
    "Elu": lambda n, x: [x.abs()] if n.get("alpha", 1.0) != 1 else [],
    "Greater": lambda n, a, b: [(a - b).abs()],
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda n, x: [(x.abs() - 3).abs()],
    "LeakyRelu": lambda n, x: [x.abs()],
    "Less": lambda n, a, b: [(a - b).abs()],
    "LpPool": lp_pool,
    "Max": lambda n, a, b: [(a - b).abs()],
    "Min": lambda n, a, b: [(a - b).abs()],
    "PRelu": lambda n, x, _: [x.abs()],
    "ReduceL2": lambda n, x, *_: [x.abs()],
    "ReduceMax": extreme(1),
    "ReduceMin": extreme(-1),
    "Selu": lambda n, x: [x.abs()],
    "ThresholdedRelu": lambda n, x: [(x - n.get("alpha", 1.0)).abs()],
}


def nearest(oracle: Oracle, values: Mapping[str, Tensor], score: str) -> tuple[float, str]:
    """The least distance to a kink on the way to the score, in units of the root mean square of what comes near it,
    and the operator there. Values that are exactly on a kink count where the slope is not decided there."""
    found, path = [(math.inf, "")], oracle.path(score)
    for n in oracle.varying:
        kind = n.proto.op_type
        if n.proto.output[0] not in path or kind not in DECIDED | UNDECIDED:
            continue
        inputs = [values[i].detach() if i else None for i in n.proto.input]
        scale = float(torch.as_tensor(inputs[0]).square().mean().sqrt())
        for distance in (DECIDED | UNDECIDED)[kind](n, *inputs):
            if kind in DECIDED:
                distance = distance[distance > 0]
            if distance.numel():
                found.append((float(distance.min()) / (scale or 1), kind))
    return min(found)

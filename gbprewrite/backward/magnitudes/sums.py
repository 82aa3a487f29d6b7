"""The magnitudes of sums: of the elements of a tensor, and with weights. See `formulas`.

Sums with weights are bounded by the inequality of Cauchy and Schwarz.
"""

import math

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.magnitudes.magnitude import (
    INF,
    LONG,
    ORDINARY,
    UNBOUNDED,
    USUAL_LENGTH,
    Known,
    Magnitude,
    around,
    checked,
    times,
)
from gbprewrite.model.tensors import Tensor, fixed


def reduced_sum(node: gs.Node, known: Known) -> Magnitude:
    """As many values are added as the output has fewer."""
    (x,) = known(node.inputs[0])
    made = max(count(node.outputs[0], 1), 1.0)
    most, usual = (max(count(node.inputs[0], length) / made, 1.0) for length in (LONG, USUAL_LENGTH))
    return checked(min(times(x.low, most), x.low), max(times(x.high, most), x.high), x.usual * math.sqrt(usual))


def reduced_root(node: gs.Node, known: Known) -> Magnitude:
    return Magnitude(0.0, INF, ORDINARY)


def count(x: Tensor, left_open: int = LONG) -> float:
    """The number of elements; each length that is open counts as `left_open`."""
    if x.shape is None:
        return float(left_open)
    return float(math.prod(d if fixed(d) else left_open for d in x.shape))


def scattered(node: gs.Node, known: Known) -> Magnitude:
    """All the updates may meet in one place; usually few do."""
    onto, updates = known(node.inputs[0], node.inputs[2])
    return around(onto.most + times(updates.most, count(node.inputs[2])), math.hypot(onto.usual, 2 * updates.usual))


def weighted(x: Magnitude, w: Magnitude, fan: float, outputs: float) -> Magnitude:
    """Sums of `fan` products each; the weights are shared among so many outputs."""
    if w.squares is None:
        return around(times(fan, times(x.most, w.most)), times(math.sqrt(fan), times(x.usual, w.usual)))
    total = float(w.squares.sum())
    sums = min(fan * w.most, math.sqrt(fan * total))  # Cauchy and Schwarz
    return around(times(x.most, sums), times(x.usual, math.sqrt(total / max(outputs, 1.0))))


def convolved(node: gs.Node, known: Known) -> Magnitude:
    """Conv, or ConvTranspose, whose weights have their axes the other way round."""
    (x,) = known(node.inputs[0])
    shape = node.inputs[1].shape
    if not math.isfinite(x.usual) or shape is None or not all(map(fixed, shape)):
        return UNBOUNDED
    w, *bias = known(*node.inputs[1:])
    group = node.attrs.get("group", 1)
    a, b, *kernel = shape
    outputs, inputs = (a, b) if node.op == "Conv" else (b * group, a / group)
    made = weighted(x, w, inputs * math.prod(kernel), outputs)
    return around(made.most + sum(v.most for v in bias), math.hypot(made.usual, *(v.usual for v in bias)))


def multiplied(node: gs.Node, known: Known) -> Magnitude:
    """MatMul and Gemm."""
    a, b, *rest = known(*node.inputs)
    shapes = [t.shape for t in node.inputs[:2]]
    if any(s is None or len(s) < 2 for s in shapes):
        return UNBOUNDED
    across, rows, columns = node.inputs[0].shape[-1], shapes[0][-2], shapes[1][-1]
    if node.attrs.get("transA"):
        across, rows = rows, across
    if node.attrs.get("transB"):
        columns = shapes[1][-2]
    fan, rows, columns = (float(n) if fixed(n) else float(LONG) for n in (across, rows, columns))
    made = weighted(b, a, fan, rows) if a.constant and not b.constant else weighted(a, b, fan, columns)
    scale = abs(node.attrs.get("alpha", 1.0))
    added = [times(abs(node.attrs.get("beta", 1.0)), v.most) for v in rest]
    return around(times(made.most, scale) + sum(added), math.hypot(times(made.usual, scale), *added))


def dequantised(node: gs.Node, known: Known) -> Magnitude:
    """(q - zero point) · scale, of weights with their sums where the zero point is 0."""
    q, scale, *zero = known(*(t for t in node.inputs if t.name))
    offset = zero[0].most if zero else 0.0
    most = times(q.most + offset, scale.most)
    if q.squares is None or scale.value is None:
        return around(most, min(ORDINARY, most))
    squares = q.squares if not offset else np.full(len(q.squares), (q.most + offset) ** 2) * count(node.inputs[0])
    per_row = scale.value.size == len(squares) and node.attrs.get("axis", 1) == 0
    squares = squares * (scale.value.ravel() ** 2 if per_row else np.mean(scale.value**2))
    return Magnitude(-most, most, math.sqrt(float(squares.sum()) / count(node.inputs[0])), None, squares)

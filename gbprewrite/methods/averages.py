"""Averages of the gradient over points around the input: SmoothGrad and integrated gradients."""

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.errors import UsageError
from gbprewrite.methods.settings import READ_BY
from gbprewrite.methods.work import Map, Method, Work
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Tensor, fixed, numpy_dtype


def smoothgrad(work: Work, method: Method) -> list[Map]:
    """mean over k of the gradient at x + noise[k]"""
    op, samples = work.op, work.settings.samples
    points = {}
    for x in work.chosen.inputs:
        noise = op.Unsqueeze(work.given["noise", x.name], np.array([1], np.int64))
        points[x.name] = op.Add(op.Unsqueeze(x, np.array([0], np.int64)), noise)
    return _mean_gradients(work, points, samples, method.name)


def integrated_gradients(work: Work, method: Method) -> list[Map]:
    """(x - b) · mean over k of the gradient at b + (k + 1/2)/steps · (x - b); the midpoint rule, b the baseline"""
    op, steps = work.op, work.settings.steps
    points, ways = {}, []
    for x in work.chosen.inputs:
        baseline = work.given.get(("baseline", x.name))
        way = x if baseline is None else op.Sub(x, baseline)
        shares = ((np.arange(steps) + 0.5) / steps).reshape(-1, *[1] * len(x.shape))
        reached = op.Mul(op.Unsqueeze(way, np.array([0], np.int64)), shares.astype(numpy_dtype(x)))
        points[x.name] = reached if baseline is None else op.Add(baseline, reached)
        ways.append(way)
    means = _mean_gradients(work, points, steps, method.name)
    return [Map(x, [op.Mul(way, g) for g in found]) for way, (x, found) in zip(ways, means, strict=True)]


def _mean_gradients(work: Work, points: Mapping[str, Tensor], count: int, tag: str) -> list[Map]:
    """The gradient of the original input's score, averaged over points [count, N, ...] of each input."""
    score, counting = work.chosen.score, work.chosen.counting
    # Of a score that is moved, only the size tells whether its first axis holds the samples.
    leads = score.shape[:1] == work.chosen.inputs[0].shape[:1] if counting.moves else counting.batch_axis == 0
    is_open = leads and all(t.shape and not fixed(t.shape[0]) for t in (*work.chosen.inputs, score))
    apart = not is_open or _by_batch(work.graph)
    work.op.enter(tag)
    return (_one_by_one if apart else _in_one_batch)(work, points, count, tag)


def _by_batch(graph: gs.Graph) -> bool:
    """Whether a network normalises by the statistics of its batch: points among the samples would change these."""
    inner = [n for node in graph.nodes for a in node.attrs.values() if isinstance(a, gs.Graph) for n in a.nodes]
    return any(n.op == "BatchNormalization" and n.attrs.get("training_mode") for n in (*graph.nodes, *inner))


def _in_one_batch(work: Work, points: Mapping[str, Tensor], count: int, tag: str) -> list[Map]:
    op, instances = work.op, work.instances()
    inputs = {t.name: t for t in (*work.graph.inputs, *work.chosen.inputs)}
    given = {name: _repeated(op, inputs[name], count) for name in instances.inputs if name not in points}
    given |= {x.name: _one_batch(op, points[x.name], x, count) for x in work.chosen.inputs}
    found = instances.gradients(given, [_repeated(op, dy, count) for dy in work.seeds.cotangents], tag)
    return [Map(x, [_mean(op, g, x, count) for g in found[x.name]]) for x in work.chosen.inputs]


def _one_by_one(work: Work, points: Mapping[str, Tensor], count: int, tag: str) -> list[Map]:
    """A model of fixed batch, or one whose samples depend on each other, is there once for each point."""
    op, instances, first = work.op, work.instances(), np.array([0], np.int64)
    each = instances.nodes_of_one(len(work.seeds.cotangents))
    if count * each > bounds.POINT_NODES:
        option = next(name for name in ("steps", "samples") if tag in READ_BY[name])
        raise UsageError(
            f"--{option} {count} is too many here: the model's samples can't be one batch (it fixes its batch or mixes "
            f"them), so that it is there once for each point, with {each:,} nodes. At most "
            f"{max(bounds.POINT_NODES // each, 1):,} fit; or export the model with an open batch."
        )
    found = []
    for k in range(count):
        given = {x.name: op.slice(points[x.name], [0], [k], [1]) for x in work.chosen.inputs}
        given = {x.name: op.shaped_like(op.Squeeze(given[x.name], first), x) for x in work.chosen.inputs}
        found.append(instances.gradients(given, work.seeds.cotangents, f"{tag}/{k}"))
    made = []
    for x in work.chosen.inputs:
        of_classes = zip(*(gradients[x.name] for gradients in found), strict=True)
        made.append(Map(x, [op.divided(op.Sum(*of_points), count) for of_points in of_classes]))
    return made


def _repeated(op: Builder, v: Tensor, count: int) -> Tensor:
    """v [N, ...] for each of the points; what has no batch of any size stays as it is."""
    if not v.shape or fixed(v.shape[0]):
        return v
    shape = np.array([count] + [1] * len(v.shape), np.int64)  # Expand broadcasts both ways
    return _one_batch(op, op.Expand(op.Unsqueeze(v, np.array([0], np.int64)), shape), v, count)


def _one_batch(op: Builder, points: Tensor, x: Tensor, count: int) -> Tensor:
    """Points [count, N, ...] as [count · N, ...]."""
    n, *rest = op.dims(x)
    made = op.Identity(op.reshape(points, [op.calc("Mul", count, n), *rest]))
    return op.declare(made, [None, *x.shape[1:]], x.dtype)


def _mean(op: Builder, gradients: Tensor, x: Tensor, count: int) -> Tensor:
    """[count · N, ...] → the mean over the points, [N, ...]."""
    apart = op.reshape(op.wide(gradients), [count, *op.dims(x)])
    mean = op.ReduceMean(apart, np.array([0], np.int64), keepdims=0)
    return op.shaped_like(op.cast_to(mean, x), x)

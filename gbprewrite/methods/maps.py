"""Every kind of map, made of reverse walks: one small function per method, and what these need.

Sources: Shrikumar et al. 2016, "Not just a black box" (input x gradient); Selvaraju et al. 2017 (Grad-CAM and Guided
Grad-CAM, sections 3 and 3.2); Smilkov et al. 2017 (SmoothGrad); Sundararajan et al. 2017 (integrated gradients); Kim et
al. 2019 (RectGrad: a combinator, in policies.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward import walk as differentiate
from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.matrices import times_matrix
from gbprewrite.backward.rules import sampling
from gbprewrite.backward.units import Seeds
from gbprewrite.errors import UsageError
from gbprewrite.methods import table as policies
from gbprewrite.methods.instances import Instances
from gbprewrite.methods.table import METHODS, Combinator
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype
from gbprewrite.select.channels import FeatureLayer, feature_layers
from gbprewrite.select.explained import explained
from gbprewrite.select.selection import Selection
from gbprewrite.select.target import Target
from gbprewrite.view import paths


class Map(NamedTuple):
    """The maps of one input, one for each explained class (None: all zeros), and a tensor with a map's shape."""

    like: Tensor
    classes: list[Tensor | None]


class Settings(NamedTuple):
    """What some methods can be told; see `gbprewrite.convert`."""

    cam_layer: str | None = None
    rectgrad_tau: float = 0.0
    rectgrad_quantile: float | None = None
    steps: int = 32
    baseline: str = "zeros"
    samples: int = 16

    @property
    def combinators(self) -> dict[str, Combinator]:
        """The table of policies.py, with what is set here."""
        rectgrad = partial(policies.rectgrad, tau=self.rectgrad_tau, share=self.rectgrad_quantile)
        return {**policies.COMBINATORS, "rectgrad": rectgrad}


# Option → the methods that it is for.
READ_BY = {
    "cam_layer": ("gradcam", "guided_gradcam"),
    "rectgrad_tau": ("rectgrad",),
    "rectgrad_quantile": ("rectgrad",),
    "steps": ("integrated_gradients",),
    "baseline": ("integrated_gradients",),
    "samples": ("smoothgrad",),
}
BASELINES = ("zeros", "input")


class Work(NamedTuple):
    """What a method starts from.

    The graph, what is explained, the cotangents of the score, the rectifiers, the settings, Grad-CAM's layer for each
    input, inputs that the file gains ((kind, input) → tensor), and the model once more for another batch.
    """

    op: Builder
    graph: gs.Graph
    chosen: Selection
    seeds: Seeds
    marked: set[int]
    settings: Settings
    layers: Sequence[FeatureLayer]
    given: Mapping[tuple[str, str], gs.Variable]
    instances: Callable[[], Instances]

    def cotangents(self, method: str, selection: Selection | None = None) -> list[list[Tensor | None]]:
        """Of each input, one for each class, by the reverse walk that the method is made with."""
        made_by = METHODS[method]
        rule_of = partial(made_by.rule_of, combinators=self.settings.combinators, marked=self.marked)
        return differentiate.pull_back(self.op, selection or self.chosen, rule_of, self.seeds.cotangents, made_by.tag)


def walk(work: Work, method: str) -> list[Map]:
    """The cotangents themselves"""
    return [Map(x, found) for x, found in zip(work.chosen.inputs, work.cotangents(method), strict=True)]


def input_x_gradient(work: Work, method: str) -> list[Map]:
    """x · dx"""
    return [Map(x, [dx and work.op.Mul(x, dx) for dx in found]) for x, found in walk(work, method)]


def gradcam(work: Work, method: str) -> list[Map]:
    """relu(Σ over channels of a · mean over positions of da), resized to the input"""
    coarse = _coarse(work)
    layers = zip(work.chosen.inputs, work.layers, strict=True)
    return [_resized(work.op, coarse[id(layer.tensor)], layer, x) for x, layer in layers]


def guided_gradcam(work: Work, method: str) -> list[Map]:
    """The guided map times Grad-CAM's, resized to the input"""
    found = []
    for (x, guided), (_, cams) in zip(walk(work, method), gradcam(work, method), strict=True):
        found.append(Map(x, [dx and work.op.Mul(dx, cam) for dx, cam in zip(guided, cams, strict=True)]))
    return found


def _coarse(work: Work) -> dict[int, list[Tensor]]:
    """Grad-CAM at each layer, by its id(), without channels: [N, h, w] for each class."""
    op, layers = work.op, {id(layer.tensor): layer for layer in work.layers}
    tensors = [layer.tensor for layer in layers.values()]
    nodes = paths.path(work.graph, tensors, work.chosen.score)
    found = work.cotangents("gradcam", work.chosen._replace(inputs=tensors, nodes=nodes))
    made = {}
    for (key, layer), cotangents in zip(layers.items(), found, strict=True):
        space, channels = (np.array(axes, np.int64) for axes in (layer.spatial_axes, [layer.channel_axis]))
        weights = [op.ReduceMean(da, space, keepdims=1) for da in cotangents]
        a = layer.tensor if layer.step is None else op.DequantizeLinear(layer.tensor, *layer.step)
        made[key] = [op.Relu(op.ReduceSum(op.Mul(a, w), channels, keepdims=0)) for w in weights]
    return made


def _resized(op: Builder, coarse: Sequence[Tensor], layer: FeatureLayer, x: Tensor) -> Map:
    """Grad-CAM in the input's size, with one channel."""
    channel = layer.input_axis
    places = [a for a in range(1, len(x.shape)) if a != channel]
    like = gs.Variable("", x.dtype, [1 if a == channel else size for a, size in enumerate(x.shape)])
    matrices = [
        interpolation(op, op.dim(layer.tensor, a), op.dim(x, b), x)
        for a, b in zip(layer.spatial_axes, places, strict=True)
    ]
    made = []
    for cam in coarse:
        for axis, matrix in enumerate(matrices, 1):
            cam = times_matrix(op, cam, matrix, axis)
        made.append(op.shaped_like(op.Unsqueeze(cam, np.array([channel], np.int64)), like))
    return Map(like, made)


def interpolation(op: Builder, size: Dim, wanted: Dim, like: Tensor) -> Tensor:
    """[wanted, size] matrix of linear interpolation between pixel centres, the border going on (Resize's half_pixel).

    As a product it runs in every precision and on every provider; Resize has no float64 kernel.
    """
    if fixed(size) and fixed(wanted) and size * wanted <= bounds.CONSTANT:
        at = np.clip((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, 0, size - 1)
        return op.constant(np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0), numpy_dtype(like))
    wide = op.wide(like)
    outputs = op.cast_to(op.range(wanted), wide)
    scale = op.Div(op.cast_to(op.vector([size]), wide), op.cast_to(op.vector([wanted]), wide))
    at = op.Sub(op.Mul(op.Add(outputs, 0.5), scale), 0.5)
    matrix: Any = sampling.interpolation  # rules come without types
    return op.cast_to(matrix(op, at, size, sampling.TAPS["linear"]), like)


def smoothgrad(work: Work, method: str) -> list[Map]:
    """mean over k of the gradient at x + noise[k]"""
    op, samples = work.op, work.settings.samples
    points = {}
    for x in work.chosen.inputs:
        noise = op.Unsqueeze(work.given["noise", x.name], np.array([1], np.int64))
        points[x.name] = op.Add(op.Unsqueeze(x, np.array([0], np.int64)), noise)
    return _mean_gradients(work, points, samples, method)


def integrated_gradients(work: Work, method: str) -> list[Map]:
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
    means = _mean_gradients(work, points, steps, method)
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


MAPS: dict[str, Callable[[Work, str], list[Map]]] = {
    **dict.fromkeys(("gradient", "guided", "deconvnet", "rectgrad"), walk),
    **{name: walk for name, made in METHODS.items() if not made.switches},
    "input_x_gradient": input_x_gradient,
    "gradcam": gradcam,
    "guided_gradcam": guided_gradcam,
    "smoothgrad": smoothgrad,
    "integrated_gradients": integrated_gradients,
}


def settings(given: Mapping[str, Any], methods: Sequence[str]) -> Settings:
    """The settings, checked. Raises UsageError for a value out of range and for one that no method asked for reads."""
    made = Settings(**given)
    for name, users in READ_BY.items():
        if getattr(made, name) != Settings._field_defaults[name] and not set(users) & set(methods):
            raise UsageError(f"{_option(name)} is for --method {' or '.join(users)}, which is not among the methods.")
    if not 0 <= made.rectgrad_tau < math.inf:
        raise UsageError(f"--rectgrad-tau {made.rectgrad_tau}: a threshold of 0 or more.")
    if made.rectgrad_quantile is not None and not 0 <= made.rectgrad_quantile < 1:
        raise UsageError(f"--rectgrad-quantile {made.rectgrad_quantile}: a share from 0 to 1, such as 0.9.")
    if made.rectgrad_quantile is not None and made.rectgrad_tau:
        raise UsageError("--rectgrad-tau and --rectgrad-quantile both set the threshold; choose one.")
    for name in ("steps", "samples"):
        if getattr(made, name) < 1:
            raise UsageError(f"--{name} {getattr(made, name)}: at least 1.")
        if getattr(made, name) > bounds.POINTS:
            raise UsageError(f"--{name} {getattr(made, name)}: at most {bounds.POINTS:,}; hundreds are many.")
    if made.baseline not in BASELINES:
        raise UsageError(f"--baseline {made.baseline!r}: choose {' or '.join(BASELINES)}.")
    return made


def layers_for(
    graph: gs.Graph,
    chosen: Selection,
    methods: Sequence[str],
    settings: Settings,
    target: Target,
    channels: str | None,
) -> list[FeatureLayer]:
    """Grad-CAM's layer of each input, if a method needs them. Raises as `feature_layers`."""
    if not reads_layer(methods):
        return []
    return feature_layers(graph, chosen, settings.cam_layer, explained(graph, chosen, target, channels))


def reads_layer(methods: Sequence[str]) -> bool:
    """Whether a method needs the cotangent of an inner layer."""
    return not set(READ_BY["cam_layer"]).isdisjoint(methods)


class Given(NamedTuple):
    """An input that the file gains besides a target or seed: "noise" [samples, ...] or "baseline", for one input."""

    kind: str
    input: str
    name: str
    dtype: Any
    shape: list[int | str | None]


def given_inputs(chosen: Selection, methods: Sequence[str], settings: Settings, prefix: str) -> list[Given]:
    """What the methods need at run time."""
    found = []
    for x in chosen.inputs:
        if "smoothgrad" in methods:
            found.append(Given("noise", x.name, f"{prefix}{x.name}_noise", x.dtype, [settings.samples, *x.shape[1:]]))
        if "integrated_gradients" in methods and settings.baseline == "input":
            found.append(Given("baseline", x.name, f"{prefix}{x.name}_baseline", x.dtype, list(x.shape)))
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

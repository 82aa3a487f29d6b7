"""Grad-CAM and Guided Grad-CAM: Selvaraju et al. 2017, sections 3 and 3.2."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.matrices import times_matrix
from gbprewrite.backward.rules import sampling
from gbprewrite.methods.work import Map, Method, Work, walk
from gbprewrite.model import bounds
from gbprewrite.model.tensors import Dim, Tensor, fixed, numpy_dtype
from gbprewrite.select.channels import FeatureLayer
from gbprewrite.view import paths

GRADIENT = Method("gradient", walk="grad")


def gradcam(work: Work, method: Method) -> list[Map]:
    """relu(Σ over channels of a · mean over positions of da), resized to the input"""
    coarse = _coarse(work)
    layers = zip(work.chosen.inputs, work.layers, strict=True)
    return [_resized(work.op, coarse[id(layer.tensor)], layer, x) for x, layer in layers]


def guided_gradcam(work: Work, method: Method) -> list[Map]:
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
    found = work.cotangents(GRADIENT, work.chosen._replace(inputs=tensors, nodes=nodes))
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

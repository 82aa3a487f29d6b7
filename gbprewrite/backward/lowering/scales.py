"""Numbers for each channel, as of BatchNormalization, between a cotangent and the convolution in front of them."""

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.backward.builder import Builder
from gbprewrite.backward.lowering.table import Lowerings
from gbprewrite.model.tensors import HALF, Tensor, onnx_type

PRODUCTS = (2.0**-64, 2.0**100)  # of weights and scales that leave float32 in neither direction


def scaled_weights(op: Builder, dy: Tensor, w: Tensor) -> tuple[Tensor, Tensor] | None:
    """(cotangent, weights), with what multiplies each channel of the cotangent in the weights instead.

    Where: the cotangent is a product with a constant for each channel, and neither the weights nor that are of half
    precision, which no kernel of onnxruntime's CPU multiplies beforehand.
    Why: BatchNormalization behind a convolution then costs no pass of its own on the way back: runtimes multiply the
    weights when they load the file, which stores them once.
    """
    node = dy.inputs[0] if isinstance(dy, gs.Variable) and dy.inputs else None
    if node is None or node.op != "Mul" or not op.magnitudes.is_weight(w) or onnx_type(w) in HALF:
        return None
    plain, scale = node.inputs
    of_channels = [w.shape[0], *[1] * (len(w.shape) - 2)]
    if list(scale.shape or ()) not in (of_channels, [1, *of_channels]) or not op.magnitudes.is_weight(scale):
        return None
    if plain.shape is None or len(plain.shape) != len(w.shape):
        return None
    largest = op.magnitudes.of(w).most * op.magnitudes.of(scale).most
    if not PRODUCTS[0] < largest < PRODUCTS[1]:
        return None
    scale = op.Reshape(scale, np.array([-1, *[1] * (len(w.shape) - 1)], np.int64))
    return plain, op.Mul(w, op.cast_to(scale, w))


def scaled_cotangent(op: Builder, dy: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Both as they are."""
    return dy, w


CHANNEL_SCALE = Lowerings("channel_scale", scaled_weights, scaled_cotangent)

"""Convolutions: the VJP of a convolution is a transposed convolution, and the other way round.

Source: https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html; Dumoulin and Visin 2016,
"A guide to convolution arithmetic for deep learning", section 4.
"""

from gbprewrite.backward.lowering.convolutions import (
    conv_input_grad,
    conv_transpose_input_grad,
    conv_transpose_weight_grad,
    conv_weight_grad,
)
from gbprewrite.backward.rules.table import vjp


@vjp("Conv")
def conv(op, dy, y, x, w, b=None, **window):
    """dx = dy ⊛ᵀ w,  dw = x ⋆ dy,  db = Σ dy"""
    return (
        lambda: conv_input_grad(op, dy, x, w, **window),
        lambda: conv_weight_grad(op, dy, x, w, **window),
        lambda: op.sum_but_channels(dy),
    )


@vjp("ConvTranspose")
def conv_transpose(op, dy, y, x, w, b=None, **window):
    """dx = dy ⋆ w,  dw = dy ⋆ x,  db = Σ dy"""
    return (
        lambda: conv_transpose_input_grad(op, dy, x, w, **window),
        lambda: conv_transpose_weight_grad(op, dy, x, w, **window),
        lambda: op.sum_but_channels(dy),
    )

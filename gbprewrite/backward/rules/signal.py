"""Fourier transforms and patches. Their matrices are computed where they are needed, so that no file stores them.

Source: https://onnx.ai/onnx/operators/onnx__DFT.html, onnx__STFT.html, onnx__Col2Im.html.
"""

import math

import numpy as np

from gbprewrite.backward.rules.table import decomposed, vjp
from gbprewrite.model.bounds import check_constant
from gbprewrite.model.tensors import Refused, constant_of, fixed, rank


@decomposed("DFT")
def dft(op, x, length=None, axis_input=None, *, axis=None, inverse, onesided):
    """dx: the reverse walk over a product with the Fourier matrix"""
    if axis_input is not None:
        axis = int(fixed_value(axis_input, "its axis"))
    axis = (1 if axis is None else axis) % rank(x)
    if axis_input is None and axis == 1 and rank(x) > 3 and op.opset >= 20:
        axis = rank(x) - 2
    size = op.dim(x, axis) if length is None else int(fixed_value(length, "its length"))
    if inverse and onesided and length is None:
        size = op.calc("Mul", op.calc("Sub", size, 1), 2)
    last = rank(x) - 1
    order = [a for a in range(last) if a != axis]
    columns = op.Transpose(x, perm=[*order, last, axis])  # [..., real and imaginary, samples]
    made = transformed(op, columns, size, bool(inverse), bool(onesided))
    back = np.argsort([*order, last, axis]).tolist()
    return op.Transpose(made, perm=back)


def fixed_value(tensor, what):
    """A scalar that the graph fixes."""
    value = constant_of(tensor)
    if value is None:
        raise Refused(f"{what} is computed at run time")
    return value.ravel()[0]


def transformed(op, columns, size, inverse, onesided):
    """Fourier transform of the last axis of [..., 1 or 2, samples]."""
    axis = rank(columns) - 1
    half = op.calc("Add", op.calc("Div", size, 2), 1)
    wanted = half if inverse and onesided else size
    columns = fitted(op, columns, axis, wanted)
    outputs = half if onesided and not inverse else size
    angle = op.Mod(op.Mul(op.Unsqueeze(op.range(wanted), np.array([1])), op.range(outputs)), op.vector([size]))
    angle = op.Div(op.Mul(op.cast_to(angle, columns), 2 * math.pi), op.as_float(size, columns))
    cos, sin = op.Cos(angle), op.Sin(angle)
    real, imaginary = (op.slice(columns, [axis - 1], [i], [1]) for i in (0, 1))
    is_real = columns.shape[axis - 1] == 1
    sign = -1 if inverse else 1
    if inverse and onesided:  # the other half is the conjugate of this one
        twice = op.cast_to(op.Equal(op.Mod(op.Mul(op.range(wanted), 2), op.vector([size])), 0), columns)
        weight = op.Sub(2, twice)
        real, imaginary = op.Mul(real, weight), op.Mul(imaginary, weight)
    re = op.MatMul(real, cos)
    im = op.Mul(op.MatMul(real, sin), -float(sign))
    if not is_real:
        re = op.Add(re, op.Mul(op.MatMul(imaginary, sin), float(sign)))
        im = op.Add(im, op.MatMul(imaginary, cos))
    made = re if inverse and onesided else op.Concat(re, im, axis=axis - 1)
    return op.Div(made, op.as_float(size, made)) if inverse else made


def fitted(op, v, axis, size):
    """v cut or filled with zeros to a length along an axis."""
    there = op.dim(v, axis)
    if fixed(there) and fixed(size):
        return op.pad(v, [axis], [0], [size - there])
    return v if there is size else op.pad(op.slice(v, [axis], [0], [op.calc("Min", there, size)]), [axis], [0],
                                          [op.calc("Max", op.calc("Sub", size, there), 0)])  # fmt: skip


@decomposed("STFT")
def stft(op, signal, step, window=None, length=None, *, onesided):
    """dsignal, dwindow: the reverse walk over frames, windowed and transformed"""
    step = int(fixed_value(step, "its frame_step"))
    size = int(fixed_value(length, "its frame_length")) if length is not None else op.dim(window, 0)
    frames = op.calc("Add", op.calc("Div", op.calc("Sub", op.dim(signal, 1), size), step), 1)
    starts = op.Mul(op.Unsqueeze(op.range(frames), np.array([1])), step)
    picked = op.Gather(signal, op.Add(starts, op.range(size)), axis=1)  # [batch, frames, size, parts]
    if window is not None:
        picked = op.Mul(picked, op.Unsqueeze(window, np.array([1])))
    made = transformed(op, op.Transpose(picked, perm=[0, 1, 3, 2]), size, False, bool(onesided))
    return op.Transpose(made, perm=[0, 1, 3, 2])


@vjp("Col2Im")
def col2im(op, dy, y, x, image, block, *, dilations, pads, strides):
    """dx = the blocks read out of dy"""
    image, block = constant_of(image), constant_of(block)
    if image is None or block is None:
        raise Refused("its image or block shape is computed at run time")
    d = len(block)
    dilations, pads, strides = dilations or [1] * d, pads or [0] * (2 * d), strides or [1] * d
    padded = op.pad(dy, list(range(2, 2 + d)), pads[:d], pads[d:])
    sizes = [int(n) + pads[a] + pads[a + d] for a, n in enumerate(image)]
    counts = [(sizes[a] - dilations[a] * (int(block[a]) - 1) - 1) // strides[a] + 1 for a in range(d)]
    check_constant(math.prod([*map(int, block), *counts]), "the places of its blocks, a list")
    index = np.zeros([1] * (2 * d), np.int64)
    for axis in range(d):
        taps = np.arange(block[axis]) * dilations[axis]
        starts = np.arange(counts[axis]) * strides[axis]
        index = index * sizes[axis] + taps.reshape([-1 if a == axis else 1 for a in range(2 * d)])
        index = index + starts.reshape([-1 if a == axis + d else 1 for a in range(2 * d)])
    flat = op.reshape(padded, [*op.dims(dy)[:2], int(np.prod(sizes))])
    taps = int(np.prod(block))
    return op.reshape_like(op.Gather(flat, index.reshape(taps, -1), axis=2), x)

"""Heads of networks: forms in which classes, samples and positions lie, and where a right class axis is.

In ONNX's own text. The networks are linear up to a final activation, so that their maps are known by a formula.
"""

from typing import NamedTuple

import numpy as np

from tests.small import Array, normal

H, W, K, C = 4, 6, 3, 5  # C classes; H · W = 24 positions
WEIGHTS = normal(C, K, 1, 1, seed=1)
BIAS = normal(C, seed=2)
SHAPES = {
    **{"to_rows": [-1, C], "to_maps": [0, C, -1], "to_anchors": [0, -1, C], "to_one": [C], "to_groups": [0, 2, 12, C]},
    **{"to_map_of_one": [1, C, 24], "to_anchors_of_one": [24, C], "to_row_of_k": [0, K, 24]},
    **{"to_volume": [0, K, 2, 4, 3], "to_anchors_of_24": [-1, 24, C], "to_square": [0, H, W, C]},
    **{"to_two": [0, 4, C], "to_five": [0, 4, C, H, W], "to_mixed": [0, C * H, W]},
}


def constants() -> dict[str, Array]:
    """Weights and operands that the forms may name."""
    made = {name: np.array(shape, np.int64) for name, shape in SHAPES.items()}
    made |= {
        "only_first": np.array([0], np.int64),
        "first": np.array(0, np.int64),
        "space": np.array([2, 3], np.int64),
        "w": WEIGHTS,
        "bias": BIAS,
    }
    made |= {"wt": np.ascontiguousarray(WEIGHTS.reshape(C, K).T), "wm": WEIGHTS.reshape(C, K)}
    made |= {"scale": np.ones(C, np.float32), "shift": np.zeros(C, np.float32)}
    made |= {"w1": WEIGHTS.reshape(C, K, 1), "w3": WEIGHTS.reshape(C, K, 1, 1, 1)}
    made |= {"wct": np.ascontiguousarray(WEIGHTS.transpose(1, 0, 2, 3)), "twice": np.array([1, 1, 2, 2], np.float32)}
    made |= {
        "one": WEIGHTS[:1],
        "wide": normal(C, 4 * C),
        "wide_maps": normal(4 * C, C, 1, 1),
        "wide_columns": normal(24, 7),
    }
    made |= {
        "token": np.ones((1, 1, C), np.float32),
        "step": np.array(1 / 256, np.float32),
        "low": np.array(0, np.uint8),
    }
    made |= {"step_of_logs": np.array(0.05, np.float32), "high": np.array(255, np.uint8)}
    numbers = {"one_and_five": [1, C], "far": [10**6], "to_frames": [-1, K, H, W], "to_clips": [-1, 2, C]}
    numbers |= {"rows_and_columns": [1, 2], "two_and_three": [2, 3], "any_and_five": [-1, 5], "minus_one": [-1]}
    numbers |= {"second": [1], "third": [2], "any_two": [3, 1], "all_but_batch": [1, 2, 3]}
    return made | {name: np.array(value, np.int64) for name, value in numbers.items()}


class Form(NamedTuple):
    """A network that computes z[n, c] = Σₖ w[c, k] · x[n, k] at each position and then moves it.

    output and x are the shapes of its output and input; classes and samples the axes expected, None for none. `spread`
    says how often each position is in the sum over the positions: once, as a part of a mean, or several times.
    """

    text: str
    output: str
    classes: int | None
    samples: int | None = 0
    spread: float = 1
    x: str = f"N, {K}, {H}, {W}"
    opset: int = 18


MEAN = 1 / (H * W)
CONV, NHWC = "z = Conv (x, w)", f"N, {H}, {W}, {K}"
TO_NCHW = "t = Transpose <perm = [0, 3, 1, 2]> (x) z = Conv (t, w)"
ONE = f"1, {K}, {H}, {W}"
GAP = f"{CONV} p = GlobalAveragePool (z)"
LOGITS = "q = ReduceMean <keepdims = 0> (x, space) z = Gemm <transB = 1> (q, wm, bias)"
LAST = "Transpose <perm = [0, 2, 3, 1]>"
FORMS = {
    # logits
    "Gemm": Form(f"{LOGITS} y = Identity (z)", "N, 5", 1, spread=MEAN),
    "MatMul and bias": Form(
        "q = ReduceMean <keepdims = 0> (x, space) z = MatMul (q, wt) y = Add (z, bias)", "N, 5", 1, spread=MEAN
    ),
    "Softmax": Form(f"{LOGITS} y = Softmax (z)", "N, 5", 1, spread=MEAN),
    "LogSoftmax, fixed batch": Form(f"{LOGITS} y = LogSoftmax <axis = 1> (z)", "1, 5", 1, spread=MEAN, x=ONE),
    "Softmax, quantised": Form(
        f"{LOGITS} s = Softmax (z) q8 = QuantizeLinear (s, step, low) y = DequantizeLinear (q8, step, low)",
        "N, 5",
        1,
        spread=MEAN,
    ),
    "LogSoftmax, quantised and moved": Form(
        f"{LOGITS} s = LogSoftmax (z) q8 = QuantizeLinear (s, step_of_logs, high) t8 = Unsqueeze (q8, second) "
        "y = DequantizeLinear (t8, step_of_logs, high)",
        "N, 1, 5",
        2,
        spread=MEAN,
    ),
    "Sigmoid": Form(f"{LOGITS} y = Sigmoid (z)", "N, 5", 1, spread=MEAN),
    "pooled channels": Form(f"{GAP} y = Flatten (p)", "N, 5", 1, spread=MEAN),
    "pooled, kept": Form(f"{GAP} y = Identity (p)", "N, 5, 1, 1", 1, spread=MEAN),
    "pooled, Softmax kept": Form(f"{GAP} y = Softmax <axis = 1> (p)", "N, 5, 1, 1", 1, spread=MEAN),
    "pooled, Softmax, flat": Form(f"{GAP} s = Softmax <axis = 1> (p) y = Flatten (s)", "N, 5", 1, spread=MEAN),
    "pooled, reshaped to all": Form(f"{GAP} y = Reshape (p, to_rows)", "N, 5", 1, spread=MEAN),
    "pooled, channels last": Form(f"{GAP} y = {LAST} (p)", "N, 1, 1, 5", 3, spread=MEAN),
    "channels-last network": Form(
        f"{TO_NCHW} p = GlobalAveragePool (z) y = {LAST} (p)", "N, 1, 1, 5", 3, spread=MEAN, x=NHWC
    ),
    "pooled after the transpose": Form(
        f"{TO_NCHW} t2 = {LAST} (z) y = ReduceMean <keepdims = 0> (t2, rows_and_columns)",
        "N, 5",
        1,
        spread=MEAN,
        x=NHWC,
    ),
    "dense on channels last": Form("y = MatMul (x, wt)", "N, 4, 6, 5", 3, x=NHWC),
    "dense on pooled channels last": Form(
        "q = ReduceMean <keepdims = 1> (x, rows_and_columns) y = MatMul (q, wt)", "N, 1, 1, 5", 3, spread=MEAN, x=NHWC
    ),
    # one sample
    "squeezed": Form(f"{LOGITS} y = Squeeze (z, only_first)", "5", 0, None, MEAN, ONE),
    "squeezed of all": Form(f"{GAP} y = Squeeze (p)", "5", 0, None, MEAN, ONE),
    "squeezed, Softmax": Form(
        f"{LOGITS} s = Squeeze (z, only_first) y = Softmax <axis = 0> (s)", "5", 0, None, MEAN, ONE
    ),
    "Softmax, squeezed": Form(f"{LOGITS} s = Softmax (z) y = Squeeze (s, only_first)", "5", 0, None, MEAN, ONE),
    "Softmax, reshaped to a row": Form(f"{LOGITS} s = Softmax (z) y = Reshape (s, to_one)", "5", 0, None, MEAN, ONE),
    "first of the batch": Form(f"{LOGITS} y = Gather <axis = 0> (z, first)", "5", 0, None, MEAN, ONE),
    "Softmax, first of the batch": Form(
        f"{LOGITS} s = Softmax (z) y = Gather <axis = 0> (s, first)", "5", 0, None, MEAN, ONE
    ),
    "no batch at all": Form(
        "u = Unsqueeze (x, only_first) z = Conv (u, w) p = GlobalAveragePool (z) y = Squeeze (p)",
        "5",
        0,
        None,
        MEAN,
        f"{K}, {H}, {W}",
    ),
    "no batch, kept": Form(
        "u = Unsqueeze (x, only_first) z = Conv (u, w) p = GlobalAveragePool (z) y = Flatten (p)",
        "1, 5",
        1,
        0,
        MEAN,
        f"{K}, {H}, {W}",
    ),
    "map of one sample": Form(f"{CONV} y = Squeeze (z, only_first)", "5, 4, 6", 0, None, 1, ONE),
    # maps
    "segmentation": Form(CONV.replace("z", "y"), "N, 5, 4, 6", 1),
    "segmentation, Softmax": Form(f"{CONV} y = Softmax <axis = 1> (z)", "N, 5, 4, 6", 1),
    "segmentation, Sigmoid": Form(f"{CONV} y = Sigmoid (z)", "N, 5, 4, 6", 1),
    "BatchNormalization behind": Form(
        f"{CONV} y = BatchNormalization <epsilon = 0.0> (z, scale, shift, shift, scale)", "N, 5, 4, 6", 1
    ),
    "channels-last segmentation": Form(f"{TO_NCHW} y = {LAST} (z)", "N, 4, 6, 5", 3, x=NHWC),
    "channels-last segmentation, Sigmoid": Form(f"{TO_NCHW} s = {LAST} (z) y = Sigmoid (s)", "N, 4, 6, 5", 3, x=NHWC),
    "channels-last segmentation, Softmax": Form(f"{TO_NCHW} s = {LAST} (z) y = Softmax (s)", "N, 4, 6, 5", 3, x=NHWC),
    "Transpose, Softmax, Transpose": Form(
        f"{CONV} t = {LAST} (z) s = Softmax <axis = 3> (t) y = Transpose <perm = [0, 3, 1, 2]> (s)", "N, 5, 4, 6", 1
    ),
    "Softmax over rows": Form(
        f"{CONV} t = {LAST} (z) q = Shape (t) f = Reshape (t, to_rows) s = Softmax <axis = 1> (f) v = Reshape (s, q) "
        "y = Transpose <perm = [0, 3, 1, 2]> (v)",
        "N, 5, 4, 6",
        1,
    ),
    # positions in a row
    "anchors behind": Form(f"{CONV} y = Reshape (z, to_maps)", "N, 5, 24", 1),
    "anchors before": Form(f"{CONV} t = {LAST} (z) y = Reshape (t, to_anchors)", "N, 24, 5", 2),
    "anchors, Sigmoid before": Form(
        f"{CONV} s = Sigmoid (z) t = {LAST} (s) y = Reshape (t, to_anchors)", "N, 24, 5", 2
    ),
    "anchors, Softmax": Form(
        f"{CONV} t = {LAST} (z) r = Reshape (t, to_anchors) y = Softmax <axis = 2> (r)", "N, 24, 5", 2
    ),
    "anchors in two groups": Form(f"{CONV} t = {LAST} (z) y = Reshape (t, to_groups)", "N, 2, 12, 5", 3),
    "two scales joined": Form(
        f"{CONV} t = {LAST} (z) r = Reshape (t, to_anchors) a2, b2 = Split <axis = 1, num_outputs = 2> (r) "
        "y = Concat <axis = 1> (a2, b2)",
        "N, 24, 5",
        2,
    ),
    "a row of positions, classes last": Form(
        f"{CONV} r = Reshape (z, to_maps) y = Transpose <perm = [0, 2, 1]> (r)", "N, 24, 5", 2
    ),
    "one row for each sample": Form(
        f"{CONV} r = ReduceMean <keepdims = 1> (z, space) y = Reshape (r, to_rows)", "N, 5", 1, spread=MEAN
    ),
    # time first
    "time, samples, classes": Form(
        f"{CONV} r = Reshape (z, to_maps) y = Transpose <perm = [2, 0, 1]> (r)", "24, N, 5", 2, 1
    ),
    "time, samples, LogSoftmax": Form(
        f"{CONV} r = Reshape (z, to_maps) t = Transpose <perm = [2, 0, 1]> (r) y = LogSoftmax <axis = 2> (t)",
        "24, N, 5",
        2,
        1,
    ),
    "time, one sample, classes": Form(
        f"{CONV} r = Reshape (z, to_map_of_one) y = Transpose <perm = [2, 0, 1]> (r)", "24, 1, 5", 2, 1, 1, ONE
    ),
    "time, classes of one sample": Form(
        f"{CONV} t = {LAST} (z) y = Reshape (t, to_anchors_of_one)", "24, 5", 1, None, 1, ONE
    ),
    "classes before samples": Form(f"{GAP} r = Flatten (p) y = Transpose <perm = [1, 0]> (r)", "5, N", 0, 1, MEAN),
    # other makers
    "ConvTranspose": Form("y = ConvTranspose (x, wct)", "N, 5, 4, 6", 1),
    "Conv of rows": Form("r = Reshape (x, to_row_of_k) y = Conv (r, w1)", "N, 5, 24", 1),
    "Conv of volumes": Form("r = Reshape (x, to_volume) y = Conv (r, w3)", "N, 5, 2, 4, 3", 1),
    "weights from the left": Form("r = Reshape (x, to_row_of_k) y = MatMul (wm, r)", "N, 5, 24", 1),
    "Gemm with a table": Form("q = ReduceMean <keepdims = 0> (x, space) y = Gemm (q, wt)", "N, 5", 1, spread=MEAN),
    "Einsum": Form('y = Einsum <equation = "nkhw,ck->nchw"> (x, wm)', "N, 5, 4, 6", 1),
    "Einsum, channels last": Form('y = Einsum <equation = "nkhw,kc->nhwc"> (x, wt)', "N, 4, 6, 5", 3),
    "weights through an Identity": Form("v = Identity (w) y = Conv (x, v)", "N, 5, 4, 6", 1),
    # other movements
    "Resize behind": Form(f'{CONV} y = Resize <mode = "nearest"> (z, , twice)', "N, 5, 8, 12", 1, spread=4),
    "Resize behind, channels last": Form(
        f'{TO_NCHW} u = Resize <mode = "nearest"> (z, , twice) y = {LAST} (u)', "N, 8, 12, 5", 3, spread=4, x=NHWC
    ),
    "channels split and joined": Form(
        f"{CONV} a2, a3 = Split <axis = 1> (z, two_and_three) y = Concat <axis = 1> (a2, a3)", "N, 5, 4, 6", 1
    ),
    "upper and lower half joined": Form(
        f"{CONV} a2, a3 = Split <axis = 2, num_outputs = 2> (z) y = Concat <axis = 2> (a2, a3)", "N, 5, 4, 6", 1
    ),
    "Cast, Dropout, Identity behind": Form(
        f"{LOGITS} s = Softmax (z) c = Cast <to = 1> (s) d = Dropout (c) y = Identity (d)", "N, 5", 1, spread=MEAN
    ),
    "a row more": Form(f"{LOGITS} y = Unsqueeze (z, second)", "N, 1, 5", 2, spread=MEAN),
    "Softmax, an axis more": Form(f"{LOGITS} s = Softmax (z) y = Unsqueeze (s, second)", "N, 1, 5", 2, spread=MEAN),
    "a column more": Form(f"{LOGITS} y = Unsqueeze (z, third)", "N, 5, 1", 1, spread=MEAN),
    "squeezed by TensorFlow": Form(
        f"{TO_NCHW} p = GlobalAveragePool (z) t2 = {LAST} (p) y = Squeeze (t2, rows_and_columns)",
        "N, 5",
        1,
        0,
        MEAN,
        NHWC,
    ),
    "Softmax, squeezed by TensorFlow": Form(
        f"{TO_NCHW} p = GlobalAveragePool (z) t2 = {LAST} (p) q = Squeeze (t2, rows_and_columns) y = Softmax (q)",
        "N, 5",
        1,
        0,
        MEAN,
        NHWC,
    ),
    "Flatten of anchors and back": Form(
        f"{CONV} t = {LAST} (z) f = Flatten <axis = 3> (t) y = Reshape (f, to_anchors_of_24)", "N, 24, 5", 2
    ),
    "maps in rows, rows in columns": Form(
        f"{CONV} r = Reshape (z, to_maps) t = Transpose <perm = [0, 2, 1]> (r) y = Reshape (t, to_square)",
        "N, 4, 6, 5",
        3,
    ),
    # sizes that are computed, and names that the exporter gives
    "names of the exporter": Form(f"{CONV} y = Reshape (z, to_maps)", "Reshapey_dim_0, 5, Reshapey_dim_2", 1),
    "computed sizes": Form(
        f"{CONV} t = {LAST} (z) q = Shape <start = 0, end = 1> (x) k = Concat <axis = 0> (q, any_and_five) "
        "y = Reshape (t, k)",
        "Reshapey_dim_0, Reshapey_dim_1, 5",
        2,
    ),
    "computed sizes, gathered": Form(
        f"{CONV} q = Shape (z) b = Gather (q, first) u = Unsqueeze (b, only_first) c = Gather (q, second) "
        "k = Concat <axis = 0> (u, c, minus_one) y = Reshape (z, k)",
        "Reshapey_dim_0, Reshapey_dim_1, Reshapey_dim_2",
        1,
    ),
    "open heights and widths": Form(f"{CONV} y = {LAST} (z)", "N, h, w0, 5", 3, x=f"N, {K}, h, w0"),
    "open heights and widths in a row": Form(
        f"{CONV} t = {LAST} (z) y = Reshape (t, to_anchors)", "N, A, 5", 2, x=f"N, {K}, h, w0"
    ),
    "names of the exporter, turned twice": Form(f"{LOGITS} n = Neg (z) y = Neg (n)", "Negy_dim_0, 5", 1, spread=MEAN),
    "a token joined before": Form(
        f"{CONV} r = Reshape (z, to_maps) t = Transpose <perm = [0, 2, 1]> (r) q = Shape <start = 0, end = 1> (z) "
        "k = Concat <axis = 0> (q, one_and_five) e = Expand (token, k) j = Concat <axis = 1> (e, t) "
        "y = Slice (j, second, far, second)",
        "Slicey_dim_0, Slicey_dim_1, 5",
        2,
    ),
    "rows put together and apart again": Form(
        f"{CONV} t = {LAST} (z) r = Reshape (t, to_anchors) f = Flatten <axis = 2> (r) "
        "b = BatchNormalization <epsilon = 0.0> (f, scale, shift, shift, scale) q = Shape (r) v = Reshape (b, q) "
        "y = ReduceMean <keepdims = 0> (v, second)",
        "ReduceMeany_dim_0, 5",
        1,
        spread=MEAN,
        x=f"N, {K}, h, w0",
    ),
    # Softmax before opset 13 ran over everything from its axis on
    "old Softmax": Form(f"{GAP} f = Flatten (p) y = Softmax (f)", "N, 5", 1, spread=MEAN, opset=11),
    "old Softmax, kept": Form(f"{GAP} y = Softmax <axis = 1> (p)", "N, 5, 1, 1", 1, spread=MEAN, opset=9),
    "old Softmax between transposes": Form(
        f"{CONV} t = {LAST} (z) s = Softmax <axis = 3> (t) y = Transpose <perm = [0, 3, 1, 2]> (s)",
        "N, 5, 4, 6",
        1,
        opset=11,
    ),
    "old Softmax over all": Form(f"{CONV} y = Softmax <axis = 1> (z)", "N, 5, 4, 6", 1, opset=11),
    "old LogSoftmax, time first": Form(
        f"{CONV} r = Reshape (z, to_maps) t = Transpose <perm = [2, 0, 1]> (r) y = LogSoftmax <axis = 2> (t)",
        "24, N, 5",
        2,
        1,
        opset=11,
    ),
}
# Nothing tells which axis holds the classes: (text, shape of the output, axes that could be it).
WIDE = f"{CONV} t = {LAST} (z) m = MatMul (t, wide) p = ReduceMean <keepdims = 0> (m, rows_and_columns)"
ASKED = {
    "positions and older channels": (
        f"{CONV} r = Reshape (z, to_maps) y = MatMul (r, wide_columns)",
        "N, 5, 7",
        (1, 2),
    ),
    "nothing makes channels": ("y = Identity (x)", f"N, {K}, {H}, {W}", (1, 2, 3)),
    "classes in two axes": (f"{WIDE} y = Reshape (p, to_two)", "N, 4, 5", (1, 2)),
    "maps of classes in two axes": (
        f"{CONV} m = Conv (z, wide_maps) y = Reshape (m, to_five)",
        "N, 4, 5, 4, 6",
        (1, 2),
    ),
    "channels and rows in one axis": (f"{CONV} y = Reshape (z, to_mixed)", "N, 20, 6", (1, 2)),
    "a Softmax's classes in two axes": (f"{WIDE} s = Softmax (p) y = Reshape (s, to_two)", "N, 4, 5", (1, 2)),
}


class Single(NamedTuple):
    """A network with one class; the axis of the samples, and a part of the reason."""

    text: str
    output: str
    samples: int | None
    reason: str
    x: str = f"N, {K}, {H}, {W}"


MASK = "z = Conv (x, one)"
SINGLE = {
    "masks": Single(f"{MASK} y = Squeeze (z, second)", "N, 4, 6", 0, "positions alone"),
    "masks, Sigmoid": Single(f"{MASK} s = Sigmoid (z) y = Squeeze (s, second)", "N, 4, 6", 0, "positions alone"),
    "a mask": Single(f"{MASK} y = Squeeze (z)", "4, 6", None, "positions alone", ONE),
    "a mask of an image": Single(
        "u = Unsqueeze (x, only_first) z = Conv (u, one) y = Squeeze (z)",
        "4, 6",
        None,
        "positions alone",
        f"{K}, {H}, {W}",
    ),
    "channels-last masks": Single(
        "t = Transpose <perm = [0, 3, 1, 2]> (x) z = Conv (t, one) y = Squeeze (z, second)",
        "N, 4, 6",
        0,
        "positions alone",
        NHWC,
    ),
    "one value": Single(f"{MASK} y = ReduceSum <keepdims = 0> (z, all_but_batch)", "N", 0, "one value for each sample"),
    "one number": Single(f"{MASK} y = ReduceSum <keepdims = 0> (z)", "", None, "it is one number", ONE),
    "one number, squeezed": Single(f"{MASK} s = ReduceSum (z) y = Squeeze (s)", "", None, "it is one number", ONE),
    "one number, reshaped": Single(f"{MASK} s = ReduceSum (z) y = Reshape (s, minus_one)", "1", 0, "one value", ONE),
}

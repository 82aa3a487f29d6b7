"""Which axis holds the classes, and which the samples: worked out for every form of head, or asked.

Every network is linear up to its final activation: z[n, c] = Σₖ w[c, k] · x[n, k] at each position. So the map of class
c is w[c] at every position, whatever moves z afterwards; that is what a right class axis gives.
"""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest

import gbprewrite
from gbprewrite import report
from tests.small import Array, model, normal, run

H, W, K, C = 4, 6, 3, 5  # C classes; H · W = 24 positions
WEIGHTS = normal(C, K, 1, 1, seed=1)
BIAS = normal(C, seed=2)
SHAPES = {
    **{"to_rows": [-1, C], "to_maps": [0, C, -1], "to_anchors": [0, -1, C], "to_one": [C], "to_groups": [0, 2, 12, C]},
    **{"to_map_of_one": [1, C, 24], "to_anchors_of_one": [24, C]},
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
    return made | {"rows_and_columns": np.array([1, 2], np.int64)}


class Form(NamedTuple):
    """A head on z, which is Conv(x) of x [N, K, H, W] unless the text makes it itself; the shape of its output.

    classes and samples are the axes expected, None for none. `spread` says how a class's map spreads: "sum" over all
    positions (each has w[c]) or "mean".
    """

    text: str
    output: str
    classes: int | None
    samples: int | None = 0
    spread: str = "sum"
    x: str = f"N, {K}, {H}, {W}"


CONV, NHWC = "z = Conv (x, w)", f"N, {H}, {W}, {K}"
TO_NCHW = "t = Transpose <perm = [0, 3, 1, 2]> (x) z = Conv (t, w)"
ONE = f"1, {K}, {H}, {W}"
GAP = f"{CONV} p = GlobalAveragePool (z)"
LOGITS = "q = ReduceMean <keepdims = 0> (x, space) z = Gemm <transB = 1> (q, wm, bias)"
LAST = "Transpose <perm = [0, 2, 3, 1]>"
FORMS = {
    # logits
    "Gemm": Form(f"{LOGITS} y = Identity (z)", "N, 5", 1, spread="mean"),
    "MatMul and bias": Form(
        "q = ReduceMean <keepdims = 0> (x, space) z = MatMul (q, wt) y = Add (z, bias)", "N, 5", 1, spread="mean"
    ),
    "Softmax": Form(f"{LOGITS} y = Softmax (z)", "N, 5", 1, spread="mean"),
    "LogSoftmax, fixed batch": Form(f"{LOGITS} y = LogSoftmax <axis = 1> (z)", "1, 5", 1, spread="mean", x=ONE),
    "Sigmoid": Form(f"{LOGITS} y = Sigmoid (z)", "N, 5", 1, spread="mean"),
    "pooled channels": Form(f"{GAP} y = Flatten (p)", "N, 5", 1, spread="mean"),
    "pooled, kept": Form(f"{GAP} y = Identity (p)", "N, 5, 1, 1", 1, spread="mean"),
    "pooled, Softmax kept": Form(f"{GAP} y = Softmax <axis = 1> (p)", "N, 5, 1, 1", 1, spread="mean"),
    "pooled, Softmax, flat": Form(f"{GAP} s = Softmax <axis = 1> (p) y = Flatten (s)", "N, 5", 1, spread="mean"),
    "pooled, reshaped to all": Form(f"{GAP} y = Reshape (p, to_rows)", "N, 5", 1, spread="mean"),
    "pooled, channels last": Form(f"{GAP} y = {LAST} (p)", "N, 1, 1, 5", 3, spread="mean"),
    "channels-last network": Form(
        f"{TO_NCHW} p = GlobalAveragePool (z) y = {LAST} (p)", "N, 1, 1, 5", 3, spread="mean", x=NHWC
    ),
    "pooled after the transpose": Form(
        f"{TO_NCHW} t2 = {LAST} (z) y = ReduceMean <keepdims = 0> (t2, rows_and_columns)",
        "N, 5",
        1,
        spread="mean",
        x=NHWC,
    ),
    "dense on channels last": Form("y = MatMul (x, wt)", "N, 4, 6, 5", 3, x=NHWC),
    "dense on pooled channels last": Form(
        "q = ReduceMean <keepdims = 1> (x, rows_and_columns) y = MatMul (q, wt)", "N, 1, 1, 5", 3, spread="mean", x=NHWC
    ),
    # one sample
    "squeezed": Form(f"{LOGITS} y = Squeeze (z, only_first)", "5", 0, None, "mean", ONE),
    "squeezed of all": Form(f"{GAP} y = Squeeze (p)", "5", 0, None, "mean", ONE),
    "squeezed, Softmax": Form(
        f"{LOGITS} s = Squeeze (z, only_first) y = Softmax <axis = 0> (s)", "5", 0, None, "mean", ONE
    ),
    "Softmax, squeezed": Form(f"{LOGITS} s = Softmax (z) y = Squeeze (s, only_first)", "5", 0, None, "mean", ONE),
    "Softmax, reshaped to a row": Form(f"{LOGITS} s = Softmax (z) y = Reshape (s, to_one)", "5", 0, None, "mean", ONE),
    "first of the batch": Form(f"{LOGITS} y = Gather <axis = 0> (z, first)", "5", 0, None, "mean", ONE),
    "Softmax, first of the batch": Form(
        f"{LOGITS} s = Softmax (z) y = Gather <axis = 0> (s, first)", "5", 0, None, "mean", ONE
    ),
    "no batch at all": Form(
        "u = Unsqueeze (x, only_first) z = Conv (u, w) p = GlobalAveragePool (z) y = Squeeze (p)",
        "5",
        0,
        None,
        "mean",
        f"{K}, {H}, {W}",
    ),
    "no batch, kept": Form(
        "u = Unsqueeze (x, only_first) z = Conv (u, w) p = GlobalAveragePool (z) y = Flatten (p)",
        "1, 5",
        1,
        0,
        "mean",
        f"{K}, {H}, {W}",
    ),
    "map of one sample": Form(f"{CONV} y = Squeeze (z, only_first)", "5, 4, 6", 0, None, "sum", ONE),
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
        f"{CONV} r = Reshape (z, to_map_of_one) y = Transpose <perm = [2, 0, 1]> (r)", "24, 1, 5", 2, 1, "sum", ONE
    ),
    "time, classes of one sample": Form(
        f"{CONV} t = {LAST} (z) y = Reshape (t, to_anchors_of_one)", "24, 5", 1, None, "sum", ONE
    ),
    "classes before samples": Form(f"{GAP} r = Flatten (p) y = Transpose <perm = [1, 0]> (r)", "5, N", 0, 1, "mean"),
}
CONSTANTS = constants()


def built(form: Form) -> Any:
    text = f"g (float[{form.x}] x) => (float[{form.output}] y) {{ {form.text} }}"
    return model(text, **{name: CONSTANTS[name] for name in CONSTANTS if re.search(rf"\b{name}\b", form.text)})


def expected(form: Form, shape: tuple[int, ...], classes: Array) -> Array:
    """w[c] at every position, of sample n's class c; in the layout of x."""
    made = WEIGHTS[classes].reshape(len(classes), K, 1, 1) * np.ones((1, 1, H, W), np.float32)
    made = made / (H * W if form.spread == "mean" else 1)
    return (made.transpose(0, 2, 3, 1) if form.x == NHWC else made).reshape(shape)


@pytest.mark.parametrize("name", FORMS)
def test_head(name: str) -> None:
    form = FORMS[name]
    shape = tuple(2 if d == "N" else int(d) for d in form.x.split(", "))
    x = normal(*shape, seed=3)
    samples = shape[0] if form.x.startswith("N") else 1
    for target, many in (("argmax", False), (3, False), ("topk:2", True), ([4, 0], True), ("input", False)):
        converted = gbprewrite.convert(built(form), "gradient", target)
        record = report.read_record(converted)
        assert record is not None
        assert (record["class_axis"], record["batch_axis"]) == (form.classes, form.samples), record["class_axis_reason"]
        feeds = {"target": np.arange(samples) % C} if target == "input" else {}
        found = run(converted, x=x, **feeds)
        images = (x.transpose(0, 3, 1, 2) if form.x == NHWC else x).reshape(samples, K, -1)
        z = np.einsum("ck,nkp->nc", WEIGHTS.reshape(C, K), images) + (BIAS * H * W if "bias" in form.text else 0)
        order = np.argsort(-z, axis=1)
        classes = {"argmax": order[:, 0], "topk:2": order[:, :2], "input": np.arange(samples) % C}.get(str(target))
        wanted = np.broadcast_to(target, (samples, 2) if many else samples) if classes is None else classes
        np.testing.assert_array_equal(found["explained_index"], wanted)
        maps = found["x_gradient"]
        for k in range(2 if many else 1):
            one = maps.reshape(samples, 2, -1)[:, k].reshape(shape) if many else maps
            column = wanted[:, k] if many else wanted
            np.testing.assert_allclose(one, expected(form, shape, column), rtol=1e-5, atol=1e-6)

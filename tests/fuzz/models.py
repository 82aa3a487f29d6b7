"""Ten small models that mutations start from; together they hold what real files hold."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from tests.small import Array, cnn, model, normal

EXTERNAL = "weights.bin"  # beside the model file, where a model keeps its weights there


def _with_if() -> ModelProto:
    text = """g (float[N, 2, 6, 6] x, bool flag) => (float[N, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = If (flag) <
            then_branch = t () => (float[N, 3, 6, 6] p) { p = Relu (a) },
            else_branch = e () => (float[N, 3, 6, 6] q) { h = Mul (a, a) q = Sigmoid (h) }
        >
        c = GlobalAveragePool (b)
        d = Flatten (c)
        y = MatMul (d, w2)
    }"""
    return model(text, w1=normal(3, 2, 3, 3), w2=normal(3, 4, seed=1))


def _with_functions() -> ModelProto:
    text = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
    g (float[N, 2, 6, 6] x) => (float[N, 3] y) {
        a = local.block (x, w1)
        b = local.block (a, w2)
        c = ReduceMean <keepdims = 0> (b, axes)
        y = local.act (c)
    }
    <domain: "local", opset_import: ["" : 18, "local" : 1]>
    block (v, w) => (r) {
        k = Conv <pads = [1, 1, 1, 1]> (v, w)
        r = local.act (k)
    }
    <domain: "local", opset_import: ["" : 18]>
    act (v) => (r) {
        r = Relu (v)
    }"""
    parsed = onnx.parser.parse_model(text)
    weights = {"w1": normal(4, 2, 3, 3), "w2": normal(3, 4, 3, 3, seed=1), "axes": np.array([2, 3], np.int64)}
    parsed.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items())
    return parsed


def _quantised() -> ModelProto:
    text = """g (float[N, 2, 6, 6] x) => (float[N, 3] y) {
        qx = QuantizeLinear (x, sx, zx)
        dx = DequantizeLinear (qx, sx, zx)
        dw = DequantizeLinear (w, sw, zw)
        a = Conv <pads = [1, 1, 1, 1]> (dx, dw)
        r = Relu (a)
        qr = QuantizeLinear (r, sr, zr)
        dr = DequantizeLinear (qr, sr, zr)
        p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (dr)
        f = Flatten (p)
        y = Gemm (f, v)
    }"""
    rng = np.random.default_rng(0)
    return model(
        text,
        sx=np.array(0.05, np.float32),
        zx=np.array(128, np.uint8),
        sw=np.array(0.02, np.float32),
        zw=np.array(0, np.int8),
        sr=np.array(0.03, np.float32),
        zr=np.array(0, np.uint8),
        w=rng.integers(-100, 100, (3, 2, 3, 3)).astype(np.int8),
        v=normal(27, 3),
    )


def _channels_last() -> ModelProto:
    text = """g (float[N, 8, 8, 3] x) => (float[N, 5] p) {
        t = Transpose <perm = [0, 3, 1, 2]> (x)
        a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (t, w1, b1)
        six = Constant <value_float = 6.0> ()
        zero = Constant <value_float = 0.0> ()
        r = Clip (a, zero, six)
        d = Conv <auto_pad = "SAME_UPPER", group = 4> (r, w2)
        m = AveragePool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (d)
        u = Transpose <perm = [0, 2, 3, 1]> (m)
        s = ReduceMean <keepdims = 0> (u, axes)
        l = Gemm <transB = 1> (s, w3)
        p = Softmax <axis = -1> (l)
    }"""
    weights = {"w1": normal(4, 3, 3, 3), "b1": normal(4, seed=1), "w2": normal(4, 1, 3, 3, seed=2)}
    return model(text, w3=normal(5, 4, seed=3), axes=np.array([1, 2], np.int64), **weights)


def _external() -> ModelProto:
    text = """g (float[N, 12] x) => (float[N, 4] y) {
        a = MatMul (x, w1)
        n = LayerNormalization (a, s, b)
        r = Relu (n)
        y = Gemm (r, w2)
    }"""
    weights = {"w1": normal(12, 20), "s": normal(20, seed=1), "b": normal(20, seed=2), "w2": normal(20, 4, seed=3)}
    return model(text, **weights)


def _detector() -> ModelProto:
    text = """g (float[1, 3, 8, 8] x) => (float[1, 7, 16] y) {
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1)
        r = LeakyRelu <alpha = 0.1> (a)
        bx = Conv (r, w2)
        cl = Conv (r, w3)
        fb = Reshape (bx, four)
        fc = Reshape (cl, three)
        xy, wh = Split <axis = 1, num_outputs = 2> (fb)
        c = Add (xy, grid)
        e = Exp (wh)
        bb = Concat <axis = 1> (c, e)
        sc = Sigmoid (fc)
        y = Concat <axis = 1> (bb, sc)
    }"""
    sizes = {"four": np.array([1, 4, -1], np.int64), "three": np.array([1, 3, -1], np.int64)}
    weights = {"w1": normal(4, 3, 3, 3), "w2": normal(4, 4, 1, 1, seed=1) / 4, "w3": normal(3, 4, 1, 1, seed=2)}
    return model(text, grid=normal(1, 2, 16, seed=3), **sizes, **weights)


def _residual() -> ModelProto:
    """Opset 9, IR 3: initializers are inputs too; BatchNormalization, sums, dropout of that time."""
    text = """g (float[1, 2, 6, 6] x, float[3, 2, 3, 3] w1, float[3, 3, 3, 3] w2, float[3] s, float[3] b, float[3] m,
        float[3] v, float[3, 4] w3) => (float[1, 4] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
        n = BatchNormalization <epsilon = 0.001> (a, s, b, m, v)
        r = Relu (n)
        c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w2)
        k = Sum (c, r)
        q = Relu (k)
        p = GlobalMaxPool (q)
        f = Flatten (p)
        d = Dropout <ratio = 0.5> (f)
        g = MatMul (d, w3)
        y = Softmax (g)
    }"""
    weights = {"w1": normal(3, 2, 3, 3), "w2": normal(3, 3, 3, 3, seed=1), "w3": normal(3, 4, seed=2)}
    stats = {"s": normal(3, seed=3), "b": normal(3, seed=4), "m": normal(3, seed=5), "v": abs(normal(3, seed=6)) + 1}
    return model(text, 9, 3, **weights, **stats)


def _segmentation() -> ModelProto:
    text = """g (float[N, 2, 8, 8] x) => (float[N, 3, 8, 8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        r = Relu (a)
        p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
        c = Conv <pads = [1, 1, 1, 1]> (p, w2)
        q = PRelu (c, slope)
        u = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (q, , scales)
        t = ConvTranspose <strides = [2, 2]> (q, w4)
        k = Concat <axis = 1> (u, r, t)
        y = Conv (k, w3)
    }"""
    weights = {"w1": normal(4, 2, 3, 3), "w2": normal(4, 4, 3, 3, seed=1), "w3": normal(3, 12, 1, 1, seed=2)}
    scales = np.array([1, 1, 2, 2], np.float32)
    return model(text, scales=scales, slope=normal(4, 1, 1, seed=3), w4=normal(4, 4, 2, 2, seed=4), **weights)


def _attention() -> ModelProto:
    """Squeeze-and-excitation, hard-swish in parts, attention with shapes computed at run time."""
    text = """g (float[N, 3, 6, 6] x) => (float[N, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        a3 = Add (a, three)
        a6 = Clip (a3, zero, six)
        ah = Mul (a, a6)
        h = Div (ah, six)
        g1 = GlobalAveragePool (h)
        g2 = Conv (g1, w2)
        g3 = Sigmoid (g2)
        e = Mul (h, g3)
        sh = Shape (e)
        bc = Slice (sh, i0, i2)
        to = Concat <axis = 0> (bc, minus)
        fl = Reshape (e, to)
        tr = Transpose <perm = [0, 2, 1]> (fl)
        s = MatMul (tr, fl)
        at = Softmax <axis = -1> (s)
        o = MatMul (at, tr)
        me = ReduceMax <keepdims = 0> (o, one)
        y = Gemm (me, w3)
    }"""
    numbers = {n: np.array(v, np.float32) for n, v in (("zero", 0), ("three", 3), ("six", 6))}
    places = {n: np.array([v], np.int64) for n, v in (("i0", 0), ("i2", 2), ("minus", -1), ("one", 1))}
    weights = {"w1": normal(4, 3, 3, 3), "w2": normal(4, 4, 1, 1, seed=1), "w3": normal(4, 4, seed=2)}
    return model(text, **numbers, **places, **weights)


MODELS: dict[str, Callable[[], ModelProto]] = {
    "cnn": cnn,
    "if": _with_if,
    "functions": _with_functions,
    "quantised": _quantised,
    "channels_last": _channels_last,
    "external": _external,
    "detector": _detector,
    "residual": _residual,
    "segmentation": _segmentation,
    "attention": _attention,
}


def written(name: str, folder: Path) -> ModelProto:
    """The model as its file says it: weights that lie in another file are references, and that file is written."""
    built = MODELS[name]()
    if name == "external":
        convert_model_to_external_data(built, location=EXTERNAL, size_threshold=0)
        onnx.save(built, folder / "whole.onnx")
        return onnx.load(folder / "whole.onnx", load_external_data=False)
    return built


def feed(value: onnx.ValueInfoProto, rng: np.random.Generator) -> Array | None:
    """Random values for an input, open sizes 2; None for what has no tensor of reasonable size."""
    kind = value.type.tensor_type
    if not kind.elem_type:
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else 2 for d in kind.shape.dim]
    if any(s < 0 for s in sizes) or np.prod([float(s) for s in sizes]) > 100_000:
        return None
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if dtype.kind == "f":
        return rng.normal(size=sizes).astype(dtype)
    return rng.integers(0, 2, sizes).astype(dtype) if dtype.kind in "iub" else None

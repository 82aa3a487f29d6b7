"""Detectors' heads on a small trunk, [1, 3, 4, 4] to 16 anchors, in ONNX's text as the exporters write them."""

import re
from typing import Any

import numpy as np
import onnx

from tests.small import model, normal

GRID = np.stack(np.meshgrid(np.arange(4), np.arange(4)), 0).reshape(1, 2, 16).astype(np.float32)
LONG = {"anchors": GRID + 0.5, "strides": np.full((1, 16), 8, np.float32), "two": np.array(2, np.float32)}
WIDE = {name: np.ascontiguousarray(value.transpose(0, 2, 1)) for name, value in (("grid", GRID),)}
TO_LONG, TO_WIDE = np.array([1, -1, 16]), np.array([1, 16, -1])


def conv(name: str, source: str, channels: int, seed: int) -> tuple[str, dict[str, Any]]:
    return f"{name} = Conv ({source}, w{name})", {f"w{name}": normal(channels, 4, 1, 1, seed=seed)}


def trunk() -> tuple[str, dict[str, Any]]:
    return "c = Conv (x, wc) f = Relu (c)", {"wc": normal(4, 3, 1, 1)}


def head(outputs: str, *lines: Any, **weights: Any) -> onnx.ModelProto:
    """A trunk and these lines, text or (text, weights)."""
    text, given = [], dict(weights)
    for line in (trunk(), *lines):
        words, found = line if isinstance(line, tuple) else (line, {})
        text.append(words)
        given |= found
    known = {k: v for k, v in given.items() if re.search(rf"\b{k}\b", " ".join(text))}
    return model(f"g (float[1, 3, 4, 4] x) => ({outputs}) {{ {' '.join(text)} }}", **known)


SHAPES = {"l": TO_LONG, "s": TO_WIDE, "zero": np.array([0]), "h": np.array([2]), "e": np.array([4]), "a": np.array([1])}


def yolov8() -> onnx.ModelProto:
    """Distances to four sides, made centre and size, times strides; class scores behind Sigmoid; [N, 4 + C, A]."""
    return head(
        "float[1, 10, 16] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 6, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) d = Relu (bl) lt = Slice (d, zero, h, a) rb = Slice (d, h, e, a)",
        "p = Sub (anchors, lt) q = Add (anchors, rb) sum = Add (p, q) mid = Div (sum, two) wh = Sub (q, p)",
        "cw = Concat <axis = 1> (mid, wh) boxes = Mul (cw, strides) s1 = Sigmoid (kl)",
        "y = Concat <axis = 1> (boxes, s1)",
        **{**LONG, **SHAPES},
    )


def yolov10() -> onnx.ModelProto:
    """The same with corners, cut by Split, and channels last."""
    return head(
        "float[1, 16, 10] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 6, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) d = Relu (bl) lt, rb = Split <axis = 1, num_outputs = 2> (d)",
        "p = Sub (anchors, lt) q = Add (anchors, rb) cw = Concat <axis = 1> (p, q) boxes = Mul (cw, strides)",
        "s1 = Sigmoid (kl) z = Concat <axis = 1> (boxes, s1) y = Transpose <perm = [0, 2, 1]> (z)",
        **{**LONG, **SHAPES},
    )


def yolov5() -> onnx.ModelProto:
    """One convolution for all: Sigmoid, cut, decoded by grid and anchors, joined again; two scales; [N, A, 5 + C]."""

    def scale(n: str) -> str:
        return f"""t{n} = Transpose <perm = [0, 2, 3, 1]> (o{n}) r{n} = Reshape (t{n}, s) g{n} = Sigmoid (r{n})
            xy{n}, wh{n}, conf{n} = Split <axis = 2> (g{n}, parts) m{n} = Mul (xy{n}, two) u{n} = Add (m{n}, grid)
            v{n} = Mul (u{n}, stride) n{n} = Mul (wh{n}, two) q{n} = Pow (n{n}, two) z{n} = Mul (q{n}, sizes)
            y{n} = Concat <axis = 2> (v{n}, z{n}, conf{n})"""

    sizes = {"parts": np.array([2, 2, 4]), "sizes": normal(1, 16, 2), "stride": np.array(8, np.float32)}
    return head(
        "float[1, 32, 8] y",
        conv("o1", "f", 8, 1),
        conv("o2", "f", 8, 2),
        scale("1"),
        scale("2"),
        "y = Concat <axis = 1> (y1, y2)",
        **{**LONG, **WIDE, **SHAPES, **sizes},
    )


def yolox(decoded: bool, scored: bool = True) -> onnx.ModelProto:
    """Three branches, [4, 1, C], joined, moved behind, and perhaps decoded by a grid and Exp."""
    sigmoids = "os = Sigmoid (o) ks = Sigmoid (k)" if scored else "os = Identity (o) ks = Identity (k)"
    decode = """xy = Slice (t, zero, h, b2) wh = Slice (t, h, e, b2) rest = Slice (t, e, end, b2)
        u = Add (xy, grid) v = Mul (u, stride) n = Exp (wh) z = Mul (n, stride) y = Concat <axis = -1> (v, z, rest)"""
    return head(
        "float[1, 16, 8] y",
        conv("b", "f", 4, 1),
        conv("o", "f", 1, 2),
        conv("k", "f", 3, 3),
        f"{sigmoids} j = Concat <axis = 1> (b, os, ks) i = Reshape (j, l) t = Transpose <perm = [0, 2, 1]> (i)",
        decode if decoded else "y = Identity (t)",
        **{**WIDE, **SHAPES, "b2": np.array([2]), "end": np.array([2**62]), "stride": np.array(8, np.float32)},
    )


def end_to_end() -> onnx.ModelProto:
    """Six values for each of three boxes that TopK chose: corners, score, class number; [N, K, 6]."""
    return head(
        "float[1, 3, 6] y",
        conv("b", "f", 4, 1),
        conv("k", "f", 5, 2),
        "bl = Reshape (b, l) kl = Reshape (k, l) bt = Transpose <perm = [0, 2, 1]> (bl) p = Sub (centre, bt)",
        "g = Sigmoid (kl) best = ReduceMax <keepdims = 0> (g, a) v, i = TopK (best, three)",
        "i3 = Unsqueeze (i, b2) i4 = Expand (i3, wide) chosen = GatherElements <axis = 1> (p, i4)",
        "n = ArgMax <axis = 1, keepdims = 0> (g) ni = GatherElements <axis = 1> (n, i) nf = Cast <to = 1> (ni)",
        "v3 = Unsqueeze (v, b2) n3 = Unsqueeze (nf, b2) y = Concat <axis = 2> (chosen, v3, n3)",
        **{**SHAPES, "centre": normal(1, 16, 4), "b2": np.array([2]), "wide": np.array([1, 3, 4])},
        three=np.array([3]),
    )


DECODED = """xy, wh = Split <axis = 2, num_outputs = 2> (bt) u = Add (xy, grid) n = Exp (wh) m = Div (n, two)
    p = Sub (u, m) q = Add (u, m) box = Concat <axis = 2> (p, q)"""


def separate(outputs: str, *lines: str) -> onnx.ModelProto:
    """Class scores kt [1, 16, 3] and box values bt [1, 16, 4], as SSD, RetinaNet and DETR have them."""
    moved = """kr = Reshape (kc, l) kt = Transpose <perm = [0, 2, 1]> (kr)
        br = Reshape (bc, l) bt = Transpose <perm = [0, 2, 1]> (br)"""
    made = conv("kc", "f", 3, 1), conv("bc", "f", 4, 2)
    return head(outputs, *made, moved, *lines, **{**LONG, **WIDE, **SHAPES, "one": np.array([1])})

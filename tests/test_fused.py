"""Models that onnxruntime optimised and saved give the maps of their source."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import gbprewrite
from tests.small import Array, cnn, model, normal, run

METHODS = ("gradient", "guided", "deconvnet")

GELU = "d1 = Div (b, root2) e1 = Erf (d1) a1 = Add (e1, one) m1 = Mul (b, a1) g = Mul (m1, half)"
TANH_GELU = """p = Pow (b, three) q = Mul (p, cubic) r = Add (b, q) s = Mul (r, root) t = Tanh (s) u = Add (t, one)
    v = Mul (b, u) g = Mul (v, half)"""
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)"
TAIL = "p1 = GlobalAveragePool (g) f = Flatten (p1) y = Gemm <transB = 1> (f, w3, b3)"
# which fused operator it is about: the body that onnxruntime fuses, and whether guided finds a rectifier
SOURCES: dict[str, tuple[str, bool]] = {
    "FusedConv": (f"{CONV} g = Relu (c) {TAIL}", True),
    "FusedConv with a sum": (
        f"{CONV} r = Relu (c) d = Conv <pads = [1, 1, 1, 1]> (r, w2) a = Add (d, r) g = Relu (a) {TAIL}",
        True,
    ),
    "FusedConv with Clip": (f"{CONV} g = Clip (c, zero, six) {TAIL}", True),
    "FusedConv with LeakyRelu": (f"{CONV} g = LeakyRelu <alpha = 0.2> (c) {TAIL}", False),
    "FusedConv with HardSigmoid": (f"{CONV} g = HardSigmoid <alpha = 0.3, beta = 0.4> (c) {TAIL}", False),
    "FusedGemm": (
        f"{CONV} g = Relu (c) p1 = GlobalAveragePool (g) f = Flatten (p1) e = Gemm (f, w4, b1) y = Relu (e)",
        True,
    ),
    "BiasGelu": (
        f"""f = Reshape (x, rows) h = MatMul (f, w8) b = Add (h, b5) {GELU}
        p1 = ReduceMean <keepdims = 0> (g, axis1) y = MatMul (p1, w6)""",
        False,
    ),
    "QuickGelu": (
        "f = Flatten (x) b = MatMul (f, w5) s = Mul (b, quick) t = Sigmoid (s) g = Mul (b, t) y = MatMul (g, w6)",
        False,
    ),
    "FusedMatMul": (
        "f = Flatten (x) b = MatMul (f, w5) u = Mul (b, half) t = Transpose <perm = [1, 0]> (w7) y = MatMul (u, t)",
        False,
    ),
}  # fmt: skip
SCALARS = {
    "zero": 0, "one": 1, "three": 3, "six": 6, "half": 0.5, "root2": 2**0.5, "cubic": 0.044715, "quick": 1.702,
    "root": (2 / np.pi) ** 0.5,
}  # fmt: skip
SHAPES = {
    "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "w3": (5, 4), "b3": (5,), "w4": (4, 4), "w5": (192, 4),
    "b5": (4,), "w6": (4, 5), "w7": (5, 4), "w8": (64, 4),
}  # fmt: skip


def optimised(source: onnx.ModelProto, path: Path, level: str = "EXTENDED") -> onnx.ModelProto:
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # it warns that the file fits this machine only
    ort.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def source_of(name: str) -> onnx.ModelProto:
    body = SOURCES[name][0]
    used = set(re.findall(r"\w+", body))
    weights: dict[str, Array] = {n: np.float32(v) for n, v in SCALARS.items() if n in used}
    weights |= {n: normal(*shape, seed=i) for i, (n, shape) in enumerate(SHAPES.items()) if n in used}
    weights |= {n: np.array(v) for n, v in {"rows": [0, 3, 64], "axis1": [1]}.items() if n in used}
    return model(f"g (float[N, 3, 8, 8] x) => (float[N, M] y) {{ {body} }}", **weights)


@pytest.mark.parametrize("name", SOURCES)
def test_same_maps_as_the_source(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    fused = optimised(source, tmp_path / "fused.onnx")
    assert name.split()[0] in {n.op_type for n in fused.graph.node}, "onnxruntime did not fuse what the case is about"
    methods = METHODS if SOURCES[name][1] else ("gradient",)
    built = [gbprewrite.convert(m, methods, "seed") for m in (fused, source)]
    assert {n.domain for n in built[0].graph.node} == {""}
    x, seed = (
        normal(2, 3, 8, 8, seed=4),
        normal(2, built[1].graph.output[0].type.tensor_type.shape.dim[1].dim_value or 5),
    )
    if name == "FusedGemm":
        seed = normal(2, 4)
    found, expected = (run(m, x=x, seed=seed) for m in built)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5)


def test_layout_blocked_graphs_are_refused(tmp_path: Path) -> None:
    blocked = optimised(cnn(), tmp_path / "blocked.onnx", "ALL")
    if not any(n.domain == "com.microsoft.nchwc" for n in blocked.graph.node):
        pytest.skip("onnxruntime blocks no layout on this processor")
    with pytest.raises(gbprewrite.ModelError, match=r"blocked layout.*source model.*ORT_ENABLE_EXTENDED"):
        gbprewrite.convert(blocked)

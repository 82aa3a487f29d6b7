"""Every operator rule against finite differences in float64, static and symbolic, and again in onnxruntime.

The numerical Jacobian knows nothing of our rules: it is made by ONNX's own reference evaluator from the source model.
"""

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import gbprewrite
from gbprewrite.checks.reference import evaluate, evaluator
from tests.cases import CASES, Array, Case, Constant
from tests.small import model, normal

STEP = 1e-5  # a central difference in float64 then errs by about 1e-10
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
}


def is_input(operand: Any) -> bool:
    return isinstance(operand, np.ndarray) and operand.dtype == np.float64


def build(case: Case, dtype: Any, symbolic: bool = False) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node, and what to feed it."""
    inputs, initializers, names, feeds = [], [], [], {}
    for i, operand in enumerate(case.operands):
        names.append(f"x{i}" if operand is not None else "")
        if is_input(operand):
            known = not symbolic or (i > 0 and "Conv" in case.operator)  # a kernel's size is always known
            shape = operand.shape if known else [f"d{i}_{axis}" for axis in range(operand.ndim)]
            inputs.append(helper.make_tensor_value_info(names[-1], KINDS[np.dtype(dtype)], shape))
            feeds[names[-1]] = operand.astype(dtype)
        elif operand is not None:
            array = operand.value if isinstance(operand, Constant) else operand
            if array.dtype == np.float64:  # Resize's scales are float32 in any model
                array = array.astype(dtype)
            initializers.append(numpy_helper.from_array(array, names[-1]))
    attributes = dict(case.attributes)
    if case.operator == "Cast":
        attributes["to"] = KINDS[np.dtype(dtype)]
    outputs = [f"y{i}" for i in range(case.outputs)]
    nodes = [helper.make_node(case.operator, names, outputs, "node", **attributes)]
    if case.outputs > 1:  # one score of several outputs, each with a weight of its own
        nodes += [helper.make_node("Mul", [y, y], [f"{y}_squared"]) for y in outputs]
        nodes += [helper.make_node("Concat", [f"{y}_squared" for y in outputs], ["y"], axis=attributes.get("axis", 0))]
    else:
        nodes[0].output[0] = "y"
        nodes[0].output.extend(["indices"] if case.operator == "TopK" else [])
    result = [helper.make_tensor_value_info("y", KINDS[np.dtype(dtype)], None)]
    graph = helper.make_graph(nodes, "case", inputs, result, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, data_prop=True), feeds


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def numerical(model: onnx.ModelProto, feeds: dict[str, Array], seed: Array) -> dict[str, Array]:
    """Jᵀ·seed, one central difference for each element of each input."""
    forward = evaluator(model)
    found = {}
    for name, value in feeds.items():
        slopes = np.zeros(value.size)
        for i in range(value.size):
            step = np.zeros(value.size)
            step[i] = STEP
            step = step.reshape(value.shape)
            (above,) = forward.run(None, {**feeds, name: value + step})
            (below,) = forward.run(None, {**feeds, name: value - step})
            slopes[i] = np.sum((above - below) * seed) / (2 * STEP)
        found[name] = slopes.reshape(value.shape)
    return found


def relative_l2(a: Array, b: Array) -> float:
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1))


_truth: dict[str, tuple[Array, dict[str, Array]]] = {}


def truth(case: Case) -> tuple[Array, dict[str, Array]]:
    """A seed, and the numerical cotangents it gives; computed once for each case."""
    if case.name not in _truth:
        model, feeds = build(case, np.float64)
        y = evaluate(model, feeds)["y"]
        seed = np.random.default_rng(1).normal(size=y.shape)
        _truth[case.name] = seed, numerical(model, feeds, seed)
    return _truth[case.name]


def takes_float64(case: Case) -> bool:
    """Whether the standard has the operator in float64 (Celu is float32 only)."""
    constraints = onnx.defs.get_schema(case.operator, case.opset).type_constraints
    return any("tensor(double)" in c.allowed_type_strs for c in constraints)


def convert(case: Case, dtype: Any, symbolic: bool) -> tuple[onnx.ModelProto, dict[str, Array]]:
    model, feeds = build(case, dtype, symbolic)
    return gbprewrite.convert(model, "gradient", "seed", through_softmax=True), feeds


@pytest.mark.parametrize("symbolic", [False, True], ids=["static", "symbolic"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_rule(case: Case, symbolic: bool) -> None:
    if symbolic and case.static:
        with pytest.raises(gbprewrite.UnsupportedOperators):
            convert(case, np.float64, symbolic)
        return
    seed, expected = truth(case)
    if takes_float64(case):
        model, feeds = convert(case, np.float64, symbolic)
        found = evaluate(model, {**feeds, "seed": seed})
        for name, cotangent in expected.items():
            assert relative_l2(found[f"{name}_gradient"], cotangent) < 1e-6, name

    model, feeds = convert(case, np.float32, symbolic)
    found = run(model, {**feeds, "seed": seed.astype(np.float32)})
    for name, cotangent in expected.items():
        assert relative_l2(found[f"{name}_gradient"], cotangent) < 2e-5, name


def test_a_stft_that_is_onesided_by_default() -> None:
    """ONNX's inference (1.23) takes it for a whole one, unless the attribute is written: 16 frequencies and not 9."""
    text = "g (float[1, 32, 1] x) => (float[1, 3, 9, 2] y) { y = STFT (x, step, , size) }"
    source = model(text, 17, step=np.array(8), size=np.array(16))
    x, dy = normal(1, 32, 1), normal(1, 3, 9, 2, seed=1)
    found = evaluate(
        gbprewrite.convert(source, "gradient", "seed"), {"x": x, "seed": dy}
    )  # onnxruntime infers likewise
    angles = 2 * np.pi * np.outer(np.arange(9), np.arange(16)) / 16
    expected = np.zeros(32)
    for frame, (real, imaginary) in enumerate(zip(dy[0, ..., 0], dy[0, ..., 1], strict=True)):
        expected[8 * frame : 8 * frame + 16] += real @ np.cos(angles) - imaginary @ np.sin(angles)
    np.testing.assert_allclose(found["x_gradient"].ravel(), expected, rtol=1e-4, atol=1e-4)

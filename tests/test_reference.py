"""The corrected reference operators against onnxruntime, which shares no code with them."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from gbprewrite.checks.reference import CORRECTIONS, evaluate, in_float64
from tests.cases import distinct, ints, normal

CASES: list[tuple[str, int, list[Any], dict[str, Any]]] = [
    ("Conv", 18, [normal(2, 4, 9, 8), normal(6, 2, 3, 2), normal(6)], {"group": 2, "pads": [1, 0, 2, 1]}),
    ("Conv", 18, [normal(1, 2, 9), normal(3, 2, 3)], {"dilations": [2], "pads": [1, 1]}),
    ("Conv", 18, [normal(1, 2, 5, 4, 6), normal(3, 2, 2, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 1, 3]}),
    ("ConvTranspose", 18, [normal(2, 4, 3, 4), normal(4, 3, 3, 2), normal(6)], {"group": 2, "strides": [2, 3]}),
    ("ConvTranspose", 18, [normal(1, 4, 3, 4), normal(4, 1, 3, 3)], {"group": 4, "pads": [1, 0, 1, 1]}),
    ("ConvTranspose", 18, [normal(1, 2, 3, 4), normal(2, 3, 3, 3)], {"dilations": [1, 2], "strides": [2, 1]}),
    ("ConvTranspose", 18, [normal(1, 2, 3, 4), normal(2, 3, 3, 3)], {"output_padding": [1, 0], "strides": [2, 2]}),
    ("ConvTranspose", 18, [normal(1, 2, 3, 4), normal(2, 3, 3, 3)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("ConvTranspose", 18, [normal(1, 2, 3, 4), normal(2, 3, 3, 3)], {"output_shape": [7, 8], "strides": [2, 2]}),
    ("MaxPool", 18, [distinct(2, 2, 7, 8)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", 18, [distinct(1, 2, 6, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", 18, [distinct(1, 2, 6, 7)], {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", 18, [distinct(1, 2, 9, 8)], {"kernel_shape": [2, 3], "dilations": [2, 2], "storage_order": 1}),
    ("MaxPool", 18, [np.zeros((1, 2, 5, 5))], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", 18, [distinct(1, 2, 4, 5, 4)], {"kernel_shape": [2, 2, 2]}),
    ("GlobalMaxPool", 18, [normal(2, 3, 5)], {}),
    ("GlobalMaxPool", 18, [normal(1, 2, 2, 3, 4)], {}),
    ("GlobalLpPool", 18, [normal(2, 3, 4, 5)], {"p": 3}),
    ("HardSigmoid", 18, [normal(2, 3, 4)], {"alpha": 0.3}),
    ("LRN", 18, [normal(2, 7, 3, 2)], {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
    ("LpNormalization", 18, [normal(2, 3, 4)], {"p": 1, "axis": 1}),
    ("LpNormalization", 18, [normal(2, 3, 4)], {"p": 2}),
    ("Erf", 18, [normal(2, 3, 4)], {}),
    ("Gelu", 20, [normal(2, 3, 4)], {}),
    ("Gelu", 20, [normal(2, 3, 4)], {"approximate": "tanh"}),
    ("AffineGrid", 20, [normal(2, 2, 3), ints(2, 1, 3, 4)], {}),
    ("AffineGrid", 20, [normal(2, 3, 4), ints(2, 1, 3, 4, 2)], {"align_corners": 1}),
    ("GatherElements", 18, [normal(3, 4), ints([1, 0], [2, -1])], {"axis": 0}),
    ("GroupNormalization", 21, [normal(2, 4, 3, 2), normal(4), normal(4)], {"num_groups": 2, "epsilon": 0.01}),
    ("GridSample", 16, [normal(2, 3, 4, 5), 0.6 * normal(2, 3, 3, 2)], {"align_corners": 1}),
    ("GridSample", 20, [normal(2, 3, 4, 5), 0.6 * normal(2, 3, 3, 2)], {"mode": "cubic", "padding_mode": "reflection"}),
    (
        *("DeformConv", 19, [normal(2, 4, 5, 6), normal(2, 2, 3, 2), normal(2, 24, 3, 5)]),
        {"group": 2, "offset_group": 2},
    ),
    (
        *("DeformConv", 19),
        [normal(1, 2, 5, 6), normal(2, 2, 3, 2), normal(1, 12, 3, 3), normal(2), normal(1, 6, 3, 3)],
        {"strides": [2, 2], "pads": [1, 0, 1, 1], "dilations": [1, 1]},
    ),
    (
        *("MaxRoiPool", 18),
        [distinct(2, 2, 6, 7), np.array([[1, 0.6, 1.5, 9.1, 7], [0, 3, 2, 3, 2], [1, 9, 1, 12, 4]])],
        {"pooled_shape": (2, 3), "spatial_scale": 0.6},
    ),
    ("Pad", 18, [normal(2, 3, 5), ints(0, -1, 1, 0, 2, -2)], {}),
    ("Pad", 18, [normal(2, 3, 5), ints(1, 2), None, ints(2)], {"mode": "reflect"}),
    *[(name, opset, [normal(2, 3, 4)], axis) for name in ("Softmax", "LogSoftmax") for opset, axis in
      ((18, {}), (18, {"axis": 1}), (11, {}), (11, {"axis": 2}), (7, {"axis": 0}))],
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[f"{c[0]}-{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_correction(case: Any) -> None:
    name, opset, operands, attributes = case
    names = ["" if v is None else f"x{i}" for i, v in enumerate(operands)]
    floats = {n: v.astype(np.float32) for n, v in zip(names, operands, strict=True) if n and v.dtype == np.float64}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in floats.items()]
    weights = [numpy_helper.from_array(v, n) for n, v in zip(names, operands, strict=True) if n and n not in floats]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if name == "MaxPool":
        outputs.append(helper.make_tensor_value_info("indices", TensorProto.INT64, None))
    node = helper.make_node(name, names, [o.name for o in outputs], **attributes)
    graph = helper.make_graph([node], "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, floats)
    found = list(evaluate(in_float64(model), {n: v.astype(np.float64) for n, v in floats.items()}).values())
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_every_correction_is_tested() -> None:
    assert {c.__name__ for c in CORRECTIONS} == {c[0] for c in CASES}

"""Quantised networks against an independent straight-through estimator in PyTorch.

A level that rounds the other way changes a gradient a great deal, so the oracle differentiates at the very levels that
onnxruntime found: then all that is left is the rules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch: pip install -e '.[proof]'")

import gbprewrite  # noqa: E402
from tests.oracle.quantised_oracle import QuantisedOracle  # noqa: E402
from tests.oracle.torch_oracle import METHODS, relative_l2  # noqa: E402
from tests.proof.files import LIMIT, one_thread, run  # noqa: E402, F401
from tests.proof.shared_models import MODELS, SHARED, needs_shared  # noqa: E402
from tests.test_quantised import cosine, mobilenet_input, without_quantisation  # noqa: E402

pytestmark = needs_shared
PHOTOS = ("coffee", "chelsea")


def saved_by_onnxruntime(path: Path, to: Path) -> onnx.ModelProto:
    """The file as onnxruntime writes it when it has optimised it: QLinearConv, QLinearAdd, QGemm."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(to)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(to)


def inner_values(model: onnx.ModelProto, feeds: dict, names: set[str]) -> dict[str, np.ndarray]:
    """Values that the model computes, levels as floats."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    made = [name for n in model.graph.node for name in n.output if name in names]
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    return {name: value.astype(np.float32) for name, value in run(watched, feeds, optimised=False).items()}


@pytest.fixture(scope="module", params=["QDQ", "QOperator"])
def network(request, tmp_path_factory):
    """(model, the oracle of it): the file as it is, and the same network in onnxruntime's own operators."""
    path = MODELS / "mobilenetv2_qdq.onnx"
    qdq = onnx.load(path)
    if request.param == "QDQ":
        return qdq, QuantisedOracle(qdq)
    return saved_by_onnxruntime(path, tmp_path_factory.mktemp("saved") / "q.onnx"), QuantisedOracle(qdq)


@pytest.mark.parametrize("photo", PHOTOS)
def test_maps_are_the_straight_through_estimator(network, photo):
    source, oracle = network
    feeds = {"image": mobilenet_input(SHARED / "photos" / f"{photo}.png")}
    found = run(gbprewrite.convert(source, METHODS), feeds, optimised=False)
    at = inner_values(source, feeds, {n.proto.output[0] for n in oracle.varying})
    for method in METHODS:
        exact = oracle.explain(feeds, oracle.outputs[0], method, at=at)
        assert exact.index.tolist() == found["explained_index"].tolist()
        assert relative_l2(found[f"image_{method}"], exact.maps["image"]) <= LIMIT, method


@pytest.mark.parametrize("photo", PHOTOS)
def test_the_gap_to_the_float_twin_is_the_relus_that_quantisation_flips(photo):
    """With the masks of the float twin the quantised network has the twin's gradient; with its own, 0.6 to 0.7.

    So the plain gradient of the two differs because 2 % of the ReLUs see another sign, not because of a rule.
    """
    source = onnx.load(MODELS / "mobilenetv2_qdq.onnx")
    oracle, twin = QuantisedOracle(source), QuantisedOracle(without_quantisation(source))
    feeds = {"image": mobilenet_input(SHARED / "photos" / f"{photo}.png")}
    (score,) = oracle.outputs
    cotangent = np.eye(1000)[[run(source, feeds)[score].argmax()]]
    floats = {n.proto.output[0] for n in twin.varying} & {n.proto.output[0] for n in oracle.varying}
    with torch.no_grad():
        values = {name: value.numpy() for name, value in twin.forward(feeds).items() if name in floats}
    expected = twin.explain(feeds, score, cotangent=cotangent).maps["image"].numpy()
    own = oracle.explain(feeds, score, cotangent=cotangent).maps["image"].numpy()
    with_twins_masks = oracle.explain(feeds, score, cotangent=cotangent, at=values).maps["image"].numpy()
    assert 0.55 < cosine(own, expected) < 0.75
    assert cosine(with_twins_masks, expected) > 0.9999

"""Bound inputs and outputs give what a plain run gives, and results stay as they are; CUDA graphs on CUDA."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import gbprewrite
from gbprewrite.errors import UsageError
from gbprewrite.runtime import binding, session
from gbprewrite.runtime.session import Session
from tests.small import Array, cnn, normal

WITH_CUDA = "CUDAExecutionProvider" in ort.get_available_providers()
needs_cuda = pytest.mark.skipif(not WITH_CUDA, reason="this onnxruntime is built without CUDA")
NAMES = ["probabilities", "image_guided"]


def inference() -> Any:
    built = gbprewrite.convert(cnn(), "guided")
    return ort.InferenceSession(built.SerializeToString(), providers=["CPUExecutionProvider"])


def plain(ran: Any, image: Array) -> dict[str, Array]:
    return dict(zip(NAMES, ran.run(NAMES, {"image": image}), strict=True))


def test_bound_runs_are_plain_runs_of_any_shape() -> None:
    ran = inference()
    bound = binding.Bindings(ort, ran, "cpu", graphs=False)
    for seed, batch in enumerate([1, 3, 1, 2, 4, 5, 6, 3, 1]):  # more shapes than are kept, and back again
        image = normal(batch, 3, 12, 12, seed=seed)
        found, wanted = bound.run({"image": image}, NAMES), plain(ran, image)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value)
    assert len(bound._known) == binding.KEPT


def test_a_result_stays_as_it_is_when_the_buffers_are_used_again() -> None:
    ran = inference()
    bound = binding.Bindings(ort, ran, "cpu", graphs=False)
    image = normal(2, 3, 12, 12)
    first = bound.run({"image": image}, NAMES)
    kept = {name: value.copy() for name, value in first.items()}
    second = bound.run({"image": -image}, NAMES)
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)
        assert not np.array_equal(second[name], value)


def test_what_is_fed_stays_as_it_is() -> None:
    bound = binding.Bindings(ort, inference(), "cpu", graphs=False)
    image = normal(2, 3, 12, 12)
    kept = image.copy()
    bound.run({"image": image}, NAMES)
    bound.run({"image": -kept}, NAMES)
    np.testing.assert_array_equal(image, kept)


def test_threads_get_their_own_results() -> None:
    ran = inference()
    bound = binding.Bindings(ort, ran, "cpu", graphs=False)
    images = [normal(2, 3, 12, 12, seed=seed) for seed in range(2)]
    wanted = [plain(ran, image)["image_guided"] for image in images]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda i: bound.run({"image": images[i % 2]}, NAMES)["image_guided"], range(2000))
        for i, value in enumerate(found):
            np.testing.assert_array_equal(value, wanted[i % 2])


def test_arrays_of_any_layout_are_bound() -> None:
    ran = inference()
    image = np.asfortranarray(normal(2, 3, 12, 12)[::-1])
    found = binding.Bindings(ort, ran, "cpu", graphs=False).run({"image": image}, NAMES)
    np.testing.assert_array_equal(found["image_guided"], plain(ran, np.ascontiguousarray(image))["image_guided"])


def test_a_cuda_graph_on_the_cpu_is_an_error() -> None:
    with pytest.raises(UsageError, match="a CUDA graph was asked for, and the session runs on the CPU"):
        gbprewrite.Explainer(cnn(), providers="cpu", cuda_graph=True)


def test_onnxruntime_may_not_repeat_a_failed_run_on_the_cpu() -> None:
    assert not Session(cnn(), "cpu").session._enable_fallback


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_what_cuda_is_told(cuda_graph: bool, tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Fake:
        def get_providers(self) -> list[str]:
            return [session.CUDA, session.CPU]

        def disable_fallback(self) -> None:
            told.append("no fallback")

    def opened(_ort: Any, _model: Any, _options: Any, providers: Any) -> Any:
        told.append(providers)
        return Fake()

    monkeypatch.setattr(ort, "get_available_providers", lambda: [session.CUDA, session.CPU])
    monkeypatch.setattr(session, "_open", opened)
    assert Session(cnn(), "cuda", tf32=tf32, cuda_graph=cuda_graph).provider == "cuda"
    options = {"use_tf32": int(tf32), "enable_cuda_graph": int(cuda_graph)}
    assert told == [[(session.CUDA, options), session.CPU], "no fallback"]


def test_each_set_of_shapes_has_a_graph_of_its_own_and_the_first_run_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[Any] = []
    monkeypatch.setattr(binding, "_options", lambda _ort, graph: numbers.append(graph))
    bound = binding.Bindings(ort, inference(), "cpu", graphs=True)
    for batch in (1, 2, 1):
        bound.run({"image": normal(batch, 3, 12, 12)}, NAMES)
    assert numbers == [1, binding.NO_GRAPH, 2, binding.NO_GRAPH]


@needs_cuda
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_maps_on_cuda_are_those_of_the_cpu(cuda_graph: bool) -> None:
    try:
        explainer = gbprewrite.Explainer(cnn(), "guided", providers="cuda", tf32=False, cuda_graph=cuda_graph)
    except gbprewrite.RuntimeUnavailable as error:
        pytest.skip(str(error))
    reference = gbprewrite.Explainer(cnn(), "guided", providers="cpu")
    for batch in (1, 4, 1):
        image = normal(batch, 3, 12, 12, seed=batch)
        found, wanted = explainer(image).map(), reference(image).map()
        assert np.linalg.norm(found - wanted) <= 1e-3 * np.linalg.norm(wanted)

"""Sessions, arrays and the Explainer: where it runs, what it takes, what it gives, what it refuses."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import gbprewrite
from gbprewrite import DataError, Explainer, ModelError, OutputError, RuntimeUnavailable, UsageError
from gbprewrite.model import file as modelfile
from gbprewrite.pictures import layout
from gbprewrite.runtime import arrayfiles, arrays
from gbprewrite.runtime import session as sessions
from gbprewrite.runtime.session import CPU, CUDA, Session
from tests.small import cnn, model, normal, run

X = normal(5, 3, 12, 12, seed=9)


def fixed(batch: int) -> onnx.ModelProto:
    """The small CNN exported with a fixed batch."""
    static = cnn()
    for value in (*static.graph.input, *static.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return static


def two_inputs() -> onnx.ModelProto:
    text = """two (float[N, 3] a, float[N, 3] b) => (float[N, 3] y) {
        s = Add (a, b)
        r = Relu (s)
        y = Mul (r, a)
    }"""
    return model(text)


class TestProvider:
    def test_cpu_is_named(self) -> None:
        assert Explainer(cnn(), providers="cpu").provider == "cpu"

    @pytest.mark.parametrize("provider", ["tpu", ["cpu"], None, ("CPUExecutionProvider",)])
    def test_unknown(self, provider: Any) -> None:
        with pytest.raises(UsageError, match="auto, cuda, cpu"):
            Explainer(cnn(), providers=provider)

    def test_cuda_that_is_not_built_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
        with pytest.raises(RuntimeUnavailable, match=r"built without CUDA.*gbprewrite\[gpu\]"):
            Session(cnn(), "cuda")

    @pytest.fixture
    def fallen_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """onnxruntime-gpu on a machine without CUDA: lists it, says why it failed, and runs on the CPU."""

        def preload() -> None:
            print("Failed to load libcublas.so.13: no such file")

        class OnTheCpu(onnxruntime.InferenceSession):  # type: ignore[misc]
            def __init__(self, *args: Any, providers: Any, **kwargs: Any) -> None:
                super().__init__(*args, providers=[CPU], **kwargs)

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        monkeypatch.setattr(onnxruntime, "InferenceSession", OnTheCpu)

    @pytest.mark.usefixtures("fallen_back")
    def test_cuda_that_does_not_load_is_an_error(self) -> None:
        with pytest.raises(RuntimeUnavailable, match=r"CUDA did not load.*libcublas.*nvidia-smi"):
            Session(cnn(), "cuda")

    @pytest.mark.usefixtures("fallen_back")
    def test_auto_goes_on_and_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        session = Session(cnn(), "auto")
        assert (session.provider, "libcublas" in session.note) == ("cpu", True)
        assert capsys.readouterr().out == ""  # onnxruntime's own words would spoil --json

    def test_without_onnxruntime(self) -> None:
        """In a process of its own: importing and converting need no runtime, maps ask for one."""
        code = """
            import sys
            sys.modules["onnxruntime"] = None
            import gbprewrite
            from onnx.parser import parse_model
            text = 'g (float[N, 2] x) => (float[N, 2] y) { r = Relu (x)  y = Mul (r, x) }'
            made = gbprewrite.convert(parse_model('<ir_version: 8, opset_import: ["" : 18]> ' + text))
            try:
                gbprewrite.Explainer(made)
            except gbprewrite.RuntimeUnavailable as error:
                print(error)
        """
        lines = [line.removeprefix(" " * 12) for line in code.splitlines()]
        done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
        assert "gbprewrite[gpu]" in done.stdout
        assert "gbprewrite[cpu]" in done.stdout


class TestSession:
    def test_model_that_onnxruntime_refuses(self) -> None:
        refused = cnn()
        refused.ir_version = 99
        with pytest.raises(ModelError, match="can't load the model"):
            Session(refused, "cpu")

    def test_larger_than_a_message(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weights = normal(20, 20)
        linear = model("g (float[N, 20] x) => (float[N, 20] y) { y = MatMul (x, w) }", w=weights)
        monkeypatch.setattr(modelfile, "PROTOBUF_LIMIT", 100)
        for _ in range(2):  # the model is left as it was
            np.testing.assert_array_equal(Session(linear, "cpu").run({"x": np.eye(20, dtype=np.float32)})["y"], weights)

    def test_run_that_stops(self) -> None:
        with pytest.raises(DataError, match=r"image \(1, 3, 5\)"):
            Session(cnn(), "cpu").run({"image": X[:1, :, 0, :5]})

    def test_first_line(self) -> None:
        assert sessions.first_line(ValueError()) == "ValueError"


SLOT = arrays.Slot("x", np.dtype(np.float32), ("N", 3))
IDS = arrays.Slot("ids", np.dtype(np.int32), ("N",))
HALF = arrays.Slot("h", np.dtype(np.float16), ("N",))


class TestArrays:
    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int64, np.bool_])
    def test_harmless_casts(self, dtype: Any) -> None:
        made = arrays.fit({"x": np.ones((2, 3), dtype)}, [SLOT])["x"]
        np.testing.assert_array_equal(made, np.ones((2, 3), np.float32), strict=True)

    def test_lists_are_arrays(self) -> None:
        assert arrays.fit({"x": [[1, 2, 3]]}, [SLOT])["x"].dtype == np.float32

    def test_infinity_stays(self) -> None:
        assert np.isposinf(arrays.fit({"x": np.full((1, 3), np.inf)}, [SLOT])["x"]).all()

    @pytest.mark.parametrize(
        ("given", "slots", "error", "words"),
        [
            ({"x": np.ones((2, 3), complex)}, [SLOT], DataError, "complex128, and the model takes x (float32, [N, 3])"),
            ({"x": np.full((2, 3), 1e300)}, [SLOT], DataError, "do not fit into float32"),
            ({"h": np.full(2, 1e6, np.float32)}, [HALF], DataError, "do not fit into float16"),
            ({"ids": np.array([1 << 40])}, [IDS], DataError, "do not fit into int32"),
            ({"ids": np.array([1.5])}, [IDS], DataError, "Cast it first"),
            ({"x": [["a", "b", "c"]]}, [SLOT], DataError, "Cast it first"),
            ({"x": [[1, 2, 3], [4]]}, [SLOT], DataError, "rows differ in length"),
            ({"x": 5}, [SLOT], DataError, "shape []"),
            ({"x": np.ones(3)}, [SLOT], DataError, "Give it a batch axis: x[None]"),
            ({"x": np.ones((1, 1, 1, 3))}, [SLOT], DataError, "shape [1, 1, 1, 3], and the model takes x"),
            ({"x": np.ones((2, 4))}, [SLOT], DataError, "axis 1 must be 3"),
            ({"x": np.ones((0, 3))}, [SLOT], DataError, "axis 0 is empty"),
            ({"x": np.ones((2, 3)), "ids": [1]}, [SLOT, IDS], DataError, "N is 2 in input x, and 1 here"),
            ({"z": np.ones((2, 3))}, [SLOT], UsageError, "unknown: z, missing: x"),
        ],
    )
    def test_refused(self, given: Any, slots: Any, error: Any, words: str) -> None:
        with pytest.raises(error) as raised:
            arrays.fit(given, slots)
        assert words in str(raised.value)

    def test_inputs_that_cannot_be_cut_alike(self) -> None:
        slots = [arrays.Slot("a", SLOT.dtype, (2, 3)), arrays.Slot("b", SLOT.dtype, (1, 3))]
        given = {"a": np.ones((4, 3)), "b": np.ones((1, 3))}
        with pytest.raises(DataError, match="can't be cut into the batches"):
            arrays.batch_size(arrays.fit(given, slots), slots)

    def test_output_without_batch(self) -> None:
        with pytest.raises(DataError, match="has no batch axis of 2"):
            arrays.join([{"y": np.ones(3)}], 2, 2)


class TestExplainer:
    def test_what_it_gives(self) -> None:
        found = Explainer(cnn(), ["guided", "gradient"], providers="cpu")(X)
        direct = run(gbprewrite.convert(cnn(), ["guided", "gradient"]), image=X)
        assert list(found.maps) == ["image_guided", "image_gradient"]
        for name in found.maps:
            np.testing.assert_array_equal(found.maps[name], direct[name], strict=True)
        np.testing.assert_array_equal(found.outputs["probabilities"], run(cnn(), image=X)["probabilities"])
        np.testing.assert_array_equal(found.index, found.outputs["probabilities"].argmax(1), strict=True)
        assert found.map("guided") is found.maps["image_guided"]

    def test_ambiguous_map(self) -> None:
        found = Explainer(cnn(), ["guided", "gradient"], providers="cpu")(X)
        with pytest.raises(UsageError, match="guided of image, gradient of image"):
            found.map()

    @pytest.mark.parametrize("batch", [1, 2, 5])
    @pytest.mark.parametrize("target", ["argmax", "topk:2", "input"])
    def test_fixed_batch_takes_any_number(self, batch: int, target: str) -> None:
        targets = {"targets": [0, 1, 2, 3, 4]} if target == "input" else {}
        free = Explainer(cnn(), target=target, providers="cpu")(X, **targets)
        cut = Explainer(fixed(batch), target=target, providers="cpu")(X, **targets)
        np.testing.assert_array_equal(cut.index, free.index, strict=True)
        np.testing.assert_allclose(cut.map(), free.map(), rtol=1e-5, atol=1e-8, strict=True)
        # A product with one row and one with five are rounded differently, and Softmax magnifies it.
        np.testing.assert_allclose(cut.outputs["probabilities"], free.outputs["probabilities"], rtol=1e-5, strict=True)

    def test_fewer_than_the_fixed_batch(self) -> None:
        np.testing.assert_allclose(
            Explainer(fixed(4), providers="cpu")(X[:3]).map(),
            Explainer(cnn(), providers="cpu")(X[:3]).map(),
            rtol=1e-5,
            atol=1e-8,
        )

    def test_one_target_for_all(self) -> None:
        explainer = Explainer(cnn(), target="input", providers="cpu")
        np.testing.assert_array_equal(explainer(X, targets=3).map(), explainer(X, targets=[3] * 5).map())

    @pytest.mark.parametrize("targets", [[0, 1, 5, 0, -1], [0, 1, 1000, 0, 1000]])
    def test_target_out_of_range(self, targets: list[int]) -> None:
        with pytest.raises(DataError) as raised:
            Explainer(cnn(), target="input", providers="cpu")(X, targets=targets)
        assert f"sample 2 (target {targets[2]}), 4 (target {targets[4]})" in str(raised.value)

    def test_target_out_of_range_of_a_score_of_another_batch(self) -> None:
        """Two rows of six, four scores; the maps of all samples are NaN then."""
        explainer = Explainer(cnn(), "gradient", "input", providers="cpu")
        for targets in ([7], [0, 1, 7, 1]):
            with pytest.raises(DataError, match=rf"'logits' \(targets {', '.join(map(str, targets))}\)"):
                explainer._check_targets(
                    {"image": X[:2], "target": np.array(targets)}, {"image_gradient": np.full_like(X[:2], np.nan)}
                )

    def test_nan_that_came_in_is_no_bad_target(self) -> None:
        square = Explainer(model("g (float[N, 1] x) => (float[N, 1] y) { y = Mul (x, x) }"), "gradient", "input")
        with pytest.warns(gbprewrite.NotFinite, match="the input 'x' is not finite"):
            found = square(np.array([[3], [np.nan]]), targets=0)
        np.testing.assert_array_equal(found.map(), [[6], [np.nan]])

    def test_seed(self) -> None:
        seed = np.eye(5)
        found = Explainer(cnn(), "gradient", "seed", providers="cpu")(X, seed=seed)
        by_target = Explainer(cnn(), "gradient", "input", providers="cpu")(X, targets=np.arange(5))
        assert found.index is None
        np.testing.assert_array_equal(found.map(), by_target.map())

    def test_several_inputs(self) -> None:
        a, b = normal(4, 3, seed=1), normal(4, 3, seed=2)
        found = Explainer(two_inputs(), "gradient", 0, providers="cpu")({"a": a, "b": b})
        expected = np.zeros((4, 3), np.float32)
        expected[:, 0] = ((a + b > 0) * a)[:, 0]  # d(a·relu(a + b))/db of class 0
        np.testing.assert_allclose(found.map(input="b"), expected, rtol=1e-6)
        np.testing.assert_array_equal(found.map(input="a"), found.maps["a_gradient"])

    @pytest.mark.parametrize(
        ("target", "keywords", "words"),
        [
            ("argmax", {"targets": 1}, "targets= was given"),
            ("argmax", {"seed": 1}, "seed= was given"),
            ("input", {}, "give it as well (targets="),
            ("seed", {}, "give it as well (seed="),
        ],
    )
    def test_run_time_inputs_that_do_not_fit(self, target: str, keywords: Any, words: str) -> None:
        with pytest.raises(UsageError) as raised:
            Explainer(cnn(), target=target, providers="cpu")(X, **keywords)
        assert words in str(raised.value)

    def test_array_for_several_inputs(self) -> None:
        with pytest.raises(UsageError, match="takes 2 inputs"):
            Explainer(two_inputs(), providers="cpu")(X)


class TestConvertedFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        modelfile.save(gbprewrite.convert(cnn(), ["guided", "gradient"], 2), tmp_path / "converted.onnx")
        return tmp_path / "converted.onnx"

    def test_defaults_are_the_file_s(self, path: Path) -> None:
        found = Explainer(path, providers="cpu")(X)
        assert list(found.maps) == ["image_guided", "image_gradient"]
        np.testing.assert_array_equal(found.index, [2] * 5)

    def test_one_of_its_methods(self, path: Path) -> None:
        assert list(Explainer(path, "gradient", 2, score="logits", providers="cpu")(X).maps) == ["image_gradient"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"method": "deconvnet"}, "method 'deconvnet'"),
            ({"method": ["guided", "deconvnet"]}, "method 'deconvnet'"),
            ({"target": 3}, "target 3"),
            ({"target": "argmax"}, "target 'argmax'"),
            ({"score": "e"}, "score 'e'"),
            ({"rectify": ["all"]}, "rectify=['all']"),
        ],
    )
    def test_contradictions(self, path: Path, options: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageError, match="replace") as raised:
            Explainer(path, providers="cpu", **options)
        assert words in str(raised.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"optimize_for": "auto", "inputs": (), "rectify": [], "prefix": "", "class_axis": None, "opset": None},
            {"target": "2", "through_softmax": False, "class_axis": 1, "opset": 18},
        ],
    )
    def test_what_comes_to_the_same_contradicts_nothing(self, path: Path, options: dict[str, Any]) -> None:
        assert len(Explainer(path, providers="cpu", **options)(X).maps) == 2

    def test_what_the_file_was_made_with_contradicts_nothing(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"optimize_for": "portable", "rectify": ("Elu",), "prefix": "a_", "opset": 20}
        path = tmp_path / "options.onnx"
        modelfile.save(gbprewrite.convert(cnn(), **options), path)
        assert list(Explainer(path, providers="cpu", **options)(X).maps) == ["a_image_guided"]
        for name, value in {"prefix": "b_", "optimize_for": "auto", "opset": 21}.items():
            with pytest.raises(UsageError, match=f"{name}={value!r} can't be had"):
                Explainer(path, providers="cpu", **{**options, name: value})

    def test_replace(self, path: Path) -> None:
        found = Explainer(path, "deconvnet", replace=True, providers="cpu")(X)
        np.testing.assert_array_equal(found.map("deconvnet"), Explainer(cnn(), "deconvnet", providers="cpu")(X).map())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: modelfile.save(cnn(), path, force=True),
        lambda path: arrayfiles.save(path, {"x": X}, force=True),
        lambda path: layout.write(path, b"PNG"),
    ],
    ids=["model", "arrays", "picture"],
)
def test_files_are_written_whole_or_not_at_all(
    write: Callable[[Path], None], error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise error

    (tmp_path / "file").write_text("before")
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt, match=r"No space left|^$"):
        write(tmp_path / "file")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


class TestArrayFiles:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        np.save("x.npy", np.ones((2, 3)))
        np.savez("both.npz", x=np.ones((2, 3)), ids=np.arange(2))
        np.savez("one.npz", whatever=np.arange(2))
        Path("a=b").mkdir()
        np.savez("a=b/both.npz", x=np.ones((2, 3)), ids=np.arange(2))
        np.save("objects.npy", np.array([None]))
        Path("text.npy").write_text("no array")
        Path("short.npz").write_bytes(Path("both.npz").read_bytes()[:100])
        Path("empty.npy").touch()

    @pytest.mark.parametrize(
        "specs", [["x=x.npy", "ids=one.npz"], ["both.npz"], ["a=b/both.npz"], ["both.npz", "x=x.npy"]]
    )
    def test_read(self, specs: list[str]) -> None:
        found = arrayfiles.read_inputs(specs, [SLOT, IDS])
        np.testing.assert_array_equal(found["x"], np.ones((2, 3)))
        np.testing.assert_array_equal(found["ids"], np.arange(2))

    def test_name_is_needless_for_one_input(self) -> None:
        assert arrayfiles.read_inputs(["x.npy"], [SLOT])["x"].shape == (2, 3)

    @pytest.mark.parametrize(
        ("spec", "error", "words"),
        [
            ("x.npy", UsageError, "NAME=x.npy"),
            ("y=x.npy", UsageError, "no input of this name"),
            ("x=both.npz", DataError, "holds 2 arrays (x, ids), not one"),
            ("x=absent.npy", DataError, "No such file"),
            ("x=objects.npy", DataError, "no plain numeric arrays"),
            ("x=text.npy", DataError, "no plain numeric arrays"),
            ("x=short.npz", DataError, "no plain numeric arrays"),
            ("x=empty.npy", DataError, "no plain numeric arrays"),
        ],
    )
    def test_refused(self, spec: str, error: Any, words: str) -> None:
        with pytest.raises(error) as raised:
            arrayfiles.read_inputs([spec], [SLOT, IDS])
        assert words in str(raised.value)

    def test_save_takes_any_name(self) -> None:
        named = {"file": np.arange(3), "a/b:0": np.float32(2)}
        arrayfiles.save("out.npz", named)
        with np.load("out.npz") as found:
            assert sorted(found) == ["a_b:0", "file"]  # an archive holds no folders
            np.testing.assert_array_equal(found["file"], named["file"], strict=True)
            np.testing.assert_array_equal(found["a_b:0"], named["a/b:0"])

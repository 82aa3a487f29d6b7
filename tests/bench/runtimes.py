"""Contenders that run an ONNX file: in onnxruntime, and in OpenVINO."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from gbprewrite.runtime.session import UNPACKED
from tests.bench.contenders import Job
from tests.bench.networks import Unavailable

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
QUIET = 3  # onnxruntime's log severity: errors


class Loaded(NamedTuple):
    """`run` computes all outputs, and returns when they are there; `fetch` takes the map out of what it gives."""

    run: Callable[[], Any]
    fetch: Callable[[Any], Any]


def forward(job: Job) -> Loaded:
    """The network without a map; `fetch` gives the scores."""
    ready = _session(job)
    return _loaded(ready, {ready.get_inputs()[0].name: _input(job)}, ready.get_outputs()[0].name, job)


def converted(job: Job, graph: bool = False) -> Loaded:
    """A file of this project: scores, map and explained class. `graph` captures a CUDA graph."""
    ready = _session(job, graph)
    name = ready.get_inputs()[0].name
    return _loaded(ready, {name: _input(job)}, f"{name}_{job.method}", job, fixed=graph)


def adjoint(job: Job) -> Loaded:
    """A file of onnx-ad: besides the input it takes the cotangent of the scores, with an axis of directions."""
    ready = _session(job, directions=1)
    x, seed = (i.name for i in ready.get_inputs())
    targets = np.load(job.targets)
    classes = ready.get_outputs()[0].shape[1]
    cotangent = np.eye(classes, dtype=np.float32)[targets][:, :, None]
    (name,) = (o.name for o in ready.get_outputs() if o.name == f"adj_{x}")
    return _loaded(ready, {x: _input(job), seed: cotangent}, name, job)


def explainer(job: Job) -> Loaded:
    """This project's Python class, numpy in and out."""
    from gbprewrite import Explainer

    ready, x = Explainer(job.file, providers=job.device, threads=job.threads), _input(job)
    return Loaded(lambda: ready(x), lambda explanation: explanation.map(job.method))


def openvino(job: Job) -> Loaded:
    """A file of this project in OpenVINO, float32, shapes fixed."""
    from openvino import Core

    core, x = Core(), _input(job)
    model = core.read_model(job.file)
    name = model.inputs[0].get_any_name()
    model.reshape({name: list(x.shape)})
    settings = {"INFERENCE_NUM_THREADS": job.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    wanted = f"{name}_{job.method}"
    return Loaded(lambda: request.infer({name: x}, share_inputs=True, share_outputs=True), lambda got: got[wanted])


def _input(job: Job) -> Any:
    return np.load(job.x).astype(np.float16 if job.precision == "float16" else np.float32)


def _session(job: Job, graph: bool = False, directions: int | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.log_severity_level = QUIET
    options.add_session_config_entry(*UNPACKED)  # as an Explainer does; the plain forward pass stays as it is
    options.enable_mem_pattern = job.device == "cuda"  # likewise
    if directions:
        options.add_free_dimension_override_by_name("nadj", directions)
    providers: list[Any] = [CPU]
    if job.device == "cuda":
        onnxruntime.preload_dlls()
        settings = {"use_tf32": int(job.precision == "tf32"), "enable_cuda_graph": int(graph)}
        # Without TF32 this setting would also keep float16 from the tensor cores.
        settings |= {"use_tf32": 1} if job.precision == "float16" else {}
        providers.insert(0, (CUDA, settings))
    ready = onnxruntime.InferenceSession(job.file, options, providers=providers)
    if job.device == "cuda" and ready.get_providers()[0] != CUDA:
        raise Unavailable(f"CUDA did not load in onnxruntime {onnxruntime.__version__}")
    return ready


def _loaded(ready: Any, feeds: Mapping[str, Any], wanted: str, job: Job, fixed: bool = False) -> Loaded:
    names = [o.name for o in ready.get_outputs()]
    if job.provider == "cuda":
        return _bound(ready, feeds, names, wanted, job.device, fixed)
    position = names.index(wanted)
    return Loaded(lambda: ready.run(names, feeds), lambda got: got[position])


def _bound(ready: Any, feeds: Mapping[str, Any], names: list[str], wanted: str, device: str, fixed: bool) -> Loaded:
    """Inputs and outputs stay on the device. A CUDA graph needs their addresses `fixed`: outputs have their buffers."""
    from onnxruntime import OrtValue

    binding = ready.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value, device, 0))
    for output in ready.get_outputs():
        if fixed:
            buffer = OrtValue.ortvalue_from_shape_and_type(*_shape_and_type(output, feeds), device, 0)
            binding.bind_ortvalue_output(output.name, buffer)
        else:
            binding.bind_output(output.name, device, 0)
    position = names.index(wanted)

    def run() -> Any:
        ready.run_with_iobinding(binding)  # returns when the device has finished
        return binding.get_outputs()

    return Loaded(run, lambda got: got[position].numpy())


def _shape_and_type(output: Any, feeds: Mapping[str, Any]) -> tuple[list[int], Any]:
    """The only open dimension of these files is the batch."""
    batch = len(next(iter(feeds.values())))
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    return [d if isinstance(d, int) else batch for d in output.shape], types[output.type]

"""onnxruntime sessions: on the provider that was asked for, or one clear error.

onnxruntime is imported when the first session is opened: converting needs no runtime.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnx import ModelProto

from gbprewrite.errors import DataError, ModelError, RuntimeUnavailable, UsageError, first_line
from gbprewrite.model import file as modelfile
from gbprewrite.model.messages import copied
from gbprewrite.runtime.binding import Bindings

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
PROVIDERS = {"auto": (CUDA, CPU), "cuda": (CUDA, CPU), "cpu": (CPU,)}
INSTALL = "pip install 'gbprewrite[gpu]' (NVIDIA) or pip install 'gbprewrite[cpu]'"
# The weights of a fully connected layer are used forwards and backwards, and onnxruntime would keep packed copies for
# both: 0.6 GB in VGG16. Without them it takes the same time (`python -m tests.bench`).
UNPACKED = ("session.disable_prepacking", "1")
WARNINGS, FATAL = 2, 4  # onnxruntime's log severities: its default, and ours, since errors are raised as well


class Session:
    """A loaded model.

    `provider` is "cuda" or "cpu": where it really runs. `note` says why "auto" did not take CUDA, on CUDA whether TF32
    is on, and is empty where there was nothing to take.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelProto,
        provider: str = "auto",
        *,
        optimise: bool = True,
        tf32: bool = True,
        threads: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        """Load a model (from a path when it is larger than a protobuf message may be).

        `optimise` turns onnxruntime's graph optimisations on, `tf32` lets CUDA round float32 factors to 10 bits (its
        default), `threads` is how many the CPU provider uses (0: one for each core), `cuda_graph` captures a run for
        each set of shapes and replays it (see binding.py). Raises UsageError for an unknown provider or a CUDA graph
        on the CPU, RuntimeUnavailable when there is no onnxruntime or CUDA does not load, ModelError when onnxruntime
        refuses the model.
        """
        if not isinstance(provider, str) or provider not in PROVIDERS:
            raise UsageError(f"provider {provider!r} is unknown. Choose from {', '.join(PROVIDERS)}.")
        ort = runtime()
        wanted = PROVIDERS[provider]
        built = CUDA in ort.get_available_providers()
        if provider == "cuda" and not built:
            raise RuntimeUnavailable(
                f"provider 'cuda' was asked for, and the installed onnxruntime {ort.__version__} is built without "
                "CUDA. Use it on the CPU (provider 'cpu'), or pip uninstall onnxruntime and pip install "
                "'gbprewrite[gpu]'."
            )
        options = ort.SessionOptions()
        options.log_severity_level = FATAL
        options.intra_op_num_threads = threads
        options.add_session_config_entry(*UNPACKED)
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if CUDA in wanted and built:
            chosen = [(CUDA, {"use_tf32": int(tf32), "enable_cuda_graph": int(cuda_graph)}), CPU]
            self.session, why = _open_with_cuda(ort, model, options, chosen)
        else:
            # A memory pattern is a second block of memory beside the first run's: without one, the peak over several
            # maps is 0.05 to 0.13 GB lower at batch 1 and 0.2 to 1 GB at batch 8 (ResNet-18 and 50, VGG16, GoogLeNet,
            # DenseNet-121), and the time is the same. The first run has none yet.
            options.enable_mem_pattern = False
            self.session, why = _open(ort, model, options, [CPU]), ""
        self.session.disable_fallback()  # else a run that fails on CUDA is repeated on the CPU, and nobody is told
        self.provider = "cuda" if CUDA in self.session.get_providers() else "cpu"
        # onnxruntime goes on with the CPU when CUDA does not load, whatever was asked for.
        if provider == "cuda" and self.provider != "cuda":
            raise RuntimeUnavailable(
                f"provider 'cuda' was asked for, and CUDA did not load in onnxruntime {ort.__version__}{why}. Check "
                "the driver (nvidia-smi) and the CUDA and cuDNN libraries (pip install 'onnxruntime-gpu[cuda,cudnn]'), "
                "or run on the CPU (provider 'cpu')."
            )
        if cuda_graph and self.provider != "cuda":
            raise UsageError(
                f"a CUDA graph was asked for, and the session runs on the CPU{why}. Leave it out, or use provider "
                "'cuda' on a machine that has one."
            )
        self._bindings = Bindings(ort, self.session, "cuda", graphs=True) if cuda_graph else None
        self.note = f"CUDA did not load{why}" if built and provider == "auto" and self.provider == "cpu" else ""
        if self.provider == "cuda":
            self.note = "float32 factors rounded to 10 bits (TF32)" if tf32 else "TF32 off"

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Name -> value of the outputs (all by default). Raises DataError when onnxruntime stops."""
        names = list(outputs) if outputs is not None else [o.name for o in self.session.get_outputs()]
        if not names:
            return {}  # onnxruntime refuses to compute nothing
        try:
            # Bound buffers alone gain nothing where arrays come from the host and go back there: 11.5 ms with and
            # without on the CPU (guided of squeezenet1_1), and on CUDA onnxruntime copies as often.
            if self._bindings is not None:
                return self._bindings.run(feeds, names)
            return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            shapes = ", ".join(f"{name} {getattr(value, 'shape', '')}" for name, value in feeds.items())
            raise DataError(
                f"onnxruntime stopped while it ran the model on {shapes}: {first_line(error)}. "
                "If the model takes inputs of these shapes, then an operator of it does not run on this provider, in "
                "this version of onnxruntime or in the memory there is."
            ) from error


def runtime() -> Any:
    """The onnxruntime module. Raises RuntimeUnavailable when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"no onnxruntime can be imported ({error}), and it is what computes the maps. Install one of the two: "
            f"{INSTALL}. (Converting works without.)"
        ) from None
    return onnxruntime


def _open_with_cuda(ort: Any, model: Any, options: Any, providers: Sequence[Any]) -> tuple[Any, str]:
    """A session, and why CUDA did not load, where onnxruntime says so."""
    said = io.StringIO()
    ort.set_default_logger_severity(FATAL)  # the reason goes into our own message
    try:
        with contextlib.redirect_stdout(said):  # onnxruntime prints its fallback there
            ort.preload_dlls()  # finds the CUDA libraries of the nvidia-* wheels
            session = _open(ort, model, options, providers)
    finally:
        ort.set_default_logger_severity(WARNINGS)
    reasons = [line for line in said.getvalue().splitlines() if line.startswith(("Failed", "EP Error"))]
    return session, f" ({reasons[0]})" if reasons else ""


def _open(ort: Any, model: Any, options: Any, providers: Sequence[Any]) -> Any:
    try:
        if not isinstance(model, ModelProto):
            return ort.InferenceSession(os.fspath(model), options, providers=list(providers))
        if not modelfile.is_large(model):
            return ort.InferenceSession(model.SerializeToString(), options, providers=list(providers))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            modelfile.save(copied(model), path)  # saving moves the weights out of a model
            return ort.InferenceSession(str(path), options, providers=list(providers))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        if "graph capture" in str(error):
            raise ModelError(
                f"the model can't run as a CUDA graph: {first_line(error)}. Leave the CUDA graph out, or convert the "
                "source for CUDA (--optimize-for cuda, and --opset 21 if it has MaxPool)."
            ) from error
        raise ModelError(
            f"onnxruntime {ort.__version__} can't load the model: {first_line(error)}. If it can't load the source "
            "either, export the source again for this version (its opset and IR must not be newer than the runtime)."
        ) from error


def provider_in_words(provider: str, note: str) -> str:
    """`cpu (CUDA did not load)`"""
    return f"{provider} ({note})" if note else provider

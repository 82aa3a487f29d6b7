"""Who takes part: a table. Imports nothing heavy, since every worker's memory is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

METHODS = ("guided", "gradient")
FORWARD = "forward"  # the plain network in onnxruntime, which every time is divided by
OURS = "gbprewrite"
TOP5 = "gbprewrite-top5"
REFERENCE = "gbprewrite-portable"  # the plainest spelling, which every map is compared with


@dataclass(frozen=True)
class Contender:
    """One way to a map.

    `load` is a function of tests.bench.runtimes or tests.bench.pytorch, "module:function", and `options` are for it.
    `converter` makes the file that it loads (a function of tests.bench.conversion, with `conversion` for keywords); the
    others load the source or the PyTorch module. `cannot` says why a method is not to be had; `on_request` contenders
    take part only when they are named.
    """

    load: str
    options: Mapping[str, Any] = field(default_factory=dict)
    converter: str | None = None
    conversion: Mapping[str, Any] = field(default_factory=dict)
    providers: tuple[str, ...] = ("cpu",)
    cannot: Mapping[str, str] = field(default_factory=dict)
    on_request: bool = False


BOTH = ("cpu", "cuda")
PORTABLE = {"optimize_for": "portable"}
CHANNELS_LAST = {"channels_last": True}
GRADIENT_ONLY = {"guided": "computes plain gradients only"}
BY_HOOKS = {"guided": "no rule of its own: captum hooks it"}

CONTENDERS = {
    FORWARD: Contender("runtimes:forward", providers=BOTH),
    OURS: Contender("runtimes:converted", converter="gbprewrite", providers=BOTH),
    REFERENCE: Contender("runtimes:converted", converter="gbprewrite", conversion=PORTABLE, providers=BOTH),
    "gbprewrite-graph": Contender("runtimes:converted", {"graph": True}, converter="gbprewrite", providers=("cuda",)),
    TOP5: Contender(
        "runtimes:converted", converter="gbprewrite", conversion={"target": "topk:5"}, providers=BOTH, on_request=True
    ),
    "explainer": Contender("runtimes:explainer", converter="gbprewrite", providers=BOTH, on_request=True),
    "torch": Contender("pytorch:eager", providers=BOTH, cannot=BY_HOOKS),
    "torch-channels-last": Contender("pytorch:eager", CHANNELS_LAST, providers=BOTH, cannot=BY_HOOKS),
    "captum": Contender("pytorch:captum", providers=BOTH),
    "captum-channels-last": Contender("pytorch:captum", CHANNELS_LAST, providers=BOTH),
    "torch.compile": Contender("pytorch:compiled", providers=BOTH, cannot=BY_HOOKS),
    "torch.compile-graph": Contender(
        "pytorch:compiled", {"mode": "reduce-overhead"}, providers=("cuda",), cannot=BY_HOOKS
    ),
    "onnx-ad": Contender("runtimes:adjoint", converter="onnx_ad", cannot=GRADIENT_ONLY),
    "onnx2torch": Contender("pytorch:onnx2torch_captum"),
    "openvino": Contender("runtimes:openvino", converter="gbprewrite"),
    "openvino-portable": Contender("runtimes:openvino", converter="gbprewrite", conversion=PORTABLE),
}
# The contenders that are not this project's files: what "the fastest peer" is chosen from.
PEERS = ("torch", "torch-channels-last", "captum", "captum-channels-last", "torch.compile", "torch.compile-graph",
         "onnx-ad", "onnx2torch")  # fmt: skip


def default_contenders(provider: str) -> tuple[str, ...]:
    """Everybody who can run there."""
    return tuple(name for name, c in CONTENDERS.items() if provider in c.providers and not c.on_request)


@dataclass(frozen=True)
class Job:
    """What a worker is told: plain types, since it travels as JSON. `file` is what the contender loads, if a file."""

    contender: str
    method: str
    file: str
    module: str
    x: str  # .npy, float32 [N, 3, H, W]
    targets: str  # .npy, int64 [N]
    threads: int
    provider: str = "cpu"
    precision: str = "float32"  # or tf32, or float16
    dry_run: bool = False  # the code paths of CUDA on the CPU

    @property
    def device(self) -> str:
        """Where it really runs."""
        return "cpu" if self.dry_run else self.provider

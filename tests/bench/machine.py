"""What the numbers were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("gbprewrite", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "timm", "captum",
            "onnx-ad", "onnx2torch", "openvino")  # fmt: skip


def describe() -> dict[str, str]:
    """Processor, its cores, memory, system, and versions of what took part; the graphics card where there is one."""
    info = Path("/proc/cpuinfo").read_text()
    models = {line.partition(": ")[2] for line in info.splitlines() if line.startswith("model name")}
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if f" {flag}" in info]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "processor": f"{', '.join(sorted(models)) or platform.processor()} ({', '.join(vectors)})",
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{memory / 2**30:.0f} GiB",
        "system": platform.platform(),
        "load before it began": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
    }
    cards = [path.read_text() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    facts |= {f"gpu {i}": text.splitlines()[0].partition(":")[2].strip() for i, text in enumerate(cards)}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts

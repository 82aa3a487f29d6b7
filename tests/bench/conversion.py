"""Makes the files that contenders load, each in a fresh process, which is told by stdin and answers with its times."""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.processes import Process, peak_bytes


def gbprewrite(source: str, file: str, **options: Any) -> None:
    """This project, as `gbprewrite convert` calls it."""
    from gbprewrite import convert
    from gbprewrite.model.file import save

    save(convert(source, **options), file, force=True)


def onnx_ad(source: str, file: str, batch: int) -> None:
    """onnx-ad, whose rules need declared shapes: the batch is fixed."""
    import onnx
    from onnx_ad import reverse

    model = onnx.load(source)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.save(reverse(model, layout="onnx"), file)


def float16(source: str, file: str) -> None:
    """onnxruntime's converter: weights, inputs and outputs in float16."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source)), file)


CONVERTERS = {
    "gbprewrite": (gbprewrite, "gbprewrite"),
    "onnx_ad": (onnx_ad, "onnx_ad"),
    "float16": (float16, "onnxruntime.transformers.float16"),
}


def converted(converter: str, source: Path, file: Path, **options: Any) -> dict[str, float]:
    """Write `file`; tells `import_seconds`, `convert_seconds` from reading to having written, and `peak_bytes`.

    Raises Unavailable when the converter fails.
    """
    request = {"converter": converter, "source": str(source), "file": str(file), **options}
    with Process("conversion", request, threads=1) as process:
        return process.ready


def main() -> None:
    """Do what stdin asks for."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    function, package = CONVERTERS[request.pop("converter")]
    times = [time.perf_counter()]
    try:
        importlib.import_module(package)
        times.append(time.perf_counter())
        function(**request)
        times.append(time.perf_counter())
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"error": f"{type(error).__name__}: {lines[0]}"}), file=replies)
        raise
    seconds = {"import_seconds": times[1] - times[0], "convert_seconds": times[2] - times[1]}
    print(json.dumps(seconds | {"peak_bytes": peak_bytes()}), file=replies)


if __name__ == "__main__":
    main()

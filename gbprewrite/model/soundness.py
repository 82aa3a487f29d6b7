"""Whether a source is sound, asked before anything is blamed on the conversion.

A file may parse and be none that a runtime takes: weights whose data is not what their shape says, nodes with operands
too many, values that nobody makes. `flaw` looks at it as the result is looked at: by its data, by ONNX's full check,
and by onnxruntime, where that is installed.
"""

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from gbprewrite.errors import ModelError, first_line
from gbprewrite.model import file as modelfile
from gbprewrite.model.loading import Answer, load_once
from gbprewrite.model.messages import copied, elements, tensors

UNMEASURED = frozenset(("INT2", "UINT2", "FLOAT6E2M3", "FLOAT6E3M2"))  # newer packings, which are no weights of a CNN
# What the checker says against models that run: an output without a shape, which gets one, and GroupNormalization of
# opset 18 to 20, which is deprecated for a later one.
HARMLESS = ("Field 'shape' of 'type' is required", "is deprecated in domain_version")
COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)


def check_weights(model: ModelProto) -> None:
    """Raise ModelError for a weight, or a tensor in a node, whose data is not what its type and shape say.

    Data in other files is not looked at.
    """
    for tensor in tensors(model):
        words = _contradiction(tensor)
        if words:
            raise ModelError(
                f"the weight {tensor.name!r} is damaged: {words}. The file was changed, or not written whole: export "
                "or download it again."
            )


def flaw(model: ModelProto) -> str | None:
    """What is wrong with a source, in a sentence without its full stop; None where nothing is found."""
    try:
        check_weights(model)
    except ModelError as error:
        return str(error)
    said = checked(model, full=True)
    if said is not None and not any(words in said for words in HARMLESS):
        return said
    return refused(model) or stopped(model)


def checked(model: ModelProto, full: bool) -> str | None:
    """The first line of what onnx.checker says against a model, None where it passes."""
    try:
        onnx.checker.check_model(modelfile.checkable(model), full_check=full)
    except Exception as error:  # of the checker, of inference, and what their C++ throws at damaged files
        return first_line(error)
    return None


def refused(model: ModelProto) -> str | None:
    """What onnxruntime says when it does not load a model; None where it does, or is not installed."""
    answer = _loaded(model)
    return None if answer is None or answer.reason is None else f"onnxruntime can't load it: {_line(answer.reason)}"


def stopped(model: ModelProto) -> str | None:
    """What onnxruntime says when it loads a model and does not run it; None where it does, or that can't be tried."""
    answer = _loaded(model, run=True)
    return None if answer is None or answer.reason is None else f"onnxruntime can't run it: {_line(answer.reason)}"


def is_runnable(model: ModelProto) -> bool:
    """Whether onnxruntime is installed and loads a model."""
    answer = _loaded(model)
    return answer is not None and answer.reason is None


def _loaded(model: ModelProto, run: bool = False) -> Answer | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            modelfile.save(copied(model), path)
        except ModelError:  # its weights are in files that nobody knows
            return None
        return load_once(path, run)


def _line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason given").rstrip(". ")


def _contradiction(tensor: TensorProto) -> str | None:
    """How a tensor's data contradicts its type or shape, in words."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"its type is number {tensor.data_type}, which this version of ONNX does not have"
    kind, dims = TensorProto.DataType.Name(tensor.data_type), list(tensor.dims)
    if any(d < 0 for d in dims):
        return f"its shape {dims} has a negative length"
    if uses_external_data(tensor) or kind in UNMEASURED:
        return None
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        held, wanted, unit = len(tensor.raw_data), modelfile.bytes_of(tensor), "bytes"
    else:
        held, unit = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type))), "values"
        wanted = elements(dims) * (2 if tensor.data_type in COMPLEX else 1)
        wanted = modelfile.bytes_of(tensor) if tensor.data_type in modelfile.FOUR_BITS else wanted
    if held == wanted:
        return None
    return f"{kind} of shape {dims} takes {wanted:,} {unit}, and it holds {held:,}"

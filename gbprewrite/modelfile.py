"""Model files: read one, give back one, write atomically."""

import contextlib
import hashlib
import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import load_external_data_for_model

from gbprewrite import files
from gbprewrite.errors import ModelError

PROTOBUF_LIMIT = 2_000_000_000  # a protobuf message ends at 2 GiB; beyond it weights go to a file of their own


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file together with its external data.

    Raises ModelError when the file can't be read, is empty, truncated, or no ONNX model, or when its external data is
    missing.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}. Check the path and its permissions.") from None
    if not data:
        raise ModelError(f"{path} is empty (0 bytes). Export or download the model again.")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{path} is not an ONNX model: its {len(data):,} bytes are not a readable ModelProto, so it is either "
            "another kind of file or cut short. Export or download it again."
        ) from None
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{path} holds no graph, so it is not an ONNX model. Give the file that the exporter wrote.")
    del data
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path} keeps weights in a separate file that can't be read: {_first_line(error)}. "
            "Put the external data file beside the model, under the name the model gives it."
        ) from None
    return model


def save(model: onnx.ModelProto, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a model: the whole file, or nothing.

    A model of more than 2 GB gets its weights in `<name>.data` beside it. Raises OutputError when the path exists
    (unless `force`) or can't be written.
    """
    path = Path(path)
    files.check_writable(path, force)
    with files.whole(path) as part:
        if is_large(model):
            onnx.save(model, part, save_as_external_data=True, location=f"{path.name}.data")
            os.replace(f"{part}.data", f"{path}.data")
        else:
            part.write_bytes(model.SerializeToString(deterministic=True))


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model does not fit into one protobuf message (which can't even be asked for its size then)."""
    try:
        return bool(model.ByteSize() > PROTOBUF_LIMIT)
    except EncodeError:
        return True


def sha256(model: onnx.ModelProto) -> str:
    """Digest of the model's deterministic serialisation (tensor by tensor, so that size does not matter)."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        digest.update(tensor.SerializeToString(deterministic=True))
    skeleton = without_weights(model)
    digest.update(skeleton.SerializeToString(deterministic=True))
    return digest.hexdigest()


def without_weights(model: onnx.ModelProto, larger_than: int = -1) -> onnx.ModelProto:
    """A copy in which every initializer of more than `larger_than` elements is gone."""
    skeleton = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        _copy_field(skeleton, field, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(skeleton.graph, field, value)
    for tensor in model.graph.initializer:
        if elements(tensor.dims) <= larger_than:
            skeleton.graph.initializer.append(tensor)
    return skeleton


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ai.onnx domain that a model imports; 0 when it imports none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def elements(dims: object) -> int:
    """Number of elements of a tensor with these dimensions."""
    total = 1
    for dim in dims:  # type: ignore[attr-defined]
        total *= dim
    return total


def _copy_field(target: object, field: object, value: object) -> None:
    name = field.name  # type: ignore[attr-defined]
    if isinstance(value, (int, float, str, bytes)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)


def _first_line(error: Exception) -> str:
    with contextlib.suppress(IndexError):
        return str(error).splitlines()[0]
    return type(error).__name__

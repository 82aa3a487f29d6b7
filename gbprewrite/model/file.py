"""Model files: read one, give back one, write atomically."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    set_external_data,
    uses_external_data,
)

from gbprewrite import files
from gbprewrite.errors import ModelError, first_line
from gbprewrite.model.messages import elements, tensors, texts
from gbprewrite.model.tensors import SMALL

DECISIVE = 64  # elements: integers up to here are shapes, axes, pads; their values decide what a node means
FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)  # two in a byte of the file
CHECKED_WHOLE = 50_000_000  # bytes of weights: more than these cost the checker more time than the conversion takes
APART = 1024  # bytes: smaller weights of a model over 2 GB stay in the model file
TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
CLAIMED = 16_000_000  # bytes that weights may claim of other files, beside four times what these have
PROTOBUF_LIMIT = 2_000_000_000  # a protobuf message ends at 2 GiB; beyond it weights go to a file of their own


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file together with its external data.

    Raises ModelError when the file can't be read, is empty, truncated, or no ONNX model, or when its external data is
    missing.
    """
    path = Path(path)
    model = _parsed(path)
    apart = [t for t in tensors(model) if uses_external_data(t)]
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of entries that onnx does not know
            for tensor in apart:
                _tell_length(tensor)
            _check_claims(apart, path.parent)
            load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, OverflowError, MemoryError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path} keeps weights in a separate file that can't be read: {first_line(error)}. "
            "Put the external data file beside the model, under the name the model gives it."
        ) from None
    for tensor in apart:
        if len(tensor.raw_data) != bytes_of(tensor):
            raise ModelError(
                f"{path} keeps the weight {tensor.name!r} in a separate file, and {len(tensor.raw_data):,} bytes are "
                f"there in place of {bytes_of(tensor):,} (shape {list(tensor.dims)}). Both files must be of one "
                "export; export or download them again."
            )
    return model


def _tell_length(tensor: onnx.TensorProto) -> None:
    """Write down, in place, how much external data is this tensor's, where that is left out: as much as it takes.

    (onnx reads to the end of the file then.)
    """
    if not ExternalDataInfo(tensor).length:
        kept = [entry for entry in tensor.external_data if entry.key != "length"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
        tensor.external_data.add(key="length", value=str(bytes_of(tensor)))


def _check_claims(apart: Iterable[onnx.TensorProto], folder: Path) -> None:
    """Raise ModelError where tensors claim more than their files hold: a thousand may claim the same gigabyte."""
    claimed = 0
    sizes: dict[str, int] = {}
    for tensor in apart:
        info = ExternalDataInfo(tensor)
        if info.location not in sizes:
            file = folder / info.location
            sizes[info.location] = file.stat().st_size if file.is_file() else 0
        end = (info.offset or 0) + (info.length or 0)
        claimed += info.length or 0
        if end > sizes[info.location] > 0:
            raise ModelError(
                f"the weight {tensor.name!r} lies in {info.location!r} up to byte {end:,}, and the file has "
                f"{sizes[info.location]:,}. It was not written whole, or is another model's: export or download both "
                "again."
            )
    held = sum(sizes.values())
    if claimed > CLAIMED + 4 * held:
        raise ModelError(
            f"the weights claim {claimed:,} bytes of files that have {held:,} together, so that they would be read "
            "again and again. Export the model again."
        )


def _parsed(path: Path) -> onnx.ModelProto:
    """The model without its external data."""
    try:
        if files.is_device(path):
            raise ModelError(f"{path} is a device, and no model can be read from it. Give the path of a file.")
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
    check_text(model)
    return model


def check_text(model: onnx.ModelProto) -> None:
    """Raise ModelError for names that are not text; protobuf gives them as bytes."""
    wrong = next((name for name in texts(model) if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelError(
            f"the model holds a name that is not text (UTF-8): {wrong[:60]!r}. The file was damaged, or its exporter "
            "is at fault: export or download it again."
        )


def files_of(path: Path) -> list[Path]:
    """The file of a model and those of its external data. Raises ModelError when it can't be read."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        locations = {ExternalDataInfo(t).location: None for t in tensors(_parsed(path)) if uses_external_data(t)}
    return [path, *(path.parent / location for location in locations)]


def read_beside(model: Path, planned: Iterable[Path]) -> list[Path]:
    """The model, and its external data too where an output is there already, and so may be a part of it."""
    return files_of(model) if any(map(os.path.lexists, planned)) else [model]


def places(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files of a model that is written: its own, and one for its weights where it is larger than a message."""
    return [path, path.with_name(f"{path.name}.data")] if is_large(model) else [path]


def save(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    force: bool = False,
    check: Callable[[Path], object] = lambda _part: None,
) -> None:
    """Write a model: the whole file, or nothing. `check` sees it before it is moved to its place, and may raise.

    A model of more than 2 GB gets its weights in `<name>.data` beside it: both files are written, or none. Raises
    OutputError when one of them exists (unless `force`) or can't be written, ModelError when weights lie in a file that
    is not in the path's folder.
    """
    path = Path(path)
    planned = places(path, model)
    for place in planned:
        files.check_writable(place, force)
    _check_resolved(model, path.parent)
    if len(planned) == 1:
        with files.whole(path, force=force) as part:
            part.write_bytes(model.SerializeToString(deterministic=True))
            check(part)
        return
    with files.whole_together(planned, force=force) as (part, data):
        if _move_weights_out(model, data.name):
            data.touch()  # as the umask wants it; onnx would make it the owner's alone
        onnx.save(model, part)
        check(part)


def _move_weights_out(model: onnx.ModelProto, location: str) -> int:
    """Mark what is large enough to lie in the external data file, where onnx.save writes it; how many these are.

    (onnx's own function looks for the file in the working directory, and refuses where it finds one of this name.)
    """
    large = [t for t in model.graph.initializer if not uses_external_data(t) and bytes_of(t) >= APART]
    for tensor in large:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
        set_external_data(tensor, location)
    return len(large)


def references(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The initializers whose values lie in another file, as those of onnx.load(path, load_external_data=False)."""
    return [t for t in model.graph.initializer if uses_external_data(t)]


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """By name, the values that no caller may replace: initializers that are no inputs, and those of Constant nodes."""
    given = {i.name for i in model.graph.input}
    nodes = [n for n in model.graph.node if n.op_type == "Constant"]
    found = {n.output[0]: a.t for n in nodes for a in n.attribute if a.name == "value"}
    return found | {t.name: t for t in model.graph.initializer if t.name not in given}


def check_references(model: onnx.ModelProto) -> None:
    """Raise ModelError where a value lies in another file that decides what a node means.

    Weights may stay references, since only their types and shapes are looked at; but a ModelProto does not say in which
    folder its files are.
    """
    numbers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    for tensor in references(model):
        size = elements(tensor.dims)
        if size == 1 or (size <= DECISIVE and tensor.data_type in numbers):
            raise ModelError(
                f"the value of {tensor.name!r} (shape {list(tensor.dims)}) is needed, and lies in the file "
                f"{ExternalDataInfo(tensor).location!r}, of which a ModelProto does not know the folder. "
                "Give the path of the model instead, or load it with its external data: onnx.load(path)."
            )


def unsettled(model: onnx.ModelProto) -> str:
    """A sentence on the operands whose values count as unknown because a caller may replace them; "" without any."""
    given = {i.name for i in model.graph.input}
    names = [t.name for t in model.graph.initializer if t.name in given and elements(t.dims) <= DECISIVE]
    if not names:
        return ""
    return (
        f"These initializers are inputs too, so that their values may be replaced and count as unknown: "
        f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. Take them off the inputs if nobody replaces them."
    )


def checkable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy that ONNX's checker takes quickly, or at all.

    In it weights are typed inputs that lie in other files, or are large, in a large model, and hold as much data as
    they say.
    """
    away = {t.name for t in references(model)}
    if _weight_bytes(model) > CHECKED_WHOLE:
        large = (t for t in model.graph.initializer if elements(t.dims) > SMALL)
        away |= {t.name for t in large if len(t.raw_data) == bytes_of(t)}
    if not away:
        return model
    made = without_weights(model)
    made.graph.initializer.extend(t for t in model.graph.initializer if t.name not in away)
    there = {i.name for i in made.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name in away - there:
            made.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return made


def _check_resolved(model: onnx.ModelProto, folder: Path) -> None:
    """Raise ModelError for weights that a model in this folder could not read."""
    for tensor in references(model):
        info = ExternalDataInfo(tensor)
        file = folder / info.location
        end = (info.offset or 0) + (info.length or 0)
        if not file.is_file() or file.stat().st_size < end:
            raise ModelError(
                f"the weight {tensor.name!r} lies in the file {info.location!r}, and the folder {folder} has no such "
                f"file{f' of {end:,} bytes or more' if file.is_file() else ''}, so that the written model could not be "
                "read. Write it to the folder of its source, or load the source with its weights first: "
                "onnx.load(path)."
            )


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model does not fit into one protobuf message.

    One that does not can't be asked for its size, and tries in twice the memory: so the weights are counted apart.
    """
    try:
        return bool(_weight_bytes(model) + without_weights(model).ByteSize() > PROTOBUF_LIMIT)
    except EncodeError:
        return True


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(bytes_of(t) for t in model.graph.initializer if not uses_external_data(t))


def bytes_of(tensor: onnx.TensorProto) -> int:
    """What a tensor's data takes; nothing for text. Raises ModelError for a type that does not exist."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    if tensor.data_type not in TYPES:
        raise ModelError(
            f"the weight {tensor.name!r} is damaged: its type is number {tensor.data_type}, which this version of ONNX "
            "does not have. Export or download the model again."
        )
    size = elements(tensor.dims) * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return -(-size // 2) if tensor.data_type in FOUR_BITS else size


def sha256(model: onnx.ModelProto) -> str:
    """Digest of the model's deterministic serialisation (tensor by tensor, so that size does not matter)."""
    digest = hashlib.sha256()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) <= PROTOBUF_LIMIT:
            digest.update(tensor.SerializeToString(deterministic=True))
            continue
        head = TensorProto()  # what a tensor is, and then its data: together they are no message any more
        for field, value in tensor.ListFields():
            if field.name != "raw_data":
                _copy_field(head, field, value)
        digest.update(head.SerializeToString(deterministic=True))
        digest.update(tensor.raw_data)
    skeleton = without_weights(model)
    digest.update(skeleton.SerializeToString(deterministic=True))
    return digest.hexdigest()


def without_weights(model: onnx.ModelProto, larger_than: int = -1) -> onnx.ModelProto:
    """A copy without the initializers of more than `larger_than` elements, or that are no constants to look into.

    Those are references to other files, and defaults of inputs, which a caller may replace.
    """
    skeleton = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            continue
        _copy_field(skeleton, field, value)
    for field, value in model.graph.ListFields():
        if field.name != "initializer":
            _copy_field(skeleton.graph, field, value)
    given = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if elements(tensor.dims) <= larger_than and tensor.name not in given and not uses_external_data(tensor):
            skeleton.graph.initializer.append(tensor)
    return skeleton


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ai.onnx domain that a model imports, the last one of several; 0 when it imports none."""
    return next((o.version for o in reversed(model.opset_import) if o.domain in ("", "ai.onnx")), 0)


def _copy_field(target: object, field: object, value: object) -> None:
    name = field.name  # type: ignore[attr-defined]
    if isinstance(value, (int, float, str, bytes)):
        setattr(target, name, value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        getattr(target, name).extend(value)

"""Shapes of inputs that the model leaves out or open, and that its user knows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from onnx import ModelProto, ValueInfoProto

from gbprewrite.errors import UsageError
from gbprewrite.model.messages import graphs
from gbprewrite.model.tensors import read_type

Size: TypeAlias = int | str | None
Shapes: TypeAlias = Mapping[str, Sequence[Size]]
LARGEST = 2**31 - 1


def parse(texts: Iterable[str]) -> dict[str, list[Size]]:
    """`NAME=1,3,H,?`: numbers, names of sizes that stay open, or ? for one without a name. Raises UsageError."""
    found: dict[str, list[Size]] = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        sizes: list[Size] = []
        for part in (p.strip() for p in dims.split(",")):
            is_name = part.isidentifier() and part.isascii()
            if not (is_name or part == "?" or (part.isdecimal() and part.isascii() and len(part) < 11)):
                name = ""
            sizes.append(None if part == "?" else part if is_name or not part.isdecimal() else int(part))
        if not name:
            raise UsageError(
                f"--input-shape {text!r}: write the input's name and its sizes, such as image=1,3,224,224; a name in "
                "place of a number (image=N,3,224,224) leaves a size open."
            )
        found[name] = sizes
    return found


def fix(model: ModelProto, shapes: Shapes) -> None:
    """Declare, in place, the shapes of these inputs; sizes of the same name become the same everywhere.

    Raises UsageError for an unknown input, and for a shape that contradicts what the model declares.
    """
    weights = {t.name for t in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in weights}
    renamed: dict[str, Size] = {}
    for name, sizes in shapes.items():
        if name not in inputs or not inputs[name].type.HasField("tensor_type"):
            raise UsageError(
                f"--input-shape {name}: the model has no such input of tensors. Its inputs are: {_names(inputs)}."
            )
        _check(inputs[name], list(sizes))
        for before, size in zip(_declared(inputs[name]) or [], sizes, strict=False):
            if isinstance(before, str) and size is not None and renamed.setdefault(before, size) != size:
                raise UsageError(
                    f"--input-shape {name}: the model names one size {before!r} more than once, and it would be both "
                    f"{renamed[before]} and {size}. Give one number."
                )
        shape = inputs[name].type.tensor_type.shape
        del shape.dim[:]
        for size in sizes:
            dim = shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
        inputs[name].type.tensor_type.shape.CopyFrom(shape)  # there even without a dimension
    _rename(model, renamed)


def missing(model: ModelProto) -> str:
    """A sentence on the inputs that are declared without a shape; "" without any."""
    weights = {t.name for t in model.graph.initializer}
    names = [
        i.name
        for i in model.graph.input
        if i.name not in weights and i.type.HasField("tensor_type") and not i.type.tensor_type.HasField("shape")
    ]
    if not names:
        return ""
    which = "The input" if len(names) == 1 else "The inputs"
    return (
        f"{which} {_names(names)} {'has' if len(names) == 1 else 'have'} no shape in the model: say it with "
        f"--input-shape {names[0]}=1,3,224,224 (with a name such as N where a size stays open)."
    )


def _names(names: Iterable[str]) -> str:
    listing = list(names)
    return f"{', '.join(listing[:5])}{', ...' if len(listing) > 5 else ''}"


def _declared(value: ValueInfoProto) -> list[Size] | None:
    """The declared shape; a size that is no positive number is open."""
    shape = read_type(value.type)[1]
    return None if shape is None else [None if isinstance(d, int) and d <= 0 else d for d in shape]


def _check(value: ValueInfoProto, sizes: Sequence[Size]) -> None:
    if not all(size is None or isinstance(size, str) or 1 <= size <= LARGEST for size in sizes):
        raise UsageError(f"--input-shape {value.name}: {list(sizes)} holds a size that is no number from 1 on.")
    declared = _declared(value)
    if declared is None:
        return
    differ = [1 for d, s in zip(declared, sizes, strict=False) if isinstance(d, int) and isinstance(s, int) and d != s]
    if len(declared) != len(sizes) or differ:
        said = ",".join("?" if d is None else str(d) for d in declared)
        raise UsageError(
            f"--input-shape {value.name}={','.join(map(str, sizes))}: the model declares {said}. Only open sizes can "
            "be fixed; export the model for another shape."
        )


def _rename(model: ModelProto, sizes: Mapping[str, Size]) -> None:
    for graph in graphs(model.graph) if sizes else ():
        for value in [*graph.input, *graph.output, *graph.value_info]:
            for dim in value.type.tensor_type.shape.dim:
                size = sizes.get(dim.dim_param) if dim.HasField("dim_param") else None
                if isinstance(size, int):
                    dim.dim_value = size
                elif size is not None:
                    dim.dim_param = size

"""Field-aware mutations: a message is changed where it has fields, and by values that its kind of field may hold."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from onnx import ModelProto

INTEGERS = (0, 1, -1, 2, -2, 3, 7, 8, 64, 100_000, 2**31 - 1, 2**31, -(2**31), 10**12, 2**62, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 6.0, 1e30, -1e30, 1e-30, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "a" * 5000, "\x1b[31mred\x1b[0m", "../../x", "$x_{$", "‮abc", "a\nb", "ai.onnx", "com.microsoft")
OPERATORS = (
    *("Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv", "Cos"),
    *("ConvTranspose", "CumSum", "DepthToSpace", "Div", "Dropout", "Einsum", "Elu", "Erf", "Exp", "Expand", "Flatten"),
    *("Gather", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "Identity", "LRN", "LeakyRelu", "Log"),
    *("Loop", "LpPool", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "NonZero", "Pad", "Pow", "Relu"),
    *("ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Resize", "Scan", "Shape", "Sigmoid", "Slice", "Softmax"),
    *("Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
)
INTEGRAL = (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64, Field.CPPTYPE_UINT32, Field.CPPTYPE_UINT64, Field.CPPTYPE_ENUM)
REAL = (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE)


class Slot(NamedTuple):
    """A field of a message that may be changed."""

    message: Message
    field: Any

    @property
    def repeated(self) -> bool:
        """Whether it holds a list."""
        return bool(self.field.is_repeated)


def mutated(model: ModelProto, rng: np.random.Generator) -> bytes:
    """The file of a model of which one to three fields were changed; one file in eight is changed in its bytes too."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        slots = list(_slots(copy))
        names = sorted({t for t in _names(copy) if t})
        # Kinds first: most fields of a model are names, and most interesting ones are not.
        kinds = sorted({(s.message.DESCRIPTOR.name, s.field.name) for s in slots})
        kind = kinds[int(rng.integers(len(kinds)))]
        alike = [s for s in slots if (s.message.DESCRIPTOR.name, s.field.name) == kind]
        _change(alike[int(rng.integers(len(alike)))], rng, names)
    data = bytearray(copy.SerializeToString())
    if rng.random() < 1 / 8 and data:
        _change_bytes(data, rng)
    return bytes(data)


def _slots(message: Message) -> Iterator[Slot]:
    """The fields that hold something, of a message and of all messages in it."""
    for field, value in message.ListFields():
        yield Slot(message, field)
        if field.cpp_type == Field.CPPTYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _slots(inner)


def _names(model: ModelProto) -> Iterator[str]:
    for node in model.graph.node:
        yield from (*node.input, *node.output)
    yield from (t.name for t in model.graph.initializer)


def _change(slot: Slot, rng: np.random.Generator, names: list[str]) -> None:
    if slot.repeated:
        _change_list(getattr(slot.message, slot.field.name), slot.field, rng, names)
    elif slot.field.cpp_type == Field.CPPTYPE_MESSAGE or rng.random() < 0.1:
        slot.message.ClearField(slot.field.name)
    else:
        _put(
            lambda v: setattr(slot.message, slot.field.name, v),
            _value(slot.field, getattr(slot.message, slot.field.name), rng, names),
        )


def _change_list(values: Any, field: Any, rng: np.random.Generator, names: list[str]) -> None:
    """Take an element out, repeat it, exchange two, or change one."""
    at, other = (int(i) for i in rng.integers(len(values), size=2))
    how = rng.random()
    if how < 0.3:
        del values[at]
    elif how < 0.5 and field.cpp_type == Field.CPPTYPE_MESSAGE:
        values.append(values[at])
    elif how < 0.5:
        values.insert(at, values[other])
    elif how < 0.7 or field.cpp_type == Field.CPPTYPE_MESSAGE:
        kept = list(values)
        if field.cpp_type == Field.CPPTYPE_MESSAGE:
            kept = [type(v).FromString(v.SerializeToString()) for v in kept]
        kept[at], kept[other] = kept[other], kept[at]
        del values[:]
        values.extend(kept)
    else:
        _put(lambda v: values.__setitem__(at, v), _value(field, values[at], rng, names))


def _put(write: Callable[[Any], Any], value: Any) -> None:
    try:
        write(value)
    except (ValueError, TypeError):  # outside what the field's type holds, as 2^40 in an int32
        write(type(value)() if not isinstance(value, int) else 1)


def _value(field: Any, old: Any, rng: np.random.Generator, names: list[str]) -> Any:
    """Another value of the field's kind."""
    if field.cpp_type in INTEGRAL:
        near = [old + 1, old - 1, -old, old * 2]
        return int(rng.choice(np.array([*near, *INTEGERS], object)))
    if field.cpp_type in REAL:
        return float(rng.choice([*FLOATS, -old, old * 2]))
    if field.name in ("op_type",):
        return str(rng.choice(OPERATORS))
    if isinstance(old, bytes):
        return _other_bytes(old, rng)
    return str(rng.choice([*names, *names, *TEXTS])) if names else str(rng.choice(TEXTS))


def _other_bytes(old: bytes, rng: np.random.Generator) -> bytes:
    """Weights of the same length mostly: zeros, constant, extreme, shuffled; or cut short, or longer."""
    data = np.frombuffer(old, np.uint8)
    how = int(rng.integers(6))
    if how == 0 or not len(data):
        return bytes(len(old))
    if how == 1:
        return old[: int(rng.integers(len(old)))]
    if how == 2:
        return old + old[: int(rng.integers(1, 9))]
    if how == 3 and len(data) % 4 == 0:
        return np.full(len(data) // 4, rng.choice(FLOATS), np.float32).tobytes()
    if how == 4:
        return bytes(rng.permutation(data))
    changed = data.copy()
    changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return changed.tobytes()


def _change_bytes(data: bytearray, rng: np.random.Generator) -> None:
    """Flip, cut, or repeat a few bytes of the file."""
    at = int(rng.integers(len(data)))
    how = rng.random()
    if how < 0.6:
        data[at] ^= 1 << int(rng.integers(8))
    elif how < 0.8:
        del data[at : at + int(rng.integers(1, 64))]
    else:
        data[at:at] = data[at : at + int(rng.integers(1, 64))]

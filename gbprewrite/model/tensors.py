"""Facts about tensors, and how graphsurgeon's objects read in ONNX's own types."""

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, TypeProto, helper, numpy_helper

Tensor: TypeAlias = gs.Tensor
Dim: TypeAlias = int | gs.Tensor  # fixed by the graph, or a one-element int64 tensor computed at run time
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
SMALL = 4096  # elements: constants up to this size are looked into, and passed on to shape inference


class Refused(Exception):
    """A rule can't treat this node; the message says why. Becomes one line of UnsupportedOperators."""


def elements_of(tensor: Tensor) -> int:
    """Number of elements of a constant, without loading its values."""
    return int(np.prod(tensor.shape, dtype=np.int64))


def numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    """The numpy (or ml_dtypes) type of a tensor; graphsurgeon keeps types that numpy lacks as ONNX numbers."""
    if isinstance(tensor.dtype, int):
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.dtype))
    found: np.dtype[Any] = np.dtype(tensor.dtype)
    return found


def is_float(tensor: Tensor) -> bool:
    """Whether a cotangent of this tensor makes sense: float16, bfloat16, float32 or float64."""
    return tensor.dtype is not None and onnx_type(tensor) in (
        TensorProto.FLOAT,
        TensorProto.DOUBLE,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
    )


def is_integer(tensor: Tensor) -> bool:
    """Whether the elements are integers of any width, and no Booleans."""
    if tensor.dtype is None or (isinstance(tensor.dtype, int) and tensor.dtype == TensorProto.UNDEFINED):
        return False
    return is_quantised(tensor) or numpy_dtype(tensor).kind in "iu"


def is_quantised(tensor: Tensor) -> bool:
    """Whether the element type is one that quantised values have: 4, 8 or 16 bits."""
    return tensor.dtype is not None and onnx_type(tensor) in (
        *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16),
        *(TensorProto.INT4, TensorProto.UINT4),
    )


def quantised_range(tensor: Tensor) -> tuple[int, int]:
    """The smallest and the largest level of a quantised tensor."""
    levels = ml_dtypes.iinfo(numpy_dtype(tensor))  # type: ignore[no-untyped-call]
    return int(levels.min), int(levels.max)


def onnx_type(tensor: Tensor) -> int:
    """The tensor's element type as ONNX numbers it."""
    if isinstance(tensor.dtype, int):
        return tensor.dtype
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))


def type_proto(tensor: Tensor) -> TypeProto:
    """The tensor's type as ONNX writes it."""
    if tensor.dtype is None:
        return TypeProto()
    return helper.make_tensor_type_proto(onnx_type(tensor), tensor.shape)


def read_type(proto: TypeProto) -> tuple[Any, list[int | str | None] | None]:
    """(dtype, shape) as graphsurgeon keeps them."""
    kind = proto.tensor_type
    dtype: Any = helper.tensor_dtype_to_np_dtype(kind.elem_type) if kind.elem_type else None
    if dtype is not None and kind.elem_type == TensorProto.BFLOAT16:
        dtype = kind.elem_type
    if not kind.HasField("shape"):
        return dtype, None
    shape: list[int | str | None] = []
    for dim in kind.shape.dim:
        shape.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None)
    return dtype, shape


def node_proto(node: gs.Node) -> onnx.NodeProto:
    """A built node as ONNX writes it; attributes that are ONNX's own already stay as they are."""
    ready = {k: v for k, v in node.attrs.items() if isinstance(v, onnx.AttributeProto)}
    made = helper.make_node(
        node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], node.name, domain=node.domain or "",
        **{k: _attribute(v) for k, v in sorted(node.attrs.items()) if k not in ready},
    )  # fmt: skip
    made.attribute.extend(ready.values())
    return made


def _attribute(value: Any) -> Any:
    return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value


def rank(x: Tensor) -> int:
    """Number of axes; Refused when the graph does not tell."""
    if x.shape is None:
        raise Refused(f"the rank of {x.name!r} is not known")
    return len(x.shape)


def fixed(dim: Any) -> bool:
    """Whether a dimension is a number."""
    return isinstance(dim, (int, np.integer))


def constant_of(x: Tensor | None) -> np.ndarray[Any, Any] | None:
    """The value of a constant tensor, else None."""
    return x.values if isinstance(x, gs.Constant) else None


def producer(t: Tensor) -> gs.Node | None:
    """The node that makes a tensor, if any."""
    return t.inputs[0] if isinstance(t, gs.Variable) and t.inputs else None


def same_shape(a: Tensor, b: Tensor) -> bool:
    """Whether the graph proves that the shapes are equal: numbers agree and symbols have the same name."""
    if a is b:
        return True
    return a.shape is not None and b.shape is not None and list(a.shape) == list(b.shape) and None not in a.shape

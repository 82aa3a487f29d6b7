"""What the attributes of the standard's operators may hold.

A value outside its domain is refused by the node's name, before any library takes it for something else (onnxruntime
reads transB = -2 as true) or is brought down by it (onnx 1.23 aborts the process where num_outputs is too small).

Source: the attributes' descriptions on https://onnx.ai/onnx/operators/.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from gbprewrite.errors import ModelError
from gbprewrite.model.file import opset_of
from gbprewrite.model.messages import graphs
from gbprewrite.model.tensors import read_type

LARGEST = 2**31 - 1  # no kernel, stride or group is larger; products of larger ones leave 64 bits
TYPES = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}


class Domain(NamedTuple):
    """What a value may be, in words and as a test."""

    words: str
    holds: Callable[[Any], object]


def one_of(*texts: str) -> Domain:
    """A domain of names."""
    return Domain(f"one of {', '.join(texts)}", lambda v: v in texts)


FLAG = Domain("0 or 1", lambda v: v in (0, 1))
COUNT = Domain(f"from 1 to {LARGEST}", lambda v: 1 <= v <= LARGEST)
COUNTS = Domain(f"from 1 to {LARGEST} each", lambda v: all(1 <= n <= LARGEST for n in v))
WIDTHS = Domain(f"from 0 to {LARGEST} each", lambda v: all(0 <= n <= LARGEST for n in v))
CUTS = Domain(f"from -{LARGEST} to {LARGEST} each", lambda v: all(-LARGEST <= n <= LARGEST for n in v))
ORDER = Domain("a permutation: each of 0, 1, 2, ... once", lambda v: sorted(v) == list(range(len(v))))
TYPE = Domain("the number of an element type", lambda v: v in TYPES)

# Attributes that mean the same wherever they occur
DOMAINS: dict[str, Domain] = {
    **dict.fromkeys(
        (
            *("align_corners", "allowzero", "antialias", "broadcast", "ceil_mode", "center_point_box"),
            *("count_include_pad", "exclude_outside", "exclusive", "fmod", "inverse", "is_causal", "keepdims"),
            *("largest", "noop_with_empty_axes", "onesided", "reverse", "select_last_index", "sorted", "spatial"),
            *("storage_order", "training_mode", "transA", "transB", "upper"),
        ),
        FLAG,
    ),
    **dict.fromkeys(
        (
            *("blocksize", "group", "num_groups", "num_outputs", "offset_group", "output_height", "output_width"),
            *("kv_num_heads", "q_num_heads"),
        ),
        COUNT,
    ),
    **dict.fromkeys(("dilations", "kernel_shape", "pooled_shape", "strides"), COUNTS),
    **dict.fromkeys(("output_padding", "output_shape", "pads", "split"), WIDTHS),
    **dict.fromkeys(("batch_axis", "time_axis"), FLAG),
    **dict.fromkeys(("dtype", "output_datatype", "to"), TYPE),
    "approximate": one_of("none", "tanh"),
    "auto_pad": one_of("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", ""),
    "keep_aspect_ratio_policy": one_of("stretch", "not_larger", "not_smaller"),
    "nearest_mode": one_of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
    "padding_mode": one_of("zeros", "border", "reflection"),
    "perm": ORDER,
}
RESIZED = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
OF_OPERATOR: dict[tuple[str, str], Domain] = {
    ("DepthToSpace", "mode"): one_of("DCR", "CRD"),
    ("GridSample", "mode"): one_of("bilinear", "bicubic", "linear", "nearest", "cubic"),
    ("LRN", "size"): Domain("an odd number from 1 on", lambda v: 1 <= v <= LARGEST and v % 2),
    ("MaxRoiPool", "pooled_shape"): Domain("two numbers from 1 on", lambda v: len(v) == 2 and COUNTS.holds(v)),
    ("LpNormalization", "p"): Domain("1 or 2", lambda v: v in (1, 2)),
    ("LpPool", "p"): COUNT,
    ("GlobalLpPool", "p"): COUNT,
    ("Pad", "mode"): one_of("constant", "reflect", "edge", "wrap"),
    ("Pad", "pads"): CUTS,
    ("Resize", "coordinate_transformation_mode"): one_of(*RESIZED, "tf_half_pixel_for_nn", "tf_crop_and_resize"),
    ("Resize", "mode"): one_of("nearest", "linear", "cubic"),
    ("RoiAlign", "coordinate_transformation_mode"): one_of("half_pixel", "output_half_pixel"),
    ("RoiAlign", "mode"): one_of("avg", "max"),
    ("RoiAlign", "sampling_ratio"): Domain(f"from 0 to {LARGEST}", lambda v: 0 <= v <= LARGEST),
    ("ScatterElements", "reduction"): one_of("none", "add", "mul", "max", "min"),
    ("ScatterND", "reduction"): one_of("none", "add", "mul", "max", "min"),
    ("TopK", "k"): COUNT,
    ("Upsample", "mode"): one_of("nearest", "linear", "bilinear"),
}
# How far an axis may count beyond the rank of the first input
BEYOND = {("Flatten", "axis"): 1, ("OneHot", "axis"): 1, ("Unsqueeze", "axes"): 1}
WHATEVER = frozenset(  # there `axis` counts in something else than the first input, or may be left without meaning
    ("ConcatFromSequence", "DequantizeLinear", "QuantizeLinear", "Scan", "SplitToSequence", "SequenceMap", "DFT")
)


def check(model: ModelProto) -> None:
    """Raise ModelError for the first attribute that is of another type than the standard says, or out of its domain."""
    opset = opset_of(model)
    for body in (model.graph, *model.functions):
        for graph in graphs(body):  # a function has nodes as a graph has
            for node in graph.node:
                if node.domain in ("", "ai.onnx"):
                    _check_node(node, opset)


def _check_node(node: NodeProto, opset: int) -> None:
    kinds = _kinds(node.op_type, opset)
    held: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:  # a function's own parameter
            continue
        wanted = kinds.get(attribute.name)
        if wanted is not None and attribute.type != wanted:
            kind = AttributeProto.AttributeType.Name
            raise _error(node, attribute.name, f"of type {_kind(attribute.type)}", f"of type {kind(wanted)}")
        value = _value(attribute)
        held[attribute.name] = value
        domain = OF_OPERATOR.get((node.op_type, attribute.name)) or DOMAINS.get(attribute.name)
        if wanted is not None and domain is not None and not domain.holds(value):
            raise _error(node, attribute.name, _shown(value), domain.words)
    _check_lengths(node, held)


def _check_lengths(node: NodeProto, held: Mapping[str, Any]) -> None:
    """What must be as many as something else."""
    if node.op_type == "Split":
        outputs = len(node.output)
        if held.get("num_outputs", outputs) != outputs:
            raise _error(node, "num_outputs", str(held["num_outputs"]), f"{outputs}, the number of its outputs")
        if len(held.get("split", node.output)) != outputs:
            raise _error(node, "split", _shown(held["split"]), f"{outputs} lengths, one for each output")
    if node.op_type == "Pad":
        if len(held.get("pads", ())) % 2:
            raise _error(node, "pads", _shown(held["pads"]), "two widths for each axis")
        return
    spatial = ("kernel_shape", "strides", "dilations", "output_padding")
    known = {name: len(held[name]) for name in spatial if held.get(name)}
    if held.get("pads"):
        known["pads"] = len(held["pads"]) / 2  # type: ignore[assignment]
    if known and len(set(known.values())) > 1:
        name = next(n for n, count in known.items() if count != next(iter(known.values())))
        first = next(iter(known))
        each = "two numbers" if name == "pads" else "one number"
        raise _error(node, name, _shown(held[name]), f"{each} for each axis of {first} {_shown(held[first])}")


def check_ranks(graph: GraphProto, types: Mapping[str, TypeProto]) -> None:
    """Raise ModelError for an axis that the tensor lacks, and for groups that do not divide the channels.

    `types` says what is known of the values of the graph.
    """
    for node in graph.node:
        shape = read_type(types[node.input[0]])[1] if node.input and node.input[0] in types else None
        if node.domain not in ("", "ai.onnx") or shape is None:
            continue
        for attribute in node.attribute:
            if attribute.name in ("axis", "axes") and node.op_type not in WHATEVER:
                _check_axes(node, attribute, len(shape))
            elif attribute.name == "perm" and len(attribute.ints) not in (0, len(shape)):
                wanted = f"a permutation of its {len(shape)} axes"
                raise _error(node, "perm", _shown(list(attribute.ints)), wanted)
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1 and node.input[1] in types:
            _check_weights(node, shape, read_type(types[node.input[1]])[1])


def _check_axes(node: NodeProto, attribute: AttributeProto, rank: int) -> None:
    beyond = BEYOND.get((node.op_type, attribute.name), 0)
    value = _value(attribute)
    axes = [value] if isinstance(value, int) else list(value)
    if attribute.name == "axes" and node.op_type == "Unsqueeze":
        beyond = len(axes)
    low, high = -rank - (beyond if node.op_type != "Flatten" else 0), rank - 1 + beyond
    if rank + beyond and not all(low <= axis <= high for axis in axes):
        each = " each" if len(axes) > 1 else ""
        raise _error(node, attribute.name, _shown(value), f"from {low} to {high}{each}: its input has {rank} axes")


def _check_weights(node: NodeProto, x: Sequence[Any], w: Sequence[Any] | None) -> None:
    """The kernel's size and the groups of a convolution of x with the weights w."""
    if w is None or len(w) < 3 or not all(isinstance(d, int) for d in w):
        return
    kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), [])
    if kernel and kernel != list(w[2:]):
        raise _error(node, "kernel_shape", _shown(kernel), f"{list(w[2:])}, the size of its weights")
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if len(w) != len(x) or not isinstance(x[1], int):
        return
    channels = w[1] * group if node.op_type == "Conv" else w[0]
    if x[1] != channels or w[0] % group:
        wanted = f"a number that fits its input's {x[1]} channels and its weights of shape {list(w)}"
        raise _error(node, "group", str(group), wanted)


@cache
def _kinds(operator: str, opset: int) -> dict[str, int]:
    """Attribute → its type in the standard; empty for an operator that this opset lacks."""
    try:
        there = max(0, min(opset, onnx.defs.onnx_opset_version()))  # a file may say any number
        schema = onnx.defs.get_schema(operator, there)
    except onnx.defs.SchemaError:
        return {}
    described: Mapping[str, Any] = schema.attributes  # onnx 1.23 types the enumeration without its numbers
    return {name: int(attribute.type) for name, attribute in described.items()}


def _kind(number: int) -> str:
    known = AttributeProto.AttributeType
    return known.Name(number) if number in known.values() else str(number)


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _error(node: NodeProto, attribute: str, found: str, wanted: str) -> ModelError:
    name = node.name or next(iter(node.output), "")
    return ModelError(
        f"{node.op_type} node {name!r}: its attribute {attribute!r} is {found}, and must be {wanted}. Runtimes read "
        "such a value in different ways, or stop. Export the model again."
    )

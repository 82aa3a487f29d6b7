"""From one opset to another: what a newer one spells differently, and whether an older one can say it.

Sources: the version notes on https://onnx.ai/onnx/operators/ and https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model.inference import infer, types_in
from gbprewrite.model.messages import graphs, put_nodes, reads


def check_downgrade(model: ModelProto, source: int, target: int) -> None:
    """Raise UsageError when a node means something in the source's opset that the target's can't say.

    From opset 22 on most operators changed in the types that they take alone. (A type that an older one lacks, such as
    bfloat16, is found by the full check of the result.)
    """
    stuck = []
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain in ("", "ai.onnx") and not _same_spelling(node, source, target):
                stuck.append(f"{node.op_type} ({node.name or node.output[0]!r})")
    if stuck:
        raise UsageError(
            f"--opset {target} can't be reached from the model's {source}: {', '.join(stuck[:5])}"
            f"{f' and {len(stuck) - 5} more' if len(stuck) > 5 else ''} changed since. Export the model with opset "
            f"{target}."
        )


def _same_spelling(node: NodeProto, source: int, target: int) -> bool:
    """Whether both opsets have the operator with the same attributes, defaults, inputs and outputs."""
    try:
        new, old = (onnx.defs.get_schema(node.op_type, opset) for opset in (source, target))
    except onnx.defs.SchemaError:
        return False
    if new.since_version == old.since_version:
        return True
    shared = set(new.attributes) & set(old.attributes)
    return (
        {a.name for a in node.attribute} <= set(old.attributes)
        and all(new.attributes[name].default_value == old.attributes[name].default_value for name in shared)
        and len(node.input) <= old.max_input
        and len(node.output) <= old.max_output
    )


class _Around(NamedTuple):
    """What is known in a graph, by name: types, and the values of constants."""

    types: dict[str, onnx.TypeProto]
    constants: dict[str, TensorProto]

    def inside(self, inferred: GraphProto) -> "_Around":
        """The same in a graph inside it, of which inference found this."""
        overridable = {i.name for i in inferred.input}
        found = {t.name: t for t in inferred.initializer if t.name not in overridable}
        return _Around(self.types | types_in(inferred), self.constants | found)


class _Upgrade:
    """One node on its way up: its graph, types and values, and how to add constants and neighbours."""

    def __init__(self, graph: GraphProto, node: NodeProto, around: "_Around", is_read: Callable[[str], bool]) -> None:
        self.graph, self.node, self.is_read = graph, node, is_read
        self.types, self.constants = around
        self.before: list[NodeProto] = []
        self.after: list[NodeProto] = []

    def take(self, name: str) -> Any:
        """Remove an attribute; its value, or None."""
        for i, attribute in enumerate(self.node.attribute):
            if attribute.name == name:
                value = helper.get_attribute_value(attribute)
                del self.node.attribute[i]
                return value
        return None

    def set(self, **attributes: Any) -> None:
        self.node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())

    def constant(self, role: str, value: Any, dtype: Any = np.int64) -> str:
        name = f"{self.node.name or self.node.output[0]}/{role}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def value(self, index: int) -> Any:
        """The value of an input as an array, None where it is computed when the model runs."""
        found = self.constants.get(self.node.input[index])
        return None if found is None else numpy_helper.to_array(found)

    def dtype(self, index: int = 0) -> np.dtype[Any]:
        """numpy type of an input."""
        found = self.types.get(self.node.input[index])
        kind = found.tensor_type.elem_type if found is not None else 0
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind or onnx.TensorProto.FLOAT))

    def known_shape(self, index: int) -> list[int | None]:
        """Shape of an input, whose rank must be known."""
        shape = self.shape(index)
        if shape is None:
            raise ModelError(
                f"{self.node.op_type} node {self.node.name or self.node.output[0]!r} of this old opset needs an input "
                "of known rank, which shape inference can't tell. Export the model with a newer opset."
            )
        return shape

    def shape(self, index: int = 0) -> list[int | None] | None:
        """Shape of an input, None where it isn't known."""
        found = self.types.get(self.node.input[index])
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in found.tensor_type.shape.dim]


def _broadcast_7(u: _Upgrade) -> None:
    """Until opset 7 the second operand was laid along an axis of the first, or along its last ones."""
    axis = u.take("axis")
    if u.take("broadcast") and axis is not None:
        first, second = u.known_shape(0), u.known_shape(1)
        _trailing_ones(u, len(first) - axis % len(first) - len(second))


def _prelu_7(u: _Upgrade) -> None:
    """A vector of slopes was one for each channel."""
    if len(u.known_shape(1)) == 1 and u.known_shape(1) != [1]:
        _trailing_ones(u, len(u.known_shape(0)) - 2)


def _trailing_ones(u: _Upgrade, count: int) -> None:
    if count > 0:
        name = f"{u.node.name or u.node.output[0]}/aligned"
        axes = u.constant("axes", list(range(-count, 0)))
        u.before.append(helper.make_node("Unsqueeze", [u.node.input[1], axes], [name], name))
        u.node.input[1] = name


def _without(*names: str) -> Callable[[_Upgrade], None]:
    """Attributes that said nothing, or only that the model is not being trained."""

    def follow(u: _Upgrade) -> None:
        for name in names:
            u.take(name)

    return follow


def _axes_to_input(u: _Upgrade) -> None:
    axes = u.take("axes")
    if axes is not None:
        u.node.input.append(u.constant("axes", axes))


def _split_13(u: _Upgrade) -> None:
    sizes = u.take("split")
    if sizes is not None:
        u.node.input.append(u.constant("split", sizes))


def _split_18(u: _Upgrade) -> None:
    if len(u.node.input) < 2:
        u.set(num_outputs=len(u.node.output))


def _dropout(u: _Upgrade) -> None:
    u.take("ratio")


def _dropout_7(u: _Upgrade) -> None:
    """In opset 6 a Dropout that is not said to be a test drops."""
    if not u.take("is_test"):
        ratio = u.take("ratio")
        u.node.input.append(u.constant("ratio", 0.5 if ratio is None else ratio, np.float32))
        u.node.input.append(u.constant("training", True, np.bool_))


def _clip(u: _Upgrade) -> None:
    kind = u.dtype()
    bounds = [(role, u.take(role)) for role in ("min", "max")]
    names = ["" if value is None else u.constant(role, value, kind) for role, value in bounds]
    u.node.input.extend(names if names[1] else [n for n in names[:1] if n])


def _pad(u: _Upgrade) -> None:
    value = u.take("value")
    u.node.input.append(u.constant("pads", u.take("pads")))
    if value:
        u.node.input.append(u.constant("value", value, u.dtype()))


def _slice(u: _Upgrade) -> None:
    for role in ("starts", "ends", "axes"):
        value = u.take(role)
        if value is not None:
            u.node.input.append(u.constant(role, value))


def _top_k(u: _Upgrade) -> None:
    u.node.input.append(u.constant("k", [u.take("k")]))


def _upsample(u: _Upgrade) -> None:
    scales = u.take("scales")
    name = u.node.input[1] if scales is None else u.constant("scales", scales, np.float32)
    u.node.op_type = "Resize"
    del u.node.input[1:]
    u.node.input.extend(["", name])
    u.set(coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def _resize_10(u: _Upgrade) -> None:
    """Nearest was the pixel below where an axis grows, and the one above where it shrinks; so onnxruntime has it."""
    u.set(coordinate_transformation_mode="asymmetric")
    scales, name = u.value(1), u.node.name or u.node.output[0]
    u.node.input.insert(1, "")
    nearest = all(a.s == b"nearest" for a in u.node.attribute if a.name == "mode")
    if not nearest or (scales is not None and (scales >= 1).all()):
        u.set(nearest_mode="floor")
    elif scales is not None and (scales <= 1).all():
        u.set(nearest_mode="ceil")
    else:  # or not known before the model runs: first all axes that grow, then those that shrink
        sizes = u.shape(0) or []
        moved = [] if scales is None else [(n, s) for n, s in zip(sizes, scales.tolist(), strict=False) if s > 1]
        if moved and all(s < 2 and (n is None or int(n * s) == n) for n, s in moved):
            raise ModelError(
                f"Resize node {name!r} of opset 10 shrinks some axes and scales others by {moved[0][1]:g}, less than a "
                "pixel. No later opset reads the nearest pixel in this way. Export the model with opset 11 or later."
            )
        larger, smaller, grown = f"{name}/larger", f"{name}/smaller", f"{name}/grown"
        one = u.constant("one", 1, np.float32)
        u.before.append(helper.make_node("Max", [u.node.input[2], one], [larger], larger))
        u.before.append(helper.make_node("Min", [u.node.input[2], one], [smaller], smaller))
        first = helper.make_node(
            *("Resize", [u.node.input[0], "", larger], [grown], grown),
            **{"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        )
        u.before.append(first)
        u.node.input[:] = [grown, "", smaller]
        u.set(nearest_mode="ceil")


def _coerced_softmax(u: _Upgrade) -> None:
    """Until opset 13 Softmax flattened everything from `axis` on into one row."""
    axis = u.take("axis")
    axis = 1 if axis is None else axis
    shape = u.known_shape(0)
    axis %= len(shape)
    if all(d == 1 for d in shape[axis + 1 :]):
        u.set(axis=axis)
        return
    name = u.node.name or u.node.output[0]
    source, output = u.node.input[0], u.node.output[0]
    flat, rows, size = f"{name}/flat", f"{name}/rows", f"{name}/shape"
    u.before.append(helper.make_node("Flatten", [source], [flat], f"{name}/Flatten", axis=axis))
    u.before.append(helper.make_node("Shape", [source], [size], f"{name}/Shape"))
    u.node.input[0], u.node.output[0] = flat, rows
    u.set(axis=-1)
    u.after.append(helper.make_node("Reshape", [rows, size], [output], f"{name}/Reshape"))


def _batch_normalization_7(u: _Upgrade) -> None:
    if u.take("is_test"):
        del u.node.output[1:]
    u.take("consumed_inputs")


def _batch_normalization_9(u: _Upgrade) -> None:
    if u.take("spatial") == 0:
        raise ModelError(
            f"BatchNormalization node {u.node.name!r} has spatial=0, which no opset since 9 can express. "
            "Export the model again with a newer opset."
        )


def _batch_normalization_14(u: _Upgrade) -> None:
    """Until opset 14 five outputs, instead of an attribute, meant training: y is normalised by the batch itself.

    The standard does not say what the last two hold; onnxruntime gives the batch's mean and 1 / its deviation.
    """
    node = u.node
    y, *others = [*node.output, "", "", "", ""][:5]
    del node.output[1:]
    if not any(others):
        return
    base = node.name or y
    node.output.extend(name or f"{base}/running_{i}" for i, name in enumerate(others[:2]))
    u.set(training_mode=1)
    if any(map(u.is_read, others[2:])):
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        axes = u.constant("axes", [0, *range(2, len(u.known_shape(0)))])
        mean, deviation = (name or f"{base}/saved_{i}" for i, name in enumerate(others[2:]))
        kept, centred, square, variance, sum_, root = (f"{base}/saved/{i}" for i in range(6))
        for operator, inputs, output, keep in (
            ("ReduceMean", [node.input[0], axes], kept, 1),
            ("ReduceMean", [node.input[0], axes], mean, 0),
            ("Sub", [node.input[0], kept], centred, None),
            ("Mul", [centred, centred], square, None),
            ("ReduceMean", [square, axes], variance, 0),
            ("Add", [variance, u.constant("epsilon", epsilon, u.dtype())], sum_, None),
            ("Sqrt", [sum_], root, None),
            ("Reciprocal", [root], deviation, None),
        ):
            attributes: dict[str, Any] = {} if keep is None else {"keepdims": keep}
            u.after.append(helper.make_node(operator, inputs, [output], f"{base}/{output}", **attributes))


def _roi_align(u: _Upgrade) -> None:
    u.set(coordinate_transformation_mode="output_half_pixel")


def _grid_sample(u: _Upgrade) -> None:
    mode = u.take("mode")
    mode = mode.decode() if mode else "bilinear"
    u.set(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _scatter(u: _Upgrade) -> None:
    u.node.op_type = "ScatterElements"


_REDUCTIONS = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare"

# operator: (the opset that changed it, how to follow), oldest first
UPGRADES: dict[str, list[tuple[int, Callable[[_Upgrade], None]]]] = {
    **{name: [(7, _broadcast_7)] for name in ("Add", "Sub", "Mul", "Div", "Pow")},
    "BatchNormalization": [(7, _batch_normalization_7), (9, _batch_normalization_9), (14, _batch_normalization_14)],
    "Clip": [(11, _clip)],
    "Dropout": [(7, _dropout_7), (12, _dropout)],
    "Gemm": [(7, _without("broadcast"))],
    "GridSample": [(20, _grid_sample)],
    "Hardmax": [(13, _coerced_softmax)],
    "LogSoftmax": [(13, _coerced_softmax)],
    "PRelu": [(7, _prelu_7)],
    "Pad": [(11, _pad)],
    "ReduceSum": [(13, _axes_to_input)],
    "Resize": [(11, _resize_10)],
    "RoiAlign": [(16, _roi_align)],
    "Scatter": [(11, _scatter)],
    "Slice": [(10, _slice)],
    "Softmax": [(13, _coerced_softmax)],
    "Split": [(13, _split_13), (18, _split_18)],
    "Squeeze": [(13, _axes_to_input)],
    "TopK": [(10, _top_k)],
    "Unsqueeze": [(13, _axes_to_input)],
    "Upsample": [(11, _upsample)],
    **{name: [(18, _axes_to_input)] for name in _REDUCTIONS.split()},
}


def upgrade(model: ModelProto, source: int, target: int) -> None:
    """Rewrite, in place, every node whose spelling changed between two opsets."""
    if any(node.op_type in UPGRADES for graph in graphs(model.graph) for node in graph.node):
        _upgrade_graph(model.graph, infer(model).graph, _Around({}, {}), source, target)


def _upgrade_graph(graph: GraphProto, inferred: GraphProto, around: _Around, source: int, target: int) -> None:
    """One graph, and those inside its nodes; `around` is what is known of what it may capture."""
    around = around.inside(inferred)
    known = {n.output[0]: {a.name: a.g for a in n.attribute if a.HasField("g")} for n in inferred.node if n.output}
    nodes: list[NodeProto] = []

    @functools.cache
    def names_read() -> frozenset[str]:
        return frozenset([o.name for o in graph.output] + [name for n in graph.node for name in reads(n)])

    for node in graph.node:
        for attribute in (a for a in node.attribute if a.HasField("g")):
            inner = known.get(node.output[0], {}).get(attribute.name, GraphProto())
            _upgrade_graph(attribute.g, inner, around, source, target)
        step = _Upgrade(graph, node, around, lambda name: name in names_read())
        if node.domain in ("", "ai.onnx"):
            for version, follow in UPGRADES.get(node.op_type, []):
                if source < version <= target:
                    follow(step)
        nodes += [*step.before, node, *step.after]
    if len(nodes) > len(graph.node):
        put_nodes(graph, nodes)

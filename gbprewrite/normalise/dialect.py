"""Any model → the canonical dialect, in place.

Guarantee: nodes in an order that runs, opset 18 or later, IR 8 or later, no model-local functions, and initializers of
IR 3 files are no longer listed as inputs. Forward nodes keep their names, order (as far as it runs) and meaning; only
spellings change that a newer opset gave up. After this stage nobody looks at opsets again.

Sources: the version notes on https://onnx.ai/onnx/operators/ and https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

import contextlib
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model import attributes, ordering, propagation
from gbprewrite.model.file import opset_of
from gbprewrite.model.inference import infer, typed_skeleton, types_in, types_of
from gbprewrite.model.messages import elements, graphs
from gbprewrite.model.qlinear import QLINEAR
from gbprewrite.model.tensors import read_type
from gbprewrite.normalise import expansion, fused, notation
from gbprewrite.normalise.branches import hoist_weights, reads, settle_branches
from gbprewrite.normalise.functions import expand_functions
from gbprewrite.normalise.opsets import check_downgrade, upgrade
from gbprewrite.normalise.resizes import settle_resizes

POOLS = ("AveragePool", "LpPool", "MaxPool")
LOWEST, HIGHEST = 6, onnx.defs.onnx_opset_version()
SIZE, SIZE_STEP = 992, 64  # of open axes, where an example is needed: odd multiples of 32, so that halves meet halves
_NOTHING = onnx.TypeProto()
TARGET = 18  # everything the backward pass is written in exists, and every operator of it has a CUDA kernel


def normalise(model: ModelProto, opset: int | None = None) -> ModelProto:
    """Bring a model to the dialect (in place, except that inlining functions makes a new one).

    Raises ModelError for models older than opset 6 or newer than the installed onnx, and for cycles; UsageError for an
    opset that can't be reached.
    """
    source = opset_of(model)
    if not LOWEST <= source <= HIGHEST:
        what = "imports no version of ai.onnx" if not source else f"is written in opset {source}"
        raise ModelError(
            f"the model {what} (IR {model.ir_version}); opsets {LOWEST} to {HIGHEST} are supported, and onnxruntime "
            "itself refuses models without one. Export it again, or upgrade it with onnx.version_converter."
        )
    target = max(source, TARGET) if opset is None else opset
    if not TARGET <= target <= HIGHEST:
        raise UsageError(f"--opset {target} can't be reached: the result needs {TARGET} to {HIGHEST}.")
    attributes.check(model)
    notation.name_domain(model)
    notation.write_out_sparse(model)
    _drop_shadowed(model, source)
    ordering.sort(model)
    if model.functions:
        expansion.check_expansion(model)
        model = _inlined(model)
    _repair_shapes(model)
    if model.ir_version < 4:
        weights = {t.name for t in model.graph.initializer}
        inputs = [i for i in model.graph.input if i.name not in weights]
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)  # inference and the checker read initializers by it
    _correct_shapes(model)
    if source < target:
        upgrade(model, source, target)
    elif source > target:
        check_downgrade(model, source, target)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = target
    hoist_weights(model)
    settle(model)
    return model


def _drop_shadowed(model: ModelProto, opset: int) -> None:
    """Take out, in place, local functions with the name of an operator: onnxruntime runs the operator."""
    for index in reversed(range(len(model.functions))):
        if _is_operator(model.functions[index], opset):
            del model.functions[index]


def _is_operator(function: FunctionProto, opset: int) -> bool:
    if function.domain == fused.DOMAIN:
        return function.name in fused.FUSED or function.name in QLINEAR
    try:
        return function.domain in ("", "ai.onnx") and bool(onnx.defs.get_schema(function.name, opset))
    except onnx.defs.SchemaError:
        return False


def _inlined(model: ModelProto) -> ModelProto:
    """The model with the bodies of its functions in place of their calls."""
    try:
        return onnx.inliner.inline_local_functions(model)
    except DecodeError as error:
        if "depth" not in str(error).lower():
            raise
        raise ModelError(
            "the model's functions call one another inside branches of If so deep that the graph without them nests "
            "more than 30 graphs, which no model file can hold (protobuf ends there). Export it with fewer of them."
        ) from None


def settle(model: ModelProto) -> None:
    """Bring the nodes of the main graph, in place, to operators that have rules, where another spelling does."""
    settle_branches(model)
    _settle_ceil_mode(model)
    settle_resizes(model)
    fused.take_apart(model)
    expand_functions(model)
    settle_branches(model)  # the bodies of functions have some


def _repair_shapes(model: ModelProto) -> None:
    """Exporters that write an unknown dimension as -1 mean a symbol; inference would calculate with the number."""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.dim_param = f"{value.name}_dim{axis}"


def _correct_shapes(model: ModelProto) -> None:
    """Declared shapes of inner values and outputs that the nodes contradict give way; inference would believe them.

    jax2onnx 0.17 declares channels-last what its optimiser has made channels-first; onnxruntime warns, and runs it. Who
    opens an input's size by hand leaves the old numbers behind it: they are held against those of another size too.
    """
    skeleton = typed_skeleton(model)
    for graph in graphs(skeleton.graph):
        del graph.value_info[:]
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        symbols = {d.dim_param for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.dim_param}
        found = propagation.infer_shapes(skeleton).graph
        _correct(model.graph, found, propagation.infer_shapes(skeleton).graph if _sized(skeleton) else found, symbols)


def _sized(model: ModelProto) -> bool:
    """Whether inputs have open sizes; they become numbers, in place, that nobody writes into a model."""
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes.setdefault(dim.dim_param or f"{value.name} {axis}", SIZE + SIZE_STEP * len(sizes))
    return bool(sizes)


def _correct(graph: GraphProto, inferred: GraphProto, sized: GraphProto, symbols: set[str]) -> None:
    """One graph, by what inference found of it for open and for example sizes, and the branches inside it."""
    found, example = types_in(inferred), types_in(sized)
    for value in [*graph.value_info, *graph.output]:
        if value.name in found:
            said, open_, at = (
                read_type(t)[1] for t in (value.type, found[value.name], example.get(value.name, _NOTHING))
            )
            if _contradict(said, open_, symbols) or _contradict(said, at, set()):
                value.type.tensor_type.shape.CopyFrom(found[value.name].tensor_type.shape)
    inside, sized_inside = _branches(inferred), _branches(sized)
    for node in (n for n in graph.node if n.output):
        for attribute in (a for a in node.attribute if a.HasField("g")):
            key = (node.output[0], attribute.name)
            _correct(attribute.g, inside.get(key, GraphProto()), sized_inside.get(key, GraphProto()), symbols)


def _branches(graph: GraphProto) -> dict[tuple[str, str], GraphProto]:
    """The graphs inside nodes, by the first output of the node and the attribute's name."""
    return {(n.output[0], a.name): a.g for n in graph.node if n.output for a in n.attribute if a.HasField("g")}


def _contradict(said: list[int | str | None] | None, found: list[int | str | None] | None, symbols: set[str]) -> bool:
    """Whether rank or a number differs, or a number is said of what the inputs leave open."""
    if said is None or found is None:
        return False
    both = zip(said, found, strict=False)
    return len(said) != len(found) or any(
        isinstance(s, int) and s != f and (isinstance(f, int) or f in symbols) for s, f in both
    )


def _settle_ceil_mode(model: ModelProto) -> None:
    """Write pools with ceil_mode of fixed sizes without it where their last window would start in the padding.

    Such a window does not count, says the standard; shape inference, onnxruntime's too, counts it (onnx 1.23), and
    memory is then planned for shapes that are wrong. Sizes that are fixed say how much padding means the same.
    """
    while any(node.op_type in POOLS and _attribute(node, "ceil_mode", 0) for node in model.graph.node):
        types = types_of(infer(model))
        wrong: set[str] = set()  # values of which inference said what will not be
        for node in list(model.graph.node):
            rounds_up = node.op_type in POOLS and _attribute(node, "ceil_mode", 0)
            if wrong.intersection(reads(node)) or (rounds_up and _settle(model, node, types)):
                wrong.update(node.output)
        if not wrong:
            return
        for value in [*model.graph.value_info, *model.graph.output]:
            if value.name in wrong and value.type.HasField("tensor_type"):
                value.type.tensor_type.ClearField("shape")


def _settle(model: ModelProto, pool: NodeProto, types: dict[str, onnx.TypeProto]) -> bool:
    shape = read_type(types[pool.input[0]])[1] if pool.input[0] in types else None
    kernel = _attribute(pool, "kernel_shape", [])
    n = len(kernel)
    padded_by_hand = _attribute(pool, "auto_pad", b"NOTSET") in (b"NOTSET", b"")
    if shape is None or not all(isinstance(d, int) for d in shape[2:]) or not padded_by_hand:
        return False
    strides, dilations = (_attribute(pool, name, [1] * n) for name in ("strides", "dilations"))
    own = list(_attribute(pool, "pads", [0] * (2 * n)))
    pads, void = own.copy(), False
    for axis, size in enumerate(shape[2:]):
        stride, reach = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
        span = size + own[axis] + own[axis + n]
        windows = -(-(span - reach) // stride) + 1
        if (windows - 1) * stride >= size + own[axis]:
            windows, void = windows - 1, True
        pads[axis + n] += max((windows - 1) * stride + reach - span, 0)
    if void:
        _replace_ceil_mode(model, pool, own, pads)
    return void


def _replace_ceil_mode(model: ModelProto, pool: NodeProto, own: list[int], pads: list[int]) -> None:
    """The pool with padding in place of ceil_mode. What a window overhangs does not count, its own padding may."""
    counted = _attribute(pool, "count_include_pad", 0) and pads != own
    if counted and any(own):  # its own padding becomes zeros of the input, which always count
        name, n = f"{pool.name or pool.output[0]}/padded", len(own) // 2
        widths = np.array([0, 0, *own[:n], 0, 0, *own[n:]], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(widths, f"{name}/pads"))
        padded = helper.make_node("Pad", [pool.input[0], f"{name}/pads"], [name], name)
        model.graph.node.insert(list(model.graph.node).index(pool), padded)
        pool.input[0] = name
        pads = [p - o for p, o in zip(pads, own, strict=True)]
    dropped = ("ceil_mode", "pads", "count_include_pad") if counted else ("ceil_mode", "pads")
    kept = [a for a in pool.attribute if a.name not in dropped]
    del pool.attribute[:]
    pool.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def parameters(model: ModelProto) -> int:
    """Number of weights, in initializers and in Constant nodes."""
    constants = (a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.HasField("t"))
    sparse = model.graph.sparse_initializer
    return sum(elements(t.dims) for t in [*model.graph.initializer, *constants, *sparse])

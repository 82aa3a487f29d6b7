"""Any model → the canonical dialect, in place.

Guarantee: nodes in an order that runs, opset 18 or later, IR 8 or later, no model-local functions, and initializers of
IR 3 files are no longer listed as inputs. Forward nodes keep their names, order (as far as it runs) and meaning; only
spellings change that a newer opset gave up. After this stage nobody looks at opsets again.

Sources: the version notes on https://onnx.ai/onnx/operators/ and https://github.com/onnx/onnx/blob/main/docs/Changelog.md.
"""

import contextlib
from collections.abc import Container

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import FunctionProto, GraphProto, ModelProto

from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model import attributes, ordering, propagation
from gbprewrite.model.file import opset_of
from gbprewrite.model.inference import typed_skeleton, types_in
from gbprewrite.model.messages import graphs
from gbprewrite.model.qlinear import QLINEAR
from gbprewrite.model.tensors import read_type
from gbprewrite.normalise import expansion, fused, notation
from gbprewrite.normalise.branches import hoist_weights, settle_branches
from gbprewrite.normalise.functions import expand_functions
from gbprewrite.normalise.opsets import check_downgrade, upgrade
from gbprewrite.normalise.pools import settle_ceil_mode
from gbprewrite.normalise.resizes import settle_resizes

LOWEST, HIGHEST = 6, onnx.defs.onnx_opset_version()
SIZE, SIZE_STEP = 992, 64  # of open axes, where an example is needed: odd multiples of 32, so that halves meet halves
_NOTHING = onnx.TypeProto()
TARGET = 18  # everything the backward pass is written in exists, and every operator of it has a CUDA kernel


def normalise(model: ModelProto, known: Container[str], opset: int | None = None) -> ModelProto:
    """Bring a model to the dialect (in place, except that inlining functions makes a new one).

    `known` operators keep their nodes; others give way to the bodies that the standard gives them.

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
    settle(model, known)
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


def settle(model: ModelProto, known: Container[str]) -> None:
    """Bring the nodes of the main graph, in place, to operators that have rules, where another spelling does."""
    settle_branches(model)
    fused.take_apart(model)
    expand_functions(model, known)
    settle_branches(model)  # the bodies of functions have some
    settle_ceil_mode(model)  # last, since inference knows no shape behind some functions, such as GroupNormalization-18
    settle_resizes(model)


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

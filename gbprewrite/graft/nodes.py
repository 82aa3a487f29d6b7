"""The backward nodes onto the source model, and off it again."""

from collections.abc import Callable, Sequence

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, helper, numpy_helper

from gbprewrite.backward.builder import Builder
from gbprewrite.errors import ModelError
from gbprewrite.model import soundness
from gbprewrite.model.messages import captured, put_nodes, reads
from gbprewrite.model.symbols import UNKNOWN
from gbprewrite.model.tensors import Tensor, node_proto, onnx_type


def graft(model: ModelProto, op: Builder, inputs: Sequence[gs.Variable], outputs: Sequence[Tensor]) -> tuple[int, int]:
    """Append to the model the built nodes that the outputs need; its own nodes stay as they are.

    Returns the numbers of nodes and of initializers appended.
    """
    weights = len(model.graph.initializer)
    needed = {t.name for t in outputs}
    kept: list[gs.Node] = []
    for node in reversed(op.nodes):
        if any(t.name in needed for t in node.outputs):
            kept.append(node)
            needed.update(t.name for t in node.inputs if t.name)
            needed.update(name for a in node.attrs.values() if isinstance(a, GraphProto) for name in captured(a))
    known = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input}
    known |= {name for n in model.graph.node for name in n.output}
    for node in reversed(kept):
        # Built constants, and values of the forward graph that only the view has folded into one.
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in known:
                model.graph.initializer.append(numpy_helper.from_array(tensor.values, tensor.name))
                known.add(tensor.name)
        model.graph.node.append(node_proto(node))
    # onnxruntime keeps a product in its blocked layout only where it can prove that both factors have the same shape.
    declared = {t.name: t for t in op.declared if t.name in needed}
    for values, gained in (
        (model.graph.input, inputs), (model.graph.output, outputs), (model.graph.value_info, declared.values())
    ):  # fmt: skip
        values.extend(helper.make_tensor_value_info(t.name, onnx_type(t), _declared(t)) for t in gained)
    return len(kept), len(model.graph.initializer) - weights


def _declared(tensor: Tensor) -> list[int | str | None] | None:
    """A shape for the file: inference's own names for what it does not know (unk__0) say nothing to others."""
    if tensor.shape is None:
        return None
    return [None if isinstance(d, str) and d.startswith(UNKNOWN) else d for d in tensor.shape]


def keep_only(model: ModelProto, outputs: Sequence[str]) -> None:
    """Take from the model every output but these, and what they do not need; its inputs stay."""
    needed, kept = set(outputs), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    put_nodes(model.graph, reversed(kept))
    made = needed | {name for n in kept for name in n.output}
    for values in (model.graph.output, model.graph.initializer, model.graph.value_info):
        names = set(outputs) if values is model.graph.output else made
        remaining = [v for v in values if v.name in names]
        del values[:]
        values.extend(remaining)


def declare_outputs(model: ModelProto, graph: gs.Graph) -> None:
    """Give outputs that the source declares without a shape the one that inference found; the full check wants it."""
    for value, tensor in zip(model.graph.output, graph.outputs, strict=True):
        kind = value.type.tensor_type
        if tensor.shape is not None and value.type.HasField("tensor_type") and not kind.HasField("shape"):
            value.type.CopyFrom(helper.make_tensor_type_proto(kind.elem_type, _declared(tensor)))


def check(model: ModelProto, source: Callable[[], ModelProto]) -> str | None:
    """The standard's own full check of a converted model.

    A source that fails it already may still run. Then the plain check decides, or onnxruntime, and the flaw comes back
    as a sentence. Raises ModelError where the source is at fault, or, once that was looked at too, the conversion.
    """
    flaw = soundness.checked(model, full=True)
    if flaw is None:
        return None
    given = source()
    own = soundness.checked(given, full=True)
    plain = soundness.checked(model, full=False)
    if own is not None and plain is None:
        return f"the source itself does not pass ONNX's full check: {flaw}"
    refused = soundness.refused(given)
    if refused is not None:
        raise ModelError(f"the model is not valid: {refused}, and ONNX's check says: {own or flaw}. Export it again.")
    if own is not None and soundness.checked(given, full=False) is not None:
        if soundness.is_runnable(model):
            return f"the source itself does not pass ONNX's check: {own}"
        raise ModelError(f"the model is not valid: it does not pass ONNX's check: {own}. Export it again.")
    raise ModelError(
        f"the converted model does not pass ONNX's {'full ' if plain is None else ''}check: {plain or flaw}. The "
        "source does, and onnxruntime loads it where that is installed, so this is a defect of gbprewrite: please "
        "report it with the model."
    )

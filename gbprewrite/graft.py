"""The backward nodes onto the source model, and off it again."""

from collections.abc import Sequence

import onnx
import onnx_graphsurgeon as gs
from onnx import ModelProto, helper, numpy_helper

from gbprewrite import modelfile, report
from gbprewrite.errors import ModelError
from gbprewrite.lowering import Builder
from gbprewrite.tensors import Tensor, node_proto, onnx_type


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
    known = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input}
    known |= {name for n in model.graph.node for name in n.output}
    for node in reversed(kept):
        # Built constants, and values of the forward graph that only the view has folded into one.
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and tensor.name not in known:
                model.graph.initializer.append(numpy_helper.from_array(tensor.values, tensor.name))
                known.add(tensor.name)
        model.graph.node.append(node_proto(node))
    for values, gained in ((model.graph.input, inputs), (model.graph.output, outputs)):
        values.extend(helper.make_tensor_value_info(t.name, onnx_type(t), t.shape) for t in gained)
    return len(kept), len(model.graph.initializer) - weights


def restore(model: ModelProto) -> ModelProto:
    """The source part of a converted model, in place: what the conversion added is taken away again.

    (Normalising stays: the opset is the result's.) A model without a record comes back as it is.
    """
    record = report.read_record(model)
    if record is None:
        return model
    for values, count in (
        (model.graph.node, record["added"]["nodes"]),
        (model.graph.initializer, record["added"]["initializers"]),
    ):
        del values[len(values) - count :]
    gained = {m["output"] for m in record["maps"]} | {record["explained_index_name"]}
    given = {record["target_name"], record["seed_name"]}
    for values, added in ((model.graph.output, gained), (model.graph.input, given)):
        kept = [v for v in values if v.name not in added]
        del values[:]
        values.extend(kept)
    entries = [e for e in model.metadata_props if e.key != report.KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(entries)
    return model


def check(model: ModelProto) -> None:
    """The standard's own full check. Raises ModelError when the model does not pass."""
    if model.ByteSize() > modelfile.PROTOBUF_LIMIT:
        return  # the checker takes a serialised message, which ends at 2 GiB
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"the converted model does not pass ONNX's full check: {str(error).splitlines()[0]}. If the source passes "
            "it (onnx.checker.check_model(..., full_check=True)), this is a defect of gbprewrite: please report it."
        ) from None

"""Operators that need no rule, because the standard defines them by a body of simpler ones, like GroupNormalization.

onnx.inliner can expand such schema functions by itself, but stops at nodes that leave out an optional input in the
middle (onnx 1.23). So each body is turned into a model-local function first, which it does inline.
"""

from collections.abc import Container
from typing import Any

import onnx
import onnx.inliner
from onnx import FunctionProto, ModelProto, NodeProto, TypeProto

from gbprewrite.model import propagation
from gbprewrite.model.file import opset_of
from gbprewrite.model.inference import typed_skeleton, types_of

DOMAIN = "gbprewrite.body"


def expand_functions(model: ModelProto, known: Container[str]) -> None:
    """Replace, in place, every node whose operator is not known by the body that the standard gives it, if any."""
    while any(_schema(node, opset_of(model), known) for node in model.graph.node):
        skeleton = typed_skeleton(model)
        types = types_of(propagation.infer_shapes(skeleton))
        for node in skeleton.graph.node:
            schema = _schema(node, opset_of(model), known)
            body = _body(schema, node, types, opset_of(model)) if schema else None
            if body is not None:
                body.name, body.domain = f"{node.op_type}_{len(skeleton.functions)}", DOMAIN
                skeleton.functions.append(body)
                node.op_type, node.domain = body.name, DOMAIN
        if not skeleton.functions:
            return
        skeleton.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
        expanded = onnx.inliner.inline_local_functions(skeleton)
        del model.graph.node[:]
        model.graph.node.extend(expanded.graph.node)


def _schema(node: NodeProto, opset: int, known: Container[str]) -> Any:
    """The schema of a node that has a body and is not known, else None."""
    if node.domain not in ("", "ai.onnx") or node.op_type in known:
        return None
    try:  # onnx 1.23 types schemas without their bodies
        schema: Any = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def _body(schema: Any, node: NodeProto, types: dict[str, TypeProto], opset: int) -> FunctionProto | None:
    """The body for one node, None where it depends on types that are not known."""
    # Bodies are written in the opset of their time. Their operators have kept their spelling since: the conformance
    # suite runs every one of them.
    versions = schema.function_opset_versions or schema.context_dependent_function_opset_versions
    version = max((v for v in versions if v <= opset), default=0)
    if not version:
        return None
    body = FunctionProto()
    if schema.has_function:
        body.ParseFromString(schema.get_function_with_opset_version(version))
    else:
        given = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
        written = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), given)
        body.ParseFromString(written)
    for entry in body.opset_import:
        entry.version = opset
    there = {a.name for a in node.attribute}
    defaults = (a.default_value for a in schema.attributes.values() if a.name not in there)
    node.attribute.extend(d for d in defaults if d.name)
    return body if body.node else None

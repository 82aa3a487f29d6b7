"""Where the way back ends: the tensors that maps are of.

They are the float inputs of a model, inner tensors that the user names, or, of an input that holds integers (a
photograph of uint8, levels of a quantised model), the first float behind it. Levels that a QLinear operator reads have
no float behind them: there it is the number that they stand for, which the view makes visible.
"""

from collections.abc import Iterable, Iterator, Sequence

import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model.names import shortlist, similar
from gbprewrite.model.tensors import Tensor, is_float, is_integer, is_quantised
from gbprewrite.view import paths
from gbprewrite.view.meaning import MEANT
from gbprewrite.view.operators import NO_GRADIENT
from gbprewrite.view.quantised import only_in_view, shown

IMAGE_RANK = 3  # integers of fewer axes are counts, classes, tokens or their masks unless they have 8 or 16 bits


def real_inputs(graph: gs.Graph, model: ModelProto) -> list[Tensor]:
    """Graph inputs that are no weights (the view lists large weights as inputs)."""
    weights = {t.name for t in model.graph.initializer}
    return [t for t in graph.inputs if t.name not in weights]


def input_tensors(
    graph: gs.Graph, model: ModelProto, names: Sequence[str] = (), optional: bool = False
) -> list[Tensor]:
    """The named inputs and inner tensors; by default every float input that is no weight, or where there is none the
    first floats behind images of integers.

    Raises UsageError for an unknown name and one that holds no floats; ModelError when the model has no input to
    explain, unless that is `optional`.
    """
    real = {t.name: t for t in real_inputs(graph, model)}
    listing = shortlist(f"{t.name} ({t.dtype})" for t in real.values())
    found: list[Tensor] = []
    for name in names:
        found += _named(real[name], listing) if name in real else [_inner(graph, name, real.values(), listing)]
    if not names:
        found = [t for t in real.values() if is_float(t)]
        found = found or [t for x in real.values() if _may_be_image(x) for t in behind(x)]
    if not found and not optional:
        raise ModelError(
            f"the model has no float input to differentiate, only: {listing}. Integers have no gradient. Name the "
            "floats behind an embedding or a cast with --input NAME ('gbprewrite layers MODEL' lists them), or export "
            "the model so that it takes these."
        )
    return list({id(t): t for t in found}.values())


def _named(x: Tensor, listing: str) -> list[Tensor]:
    if is_float(x):
        return [x]
    found = list(behind(x))
    if not found or not _may_be_image(x):
        named = [f"--input {t.name}" for t in found or behind(x, by_index=True)]
        way = f"the first floats behind them have one: {shortlist(named)}. " if named else ""
        raise UsageError(
            f"--input {x.name}: it holds {x.dtype} values, and only floats have a gradient; {way}The inputs are: "
            f"{listing}."
        )
    return found


def _may_be_image(x: Tensor) -> bool:
    return is_quantised(x) or len(x.shape or ()) >= IMAGE_RANK


def notes(graph: gs.Graph, model: ModelProto, chosen: Sequence[Tensor], names: Sequence[str]) -> list[str]:
    """What is to be said where the maps are not of the inputs that the user named, or could expect."""
    said = []
    for x in real_inputs(graph, model):
        found = [t.name for t in ([] if is_float(x) else behind(x)) if any(t is c for c in chosen)]
        if found and (x.name in names or not names):
            said.append(
                f"the input {x.name!r} holds {x.dtype} values, which have no gradient: the maps are of "
                f"{', '.join(map(repr, found))}, the first float behind it"
            )
    return said


def added_nodes(graph: gs.Graph, model: ModelProto, chosen: Sequence[Tensor]) -> list[gs.Node]:
    """The nodes of the view that make a chosen tensor which the file does not have."""
    there = {name for n in model.graph.node for name in n.output} | {i.name for i in model.graph.input}
    return [t.inputs[0] for t in chosen if t.name not in there and t.inputs]


def _inner(graph: gs.Graph, name: str, real: Iterable[Tensor], listing: str) -> Tensor:
    """A float tensor that a node computes, by its name or that of the node."""
    tensors = {t.name: t for n in graph.nodes for t in n.outputs if not only_in_view(t)}
    nodes = {n.name: shown(n.outputs[0]) for n in graph.nodes if n.outputs}
    found = tensors.get(name, nodes.get(name))
    if found is None:
        close = similar(name, [*(t.name for t in graph.inputs), *tensors, *nodes])
        advice = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"--input {name}: the model has no such input, and computes no tensor of this name.{advice} Its inputs "
            f"are: {listing}."
        )
    if found.dtype is None or not is_float(found):
        raise UsageError(
            f"--input {name}: it holds {found.dtype} values, and only floats have a gradient. Its inputs are: "
            f"{listing}; 'gbprewrite layers MODEL' lists inner tensors."
        )
    if not sources_of(found) & {t.name for t in real}:
        raise UsageError(
            f"--input {name}: weights alone decide it, so that it says nothing of an input. The inputs are: {listing}."
        )
    if found.shape is None:
        raise UsageError(f"--input {name}: its rank can't be inferred. Name a tensor of known rank.")
    return found


def behind(x: Tensor, by_index: bool = False) -> Iterator[Tensor]:
    """The first floats that are made of an input of integers; `by_index` also what they look up, as in an embedding."""
    todo, seen = [x], {id(x)}
    while todo:
        current = todo.pop(0)
        meant = current.inputs[0].inputs[0] if current.inputs and current.inputs[0].attrs.get(MEANT) else None
        if meant is not None:
            yield meant
            continue
        for node in current.outputs:
            read = node.inputs if by_index else paths.valued(node)
            by_value = node.op not in NO_GRADIENT and any(t is current for t in read)
            for y in node.outputs if by_value else []:
                if id(y) not in seen and y.dtype is not None:
                    seen.add(id(y))
                    if is_float(y) and y.shape is not None:
                        yield y
                    elif is_integer(y):
                        todo.append(y)


def sources_of(tensor: Tensor) -> set[str]:
    """The names of everything that a tensor depends on."""
    todo, names = [tensor], set()
    seen: set[int] = set()
    while todo:
        current = todo.pop()
        names.add(current.name)
        for node in current.inputs:
            if id(node) not in seen:
                seen.add(id(node))
                todo += paths.read_by(node)
    return names

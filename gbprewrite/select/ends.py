"""The last scores before outputs that have no gradient, such as class numbers: what a user may mean to explain."""

from collections import deque
from collections.abc import Iterable, Sequence

import onnx_graphsurgeon as gs

from gbprewrite.model.names import shortlist
from gbprewrite.model.tensors import Tensor, is_float
from gbprewrite.select.class_axis import words
from gbprewrite.select.final_activation import final_activation
from gbprewrite.view import paths
from gbprewrite.view.quantised import only_in_view

MOST = 50  # tensors that are looked at beside the outputs: scores lie near them


def reached(made: set[int], tensor: Tensor) -> bool:
    """Whether a float tensor is among those that differentiable steps from the inputs make."""
    return tensor.dtype is not None and is_float(tensor) and id(tensor) in made


def ends(graph: gs.Graph, inputs: Sequence[Tensor], outputs: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that inputs reach by differentiable steps and that are nearest to these outputs, or the outputs."""
    found: list[Tensor] = []
    made = paths.made_on_the_way(graph, inputs)
    todo = deque(outputs)
    seen: set[int] = set()
    most = MOST + len(todo)
    while todo and len(seen) < most:
        tensor = todo.popleft()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if reached(made, tensor) and not only_in_view(tensor):
            found.append(tensor)
        else:
            todo += [t for node in tensor.inputs for t in paths.read_by(node) if isinstance(t, gs.Variable)]
    return found


def advice(graph: gs.Graph, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """What can be explained instead of outputs that have no gradient, by name."""
    found = ends(graph, inputs, outputs)
    if not found:
        return "Choose an inner tensor with --score NAME."
    said = []
    for tensor in found:
        final = final_activation(tensor)
        shape = "" if tensor.shape is None else f" {words(tensor.shape)}"
        if final is None or final.picks is not None:
            said.append(f"--score {tensor.name}{shape}")
        else:
            said.append(f"--score {final.score.name}{shape} (or {tensor.name}, behind its {final.activation.op})")
    return f"What lies before can be explained: {shortlist(said)}."

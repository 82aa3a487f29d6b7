"""Models that draw random numbers while they run: Dropout in training mode, Bernoulli and its kin.

A map belongs to one run. What a run draws can't be computed again, so that the masks of Dropout become outputs of
their own nodes; other random numbers are values of the graph, and constants to the reverse walk. Methods that run the
network again at other points are refused, since each run would be another network.

Sources: https://onnx.ai/onnx/operators/onnx__Dropout.html, onnx__Bernoulli.html.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from gbprewrite.errors import ModelError
from gbprewrite.model.messages import graphs, names_inside
from gbprewrite.model.tensors import Tensor, constant_of

DRAWS = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
RUN_AGAIN = ("smoothgrad", "integrated_gradients")  # methods that run the network at other points


def is_active(node: gs.Node) -> bool:
    """Whether a Dropout drops anything, or may when its switch is set at run time."""
    if node.op != "Dropout" or len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    training = constant_of(node.inputs[2])
    return training is None or bool(training.any())


def draws(node: gs.Node) -> bool:
    """Whether a node gives other numbers in each run, or a branch inside it does."""
    branches = (a for a in node.attrs.values() if isinstance(a, gs.Graph))
    return node.op in DRAWS or is_active(node) or any(draws(n) for branch in branches for n in branch.nodes)


def in_model(model: ModelProto) -> bool:
    """Whether any node of a model may draw random numbers."""
    nodes = [n for graph in graphs(model.graph) for n in graph.node]
    return any(n.op_type in DRAWS or (n.op_type == "Dropout" and any(n.input[2:])) for n in nodes)


def drawing(score: Tensor) -> list[gs.Node]:
    """The nodes before a score that draw random numbers, by name."""
    from gbprewrite.view.paths import read_by  # which reads the rules, and one of these this module

    todo, seen = [score], set()
    found: dict[str, gs.Node] = {}
    while todo:
        for node in todo.pop().inputs:
            if id(node) not in seen:
                seen.add(id(node))
                todo += read_by(node)
                if draws(node):
                    found[node.name] = node
    return [found[name] for name in sorted(found)]


def refuse_other_points(score: Tensor, methods: Iterable[str]) -> None:
    """Raise ModelError where a method would run a network again that draws random numbers."""
    again = [m for m in methods if m in RUN_AGAIN]
    found = drawing(score) if again else []
    if found:
        raise ModelError(
            f"the model draws random numbers ({found[0].op} node {found[0].name!r}), so that each of the points of "
            f"{again[0]} would be a run of another network. Use a method of one run, such as gradient or guided, or "
            "export the model for inference."
        )


def notes(score: Tensor) -> list[str]:
    """What is to be said of a model whose runs differ; nothing for any other."""
    found = drawing(score)
    kinds = ", ".join(dict.fromkeys(n.op for n in found))
    said = f"the model draws random numbers ({kinds}): each run has other maps, those of its own draw"
    return [said] if found else []


def show_masks(model: ModelProto, graph: gs.Graph, nodes: Sequence[gs.Node], prefix: str) -> list[str]:
    """Give each active Dropout among the nodes its optional output, the mask, in the view and in the model.

    Returns the names of those that the source did not ask for.
    """
    silent = [n for n in nodes if is_active(n) and (len(n.outputs) < 2 or not n.outputs[1].name)]
    made_by = {n.output[0]: n for n in model.graph.node if n.op_type == "Dropout"} if silent else {}
    taken = {t.name for n in graph.nodes for t in [*n.inputs, *n.outputs]} | names_inside(model.graph)
    names = []
    for node in silent:
        y = node.outputs[0]
        source = made_by.get(y.name)
        if source is None:  # in a branch, of which the rule says what is wrong
            continue
        name = f"{prefix}{y.name}_mask"
        while name in taken:
            name += "_"
        taken.add(name)
        node.outputs = [y, gs.Variable(name, np.dtype(bool), y.shape)]
        source.output[:] = [y.name, name]
        names.append(name)
    return names


def hide_masks(model: ModelProto, names: Sequence[str]) -> None:
    """Undo `show_masks` in a model, in place."""
    for node in model.graph.node:
        if len(node.output) > 1 and node.output[1] in names:
            del node.output[1:]

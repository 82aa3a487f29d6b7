"""A final Softmax, LogSoftmax or Sigmoid, and the nodes behind it that only move its values."""

from collections.abc import Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, ValueInfoProto

from gbprewrite.model.tensors import Tensor, fixed, is_float, is_quantised

ACTIVATIONS = ("Softmax", "LogSoftmax", "Sigmoid")
KEEPS = ("Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear")
MOVES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
PICKS = ("Gather", "Slice", "Split")  # move values, too, where they take all of them


class Final(NamedTuple):
    """The activation, and the nodes `behind` it, in order, down to the output. `moves` are those of them that change a
    shape or an order; `picks` is one that takes only some of the values, so that what lies before it has others too."""

    activation: gs.Node
    behind: list[gs.Node]
    moves: list[gs.Node]
    picks: gs.Node | None

    @property
    def class_axis(self) -> int | None:
        """The axis along which a Softmax runs, in its own tensor."""
        return None if self.activation.op == "Sigmoid" else int(self.activation.attrs.get("axis", -1))

    @property
    def score(self) -> Tensor:
        """What the activation reads."""
        return self.activation.inputs[0]


def final_activation(output: Tensor) -> Final | None:
    """The activation whose values an output has, None without one."""
    behind: list[gs.Node] = []
    moves: list[gs.Node] = []
    picks: gs.Node | None = None
    current = output
    while isinstance(current, gs.Variable) and current.inputs:
        node = current.inputs[0]
        if node.op in ACTIVATIONS:
            return Final(node, behind[::-1], moves[::-1], picks)
        if node.op not in (*KEEPS, *MOVES, *PICKS) or not _is_real(node.inputs[0]):
            break
        behind.append(node)
        if node.op in PICKS and not _takes_all(node):
            picks = node
        elif node.op not in KEEPS:
            moves.append(node)
        current = node.inputs[0]
    return None


def _is_real(t: Tensor) -> bool:
    """Whether a tensor holds floats, or the levels that stand for them behind a QuantizeLinear."""
    return is_float(t) or (is_quantised(t) and bool(t.inputs))


def _takes_all(node: gs.Node) -> bool:
    """Whether a node that could take some of the values takes all of them."""
    x, y = node.inputs[0], node.outputs[0]
    if x.shape is None or y.shape is None or len(node.outputs) > 1 or not all(map(fixed, (*x.shape, *y.shape))):
        return False
    if node.op == "Gather":  # the single value of an axis
        axis = node.attrs.get("axis", 0) % len(x.shape)
        return x.shape[axis] == 1 and [d for d in x.shape if d != 1] == [d for d in y.shape if d != 1]
    return bool(list(x.shape) == list(y.shape))


def source_of(model: ModelProto, output: str) -> NodeProto | None:
    """The node that computed the values of an output, before others moved them; None where these are an input's."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get(output)
    while node is not None and node.op_type in (*KEEPS, *MOVES, *PICKS):
        node = producers.get(node.input[0])
    return node


def show_score(model: ModelProto, score: str, moved: Sequence[str]) -> str:
    """Put a score among a model's outputs, in place, in the shape in which it is counted: moved as the nodes move that
    make the values `moved`. Returns the output's name."""
    shown = score
    for name in moved:
        node = NodeProto()
        node.CopyFrom(next(n for n in model.graph.node if name in n.output))
        node.input[0], node.name, node.output[0] = shown, f"{name}/of the score", f"{name}/of the score"
        model.graph.node.append(node)
        shown = node.output[0]
    if shown not in {o.name for o in model.graph.output}:
        model.graph.output.append(ValueInfoProto(name=shown))
    return shown

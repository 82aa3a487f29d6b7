"""What is explained, once it is found in the graph (`score` finds it): output, score, inputs, the nodes between."""

from typing import NamedTuple

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor
from gbprewrite.select.class_axis import Counting
from gbprewrite.select.final_activation import Final


class Selection(NamedTuple):
    """The graph output that was chosen, the score that is explained for it (the tensor before a final Softmax or
    Sigmoid, `stepped_over`), how that is counted, the inputs, and the nodes on the way, in the graph's order."""

    output: Tensor
    score: Tensor
    stepped_over: list[gs.Node]
    counting: Counting
    inputs: list[Tensor]
    nodes: list[gs.Node]
    notes: list[str]

    @property
    def class_axis(self) -> int | None:
        """The axis of the classes, in the shape of the output; None where there is none, or nobody knows."""
        return self.counting.class_axis


class Way(NamedTuple):
    """From the inputs that were asked for to the score: the output that leads to it, its `final` activation, what of
    that is stepped `over`, the nodes on the way, and what must be said."""

    output: Tensor
    score: Tensor
    final: Final | None
    over: Final | None
    inputs: list[Tensor]
    nodes: list[gs.Node]
    notes: list[str]

"""The model and its gradient once more inside the same file, on another batch: the same nodes, the same weights.

Integrated gradients and SmoothGrad average the gradient over points around an input. The points are one batch of a
second instance, whose initializers are those of the first; where the model fixes its batch, each has an instance.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_graphsurgeon as gs
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from gbprewrite.backward.builder import Builder
from gbprewrite.model.messages import captured, reads, rename
from gbprewrite.model.tensors import Tensor


class Appended(NamedTuple):
    """What a conversion to the gradient appended: the input for the cotangent, the map of each input, and how many
    nodes and initializers stand at the end of their lists."""

    seed: str
    maps: Mapping[str, str]
    nodes: int
    initializers: int


class Instances:
    """Builds instances of a model, which is the source converted: the map "gradient", the target "seed".

    What depends on weights alone is built once; the source's own part of that is there already.
    """

    def __init__(self, op: Builder, model: ModelProto, added: Appended) -> None:
        graph = model.graph
        self.op, self.nodes, self.seed = op, list(graph.node), added.seed
        self.maps = added.maps
        weights = {t.name for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in {*weights, self.seed}]
        own = graph.initializer[len(weights) - added.initializers :]
        self._tensors: dict[str, Tensor] = {t.name: op.constant(numpy_helper.to_array(t)) for t in own}
        self._late = _depending(self.nodes, {self.seed})
        self._early = _depending(self.nodes, set(self.inputs)) - self._late
        source = range(len(self.nodes) - added.nodes)
        self._build(set(range(len(self.nodes))) - {*source, *self._early, *self._late}, self._tensors, "weights")

    def nodes_of_one(self, seeds: int) -> int:
        """How many nodes a call of `gradients` makes."""
        return len(self._early) + seeds * len(self._late)

    def gradients(self, given: Mapping[str, Tensor], seeds: Sequence[Tensor], tag: str) -> dict[str, list[Tensor]]:
        """Of each input its gradients [batch, ...], one for each seed, where the model's inputs are `given`."""
        forward = {**self._tensors, **given}
        self._build(self._early, forward, tag)
        found: dict[str, list[Tensor]] = {x: [] for x in self.maps}
        for dy in seeds:
            tensors = {**forward, self.seed: dy}
            self._build(self._late, tensors, tag)
            for x, name in self.maps.items():
                found[x].append(tensors[name])
                self.op.declare(found[x][-1], given[x].shape, given[x].dtype)
        return found

    def _build(self, chosen: set[int], tensors: dict[str, Tensor], tag: str) -> None:
        """Copies of these nodes; `tensors` says what a name stands for, and is told what the copies make."""
        for node in (self.nodes[i] for i in sorted(chosen)):
            for name in (n for a in node.attribute if a.HasField("g") for n in captured(a.g)):
                if isinstance(tensors.get(name), gs.Constant):
                    tensors[name] = self.op.Identity(tensors[name])  # graft looks for constants among inputs only
            tensors |= {
                name: gs.Variable(self.op.unique(f"{self.op.prefix}{tag}/{name}")) for name in node.output if name
            }
            self.op.nodes.append(_copy(node, tensors, self.op.unique(f"{self.op.prefix}{tag}/{node.name}")))


def _copy(node: NodeProto, tensors: Mapping[str, Tensor], name: str) -> gs.Node:
    """The node on other tensors, as graphsurgeon keeps it."""
    used = {old: tensors[old] for old in (*reads(node), *node.output) if old in tensors}
    holder = GraphProto()  # rename also reaches into the graphs that a node holds
    holder.node.append(node)
    rename(holder, {old: tensor.name for old, tensor in used.items()})
    known = {tensor.name: tensor for tensor in used.values()}
    attributes = {a.name: a.g if a.HasField("g") else a for a in holder.node[0].attribute}
    inputs, outputs = (
        [known[n] if n in known else gs.Variable(n) for n in names]
        for names in (holder.node[0].input, holder.node[0].output)
    )
    return gs.Node(node.op_type, name, attributes, inputs, outputs, domain=node.domain)


def _depending(nodes: Sequence[NodeProto], names: set[str]) -> set[int]:
    """Positions of the nodes that depend on any of these values."""
    reached, found = set(names), set()
    for i, node in enumerate(nodes):
        if any(name in reached for name in reads(node)):
            found.add(i)
            reached.update(name for name in node.output if name)
    return found

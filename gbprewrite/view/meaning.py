"""The real numbers that an input's levels stand for, where QLinear operators read the levels themselves.

A map needs a tensor of real numbers. The view gets one, dequantised from the levels, and the levels made of it again,
by a node that no file needs: the levels are there under the same name.
"""

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.model.qlinear import OPERANDS, operands
from gbprewrite.model.tensors import Tensor, is_integer, is_quantised
from gbprewrite.view.operators import NO_GRADIENT

MEANT = "gbprewrite_meant"  # attribute of a QuantizeLinear that only the view has


def show_meaning(graph: gs.Graph, inputs: Collection[str]) -> None:
    """Put into the view what the levels of these inputs stand for, where QLinear operators read them."""
    for x in [t for t in graph.inputs if t.name in inputs and is_integer(t)]:
        todo, seen = [x], set()
        while todo:
            current = todo.pop()
            readers = [n for n in current.outputs if n.op in OPERANDS or n.op == "QLinearConcat"]
            read = [v for n in readers for v in operands(n) if v[0] is current]
            if read and is_quantised(current):
                _insert(graph, current, *read[0][1:])
                continue
            for node in current.outputs:
                if id(node) not in seen and node.op not in NO_GRADIENT and node.op not in OPERANDS:
                    seen.add(id(node))
                    todo += [t for t in node.outputs if t.dtype is not None and is_integer(t)]


def _insert(graph: gs.Graph, levels: Tensor, scale: Tensor, zero: Tensor) -> None:
    given = gs.Variable(levels.name, levels.dtype, levels.shape)
    maker = levels.inputs[0] if levels.inputs else None
    if maker is not None:
        maker.outputs = [given if t is levels else t for t in maker.outputs]
    name = f"{levels.name}_dequantized"
    meant = gs.Variable(name, np.dtype(np.float32), levels.shape)
    step = [scale, zero] if zero.name else [scale]
    first = gs.Node("DequantizeLinear", name, {}, [given, *step], [meant])
    again = gs.Node("QuantizeLinear", f"{name}/again", {"bottom": "output", MEANT: 1}, [meant, *step], [levels])
    place = 0 if maker is None else next(i for i, n in enumerate(graph.nodes) if n is maker) + 1
    graph.nodes[place:place] = [first, again]

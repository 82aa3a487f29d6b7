"""What shortens the way back: concatenations nested, padding absorbed by convolutions."""

from typing import Any

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import constant_of, producer
from gbprewrite.view.idioms import scalar


def nest_concatenations(graph: gs.Graph) -> None:
    """A concatenation that starts with all the parts of an earlier one reads that one.

    The layers of a DenseNet concatenate everything before them. Differentiated as they stand, each hands a sliver to
    each of its predecessors, and the number of sums grows with the square of the depth.
    """
    earlier: dict[int, gs.Tensor] = {}
    begun: dict[tuple[int, Any], int] = {}  # the first parts of any concatenation, each with one more, are numbered
    for node in graph.nodes:
        if node.op != "Concat" or node.domain not in (None, "", "ai.onnx"):
            continue
        parts = list(node.inputs)
        keys = [begun.setdefault((0, node.attrs.get("axis")), len(begun) + 1)]
        for part in parts:
            keys.append(begun.setdefault((keys[-1], id(part)), len(begun) + 1))
        longest = next((n for n in range(len(parts) - 1, 1, -1) if keys[n] in earlier), None)
        if longest is not None:
            node.inputs = [earlier[keys[longest]], *parts[longest:]]
        earlier.setdefault(keys[-1], node.outputs[0])


def absorb_padding(graph: gs.Graph) -> None:
    """A Conv behind a Pad with zeros pads for itself, so that nothing has to be cut off on the way back.

    Keras and TensorFlow write the padding of strided convolutions in this way.
    """
    for node in graph.nodes:
        pad = producer(node.inputs[0]) if node.op == "Conv" and node.inputs else None
        widths = _zeros_around(pad) if pad is not None else None
        if pad is None or widths is None or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        own = node.attrs.get("pads") or [0] * len(widths)
        if node.attrs.pop("auto_pad", "NOTSET") == "VALID":
            own = [0] * len(widths)
        node.attrs["pads"] = [a + b for a, b in zip(own, widths, strict=True)]
        node.inputs = [pad.inputs[0], *node.inputs[1:]]


def _zeros_around(pad: gs.Node) -> list[int] | None:
    """The spatial widths of a Pad with zeros, as a Conv's pads; None for any other node."""
    if pad.op != "Pad" or pad.attrs.get("mode", "constant") != "constant" or len(pad.inputs) > 3:
        return None  # with axes is rare
    given = constant_of(pad.inputs[1])
    zero = len(pad.inputs) < 3 or not pad.inputs[2].name or scalar(pad.inputs[2]) == 0
    if given is None or not zero or pad.inputs[0].shape is None or len(given) != 2 * len(pad.inputs[0].shape):
        return None
    half = len(given) // 2
    widths = [int(n) for n in given]
    if any(widths[:2]) or any(widths[half : half + 2]) or min(widths) < 0:
        return None
    return widths[2:half] + widths[half + 2 :]

"""Which unknown sizes are the same: names for what ONNX's shape inference leaves open.

Inference gives every size that it can't compute a name of its own (unk__7), so that the two branches of a residual sum
seem to differ. Sizes that come from the same size by the same arithmetic are equal, and get one name here. Then nobody
has to ask at run time whether one was broadcast to the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from onnx import GraphProto, NodeProto, helper, numpy_helper

from gbprewrite.model.tensors import read_type

UNKNOWN = "unk__"  # how inference's own names begin
WINDOWS = ("AveragePool", "Conv", "LpPool", "MaxPool")
ALIGNED = ("Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where")
Size = Any  # int, a name, a tuple that says how it is computed, or None
Shape = list[Size]


def unify(graph: GraphProto) -> None:
    """Rename the sizes that values of a graph are declared with, in place, so that equal ones share a name."""
    found = _Sizes(graph)
    for node in graph.node:
        found.look_at(node)
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                size = found.known(dim.dim_param)
                dim.Clear()
                if isinstance(size, int):
                    dim.dim_value = size
                else:
                    dim.dim_param = size


class _Sizes:
    """What is known of the names so far."""

    def __init__(self, graph: GraphProto) -> None:
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes: dict[str, Shape | None] = {v.name: read_type(v.type)[1] for v in values}
        self.shapes |= {t.name: list(t.dims) for t in graph.initializer}
        self.constants = {t.name: t for t in graph.initializer}
        self._same: dict[str, Size] = {}
        self._made: dict[Any, Size] = {}

    def known(self, size: Size) -> Size:
        """A size under the name that it shares with its equals, or its number."""
        while isinstance(size, str) and size in self._same:
            size = self._same[size]
        return size

    def look_at(self, node: NodeProto) -> None:
        """Learn what an operator says about its sizes."""
        if node.domain not in ("", "ai.onnx"):
            return
        inputs = [self.shapes.get(name) for name in node.input]
        output = self.shapes.get(node.output[0]) if node.output else None
        if output is None or not inputs or inputs[0] is None:
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        for size, wanted in self._claims(node, attributes, inputs, output):
            self._equal(size, wanted)

    def _equal(self, a: Size, b: Size) -> None:
        """Two sizes are one; `b` may be a tuple, which gets the name of the first size that is made so."""
        a, b = self.known(a), self.known(b)
        if isinstance(b, tuple):
            b = self.known(self._made.setdefault(b, a))
        for one, other in ((a, b), (b, a)):
            if isinstance(one, str) and one.startswith(UNKNOWN) and other is not None and one != other:
                self._same[one] = other
                return

    def _claims(
        self, node: NodeProto, attributes: Mapping[str, Any], inputs: Sequence[Shape | None], output: Shape
    ) -> Iterator[tuple[Size, Size]]:
        """(size, what it is equal to)."""
        x = inputs[0]
        assert x is not None
        if node.op_type in WINDOWS:
            weights = inputs[1] if node.op_type == "Conv" else None
            yield from zip(output[2:], self._windows(attributes, x[2:], (weights or [])[2:]), strict=False)
        elif node.op_type in ALIGNED:
            yield from ((size, self._joined(inputs, i - len(output))) for i, size in enumerate(output))
        elif node.op_type == "Resize" and len(node.input) > 2 and node.input[2] in self.constants:
            yield from zip(output, self._scaled(node, attributes, x), strict=False)
        elif node.op_type == "Concat":
            yield from self._concatenated(attributes["axis"], inputs, output)
        elif node.op_type == "Gemm" and len(x) == 2 and inputs[1] is not None and len(inputs[1]) == 2:
            rows, inner = x[::-1] if attributes.get("transA") else x
            yield rows, output[0]
            yield inner, inputs[1][1 if attributes.get("transB") else 0]

    def _windows(self, attributes: Mapping[str, Any], sizes: Shape, weights: Shape) -> Iterator[Size]:
        """What windows make of each size."""
        n = len(sizes)
        kernel = attributes.get("kernel_shape") or weights
        strides, dilations = (attributes.get(name) or [1] * n for name in ("strides", "dilations"))
        pads = attributes.get("pads") or [0] * (2 * n)
        auto_pad = attributes.get("auto_pad", b"NOTSET").decode()
        if len(kernel) != n or not all(isinstance(k, int) for k in kernel):
            return
        for i, size in enumerate(map(self.known, sizes)):
            change = pads[i] + pads[i + n] - dilations[i] * (kernel[i] - 1) - 1
            same = auto_pad.startswith("SAME")
            if size is None:
                yield None
            elif strides[i] == 1 and (same or (change == -1 and auto_pad in ("NOTSET", ""))):
                yield size
            else:
                yield "windows", size, strides[i], auto_pad if same else change, attributes.get("ceil_mode", 0)

    def _joined(self, inputs: Sequence[Shape | None], axis: int) -> Size:
        """The one size, beside 1, that all inputs have on an axis, counted from the end."""
        if any(shape is None for shape in inputs):
            return None
        sizes = {self.known(s[axis]) for s in inputs if s is not None and len(s) >= -axis} - {1}
        return sizes.pop() if len(sizes) == 1 else None

    def _scaled(self, node: NodeProto, attributes: Mapping[str, Any], sizes: Shape) -> Iterator[Size]:
        """What a Resize with known scales makes of each size."""
        scales = numpy_helper.to_array(self.constants[node.input[2]])
        if len(scales) != len(sizes) or attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize":
            return
        for size, scale in zip(map(self.known, sizes), scales.tolist(), strict=True):
            yield size if scale == 1 or size is None else ("scaled", size, scale)

    def _concatenated(self, axis: int, inputs: Sequence[Shape | None], output: Shape) -> Iterator[tuple[Size, Size]]:
        """On other axes than its own, all sizes of a Concat are the same."""
        for shape in (s for s in inputs if s is not None and len(s) == len(output)):
            yield from (pair for i, pair in enumerate(zip(output, shape, strict=True)) if i != axis % len(output))

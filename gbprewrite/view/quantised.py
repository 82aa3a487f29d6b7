"""Quantised graphs in the view: which integers stand for real numbers, and which saturation hides a ReLU.

A quantiser takes a ReLU out where the range of what it quantises begins at zero anyway. Such a ReLU is there where
computed numbers of either sign are cut off at zero. It is not there where nothing can lie below zero, and where only
an activation does that dips a little below it (GELU's least value is -0.17): then the range was calibrated so.
"""

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from gbprewrite.errors import ModelError
from gbprewrite.model.qlinear import DOMAIN, QLINEAR, operands
from gbprewrite.model.tensors import Tensor, constant_of, is_quantised, quantised_range
from gbprewrite.view.idioms import RAMP, producer
from gbprewrite.view.ranges import Ranges, values_of

# Operators that hand the meaning of quantised values on: what they give out is in the scale of what they take.
MOVED = frozenset(
    (
        *("Cast", "Identity", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Expand", "Tile"),
        *("Concat", "Split", "Slice", "Gather", "Pad", "DepthToSpace", "SpaceToDepth"),
    )
)
PICKED = frozenset(
    (
        *("CastLike", "Compress", "GatherElements", "GatherND", "Max", "Min", "ReduceMax", "ReduceMin", "Resize"),
        *("ReverseSequence", "ScatterElements", "ScatterND", "TopK", "Trilu", "Where"),
    )
)
CARRIERS = MOVED | PICKED | {"MaxPool"}
GIVES_OUT = MOVED | {"DequantizeLinear", "Softmax", "LogSoftmax", "Sigmoid"}
STAND_INS = ("QuantizeLinear", "DequantizeLinear", "Saturation")
# What makes numbers of either sign; a quantiser takes a ReLU out behind any of these.
COMPUTES = frozenset(
    (
        *("BatchNormalization", "Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "GroupNormalization", "If"),
        *("InstanceNormalization", "LayerNormalization", "MatMul", "MeanVarianceNormalization", "Neg", "QGemm"),
        *("QLinearConv", "QLinearMatMul", "RMSNormalization", "Sub"),
    )
)
# What is below zero only where something that it reads is.
MIXES = CARRIERS - {"Resize"} | {
    *("Add", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpNormalization", "LRN", "Mean", "QLinearAdd"),
    *("QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "ReduceMean", "ReduceSum", "Sum"),
    *STAND_INS,
}
PRODUCTS = ("Mul", "QLinearMul", "Div")
GATING = ("Clip", "Erf", "HardSigmoid", "QLinearSigmoid", "Sigmoid", "Tanh")
POINTWISE = frozenset(
    ("Add", "Exp", "Log", "Max", "Min", "Pow", "QLinearAdd", "Relu", "Softplus", "Sub", *GATING, *PRODUCTS, *STAND_INS)
)
ACTIVATIONS = frozenset(
    (
        *("Celu", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "QLinearLeakyRelu"),
        *("QLinearSigmoid", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"),
    )
)
LOOK_BACK = 32  # nodes between an activation's product and what it is an activation of


def split(graph: gs.Graph) -> None:
    """Put a Saturation behind every QLinear operator, so that each of the two has a rule of its own."""
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        nodes.append(node)
        if node.op not in QLINEAR or node.domain not in (None, "", "ai.onnx", DOMAIN):
            continue
        if node.attrs.pop("channels_last", 0):
            raise ModelError(
                f"onnxruntime optimised the model for this kind of processor: {node.op} {node.name!r} has its channels "
                "last. Convert the source model instead, or save it again at the level ORT_ENABLE_EXTENDED."
            )
        node.domain = ""
        y = node.outputs[0]
        scale, zero = QLINEAR[node.op]
        if len(node.inputs) <= zero or not is_quantised(y):  # QGemm may give its floats away
            continue
        real = gs.Variable(f"{y.name}/real", np.dtype(np.float32), y.shape)
        node.outputs = [real]
        saturation = gs.Node("Saturation", f"{node.name}/Saturation", {}, [real], [y])
        saturation.attrs |= {"scale": node.inputs[scale], "zero": node.inputs[zero]}
        nodes.append(saturation)
    graph.nodes = nodes


def mark(graph: gs.Graph, given_out: Sequence[Tensor]) -> None:
    """Say of every saturation, in its attribute `bottom`, what the lower end of its range is.

    "relu" where it cuts computed values off at zero, "open" where nothing can lie below it, "output" where computed
    values only leave the model as those `given_out`, else "closed". Ramps of hard-sigmoids get the mark that idioms do.
    """
    outputs = {id(t) for t in given_out}
    ranges = Ranges()
    saturations = [n for n in graph.nodes if n.op in ("QuantizeLinear", "Saturation") and _is_standard(n)]
    for node in (n for n in saturations if "bottom" not in n.attrs):
        node.attrs["bottom"] = _bottom(node, outputs, ranges)
    for node in graph.nodes if saturations else []:
        if (node.attrs.get("bottom") == "relu" or node.op in ("Clip", "Relu")) and _is_ramp(node, ranges):
            node.attrs[RAMP] = True


def _is_standard(node: gs.Node) -> bool:
    return node.domain in (None, "", "ai.onnx")


def _bottom(node: gs.Node, outputs: set[int], ranges: Ranges) -> str:
    if not node.inputs[0].inputs:  # an input's range is the user's choice, not a ReLU
        return "closed"
    if not _begins_at_zero(node):
        return "output" if _given_out(node.outputs[0], outputs) else "closed"
    if ranges.never_negative(node.inputs[0]):
        return "open"
    return "relu" if _hides_relu(node.inputs[0], ranges) and not _is_activated(node) else "closed"


def _begins_at_zero(node: gs.Node) -> bool:
    """Whether the lowest level of what a node quantises to stands for zero."""
    zero = node.attrs["zero"] if node.op == "Saturation" else [*node.inputs, None, None][2]
    value = np.zeros(1) if zero is None or not zero.name else constant_of(zero)
    return value is not None and value.size > 0 and bool((value == quantised_range(node.outputs[0])[0]).all())


def _given_out(tensor: Tensor, outputs: set[int]) -> bool:
    """Whether values only leave the graph: dequantised, moved, or as probabilities."""
    todo, seen = [tensor], set()
    while todo:
        current = todo.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if any(n.op not in GIVES_OUT for n in current.outputs) or not (current.outputs or id(current) in outputs):
            return False
        todo += [t for n in current.outputs for t in n.outputs]
    return True


def _hides_relu(tensor: Tensor, ranges: Ranges) -> bool:
    """Whether what lies below zero here was computed, and comes neither from an activation nor from the caller."""
    if _is_given(tensor):
        return False
    todo, seen = [tensor], set()
    while todo:
        current = todo.pop()
        if id(current) in seen or ranges.never_negative(current):
            continue
        seen.add(id(current))
        node = producer(current)
        if node is None or node.op in COMPUTES:
            return True
        values = [t for t, *_ in values_of(node)]
        if node.op in MIXES:
            todo += values
        elif node.op in PRODUCTS and not gates_itself(node):
            signed = [t for t in values if not ranges.never_negative(t)]
            if len(signed) != 1 or (node.op == "Div" and signed[0] is values[1]):
                return True
            todo += signed
    return False


def _is_activated(node: gs.Node) -> bool:
    """Whether an activation of its own reads what a node quantises: no network puts one behind a ReLU.

    A squeeze-and-excitation block has one number for each channel, and few pictures may make it positive each time.
    """
    x, todo, seen = peeled(node.inputs[0]), [node.outputs[0]], {id(node)}
    readers: list[gs.Node] = []
    while todo:
        for consumer in todo.pop().outputs:
            if consumer.op in STAND_INS:
                todo += consumer.outputs
            else:
                readers.append(consumer)
    if readers and all(n.op in ACTIVATIONS for n in readers):
        return True
    todo = [t for n in readers if n.op in POINTWISE for t in n.outputs]
    found = [n for n in readers if n.op in PRODUCTS]
    while todo and len(seen) < LOOK_BACK:
        for consumer in todo.pop().outputs:
            if id(consumer) not in seen and consumer.op in POINTWISE:
                seen.add(id(consumer))
                found.append(consumer)
                todo += consumer.outputs
    return any(n.op in PRODUCTS and gates_itself(n) and any(peeled(t) is x for t, *_ in operands(n)) for n in found)


def _is_given(tensor: Tensor) -> bool:
    """Whether a value is an input of the model, only moved or scaled: its range is the user's choice."""
    while (node := producer(tensor := peeled(tensor))) is not None and node.op in MOVED - {"Concat"}:
        tensor = node.inputs[0]
    return node is None and not isinstance(tensor, gs.Constant)


def gates_itself(product: gs.Node) -> bool:
    """Whether a node computes x · g(x) with a gate g: an activation such as GELU, SiLU or hard-swish, written out."""
    values = [t for t, *_ in operands(product)]
    if product.op == "Div" or len(values) != 2:
        return False
    return any(_gate_of(peeled(x), gate) for x, gate in (values, values[::-1]))


def _gate_of(x: Tensor, gate: Tensor) -> bool:
    """Whether a value is computed from x, number by number and with a function that is bounded."""
    seen: set[int] = set()
    todo, bounded, reached = [gate], False, False
    while todo and len(seen) < LOOK_BACK:
        current = todo.pop()
        node = producer(current)
        reached |= current is x
        if id(current) in seen or current is x or node is None or node.op not in POINTWISE:
            continue
        seen.add(id(current))
        bounded |= node.op in GATING or node.attrs.get("bottom") == "relu"
        todo += [t for t, *_ in values_of(node)]
    return bounded and reached


def peeled(tensor: Tensor) -> Tensor:
    """The number that was quantised to become this one; before positive factors, too."""
    while (node := producer(tensor)) is not None:
        values = [t for t, *_ in operands(node)]
        if node.op in STAND_INS or (node.op in PRODUCTS and is_weight(values[-1])):
            tensor = values[0]
        elif node.op in PRODUCTS and is_weight(values[0]) and node.op != "Div":
            tensor = values[-1]
        else:
            break
    return tensor


def is_weight(tensor: Tensor) -> bool:
    """Whether a value is a constant, a quantised one too."""
    while (node := producer(tensor)) is not None and node.op in STAND_INS:
        tensor = node.inputs[0]
    return isinstance(tensor, gs.Constant)


def scale_of(levels: Tensor) -> Tensor | None:
    """The scale of quantised numbers, a scalar, where their own graph tells it."""
    meaning = meaning_of(levels)
    return None if meaning is None else meaning[0]


def only_in_view(tensor: Tensor) -> bool:
    """Whether a value is the number that a QLinear operator quantises, which the file never holds."""
    return any(n.op in QLINEAR for n in tensor.inputs) and any(n.op == "Saturation" for n in tensor.outputs)


def shown(tensor: Tensor) -> Tensor:
    """What the file has of a value: the levels that it is quantised to, or itself."""
    return next(n.outputs[0] for n in tensor.outputs if n.op == "Saturation") if only_in_view(tensor) else tensor


def meaning_of(levels: Tensor, made_by: Sequence[str] = ("QuantizeLinear", "Saturation")) -> list[Tensor] | None:
    """The scale, a scalar, and the zero point (if any) of quantised numbers, where their own graph tells them."""
    while (node := producer(levels)) is not None and node.op in CARRIERS:
        levels = node.inputs[1 if node.op == "Where" else 0]
    if node is None or node.op not in made_by:
        return None
    told = [node.attrs["scale"], node.attrs["zero"]] if node.op == "Saturation" else list(node.inputs[1:])
    return [t for t in told if t.name] if told[0].shape in ([], [1], (), (1,)) else None


def _is_ramp(node: gs.Node, ranges: Ranges) -> bool:
    """Whether a saturation at zero is the one of clip(x + c, 0, 2c), the ramp of a hard-sigmoid or hard-swish.

    Where nothing is quantised in between, idioms.py has found these already.
    """
    above = node.inputs[0]
    while (made := producer(above)) is not None and made.op in STAND_INS:
        above = made.inputs[0]
    unquantised = above is node.inputs[0] and node.op in ("Clip", "Relu")
    if made is None or made.op not in ("Add", "QLinearAdd") or unquantised:
        return False
    for (x, *_), shift in zip(operands(made), operands(made)[::-1], strict=True):
        c = ranges.of_value(*shift)
        if is_weight(shift[0]) and 0 < c.low == c.high:
            return _scales_ramp(node, peeled(x), c.low, ranges)
    return False


def _scales_ramp(ramp: gs.Node, x: Tensor, shift: float, ranges: Ranges) -> bool:
    """Whether a ramp of x + shift comes to 1/2 where x is 0, or multiplies x itself."""
    seen: set[int] = set()
    todo = [ramp.outputs[0]]
    while todo and len(seen) < LOOK_BACK:
        for consumer in todo.pop().outputs:
            if id(consumer) in seen:
                continue
            seen.add(id(consumer))
            if consumer.op in ("Mul", "QLinearMul", "Div"):
                values = operands(consumer)
                factors = [ranges.of_value(*v).low for v in values if is_weight(v[0])]
                times = [1 / f if consumer.op == "Div" and f else f for f in factors]
                if any(abs(shift * f - 0.5) < 0.02 for f in times) or any(peeled(v[0]) is x for v in values):
                    return True
            elif consumer.op in ("Clip", "Min", *STAND_INS):
                todo += consumer.outputs
    return False

"""What looks like a rectifier and has no name: listed, so that no new spelling of ReLU stays plain in silence.

Gate-like is a Where or a product whose mask depends on the sign of the very tensor that it masks, and a Max, Min or
Clip against zero. Swish, squeeze-and-excitation, softmax and dropout have no such mask.
"""

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from gbprewrite.model.tensors import Tensor, is_float, producer
from gbprewrite.view.forms import HANDED_ON, Forms
from gbprewrite.view.piecewise import IDENTITY, ONE, Pieces, number_of

GATE_LIKE = "gbprewrite_gate_like"  # attribute of a node of the view
ORDER = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sign", "Ceil", "Floor", "Round")
SIMPLE = ("Add", "Sub", "Mul", "Div", "Neg", "Max", "Min", "Relu", "Clip")
MASKS = (*HANDED_ON, *SIMPLE, "Not", "And", "Or", "Xor", "Where")
OF_ONE = (*HANDED_ON, *SIMPLE, "Abs", "Pow", "Sqrt", "Exp", "Sigmoid", "Tanh", "HardSigmoid", "Softsign", "Erf", "Atan")
MOST_NODES = 64  # that are looked at behind one mask


def is_gate_like(node: gs.Node, forms: Forms) -> bool:
    """Whether a node that no rule of the table names masks a tensor by its own sign."""
    if node.domain not in (None, "", "ai.onnx") or not node.outputs or node.outputs[0].dtype is None:
        return False
    if not is_float(node.outputs[0]) or forms.number(node.outputs[0]) is not None:
        return False
    if node.op in ("Max", "Min", "Clip"):
        return _against_zero(node, forms) and not _is_clip_from_zero(node, forms)
    if _is_limit(node, forms):
        return False
    if node.op in ("Where", "ScatterND"):
        masked = node.inputs[1:] if node.op == "Where" else [node.inputs[0], node.inputs[2]]
        tests = _tests(node.inputs[0] if node.op == "Where" else node.inputs[1])
        hides = any(map(forms.is_zero, masked)) or any(_tests_sign(test, forms) for test in tests)
        return hides and _meet(tests, masked, forms)
    if node.op == "Mul" and len(node.inputs) == 2:
        pairs = (node.inputs, node.inputs[::-1])
        return any(_is_mask(mask, forms) and _meet(_tests(mask), [x], forms) for x, mask in pairs)
    if node.op in ("TopK", "MaxPool", "GatherElements"):
        return _orders_zeros(node, forms)
    return node.op in ("Add", "Sub", "Sum", "Div", "Neg", "ReduceMax") and _makes_a_bend(node, forms)


def _against_zero(node: gs.Node, forms: Forms) -> bool:
    return any(t.name and forms.is_zero(t) for t in (node.inputs[1:] if node.op == "Clip" else node.inputs))


def _is_clip_from_zero(node: gs.Node, forms: Forms) -> bool:
    low = node.inputs[1] if node.op == "Clip" and len(node.inputs) > 1 else None
    return isinstance(low, gs.Constant) and forms.is_zero(low)


def _meet(tests: Sequence[gs.Node], masked: Sequence[Tensor], forms: Forms) -> bool:
    """Whether comparisons test what is masked."""
    seen = {id(t) for t in _through(masked, forms)}
    return any(id(t) in seen for t in _through([t for test in tests for t in test.inputs], forms))


def _tests_sign(test: gs.Node, forms: Forms) -> bool:
    """Whether a comparison may be one with zero: it is not one with another number."""
    return not any(forms.number(t) for t in test.inputs)


def _through(tensors: Sequence[Tensor], forms: Forms) -> list[Tensor]:
    """The tensors, and those that they are functions of, element by element."""
    found: list[Tensor] = []
    todo = [t for t in tensors if forms.number(t) is None and not forms.is_weight(t)]
    while todo and len(found) < MOST_NODES:
        t = todo.pop()
        found.append(t)
        found += [base for base, _ in forms.of(t)]
        node = producer(t)
        if node is not None and node.op in OF_ONE:
            read = node.inputs[:1] if node.op in HANDED_ON else node.inputs
            varying = [v for v in read if v.name and forms.number(v) is None and not forms.is_weight(v)]
            todo += varying if len(varying) == 1 else []
    return found


def _tests(mask: Tensor) -> list[gs.Node]:
    """The comparisons that a mask is made of; none where it guards against what is no number."""
    found: list[gs.Node] = []
    seen: set[int] = set()
    todo = [mask]
    while todo and len(seen) < MOST_NODES:
        t = todo.pop()
        node = producer(t)
        if node is None or id(t) in seen:
            continue
        seen.add(id(t))
        if node.op in ("IsInf", "IsNaN"):
            return []
        if node.op in ORDER:
            found.append(node)
        elif node.op in (*MASKS, "NonZero"):
            todo += node.inputs[:1] if node.op in HANDED_ON else node.inputs
    return found


def _is_mask(t: Tensor, forms: Forms) -> bool:
    """Whether a tensor is made of numbers, weights and the outcomes of comparisons alone."""
    seen: set[int] = set()
    todo, compares = [t], False
    while todo and len(seen) < MOST_NODES:
        current = todo.pop()
        if id(current) in seen or forms.number(current) is not None or forms.is_weight(current):
            continue
        seen.add(id(current))
        node = producer(current)
        if node is None or node.op not in (*ORDER, *MASKS):
            return False
        compares = compares or node.op in ORDER
        if node.op not in ORDER:
            todo += node.inputs[:1] if node.op in HANDED_ON else [v for v in node.inputs if v.name]
    return compares and not todo


def _is_limit(node: gs.Node, forms: Forms) -> bool:
    """Whether a node computes |x|, or a max, min or clip with other limits than zero."""
    for _, f in forms.of(node.outputs[0]):
        if f.breaks and f.is_continuous() and all(_line(part) or number_of(part) for part in f.parts[::2]):
            return True
    return False


def _line(part: object) -> bool:
    return part == IDENTITY.parts[0] or part == {ONE: (0.0, -1.0)}


def _orders_zeros(node: gs.Node, forms: Forms) -> bool:
    """Whether a node takes the larger of values and zeros that are stacked along the axis that it works on."""
    stack = producer(node.inputs[0])
    if stack is None or stack.op != "Concat" or node.inputs[0].shape is None:
        return False
    if node.op == "GatherElements" and not _tests(node.inputs[1]):
        return False
    rank = len(node.inputs[0].shape)
    stacked = stack.attrs["axis"] % rank
    own = node.attrs.get("axis", -1 if node.op == "TopK" else 0) % rank
    works_there = stacked >= 2 if node.op == "MaxPool" else stacked == own
    return works_there and any(map(forms.is_zero, stack.inputs))


def _makes_a_bend(node: gs.Node, forms: Forms) -> bool:
    """Whether a sum is 0 on one side of a bend, and none of its parts was."""
    parts = {id(base) for t in node.inputs for base, f in forms.of(t) if _is_bent(f)}
    return any(_is_bent(f) and id(base) not in parts for base, f in forms.of(node.outputs[0]))


def _is_bent(f: Pieces) -> bool:
    return bool(f.breaks) and bool(f.parts[0]) != bool(f.parts[-1])

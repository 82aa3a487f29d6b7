"""A method is a table of rules.

`COMBINATORS` are small functions laid over the rules of the *rectifiers*, which are instances (marked in the view), not
operator types. `METHODS` names every kind of map, and the reverse walk that it is made of; what is made of it stands in
companions.py.

Sources: Simonyan et al. 2013 (gradient); Zeiler and Fergus 2013, section 2.1 (deconvnet: rectify the signal on its way
back); Springenberg et al. 2014, section 3.4 and figure 1 (guided: both masks); Kim et al. 2019, "Why are saliency maps
noisy? Cause of and solution to noisy saliency maps" (rectgrad: what is important goes back).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from gbprewrite.backward.lowering.masks import mask
from gbprewrite.backward.rules.pooling import SWITCHLESS
from gbprewrite.backward.rules.table import VJP, Formula, Rule
from gbprewrite.errors import ModelError, UsageError
from gbprewrite.model.tensors import Refused, Tensor, fixed, is_float
from gbprewrite.select.rectifiers import UNNAMED, Nonlinearity, nonlinearity, rectified

Combinator = Callable[[Formula], Formula]


def gradient(rule: Formula) -> Formula:
    """dx = dy · f'(x)"""
    return rule


def guided(rule: Formula) -> Formula:
    """dx = max(dy, 0) · f'(x); behind a ReLU dy·(x>0)·(dy>0)"""
    return lambda op, dy, *args, **attributes: rule(op, op.Relu(dy), *args, **attributes)


def deconvnet(rule: Formula) -> Formula:
    """dx = max(dy, 0), whatever x was"""
    return lambda op, dy, *args, **attributes: op.Relu(dy)


def rectgrad(rule: Formula, tau: float = 0.0, share: float | None = None) -> Formula:
    """dx = dy · f'(x) where y · dy > τ; τ is a number, or the quantile `share` of y · dy in each sample and layer"""

    def combined(op: Any, dy: Any, y: Any, *args: Any, **attributes: Any) -> Any:
        if not is_float(y):
            raise Refused("rectgrad multiplies by the output of a rectifier, and this one is quantised; use guided")
        relevance = op.Mul(y, dy)
        limit = tau if share is None else quantile(op, relevance, share)
        return rule(op, mask(op, dy, op.Greater(relevance, limit)), y, *args, **attributes)

    return combined


COMBINATORS: dict[str, Combinator] = {
    "gradient": gradient,
    "guided": guided,
    "deconvnet": deconvnet,
    "rectgrad": rectgrad,
}


class Method(NamedTuple):
    """What the reverse walk of a method does at rectifiers, and whether max pools use their switches."""

    combinator: str
    switches: bool = True

    @property
    def tag(self) -> str:
        """In the names of what the walk writes."""
        name = "grad" if self.combinator == "gradient" else self.combinator
        return name if self.switches else f"{name}_no_switches"

    def rule_of(self, node: gs.Node, combinators: Mapping[str, Combinator], marked: set[int]) -> Rule:
        """The rule that one node meets."""
        if node.op == "If":
            inner = partial(self.rule_of, combinators=combinators, marked=marked)
            return VJP["If"]._replace(formula=partial(VJP["If"].formula, rule_of=inner))
        rule = VJP[node.op] if self.switches else SWITCHLESS.get(node.op, VJP[node.op])
        return rule._replace(formula=combinators[self.combinator](rule.formula)) if id(node) in marked else rule


METHODS = {
    "gradient": Method("gradient"),
    "guided": Method("guided"),
    "deconvnet": Method("deconvnet"),
    "input_x_gradient": Method("gradient"),
    "gradcam": Method("gradient"),
    "guided_gradcam": Method("guided"),
    "rectgrad": Method("rectgrad"),
    "smoothgrad": Method("gradient"),
    "integrated_gradients": Method("gradient"),
    "gradient_no_switches": Method("gradient", switches=False),
    "guided_no_switches": Method("guided", switches=False),
    "deconvnet_no_switches": Method("deconvnet", switches=False),
}
# What arrives at a rectifier's own rule in place of dy.
SIGNALS = {"guided": "max(dy, 0)", "rectgrad": "dy·(y·dy > τ)"}

# What a method cannot show, in one line; `explain`, `convert` and the HTML report state it.
LIMITS = {
    "gradient": "shows where a small change would alter the score, not what the score is made of: saturated evidence "
    "has no gradient (Sundararajan et al. 2017)",
    "guided": "is not class-discriminative: it partly recovers the image whatever is explained (Nie et al. 2018), and "
    "hardly depends on the weights of higher layers (Adebayo et al. 2018)",
    "deconvnet": "is not class-discriminative: it partly recovers the image whatever is explained (Nie et al. 2018), "
    "and without max pooling it does not depend on the image at all (Springenberg et al. 2014)",
    "input_x_gradient": "shows bright pixels more than dark ones, and a black pixel never; edges of the image itself "
    "shine through (Adebayo et al. 2018)",
    "gradcam": "is as coarse as the layer that it is taken at, and leaves out what speaks against the class "
    "(Selvaraju et al. 2017)",
    "guided_gradcam": "owes its detail to guided, which hardly depends on the weights of higher layers: only its "
    "coarse mask knows the class (Adebayo et al. 2018)",
    "rectgrad": "is guided with a threshold: what it hides was small at some layer, not of no effect (Kim et al. 2019)",
    "smoothgrad": "averages over noisy copies of the image, which the network was not trained on, and depends on the "
    "noise's size (Smilkov et al. 2017)",
    "integrated_gradients": "explains the difference to its baseline, so that another baseline gives another map, and "
    "pixels equal to the baseline's get nothing (Sundararajan et al. 2017)",
    "gradient_no_switches": "is no gradient: max pools hand their signal down evenly, to compare with what their "
    "switches take from the image (Springenberg et al. 2014)",
    "guided_no_switches": "does not know where in its windows a max pool found something: compare it with guided "
    "(Springenberg et al. 2014), whose other limits it has",
    "deconvnet_no_switches": "sees nothing of the image in max pools and rectifiers: it is the pattern that the "
    "weights hold for the unit that is explained (Springenberg et al. 2014)",
}


def limits(methods: Iterable[str]) -> list[str]:
    """`method limit` for each method whose limits are known."""
    return [f"{method} {LIMITS[method]}" for method in methods if method in LIMITS]


def description(node: gs.Node, method: str, marked: set[int]) -> str:
    """What a method does at a node, in a formula."""
    plain = VJP[node.op].text if node.op in VJP else "no rule"
    if id(node) not in marked:
        return plain
    combinator = METHODS[method].combinator
    if combinator == "deconvnet":
        return "dx = max(dy, 0)"
    return plain.replace("dy", SIGNALS.get(combinator, "dy"), 1)


def quantile(op: Any, v: Tensor, share: float) -> Tensor:
    """The value that a share of each sample's values does not exceed, [N, 1, ...]; always one of these values."""
    behind = len(v.shape) - 1
    rows = op.Reshape(op.wide(v), np.array([0, -1] if behind > 0 else [1, -1], np.int64))
    size = op.product(op.dims(v)[1 if behind > 0 else 0 :])
    if fixed(size):
        above = op.vector([size - int(share * (size - 1))])
    else:
        place = op.Floor(op.Mul(op.Cast(op.Sub(size, 1), to=TensorProto.DOUBLE), share))
        above = op.Sub(size, op.Cast(place, to=TensorProto.INT64))
    top = op.TopK(rows, above, outputs=2, axis=1)[0]
    least = op.ReduceMin(top, np.array([1], np.int64), keepdims=1)
    return op.cast_to(op.Reshape(least, np.array([-1] + [1] * max(behind, 0), np.int64)), v)


def methods(names: str | Sequence[str]) -> list[str]:
    """The methods asked for, each once; UsageError for an unknown one."""
    asked = list(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [m for m in asked if m not in METHODS]
    if unknown or not asked:
        raise UsageError(f"--method {', '.join(unknown) or 'is empty'}: choose from {', '.join(METHODS)}.")
    return asked


def rectifiers(
    nodes: Sequence[gs.Node], methods: Sequence[str], rectify: Sequence[str]
) -> tuple[list[Nonlinearity], set[int]]:
    """Every nonlinearity among the nodes, and id() of those that guided and deconvnet act on.

    Raises ModelError when such a method, or one without switches, would act on nothing, UsageError when `rectify` names
    no activation.
    """
    found = [n for n in map(nonlinearity, nodes) if n]
    marked = rectified(found, rectify)
    has_switches = any(n.op in SWITCHLESS for n in nodes)
    for method in methods:
        if not METHODS[method].switches and not has_switches:
            raise ModelError(
                f"method {method!r} finds no max pool between the input and the score: switches make no difference "
                f"there. Use --method {METHODS[method].combinator}, or leave --no-switches out."
            )
        if METHODS[method].combinator != "gradient" and not marked:
            raise ModelError(_nothing_to_rectify(method, found))
    return found, marked


def _nothing_to_rectify(method: str, found: Sequence[Nonlinearity]) -> str:
    kinds = Counter(n.node.op for n in found if n.role == "activation")
    listing = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    unnamed = Counter(n.node.op for n in found if n.role == UNNAMED)
    hidden = ", ".join(f"{count} {kind}" for kind, count in unnamed.items())
    also = f" It has {hidden} of the role {UNNAMED!r}, which 'gbprewrite inspect' lists." if hidden else ""
    ways = [f"use --rectify all to treat these like ReLU ({listing})"] if listing else []
    return (
        f"method {method!r} finds no rectifier (Relu, Clip from 0, Max(x, 0), ThresholdedRelu) between the input and "
        f"the score{f', only {listing}' if listing else ''}: its map would be the plain gradient under another name. "
        f"Way out: {' or '.join([*ways, 'use --method gradient'])}.{also}"
    )

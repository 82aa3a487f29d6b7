"""The methods: a row for each.

Sources: Simonyan et al. 2013 (gradient); Zeiler and Fergus 2013, section 2.1 (deconvnet: rectify the signal on its way
back); Springenberg et al. 2014, section 3.4 and figure 1 (guided: both masks); Shrikumar et al. 2016, "Not just a black
box" (input x gradient); Selvaraju et al. 2017 (Grad-CAM, Guided Grad-CAM); Kim et al. 2019, "Why are saliency maps
noisy? Cause of and solution to noisy saliency maps" (rectgrad: what is important goes back); Smilkov et al. 2017
(SmoothGrad); Sundararajan et al. 2017 (integrated gradients).
"""

from collections import ChainMap, Counter
from collections.abc import Mapping, Sequence

import onnx_graphsurgeon as gs

from gbprewrite.backward.rules import pooling
from gbprewrite.backward.rules.table import VJP
from gbprewrite.errors import ModelError
from gbprewrite.methods import combinators
from gbprewrite.methods.averages import integrated_gradients, smoothgrad
from gbprewrite.methods.gradcam import gradcam, guided_gradcam
from gbprewrite.methods.work import Map, Method, Work, walk
from gbprewrite.select.rectifiers import UNNAMED, Nonlinearity, nonlinearity, rectified


def input_x_gradient(work: Work, method: Method) -> list[Map]:
    """x · dx"""
    return [Map(x, [dx and work.op.Mul(x, dx) for dx in found]) for x, found in walk(work, method)]


SWITCHLESS = ChainMap(pooling.SWITCHLESS, VJP)  # a live view: rules that are registered later are in it
ROWS = (
    Method(
        "gradient",
        limit=(
            "shows where a small change would alter the score, not what the score is made of: saturated "
            "evidence has no gradient (Sundararajan et al. 2017)"
        ),
        title="gradient",
        walk="grad",
    ),
    Method(
        "guided",
        rectifier=combinators.guided,
        signal="max(dy, 0)",
        limit=(
            "is not class-discriminative: it partly recovers the image whatever is explained (Nie et al. "
            "2018), and hardly depends on the weights of higher layers (Adebayo et al. 2018)"
        ),
        title="guided backpropagation",
    ),
    Method(
        "deconvnet",
        rectifier=combinators.deconvnet,
        signal="dx = max(dy, 0)",
        limit=(
            "is not class-discriminative: it partly recovers the image whatever is explained (Nie et al. "
            "2018), and without max pooling it does not depend on the image at all (Springenberg et al. "
            "2014)"
        ),
        title="deconvnet",
    ),
    Method(
        "input_x_gradient",
        maps=input_x_gradient,
        limit=(
            "shows bright pixels more than dark ones, and a black pixel never; edges of the image itself "
            "shine through (Adebayo et al. 2018)"
        ),
        title="input x gradient",
        walk="grad",
    ),
    Method(
        "gradcam",
        maps=gradcam,
        limit=(
            "is as coarse as the layer that it is taken at, and leaves out what speaks against the class "
            "(Selvaraju et al. 2017)"
        ),
        title="Grad-CAM",
        walk="grad",
    ),
    Method(
        "guided_gradcam",
        rectifier=combinators.guided,
        maps=guided_gradcam,
        signal="max(dy, 0)",
        limit=(
            "owes its detail to guided, which hardly depends on the weights of higher layers: only its "
            "coarse mask knows the class (Adebayo et al. 2018)"
        ),
        title="Guided Grad-CAM",
        walk="guided",
    ),
    Method(
        "rectgrad",
        rectifier=combinators.rectgrad,
        signal="dy·(y·dy > τ)",
        limit="is guided with a threshold: what it hides was small at some layer, not of no effect (Kim et al. 2019)",
        title="RectGrad",
    ),
    Method(
        "smoothgrad",
        maps=smoothgrad,
        limit=(
            "averages over noisy copies of the image, which the network was not trained on, and depends "
            "on the noise's size (Smilkov et al. 2017)"
        ),
        title="SmoothGrad",
        walk="grad",
    ),
    Method(
        "integrated_gradients",
        maps=integrated_gradients,
        limit=(
            "explains the difference to its baseline, so that another baseline gives another map, and "
            "pixels equal to the baseline's get nothing (Sundararajan et al. 2017)"
        ),
        title="integrated gradients",
        walk="grad",
    ),
    Method(
        "gradient_no_switches",
        limit=(
            "is no gradient: max pools hand their signal down evenly, to compare with what their switches"
            " take from the image (Springenberg et al. 2014)"
        ),
        title="gradient, no switches",
        rules=SWITCHLESS,
        walk="grad_no_switches",
    ),
    Method(
        "guided_no_switches",
        rectifier=combinators.guided,
        signal="max(dy, 0)",
        limit=(
            "does not know where in its windows a max pool found something: compare it with guided "
            "(Springenberg et al. 2014), whose other limits it has"
        ),
        title="guided, no switches",
        rules=SWITCHLESS,
    ),
    Method(
        "deconvnet_no_switches",
        rectifier=combinators.deconvnet,
        signal="dx = max(dy, 0)",
        limit=(
            "sees nothing of the image in max pools and rectifiers: it is the pattern that the weights "
            "hold for the unit that is explained (Springenberg et al. 2014)"
        ),
        title="deconvnet, no switches",
        rules=SWITCHLESS,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in ROWS}


def rectifiers(
    nodes: Sequence[gs.Node], methods: Mapping[str, Method], rectify: Sequence[str]
) -> tuple[list[Nonlinearity], set[int]]:
    """Every nonlinearity among the nodes, and id() of those that guided and deconvnet act on.

    Raises ModelError when such a method, or one without switches, would act on nothing, UsageError when `rectify` names
    no activation.
    """
    found = [n for n in map(nonlinearity, nodes) if n]
    marked = rectified(found, rectify)
    has_switches = any(n.op in pooling.SWITCHLESS for n in nodes)
    for name, method in methods.items():
        if method.rules is SWITCHLESS and not has_switches:
            raise ModelError(
                f"method {name!r} finds no max pool between the input and the score: switches make no difference "
                f"there. Use --method {name.removesuffix('_no_switches')}, or leave --no-switches out."
            )
        if method.rectifies and not marked:
            raise ModelError(_nothing_to_rectify(name, found))
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

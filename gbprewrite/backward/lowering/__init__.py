"""Spellings of the adjoints that ONNX can write in more than one way, each with its precondition and its reason.

`Builder` stands on layers: verbs, windows, convolutions, pools, masks. What is preferred is a matter of
gbprewrite.backward.targets.
"""

from gbprewrite.backward.lowering.pools import Pools


class Builder(Pools):
    """`op` as the rules see it: every ONNX operator, the shape verbs, the adjoints, and the masks of rectifiers."""

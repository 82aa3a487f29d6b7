"""How much a conversion may compute and write: bounds, so that a few hundred bytes cost neither hours nor gigabytes.

Each bound is far above what real networks need, or grows with the file itself.
"""

from gbprewrite.model.tensors import Refused

FOLDED = 16_000_000  # bytes of constants that are worked out; a larger file may have as many as it has itself
ROUNDS = 50  # of inference and folding, beside as many as look at
NODES_LOOKED_AT = 2_000_000
POINTS = 100_000  # at which a method may differentiate one input
CONSTANT = 2**22  # elements of a constant that a rule writes; larger ones would be computed when the model runs
WINDOW = 256  # steps of a window, or of a stride, of which each gets nodes of its own
EXPANDED_NODES = 200_000  # that the bodies of functions may become, beside four times what the file has
EXPANDED_BYTES = 64_000_000  # and their bytes, likewise
POINT_NODES = 200_000  # of the copies of a model of fixed batch, one for each point of integrated gradients


def check_constant(elements: int, what: str) -> None:
    """Raise Refused where a rule would need a constant of more than CONSTANT elements."""
    if elements > CONSTANT:
        raise Refused(
            f"its gradient needs {what} of {elements:,} numbers, and the file may hold up to {CONSTANT:,} of them"
        )

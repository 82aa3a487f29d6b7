"""Which spelling of an adjoint is written, where ONNX has several: what `optimize_for` chooses."""

from typing import NamedTuple


class Spelling(NamedTuple):
    """What is preferred to the plainest spelling, each where its precondition holds.

    Attributes:
        convolutions: to ConvTranspose, convolutions with turned weights, one for each phase of a stride.
        products: to Where, products with 0/1 masks, which behind a ReLU are steep HardSigmoids.
        comparisons: to MaxPool's Indices and ScatterElements, comparisons with the maxima. (On CUDA, Indices count ties
            by columns and scattering adds in any order; comparisons give the CPU's maps, the same each time.)
    """

    convolutions: bool
    products: bool
    comparisons: bool


ON_CPU = Spelling(convolutions=True, products=True, comparisons=True)
SPELLINGS = {
    "auto": ON_CPU,
    "cpu": ON_CPU,
    "cuda": Spelling(convolutions=False, products=False, comparisons=True),  # cuDNN has a kernel for ConvTranspose
    "portable": Spelling(convolutions=False, products=False, comparisons=False),
}


def suited(providers: str) -> str:
    """The spelling for a model that is converted to be run at once on "auto", "cuda" or "cpu"."""
    return "cuda" if providers == "cuda" else "auto"

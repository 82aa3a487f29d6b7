"""Which spelling of an adjoint is written, where ONNX has several: what `optimize_for` chooses."""

from typing import NamedTuple


class Spelling(NamedTuple):
    """What is preferred to the plainest spelling, each where its precondition holds.

    Attributes:
        convolutions: to ConvTranspose, convolutions with turned weights, one for each phase of a stride.
        products: to Where, products with 0/1 masks, which behind a ReLU are steep HardSigmoids, unless a cotangent
            may be infinite.
        comparisons: to MaxPool's Indices and ScatterElements, comparisons with the maxima. (On CUDA, Indices count ties
            by columns and scattering adds in any order; comparisons give the CPU's maps, the same each time.)
        open_comparisons: the same where heights and widths are open; their arithmetic would leave CUDA.
        scaled_weights: to a product of the cotangent with a number for each channel, as of BatchNormalization, before a
            convolution's adjoint, weights that are multiplied when the file is loaded.
    """

    convolutions: bool
    products: bool
    comparisons: bool
    open_comparisons: bool
    scaled_weights: bool


ON_CPU = Spelling(convolutions=True, products=True, comparisons=True, open_comparisons=True, scaled_weights=True)
SPELLINGS = {
    "auto": ON_CPU,
    "cpu": ON_CPU,
    # cuDNN has a kernel for ConvTranspose.
    "cuda": Spelling(convolutions=False, products=False, comparisons=True, open_comparisons=False, scaled_weights=True),
    "portable": Spelling(
        convolutions=False, products=False, comparisons=False, open_comparisons=False, scaled_weights=False
    ),
}


def suited(providers: str) -> str:
    """The spelling for a model that is converted to be run at once on "auto", "cuda" or "cpu"."""
    return "cuda" if providers == "cuda" else "auto"

"""Which lowerings are taken, where an adjoint has several: what `optimize_for` chooses."""

CPU = frozenset(
    {"turned", "phases", "scaled_weights", "comparison", "open_comparison", "repetition", "product", "steep_sigmoid"}
)
# "turned" and "phases" are not among CUDA's: cuDNN has a kernel for ConvTranspose.
CUDA = frozenset({"scaled_weights", "comparison"})

# Target → the names of the lowerings that it prefers to the portable ones.
TARGETS: dict[str, frozenset[str]] = {"auto": CPU, "cpu": CPU, "cuda": CUDA, "portable": frozenset()}


def suited(providers: str) -> str:
    """The target for a model that is converted to be run at once on "auto", "cuda" or "cpu"."""
    return "cuda" if providers == "cuda" else "auto"

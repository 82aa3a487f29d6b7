"""Rules, one file for each kind of operator; importing the package registers them all."""

from gbprewrite.backward.rules import (
    activations,
    control,
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalisation,
    pooling,
    quantisation,
    reduction,
    regions,
    sampling,
    signal,
)

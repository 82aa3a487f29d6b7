"""The way back: cotangents of the score become cotangents of the inputs, node by node."""

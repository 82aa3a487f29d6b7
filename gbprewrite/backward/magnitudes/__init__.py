"""How large the values of a tensor can be."""

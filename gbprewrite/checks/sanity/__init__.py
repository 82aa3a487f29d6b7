"""What a map does not prove: the model parameter randomisation test of Adebayo et al. 2018, and class sensitivity."""

METHODS = ("gradient", "guided", "deconvnet")  # compared by default

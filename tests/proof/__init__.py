"""Proofs on whole networks: torchvision's, against PyTorch in float64."""

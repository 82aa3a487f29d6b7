"""Oracles that share no code with gbprewrite: PyTorch modules, an ONNX interpreter in torch, finite differences."""

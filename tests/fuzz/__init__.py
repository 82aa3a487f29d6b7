"""Mutated model files: whatever a file holds, conversion ends in a clear error or in a right result."""

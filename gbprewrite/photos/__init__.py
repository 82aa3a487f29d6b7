"""Photographs: which files, their pixels, and the numbers that a network takes."""

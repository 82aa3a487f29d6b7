"""One small CNN, exported by every framework: the same maps from each file. Marker: frameworks."""

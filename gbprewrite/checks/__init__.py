"""What a converted file promises, and what a map does not prove."""

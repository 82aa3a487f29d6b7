"""The forward graph as the rules see it: idioms are single nodes, branches are open, quantised values are numbers."""

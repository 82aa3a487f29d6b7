"""What the user asks for, in the graph: the score, its classes, the inputs, the nodes between them."""

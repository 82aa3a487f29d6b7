"""The model as a file and as messages, and what it says of its own values: types, shapes, constants."""

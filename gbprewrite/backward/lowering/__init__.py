"""Adjoints that ONNX can write in more than one way: a table of functions for each, see `table`.

Which of them are taken is a matter of `targets`.
"""

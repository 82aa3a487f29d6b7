"""The benchmark: python -m tests.bench --help. What it measures, and how, is written in cli.py."""

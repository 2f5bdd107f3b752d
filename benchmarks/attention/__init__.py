"""Attention alone: `python -m benchmarks.attention --help` explains."""

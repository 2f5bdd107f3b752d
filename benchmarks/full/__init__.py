"""The full 9.3 B model on a GPU, ours and the peer's: `python -m benchmarks.full --help` explains."""

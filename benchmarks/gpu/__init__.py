"""What a GPU that is at hand for minutes can show, in order of worth: `python -m benchmarks.gpu --help` explains."""

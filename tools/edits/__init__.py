"""Scores of changed pictures against the truths of the sketch world: `python -m tools.edits --help`."""

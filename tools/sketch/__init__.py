"""What trains and scores the bundled model: `python -m tools.sketch --help`, in a checkout of the project."""

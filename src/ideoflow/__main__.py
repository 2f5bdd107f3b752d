"""`python -m ideoflow`: the command line, also for launchers that start modules."""

from __future__ import annotations

from .cli import app

if __name__ == "__main__":
    app()

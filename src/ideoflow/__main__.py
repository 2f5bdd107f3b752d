"""`python -m ideoflow`: the command line, also for launchers that start modules."""

from __future__ import annotations

from ._program import run

if __name__ == "__main__":
    run()

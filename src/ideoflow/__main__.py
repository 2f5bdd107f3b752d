"""`python -m ideoflow`, the same as the command `ideoflow`."""

from .cli import app

if __name__ == "__main__":
    app()

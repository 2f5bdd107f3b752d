"""Small files that are read whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CheckpointError


def read_json(path: Path, most: int = 2**20) -> Any:
    """What a JSON file of at most so many bytes holds.

    Raises:
        CheckpointError: a file that is not there, too large, or not JSON.
    """
    try:
        if not path.is_file() or path.stat().st_size > most:
            raise CheckpointError(f"{path} is no file of at most {most} bytes, as its kind are.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error

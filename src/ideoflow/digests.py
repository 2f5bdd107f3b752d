"""Telling whether files are still those that a picture was drawn with, by short digests of what they hold.

Three kinds, each named in front. `sha256` is over a file's whole contents: of adapters, which are small. `sampled` is
for models, whose gigabytes nobody wants to read for a picture: SHA-256 over names, sizes, small files whole, and of
large ones the first mebibyte, where the header is, and 64 blocks spread evenly to the last byte. Training moves every
weight, so it shows; a few bytes changed by hand between the blocks do not. `commit` is a hub repository's revision.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

WHOLE = 2**20  # bytes of a file that are read in any case
BLOCKS, BLOCK = 64, 2**14  # of the rest of a large file
# Folders of a pipeline that its pictures depend on, and its index; what else lies beside them counts for nothing.
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "unconditional_transformer", "vae")
INDEX = "model_index.json"


def digest_file(path: Path) -> str:
    """`sha256:...` of all that a file holds.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def digest_model(path: Path) -> str:
    """`sampled:...` of a model's folder, or of a file of weights.

    Raises:
        OSError: if it cannot be read.
    """
    if path.is_file():
        files = {"": path}
    else:
        found = [path / INDEX, *(file for name in COMPONENTS for file in (path / name).glob("*"))]
        files = {file.relative_to(path).as_posix(): file for file in found if file.is_file()}
    total = hashlib.sha256()
    for name, file in sorted(files.items()):
        if not file.name.startswith("."):
            total.update(f"{len(name)} {name} {file.stat().st_size} ".encode())
            total.update(_sampled(file))
    return f"sampled:{total.hexdigest()}"


def _sampled(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(WHOLE))
        rest = os.fstat(file.fileno()).st_size - WHOLE
        if rest > BLOCKS * BLOCK:
            for number in range(BLOCKS):
                file.seek(WHOLE + number * (rest - BLOCK) // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
        else:
            digest.update(file.read())
    return digest.digest()


def digest_hub(name: str) -> str | None:
    """`commit:...` of the revision of a hub's repository in the cache here; None if none is. Fetches nothing."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, INDEX)
    except HFValidationError:
        return None
    return f"commit:{Path(found).parent.name}" if isinstance(found, str) else None


def digest_as(recorded: str, path: Path | str) -> str | None:
    """The digest, of the same kind as one that was recorded, of what is there now; None if nothing of that kind is.

    Raises:
        OSError: if it cannot be read.
    """
    kind = recorded.partition(":")[0]
    place = Path(path)
    if kind == "sha256" and place.is_file():
        return digest_file(place)
    if kind == "sampled" and place.exists():
        return digest_model(place)
    if kind == "commit" and not place.exists():
        return digest_hub(str(path))
    return None

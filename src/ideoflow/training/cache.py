"""Tensors on disk by the content that they were made from: made once, found again by every later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..files import write_tensors


def key_of(*parts: object) -> str:
    """A name for what is made from `parts`: the sha256 of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(module: nn.Module, *settings: object) -> str:
    """The sha256 of a module's weights and of `settings`; about a second for each gigabyte.

    Two modules have the same one only if every weight is the same, bit for bit.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().to("cpu").contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


class Store:
    """A folder of safetensors files, one for each key.

    A file is written under another name, flushed and renamed, so that it is whole whenever it is there: several
    processes may fill one store, and any of them may be killed. Files that are cut off all the same (by a full disk, by
    hand) count as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str) -> Path:
        """Where the tensors of `key` are, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def shapes(self, key: str) -> dict[str, tuple[int, ...]] | None:
        """Shapes of the tensors of `key` without reading them, or None if they are not there whole."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of `key`, or None if they are not there whole."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep `tensors` under `key`, in place of what may be there."""
        write_tensors(self.path(key), tensors)

"""How long and on what the sketch model is trained: one file for a processor, one for a GPU."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """Numbers of a training run from nothing; what they mean stands in `recipes/cpu.toml`."""

    device: str
    threads: int
    autoencoder_steps: int
    decoder_steps: int
    text_steps: int
    steps: int
    tokens: int
    rate: float
    shards: int

    @classmethod
    def read(cls, name: str) -> Recipe:
        """A bundled recipe, `cpu` or `gpu`, or one from a TOML file.

        Raises:
            ValueError: an unknown name, or a file that lacks a number or has one too many.
        """
        path = Path(__file__).parent / "recipes" / f"{name}.toml"
        if not path.exists():
            path = Path(name)
        if not path.is_file():
            raise ValueError(f"`recipe` is {name!r}; it is 'cpu', 'gpu' or a TOML file like theirs in {path.parent}.")
        values = tomllib.loads(path.read_text())
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            raise ValueError(
                f"{path}: missing {sorted(names - values.keys())}, unknown {sorted(values.keys() - names)}."
            )
        return cls(**values)

    def train(self, folder: Path, minutes: float) -> None:
        """Train all stages into `folder`, each for at most `minutes`; called again, it goes on."""
        import torch

        from . import train_autoencoder, train_text, train_transformers

        if self.threads:
            torch.set_num_threads(self.threads)
        folder.mkdir(parents=True, exist_ok=True)
        device = self.device
        if not (folder / "vae").exists():
            train_autoencoder.train(folder, minutes, total_steps=self.autoencoder_steps, device=device)
        train_autoencoder.train_decoder(folder, minutes, total_steps=self.decoder_steps, device=device)
        train_text.train(folder, minutes, total_steps=self.text_steps, device=device)
        train_transformers.train(
            folder, minutes, self.tokens, self.rate, total_steps=self.steps, shards=self.shards, device=device
        )

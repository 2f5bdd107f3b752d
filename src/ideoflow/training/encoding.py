"""Pictures and captions to what the transformers read, encoded once and kept in a store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..latents import encode
from ..pipeline import Ideogram4Pipeline
from ..sizes import UNIT
from ..text_encoder import encode_captions, tokenise
from .cache import Store, fingerprint, key_of
from .dataset import Example

Progress = Callable[[int, int, str], None]
MOST_TOKENS = 2048  # of a caption


def too_long(tokenizer: Any, caption: str) -> str | None:
    """What is to be said about a caption that has more tokens than the model reads; None for all others."""
    tokens = len(tokenise(tokenizer, [caption], sys.maxsize)[0])
    if tokens <= MOST_TOKENS:
        return None
    return f"has a caption of {tokens:,} tokens; the model reads {MOST_TOKENS:,} at most: shorten it."


@dataclass(frozen=True)
class Sample:
    """An example whose picture and caption are in a store.

    Attributes:
        name: the example's name.
        caption: its line.
        grid: rows and columns of image tokens.
        text_tokens: tokens of the caption.
    """

    name: str
    caption: str
    grid: tuple[int, int]
    text_tokens: int
    _store: Store
    _latents: str
    _text: str

    def load(self) -> tuple[Tensor, Tensor]:
        """Clean latents (rows * columns, channels) float32, and text (text_tokens, hidden size), projected.

        Raises:
            FileNotFoundError: if the store lost them since.
        """
        latents, text = self._store.get(self._latents), self._store.get(self._text)
        if latents is None or text is None:
            raise FileNotFoundError(
                f"the cache {self._store.folder} no longer holds {self.name}: start again with --resume."
            )
        return latents["latents"], text["text"]


class Encoder:
    """Encodes examples with a pipeline's autoencoder, text encoder and text projection, into a store.

    Fingerprints of the three are part of every key: whatever is trained or exchanged, no stale tensor is ever read.
    """

    def __init__(self, pipeline: Ideogram4Pipeline, store: Store) -> None:
        if pipeline.text_encoder is None or pipeline.vae is None:
            raise ValueError("the model has no text encoder or no autoencoder, which encode captions and pictures.")
        self.pipeline, self.store = pipeline, store
        self._vae = fingerprint(pipeline.vae, dict(pipeline.vae.config))
        transformer = pipeline.transformer
        projection = [fingerprint(part) for part in (transformer.llm_cond_norm, transformer.llm_cond_proj)]
        language: Any = getattr(pipeline.text_encoder, "language_model", pipeline.text_encoder)
        self._text = [fingerprint(language, language.config.to_json_string()), *projection, list(pipeline.taps)]

    def _latent_key(self, example: Example) -> str:
        return key_of("latents", example.digest, example.size, example.options["crop"], self._vae)

    def _text_key(self, example: Example) -> str:
        ids = self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": example.caption}]}], add_generation_prompt=True
        )
        return key_of("text", ids if isinstance(ids, list) else ids["input_ids"], self._text)

    @torch.no_grad()
    def encode(
        self,
        examples: Sequence[Example],
        on_progress: Progress | None = None,
        rank: int = 0,
        processes: int = 1,
        batch: int = 8,
    ) -> None:
        """Encode what the store does not hold; of several processes each does its share of the keys.

        Args:
            examples: All examples.
            on_progress: Called with how many were encoded, how many are to be, and of what.
            rank: Number of this process.
            processes: How many share the work.
            batch: Pictures of one size, and captions, that are encoded together.
        """
        for what, key_of_example, make in (
            ("pictures", self._latent_key, self._make_latents),
            ("captions", self._text_key, self._make_text),
        ):
            keyed = {key_of_example(example): example for example in examples}
            missing = [
                (key, example)
                for key, example in keyed.items()
                if int(key[:8], 16) % processes == rank and self.store.shapes(key) is None
            ]
            missing.sort(key=lambda pair: (pair[1].size, pair[0]) if what == "pictures" else (pair[1].caption, pair[0]))
            done = 0
            for group in _batches(missing, batch, same_size=what == "pictures"):
                for (key, _), tensors in zip(group, make([example for _, example in group]), strict=True):
                    self.store.put(key, tensors)
                done += len(group)
                if on_progress is not None:
                    on_progress(done, len(missing), what)

    def _make_latents(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        return [{"latents": z.float()} for z in encode(self.pipeline.vae, [example.open() for example in examples])]

    def _make_text(self, examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        pipe, transformer = self.pipeline, self.pipeline.transformer
        features = encode_captions(pipe.text_encoder, pipe.tokenizer, [e.caption for e in examples], pipe.taps)
        device = transformer.llm_cond_proj.weight.device
        return [{"text": transformer.project_text(f.to(device, transformer.dtype))} for f in features]

    def samples(self, examples: Sequence[Example]) -> list[Sample]:
        """The encoded examples.

        Raises:
            FileNotFoundError: if the store lacks some: call `encode` first, in every process.
        """
        made = []
        for example in examples:
            latents, text = self._latent_key(example), self._text_key(example)
            shapes = self.store.shapes(text)
            if shapes is None or self.store.shapes(latents) is None:
                raise FileNotFoundError(f"the cache {self.store.folder} does not hold {example.name}: encode it first.")
            width, height = example.size
            grid = (height // UNIT, width // UNIT)
            made.append(Sample(example.name, example.caption, grid, shapes["text"][0], self.store, latents, text))
        return made


def _batches(missing: Sequence[tuple[str, Example]], batch: int, same_size: bool) -> Iterator[list[Any]]:
    for _, same in groupby(missing, key=lambda pair: pair[1].size if same_size else None):
        together = list(same)
        for begin in range(0, len(together), batch):
            yield together[begin : begin + batch]

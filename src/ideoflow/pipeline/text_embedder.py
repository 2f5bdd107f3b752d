"""Captions to what contexts keep of them, from the cache where the weights that made them are the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..ops.exclusive import exclusive
from ..ops.hooks import execution_device
from ..ops.weights import contents_key
from ..text_encoder import encode_tokens, tokenise
from .text_cache import TextCache


@dataclass(frozen=True)
class TextEmbedder:
    """Embeds captions, each once.

    Attributes:
        text_encoder: The text encoder.
        tokenizer: Its tokenizer.
        taps: Decoder layers whose outputs are the text features.
        transformer: The conditional branch, for its text projection.
        project: The projection of text features `(tokens, features)` to `(tokens, hidden_size)`, adapters weighed.
        cache: What was embedded before.
        models: Models that hooks may move when one of them is called: those of the pipeline.
    """

    text_encoder: Any
    tokenizer: Any
    taps: tuple[int, ...]
    transformer: Any
    project: Callable[[Tensor], Tensor]
    cache: TextCache
    models: Sequence[nn.Module]

    def lengths(self, lines: Sequence[str], max_sequence_length: int) -> list[int]:
        """Tokens of each caption."""
        ids = self._token_ids(lines, max_sequence_length)
        return [len(ids[line]) for line in lines]

    def embed(self, lines: Sequence[str], max_sequence_length: int) -> list[Tensor]:
        """What contexts keep of each caption, `(tokens, hidden_size)`: from the cache, or encoded and put there."""
        ids = self._token_ids(lines, max_sequence_length)
        with exclusive(*self.models):
            made_by = self._made_by()
            device = execution_device(self.transformer)
            # By its tokens, in which tokenizer and chat template show.
            texts: dict[tuple[int, ...], Tensor] = {}
            for tokens in dict.fromkeys(ids.values()) if made_by is not None else ():
                if (kept := self.cache.get((tokens, made_by))) is not None:
                    texts[tokens] = kept
            missing = [tokens for tokens in dict.fromkeys(ids.values()) if tokens not in texts]
            if missing:
                features = encode_tokens(self.text_encoder, missing, self.taps)
                texts.update(zip(missing, map(self.project, features), strict=True))
        for tokens in missing if made_by is not None else ():
            self.cache.put((tokens, made_by), texts[tokens])
        texts = {tokens: text.to(device) for tokens, text in texts.items()}
        return [texts[ids[line]] for line in lines]

    def _token_ids(self, lines: Sequence[str], max_sequence_length: int) -> dict[str, tuple[int, ...]]:
        """Token ids by caption."""
        distinct = list(dict.fromkeys(lines))
        ids = tokenise(self.tokenizer, distinct, max_sequence_length)
        return {line: tuple(tokens) for line, tokens in zip(distinct, ids, strict=True)}

    def _made_by(self) -> tuple[Hashable, ...] | None:
        """What embedded captions depend on beside their tokens; None where that cannot be told."""
        language_model = getattr(self.text_encoder, "language_model", None)
        if language_model is None or not self.cache.max_bytes:
            return None
        modules = (language_model, self.transformer.llm_cond_norm, self.transformer.llm_cond_proj)
        keys = tuple(map(contents_key, modules))
        return None if None in keys else (keys, self.taps, self.transformer.dtype)

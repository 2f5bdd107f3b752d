"""Text features: outputs of chosen decoder layers of Qwen3-VL's language model, one caption at a time, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from .configuration import TAPS
from .ops.hooks import execution_device, fires_hooks

_tokenising = Lock()  # a fast tokenizer that is used from two threads may raise "Already borrowed"


def tokenise(tokenizer: Any, captions: Sequence[str], max_sequence_length: int = 2048) -> list[list[int]]:
    """Token ids of each caption as one user message of the chat template, with the generation prompt.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        captions: The captions.
        max_sequence_length: The most tokens a caption may have, template included.

    Returns:
        For each caption its token ids.

    Raises:
        CaptionTooLong: if one is.
        ValueError: if the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "`tokenizer` has no chat template: load it from the model's `tokenizer/` folder, or set"
            " `tokenizer.chat_template`."
        )
    ids = []
    for caption in captions:
        message = {"role": "user", "content": [{"type": "text", "text": caption}]}
        with _tokenising:
            text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(tokens) > max_sequence_length:
            raise_too_long(caption, len(tokens), max_sequence_length)
        ids.append(tokens)
    return ids


class CaptionTooLong(ValueError):
    """A caption that has more tokens than `max_sequence_length`."""


def raise_too_long(caption: str, tokens: int, limit: int) -> NoReturn:
    """Raise the CaptionTooLong of a caption."""
    raise CaptionTooLong(
        f"The caption {caption[:60]!r}... has {tokens} tokens, more than `max_sequence_length` ({limit}): shorten it,"
        " or raise the limit."
    )


@torch.no_grad()
def encode_captions(
    text_encoder: nn.Module,
    tokenizer: Any,
    captions: Sequence[str],
    taps: Sequence[int] = TAPS,
    max_sequence_length: int = 2048,
) -> list[Tensor]:
    """Text features of each caption: what it gives alone, whatever else is in the list. Equal captions run once.

    Args:
        text_encoder: A transformers `Qwen3VLModel`, or any model whose `language_model` has the same parts.
        tokenizer: Its tokenizer, with a chat template.
        captions: The captions.
        taps: Decoder layers whose outputs are taken, counted from 0. Layers after the last tap do not run.
        max_sequence_length: The most tokens a caption may have.

    Returns:
        For each caption `(tokens, hidden * len(taps))` float32 on the device where the text encoder computes; feature
        index = `channel * len(taps) + tap`.

    Raises:
        TypeError: if `text_encoder` has no language model.
        ValueError: if a tap is out of range, a caption too long, or the tokenizer has no chat template.
    """
    return encode_tokens(text_encoder, tokenise(tokenizer, captions, max_sequence_length), taps)


@torch.no_grad()
def encode_tokens(text_encoder: nn.Module, ids: Sequence[Sequence[int]], taps: Sequence[int] = TAPS) -> list[Tensor]:
    """`encode_captions` of what `tokenise` gave for the captions."""
    language_model = getattr(text_encoder, "language_model", None)
    if language_model is None:
        raise TypeError(
            f"`text_encoder` is a {type(text_encoder).__name__} without `.language_model`: pass a transformers"
            " Qwen3VLModel."
        )
    depth = len(language_model.layers)
    if not taps or not all(0 <= tap < depth for tap in taps):
        raise ValueError(
            f"`taps` is {tuple(taps)}, but the text encoder has decoder layers 0 to {depth - 1}: name at least one of"
            " them (`text_encoder_taps` in the pipeline's config)."
        )
    device = execution_device(text_encoder)
    distinct = list(dict.fromkeys(map(tuple, ids)))
    features = dict(zip(distinct, _run(text_encoder, distinct, taps, device), strict=True))
    return [features[tuple(tokens)] for tokens in ids]


@fires_hooks
def _run(text_encoder: Any, ids: Sequence[tuple[int, ...]], taps: Sequence[int], device: torch.device) -> list[Tensor]:
    """Features of each list of token ids, one after another."""
    return [_features(text_encoder.language_model, torch.tensor([tokens], device=device), taps) for tokens in ids]


def _features(language_model: Any, token_ids: Tensor, taps: Sequence[int]) -> Tensor:
    """`(1, tokens)` ids to `(tokens, hidden * len(taps))`."""
    hidden = language_model.embed_tokens(token_ids)  # (1, tokens, hidden)
    positions = torch.arange(token_ids.shape[1], device=token_ids.device)[None]  # (1, tokens)
    # A text token stands at the same place on all three rotary axes.
    rotary = language_model.rotary_emb(hidden, positions.expand(3, 1, -1))
    mask = create_causal_mask(
        config=language_model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    outputs = {}
    for index, layer in enumerate(language_model.layers[: max(taps) + 1]):
        hidden = layer(
            hidden, attention_mask=mask, position_ids=positions, past_key_values=None, position_embeddings=rotary
        )
        if index in taps:
            outputs[index] = hidden[0].to(token_ids.device)  # layers may lie on several
    return torch.stack([outputs[tap] for tap in taps], dim=-1).flatten(1).to(torch.float32)

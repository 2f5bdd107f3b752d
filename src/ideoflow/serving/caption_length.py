"""How many tokens a caption has, and whether the model can read so many."""

from __future__ import annotations

from typing import Any

from ..captions.sent_prompt import ReadPrompt
from ..text_encoder import CaptionTooLong, tokenise
from .api_errors import ApiError
from .job_settings import MOST_TEXT


def count_tokens(tokenizer: Any, line: str) -> int:
    """Tokens that the model reads of a prompt's line."""
    return len(tokenise(tokenizer, [line], max_sequence_length=len(line.encode()) + 1000)[0])


def check_length(tokenizer: Any, prompt: ReadPrompt, field: str) -> None:
    """See that the model can read a caption of this length; the engine may have to wait while it is tokenised.

    Args:
        tokenizer: the model's.
        prompt: the caption.
        field: what the client calls it.

    Raises:
        ApiError: with status 400 for one that is too long.
    """
    too_long = None
    if len(prompt.line) > MOST_TEXT:
        too_long = f"The caption has {len(prompt.line)} characters: give at most {MOST_TEXT}."
    else:
        try:
            tokenise(tokenizer, [prompt.line])
        except CaptionTooLong as error:
            too_long = str(error)
    if too_long:
        raise ApiError(400, too_long, code="invalid_caption", param=field)

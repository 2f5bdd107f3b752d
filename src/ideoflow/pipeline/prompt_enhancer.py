"""The text encoder as a writer of captions: with a head over its vocabulary, and held to the schema token by token.

The head is diffusers' optional component `prompt_enhancer_head`, by its name, configuration and weights. Several
prompts are written in one batch with one cache of keys and values; each has a random generator of its own, so that it
gives the same caption in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    Qwen3VLForConditionalGeneration,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from ..captions.writing import WritingError
from ..captions.writing.attempts import read_answer
from ..captions.writing.giving_up import check_wait
from ..captions.writing.instructions import proportions, writing_request
from ..ops.hooks import is_offloaded

TOP_K = 50  # candidates of a token, which transformers samples from unless told otherwise
# The shortest captions have these parts; twice their tokens before the last one, a caption is brought to its end.
SHORTEST = (
    '{"high_level_description":"a","style_description":{"aesthetics":"a","lighting":"a","medium":"a","art_style":"a"},'
    '"compositional_deconstruction":{"background":"a","elements":[{"type":"text","bbox":[100,100,1000,1000],"text":"a",'
    '"desc":"a"}]}}'
)


class Ideogram4PromptEnhancerHead(ModelMixin, ConfigMixin):
    """Scores of the next token, of the last hidden states of the text encoder; diffusers has the same under this name.

    Args:
        hidden_size: Width of the hidden states.
        vocab_size: Number of tokens.
    """

    @register_to_config
    def __init__(self, hidden_size: int = 4096, vocab_size: int = 151936) -> None:
        super().__init__()
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`(..., hidden_size)` to `(..., vocab_size)`."""
        scores: Tensor = self.lm_head(hidden_states)
        return scores


def write_captions(
    text_encoder: Any,
    head: Any,
    tokenizer: Any,
    words: Sequence[str],
    size: tuple[int, int],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
    device: torch.device,
    grammar: str,
    instructions: tuple[str, str | None],
    closes: bool = True,
) -> list[str]:
    """The line of a caption of each prompt: arguments as of the pipeline's `upsample_prompt`.

    The form of what the model is asked may be None, for that of `writing_request`. With `closes=False` a caption is not
    brought to its end before its last token: it is what the model makes of the grammar alone.

    Raises:
        WritingError: if what was written is no caption, which happens where `max_new_tokens` cut it off.
    """
    conversations = []
    if not is_offloaded(head):
        head.to(device)  # `fit_memory` places what drawing needs, and this is not
    system, form = instructions
    for text in words:
        if form is None:
            request = writing_request(text, size)
        else:
            request = form.format(aspect_ratio=proportions(size), original_prompt=text)
        conversations.append([{"role": "system", "content": system}, {"role": "user", "content": request}])
    texts = generate(
        writes(text_encoder, head), tokenizer, conversations, grammar=grammar, temperature=temperature,
        max_new_tokens=max_new_tokens, seed=seed, device=device, closes=closes,
    )  # fmt: skip
    for text in texts:
        try:
            read_answer(text)[0].strict()
        except ValueError as error:
            raise WritingError(f"the text encoder wrote no caption: {error} Raise `max_new_tokens`.", text) from None
    return texts


def writes(text_encoder: Any, head: Any) -> Any:
    """The text encoder and the head as one model that generates; it shares their weights.

    Raises:
        ValueError: if they are of different widths.
    """
    with init_empty_weights():
        model = Qwen3VLForConditionalGeneration(text_encoder.config)
    width, wanted = head.lm_head.in_features, text_encoder.config.text_config.hidden_size
    if width != wanted:
        raise ValueError(
            f"`prompt_enhancer_head` is for hidden states of {width}, and the text encoder's have {wanted}."
        )
    model.model, model.lm_head = text_encoder, head
    return model.eval()


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    conversations: Sequence[Sequence[dict[str, str]]],
    *,
    grammar: str | None,
    temperature: float,
    max_new_tokens: int,
    seed: int | None,
    device: torch.device,
    closes: bool = True,
) -> list[str]:
    """Have the model go on with each conversation.

    Args:
        model: what `writes` gave.
        tokenizer: with a chat template.
        conversations: messages as chat models take them, one list for each text.
        grammar: of llguidance, that every text keeps to; None for none.
        temperature: of sampling; 0 takes the likeliest token each time.
        max_new_tokens: the most that a text may have.
        seed: of the first text; the next have the next. None for fresh ones.
        device: where the model computes.
        closes: whether a text that has a grammar, that of captions, is brought to its end before `max_new_tokens`.

    Returns:
        The text of each, without special tokens.
    """
    inputs = _padded(tokenizer, conversations)
    rows = len(conversations)
    first = int(torch.randint(0, 2**63 - 1, (1,)).item()) if seed is None else seed
    generators = [torch.Generator(device).manual_seed((first + row) % 2**63) for row in range(rows)]
    prompt = inputs["input_ids"].shape[1]
    end = _ends(model, tokenizer)
    sampler = Sampler(tokenizer, rows, prompt, grammar, temperature, max_new_tokens, generators, end)
    if not closes:
        sampler.closing = 0
    tokens = model.generate(
        **{name: tensor.to(device) for name, tensor in inputs.items()},
        max_new_tokens=max_new_tokens,
        do_sample=False,  # the sampler below leaves one token
        use_cache=True,
        pad_token_id=_padding(tokenizer),
        logits_processor=LogitsProcessorList([sampler]),
        stopping_criteria=StoppingCriteriaList([sampler.stops]),
    )
    texts = []
    for row in range(rows):
        new = tokens[row, prompt:].tolist()[: sampler.taken[row]]
        texts.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


class Sampler(LogitsProcessor):
    """Chooses each row's next token, among those that its grammar allows, by its own generator."""

    def __init__(
        self,
        tokenizer: Any,
        rows: int,
        prompt: int,
        grammar: str | None,
        temperature: float,
        most: int,
        generators: Sequence[torch.Generator],
        ends: Sequence[int],
    ) -> None:
        self.prompt, self.most, self.ends = prompt, most, set(ends)
        self.tokenizer = tokenizer
        self.generators = generators
        self.taken = [0] * rows
        self.done = [False] * rows
        self.warpers: list[Any] = []
        self.greedy = temperature <= 0
        if temperature > 0 and temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(temperature))
        self.warpers.append(TopKLogitsWarper(TOP_K))
        self.grammar = grammar
        self.matchers: list[Any] = []
        self.closing = 2 * len(tokenizer.encode(SHORTEST, add_special_tokens=False))
        self.stops = _Stops(self)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(rows, vocabulary)` with one token left in each row."""
        check_wait()
        left = self.most - (input_ids.shape[1] - self.prompt)
        if self.grammar is not None:
            self._mask(scores, left)
        if self.greedy:
            chosen = scores.argmax(-1)
        else:
            warped = scores
            for warper in self.warpers:
                warped = warper(input_ids, warped)
            shares = warped.softmax(-1)
            chosen = torch.cat([
                torch.multinomial(shares[row : row + 1], 1, generator=generator)[0]
                for row, generator in enumerate(self.generators)
            ])  # fmt: skip
        for row, token in enumerate(chosen.tolist()):
            if not self.done[row]:
                self._take(row, token)
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, chosen[:, None], 0.0)

    def _mask(self, scores: Tensor, left: int) -> None:
        import llguidance.torch

        if not self.matchers:
            matcher = _matcher(self.tokenizer, self.grammar, scores.shape[1])
            self.matchers = [matcher.deep_copy() for _ in self.done]
            self.bits = llguidance.torch.allocate_token_bitmask(len(self.done), scores.shape[1])
        for row, matcher in enumerate(self.matchers):
            if self.done[row]:
                self.bits[row].fill_(-1)
                continue
            llguidance.torch.fill_next_token_bitmask(matcher, self.bits, row)
            if left <= self.closing:
                _close(self.bits[row], _closers(self.tokenizer, scores.shape[1]))
        allowed = _unpacked(self.bits.to(scores.device), scores.shape[1])
        scores.masked_fill_(~allowed, -torch.inf)

    def _take(self, row: int, token: int) -> None:
        if self.matchers:
            matcher = self.matchers[row]
            if not matcher.consume_token(token):
                raise RuntimeError(f"the grammar does not take token {token}: {matcher.get_error()}")
            self.taken[row] += 1
            self.done[row] = matcher.is_stopped() or matcher.is_accepting()
        else:
            self.taken[row] += 1
            self.done[row] = token in self.ends


class _Stops(StoppingCriteria):
    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done."""
        return torch.tensor(self.sampler.done, device=input_ids.device)


def _unpacked(bits: Tensor, size: int) -> Tensor:
    """Bits `(rows, words)` as booleans `(rows, size)`; the library's own way compiles a kernel."""
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits[..., None] >> places) & 1).bool().flatten(-2)[:, :size]


def _close(bits: Tensor, closers: Sequence[Tensor]) -> None:
    """Leave, of the tokens that a row may take, those that bring it to its end, if there are any."""
    for closer in closers:
        both = bits & closer
        if both.any():
            bits.copy_(both)
            return


@lru_cache(maxsize=4)
def _closers(tokenizer: Any, size: int) -> list[Tensor]:
    """Bits of the tokens that bring a caption to its end, the quickest first."""
    import llguidance.torch

    texts = [_bytes(tokenizer, token) for token in range(size)]
    found = []
    for opening in ((b'"]}', b'"}', b"]}", b"}]"), (b'"', b"]", b"}")):
        bits = llguidance.torch.allocate_token_bitmask(1, size)[0].zero_()
        for token, text in enumerate(texts):
            if text and text.startswith(opening):
                _set(bits, token)
        found.append(bits)
    return found


def _set(bits: Tensor, token: int) -> None:
    word = int(bits[token // 32].item()) | (1 << (token % 32))
    bits[token // 32] = word - 2**32 if word >= 2**31 else word


def _bytes(tokenizer: Any, token: int) -> bytes:
    text = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
    return (text or "").encode("utf-8")


@lru_cache(maxsize=4)
def _matcher(tokenizer: Any, grammar: str, size: int) -> Any:
    """The grammar at its beginning, which takes half a second to read; to be copied."""
    import llguidance

    matcher = llguidance.LLMatcher(_llguidance_tokenizer(tokenizer, size), grammar)
    if error := matcher.get_error():
        raise ValueError(f"the grammar is refused: {error}")
    return matcher


@lru_cache(maxsize=4)
def _llguidance_tokenizer(tokenizer: Any, size: int) -> Any:
    """The tokenizer as llguidance reads it.

    Raises:
        ImportError: naming the extra, if the library is not installed.
    """
    try:
        import llguidance.hf
    except ImportError:
        raise ImportError(
            "a local model is held to the caption schema by llguidance: pip install 'ideoflow[write]'"
        ) from None
    return llguidance.hf.from_tokenizer(tokenizer, n_vocab=size)


def _padded(tokenizer: Any, conversations: Sequence[Sequence[dict[str, str]]]) -> dict[str, Tensor]:
    """Token ids of each conversation with the beginning of an answer, padded on the left."""
    rows = [
        tokenizer.apply_chat_template(list(one), add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
        for one in conversations
    ]
    longest = max(map(len, rows))
    padding = _padding(tokenizer)
    ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _padding(tokenizer: Any) -> int:
    return next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a text."""
    told = getattr(model.generation_config, "eos_token_id", None)
    ids = [*(told if isinstance(told, (list, tuple)) else [told]), tokenizer.eos_token_id]
    return [one for one in ids if one is not None]


def seed_of(generator: torch.Generator | Sequence[torch.Generator] | None) -> int | None:
    """The seed that a call's generator gives to its captions, as diffusers draws it."""
    if generator is None:
        return None
    one = generator[0] if isinstance(generator, (list, tuple)) else generator
    assert isinstance(one, torch.Generator)
    return int(torch.randint(0, 2**63 - 1, (1,), generator=one, device=one.device).item())

"""Captions by the text encoder with its head: those of diffusers for a seed, and none outside the schema."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.ideogram4.prompt_enhancer import CAPTION_USER_TEMPLATE, Ideogram4PromptEnhancerHead
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3VLModel

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.captions import Caption, CaptionWarning
from ideoflow.captions.writing import WritingError, Written
from ideoflow.captions.writing.grammar import caption_grammar
from ideoflow.pipeline import prompt_enhancer
from tests.conftest import TEXT_WIDTH, make_text_encoder, randomise

llguidance = pytest.importorskip("llguidance")

Pair = tuple[diffusers.Ideogram4Pipeline, Ideogram4Pipeline]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
TOLD = "You convert ideas into captions."  # in the place of diffusers' own text, of thousands of these small tokens
FEW = ("", "{original_prompt}")
THEIRS = {"layout": False, "instructions": (TOLD, CAPTION_USER_TEMPLATE)}
SHORT = (("", 12), ("high_level_description", 12), ("background", 12), ("desc", 12), ("text", 6))
SOON = {"grammar": caption_grammar(True, SHORT), "instructions": FEW}  # captions that end soon


def ending_tokenizer(ascii_alone: bool = False) -> Qwen2Tokenizer:
    """A tokenizer of bytes in which many tokens end a text, so that a random head comes to an end.

    With ASCII alone, no token is a part of a character or a special one, which outlines lets stand anywhere in a text.
    """
    every = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [one for one in every if one in "\u0120\u010a" or ord(one) < 127] if ascii_alone else every
    ending = [f'{letter}"' for letter in letters if letter.isalnum() and ord(letter) < 127]
    vocabulary = {token: number for number, token in enumerate([*letters, *ending])}
    merges = [(letter[0], '"') for letter in ending]
    special = [] if ascii_alone else ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def head_for(tokenizer: Any, seed: int = 5) -> Ideogram4PromptEnhancerHead:
    head = Ideogram4PromptEnhancerHead(TEXT_WIDTH, len(tokenizer))
    return randomise(head, seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder that diffusers wrote, with a prompt enhancer's head; of two layers, since nothing is drawn."""
    tokenizer = ending_tokenizer()
    whole = diffusers.Ideogram4Pipeline.from_pretrained(tiny_folder)
    components = {**whole.components, "tokenizer": tokenizer, "text_encoder": make_text_encoder(len(tokenizer), 2)}
    pipeline = diffusers.Ideogram4Pipeline(**{**components, "prompt_enhancer_head": head_for(tokenizer)})
    place = tmp_path_factory.mktemp("with_head")
    pipeline.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def ours(folder: Path) -> Ideogram4Pipeline:
    pipeline = Ideogram4Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pair_of(peer_pipeline: Any, loaded_pipeline: Any) -> Callable[[int], Pair]:
    """Diffusers' pipeline and ours on the same components, with a text encoder of so many layers."""

    def make(layers: int) -> Pair:
        tokenizer = ending_tokenizer(ascii_alone=True)
        body = make_text_encoder(len(tokenizer), layers)
        body.config.text_config.eos_token_id = tokenizer.eos_token_id  # with which diffusers' captions end
        shared = {"tokenizer": tokenizer, "text_encoder": body, "prompt_enhancer_head": head_for(tokenizer)}
        peer = diffusers.Ideogram4Pipeline(**{**peer_pipeline.components, **shared})
        ours = Ideogram4Pipeline(**{**loaded_pipeline.components, **shared})
        for pipe in (peer, ours):
            pipe.set_progress_bar_config(disable=True)
        return peer, ours

    return make


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def their_grammar(monkeypatch: pytest.MonkeyPatch) -> str:
    """What outlines makes of diffusers' schema, for llguidance; and diffusers told in few words from here on."""
    backend = pytest.importorskip("outlines.backends.outlines_core")

    found: list[str] = []
    build = backend.build_regex_from_schema

    def note(*arguments: Any) -> str:
        found.append(build(*arguments))
        return found[-1]

    monkeypatch.setattr(backend, "build_regex_from_schema", note)
    monkeypatch.setattr(diffusers.pipelines.ideogram4.prompt_enhancer, "CAPTION_SYSTEM_MESSAGE", TOLD)
    peer = diffusers.pipelines.ideogram4.prompt_enhancer
    tokenizer = ending_tokenizer(ascii_alone=True)
    model = peer.build_prompt_enhancer(make_text_encoder(len(tokenizer), 1), head_for(tokenizer))
    peer.build_caption_logits_processor(model, tokenizer)
    # llguidance would take the usual tokens of a text that must come; outlines lets a model spell it in any.
    expression = found[-1].replace("/", "\\/")
    return f'%llguidance {{"no_forcing": true}}\nstart: /{expression}/\n'


# Parity


def test_with_diffusers_schema_a_seed_gives_its_captions_token_for_token(
    pair_of: Callable[[int], Pair], monkeypatch: pytest.MonkeyPatch
):
    peer, ours = pair_of(2)
    grammar = their_grammar(monkeypatch)
    for prompts, temperature, size in ((["a red heart", "two cups", "rain"], 1.0, (96, 64)), (["snow"], 0.7, (64, 64))):
        options = {"height": size[1], "width": size[0], "temperature": temperature, "max_new_tokens": 400}
        theirs = peer.upsample_prompt(prompts, **options, generator=seeded(3))
        found = ours.upsample_prompt(prompts, **options, generator=seeded(3), grammar=grammar, **THEIRS)
        assert found == theirs and len(set(found)) == len(prompts)
        assert all(Caption.parse(line).check() == [] for line in found)


@pytest.mark.long
def test_a_call_with_prompt_upsampling_draws_diffusers_picture(
    pair_of: Callable[[int], Pair], monkeypatch: pytest.MonkeyPatch
):
    peer, ours = pair_of(36)
    call = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 3.0, "guidance_schedule": None,
            "output_type": "latent"}  # fmt: skip
    upsampling = {**THEIRS, "grammar": their_grammar(monkeypatch)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer("rain", prompt_upsampling=True, generator=seeded(8), **call).images
        found = ours("rain", prompt_upsampling=upsampling, generator=seeded(8), **call).images
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)


def test_each_opens_the_folder_that_the_other_wrote(folder: Path, ours: Ideogram4Pipeline, tmp_path: Path):
    assert isinstance(ours.prompt_enhancer_head, prompt_enhancer.Ideogram4PromptEnhancerHead)
    ours.save_pretrained(tmp_path / "ours")
    theirs = diffusers.Ideogram4Pipeline.from_pretrained(tmp_path / "ours")
    assert isinstance(theirs.prompt_enhancer_head, Ideogram4PromptEnhancerHead)
    assert torch.equal(theirs.prompt_enhancer_head.lm_head.weight, ours.prompt_enhancer_head.lm_head.weight)
    own = prompt_enhancer.Ideogram4PromptEnhancerHead.from_pretrained(folder / "prompt_enhancer_head")
    assert torch.equal(own.lm_head.weight, ours.prompt_enhancer_head.lm_head.weight)


def test_a_head_of_diffusers_may_be_given(folder: Path):
    head = Ideogram4PromptEnhancerHead.from_pretrained(folder / "prompt_enhancer_head")
    pipe = Ideogram4Pipeline.from_pretrained(folder, prompt_enhancer_head=head)
    assert pipe.upsample_prompt("rain", 64, 64, generator=seeded(1), **SOON)


# Captions


def small_writer(seed: int = 0) -> tuple[Any, Any, Any]:
    tokenizer = ending_tokenizer()
    return make_text_encoder(len(tokenizer), layers=2), head_for(tokenizer, seed), tokenizer


def captions_of(count: int, batch: int, layout: bool, temperature: float = 1.0) -> list[str]:
    body, head, tokenizer = small_writer()
    found: list[str] = []
    for first in range(0, count, batch):
        found += prompt_enhancer.write_captions(
            body, head, tokenizer, ["rain"] * min(batch, count - first), (64, 64), temperature=temperature,
            max_new_tokens=700, seed=first, device=torch.device("cpu"), grammar=caption_grammar(layout, SHORT),
            instructions=FEW,
        )  # fmt: skip
    return found


def assert_all_keep_the_schema(lines: list[str]) -> None:
    assert len(set(lines)) > 0.9 * len(lines)
    for line in lines:
        caption = Caption.parse(line)
        assert caption.check() == [] and caption.line() == line


@pytest.mark.parametrize("layout", [True, False])
def test_whatever_a_random_head_writes_keeps_the_schema(layout: bool):
    assert_all_keep_the_schema(captions_of(12, 12, layout))


@pytest.mark.long
def test_two_thousand_captions_of_a_random_head_keep_the_schema():
    assert_all_keep_the_schema(captions_of(2000, 250, layout=True))


def test_a_caption_is_the_same_in_any_company(ours: Ideogram4Pipeline):
    body, head, tokenizer = small_writer()
    options = {"temperature": 1.0, "max_new_tokens": 600, "device": torch.device("cpu"),
               "grammar": caption_grammar(True, SHORT), "instructions": FEW}  # fmt: skip
    words = ["rain", "a long prompt of words", "snow"]
    together = prompt_enhancer.write_captions(body, head, tokenizer, words, (64, 64), seed=10, **options)
    alone = prompt_enhancer.write_captions(body, head, tokenizer, ["snow"], (64, 64), seed=12, **options)
    assert together[2] == alone[0] and len(set(together)) == 3


@pytest.mark.parametrize("most", [500, 800])
def test_a_caption_is_brought_to_its_end_within_its_tokens(most: int):
    body, head, tokenizer = small_writer()
    long = caption_grammar(True, (("", 5000), ("desc", 5000), ("background", 5000), ("high_level_description", 5000)))
    weights = head.lm_head.weight.data
    for token in range(len(tokenizer)):  # never a quotation mark, if it can be helped
        if '"' in tokenizer.convert_ids_to_tokens(token):
            weights[token] *= 0
    lines = prompt_enhancer.write_captions(
        body, head, tokenizer, ["rain"] * 4, (64, 64), temperature=0.2, max_new_tokens=most, seed=0,
        device=torch.device("cpu"), grammar=long, instructions=FEW,
    )  # fmt: skip
    assert all(Caption.parse(line).check() == [] for line in lines)


def test_too_few_tokens_are_one_clear_error(ours: Ideogram4Pipeline):
    with pytest.raises(WritingError, match="Raise `max_new_tokens`"):
        ours.upsample_prompt("rain", 64, 64, max_new_tokens=20, generator=seeded(1), instructions=FEW)


def test_a_head_of_another_width_is_refused(folder: Path):
    pipe = Ideogram4Pipeline.from_pretrained(folder)
    pipe.prompt_enhancer_head = Ideogram4PromptEnhancerHead(16, 100)
    with pytest.raises(ValueError, match="for hidden states of 16, and the text encoder's have 32"):
        pipe.upsample_prompt("rain", 64, 64)


def test_without_a_head_it_is_said_what_to_do(pipeline: Ideogram4Pipeline):
    with pytest.raises(ValueError, match=r"needs the component `prompt_enhancer_head`.*`pipe.caption_writer`"):
        pipeline("rain", height=32, width=32, prompt_upsampling=True)


def test_captions_stay_as_they_are_and_words_are_written(ours: Ideogram4Pipeline):
    pipe = copy.copy(ours)
    pipe.caption_writer = lambda words, size: Written(Caption.from_text(f"{words} {size}"), "me", ("said",))
    given = Caption.from_text("kept")
    with pytest.warns(CaptionWarning, match="said"):
        requests = pipe._upsampled(
            prompt_enhancer_drawing([given, "rain", {"compositional_deconstruction": {}}, "snow"]), {}
        )
    assert requests[0] is given and requests[2] == {"compositional_deconstruction": {}}
    assert requests[1] == Caption.from_text("rain (64, 32)").line()
    assert requests[3] == Caption.from_text("snow (32, 32)").line()


def prompt_enhancer_drawing(prompts: list[Any]) -> Any:
    from ideoflow.pipeline.arguments import Drawing

    return Drawing(prompts, size=[(32, 32), (64, 32), (32, 32), (32, 32)])


def test_the_bundled_model_draws_words_by_its_grammar():
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    lines = pipe.upsample_prompt("a red heart on pink", 128, 128)
    assert lines == [sketch.prose.write("a red heart on pink", (128, 128)).caption.line()]
    call = {"size": (96, 96), "num_inference_steps": 1, "guidance_scale": 2.0, "guidance_schedule": None,
            "output_type": "latent"}  # fmt: skip
    words = pipe("a red heart on pink", prompt_upsampling=True, generator=seeded(0), **call).images
    caption = pipe(sketch.prose.write("a red heart on pink", (96, 96)).caption, generator=seeded(0), **call).images
    assert torch.equal(words, caption)


def test_the_text_encoder_is_a_plain_one_too(folder: Path):
    """As with transformers' own class, vision tower and all."""
    body = Qwen3VLModel.from_pretrained(folder / "text_encoder")
    pipe = Ideogram4Pipeline.from_pretrained(folder, text_encoder=body)
    line = pipe.upsample_prompt("rain", 64, 64, generator=seeded(1), **SOON)[0]
    own = Ideogram4Pipeline.from_pretrained(folder)
    assert own.upsample_prompt("rain", 64, 64, generator=seeded(1), **SOON) == [line]


def test_the_size_of_the_bundled_models_pictures_is_not_warned_of(recwarn: pytest.WarningsRecorder):
    pipe = sketch.load()
    call = dict(size=(96, 96), num_inference_steps=1, guidance_scale=2.0, guidance_schedule=None, output_type="latent")
    pipe("a red heart on pink", prompt_upsampling=True, generator=torch.Generator().manual_seed(1), **call)
    assert not [str(one.message) for one in recwarn if "were trained on" in str(one.message)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("a red heart", 0, 64), "`height` is 0"),
        (("a red heart", 64, -1), "`width` is -1"),
        ((None,), "`prompt` is a NoneType: give plain words"),
        (([1],), "list with something else than words"),
        (({"a": "b"},), "`prompt` is a dict"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: tuple, told: str):
    with pytest.raises((TypeError, ValueError), match=told):
        sketch.load().upsample_prompt(*arguments)


@pytest.mark.parametrize("given", [1, "yes", ["temperature"]])
def test_upsampling_that_is_no_mapping_is_refused(given):
    with pytest.raises(TypeError, match=r"`prompt_upsampling` is .*: give True, or a mapping"):
        sketch.load()("a red heart on pink", size=(96, 96), preset="turbo", prompt_upsampling=given)

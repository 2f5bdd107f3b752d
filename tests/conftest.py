"""Fixtures shared by all tests: a tiny random pipeline in the reference folder layout."""

import copy
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers
from torch import nn
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from tests.small import LATENT_CHANNELS, autoencoder
from tests.warm import command

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT_WIDTH = 32
TAP_COUNT = 13


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter anew so that no gain is 1 and no bias 0, at a scale that keeps signals of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if "embed" not in name else 1
                parameter.copy_(draw / fan_in**0.5)
            elif name.endswith("weight"):
                parameter.copy_(1 + 0.1 * draw)
            else:
                parameter.copy_(0.1 * draw)
    return module.eval()


def make_tokenizer() -> Qwen2Tokenizer:
    vocab = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_text_encoder(vocab_size: int = 259, layers: int = 36) -> Qwen3VLModel:
    config = Qwen3VLConfig(
        text_config=dict(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            rope_parameters=dict(
                rope_type="default", rope_theta=5_000_000.0, mrope_section=[4, 2, 2], mrope_interleaved=True
            ),
        ),
        vision_config=dict(
            depth=1,
            hidden_size=16,
            intermediate_size=16,
            num_heads=2,
            out_hidden_size=TEXT_WIDTH,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0],
        ),
    )
    return randomise(Qwen3VLModel(config), 1)


def transformer_config() -> dict:
    return dict(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=48,
        adaln_dim=16,
        llm_features_dim=TEXT_WIDTH * TAP_COUNT,
        rope_theta=10_000,
        mrope_section=(4, 2, 2),
    )


@pytest.fixture(scope="session")
def warm() -> Iterator[list[str]]:
    """What to write in place of `python` to run it in a process that has imported everything already."""
    with command() as words:
        yield words


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the reference pipeline wrote: tiny random components, 36 text layers. Read only: copy to change."""
    tokenizer = make_tokenizer()
    pipeline = diffusers.Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(sample_size=64),
        text_encoder=make_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=randomise(diffusers.Ideogram4Transformer2DModel(**transformer_config()), 3),
        unconditional_transformer=randomise(diffusers.Ideogram4Transformer2DModel(**transformer_config()), 4),
    )
    folder = tmp_path_factory.mktemp("tiny_pipeline")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def peer_pipeline(tiny_folder: Path) -> diffusers.Ideogram4Pipeline:
    """The reference pipeline on `tiny_folder`. Shared: do not change it."""
    pipeline = diffusers.Ideogram4Pipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def loaded_pipeline(tiny_folder: Path):
    """Our pipeline on `tiny_folder`. Shared: do not change it."""
    from ideoflow import Ideogram4Pipeline

    return Ideogram4Pipeline.from_pretrained(tiny_folder)


@pytest.fixture
def pipeline(loaded_pipeline):
    """Our pipeline on `tiny_folder`, a copy for each test."""
    pipeline = type(loaded_pipeline)(**copy.deepcopy(loaded_pipeline.components))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

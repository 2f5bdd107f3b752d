"""What the roofline counts is what runs: FLOPs of ours and of the peer, by PyTorch's own counter.

It knows matrix products and attention: `Work.matrix_flops` equals it. Attention runs as two products here, as the
counter does not know the CPU's fused kernel. It counts no element-wise operation, so `Work.vector_flops` has no oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import diffusers
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.roofline import REQUEST, Config, Implementation, Sample, count, work_of
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request
from ideoflow.engine import denoiser as denoiser_module
from ideoflow.model import Context
from ideoflow.ops.kernels.torch_kernels import rotate
from ideoflow.packing import Layout

from .cases import NARROW, NONE_GUIDED, ONE, OURS, SEVERAL, SHALLOW, SOME_UNGUIDED, WIDE, peer_inputs

CONFIGS = pytest.mark.parametrize("sizes", [NARROW, WIDE, SHALLOW], ids=["narrow", "wide", "shallow"])
TRAFFICS = pytest.mark.parametrize(
    "samples",
    [ONE, SEVERAL, SOME_UNGUIDED, NONE_GUIDED],
    ids=["one", "several", "some unguided", "none guided"],
)


@contextmanager
def flops_counted() -> Iterator[FlopCounterMode]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def denoiser_request(denoiser: Denoiser, sample: Sample, config: Config) -> Request:
    return Request(
        conditional=denoiser.prepare_conditional(
            torch.randn(sample.text, config.llm_features_dim), (sample.rows, sample.cols)
        ),
        unconditional=denoiser.prepare_unconditional((sample.rows, sample.cols)),
        latents=torch.randn(sample.image, config.in_channels),
        sigmas=torch.tensor([1.0, 0.5, 0.0]),
        guidance=(7.0 if sample.guided else 1.0,) * 2,
        grid=(sample.rows, sample.cols),
    )


@CONFIGS
@TRAFFICS
def test_prepare_and_velocity_do_the_counted_flops(sizes, samples):
    config, model = Config.of(sizes), Ideogram4Transformer2DModel(**sizes).eval()
    parts = count(config, samples, OURS, "float32")
    for branch, texts, members in (
        ("conditional", [s.text for s in samples], samples),
        ("unconditional", [0] * len(samples), [s for s in samples if s.guided]),
    ):
        mine = [part for part in parts if part.call.startswith(branch)]
        contexts = []
        with flops_counted() as once:
            for sample, text in zip(members, texts, strict=False):
                features = torch.randn(text, config.llm_features_dim)
                contexts.append(model.prepare(features, Layout.of_samples([(text, sample.rows, sample.cols)])))
        assert work_of(mine, when=REQUEST).matrix_flops == once.get_total_flops()
        if not members:
            continue
        context = Context.cat(contexts)
        latents = torch.randn(sum(s.image for s in members), config.in_channels)
        with flops_counted() as step:
            model.velocity(latents, torch.rand(len(members)), context)
        assert work_of(mine).matrix_flops == step.get_total_flops()


@TRAFFICS
def test_the_engine_does_the_counted_flops(samples, monkeypatch):
    monkeypatch.setattr(denoiser_module, "SCHEDULES", 0)  # the modulations of a step at the step, as they are counted
    config = Config.of(WIDE)
    denoiser = Denoiser(*(Ideogram4Transformer2DModel(**WIDE).eval() for _ in range(2)))
    parts = count(config, samples, OURS, "float32")
    with flops_counted() as once:
        requests = [denoiser_request(denoiser, sample, config) for sample in samples]
    assert work_of(parts, when=REQUEST).matrix_flops == once.get_total_flops()
    for _ in range(2):
        with flops_counted() as step:
            denoiser.step(requests)
        assert work_of(parts).matrix_flops == step.get_total_flops()


@CONFIGS
@TRAFFICS
@pytest.mark.parametrize("padded", [0, 24], ids=["trimmed", "padded"])
def test_the_peer_does_the_counted_flops(sizes, samples, padded):
    config, model = Config.of(sizes), diffusers.Ideogram4Transformer2DModel(**sizes).eval()
    parts = count(config, samples, Implementation("peer", padded_text=padded), "float32")
    with flops_counted() as counter:
        for grid in {(s.rows, s.cols) for s in samples}:
            batch = [s for s in samples if (s.rows, s.cols) == grid]
            model(**peer_inputs(batch, config, padded or max(s.text for s in batch)))
            model(**peer_inputs([replace(s, text=0) for s in batch], config, 0))
    assert work_of(parts, when=None).matrix_flops == counter.get_total_flops()
    assert work_of(parts, when=REQUEST).matrix_flops == 0


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_the_peers_pipeline_makes_the_counted_calls(peer_pipeline, guidance):
    """Both transformers at each step, whatever the guidance, over captions padded to the same length."""
    steps, text, side = 2, 200, 4
    samples = [Sample(1, side, side, guided=guidance != 1)] * 2  # the length of a caption does not matter
    parts = count(Config.of(peer_pipeline.transformer.config), samples, Implementation("peer", text), "float32")
    counted = 0

    def counting(forward):
        def call(*args, **kwargs):
            nonlocal counted
            with flops_counted() as counter:
                output = forward(*args, **kwargs)
            counted += counter.get_total_flops()
            return output

        return call

    branches = (peer_pipeline.transformer, peer_pipeline.unconditional_transformer)
    with pytest.MonkeyPatch.context() as patch:
        for branch in branches:
            patch.setattr(branch, "forward", counting(branch.forward))
        peer_pipeline(
            ["a", "bc"], height=16 * side, width=16 * side, num_inference_steps=steps, max_sequence_length=text,
            guidance_schedule=[guidance] * steps, output_type="latent",
        )  # fmt: skip
    assert counted == steps * work_of(parts).matrix_flops


def test_a_last_block_at_image_tokens_does_the_counted_flops():
    """Queries and all that follows at image tokens: by hand on one layer, which gives the same velocities."""
    config, model = Config.of(SHALLOW), Ideogram4Transformer2DModel(**SHALLOW).eval()
    sample = Sample(6, 3, 4)
    context = model.prepare(torch.randn(6, 20), Layout.of_samples([(6, 3, 4)]))
    block, image = model.layers[0], context.layout.image
    latents, times = torch.randn(12, 8), torch.rand(1)
    with torch.no_grad():
        expected = model.velocity(latents, times, context)
    fed, attention = block.feed_forward, block.attention
    with flops_counted() as counter:
        # The time and the embedding as they are, then the block without its text rows.
        conditioning = torch.nn.functional.silu(model.adaln_proj(model.t_embedding(times, latents.dtype)))
        image_row = model.embed_image_indicator.weight[1]
        hidden = torch.cat((context.text, model.input_proj(latents) + image_row))
        scale1, gate1, scale2, gate2 = block.adaln_modulation(conditioning).chunk(4, dim=-1)
        normed = block.attention_norm1(hidden) * (1 + scale1)
        query, key, value = attention.to_q(normed[image]), attention.to_k(normed), attention.to_v(normed)
        attended = attend(attention, query, key, value, context, image)
        hidden = hidden[image] + gate1.tanh() * block.attention_norm2(attention.to_out[0](attended))
        hidden = hidden + gate2.tanh() * block.ffn_norm2(fed(block.ffn_norm1(hidden) * (1 + scale2)))
        velocity = model.final_layer(hidden, conditioning, None)
    torch.testing.assert_close(velocity, expected)
    parts = [p for p in count(config, [sample], OURS, "float32") if p.call == "conditional"]
    assert work_of(parts).matrix_flops == counter.get_total_flops()


def attend(attention, query, key, value, context, image) -> Tensor:
    query, key, value = (x.unflatten(-1, (attention.num_heads, attention.head_dim)) for x in (query, key, value))
    query = rotate(attention.norm_q(query), context.cos[image], context.sin[image])
    key = rotate(attention.norm_k(key), context.cos, context.sin)
    heads = (x.transpose(0, 1)[None] for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads)[0].transpose(0, 1).flatten(1)

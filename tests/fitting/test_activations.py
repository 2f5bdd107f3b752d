"""What is alive beyond the weights: the count beside bytes that operations give out while the code runs."""

import pytest
import torch
from diffusers import AutoencoderKLFlux2

from benchmarks.memory import Alive
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request
from ideoflow.fitting import Model
from ideoflow.fitting.activations import Call, decoder_blocks
from ideoflow.latents import decode
from ideoflow.ops import quantize_
from ideoflow.ops.quantized_linear import HAS_VNNI
from tests.thinned import thinned

from .configs import AUTOENCODER, TRANSFORMER

# Wide enough that tables and modulations do not count, narrow enough for a second.
WIDE = TRANSFORMER | dict(num_layers=2, attention_head_dim=64, intermediate_size=688, mrope_section=(12, 10, 10))


def model(transformer: dict = WIDE, autoencoder: dict = AUTOENCODER) -> Model:
    text = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    return Model.of_configs({**text, "head_dim": 32, "vocab_size": 100}, transformer, transformer, autoencoder)


@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_step_holds_what_the_count_says(dtype, kind, pictures):
    branches = [Ideogram4Transformer2DModel(**WIDE).eval().to(getattr(torch, dtype)) for _ in "ab"]
    if kind:
        [quantize_(branch, kind) for branch in branches]
    denoiser, text, grid = Denoiser(*branches), 70, (20, 24)
    requests = []
    for seed in range(pictures):
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(text, WIDE["llm_features_dim"], generator=generator)
        requests.append(
            Request(
                conditional=denoiser.prepare_conditional(features, grid),
                unconditional=denoiser.prepare_unconditional(grid),
                latents=torch.randn(480, 128, generator=generator),
                sigmas=torch.tensor([1.0, 0.5, 0.0]),
                guidance=(7.0, 7.0),
                grid=grid,
            )
        )
    with Alive() as alive:
        denoiser.step(requests)
    expands = kind == "fp8" or (kind == "int8" and not HAS_VNNI)
    call = Call(model(), 24 * 16, 20 * 16, text, pictures, 2, dtype, kind, expands)
    held = call.held()
    packed = held["contexts"] * pictures / (1 + pictures) if pictures > 1 else 0
    # Of the latents those that the step is given in one piece; at full size they do not count.
    expected = call.step().bytes + held["modulations"] + packed + held["latents"] / 4
    assert alive.peak == pytest.approx(expected, rel=0.055)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_the_text_projection_holds_what_the_count_says(dtype):
    branch = Ideogram4Transformer2DModel(**WIDE).eval().to(getattr(torch, dtype))
    features = torch.randn(600, WIDE["llm_features_dim"])
    with Alive() as alive:
        Denoiser(branch, None).project_text(features)
    call = Call(model(), caption=600, dtype=dtype)
    assert alive.peak + features.nbytes == pytest.approx(call.projecting().bytes, rel=0.05)


@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize("pictures", [1, 2])
@pytest.mark.parametrize("dtype", thinned(["float32", "bfloat16"], ["float32"]))
@torch.no_grad()
def test_decoding_holds_what_the_count_says_but_for_what_convolutions_take_inside(dtype, pictures, tile):
    from ideoflow.fitting.apply import tile_decoding

    vae = AutoencoderKLFlux2(**AUTOENCODER).eval().to(getattr(torch, dtype))
    if tile:
        tile_decoding(vae, tile)
    tokens = [torch.randn(6 * 8, 128) for _ in range(pictures)]
    with Alive() as alive:
        decode(vae, tokens, [(6, 8)] * pictures)
    call = Call(model(), 128, 96, 10, pictures, dtype=dtype)
    counted = call.decoding(tile=tile)
    # Without a convolution's copy of its input, which torch does not give out, another moment is the widest.
    assert 0.8 * counted.bytes <= alive.peak <= counted.bytes


def test_the_decoders_blocks_are_those_of_the_autoencoder():
    vae = AutoencoderKLFlux2(block_out_channels=(32, 64, 96, 128), layers_per_block=2)
    blocks = decoder_blocks(dict(vae.config))
    built = [vae.decoder.mid_block, *vae.decoder.up_blocks]
    for counted, block in zip(blocks, built, strict=True):
        assert counted.resnets == tuple((one.in_channels, one.out_channels) for one in block.resnets)
        assert counted.upsamples == bool(getattr(block, "upsamplers", None))
    assert [block.scale for block in blocks] == [8, 8, 4, 2, 1]


def test_tiles_are_those_that_the_autoencoder_cuts():
    call = Call(model(), 128, 96)
    assert call.tiles(64) == [
        *[(64, 64), (64, 64), (32, 64)],
        *[(64, 48), (64, 48), (32, 48)],
    ]


def test_the_arithmetic_of_a_step_by_hand(full):
    """One picture of 1024 pixels, 500 text tokens, bfloat16: 4596 tokens, 4608 channels, 12288 in the feed-forward."""
    call = Call(full)
    tokens, image = 4096 + 500, 4096
    assert call.image == image and call.tokens == 2 * image + 500
    widest = 2 * (image * 4608 + 4 * tokens * 4608 + 3 * tokens * 12288)
    assert call.step().bytes == widest
    assert call.step(hooked=True).bytes == widest + 2 * tokens * 4608
    assert call.step(unconditional=True).bytes == 2 * (5 * image * 4608 + 3 * image * 12288)
    assert Call(full, pictures=3).step().bytes == 3 * widest
    assert Call(full, pictures=3).step(together=1).bytes == widest
    schedule = 2 * 20 * (34 * 4 * 4608 + 4608) * 2
    assert call.held()["modulations"] == schedule and call.held(False)["modulations"] == 0

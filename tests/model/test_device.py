"""On the GPU, where there is one: the peer's function in every type, packed as alone, in few bits, without waiting.

The other tests of the transformer compute on the CPU. These compute where there is the most to go wrong: heads of 256
channels, streams of several lengths, the last block cut short. Without a GPU they run on the CPU.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from torch import Tensor

from ideoflow.engine import Denoiser, Request
from ideoflow.ops import kernels, quantize_
from ideoflow.ops.ragged_attention import attend
from ideoflow.packing import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, Layout

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TEXT, IMAGE, PADDING = LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, (-1, 0)
WIDE = dict(
    in_channels=32,
    attention_head_dim=256,
    num_attention_heads=2,
    intermediate_size=1024,
    adaln_dim=64,
    llm_features_dim=128,
    mrope_section=(24, 20, 20),
)
PICTURES = ((40, (8, 8)), (7, (12, 6)), (40, (8, 8)), (0, (4, 4)))  # text tokens, rows and columns of image tokens


def distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over that of `b`."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def rows() -> list[list[tuple[int, int]]]:
    """Two samples of unequal length in rows of equal length, and two in one row."""
    return [
        [(0, TEXT)] * 40 + [(0, IMAGE)] * 64 + [PADDING] * 16,
        [(0, TEXT)] * 7 + [(0, IMAGE)] * 72 + [PADDING] * 41,
        [(0, TEXT)] * 20 + [(0, IMAGE)] * 40 + [(1, TEXT)] * 20 + [(1, IMAGE)] * 40,
    ]


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 0.08), (torch.float16, 0.01)], ids=str
)
def test_velocities_are_the_peers(make_pair, make_rows, dtype, limit):
    """As near to float64 as the peer, but for a fifth; on a CPU no further than the type may be, besides.

    A GPU's own products and attention may be less exact in float32 than a CPU's, for both: 2.3e-4 on an H100.
    """
    peer, ours = make_pair(**WIDE)
    inputs = make_rows(rows(), in_channels=32, llm_features_dim=128)
    inputs["timestep"] = torch.tensor([0.375, 0.25, 0.5])  # the same in every type: its embedding magnifies roundings

    def run(model, device, dtype):
        given = {n: x.to(device, dtype if x.is_floating_point() else None) for n, x in inputs.items()}
        with torch.no_grad():
            return model.to(device, dtype)(**given).sample[inputs["indicator"].to(device) == IMAGE]

    exact = run(peer, "cpu", torch.float64)
    theirs, mine = (distance(run(model, DEVICE, dtype), exact) for model in (peer, ours))
    where = {} if mine <= limit else parts_off(ours, DEVICE, dtype)
    told = f"{mine:.1e}, the peer {theirs:.1e}, {where}"
    assert mine <= 1.2 * theirs + 1e-6, told
    assert mine <= limit or DEVICE != "cpu", told


@torch.no_grad()
def parts_off(model, device: str, dtype: torch.dtype) -> dict[str, float]:
    """How far single parts are from float64 on this device: what a failure is looked for in."""
    block, tokens = model.layers[0], 64
    x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(0))
    bounds = Layout.of_samples([(0, 8, 8)]).bounds
    heads = x.view(tokens, 2, 256)
    gate = torch.ones(1, 512)
    computed = {
        "product": lambda x, heads, gate, bounds: block.feed_forward.w1(x),
        "norm": lambda x, heads, gate, bounds: kernels.norm_scale(block.attention_norm1, x, gate, None),
        "attention": lambda x, heads, gate, bounds: attend(heads, heads, heads, bounds, AttentionBackendName.NATIVE),
        "silu": lambda x, heads, gate, bounds: kernels.swiglu(x, x),
    }

    def run(device, dtype):
        model.to(device, dtype)
        given = [t.to(device, dtype) for t in (x.to(dtype), heads.to(dtype), gate)]
        return {name: part(*given, bounds.to(device)) for name, part in computed.items()}

    here, exact = run(device, dtype), run("cpu", torch.float64)
    return {name: distance(here[name], exact[name]) for name in computed}


def test_the_parts_of_a_failure_can_be_told_apart(make_pair):
    off = parts_off(make_pair(**WIDE)[1], "cpu", torch.float32)
    assert all(0 < value < 1e-5 for value in off.values()), off


@pytest.fixture
def denoiser(make_pair) -> Denoiser:
    transformers = (make_pair(seed, **WIDE)[1].to(DEVICE, torch.bfloat16) for seed in range(2))
    return Denoiser(*transformers, cuda_graphs=False)  # recording waits for the device


def requests(denoiser: Denoiser) -> list[Request]:
    """One for each of `PICTURES`, at steps of their own."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for number, (text, grid) in enumerate(PICTURES):
        features = torch.randn(text, 128, generator=generator)
        latents = torch.randn(grid[0] * grid[1], 32, generator=generator).to(DEVICE)
        made.append(
            Request(
                conditional=denoiser.prepare_conditional(features, grid),
                unconditional=denoiser.prepare_unconditional(grid),
                latents=latents,
                sigmas=torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0]),
                guidance=(7.0,) * 4,
                grid=grid,
                step=number,
            )
        )
    return made


def test_a_picture_is_the_same_packed_as_alone(denoiser):
    together, alone = requests(denoiser), requests(denoiser)
    denoiser.step(together)
    for request in alone:
        denoiser.step([request])
    for one, other in zip(together, alone, strict=True):
        assert distance(one.velocity, other.velocity) < 0.1  # kernels differ, and guidance magnifies roundings


@pytest.mark.parametrize(("kind", "limit"), [("fp8", 0.3), ("int8", 0.2)])
def test_few_bits_are_near(denoiser, kind, limit):
    exact = requests(denoiser)
    denoiser.step(exact)
    for branch in (denoiser._conditional, denoiser._unconditional):
        quantize_(branch.transformer, kind)
    near = requests(denoiser)
    denoiser.step(near)
    for one, other in zip(near, exact, strict=True):
        assert 0 < distance(one.velocity, other.velocity) < limit


@pytest.mark.skipif(DEVICE == "cpu", reason="nothing waits for a CPU")
def test_a_step_never_waits_for_the_device(denoiser):
    steps = requests(denoiser)
    denoiser.step(steps[:3])  # kernels are chosen and checked at their first use, layouts are made, and wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for request in steps[:3]:
            request.step = 1
        denoiser.step(steps[:3])
    finally:
        torch.cuda.set_sync_debug_mode("default")

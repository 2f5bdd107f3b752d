"""Plans of `fit_memory` carried out: the published sizes on random weights, for cards of 12, 16 and 24 GB.

Text features are given, so that the text encoder, which waits in host memory meanwhile, is not called: what is measured
is the steps, where plans are tightest. Torch gives out no more memory than the plan is for.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import AutoTokenizer, Qwen3VLConfig

from benchmarks._gpu import free, wait, why
from benchmarks.full.models import TINY, twin
from benchmarks.gpu.scene import Scene
from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel, sketch
from ideoflow.fitting import carry_out, plan
from ideoflow.fitting.components import FULL_TEXT
from ideoflow.fitting.memory import parse_memory
from ideoflow.pipeline.qwen3_vl import Qwen3VLModel
from ideoflow.presets import PRESETS

MEMORIES = ("12GB", "24GB", "16GB")  # the ends first
PIXELS, TEXT, STEPS = 1024, 500, 4
TINY_TEXT: dict[str, Any] = dict(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=14,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rope_parameters=dict(rope_type="default", rope_theta=5e6, mrope_section=[4, 2, 2], mrope_interleaved=True),
)


@torch.no_grad()
def plans(scene: Scene) -> None:
    """Each plan: its peak of a step against the measured one, and seconds."""
    scene.forget()
    parts = _parts(scene.tiny)
    results: list[dict[str, Any]] = []
    for memory in scene.in_time(("1TB",) if scene.tiny else MEMORIES):
        try:
            if scene.device == "cuda":
                total = torch.cuda.get_device_properties().total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, parse_memory(memory) / total))
            found = _carried_out(scene, parts, memory)
        except Exception as error:
            found = {"failed": why(error)}
        finally:
            if scene.device == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        free()
        results.append({"memory": memory, **found})
        scene.tell({"plans": results}, [_line(one) for one in results])
    if failed := [one for one in results if "failed" in one]:
        raise RuntimeError(f"{failed[0]['memory']}: {failed[0]['failed']}")


def _line(one: dict[str, Any]) -> str:
    if "failed" in one:
        return f"{one['memory']}: {one['failed']}"
    return (
        f"{one['memory']}: {one['plan']}; planned {one['planned'] / 1e9:.2f} GB, measured {one['measured'] / 1e9:.2f}"
        f" ({one['off']:+.1%}), {one['seconds']:.2f} s a step"
    )


def _carried_out(scene: Scene, parts: dict[str, nn.Module], memory: str) -> dict[str, Any]:
    device = scene.device
    modules = {name: twin(part) for name, part in parts.items()}  # hooks come onto these, the weights are shared
    tokenizer = AutoTokenizer.from_pretrained(sketch.path() / "tokenizer")
    pipe = Ideogram4Pipeline(FlowMatchEulerDiscreteScheduler(), tokenizer=tokenizer, **modules)
    pixels, text = (64, 5) if scene.tiny else (PIXELS, TEXT)
    made = plan(pipe, memory, (pixels, pixels), text, 1, device, steps=STEPS, allow=None if not scene.tiny else ())
    free()
    base = torch.cuda.memory_allocated() if device == "cuda" else 0
    begun = time.perf_counter()
    carry_out(pipe, made, device)
    placed = time.perf_counter() - begun
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(text, pipe.transformer.config.llm_features_dim, generator=generator)
    request = pipe.make_requests(
        "{}",
        size=(pixels, pixels),
        preset=PRESETS["V4_TURBO_12"].with_steps(STEPS),
        generator=generator,
        prompt_features=[features],
    )[0]
    engine = pipe.engine()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = []
    for _ in range(STEPS):
        begun = time.perf_counter()
        engine.advance([request])
        if request.error is not None:
            raise request.error
        wait(device)
        taken.append(time.perf_counter() - begun)
    planned = made.peaks["denoise"].bytes
    measured = torch.cuda.max_memory_allocated() - base if device == "cuda" else planned
    return {
        "plan": made.in_few_words(),
        "planned": planned,
        "measured": measured,
        "off": measured / planned - 1,
        "seconds": statistics.median(taken[1:]),
        "estimated_seconds": made.total_seconds / STEPS,
        "seconds_to_place": placed,
    }


def _parts(tiny: bool) -> dict[str, nn.Module]:
    """The components in bfloat16, in host memory."""
    text = TINY_TEXT if tiny else FULL_TEXT
    transformer = TINY | dict(llm_features_dim=13 * 32) if tiny else {}
    autoencoder = dict(block_out_channels=(8, 8, 16, 16), norm_num_groups=4) if tiny else {}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            made: dict[str, nn.Module] = {
                "vae": AutoencoderKLFlux2(**autoencoder),
                "text_encoder": Qwen3VLModel(Qwen3VLConfig(text_config=text)),
                "transformer": Ideogram4Transformer2DModel(**transformer),
                "unconditional_transformer": Ideogram4Transformer2DModel(**transformer),
            }
    finally:
        torch.set_default_dtype(before)
    drawn = (0.02 * torch.randn(2**20, generator=torch.Generator().manual_seed(0))).to(torch.bfloat16)
    for module in made.values():
        module.to_empty(device="cpu").eval().requires_grad_(False)
        for tensor in (*module.parameters(), *module.buffers()):
            _fill(tensor, drawn)
    return made


def _fill(tensor: torch.Tensor, drawn: torch.Tensor) -> None:
    """The same numbers again and again: drawing all takes long; ones where a norm has its gain."""
    flat = tensor.data.view(-1)
    whole = len(flat) // len(drawn) * len(drawn)
    if tensor.ndim < 2:
        flat.fill_(1)
    else:
        flat[:whole].view(-1, len(drawn)).copy_(drawn.expand(whole // len(drawn), -1))
        flat[whole:].copy_(drawn[: len(flat) - whole])

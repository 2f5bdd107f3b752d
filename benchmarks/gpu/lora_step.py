"""Training steps of a LoRA on the conditional transformer in fp8: forward, backward and optimizer, seconds and peak."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks._gpu import free, timed, why
from benchmarks.gpu.scene import Scene
from ideoflow.training.objective import Batch, FlowMatching
from ideoflow.training.trained_adapter import AdapterSettings, add_adapter

RANK, PIXELS, TEXT = 32, 1024, 500


def training(scene: Scene) -> None:
    """One picture and four, blocks computed again in the backward pass and, for one, not."""
    results: list[dict[str, Any]] = []
    for pictures, again in scene.in_time([(1, True), (4, True), (1, False)]):
        try:
            found = _steps(scene, pictures, again)
        except torch.OutOfMemoryError as error:
            found = {"failed": why(error)}
        free()
        results.append({"pictures": pictures, "checkpointing": again, "rank": RANK, **found})
        scene.tell({"steps": results}, [_line(one) for one in results])


def _line(one: dict[str, Any]) -> str:
    told = (
        one.get("failed") or f"{one['seconds']:.2f} s a step, peak {one['peak_bytes'] / 1e9:.1f} GB, weights included"
    )
    return f"batch {one['pictures']}{', checkpointing' if one['checkpointing'] else ''}: {told}"


def _steps(scene: Scene, pictures: int, again: bool) -> dict[str, Any]:
    sizes, device = scene.sizes(), scene.device
    transformer = scene.models().ours("fp8")[0]
    parameters = add_adapter(transformer, AdapterSettings(rank=4 if scene.tiny else RANK))
    transformer.train()
    if again:
        transformer.enable_gradient_checkpointing()
    loss = FlowMatching(transformer)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    side, text = (4, 5) if scene.tiny else (PIXELS // 16, TEXT)
    batch = _batch(pictures, side, text, sizes).to(device)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch)["conditional"].backward()
        optimizer.step()

    step()
    free()
    base = torch.cuda.memory_allocated() if device == "cuda" else 0
    taken = [timed(step, device) for _ in range(3)]
    return {
        "seconds": statistics.median(seconds for seconds, _ in taken),
        "peak_bytes": base + max(peak for _, peak in taken),
        "trained": sum(one.numel() for one in parameters),
    }


def _batch(pictures: int, side: int, text: int, sizes: Any) -> Batch:
    """Random pictures and captions, whose text is projected already, as the trainer has it."""
    generator = torch.Generator().manual_seed(0)
    tokens = pictures * side * side

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Batch(
        names=tuple(map(str, range(pictures))),
        grids=((side, side),) * pictures,
        text_lengths=(text,) * pictures,
        text=drawn(pictures * text, sizes.hidden),
        latents=drawn(tokens, sizes.in_channels),
        noise=drawn(tokens, sizes.in_channels),
        times=torch.linspace(0.2, 0.8, pictures),
    )

"""What low precision does to pictures: held-out captions drawn in float32, bfloat16, fp8 and int8, compared and scored.

Run as `python -m benchmarks.precision --pictures 40`. Only the two transformers change; the text encoder and the
autoencoder stay in float32. The sides take turns, a chunk of captions each, and draw from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image

from benchmarks._measure import machine, make_parser, write
from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.ops import quantize_
from ideoflow.sketch.scene import Sample
from ideoflow.sketch.wording import line
from tools.sketch.score import held_out, score

# The type to compute in and the kind of the blocks' weights.
SIDES: dict[str, tuple[torch.dtype, str | None]] = {
    "float32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "fp8": (torch.float32, "fp8"),
    "int8": (torch.float32, "int8"),
    "fp8+bf16": (torch.bfloat16, "fp8"),
    "int8+bf16": (torch.bfloat16, "int8"),
}
REFERENCE = "float32"


def make_pipeline(dtype: torch.dtype, kind: str | None, device: str) -> Ideogram4Pipeline:
    """The bundled model with its transformers in this form."""
    pipeline = sketch.load().to(device)
    pipeline.set_progress_bar_config(disable=True)
    for transformer in (pipeline.transformer, pipeline.unconditional_transformer):
        transformer.to(dtype)
        if kind:
            quantize_(transformer, kind)
    return pipeline


def draw(pipeline: Ideogram4Pipeline, samples: Sequence[Sample], first: int, steps: int) -> list[Image.Image]:
    """Pictures of the samples' captions in one packed call; the seed of each is its index."""
    return pipeline(
        [line(s.caption) for s in samples],
        size=[(s.width, s.height) for s in samples],
        generator=[torch.Generator().manual_seed(first + i) for i in range(len(samples))],
        num_inference_steps=steps, guidance_scale=sketch.GUIDANCE, guidance_schedule=None, mu=0.0, std=1.75,
    ).images  # fmt: skip


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal to noise ratio in dB of two 8-bit pictures; 99 where they are equal."""
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 99.0 if error == 0 else float(10 * np.log10(255**2 / error))


def compare(names: Sequence[str], pictures: int, steps: int, batch: int, device: str) -> list[dict[str, object]]:
    """Draw with every side and report each."""
    samples = held_out(pictures)
    pipelines = {name: make_pipeline(*SIDES[name], device) for name in names}
    drawn: dict[str, list[Image.Image]] = {name: [] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    for pipeline in pipelines.values():
        draw(pipeline, samples[:1], 0, 1)  # the first call of a process is slow
    for begin in range(0, pictures, batch):
        chunk = samples[begin : begin + batch]
        for name, pipeline in pipelines.items():
            begun = time.perf_counter()
            drawn[name] += draw(pipeline, chunk, begin, steps)
            seconds[name] += time.perf_counter() - begun

    report: list[dict[str, object]] = []
    for name in names:
        ratios = [psnr(a, b) for a, b in zip(drawn[name], drawn[REFERENCE], strict=True)]
        differences = [
            np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()
            for a, b in zip(drawn[name], drawn[REFERENCE], strict=True)
        ]
        finished = iter(drawn[name])
        judged = score(lambda captions, *_, it=finished: [next(it) for _ in captions], samples, line)  # type: ignore[misc]
        print(f"\n{name}: {seconds[name]:.1f} seconds", end="")
        if name != REFERENCE:
            print(f", PSNR to {REFERENCE} mean {np.mean(ratios):.1f} dB, lowest {min(ratios):.1f} dB", end="")
        print("", *judged.lines(), sep="\n")
        report.append(
            {
                "side": name,
                "seconds": seconds[name],
                "psnr_mean": float(np.mean(ratios)),
                "psnr_lowest": min(ratios),
                "mean_absolute_difference": float(np.mean(differences)),
                "score": asdict(judged),
            }
        )
    return report


def main() -> None:
    """Measure, print, and keep the figures as JSON where asked."""
    parser = make_parser(__doc__)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["bf16", "fp8", "int8"])
    parser.add_argument("--pictures", type=int, default=40, help="held-out captions to draw")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=20, help="captions in one call")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    names = [REFERENCE, *(name for name in dict.fromkeys(options.sides) if name != REFERENCE)]
    results = compare(names, options.pictures, options.steps, options.batch, options.device)
    report = {
        "benchmark": "precision",
        "machine": machine(),
        "device": options.device,
        "pictures": options.pictures,
        "steps": options.steps,
        "results": results,
    }
    write(report, options.out)


if __name__ == "__main__":
    main()

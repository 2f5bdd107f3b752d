"""How near previews by the linear map come to the bundled model's decoder, and what they cost.

Mean absolute errors in grey levels (of 255) against the decoder's picture averaged over the 8 x 8 pixels of a latent
pixel: of pictures of the sketch world that were encoded, and of pictures in the making, from `request.estimate`, after
some of 12 steps. Then milliseconds of a fit, a preview and the decoder.

    python -m benchmarks.previews --noise 0 0.3
"""

from __future__ import annotations

import statistics
from functools import partial

import torch
from torch import Tensor

from ideoflow import latents, sketch
from ideoflow.pipeline import preview_map
from ideoflow.pipeline.preview_map import PreviewMap
from ideoflow.sketch import world

from ._measure import alternate, machine, make_parser, write

STEPS = (3, 6, 10)
SIDE = 128  # of published-size timings: tokens a side of 2048 pixels
Sample = tuple[Tensor, tuple[int, int], Tensor]  # tokens, grid, and the decoder's picture averaged


def averaged(vae, tokens: Tensor, grid: tuple[int, int]) -> Sample:
    """The decoder's picture of these tokens, one pixel a latent pixel."""
    (picture,) = latents.decode(vae, [tokens], [grid])
    return tokens, grid, torch.nn.functional.avg_pool2d(picture.clamp(-1, 1), latents.scale_factor(vae))


def samples(pipe, pictures: int) -> dict[str, list[Sample]]:
    """Held-out pictures encoded, and the same captions drawn, part of the way."""
    found: dict[str, list[Sample]] = {"encoded": [], **{f"step {step}": [] for step in STEPS}}
    for index in range(pictures):
        held = world.sample(index, split="held_out")
        image = held.image
        grid = (image.height // 16, image.width // 16)
        found["encoded"].append(averaged(pipe.vae, latents.encode(pipe.vae, [image])[0], grid))
        engine = pipe.engine()
        (request,) = pipe.make_requests(
            held.caption, size=image.size, preset="V4_TURBO_12", guidance_scale=sketch.GUIDANCE,
            generator=torch.Generator().manual_seed(index),
        )  # fmt: skip
        engine.add(request)
        for event in engine.run():
            if event.kind == "step" and event.step in STEPS:
                found[f"step {event.step}"].append(averaged(pipe.vae, request.estimate, request.grid))
    return found


def error(fitted: PreviewMap, of: list[Sample]) -> float:
    """Mean absolute error in grey levels."""
    errors = [(fitted.pixels(tokens, grid).clamp(-1, 1) - target).abs().mean() for tokens, grid, target in of]
    return 127.5 * float(torch.stack(errors).mean())


def fit_with(vae, noise: float) -> PreviewMap:
    """The map as it would be fitted with other noise."""
    usual, preview_map.NOISE = preview_map.NOISE, noise
    try:
        return PreviewMap.fit(vae)
    finally:
        preview_map.NOISE = usual


def main() -> None:
    """Print errors and times."""
    parser = make_parser(__doc__, rounds=30)
    parser.add_argument("--pictures", type=int, default=12, help="of the sketch world (%(default)s)")
    parser.add_argument(
        "--noise", type=float, nargs="*", default=[preview_map.NOISE], help="of the fits that are compared"
    )
    given = parser.parse_args()
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    of = samples(pipe, given.pictures)
    errors = {}
    for noise in given.noise:
        fitted = fit_with(pipe.vae, noise)
        errors[noise] = {name: error(fitted, own) for name, own in of.items()}
        print(f"noise {noise:g}:", ", ".join(f"{name} {own:.1f}" for name, own in errors[noise].items()))

    fitted, small = PreviewMap.fit(pipe.vae), torch.randn(144, 32)
    sides = {
        "preview of 192 x 192, bundled": lambda: fitted.rgb(small, (12, 12)),
        "decoder of 192 x 192, bundled": lambda: latents.decode(pipe.vae, [small], [(12, 12)]),
    }
    for channels in (8, 32):  # the bundled model's, and the published autoencoder's
        own, tokens = PreviewMap(torch.randn(4, 6, channels), torch.randn(4, 6)), torch.randn(SIDE * SIDE, 4 * channels)
        sides[f"preview of 2048 x 2048, {channels} channels"] = partial(own.rgb, tokens, (SIDE, SIDE))
    seconds = alternate({"fit": lambda: PreviewMap.fit(pipe.vae)}, min(given.rounds, 3))
    for name, side in sides.items():
        seconds |= alternate({name: side}, min(given.rounds, 5) if "decoder" in name else given.rounds)
    for name, own in seconds.items():
        print(f"{name}: {1000 * statistics.median(own):.2f} ms, least {1000 * min(own):.2f}")
    write({"machine": machine(), "grey levels": errors, "seconds": seconds}, given.out)


if __name__ == "__main__":
    main()

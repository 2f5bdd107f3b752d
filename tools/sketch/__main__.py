"""Train, export and score the sketch model: `python -m tools.sketch --help`."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ideoflow.cli.console import plain_errors
from ideoflow.files import check_place, check_writable, write_text
from ideoflow.pictures import format_of, save_image
from ideoflow.sketch import GUIDANCE, path

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_show_locals=False)


@app.command()
def train(
    folder: Annotated[Path, typer.Argument(help="Where the stages keep their states; made when absent.")],
    recipe: Annotated[str, typer.Option(help="cpu, gpu, or a TOML file like theirs.")] = "cpu",
    minutes: Annotated[float, typer.Option(help="Stop each stage after this long; call again to go on.")] = 6000.0,
) -> None:
    """Train all stages from nothing: autoencoder, its decoder, text encoder, transformers. Called again, it goes on."""
    from .recipe import Recipe

    with plain_errors():
        check_writable(folder / "sketch.safetensors", "FOLDER")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    Recipe.read(recipe).train(folder, minutes)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="The folder given to `train`.")],
    destination: Annotated[Path, typer.Argument(help="The model folder to write, or to replace.")],
) -> None:
    """Write what `train` left in a folder as a model folder that pipelines open."""
    if not (folder / "sketch.safetensors").exists():
        raise typer.BadParameter(f"there is no {folder / 'sketch.safetensors'}: train all three stages there first.")
    with plain_errors():
        check_place(destination, "DESTINATION")
    from .export import export as write

    write(folder, destination)
    size = sum(f.stat().st_size for f in destination.rglob("*") if f.is_file())
    typer.echo(f"{destination}: {size / 1e6:.1f} MB")


@app.command()
def score(
    model: Annotated[Path | None, typer.Option(help="A model folder; the bundled one by default.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Held-out captions to draw.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of a picture.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale of every step.")] = GUIDANCE,
    sheet: Annotated[Path | None, typer.Option(help="Also write the first 32 pictures, truth beside drawn.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the score as JSON.")] = None,
) -> None:
    """Draw held-out captions and measure backgrounds, places, colours and words against the truth."""
    with plain_errors():
        for option, place in (("--sheet", sheet), ("--out", out)):
            if place is not None:
                check_writable(place, option)
        if sheet is not None:
            format_of(sheet)
    import torch
    from PIL import Image

    from ideoflow.pipeline import Ideogram4Pipeline
    from ideoflow.sketch.wording import line

    from .score import held_out
    from .score import score as measure

    pipeline = Ideogram4Pipeline.from_pretrained(model or path(), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    drawn: list[Image.Image] = []

    def draw(captions: list[str], sizes: list[tuple[int, int]], seeds: list[int]) -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        pictures = pipeline(
            captions, size=sizes, num_inference_steps=steps, guidance_scale=guidance, guidance_schedule=None,
            mu=0.0, std=1.75, generator=generators,
        ).images  # fmt: skip
        drawn.extend(pictures)
        return pictures

    samples = held_out(count)
    result = measure(draw, samples, line)
    for text in result.lines():
        typer.echo(text)
    if out:
        settings = {"steps": steps, "guidance": guidance}
        write_text(out, json.dumps(asdict(result) | settings, indent=1) + "\n")
    if sheet:
        save_image(contact_sheet([(s.image, d) for s, d in zip(samples[:32], drawn[:32], strict=True)]), sheet)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="The folder given to `train`.")],
    model: Annotated[Path, typer.Argument(help="The exported model's folder, where README.md and curve.svg go.")],
    scored: Annotated[Path, typer.Argument(help="What `score --out` wrote.")],
    machine: Annotated[str, typer.Option(help="What it was trained on, in words.")],
    recipe: Annotated[str, typer.Option(help="What it was trained with, as for `train`.")] = "cpu",
    note: Annotated[Path | None, typer.Option(help="A text file of what else should be known.")] = None,
) -> None:
    """Write the model's card: data, recipe, minutes, curve and quality, all from the files of the run."""
    from .card import write
    from .recipe import Recipe

    write(folder, model, json.loads(scored.read_text()), Recipe.read(recipe), machine, note.read_text() if note else "")


def contact_sheet(pairs, columns: int = 4, cell: int = 200):
    """Truth and drawn picture side by side, `columns` pairs in a row."""
    from PIL import Image

    rows = -(-len(pairs) // columns)
    canvas = Image.new("RGB", (columns * 2 * cell, rows * cell), "#dddddd")
    for i, pair in enumerate(pairs):
        for j, picture in enumerate(pair):
            canvas.paste(picture, (((i % columns) * 2 + j) * cell + 4, (i // columns) * cell + 4))
    return canvas


if __name__ == "__main__":
    app()

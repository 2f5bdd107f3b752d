"""The sketch model's card: what it learned from, how, for how long and how well, all from the run's own files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ideoflow.files import write_text

from .curve import plot, read
from .recipe import Recipe
from .train_transformers import SHARD

STAGES = {"autoencoder": "the autoencoder", "decoder": "its decoder alone", "text": "the text encoder alone",
          "transformers": "both transformers, with the text encoder"}  # fmt: skip
FIGURES = ("conditional", "unconditional", "item", "edges", "place", "letter")
ROWS = {
    "background": "background right",
    "elements_in_place": "element in its place and colour",
    "shapes_in_place": "of these, shapes",
    "unseen_pairs_in_place": "of these, in a colour that training never showed them in",
    "words_in_place": "of these, words",
    "short_words_read": "word of 1 to 3 letters read right",
    "words_read": "word of 1 to 5 letters read right",
}

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The sketch model

A text-to-image model of {parameters:.1f} million parameters in the form of Ideogram 4: a 36-layer Qwen3-VL, two
transformers (conditional and unconditional) and an `AutoencoderKLFlux2`, in the folder layout of `diffusers`. It draws
coloured shapes and short words on plain, graded and striped backgrounds from structured captions, 96 to 192 pixels a
side. It is made for demonstrations and tests and is good for nothing else. It has no part of the weights of Ideogram 4
in it.

```python
from ideoflow import Caption, sketch

pipe = sketch.load()  # diffusers.Ideogram4Pipeline.from_pretrained(sketch.path()) opens it too
```

Use guidance 2 (`sketch.GUIDANCE`): the presets' 7 is for the published weights.

## Data

The sketch world, `ideoflow.sketch.world`: eleven shapes, seven of them also as outlines, twelve named colours and exact
ones told by palettes alone, one to four elements, plain, graded and striped backgrounds, words of one to five letters
and digits in two fonts, seventeen sizes, captions in many wordings. {pictures:,} training pictures, indices 0 to
{last:,} of the split `train`, in {visits:.1f} visits each; the text encoder saw further captions, the autoencoder crops
of further pictures. One pair of colour and shape in eight, and one word in eight, never occur in training.

## Recipe

`python -m tools.sketch train FOLDER --recipe cpu` (`make sketch`), seed 0:

| stage | steps | minutes |
|---|---|---|
{stages}

Device: {machine}.

![Losses of the last stage](curve.svg)
{note}
## Quality

| on {count} held-out captions | | 95% interval |
|---|---|---|
{quality}
| mean overlap of elements (IoU) | {elements_overlap:.3f} | |
| mean overlap of shapes (IoU) | {shapes_overlap:.3f} | |

`python -m tools.sketch score --count {count}` prints these figures: {steps} steps, guidance {guidance:g}, seeds 0 to
{seeds}. A background is right if at least 75% of its pixels are nearer to its colour than to that of any element, and
near it. An element is in its place if the region in its colour overlaps the region where it should be seen by more than
half (intersection over union). A word is read right if every letter looks more like itself than like any other letter
or digit rendered in its place.

## What it gets wrong

* Edges wobble by a pixel or two, circles and hearts most: that is the transformers'. The autoencoder gives the same
  shapes back with clean edges.
* Tips thinner than about four pixels, such as those of stars, go soft or are lost on stripes: that is the
  autoencoder's.
* A band of two columns, three pixels from the right edge, is a few grey levels too dark on pink: the decoder makes part
  of it on a flat pink picture too, the latents that the transformers draw make the rest.
* Words of four and five letters are often misspelt.
* Plain text is not understood by the model itself, which draws something of it, at random. A grammar makes captions of
  it: `pipe("a red heart on pink", prompt_upsampling=True)`, and unasked on the command line and in the server.

The next training is to mend the first three.
"""


def write(folder: Path, model: Path, scored: dict[str, Any], recipe: Recipe, machine: str, note: str = "") -> None:
    """Write `README.md` and `curve.svg` into `model`.

    Args:
        folder: Of the training run.
        model: The exported model's folder.
        scored: What `score --out` wrote.
        recipe: What the run was made with.
        machine: What it ran on, in words.
        note: What else should be known; a paragraph or more.
    """
    curves = {stage: read(folder / f"{stage}.jsonl") for stage in STAGES}
    pictures = SHARD * recipe.shards
    last = curves["transformers"][-1]
    quality = "\n".join(
        f"| {name} | {100 * scored[key][0]:.1f}% | {100 * scored[key][1]:.1f} to {100 * scored[key][2]:.1f}% |"
        for key, name in ROWS.items()
    )
    stages = "\n".join(
        f"| {name} | {lines[-1]['step']:,} | {lines[-1]['seconds'] / 60:.0f} |"
        for name, lines in ((STAGES[stage], lines) for stage, lines in curves.items())
        if lines
    )
    text = TEXT.format(
        parameters=sum(map(_parameters, model.rglob("*.safetensors"))) / 1e6,
        pictures=pictures,
        last=pictures - 1,
        visits=last["step"] * (SHARD / (SHARD * 100 // recipe.tokens)) / pictures,
        stages=stages,
        machine=machine,
        note=f"\n{note.strip()}\n" if note else "",
        count=scored["pictures"],
        seeds=scored["pictures"] - 1,
        quality=quality,
        **{name: scored[name] for name in ("elements_overlap", "shapes_overlap", "steps", "guidance")},
    )
    write_text(model / "README.md", text)
    write_text(model / "curve.svg", plot(curves["transformers"], FIGURES, "Losses of the last stage, by step"))


def _parameters(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118

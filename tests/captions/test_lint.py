"""Advice on captions that keep the schema and are not drawn as they are meant; and the grey picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ideoflow.captions import Caption
from ideoflow.captions.lint import lint, lint_words
from ideoflow.placeholder import looks_like_placeholder
from ideoflow.sketch.world import sample

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "captions").glob("*.json"))


def caption(*elements: dict[str, Any], background: str = "a wall", **more: Any) -> Caption:
    return Caption.parse(
        {**more, "compositional_deconstruction": {"background": background, "elements": list(elements)}}
    )


def text(letters: str, box: list[int], **more: Any) -> dict[str, Any]:
    return {"type": "text", "bbox": box, "text": letters, "desc": "red letters", **more}


CUP = {"type": "obj", "bbox": [500, 300, 900, 700], "desc": "a white cup"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_there_is_nothing_to_say_of_the_examples(file: Path):
    assert lint(Caption.parse(file)) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (caption(CUP, background=" "), "background: is empty; say what lies behind"),
        (caption(), "nothing but the background is drawn"),
        (caption(*[{**CUP, "bbox": [0, 10 * n, 100, 10 * n + 100]} for n in range(40)]), "has 40, more than the model"),
        (caption({**CUP, "desc": "a long cup " * 900}), "more than the 2048 tokens"),
        (caption(text("OPENING", [100, 100, 900, 200])), "has a box taller than wide for 'OPENING': x may come first"),
        (caption({**CUP, "bbox": [100, 100, 105, 400]}), "too small for anything to be drawn"),
        (caption(CUP, CUP), "one may hide the other"),
        (caption(text("a very long line of letters, far too long", [0, 0, 20, 100])), "has room for about 11"),
        (caption(text(" ", [0, 0, 100, 400])), "no letters are drawn"),
        (caption({**CUP, "desc": ""}), "desc: is empty"),
        (caption({**CUP, "desc": 'a sign with "OPEN" on it'}), "make an element of type 'text'"),
        (caption({**CUP, "desc": "a cup in #e53935"}), "put it into `color_palette`"),
        (
            caption({**CUP, "bbox": [100, 900, 400, 1900]}, {**CUP, "bbox": [0, 1200, 400, 1800]}),
            "has 2 of 2 boxes that leave the picture",
        ),
        (caption({**CUP, "bbox": [900, 300, 500, 700]}), "the weights tend to answer with a grey picture"),
        (Caption.parse({"desc": "a cup", "compositional_deconstruction": {"background": "x"}}), "grey picture"),
    ],
)
def test_what_may_not_be_drawn_is_said_with_its_fix(given: Caption, told: str):
    said = lint(given)
    assert any(told in str(line) for line in said), list(map(str, said))
    assert all(line.fix and "\n" not in str(line) for line in said)


def test_breaches_of_the_schema_come_first():
    given = Caption.parse(
        {"compositional_deconstruction": {"elements": [{"desc": "a", "type": "obj"}], "background": ""}}
    )
    assert lint(given)[: len(given.check())] == given.check()


def test_upright_letters_may_be_taller_than_wide():
    assert lint(caption(text("OPENING", [100, 100, 900, 200], desc="upright red letters"))) == []


def test_plain_text_is_led_to_a_writer():
    assert "ideoflow caption write" in str(lint_words("a red heart"))


# The grey picture


def grey(level: int = 128, size: tuple[int, int] = (512, 512), noise: float = 1.5) -> Image.Image:
    noisy = np.random.default_rng(0).normal(level, noise, (size[1], size[0], 1)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(noisy, 3, axis=2), "RGB")


def test_one_grey_is_taken_for_the_placeholder_with_and_without_a_few_letters():
    assert looks_like_placeholder(grey())
    written = grey(size=(1024, 768))
    ImageDraw.Draw(written).text((460, 380), "blocked", fill=(90, 90, 90))
    assert looks_like_placeholder(written)


@pytest.mark.parametrize("index", range(20))
def test_pictures_are_not(index: int):
    assert not looks_like_placeholder(sample(index).image)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (64, 64), "black"),
        Image.new("RGB", (64, 64), "white"),
        Image.new("RGB", (64, 64), "#8E24AA"),
        grey(noise=60),
        Image.linear_gradient("L"),
    ],
)
def test_plain_colours_and_structure_are_not(picture: Image.Image):
    assert not looks_like_placeholder(picture)

"""The demo: six pictures of six sizes from one packed call, and a contact sheet of them beside their captions."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from ideoflow import Caption, Ideogram4Pipeline
from ideoflow.sketch import world

ROOT = Path(__file__).parents[1]
CAPTIONS = sorted((ROOT / "examples" / "captions").glob("*.json"))


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def world_words() -> set[str]:
    """Every word that the captions of the sketch world use."""
    captions = [world.sample(index).caption for index in range(400)]
    return {word for caption in captions for word in words(caption)}


def words(caption: dict) -> list[str]:
    scene = caption["compositional_deconstruction"]
    return " ".join([scene["background"], *(element["desc"] for element in scene["elements"])]).split()


def test_every_example_caption_has_a_size_in_the_demo(demo):
    assert [path.stem for path in CAPTIONS] == sorted(demo.SIZES)
    assert len(set(demo.SIZES.values())) >= 4


@pytest.mark.parametrize("path", CAPTIONS, ids=lambda path: path.stem)
def test_an_example_caption_keeps_to_the_schema_and_to_the_words_of_the_sketch_world(path: Path, world_words: set[str]):
    assert Caption.parse(path).check() == []
    assert set(words(json.loads(path.read_text(encoding="utf-8")))) <= world_words


def test_every_step_runs_one_stream_with_all_pictures(
    demo, pipeline: Ideogram4Pipeline, monkeypatch: pytest.MonkeyPatch
):
    streams = []
    velocity = pipeline.transformer.velocity

    def spy(latents, times, context, **kwargs):
        streams.append(context.layout.image_lengths)
        return velocity(latents, times, context, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "velocity", spy)
    captions = [Caption.parse(path) for path in CAPTIONS[:3]]
    sizes = [(32, 48), (64, 32), (48, 48)]
    images = demo.draw(pipeline, captions, sizes, seed=0)
    assert [image.size for image in images] == sizes
    assert len(streams) >= 12 and {tuple(sorted(lengths)) for lengths in streams} == {(6, 8, 9)}


def test_the_contact_sheet_shows_every_picture(demo):
    colours = [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    images = [Image.new("RGB", (40 + 16 * i, 48), colour) for i, colour in enumerate(colours)]
    sheet = demo.contact_sheet(images, [["a line of text"]] * 3)
    areas = {colour: count for count, colour in sheet.getcolors(maxcolors=1 << 16)}
    for image, colour in zip(images, colours, strict=True):
        assert areas[colour] == demo.ZOOM**2 * image.width * image.height


@pytest.mark.slow
def test_the_demo_writes_captions_a_contact_sheet_and_pictures_that_are_made_again_from_their_files(
    demo, warm: list[str], tmp_path: Path
):
    command = [*warm, ROOT / "examples" / "demo.py", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    for name, size in demo.SIZES.items():
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.size == size
        assert Caption.parse(tmp_path / f"{name}.json") == Caption.parse(
            ROOT / "examples" / "captions" / f"{name}.json"
        )
        assert f"{name}.png" in done.stdout
    assert Image.open(tmp_path / "contact-sheet.png").width > 500

    # Made again from their files alone, in another folder, all of the call together.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    files = [f"../{name}.png" for name in demo.SIZES]
    again = [*warm, "-m", "ideoflow", "generate", *files, "--out", "{index}.png"]
    done = subprocess.run(again, cwd=elsewhere, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(demo.SIZES):
        assert (tmp_path / f"{name}.png").read_bytes() == (elsewhere / f"{number}.png").read_bytes(), name

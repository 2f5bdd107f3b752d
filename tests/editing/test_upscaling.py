"""Upscaling: tiles cover all of the picture, meet without seams, and need no more memory than one of them."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from ideoflow.editing import Upscale
from ideoflow.editing.tiles import Blended, Tile, spans, tiles
from ideoflow.engine import Denoiser
from tests.editing.conftest import CALL

SMALL = dict(strength=0.25, tile=96, **CALL)


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_tiles_cover_a_length_and_overlap(length, tile, data):
    overlap = data.draw(st.integers(0, tile // 2))
    found = spans(length, tile, overlap)

    assert found[0][0] == 0 and found[-1][1] == length
    assert all(end - begin == min(tile, length) for begin, end in found)
    for (_, end), (begin, _) in itertools.pairwise(found):
        assert end - begin >= overlap and begin < end + 1


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(2, 12), st.integers(0, 6))
def test_what_tiles_agree_on_comes_out_as_it_was(rows, cols, side, overlap):
    overlap = min(overlap, side // 2)
    whole = torch.randn(rows, cols, 3, generator=torch.Generator().manual_seed(1))
    blended = Blended((rows, cols), 3, overlap)
    for tile in tiles((rows, cols), (side, side), overlap):
        blended.add(tile, tile.of(whole))

    assert torch.allclose(blended.whole(), whole, atol=1e-5)


def test_two_tiles_fade_into_each_other_where_they_overlap():
    blended = Blended((1, 10), 1, 4)
    blended.add(Tile((0, 1), (0, 7)), torch.zeros(1, 7, 1))
    blended.add(Tile((0, 1), (3, 10)), torch.ones(1, 7, 1))

    values = blended.whole()[0, :, 0].tolist()
    assert values[:3] == [0, 0, 0] and values[7:] == [1, 1, 1]
    assert values == sorted(values) and values[3] > 0 and values[6] < 1


@pytest.fixture(scope="module")
def circle():
    return {
        "compositional_deconstruction": {
            "background": "plain yellow",
            "elements": [{"type": "obj", "bbox": [200, 200, 800, 800], "desc": "a red circle"}],
        }
    }


@pytest.fixture(scope="module")
def image(circle):
    pixels = np.full((96, 96, 3), (0xFD, 0xD8, 0x35), np.uint8)
    rows, cols = np.mgrid[:96, :96]
    pixels[(rows - 48) ** 2 + (cols - 48) ** 2 < 29**2] = (0xE5, 0x39, 0x35)
    return Image.fromarray(pixels)


def test_an_enlarged_picture_shows_what_the_picture_shows(pipe, image, circle, seeded):
    (found,) = pipe.upscale(image, circle, 1.5, generator=seeded(), **SMALL).images
    large = image.resize((144, 144), Image.Resampling.LANCZOS)

    assert found.size == (144, 144)
    assert np.abs(np.asarray(found, int) - np.asarray(large, int)).mean() < 12


def test_a_pass_holds_one_tile_unless_more_are_allowed(pipe, image, circle, seeded, monkeypatch):
    passes, compute = [], Denoiser.compute
    monkeypatch.setattr(Denoiser, "compute", lambda self, some: passes.append(len(some)) or compute(self, some))
    pipe.upscale(image, circle, 1.5, generator=seeded(), **SMALL)
    alone = list(passes)
    passes.clear()
    pipe.upscale(image, circle, 1.5, generator=seeded(), max_tokens=10_000, **SMALL)

    assert set(alone) == {1} and len(alone) == 4 * 3
    assert passes == [4] * 3


def test_overlapping_tiles_share_their_noise_and_know_their_part_of_the_caption(image, circle):
    tiling = Upscale(image, 2, tile=96).layout(16, 192)
    field = torch.randn(12 * 12, 4)
    first, second = tiling.tiles[:2]
    apart = second.cols[0]

    assert [tile.cols for tile in tiling.tiles[:3]] == [(0, 6), (3, 9), (6, 12)]
    one, other = (tiling.noise(tile, field).view(6, 6, 4) for tile in (first, second))
    assert torch.equal(one[:, apart:], other[:, : 6 - apart])
    (element,) = tiling.caption(circle, first)["compositional_deconstruction"]["elements"]
    assert element["bbox"] == [400, 400, 1000, 1000]


def test_a_call_that_was_stopped_goes_on_from_the_tiles_that_are_done(
    pipe, image, circle, seeded, tmp_path, monkeypatch
):
    call = dict(factor=1.5, keep=tmp_path / "tiles", **SMALL)
    whole = pipe.upscale(image, circle, generator=seeded(3), **{**call, "keep": None}).images[0]
    compute, steps = Denoiser.compute, []

    def stopped(self, requests):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return compute(self, requests)

    monkeypatch.setattr(Denoiser, "compute", stopped)
    with pytest.raises(KeyboardInterrupt):
        pipe.upscale(image, circle, generator=seeded(3), **call)
    assert len(list((tmp_path / "tiles").iterdir())) == 2
    again = pipe.upscale(image, circle, generator=seeded(3), **call).images[0]

    assert len(steps) == 8 + 2 * 3
    assert (np.asarray(again) == np.asarray(whole)).all()


def test_a_folder_with_tiles_of_another_picture_is_refused(pipe, image, circle, seeded, tmp_path):
    call = dict(keep=tmp_path / "tiles", **{**SMALL, "strength": 0.05})
    pipe.upscale(image, circle, 1.4, generator=seeded(3), **call)
    with pytest.raises(ValueError, match="holds tiles of another picture or of other settings"):
        pipe.upscale(image, circle, 1.4, generator=seeded(4), **call)


KEPT = {**SMALL, "strength": 0.05}


@pytest.fixture
def changed():
    """A pipeline of its own, to change its weights."""
    from ideoflow import Ideogram4InpaintPipeline, sketch

    pipe = Ideogram4InpaintPipeline.from_pipe(sketch.load())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_tiles_of_other_weights_or_other_strengths_of_adapters_are_not_taken(changed, image, circle, seeded, tmp_path):
    from peft import LoraConfig

    layers = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    changed.transformer.add_adapter(layers, adapter_name="one")

    def upscale(folder, **options):
        changed.upscale(image, circle, 1.2, generator=seeded(3), keep=tmp_path / folder, **{**KEPT, **options})

    upscale("a", attention_kwargs={"scale": 1.0})
    upscale("a", attention_kwargs={"scale": 1.0})
    for other in ({"scale": 0.5}, None):
        with pytest.raises(ValueError, match="holds tiles of another picture or of other settings"):
            upscale("a", attention_kwargs=other)
    upscale("b")
    changed.transformer.layers[0].attention.to_q.lora_A["one"].weight.data.mul_(2)
    with pytest.raises(ValueError, match="holds tiles of another picture or of other settings"):
        upscale("b")
    upscale("c")
    changed.vae.decoder.conv_out.weight.data.mul_(2)
    with pytest.raises(ValueError, match="holds tiles of another picture or of other settings"):
        upscale("c")


@pytest.mark.parametrize(
    "damaged", [torch.full((56, 32), torch.nan), torch.zeros(3, 32), torch.zeros(56, 5), torch.zeros(56, 32).int()]
)
def test_a_kept_tile_that_is_no_tile_is_drawn_again(pipe, image, circle, seeded, tmp_path, damaged):
    call = dict(keep=tmp_path, **KEPT)
    image = image.resize((96, 80))
    whole = pipe.upscale(image, circle, 1.15, generator=seeded(3), **call).images[0]
    (file, *_) = tmp_path.iterdir()
    assert load_file(file)["latents"].shape[1] == 32
    save_file({"latents": damaged}, file)
    again = pipe.upscale(image, circle, 1.15, generator=seeded(3), **call).images[0]

    assert (np.asarray(again) == np.asarray(whole)).all()


@pytest.mark.parametrize(("size", "factor"), [((20, 20), 1.1), ((103, 57), 1.3), ((96, 100), 1.2), ((31, 97), 1.01)])
def test_an_enlarged_picture_has_its_sides_times_the_factor(pipe, circle, seeded, size, factor):
    with warnings.catch_warnings(action="ignore"):  # of sizes that the weights do not know
        (found,) = pipe.upscale(Image.new("RGB", size, "red"), circle, factor, generator=seeded(), **KEPT).images

    assert found.size == tuple(round(side * factor) for side in size)
    tiling = Upscale(Image.new("RGB", size, "red"), factor).layout(16, 192)
    assert np.asarray(tiling.enlarged)[..., 0].min() == 255  # edges are continued, not filled
    assert tiling.enlarged.size == tuple(-(-side // 16) * 16 for side in found.size)


def test_the_file_says_what_was_done(pipe, image, circle, seeded):
    from ideoflow.provenance import from_text

    (found,) = pipe.upscale(image, circle, 1.4, generator=seeded(3), **{**SMALL, "strength": 0.05}).images
    settings = from_text(found.info["ideoflow"])

    assert (settings["width"], settings["height"], settings["seed"]) == (134, 134, 3)
    assert settings["edit"]["kind"] == "upscale" and settings["edit"]["factor"] == 1.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(factor=1), "`factor` is 1"),
        (dict(factor=1000), "The largest factor is 170.7"),
        (dict(strength=-1), "`strength` is -1"),
        (dict(overlap=0.7), "`overlap` is 0.7"),
        (dict(overlap=-0.1), "`overlap` is -0.1"),
        (dict(tile=8), "`tile` is 8"),
        (dict(tile=100), "`tile` is 100: give a multiple of 16"),
        (dict(output_type="gif"), "`output_type` is 'gif'"),
        (dict(keep=__file__), "is a file: name a folder"),
        (dict(keep=""), "`keep` is empty: give the path of a folder"),
        (dict(keep="/proc/x"), "`keep` /proc/x/tile: nothing can be written"),
        (dict(max_tokens=0), "`max_tokens` is 0"),
        (dict(prompt=["x", "y"]), "`prompt` says 2 pictures: one is enlarged at a time"),
        (dict(num_images_per_prompt=2), "`num_images_per_prompt` says 2 pictures"),
        (dict(latents=torch.ones(36, 32)), "`latents` is given: each tile has its own"),
    ],
)
def test_arguments_are_checked(pipe, image, circle, seeded, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.upscale(image, **{"prompt": circle, "generator": seeded(), **SMALL, **arguments})


def test_a_folder_is_named_by_a_path(image):
    with pytest.raises(TypeError, match="`keep` is 5: give the path of a folder"):
        Upscale(image, keep=5)


def test_a_list_of_one_prompt_is_one(pipe, image, circle, seeded):
    assert pipe.upscale(image, [circle], 1.1, generator=seeded(), **KEPT).images[0].size == (106, 106)


def test_a_line_is_no_picture_to_enlarge():
    with pytest.raises(ValueError, match="that is a line"):
        Upscale(Image.new("RGB", (1, 100)), 2)

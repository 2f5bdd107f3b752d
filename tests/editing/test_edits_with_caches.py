"""Changes of pictures of which not all steps are computed: each kind keeps its promise and follows the schedule."""

import numpy as np
import pytest
import torch
from PIL import Image

from ideoflow import sketch
from ideoflow.editing import CaptionEdit, Ideogram4InpaintPipeline, ImageToImage, Inpaint
from ideoflow.sketch.world import sample

SIZE = (96, 96)
WORDS = "steps=0,1,2,4,7 guidance=0,1,4 order=1"
DRAWING = {"preset": "default", "num_inference_steps": 8, "guidance_scale": 2.0, "cache": WORDS}


@pytest.fixture(scope="module")
def pipe():
    made = Ideogram4InpaintPipeline.from_pipe(sketch.load())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (*SIZE, 3), dtype=np.uint8))


@pytest.fixture
def edited(pipe):
    """A function that makes the request of a change."""

    def make(change, **options):
        seed = torch.Generator().manual_seed(2)
        (request,) = pipe.make_edits(change, sample(2, size=SIZE).caption, generator=seed, **{**DRAWING, **options})
        return request

    return make


def test_an_edit_from_the_middle_computes_two_steps_and_goes_on_by_the_schedule(edited, image):
    request = edited(ImageToImage(image, 0.75))
    assert request.cache.conditional == (True, True, True, False, False, True)
    assert request.cache.unconditional == (True, True, True, False, False, False)


def test_all_rounds_of_a_step_are_computed_or_none(edited, image):
    request = edited(Inpaint(image, [200, 200, 800, 800], harmonise=1))
    computed = request.cache.conditional
    assert len(computed) == request.steps == 15
    assert computed[::2] == (True, True, True, False, True, False, False, True)
    assert computed[1::2] == computed[:-1:2]


def test_the_source_of_an_edit_by_caption_has_the_schedule_of_its_steps(edited, image):
    request = edited(CaptionEdit(image, sample(5, size=SIZE).caption, strength=1.0, refine=0.25))
    source = request.edit.source
    assert source.steps == 6 and source.cache.conditional == request.cache.conditional[:6]


def test_an_inpainted_picture_is_what_it_was_outside_of_the_mask(pipe, image):
    box = [250, 250, 750, 750]
    seed = torch.Generator().manual_seed(2)
    change = Inpaint(image, box, harmonise=1)
    (result,) = pipe.edit(change, sample(2, size=SIZE).caption, generator=seed, **DRAWING).images
    outside = np.ones(SIZE, dtype=bool)
    outside[24:72, 24:72] = False
    before, after = np.asarray(image), np.asarray(result)
    assert (before[outside] == after[outside]).all() and (before[~outside] != after[~outside]).any()

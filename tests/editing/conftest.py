"""The bundled model as a pipeline that changes pictures, and pictures of its world."""

import pytest
import torch

from ideoflow import sketch
from ideoflow.sketch.world import sample

CALL = dict(preset="V4_TURBO_12", guidance_scale=sketch.GUIDANCE)
QUICK = {**CALL, "num_inference_steps": 3}  # where it does not matter what is seen in the picture


@pytest.fixture(scope="session")
def pipe():
    """Shared: do not change it."""
    from ideoflow import Ideogram4InpaintPipeline

    pipe = Ideogram4InpaintPipeline.from_pipe(sketch.load())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def plain(pipe):
    """The plain pipeline over the same components."""
    from ideoflow import Ideogram4Pipeline

    plain = Ideogram4Pipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    return plain


@pytest.fixture(scope="session")
def image_to_image(pipe):
    from ideoflow import Ideogram4Img2ImgPipeline

    other = Ideogram4Img2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return other


@pytest.fixture
def seeded():
    """A generator of a seed."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def picture():
    """A function that gives a picture of the world by its number, of one size."""
    return lambda index, size=(96, 96): sample(index, split="held_out", size=size)

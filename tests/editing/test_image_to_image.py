"""Image to image: nothing changes at strength 0, nothing is left at strength 1, and more changes with more of it."""

import numpy as np
import pytest
import torch
from PIL import Image

from ideoflow import latents
from ideoflow.editing import ImageToImage
from ideoflow.editing.canvas import digest
from ideoflow.editing.change import fresh_noise, noised, started
from tests.editing.conftest import CALL, QUICK


def grey_levels(one, other):
    return np.abs(np.asarray(one, int) - np.asarray(other, int))


def test_strength_0_is_the_picture_through_the_autoencoder(image_to_image, picture):
    one = picture(5)
    (found,) = image_to_image(picture(6).caption, image=one.image, strength=0, **CALL).images
    tokens = latents.encode(image_to_image.vae, [one.image])
    (through,) = latents.decode(image_to_image.vae, tokens, [(6, 6)])
    (through,) = image_to_image.image_processor.postprocess(through[None], output_type="pil")

    assert grey_levels(found, through).max() <= 1
    assert grey_levels(found, one.image).mean() <= 4


def test_strength_1_is_the_fresh_picture_of_the_seed(image_to_image, plain, picture, seeded):
    one, caption = picture(5), picture(6).caption
    (found,) = image_to_image(caption, image=one.image, strength=1, generator=seeded(3), **QUICK).images
    (fresh,) = plain(caption, size=(96, 96), generator=seeded(3), **QUICK).images

    assert grey_levels(found, fresh).max() <= 1


def test_the_distance_grows_with_strength(image_to_image, picture, seeded):
    """The mean over two pictures, of a schedule of twelve steps; `tools.edits strength` has more of both."""
    strengths = [0, 0.3, 0.6, 1]
    pictures = [picture(index) for index in (5, 7)]
    captions = [picture(index).caption for index in (6, 8)]
    far = []
    for strength in strengths:
        generators = [seeded(seed) for seed in range(2)]
        found = image_to_image(
            captions, image=[one.image for one in pictures], strength=strength, generator=generators, **CALL
        ).images
        far.append(np.mean([grey_levels(a, b.image).mean() for a, b in zip(found, pictures, strict=True)]))

    assert far == sorted(far) and far[-1] > 2 * far[0]


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0])
def test_a_request_starts_within_the_schedule_of_the_fresh_one(pipe, picture, strength):
    (fresh,) = pipe.make_requests(picture(5).caption, size=(96, 96), **CALL)
    known = torch.randn_like(fresh.latents)
    request = started(fresh, known, strength)
    taken = 12 * strength

    assert request.steps == max(1, -(-taken // 1))
    assert request.guidance == fresh.guidance[-request.steps :]
    assert torch.equal(request.sigmas[1:], fresh.sigmas[-request.steps :])
    assert fresh.sigmas[-request.steps - 1] >= request.sigmas[0] >= fresh.sigmas[-request.steps]
    assert torch.allclose(request.times, 1 - request.sigmas[:-1], atol=1e-6)
    if strength == 1:
        assert torch.equal(request.latents, fresh.latents)
    else:
        assert torch.equal(request.latents, noised(known, fresh.latents, float(request.sigmas[0])))


def test_a_share_of_a_step_begins_between_two_noise_levels(pipe, picture):
    (fresh,) = pipe.make_requests(picture(5).caption, size=(96, 96), **CALL)
    request = started(fresh, fresh.latents, 0.375)  # four and a half steps of twelve

    assert request.steps == 5
    assert float(request.sigmas[0]) == pytest.approx(float(fresh.sigmas[7] + fresh.sigmas[8]) / 2, abs=1e-6)


def test_noise_of_a_step_is_the_same_whenever_it_is_drawn_and_no_other_steps():
    start = torch.randn(10, 4, generator=torch.Generator().manual_seed(1))
    drawn = [fresh_noise(start, step) for step in range(50)]

    assert all(torch.equal(one, fresh_noise(start.clone(), step)) for step, one in enumerate(drawn))
    assert len({float(one[0, 0]) for one in drawn}) == 50
    assert abs(torch.stack(drawn).std() - 1) < 0.05
    assert not torch.equal(fresh_noise(start + 1, 0), drawn[0])


@pytest.mark.parametrize(("fit", "size"), [("pad", (100, 75)), ("crop", (96, 64)), ("stretch", (96, 80))])
def test_pictures_of_any_size_come_back_by_their_fit(image_to_image, picture, seeded, fit, size):
    image = picture(5).image.resize((100, 75))
    arguments = dict(strength=0.2, fit=fit, generator=seeded(), **QUICK)

    assert image_to_image(picture(5).caption, image=image, **arguments).images[0].size == size


def test_a_size_that_is_given_is_the_pictures(image_to_image, picture):
    found = image_to_image(picture(5).caption, image=picture(5).image, width=128, height=112, strength=0.2, **QUICK)

    assert found.images[0].size == (128, 112)


def test_one_picture_serves_all_prompts_and_several_are_drawn_of_each(image_to_image, picture):
    captions = [picture(5).caption, picture(6).caption]
    found = image_to_image(captions, image=picture(7).image, strength=0.2, num_images_per_prompt=2, **QUICK).images

    assert [image.size for image in found] == [(96, 96)] * 4
    assert len({image.tobytes() for image in found}) == 4


def test_the_file_says_what_was_done(image_to_image, picture, seeded):
    one = picture(5)
    (request,) = image_to_image.make_edits(
        ImageToImage(one.image, 0.25, "crop"), one.caption,
        generator=seeded(7), **CALL,
    )  # fmt: skip

    assert request.settings["seed"] == 7 and request.settings["unrepeatable"] is None
    assert request.settings["edit"] == {
        "kind": "image to image", "strength": 0.25, "fit": "crop", "size": None, "image": digest(one.image),
    }  # fmt: skip


def test_a_padded_pictures_boxes_stay_where_they_are(image_to_image, picture, seeded):
    """The canvas is larger than the picture: the caption is that of the picture, and so is the one in its file."""
    image, caption = Image.new("RGB", (100, 75), "#FDD835"), picture(5).caption
    (found,) = image_to_image.make_edits(ImageToImage(image, 0.5), caption, generator=seeded(), **CALL)
    import json

    assert json.loads(found.settings["caption"]) == caption
    assert found.grid == (5, 7)

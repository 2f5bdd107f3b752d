"""The pipelines that change pictures: diffusers' arguments, one made of the other, what is refused before any work."""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from ideoflow import Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline, Ideogram4Pipeline, latents
from ideoflow.editing import CaptionEdit, ImageToImage, Inpaint, Upscale, Variation
from tests.editing.conftest import CALL, QUICK

# What diffusers' pipelines of these kinds have and this model has no use for; each is refused with what to do instead.
WITHOUT = {
    "negative_prompt", "true_cfg_scale", "sigmas", "prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds",
    "negative_prompt_embeds_mask", "masked_image_latents",
}  # fmt: skip
KINDS = [
    (Ideogram4Img2ImgPipeline, diffusers.QwenImageImg2ImgPipeline),
    (Ideogram4InpaintPipeline, diffusers.QwenImageInpaintPipeline),
]


@pytest.mark.parametrize(("ours", "theirs"), KINDS)
def test_calls_take_the_arguments_of_diffusers_pipelines_of_the_kind(ours, theirs):
    own, other = (inspect.signature(cls.__call__).parameters for cls in (ours, theirs))

    assert set(other) - set(own) == WITHOUT - (set() if "mask_image" in other else {"masked_image_latents"})
    assert [name for name in own if name in other] == [name for name in other if name in own]


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_arguments_that_this_model_has_no_use_for_say_what_there_is_instead(pipe, name):
    with pytest.raises(TypeError, match=f"There is no argument `{name}`: "):
        pipe("x", image=Image.new("RGB", (32, 32)), mask_image=[0, 0, 500, 500], **{name: 1})


@pytest.mark.parametrize("cls", [Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline, Ideogram4Pipeline])
@pytest.mark.parametrize("of", ["pipe", "plain", "image_to_image"])
def test_a_pipeline_is_made_of_any_other_and_copies_nothing(request, cls, of):
    other = request.getfixturevalue(of)
    made = cls.from_pipe(other)

    assert type(made) is cls
    assert all(made.components[name] is part for name, part in other.components.items())
    assert made.config.side_limits == other.config.side_limits and made.taps == other.taps


def test_pictures_of_a_pipeline_made_of_another_can_be_made_again(plain, picture, seeded):
    """They know the folder that the model came from."""
    (request,) = plain.make_requests(picture(1).caption, size=(96, 96), generator=seeded(), **CALL)

    assert request.settings["model"] == "sketch" and request.settings["unrepeatable"] is None


def test_a_folder_that_they_write_is_opened_by_the_others_and_by_diffusers(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)

    assert type(Ideogram4Pipeline.from_pretrained(tmp_path)) is Ideogram4Pipeline
    assert type(Ideogram4Img2ImgPipeline.from_pretrained(tmp_path)) is Ideogram4Img2ImgPipeline
    assert diffusers.Ideogram4Pipeline.from_pretrained(tmp_path).transformer is not None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(image=None), ValueError, "`image` is missing"),
        (dict(mask_image=None), ValueError, "`mask_image` is missing"),
        (dict(image=3), TypeError, "`image` is a int"),
        (dict(mask_image=Image.new("L", (5, 5), 255)), ValueError, "has 5 x 5 pixels, and the picture 32 x 32"),
        (dict(strength=1.5), ValueError, "`strength` is 1.5: give a number from 0 to 1"),
        (dict(strength="much"), TypeError, "`strength` is 'much'"),
        (dict(feather=-1), ValueError, "`feather` is -1"),
        (dict(harmonise=0.5), TypeError, "`harmonise` is 0.5"),
        (dict(fit="crop"), ValueError, "`fit` is 'crop': give one of 'pad', 'stretch'"),
        (
            dict(mask_changes="grey"),
            ValueError,
            "`mask_changes` is 'grey': give one of 'white', 'black', 'transparent'",
        ),
        (dict(padding_mask_crop=-4), ValueError, "`padding_mask_crop` is -4"),
        (dict(width=64), ValueError, "`width` is 64 and `height` None"),
        (dict(width="96", height="96"), TypeError, "`width` is '96': give a whole number"),
        (dict(width=96.0, height=96.0), TypeError, "`width` is 96.0: give a whole number"),
        (dict(width=0, height=0), ValueError, "`width` is 0: give a whole number from 1, a multiple of 16"),
        (dict(width=-16, height=-16), ValueError, "`width` is -16: give a whole number from 1, a multiple of 16"),
        (dict(mask_image=[5, 5, 9]), ValueError, "`mask_image` has the box .5, 5, 9.: give .y_min"),
        (dict(mask_image=[0.1, 0.1, 0.5, 0.5]), ValueError, "`mask_image` has the box .*not in shares from 0 to 1"),
        (dict(width=60, height=64), ValueError, "`width` and `height` are 60 and 64"),
        (dict(prompt=["x", "y", "z"], image=[Image.new("RGB", (32, 32))] * 2), ValueError, "2 pictures for 3 prompts"),
        (dict(prompt=None), ValueError, "`prompt` is missing"),
        (dict(output_type="gif"), ValueError, "`output_type` is 'gif'"),
        (dict(num_inference_steps=0), ValueError, "`num_inference_steps` is 0"),
        (dict(generator=7), TypeError, "`generator` is 7"),
    ],
)
def test_arguments_are_checked_before_anything_is_drawn(pipe, monkeypatch, arguments, error, message):
    def refuse(*args, **kwargs):
        raise AssertionError("the transformer was run")

    monkeypatch.setattr(type(pipe.transformer), "velocity", refuse)
    call = dict(prompt="x", image=Image.new("RGB", (32, 32)), mask_image=[0, 0, 500, 500])
    with pytest.raises(error, match=message), warnings.catch_warnings(action="ignore"):
        pipe(**{**call, **arguments})


def test_changes_and_prompts_belong_together(pipe, picture):
    with pytest.raises(ValueError, match="2 changes and 1 prompts"):
        pipe.edit([Variation(1, (96, 96))] * 2, picture(1).caption)
    with pytest.raises(TypeError, match="`changes` holds something else"):
        pipe.edit(["redraw"], picture(1).caption)
    with pytest.raises(TypeError, match="There is no argument `size`"):
        pipe.edit(Variation(1, (96, 96)), picture(1).caption, size=(96, 96))
    with pytest.raises(TypeError, match="There is no argument `size`: the changes say their sizes"):
        pipe.make_edits(Variation(1, (96, 96)), picture(1).caption, size=(96, 96))
    with pytest.raises(TypeError, match="`changes` is a NoneType: give one of ImageToImage"):
        pipe.edit(None, picture(1).caption)
    with pytest.raises(TypeError, match=r"`changes` is a Upscale: .*call `upscale`"):
        pipe.edit(Upscale(picture(1).image), picture(1).caption)


@pytest.mark.parametrize("size", [96, 0, "96x96", (96, 96, 3), (0, 0), (-16, 16), (95, 96), (96.0, 96), (True, 16)])
@pytest.mark.parametrize(
    "make",
    [
        lambda image, size: ImageToImage(image, size=size),
        lambda image, size: Inpaint(image, [0, 0, 500, 500], size=size),
        lambda image, size: CaptionEdit(image, "x", size=size),
        lambda image, size: Variation(1, size),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused_by_every_change(make, size):
    with pytest.raises((TypeError, ValueError), match=r"`size` is .*multiple"):
        make(Image.new("RGB", (32, 32)), size)


@pytest.mark.parametrize("cls", [Ideogram4Img2ImgPipeline, Ideogram4InpaintPipeline])
@pytest.mark.parametrize(("given", "shown"), [(None, "a NoneType"), ("sketch", "'sketch'"), (5, "a int")])
def test_a_pipeline_is_made_of_a_pipeline_alone(cls, given, shown):
    with pytest.raises(TypeError, match=f"`pipeline` is {shown}: give a pipeline"):
        cls.from_pipe(given)


RED, BLUE = (
    {
        "compositional_deconstruction": {
            "background": "plain yellow",
            "elements": [{"type": "obj", "bbox": [0, 0, 500, 500], "desc": f"a {colour} circle"}],
        }
    }
    for colour in ("red", "blue")
)
WAYS = {
    "redraw": lambda pipe, image, **more: pipe.redraw(image, RED, BLUE, **more),
    "outpaint": lambda pipe, image, **more: pipe.outpaint(image, (48, 32), RED, **more),
    "edit_caption": lambda pipe, image, **more: pipe.edit_caption(image, RED, BLUE, **more),
    "vary": lambda pipe, image, **more: pipe.vary(RED, (32, 32), 5, **more),
    "upscale": lambda pipe, image, **more: pipe.upscale(image, RED, **more),
    "inpaint": lambda pipe, image, **more: pipe(RED, image=image, mask_image=[0, 0, 500, 500], **more),
}


@pytest.mark.parametrize(
    ("way", "name", "message"),
    [
        *((way, "strenght", "did you mean `strength`") for way in WAYS if way != "vary"),
        ("vary", "amuont", "did you mean `amount`"),
        ("upscale", "factr", "did you mean `factor`"),
        ("redraw", "padding_mask_crop", "it is called `padding` here"),
        ("inpaint", "padding", "it is called `padding_mask_crop` here"),
        ("inpaint", "mask", "it is called `mask_image` here"),
        ("redraw", "mask", "Ideogram4InpaintPipeline's call"),
        ("edit_caption", "mask_image", "Ideogram4InpaintPipeline's call"),
        ("upscale", "mask_image", "Ideogram4InpaintPipeline's call"),
        ("vary", "strength", "the arguments are `prompt`, `size`, `seed`, `amount`"),
        ("redraw", "width", "the size follows from the picture"),
        ("outpaint", "steps", "it is called `num_inference_steps`"),
        ("edit_caption", "negative_prompt", "no negative prompt"),
    ],
)
def test_an_argument_that_is_none_is_told_from_what_the_method_has(pipe, way, name, message):
    with pytest.raises(TypeError, match=f"There is no argument `{name}`.*{message}") as caught:
        WAYS[way](pipe, Image.new("RGB", (32, 32), "red"), **{name: 1})
    assert "draws from captions alone" not in str(caught.value)


def test_image_to_image_says_which_pipeline_takes_masks(image_to_image):
    with pytest.raises(TypeError, match="no argument `mask_image`: a mask is an argument of Ideogram4InpaintPipeline"):
        image_to_image("x", image=Image.new("RGB", (32, 32)), mask_image=[0, 0, 500, 500])


def test_pictures_come_in_a_tuple_as_in_a_list(image_to_image, picture):
    pictures = picture(1).image, picture(2).image
    assert len(image_to_image(["x", "y"], image=pictures, strength=0.0, **QUICK).images) == 2


def test_all_kinds_of_changes_share_a_call_with_what_each_would_be_alone(pipe, plain, picture, seeded):
    """Bar 5 in small: edits and fresh pictures of several sizes in one engine, to one grey level."""
    one, other = picture(3), picture(4, (128, 96))
    changes = [
        ImageToImage(one.image, 0.5),
        Inpaint(other.image, [200, 200, 700, 700], harmonise=1),
        CaptionEdit(one.image, one.caption),
        Variation(5, (96, 96), 0.3),
        ImageToImage(other.image, 0.0),
    ]
    captions = [other.caption, one.caption, other.caption, one.caption, one.caption]
    alone = [
        pipe.edit(change, caption, generator=[seeded(seed)], **QUICK).images[0]
        for seed, (change, caption) in enumerate(zip(changes, captions, strict=True))
    ]
    fresh = plain(one.caption, size=(96, 128), generator=seeded(9), **QUICK).images[0]

    requests = pipe.make_edits(changes, captions, generator=[seeded(seed) for seed in range(5)], **QUICK)
    requests += plain.make_requests(one.caption, size=(96, 128), generator=seeded(9), **QUICK)
    engine = pipe.engine(output_type="pil")
    for request in requests:
        engine.add(request)
    found = {event.request: event.image for event in engine.run() if event.kind == "finished"}

    for request, image in zip(requests, [*alone, fresh], strict=True):
        gap = np.abs(np.asarray(image, int) - np.asarray(found[request], int))
        assert gap.max() <= 1


def test_an_edit_costs_the_tokens_of_its_steps_and_no_more(pipe, picture):
    one = picture(3)
    (fresh,) = pipe.make_requests(one.caption, size=(96, 96), **CALL)
    (half,) = pipe.make_edits(ImageToImage(one.image, 0.5), one.caption, **CALL)
    (inside,) = pipe.make_edits(Inpaint(one.image, [0, 0, 500, 500]), one.caption, **CALL)
    (caption,) = pipe.make_edits(CaptionEdit(one.image, picture(4).caption, 1.0), one.caption, **CALL)
    (old,) = pipe.make_requests(picture(4).caption, size=(96, 96), **CALL)

    def cost(request):
        return sum(request.tokens_of(step) for step in range(request.steps))

    assert cost(half) == cost(fresh) / 2
    assert cost(inside) == cost(fresh)
    assert cost(caption) == cost(fresh) + 12 * (old.text_tokens + old.image_tokens)  # the old caption, unguided


def test_a_call_stops_where_its_callback_says_so(pipe, picture):
    def stop(pipe, step, time, tensors):
        pipe._interrupt = step == 1
        return {}

    change = ImageToImage(picture(3).image, 1.0)
    seen = pipe.edit(change, picture(3).caption, callback_on_step_end=stop, **QUICK).images[0]

    assert seen.size == (96, 96)


def test_requests_wait_without_contexts_where_they_are_deferred(pipe, picture, seeded):
    one = picture(3)
    now, later = (
        pipe.make_edits(
            CaptionEdit(one.image, one.caption), picture(4).caption, generator=seeded(), defer=defer, **QUICK
        )[0]
        for defer in (False, True)
    )
    assert later.conditional is None and later.edit.source.conditional is None
    engine = pipe.engine()
    engine.complete([now, later])

    assert torch.allclose(now.latents, later.latents, atol=1e-5)


def test_pictures_are_encoded_when_the_engine_comes_to_them_where_they_are_deferred(pipe, picture, seeded, monkeypatch):
    one, other = picture(3), picture(4, (128, 96))
    changes = [
        ImageToImage(one.image, 0.5), Inpaint(other.image, [200, 200, 700, 700], 0.8, harmonise=1),
        CaptionEdit(one.image, one.caption, refine=0.4), Variation(5, (96, 96), 0.3),
    ]  # fmt: skip
    captions = [other.caption, one.caption, other.caption, one.caption]
    encoded = []

    def made(defer):
        generator = [seeded(seed) for seed in range(8)]
        return pipe.make_edits(changes, captions, generator=generator, num_images_per_prompt=2, defer=defer, **QUICK)

    def encode(vae, pictures, encode=latents.encode):
        encoded.append(len(pictures))
        return encode(vae, pictures)

    now = made(defer=False)
    monkeypatch.setattr(latents, "encode", encode)
    later = made(defer=True)
    assert not encoded and [one.steps for one in later] == [one.steps for one in now]
    assert [one.settings for one in later] == [one.settings for one in now]
    pipe.engine().complete([*now, *later])

    assert encoded == [1, 1, 1]
    for one, other in zip(now, later, strict=True):
        assert torch.allclose(one.latents, other.latents, atol=1e-4)


@pytest.mark.parametrize("form", ["np", "pt", "latent"])
def test_other_forms_of_pictures(pipe, picture, seeded, form):
    one = picture(3)
    arguments = dict(image=one.image, mask_image=[0, 0, 500, 500], generator=seeded(), **QUICK)
    found = pipe(one.caption, output_type=form, **arguments).images[0]
    image = np.asarray(pipe(one.caption, **{**arguments, "generator": seeded()}).images[0], np.float32) / 255

    if form == "latent":
        assert found.shape == (36, pipe.transformer.config.in_channels)
    else:
        found = np.asarray(found) if form == "np" else found.permute(1, 2, 0).numpy()
        assert np.abs(found - image).max() <= 0.5 / 255 + 1e-6

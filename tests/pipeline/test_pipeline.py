"""The pipeline: the reference pipeline's arguments, results and files, and what it offers beyond them."""

import copy
import inspect
import json
import shutil
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch

import ideoflow
from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel
from ideoflow.presets import PRESETS, Preset

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]

CAPTION = '{"compositional_deconstruction":{"background":"a blue sky","elements":[{"type":"obj","desc":"a red ball"}]}}'
PROMPTS = [CAPTION, "two green squares on a black background, plain text"]
SETTINGS = dict(num_inference_steps=12, guidance_schedule=PRESETS["V4_TURBO_12"].guidance, mu=0.5, std=1.75)
QUICK = dict(num_inference_steps=2, guidance_schedule=(5.0, 2.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def latents_of(pipe, *args, **kwargs):
    return pipe(*args, output_type="latent", **kwargs).images


# The same pictures as the reference


@pytest.mark.parametrize(("height", "width"), [(48, 64), (80, 32)])
def test_latents_after_twelve_steps_are_those_of_the_reference(pipeline, peer_pipeline, height, width):
    call = dict(prompt=PROMPTS, height=height, width=width, max_sequence_length=256, **SETTINGS)

    theirs = latents_of(peer_pipeline, generator=seeded(1), **call)
    ours = latents_of(pipeline, generator=seeded(1), **call)

    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert relative(ours, theirs) <= 1e-5  # the reference's own times, bit for bit: else 2e-5


def test_pictures_are_those_of_the_reference_within_one_grey_level(pipeline, peer_pipeline):
    call = dict(prompt=PROMPTS[0], height=48, width=64, max_sequence_length=256, **SETTINGS)

    theirs = peer_pipeline(generator=seeded(1), **call).images
    ours = pipeline(generator=seeded(1), **call).images

    assert [picture.size for picture in ours] == [(64, 48)]
    difference = np.asarray(ours[0]).astype(int) - np.asarray(theirs[0]).astype(int)
    assert abs(difference).max() <= 1


def test_every_argument_of_the_reference_is_there_in_order_with_its_default():
    theirs = list(inspect.signature(diffusers.Ideogram4Pipeline.__call__).parameters.values())
    ours = list(inspect.signature(Ideogram4Pipeline.__call__).parameters.values())

    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [list(p.default) if isinstance(p.default, tuple) else p.default for p in ours[: len(theirs)]] == [
        list(p.default) if isinstance(p.default, tuple) else p.default for p in theirs
    ]
    assert all(p.kind == p.KEYWORD_ONLY and p.default is not p.empty for p in ours[len(theirs) :])


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_each_output_type_has_the_form_of_the_reference(pipeline, peer_pipeline, output_type):
    call = dict(prompt=PROMPTS, height=32, width=48, max_sequence_length=256, output_type=output_type, **QUICK)

    theirs = peer_pipeline(generator=seeded(), **call).images
    (ours,) = pipeline(generator=seeded(), return_dict=False, **call)

    assert type(ours) is type(theirs) and len(ours) == len(theirs)
    if output_type == "pil":
        assert [picture.size for picture in ours] == [picture.size for picture in theirs]
    else:
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-3)


@pytest.mark.parametrize("generators", ["one", "list of one", "one a picture"])
def test_noise_is_drawn_as_the_reference_draws_it(pipeline, peer_pipeline, generators):
    def make():
        return {
            "one": seeded(3),
            "list of one": [seeded(3)],
            "one a picture": [seeded(i) for i in range(4)],
        }[generators]

    call = dict(prompt=PROMPTS, num_images_per_prompt=2, height=32, width=48, max_sequence_length=256, **QUICK)

    theirs = latents_of(peer_pipeline, generator=make(), **call)
    ours = latents_of(pipeline, generator=make(), **call)

    assert ours.shape[0] == 4
    assert relative(ours, theirs) <= 1e-4


def test_given_latents_start_the_same_way(pipeline, peer_pipeline):
    noise = torch.randn(2, 6, 16, generator=seeded(9))
    call = dict(prompt=PROMPTS, height=32, width=48, max_sequence_length=256, latents=noise, **QUICK)

    assert relative(latents_of(pipeline, **call), latents_of(peer_pipeline, **call)) <= 1e-4


def test_the_schedulers_shift_applies_as_in_the_reference(pipeline, tiny_folder):
    peer = diffusers.Ideogram4Pipeline.from_pretrained(tiny_folder)
    peer.set_progress_bar_config(disable=True)
    peer.scheduler = pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    call = dict(prompt=PROMPTS[0], height=32, width=48, max_sequence_length=256, **QUICK)

    plain = latents_of(Ideogram4Pipeline(**{**pipeline.components, "scheduler": type(peer.scheduler)()}), **call)

    assert (
        relative(latents_of(pipeline, generator=seeded(), **call), latents_of(peer, generator=seeded(), **call)) <= 1e-4
    )
    assert not torch.allclose(plain, latents_of(pipeline, generator=seeded(), **call), atol=1e-2)


# Packing


def test_a_picture_is_the_same_alone_and_among_pictures_of_other_sizes(pipeline):
    sizes = [(64, 48), (32, 80), (48, 48)]
    prompts = [*PROMPTS, "x"]

    together = latents_of(pipeline, prompts, size=sizes, generator=[seeded(i) for i in range(3)], preset="V4_TURBO_12")

    assert [tuple(latents.shape) for latents in together] == [(12, 16), (10, 16), (9, 16)]
    for i in range(3):
        alone = latents_of(pipeline, prompts[i], size=sizes[i], generator=seeded(i), preset="V4_TURBO_12")
        assert relative(together[i], alone[0]) <= 1e-5


def test_one_generator_draws_for_pictures_of_mixed_sizes_in_order(pipeline):
    sizes = [(64, 48), (32, 80)]
    generator = seeded(5)
    noise = [torch.randn(1, 12, 16, generator=generator)[0], torch.randn(1, 10, 16, generator=generator)[0]]

    drawn = latents_of(pipeline, PROMPTS, size=sizes, generator=seeded(5), **QUICK)
    given = latents_of(pipeline, PROMPTS, size=sizes, latents=noise, **QUICK)

    assert all(torch.equal(a, b) for a, b in zip(drawn, given, strict=True))


@pytest.mark.parametrize(("output_type", "of"), [("pil", PIL.Image.Image), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_pictures_of_mixed_sizes_come_as_a_list(pipeline, output_type, of):
    images = pipeline(PROMPTS, size=[(64, 48), (32, 80)], output_type=output_type, **QUICK).images

    assert isinstance(images, list) and all(isinstance(image, of) for image in images)
    shapes = [(i.height, i.width) if output_type == "pil" else tuple(s for s in i.shape if s != 3) for i in images]
    assert shapes == [(48, 64), (80, 32)]


def test_text_is_projected_once_for_each_caption_and_never_in_the_unconditional_branch(pipeline):
    calls = {"transformer": [], "unconditional_transformer": []}
    for name, rows in calls.items():
        projection = getattr(pipeline, name).llm_cond_proj
        projection.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0].shape[0]))
    lengths = [len(features) for features in pipeline.prompt_features(PROMPTS)]

    prompts, sizes = [*PROMPTS, PROMPTS[0]], [(64, 48), (32, 80), (64, 48)]
    pipeline(prompts, size=sizes, num_images_per_prompt=3, output_type="latent", **SETTINGS)

    assert calls == {"transformer": lengths, "unconditional_transformer": []}


def test_no_padding_enters_a_product(pipeline):
    """Linear layers see the tokens of captions and pictures, and in the last block those of pictures alone."""
    seen = {"transformer": [], "unconditional_transformer": []}
    for name, branch in seen.items():
        for block in getattr(pipeline, name).layers:
            branch.append(rows := set())
            for linear in (block.attention.to_q, block.attention.to_out[0], block.feed_forward.w1):
                linear.register_forward_pre_hook(lambda _, args, rows=rows: rows.add(args[0].shape[0]))
    text_tokens = sum(len(features) for features in pipeline.prompt_features(PROMPTS))

    pipeline(PROMPTS, size=[(64, 48), (32, 80)], output_type="latent", **QUICK)

    assert seen["transformer"] == [{text_tokens + 22}] * (len(seen["transformer"]) - 1) + [{22}]
    assert seen["unconditional_transformer"] == [{22}] * len(seen["unconditional_transformer"])


def test_the_text_encoder_runs_once_for_each_caption(pipeline):
    runs = []
    pipeline.text_encoder.language_model.layers[0].register_forward_hook(lambda *_: runs.append(1))

    pipeline([PROMPTS[0]] * 2, height=32, width=32, num_images_per_prompt=2, output_type="latent", **QUICK)

    assert runs == [1]


# Prompts


def test_prompts_are_text_dicts_captions_or_lists_of_these(pipeline):
    call = dict(height=32, width=32, **QUICK)
    as_dict = json.loads(CAPTION)

    expected = latents_of(pipeline, CAPTION, generator=seeded(), **call)

    assert torch.equal(latents_of(pipeline, as_dict, generator=seeded(), **call), expected)
    assert torch.equal(latents_of(pipeline, ideoflow.Caption.parse(as_dict), generator=seeded(), **call), expected)
    assert len(latents_of(pipeline, [as_dict, "plain text"], **call)) == 2


def test_strict_refuses_a_caption_that_breaks_the_schema(pipeline):
    with pytest.raises(ValueError):
        pipeline({"background": "none of the schema's keys"}, height=32, width=32, strict=True, **QUICK)


# Presets and guidance


def test_a_preset_supplies_steps_guidance_and_schedule(pipeline):
    (request,) = pipeline.make_requests("x", 512, 512, preset="V4_DEFAULT_20")
    named = PRESETS["V4_DEFAULT_20"]
    (explicit,) = pipeline.make_requests("x", 512, 512, 20, None, named.guidance, named.mu, named.std)

    assert request.guidance == named.guidance == explicit.guidance
    assert torch.equal(request.sigmas, explicit.sigmas)


@pytest.mark.parametrize(
    ("arguments", "guidance"),
    [
        (dict(guidance_scale=4.0), (4.0,) * 12),
        (dict(num_inference_steps=4), (7.0,) * 3 + (3.0,)),
        (dict(num_inference_steps=14), (7.0,) * 13 + (3.0,)),
        (dict(num_inference_steps=2, guidance_schedule=(2.0, 1.0)), (2.0, 1.0)),
        (dict(guidance_schedule=None), (7.0,) * 11 + (3.0,)),
        (dict(num_inference_steps=48), (7.0,) * 47 + (3.0,)),
        (dict(num_inference_steps=48, guidance_schedule=PRESETS["V4_QUALITY_48"].guidance), (7.0,) * 45 + (3.0,) * 3),
    ],
)
def test_arguments_win_over_the_preset(pipeline, arguments, guidance):
    (request,) = pipeline.make_requests("x", 512, 512, preset="V4_TURBO_12", **arguments)

    assert request.guidance == guidance


def test_mu_and_std_win_over_the_preset(pipeline):
    def sigmas(**arguments):
        return pipeline.make_requests("x", 512, 512, preset="V4_TURBO_12", **arguments)[0].sigmas

    assert torch.equal(sigmas(mu=0.2, std=1.0), sigmas(mu=0.2, std=1.0))
    assert not torch.equal(sigmas(mu=0.2), sigmas())
    assert not torch.equal(sigmas(std=1.0), sigmas())
    # Those of the default preset, when they are given, too.
    assert not torch.equal(sigmas(mu=0.0), sigmas()) and not torch.equal(sigmas(std=1.5), sigmas())


def test_a_preset_of_ones_own_is_taken_as_it_is(pipeline):
    (request,) = pipeline.make_requests("x", 512, 512, preset=Preset("mine", 2, (3.0, 1.0), 0.1, 1.2))

    assert request.guidance == (3.0, 1.0)


def test_without_guidance_the_unconditional_transformer_is_not_needed(pipeline):
    call = dict(prompt="x", height=32, width=32, num_inference_steps=2, guidance_scale=1, guidance_schedule=None)
    alone = Ideogram4Pipeline(**{**pipeline.components, "unconditional_transformer": None})
    alone.set_progress_bar_config(disable=True)

    expected = latents_of(pipeline, generator=seeded(), **call)

    assert torch.equal(latents_of(alone, generator=seeded(), **call), expected)
    with pytest.raises(ValueError, match="no `unconditional_transformer`, which guidance needs"):
        alone("x", height=32, width=32, **QUICK)


# Callbacks, interruption, progress


def test_the_callback_sees_what_the_references_callback_sees(pipeline, peer_pipeline):
    call = dict(prompt=PROMPTS, height=32, width=48, max_sequence_length=256, **QUICK)
    seen = {"ours": [], "theirs": []}

    def record(log):
        def callback(pipe, i, t, tensors):
            log.append((i, t, tensors["latents"], pipe.guidance_scale, pipe.num_timesteps))
            return tensors

        return callback

    latents_of(pipeline, generator=seeded(), callback_on_step_end=record(seen["ours"]), **call)
    latents_of(peer_pipeline, generator=seeded(), callback_on_step_end=record(seen["theirs"]), **call)

    for ours, theirs in zip(seen["ours"], seen["theirs"], strict=True):
        assert ours[0] == theirs[0] and ours[3:] == theirs[3:]
        assert torch.equal(ours[1], theirs[1])
        assert relative(ours[2], theirs[2]) <= 1e-4


def test_the_callback_may_change_the_latents(pipeline, peer_pipeline):
    def halve(pipe, i, t, tensors):
        return {"latents": tensors["latents"] / 2}

    call = dict(prompt=PROMPTS, height=32, width=48, max_sequence_length=256, callback_on_step_end=halve, **QUICK)

    ours, theirs = (latents_of(pipe, generator=seeded(), **call) for pipe in (pipeline, peer_pipeline))

    assert relative(ours, theirs) <= 1e-4
    assert not torch.allclose(ours, latents_of(pipeline, generator=seeded(), **{**call, "callback_on_step_end": None}))


@pytest.mark.parametrize("returns", ["the same", "a copy of the dict", "another tensor", "an empty dict"])
def test_latents_that_the_callback_edits_in_place_count_as_in_the_reference(pipeline, peer_pipeline, returns):
    def edit(pipe, i, t, tensors):
        latents = tensors["latents"]
        latents[:, 0] *= 0.5
        return {
            "the same": tensors,
            "a copy of the dict": dict(tensors),
            "another tensor": {"latents": latents.clone() + 0.1},
            "an empty dict": {},
        }[returns]

    call = dict(prompt=PROMPTS, height=32, width=48, max_sequence_length=256, **QUICK)

    ours, theirs = (
        latents_of(pipe, generator=seeded(), callback_on_step_end=edit, **call) for pipe in (pipeline, peer_pipeline)
    )

    assert relative(ours, theirs) <= 1e-4
    assert relative(ours, latents_of(pipeline, generator=seeded(), **call)) > 1e-2


@pytest.mark.parametrize("returned", [None, {}])
def test_latents_edited_in_place_count_alike_for_one_picture_equal_sizes_and_mixed_sizes(pipeline, returned):
    def edit(pipe, i, t, tensors):
        for own in tensors["latents"]:
            own *= 0.5
        return returned

    def halve(pipe, i, t, tensors):
        return {"latents": [own * 0.5 for own in tensors["latents"]]}

    for sizes in ([(32, 32)], [(32, 32), (32, 32)], [(32, 32), (48, 32)]):
        call = dict(prompt=["x", "y"][: len(sizes)], size=sizes, **QUICK)
        edited, halved, plain = (
            latents_of(pipeline, generator=[seeded(i) for i in range(len(sizes))], callback_on_step_end=each, **call)
            for each in (edit, halve, None)
        )
        for own, expected, bare in zip(edited, halved, plain, strict=True):
            assert torch.equal(own, expected) and not torch.equal(own, bare)


def test_a_callback_without_tensors_leaves_the_latents_alone(pipeline):
    call = dict(prompt="x", height=32, width=32, **QUICK)
    plain = latents_of(pipeline, generator=seeded(), **call)
    watched = latents_of(
        pipeline,
        generator=seeded(),
        callback_on_step_end=lambda *_: {},
        callback_on_step_end_tensor_inputs=[],
        **call,
    )

    assert torch.equal(watched, plain)


def test_the_callback_gets_lists_where_sizes_differ(pipeline):
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append((tuple(t.shape), [tuple(latents.shape) for latents in tensors["latents"]]))

    pipeline(PROMPTS, size=[(64, 48), (32, 80)], callback_on_step_end=callback, **QUICK)

    assert seen == [((2,), [(12, 16), (10, 16)])] * 2


def test_the_callback_may_ask_for_no_tensors(pipeline):
    seen = []

    pipeline(
        "x",
        height=32,
        width=32,
        callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors),
        callback_on_step_end_tensor_inputs=[],
        **QUICK,
    )

    assert seen == [{}, {}]


def test_interruption_stops_after_the_step_and_decodes_what_there_is(pipeline, peer_pipeline):
    steps = []

    def stop(pipe, i, t, tensors):
        steps.append(i)
        pipe._interrupt = i == 2
        return tensors

    call = dict(prompt="x", height=32, width=32, max_sequence_length=256, callback_on_step_end=stop, **SETTINGS)

    ours, theirs = (latents_of(pipe, generator=seeded(), **call) for pipe in (pipeline, peer_pipeline))

    assert steps == [0, 1, 2] * 2
    assert relative(ours, theirs) <= 1e-4
    assert len(pipeline(generator=seeded(), **call).images) == 1


def test_the_next_call_is_not_interrupted(pipeline):
    pipeline._interrupt = True

    assert pipeline("x", height=32, width=32, **QUICK).images and not pipeline.interrupt


def test_a_call_within_a_callback_leaves_the_other_as_it_was(pipeline):
    """One that is stopped stops alone, and one that is not stops nothing from stopping."""
    call, seen = dict(prompt="x", height=32, width=32, **SETTINGS), []

    def stop(pipe, i, t, tensors):
        pipe._interrupt = True
        return tensors

    def outer(pipe, i, t, tensors):
        pipe._interrupt = i == 2
        inner = stop if i < 2 else None
        pipe(callback_on_step_end=inner, **{**call, **QUICK})
        seen.append((i, pipe.num_timesteps))
        return tensors

    pipeline(callback_on_step_end=outer, **call)

    steps = seen[0][1]
    assert steps > 2 and seen == [(0, steps), (1, steps), (2, steps)]


def test_progress_counts_the_steps(pipeline, capsys):
    pipeline.set_progress_bar_config(disable=False, desc="drawing")
    pipeline("x", height=32, width=32, **QUICK)

    assert "drawing" in (shown := capsys.readouterr().err) and "2/2" in shown


# Requests for other loops than the pipeline's own


def test_requests_made_apart_run_in_an_engine_of_the_pipeline(pipeline):
    expected = latents_of(pipeline, "x", height=32, width=32, generator=seeded(), **QUICK)

    requests = pipeline.make_requests("x", height=32, width=32, generator=seeded(), **QUICK)
    pipeline.engine().complete(requests)

    assert torch.equal(pipeline.decode_requests(requests, "latent"), expected)
    assert pipeline.decode_requests(requests)[0].size == (32, 32)


def test_deferred_requests_encode_at_their_first_step_and_draw_the_same(pipeline, monkeypatch):
    expected = latents_of(pipeline, ["x", "y z"], height=32, width=32, generator=[seeded(1), seeded(2)], **QUICK)
    pipeline.text_cache.clear()
    from ideoflow.pipeline import text_embedder as module

    encoded, plain = [], module.encode_tokens
    monkeypatch.setattr(module, "encode_tokens", lambda *args: (encoded.extend(args[1]), plain(*args))[1])
    first, second = (tuple(ids) for ids in ideoflow.text_encoder.tokenise(pipeline.tokenizer, ["x", "y z"]))

    requests = pipeline.make_requests(
        ["x", "y z"], height=32, width=32, generator=[seeded(1), seeded(2)], defer=True, **QUICK
    )
    assert encoded == [] and all(request.conditional is None for request in requests)
    sizes = [request.tokens for request in requests]
    engine = pipeline.engine(max_requests=1, policy="fifo")
    for request in requests:
        engine.add(request)
    engine.step()
    assert encoded == [first]
    list(engine.run())

    assert encoded == [first, second] and sizes[0] < sizes[1]
    assert relative(pipeline.decode_requests(requests, "latent"), expected) <= 1e-5


def test_a_caption_is_encoded_once_while_the_weights_stay(pipeline, monkeypatch):
    from ideoflow.pipeline import text_embedder as module

    encoded, plain = [], module.encode_tokens
    monkeypatch.setattr(module, "encode_tokens", lambda *args: (encoded.append(1), plain(*args))[1])
    call = dict(height=32, width=32, **QUICK)

    first = latents_of(pipeline, "x", generator=seeded(), **call)
    assert torch.equal(latents_of(pipeline, "x", generator=seeded(), **call), first)
    assert len(encoded) == 1 and pipeline.text_cache.bytes > 0
    with torch.no_grad():
        pipeline.transformer.llm_cond_proj.weight.mul_(1.5)
    changed = latents_of(pipeline, "x", generator=seeded(), **call)
    with torch.no_grad():
        pipeline.transformer.llm_cond_proj.weight.div_(1.5)

    assert len(encoded) == 2 and relative(changed, first) > 1e-3
    with pytest.raises(ValueError, match="more than `max_sequence_length`"):
        pipeline("x", max_sequence_length=2, **call)


def test_an_engine_of_the_pipeline_gives_pictures_and_previews(pipeline):
    engine = pipeline.engine(output_type="pil", preview_every=1)
    for request in pipeline.make_requests("x", height=32, width=48, **QUICK):
        engine.add(request)

    images = [event.image for event in engine.run() if event.image is not None]

    assert [image.size for image in images] == [(48, 32), (48, 32)]  # after the first step of two, and the last


def test_calls_may_come_between_and_within_the_steps_of_an_engine(pipeline):
    call = dict(height=32, width=48, **QUICK)
    alone = latents_of(pipeline, PROMPTS, generator=seeded(3), **call)
    called = []

    def call_within(request):
        called.append(latents_of(pipeline, PROMPTS, generator=seeded(3), **call))

    engine = pipeline.engine(max_tokens=200)
    requests = pipeline.make_requests(PROMPTS, generator=seeded(4), size=(48, 32), defer=True, **QUICK)
    requests[0].on_step = call_within
    for request in requests:
        engine.add(request)
    for event in engine.run():
        if event.kind == "step":
            called.append(latents_of(pipeline, PROMPTS, generator=seeded(3), **call))

    assert len(called) == 2 + 4 and all(torch.equal(own, alone) for own in called)
    expected = latents_of(pipeline, PROMPTS, generator=seeded(4), **call)
    assert all(relative(r.latents, own) <= 1e-5 for r, own in zip(requests, expected, strict=True))


def test_a_deferred_caption_that_is_too_long_is_refused_when_its_request_is_made(pipeline):
    with pytest.raises(ValueError, match="`max_sequence_length`"):
        pipeline.make_requests(PROMPTS, size=(48, 32), max_sequence_length=4, defer=True, **QUICK)


def test_requests_of_one_generator_draw_on_from_where_the_last_one_left(pipeline):
    generator = seeded(5)
    first, second = (
        pipeline.make_requests(PROMPTS[0], size=(48, 32), generator=generator, **QUICK)[0] for _ in range(2)
    )
    both = pipeline.make_requests([PROMPTS[0]] * 2, size=(48, 32), generator=[seeded(5), seeded(6)], **QUICK)

    assert torch.equal(first.latents, both[0].latents) and not torch.equal(first.latents, second.latents)


def test_a_token_budget_changes_nothing_but_the_passes(pipeline):
    call = dict(size=[(32, 32), (48, 32), (64, 64)], generator=[seeded(i) for i in range(3)], **QUICK)
    whole = latents_of(pipeline, ["x", "y", "z"], **call)
    call["generator"] = [seeded(i) for i in range(3)]

    for one, other in zip(latents_of(pipeline, ["x", "y", "z"], max_tokens=40, **call), whole, strict=True):
        assert relative(one, other) <= 1e-5


def test_guidance_outside_its_interval_is_one(pipeline):
    call = dict(height=32, width=32, num_inference_steps=4)
    limited = latents_of(
        pipeline, "x", generator=seeded(), guidance_scale=5.0, guidance_schedule=None, guidance_interval=(0.25, 0.75),
        **call,
    )  # fmt: skip
    spelled = latents_of(pipeline, "x", generator=seeded(), guidance_schedule=[1.0, 5.0, 5.0, 1.0], **call)

    assert torch.equal(limited, spelled)


# Errors and warnings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_interval": (0.5, 0.2)}, r"`guidance_interval` is \(0.5, 0.2\): give \(start, stop\)"),
        ({"max_tokens": 0}, "`max_tokens` is 0"),
        (dict(prompt=None), "`prompt` is missing"),
        (dict(prompt=[]), "`prompt` is an empty list"),
        (dict(height=40), "`width` and `height` are 32 and 40: each side must be a positive multiple of 16"),
        (dict(num_inference_steps=10**9), "`num_inference_steps` is 1000000000: give a whole number from 1 to 1000"),
        (dict(num_inference_steps=10**5000), "is a number of more than 20 digits: give a whole number from 1 to 1000"),
        (dict(preset=Preset("long", 2000, (7.0,) * 2000, 0.0, 1.5)), "`preset` is 2000: .* to 1000 as its steps"),
        (dict(height=0), "`height` is 0: .* a multiple of 16"),
        (dict(size=(32, 32)), "either `size` or `height` and `width`"),
        (dict(height=2048, width=2048, size=[(32, 32)] * 2), "one for each of the 1 prompts"),
        (dict(height=2048, width=2048, size=(32, 32, 32)), "one .width, height."),
        (dict(guidance_scale=3.0), "exactly one of `guidance_scale`.*got both"),
        (dict(guidance_schedule=None), "exactly one of `guidance_scale`.*got neither"),
        (dict(num_inference_steps=3), "`guidance_schedule` has 2 values for 3 steps"),
        (dict(num_images_per_prompt=0), "`num_images_per_prompt` is 0"),
        (dict(generator=[seeded(), seeded()]), "2 generators for 1 pictures"),
        (dict(latents=torch.zeros(1, 5, 16)), r"`latents` holds shapes \[\(5, 16\)\], but the pictures need"),
        (dict(output_type="jpeg"), "`output_type` is 'jpeg'"),
        (dict(preset="V9"), "`preset` 'V9' is unknown"),
        (dict(prompt_upsampling=True), "needs the component `prompt_enhancer_head`"),
        (dict(max_sequence_length=3), r"more than `max_sequence_length` \(3\)"),
        (dict(callback_on_step_end_tensor_inputs=["noise"]), r"names \['noise'\]"),
    ],
)
def test_arguments_that_do_not_fit_are_named(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**{**dict(prompt="x", height=32, width=32), **QUICK, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(height="32"), "`height` is '32': give a whole number from 1, a multiple of 16"),
        (dict(width=32.0), r"`width` is 32\.0: give a whole number"),
        (dict(height=2048, width=2048, size=32), "`size` is 32: give one .width, height."),
        (dict(num_inference_steps=2.0), r"`num_inference_steps` is 2\.0"),
        (dict(num_inference_steps=True), "`num_inference_steps` is True"),
        (dict(guidance_schedule=(float("nan"), 1.0)), r"`guidance_schedule` is \(nan, 1\.0\): give finite numbers"),
        (dict(guidance_schedule=5), "`guidance_schedule` is 5: give a sequence of finite numbers"),
        (dict(guidance_schedule=None, guidance_scale=float("inf")), "`guidance_scale` is inf"),
        (dict(guidance_interval=0.5), "`guidance_interval` is 0.5: give .start, stop."),
        (dict(guidance_interval=("a", "b")), "`guidance_interval` is .'a', 'b'."),
        (dict(mu=float("nan")), "`mu` is nan: give a finite number"),
        (dict(std=float("inf")), "`std` is inf"),
        (dict(max_sequence_length=float("nan")), "`max_sequence_length` is nan: give a whole number from 1"),
        (dict(num_images_per_prompt=1.5), r"`num_images_per_prompt` is 1\.5"),
        (dict(generator=42), r"`generator` is 42: give a torch\.Generator"),
        (dict(generator=[42]), r"`generator` is 42: give a torch\.Generator"),
        (dict(latents=np.zeros((1, 4, 16))), "`latents` is a ndarray: give a tensor"),
        (dict(latents=[None]), "`latents` is a list: give a tensor, or a list of tensors"),
        (dict(max_tokens=float("nan")), "`max_tokens` is nan: give a whole number from 1, or None for no limit"),
        (dict(max_tokens="5"), "`max_tokens` is '5'"),
        (dict(callback_on_step_end=5), "`callback_on_step_end` is 5: give a function"),
        (dict(callback_on_step_end=lambda *_: True), "returned a bool: return a dict"),
        (dict(callback_on_step_end=lambda *_: {"latents": 5}), "returned latents that are a int"),
        (dict(callback_on_step_end=lambda *_: {"latents": torch.zeros(2, 4, 16)}), "of 2 pictures: this call has 1"),
    ],
)  # fmt: skip
def test_arguments_of_other_types_are_named(pipeline, arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        pipeline(**{**dict(prompt="x", height=32, width=32), **QUICK, **arguments})


def test_numbers_may_come_from_numpy_and_no_tensors_as_none(pipeline):
    plain = latents_of(pipeline, "x", height=32, width=32, generator=seeded(), **QUICK)
    numbers = dict(height=np.int64(32), width=np.int32(32), num_inference_steps=np.int64(2), max_tokens=np.int64(50))
    arrays = dict(guidance_schedule=np.array([5.0, 2.0]), callback_on_step_end_tensor_inputs=None)

    assert torch.equal(latents_of(pipeline, "x", generator=seeded(), **numbers, **arrays), plain)


def test_features_of_equal_prompts_are_each_its_own(pipeline):
    features = pipeline.prompt_features(["x", "another caption"])

    requests = pipeline.make_requests(["x", "x"], height=32, width=32, prompt_features=features, **QUICK)

    assert [request.text_tokens for request in requests] == [len(own) for own in features]
    assert [len(request.conditional.text) for request in requests] == [len(own) for own in features]
    with pytest.raises(TypeError, match="`prompt_features` holds something else"):
        pipeline.make_requests("x", height=32, width=32, prompt_features=[features[0].numpy()], **QUICK)


def test_a_copy_draws_the_same_and_keeps_captions_of_its_own(pipeline):
    call = dict(height=32, width=32, **QUICK)
    expected = latents_of(pipeline, "x", generator=seeded(), **call)

    twin = copy.deepcopy(pipeline)

    assert len(twin.text_cache) == 0 and len(pipeline.text_cache) > 0
    assert torch.equal(latents_of(twin, "x", generator=seeded(), **call), expected)


def test_a_callback_must_keep_the_shape_of_the_latents(pipeline):
    with pytest.raises(ValueError, match=r"returned latents of shape \(1, 16\).*must keep \(4, 16\)"):
        pipeline("x", height=32, width=32, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 1, 16)}, **QUICK)


def test_schedulers_that_do_not_take_euler_steps_are_refused(pipeline):
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ValueError, match="`scheduler` is a FlowMatchHeunDiscreteScheduler"):
        pipeline("x", height=32, width=32, **QUICK)


def test_the_references_transformer_object_is_refused_with_the_way_out(pipeline, peer_pipeline):
    with pytest.raises(TypeError, match=r"`transformer` is a diffusers.*from_pretrained"):
        Ideogram4Pipeline(**{**pipeline.components, "transformer": peer_pipeline.transformer})


def test_weights_that_overflow_are_reported(pipeline):
    with torch.no_grad():
        pipeline.transformer.final_layer.linear.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"Request 0 .'x'.*not finite"):
        pipeline("x", height=32, width=32, **QUICK)


def test_sizes_that_the_weights_were_not_trained_on_are_warned_about(pipeline):
    with pytest.warns(UserWarning, match=r"128 x 512 pixels are outside .*256 to 2048"):
        pipeline.make_requests(CAPTION, size=(128, 512), **QUICK)
    with pytest.warns(UserWarning, match=r"aspect ratio up to 6:1"):
        pipeline.make_requests(CAPTION, size=(256, 1600), **QUICK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.make_requests(CAPTION, size=(256, 512), **QUICK)


def test_the_limits_of_the_sizes_come_from_the_checkpoint(pipeline, tmp_path):
    small = Ideogram4Pipeline(**pipeline.components, side_limits=(32, 64))
    small.save_pretrained(tmp_path)

    again = Ideogram4Pipeline.from_pretrained(tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.make_requests(CAPTION, size=(32, 64), **QUICK)


# Files


def index_of(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index.pop("_name_or_path", None)
    return index


def test_a_folder_of_the_reference_opens_with_our_transformers(pipeline):
    assert type(pipeline.transformer) is type(pipeline.unconditional_transformer) is Ideogram4Transformer2DModel
    assert not pipeline.transformer.training


def test_what_we_save_the_reference_opens_and_draws_the_same(pipeline, tiny_folder, tmp_path):
    pipeline.save_pretrained(tmp_path)
    peer = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    peer.set_progress_bar_config(disable=True)
    call = dict(prompt=PROMPTS[0], height=32, width=48, max_sequence_length=256, **SETTINGS)

    assert index_of(tmp_path) == index_of(tiny_folder)
    assert type(peer) is diffusers.Ideogram4Pipeline
    assert type(peer.transformer) is diffusers.Ideogram4Transformer2DModel
    assert (
        relative(latents_of(pipeline, generator=seeded(), **call), latents_of(peer, generator=seeded(), **call)) <= 1e-4
    )


def test_saving_and_loading_keeps_every_weight(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)

    again = Ideogram4Pipeline.from_pretrained(tmp_path)

    for name in ("transformer", "unconditional_transformer", "vae", "text_encoder"):
        state, expected = getattr(again, name).state_dict(), getattr(pipeline, name).state_dict()
        assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def test_replaced_transformers_keep_their_name_in_the_index(pipeline, tiny_folder, tmp_path):
    pipeline.transformer = Ideogram4Transformer2DModel.from_pretrained(tiny_folder / "unconditional_transformer")

    pipeline.save_pretrained(tmp_path)

    assert index_of(tmp_path)["transformer"] == ["diffusers", "Ideogram4Transformer2DModel"]


def test_taps_are_kept_in_the_folder(pipeline, peer_pipeline, tmp_path):
    taps = [1, *range(2, 14)]
    own = Ideogram4Pipeline(**pipeline.components, text_encoder_taps=taps)
    own.save_pretrained(tmp_path)
    again = Ideogram4Pipeline.from_pretrained(tmp_path)

    assert again.taps == tuple(taps) and pipeline.taps == ideoflow.text_encoder.TAPS
    assert torch.equal(again.prompt_features("x")[0], own.prompt_features("x")[0])
    assert not torch.equal(again.prompt_features("x")[0], pipeline.prompt_features("x")[0])
    assert diffusers.DiffusionPipeline.from_pretrained(tmp_path).transformer is not None


def test_a_folder_without_unconditional_transformer_saves_and_opens(pipeline, tmp_path):
    Ideogram4Pipeline(**{**pipeline.components, "unconditional_transformer": None}).save_pretrained(tmp_path)

    assert Ideogram4Pipeline.from_pretrained(tmp_path).unconditional_transformer is None


@pytest.mark.parametrize("options", [dict(dtype=torch.bfloat16), dict(device_map="cpu"), dict(low_cpu_mem_usage=False)])
def test_loading_options_apply(tiny_folder, options):
    loaded = Ideogram4Pipeline.from_pretrained(tiny_folder, **options)
    loaded.set_progress_bar_config(disable=True)

    assert type(loaded.transformer) is Ideogram4Transformer2DModel
    assert loaded.transformer.dtype == options.get("dtype", torch.float32)
    latents = latents_of(loaded, "x", height=32, width=48, generator=seeded(), **QUICK)
    assert latents.dtype == torch.float32 and latents.isfinite().all()


def test_half_precision_is_near_the_reference_in_half_precision(tiny_folder):
    ours, theirs = (
        cls.from_pretrained(tiny_folder, dtype=torch.bfloat16)
        for cls in (Ideogram4Pipeline, diffusers.Ideogram4Pipeline)
    )
    call = dict(prompt="x", height=32, width=48, max_sequence_length=64, output_type="latent", **QUICK)

    # One rounding of the times apart: the reference rounds them to bfloat16.
    assert relative(ours(generator=seeded(), **call).images, theirs(generator=seeded(), **call).images) < 0.1


def test_variants_are_found(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16")

    assert (tmp_path / "transformer" / "diffusion_pytorch_model.fp16.safetensors").exists()
    assert Ideogram4Pipeline.from_pretrained(tmp_path, variant="fp16").transformer is not None


def test_a_component_may_be_passed_to_from_pretrained(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    shutil.rmtree(folder / "transformer")
    transformer = Ideogram4Transformer2DModel.from_pretrained(tiny_folder / "transformer")

    assert Ideogram4Pipeline.from_pretrained(folder, transformer=transformer).transformer is transformer


def test_moving_changes_the_type_of_all_models(pipeline):
    pipeline.to(torch.float64)

    assert {pipeline.transformer.dtype, pipeline.unconditional_transformer.dtype, pipeline.vae.dtype} == {torch.float64}


# Offloading


@pytest.mark.parametrize(
    "offload",
    [
        "model",
        "group by block",
        "group by leaf",
        pytest.param(
            "sequential", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate: CUDA alone")
        ),
    ],
)
def test_offloaded_pipelines_draw_the_same(pipeline, offload):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    call = dict(prompt="x", height=32, width=48, **QUICK)
    expected = latents_of(pipeline.to(device), generator=seeded(), **call).cpu()
    pipeline.to("cpu")
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif offload == "group by leaf":
        pipeline.enable_group_offload(device, offload_type="leaf_level")
    else:
        pipeline.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)

    assert relative(latents_of(pipeline, generator=seeded(), **call).cpu(), expected) <= 1e-5
    assert pipeline(generator=seeded(), **call).images


def test_model_offload_wakes_each_model_once_a_step(pipeline, monkeypatch):
    from accelerate.hooks import CpuOffload

    woken, plain = [], CpuOffload.pre_forward
    monkeypatch.setattr(
        CpuOffload, "pre_forward", lambda hook, module, *a, **k: (woken.append(module), plain(hook, module, *a, **k))[1]
    )
    pipeline.enable_model_cpu_offload(device="cpu")
    hooks = pipeline._all_hooks

    pipeline("x", height=32, width=48, **QUICK)

    assert pipeline._all_hooks is not hooks  # set anew, with all models at rest
    order = [module for module, before in zip(woken, [None, *woken], strict=False) if module is not before]
    branches = [pipeline.transformer, pipeline.unconditional_transformer]
    assert order == [pipeline.text_encoder, *branches * 3, pipeline.vae]  # to prepare, and for each of two steps


def test_group_offload_brings_the_parts_outside_the_blocks_too(pipeline, monkeypatch):
    """They hang on the model's own `forward`, which neither the engine nor the text features call."""
    from diffusers.hooks.group_offloading import ModuleGroup

    pipeline.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)
    balance, on, off = {}, ModuleGroup.onload_, ModuleGroup.offload_
    models = [pipeline.text_encoder, pipeline.transformer, pipeline.unconditional_transformer, pipeline.vae]

    def onload(group):
        balance.setdefault(group.onload_leader, []).append("on")
        on(group)

    def offload(group):
        balance.setdefault(group.offload_leader, []).append("off")
        off(group)

    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    monkeypatch.setattr(ModuleGroup, "offload_", offload)

    pipeline("x", height=32, width=48, **QUICK)

    assert [balance[model] for model in models] == [["on", "off"] * n for n in (1, 4, 3, 1)]


# LoRA


@pytest.fixture
def lora():
    generator = seeded(11)
    state = {}
    for layer in range(2):
        for name in ("attention.to_q", "attention.to_out.0", "feed_forward.w1"):
            prefix = f"transformer.layers.{layer}.{name}"
            rows = 48 if name.endswith("w1") else 32
            state[f"{prefix}.lora_A.weight"] = torch.randn(4, 32, generator=generator) / 4
            state[f"{prefix}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 4
    return state


def test_a_lora_has_the_effect_it_has_in_the_reference(pipeline, tiny_folder, lora):
    peer = diffusers.Ideogram4Pipeline.from_pretrained(tiny_folder)
    peer.set_progress_bar_config(disable=True)
    call = dict(prompt="x", height=32, width=48, max_sequence_length=64, **SETTINGS)
    bare = latents_of(pipeline, generator=seeded(), **call)

    for pipe in (pipeline, peer):
        pipe.load_lora_weights(dict(lora), adapter_name="style")
    loaded = latents_of(pipeline, generator=seeded(), **call)
    assert relative(loaded, latents_of(peer, generator=seeded(), **call)) <= 1e-4
    assert relative(loaded, bare) > 1e-2

    for pipe in (pipeline, peer):
        pipe.set_adapters("style", 0.5)
    half = latents_of(pipeline, generator=seeded(), **call)
    assert relative(half, latents_of(peer, generator=seeded(), **call)) <= 1e-4
    assert relative(half, loaded) > 1e-3

    pipeline.set_adapters("style", 1.0)
    scaled = latents_of(pipeline, generator=seeded(), attention_kwargs={"scale": 0.5}, **call)
    assert relative(scaled, half) <= 1e-5

    pipeline.fuse_lora(lora_scale=0.5)
    assert relative(latents_of(pipeline, generator=seeded(), **call), half) <= 1e-4
    pipeline.unfuse_lora()

    pipeline.unload_lora_weights()
    assert relative(latents_of(pipeline, generator=seeded(), **call), bare) <= 1e-5


def lora_of_the_projection() -> dict[str, torch.Tensor]:
    generator = seeded(12)
    prefix = "transformer.llm_cond_proj"
    return {
        f"{prefix}.lora_A.weight": torch.randn(4, 13 * 32, generator=generator) / 20,
        f"{prefix}.lora_B.weight": torch.randn(32, 4, generator=generator),
    }


def test_a_lora_of_the_text_projection_acts_and_scales(pipeline):
    """The projection runs in `prepare`, before the steps, and takes its part of the adapter with it."""
    lora = lora_of_the_projection()
    call = dict(prompt="x", height=32, width=48, **QUICK)
    bare = latents_of(pipeline, generator=seeded(), **call)

    pipeline.load_lora_weights(lora)

    assert relative(latents_of(pipeline, generator=seeded(), **call), bare) > 1e-2
    off = latents_of(pipeline, generator=seeded(), attention_kwargs={"scale": 0.0}, **call)
    assert relative(off, bare) <= 1e-6


@pytest.mark.parametrize("stop_at", [0, 1])
def test_latents_that_a_callback_breaks_are_reported_even_if_it_stops_the_call(pipeline, stop_at):
    def spoil(pipe, step, time, tensors):
        pipe._interrupt = step == stop_at
        return {"latents": tensors["latents"] * torch.nan} if step == stop_at else tensors

    with pytest.raises(FloatingPointError, match="not finite"):
        latents_of(
            pipeline,
            "a dot",
            size=(64, 64),
            num_inference_steps=2,
            guidance_scale=2,
            guidance_schedule=None,
            callback_on_step_end=spoil,
        )


def test_captions_are_embedded_anew_after_an_adapter_of_the_projection_was_fused(pipeline):
    """Fusing changes weights in a way that their versions do not show."""
    lora = lora_of_the_projection()
    call = dict(prompt="x", height=32, width=48, **QUICK)
    bare = latents_of(pipeline, generator=seeded(), **call)
    pipeline.load_lora_weights(lora)
    adapted = latents_of(pipeline, generator=seeded(), **call)
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()

    fused = latents_of(pipeline, generator=seeded(), **call)

    assert relative(fused, adapted) <= 1e-4 < relative(fused, bare)


# CUDA graphs


@pytest.fixture
def graphs_here(monkeypatch):
    """Stands for CUDA's graphs on a CPU; how often they are replayed."""
    from ideoflow.engine import graphs

    notes = SimpleNamespace(replays=0)

    class StandIn:
        __init__ = staticmethod(lambda *_: None)
        runs_on = staticmethod(lambda device: True)
        room = staticmethod(lambda device: 100)
        warm_up = staticmethod(lambda run: run())

        def capture(self, run, pool):
            self.run, self.output = run, run() * torch.nan
            pool.graphs.add(self)

        def replay(self):
            notes.replays += 1
            self.output.copy_(self.run())

    monkeypatch.setattr(graphs, "CudaGraph", StandIn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return notes


def test_cuda_graphs_come_by_themselves_and_change_no_picture(pipeline, graphs_here, monkeypatch):
    from ideoflow.engine import graphs

    def draw():
        return latents_of(pipeline, CAPTION, height=32, width=48, generator=seeded(), **SETTINGS)

    assert pipeline.cuda_graphs == "auto"
    by_themselves = draw()
    assert graphs_here.replays == 2 * 10
    pipeline.disable_cuda_graphs()
    assert pipeline.cuda_graphs is False and torch.equal(draw(), by_themselves) and graphs_here.replays == 2 * 10
    monkeypatch.setattr(graphs, "AUTO_TOKENS", 1)
    pipeline.cuda_graphs = "auto"
    assert torch.equal(draw(), by_themselves) and graphs_here.replays == 2 * 10
    pipeline.enable_cuda_graphs()
    assert pipeline.cuda_graphs is True and torch.equal(draw(), by_themselves) and graphs_here.replays == 4 * 10


def test_an_engine_may_be_told_otherwise_than_its_pipeline(pipeline, graphs_here):
    made = {choice: pipeline.engine(cuda_graphs=choice).denoiser._graphs() for choice in (None, "auto", True, False)}
    assert {choice: len(graphs) for choice, graphs in made.items()} == {None: 2, "auto": 2, True: 2, False: 0}
    assert [made[choice][0]._insisted for choice in (None, "auto", True)] == [False, False, True]


def test_a_plan_of_memory_has_no_room_for_graphs_unless_they_are_insisted_on(pipeline, graphs_here, monkeypatch):
    monkeypatch.setattr(pipeline, "plan", SimpleNamespace(max_tokens=None))
    assert pipeline.engine().denoiser._graphs() == []
    assert len(pipeline.engine(cuda_graphs=True).denoiser._graphs()) == 2


@pytest.mark.parametrize("choice", ["always", None, 1])
def test_another_choice_of_graphs_is_refused_by_name(pipeline, choice):
    with pytest.raises(ValueError, match=r'`cuda_graphs` is .*: give "auto", True or False'):
        pipeline.cuda_graphs = choice
    assert pipeline.cuda_graphs == "auto"


def test_cuda_graphs_are_freed_before_pictures_are_decoded(pipeline, graphs_here, monkeypatch):
    pipeline.enable_cuda_graphs()
    denoisers, decode, engine = [], pipeline.decode_requests, pipeline.engine

    def make_engine(*args, **kwargs):
        made = engine(*args, **kwargs)
        denoisers.append(made.denoiser)
        return made

    def decode_after(*args):
        assert graphs_here.replays > 0 and [len(graphs) for graphs in denoisers[0]._graphs()] == [0, 0]
        return decode(*args)

    monkeypatch.setattr(pipeline, "engine", make_engine)
    monkeypatch.setattr(pipeline, "decode_requests", decode_after)

    pipeline(CAPTION, height=32, width=48, **SETTINGS)


def test_cuda_graphs_cannot_be_enabled_where_there_is_no_cuda(pipeline, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need a CUDA device, and torch sees none"):
        pipeline.enable_cuda_graphs()

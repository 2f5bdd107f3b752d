"""Methods and ways of the pipeline of diffusers beside the call itself: the same arguments and results."""

import copy
import inspect

import diffusers
import pytest
import torch

from ideoflow import Ideogram4Pipeline, Ideogram4Transformer2DModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]
PROMPTS = ["a red ball", "x"]
CALL = dict(height=32, width=48, num_inference_steps=2, guidance_schedule=(5.0, 2.0), max_sequence_length=64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(pipe, **kwargs):
    return pipe("x", generator=seeded(), output_type="latent", **{**CALL, **kwargs}).images


@pytest.fixture
def peer(peer_pipeline):
    """The reference pipeline, a copy for each test."""
    pipe = diffusers.Ideogram4Pipeline(**copy.deepcopy(peer_pipeline.components))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", ["encode_prompt", "prepare_latents", "check_inputs"])
def test_methods_have_the_arguments_of_the_reference(name):
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, name)).parameters.values()]
        for cls in (Ideogram4Pipeline, diffusers.Ideogram4Pipeline)
    )

    assert ours == theirs


# encode_prompt


@pytest.mark.parametrize("prompt", ["x", PROMPTS])
@pytest.mark.parametrize("grid", [(1, 1), (3, 2)])
def test_encode_prompt_gives_what_the_reference_gives(pipeline, peer_pipeline, prompt, grid):
    with torch.no_grad():
        theirs = peer_pipeline.encode_prompt(prompt, *grid, 96, torch.device("cpu"))
    ours = pipeline.encode_prompt(prompt, *grid, max_sequence_length=96, device=torch.device("cpu"))

    assert len(ours) == len(theirs) == 4
    assert (ours[0] - theirs[0]).abs().max() <= 1e-4 * theirs[0].abs().max() and ours[0].dtype == theirs[0].dtype
    for own, other in zip(ours[1:], theirs[1:], strict=True):
        assert torch.equal(own, other) and own.dtype == other.dtype


def test_what_encode_prompt_gives_goes_through_the_transformer_as_in_the_reference(pipeline, peer_pipeline):
    features, positions, segments, roles = pipeline.encode_prompt(PROMPTS, 2, 2, 96, torch.device("cpu"))
    latents = torch.randn(*roles.shape, 16, generator=seeded())
    inputs = dict(
        hidden_states=latents,
        timestep=torch.tensor([0.3, 0.7]),
        encoder_hidden_states=features,
        position_ids=positions,
        segment_ids=segments,
        indicator=roles,
    )
    with torch.no_grad():
        ours, theirs = (pipe.transformer(**inputs).sample[:, 96:] for pipe in (pipeline, peer_pipeline))

    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_encode_prompt_refuses_captions_that_are_too_long(pipeline):
    with pytest.raises(ValueError, match=r"more than `max_sequence_length` \(4\)"):
        pipeline.encode_prompt("x", 1, 1, 4, None)


def test_prompt_features_are_the_rows_of_text(pipeline):
    features = pipeline.prompt_features(PROMPTS)
    rows, _, _, roles = pipeline.encode_prompt(PROMPTS, 1, 2, 96, None)

    for own, row, role in zip(features, rows, roles, strict=True):
        assert torch.equal(own, row[role == 3])


# prepare_latents


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("generators", ["one", "one each", "given"])
def test_prepare_latents_gives_what_the_reference_gives(pipeline, peer_pipeline, dtype, generators):
    def arguments():
        generator = {"one": seeded(3), "one each": [seeded(1), seeded(2)], "given": None}[generators]
        latents = torch.randn(2, 6, 16, generator=seeded(4)) if generators == "given" else None
        return 2, 6, 16, dtype, torch.device("cpu"), generator, latents

    ours, theirs = pipeline.prepare_latents(*arguments()), peer_pipeline.prepare_latents(*arguments())

    assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype == dtype
    with pytest.raises(ValueError, match=r"`latents` has shape \(2, 5, 16\)"):
        pipeline.prepare_latents(2, 6, 16, dtype, "cpu", None, torch.zeros(2, 5, 16))


def test_latents_that_were_prepared_draw_as_the_generator_does(pipeline):
    latents = pipeline.prepare_latents(1, 6, 16, torch.float32, "cpu", seeded())

    given = pipeline("x", latents=latents, output_type="latent", **CALL).images

    assert torch.equal(given, draw(pipeline))


# check_inputs

GOOD = dict(
    prompt="x",
    height=32,
    width=32,
    num_inference_steps=2,
    guidance_scale=None,
    guidance_schedule=(5.0, 2.0),
    callback_on_step_end_tensor_inputs=["latents"],
)
BAD = [
    dict(prompt=None),
    dict(prompt=5),
    dict(height=40),
    dict(width=33),
    dict(guidance_scale=3.0),
    dict(guidance_schedule=None),
    dict(guidance_schedule=(1.0,)),
    dict(num_inference_steps=3),
    dict(callback_on_step_end_tensor_inputs=["noise"]),
]


def test_check_inputs_takes_what_the_reference_takes(pipeline, peer_pipeline):
    assert pipeline.check_inputs(**GOOD) is None and peer_pipeline.check_inputs(**GOOD) is None


@pytest.mark.parametrize("bad", BAD)
def test_check_inputs_refuses_what_the_reference_refuses(pipeline, peer_pipeline, bad):
    with pytest.raises(ValueError):
        peer_pipeline.check_inputs(**{**GOOD, **bad})
    with pytest.raises((ValueError, TypeError), match=f"`{next(iter(bad))}`|guidance"):
        pipeline.check_inputs(**{**GOOD, **bad})


def test_each_call_begins_with_the_checks_of_a_subclass(pipeline):
    class Careful(Ideogram4Pipeline):
        def check_inputs(self, prompt, height, width, *args, **kwargs):
            super().check_inputs(prompt, height, width, *args, **kwargs)
            if "cat" in prompt:
                raise ValueError("no cats")

    careful = Careful(**pipeline.components)

    with pytest.raises(ValueError, match="no cats"):
        careful("a cat", **CALL)
    assert torch.equal(draw(careful), draw(pipeline))


@pytest.mark.parametrize("name", ["encode_prompt", "prepare_latents"])
def test_a_subclass_whose_own_method_would_never_be_called_is_refused(name):
    with pytest.raises(TypeError, match=f"Own has its own `{name}`, that no call uses: pass"):
        type("Own", (Ideogram4Pipeline,), {name: lambda self, *args: None})


# from_pipe


def test_a_pipeline_over_that_of_the_reference_has_its_weights_and_draws_its_pictures(peer):
    pipe = Ideogram4Pipeline.from_pipe(peer)
    pipe.set_progress_bar_config(disable=True)

    for name in ("transformer", "unconditional_transformer"):
        own, theirs = dict(getattr(pipe, name).named_parameters()), dict(getattr(peer, name).named_parameters())
        assert type(getattr(pipe, name)) is Ideogram4Transformer2DModel
        assert own.keys() == theirs.keys() and all(own[key] is theirs[key] for key in own)
    for name in ("vae", "text_encoder", "tokenizer", "scheduler"):
        assert getattr(pipe, name) is getattr(peer, name)
    assert not pipe.transformer.training
    ours, theirs = draw(pipe), draw(peer)
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_what_changes_the_weights_of_one_changes_those_of_the_other(peer):
    pipe = Ideogram4Pipeline.from_pipe(peer)
    pipe.set_progress_bar_config(disable=True)
    before = draw(pipe)
    with torch.no_grad():
        peer.transformer.layers[0].attention.to_q.weight.mul_(2)
        peer.transformer.llm_cond_proj.weight.mul_(2)
    changed, theirs = draw(pipe), draw(peer)

    assert (changed - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (changed - before).abs().max() > 1e-3 * before.abs().max()
    pipe.to(torch.float64)
    assert peer.transformer.dtype == torch.float64


def test_from_pipe_leaves_types_alone_unless_one_is_asked_for(peer):
    peer.to(torch.bfloat16)

    assert Ideogram4Pipeline.from_pipe(peer).transformer.dtype == torch.bfloat16
    assert Ideogram4Pipeline.from_pipe(peer, dtype=torch.float32).transformer.dtype == torch.float32
    assert Ideogram4Pipeline.from_pipe(peer, torch_dtype=torch.float64).vae.dtype == torch.float64


def test_from_pipe_of_our_own_keeps_its_options_and_takes_other_components(pipeline):
    own = Ideogram4Pipeline(**pipeline.components, text_encoder_taps=range(1, 14), side_limits=(32, 64))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    twin = Ideogram4Pipeline.from_pipe(own, scheduler=scheduler, unconditional_transformer=None)

    assert twin.taps == tuple(range(1, 14)) and list(twin.config.side_limits) == [32, 64]
    assert twin.transformer is own.transformer and twin.scheduler is scheduler
    assert twin.unconditional_transformer is None


def test_from_pipe_names_what_cannot_be_shared(peer, pipeline):
    with pytest.raises(TypeError, match="no argument `vea`: did you mean `vae`"):
        Ideogram4Pipeline.from_pipe(peer, vea=None)
    with pytest.raises(ValueError, match="is a Ideogram4Pipeline without transformer: pass them too"):
        Ideogram4Pipeline.from_pipe(pipeline, transformer=None)
    peer.transformer.load_lora_adapter(
        {
            "layers.0.attention.to_q.lora_A.weight": torch.ones(2, 32),
            "layers.0.attention.to_q.lora_B.weight": torch.ones(32, 2),
        },
        prefix=None,
    )
    with pytest.raises(ValueError, match="`transformer` has adapters: unload them first"):
        Ideogram4Pipeline.from_pipe(peer)
    peer.transformer.unload_lora()
    peer.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="`transformer` is offloaded"):
        Ideogram4Pipeline.from_pipe(peer)
    peer.remove_all_hooks()
    peer.transformer.layers[0].attention.to_q = torch.nn.Identity()
    with pytest.raises(ValueError, match="`transformer` has layers that are not the published model's"):
        Ideogram4Pipeline.from_pipe(peer)


def test_the_automatic_pipeline_of_diffusers_is_its_own(pipeline):
    """Its table has one class for each name, and no way to put another there but to change the table."""
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    assert AUTO_TEXT2IMAGE_PIPELINES_MAPPING["ideogram4"] is diffusers.Ideogram4Pipeline

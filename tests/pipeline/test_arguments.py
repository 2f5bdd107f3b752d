"""Arguments that users of other pipelines bring: each is refused with what there is instead."""

import inspect
import warnings

import diffusers
import pytest
import torch

from ideoflow import Caption, Ideogram4Pipeline, sketch
from ideoflow.model.attention import Ideogram4AttnProcessor
from ideoflow.pipeline.unknown_arguments import INSTEAD, explain
from ideoflow.presets import Preset

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]
CALL = dict(prompt="x", height=32, width=32, num_inference_steps=2, guidance_schedule=(5.0, 2.0))
OTHERS = (
    "Flux",
    "StableDiffusionXL",
    "StableDiffusion3",
    "QwenImage",
    "StableDiffusionXLInpaint",
    "StableDiffusionXLImg2Img",
)


@pytest.mark.parametrize("name", INSTEAD)
def test_arguments_of_other_pipelines_are_answered_with_what_there_is_instead(loaded_pipeline, name):
    with pytest.raises(TypeError, match=rf"no argument `{name}`: .*\w{{3}}"):
        loaded_pipeline(**CALL, **{name: None})


@pytest.mark.parametrize("other", OTHERS)
def test_every_argument_of_other_pipelines_of_diffusers_is_known_here_or_explained(other):
    theirs = inspect.signature(getattr(diffusers, f"{other}Pipeline").__call__).parameters
    ours = inspect.signature(Ideogram4Pipeline.__call__).parameters

    for name in [name for name in theirs if name not in ours and name not in ("self", "kwargs")]:
        assert name in INSTEAD or "no negative prompt" in explain(name, ours), name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("num_inference_step", "num_inference_steps"),
        ("promt", "prompt"),
        ("heigth", "height"),
        ("guidance_schedul", "guidance_schedule"),
        ("generators", "generator"),
        ("attention_kwarg", "attention_kwargs"),
    ],
)
def test_misspelt_arguments_are_answered_with_the_one_that_was_meant(loaded_pipeline, given, meant):
    with pytest.raises(TypeError, match=f"no argument `{given}`: did you mean `{meant}`"):
        loaded_pipeline(**CALL, **{given: None})
    with pytest.raises(TypeError, match=f"no argument `{given}`: did you mean `{meant}`"):
        loaded_pipeline.make_requests(**CALL, **{given: None})


def test_what_is_like_nothing_is_answered_with_all_there_is():
    assert explain("xyzzy", ["prompt", "size"]) == ("There is no argument `xyzzy`: the arguments are `prompt`, `size`.")


@pytest.mark.parametrize("given", [{"scal": 0.5}, {"scale": 0.5, "lora_scale": 1}, {"ip_adapter_masks": None}])
def test_entries_of_attention_kwargs_that_nothing_reads_are_refused(loaded_pipeline, given):
    with pytest.raises(ValueError, match=r"`attention_kwargs` holds .*, which nothing here reads: the one key is"):
        loaded_pipeline.make_requests(**CALL, attention_kwargs=given)
    with pytest.raises(TypeError, match=r"`attention_kwargs` is 0\.5: give a mapping"):
        loaded_pipeline.make_requests(**CALL, attention_kwargs=0.5)


def test_processors_of_ones_own_may_read_any_entry_of_attention_kwargs(pipeline):
    class Own(Ideogram4AttnProcessor):
        pass

    pipeline.transformer.set_attn_processor(Own())
    assert pipeline.make_requests(**CALL, attention_kwargs={"note": 5})


# The bundled model


@pytest.fixture(scope="module")
def bundled():
    return sketch.load()


@pytest.mark.filterwarnings("default::ideoflow.captions.CaptionWarning")
@pytest.mark.parametrize(
    ("prompt", "warned"),
    [
        (Caption.from_text("a red heart"), True),
        ("a red heart", True),
        (
            '{"compositional_deconstruction":{"background":"plain pink","elements":[{"type":"obj","desc":"a cup"}]}}',
            True,
        ),
        ('{"compositional_deconstruction":{"background":"plain pink","elements":[]}}', False),
        (Caption.parse("examples/captions/heart.json"), False),
    ],
)
def test_captions_of_which_the_bundled_model_draws_an_empty_field_are_warned_about(bundled, prompt, warned):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        bundled.make_requests(**{**CALL, "prompt": prompt})
    said = [str(one.message) for one in heard if "the bundled model draws elements with a box" in str(one.message)]
    assert len(said) == warned


# Guidance


@pytest.mark.parametrize(
    ("guidance", "said"),
    [(-1.0, "guidance of -1 leads away from the caption"), (0.0, "guidance of 0 draws without the caption")],
)
def test_guidance_that_leaves_the_caption_is_warned_about(loaded_pipeline, guidance, said):
    with pytest.warns(UserWarning, match=f"{said}.*1 is no guidance"):
        loaded_pipeline.make_requests(**{**CALL, "guidance_schedule": (5.0, guidance)})
    with pytest.warns(UserWarning, match=said):
        loaded_pipeline.make_requests(**{**CALL, "guidance_scale": guidance, "guidance_schedule": None})
    with pytest.warns(UserWarning, match=said):
        loaded_pipeline.make_requests("x", 32, 32, preset=Preset("mine", 1, (guidance,), 0.0, 1.0))


@pytest.mark.parametrize("guidance", [0.5, 1.0, 7.0])
def test_guidance_above_zero_is_taken_without_a_word(loaded_pipeline, recwarn, guidance):
    loaded_pipeline.make_requests(**{**CALL, "guidance_schedule": (guidance, guidance)})

    assert not [warning for warning in recwarn if "guidance" in str(warning.message)]


# Schedulers of one's own


class OwnStep(diffusers.FlowMatchEulerDiscreteScheduler):
    def step(self, model_output, timestep, sample, **kwargs):
        return (sample * 0.5,)


class OwnPlace(diffusers.FlowMatchEulerDiscreteScheduler):
    def index_for_timestep(self, timestep, schedule_timesteps=None):
        return 0


class OwnIndex(diffusers.FlowMatchEulerDiscreteScheduler):
    step_index = property(lambda self: 0)


class OwnLevels(diffusers.FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, *args, sigmas=None, **kwargs):
        super().set_timesteps(*args, sigmas=[sigma**2 for sigma in sigmas], **kwargs)


@pytest.mark.parametrize(
    ("scheduler", "name"), [(OwnStep, "step"), (OwnPlace, "index_for_timestep"), (OwnIndex, "step_index")]
)
def test_a_scheduler_whose_own_steps_would_never_be_taken_is_refused(pipeline, scheduler, name):
    pipeline.scheduler = scheduler()

    with pytest.raises(ValueError, match=f"`scheduler` is a {scheduler.__name__} with its own `{name}`, which would"):
        pipeline(**CALL)


@pytest.mark.parametrize("name", ["step", "set_timesteps"])
def test_a_scheduler_with_a_method_put_in_by_hand_is_refused(pipeline, name):
    setattr(pipeline.scheduler, name, lambda *args, **kwargs: None)

    with pytest.raises(ValueError, match=f"with its own `{name}`"):
        pipeline(**CALL)


@pytest.mark.parametrize("made", ["its own set_timesteps", "set_shift"])
def test_noise_levels_of_ones_own_count_as_in_the_reference(pipeline, tiny_folder, made):
    peer = diffusers.Ideogram4Pipeline.from_pretrained(tiny_folder)
    peer.set_progress_bar_config(disable=True)
    call = dict(CALL, output_type="latent", max_sequence_length=64)
    draw = lambda pipe: pipe(**call, generator=torch.Generator().manual_seed(0)).images  # noqa: E731
    plain = draw(pipeline)
    for pipe in (pipeline, peer):
        if made == "set_shift":
            pipe.scheduler.set_shift(3.0)
        else:
            pipe.scheduler = OwnLevels()

    ours, theirs = draw(pipeline), draw(peer)

    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert (ours - plain).abs().max() > 1e-2 * plain.abs().max()
    assert pipeline.scheduler.step_index is None


# One list of arguments


def test_a_call_and_make_requests_share_arguments_and_their_defaults():
    call, make = (
        inspect.signature(getattr(Ideogram4Pipeline, name)).parameters for name in ("__call__", "make_requests")
    )
    shared = [name for name in make if name in call and name not in ("self", "prompt")]

    own = {"prompt_features", "defer", "priority", "adapters", "deadline", "preview_every"}
    assert len(shared) == 18 and {name for name in make if name not in call} == own
    assert [make[name].default for name in shared] == [call[name].default for name in shared]

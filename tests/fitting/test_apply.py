"""Plans carried out: hooks on the right models, pictures unchanged, and what a changed pipeline is told.

Offloading is run with the CPU in the accelerator's place, as far as the hooks of diffusers and accelerate let it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.hooks.group_offloading import _GROUP_OFFLOADING

from ideoflow.fitting import DoesNotFit, Plan, carry_out, plan
from ideoflow.fitting.apply import FreeHook, SwapHook, to_nf4
from ideoflow.fitting.plans import STAYS, STREAMED, SWAPPED, TURNS
from ideoflow.ops import Int8Linear

CALL = dict(height=48, width=64, num_inference_steps=2, guidance_scale=5.0, guidance_schedule=None, output_type="np")
BRANCHES = ("transformer", "unconditional_transformer")


def draw(pipe, prompt="a red dot", pictures=1, **more) -> np.ndarray:
    generators = [torch.Generator().manual_seed(seed) for seed in range(pictures)]
    return pipe(prompt, num_images_per_prompt=pictures, generator=generators, **CALL, **more).images


def made_for(pipe, encoder, branches, clears=False) -> Plan:
    """A plan for an accelerator with these places."""
    base = plan(pipe, "80GB", size=(64, 48), caption_tokens=60)
    places = {"text_encoder": encoder, **dict(zip(BRANCHES, branches, strict=True)), "vae": STAYS}
    return replace(base, places=places, clears=clears)


WAYS = [
    (STAYS, (STAYS, STAYS), False),
    (TURNS, (TURNS, TURNS), False),
    (TURNS, (TURNS, TURNS), True),
    (STREAMED, (STREAMED, STREAMED), False),
    (TURNS, (STREAMED, STREAMED), False),
    (STREAMED, (TURNS, STREAMED), False),
    (STREAMED, (STAYS, STREAMED), False),
    (TURNS, (SWAPPED, SWAPPED), True),
    (STREAMED, (SWAPPED, SWAPPED), False),
]


@pytest.mark.parametrize(("encoder", "branches", "clears"), WAYS, ids=str)
def test_pictures_are_the_same_however_the_weights_come_and_go(pipeline, encoder, branches, clears):
    expected = [draw(pipeline), draw(pipeline, "a blue dot")]
    pipeline.text_cache.clear()
    carry_out(pipeline, made_for(pipeline, encoder, branches, clears), "cpu")
    for prompt, picture in zip(("a red dot", "a blue dot"), expected, strict=True):  # and again, when all has moved
        np.testing.assert_allclose(draw(pipeline, prompt), picture, atol=1e-5)


@pytest.mark.parametrize(("encoder", "branches", "clears"), WAYS, ids=str)
def test_hooks_are_on_the_models_that_move(pipeline, encoder, branches, clears):
    carry_out(pipeline, made_for(pipeline, encoder, branches, clears), "cpu")
    for name, place in zip(("text_encoder", *BRANCHES), (encoder, *branches), strict=True):
        module = getattr(pipeline, name)
        grouped = [part for part in module.modules() if hasattr(part, "_diffusers_hook")]
        hooked = [part for part in grouped if part._diffusers_hook.get_hook(_GROUP_OFFLOADING)]
        assert bool(hooked) == (place == STREAMED)
        if place == STREAMED and name in BRANCHES:
            assert set(module.layers) < set(hooked)
        turn = getattr(module, "_hf_hook", None)
        assert (isinstance(turn, SwapHook) and turn.moves) == (place in (TURNS, SWAPPED))
    leaves = getattr(pipeline.vae, "_hf_hook", None)
    assert bool(leaves and leaves.away) == (clears and any(place in (TURNS, SWAPPED) for place in branches))


class Trace:
    """Where each model would be, from the calls of its hook: the CPU stands for both devices."""

    def __init__(self, pipe, monkeypatch) -> None:
        self.names = {id(getattr(pipe, name)): name for name in ("text_encoder", *BRANCHES, "vae")}
        self.here: set[str] = set()
        self.most: list[set[str]] = []
        plain = SwapHook.pre_forward

        def pre_forward(hook, module, *args, **kwargs):
            self.here -= {self.names[id(other)] for other in hook.away}
            if hook.moves:
                self.here.add(self.names[id(module)])
            self.most.append(set(self.here) | {self.names[id(module)]})
            return plain(hook, module, *args, **kwargs)

        monkeypatch.setattr(SwapHook, "pre_forward", pre_forward)


def test_swapped_transformers_are_never_there_together(pipeline, monkeypatch):
    trace = Trace(pipeline, monkeypatch)
    carry_out(pipeline, made_for(pipeline, TURNS, (SWAPPED, SWAPPED), clears=True), "cpu")
    draw(pipeline), draw(pipeline, "a blue dot")
    assert trace.most and all(len(there) == 1 for there in trace.most)
    assert {"text_encoder"} in trace.most and {"vae"} in trace.most


def test_transformers_that_take_turns_are_there_together_but_not_with_the_text_encoder(pipeline, monkeypatch):
    trace = Trace(pipeline, monkeypatch)
    carry_out(pipeline, made_for(pipeline, TURNS, (TURNS, TURNS)), "cpu")
    draw(pipeline), draw(pipeline, "a blue dot")
    assert set(BRANCHES) in trace.most
    assert all("text_encoder" not in there or len(there) == 1 for there in trace.most)


# On a CPU


def test_fit_on_a_cpu_leaves_a_pipeline_alone_that_fits(pipeline):
    expected = draw(pipeline)
    made = pipeline.fit_memory("4GB", device="cpu", size=(64, 48), caption_tokens=60)
    assert made is pipeline.plan and not made.losses and made.max_tokens is None
    np.testing.assert_array_equal(draw(pipeline), expected)


def test_fit_reads_what_is_free(pipeline):
    assert pipeline.fit_memory(device="cpu", size=(64, 48)).memory > 10**8


def test_fit_rounds_float32_where_it_must(pipeline):
    options = dict(device="cpu", size=(64, 48), caption_tokens=8)
    exact = plan(pipeline, "4GB", **options, allow=())
    made = pipeline.fit_memory(exact.needed - 10**4, **options, allow=["bfloat16"])
    assert made.cast == "bfloat16" and made.losses
    assert all(getattr(pipeline, name).dtype == torch.bfloat16 for name in ("text_encoder", *BRANCHES, "vae"))
    assert np.isfinite(draw(pipeline)).all()


def test_blocks_are_put_into_int8_on_top_of_bfloat16(pipeline):
    made = plan(pipeline, "4GB", device="cpu", size=(64, 48), quantize="int8")
    carry_out(pipeline, replace(made, cast="bfloat16"), "cpu")
    for name in BRANCHES:
        layers = [part for part in getattr(pipeline, name).layers.modules() if isinstance(part, torch.nn.Linear)]
        assert sum(isinstance(layer, Int8Linear) for layer in layers) == 7 * len(getattr(pipeline, name).layers)
    assert pipeline.transformer.dtype == torch.bfloat16 and np.isfinite(draw(pipeline)).all()


def test_passes_are_split_by_default_after_fit(pipeline, monkeypatch):
    from ideoflow.engine import Denoiser

    expected, passes, plain = draw(pipeline, pictures=3), [], Denoiser.compute
    made = plan(pipeline, "4GB", device="cpu", size=(64, 48), caption_tokens=60, pictures=3)
    carry_out(pipeline, replace(made, per_pass=1, per_decode=1), "cpu")
    monkeypatch.setattr(
        Denoiser, "compute", lambda self, requests: (passes.append(len(requests)), plain(self, requests))[1]
    )
    np.testing.assert_allclose(draw(pipeline, pictures=3), expected, atol=1e-5)
    assert passes == [1] * 6 and pipeline.vae.use_slicing
    passes.clear()
    draw(pipeline, pictures=3, max_tokens=10**6)  # what the caller says goes before the plan
    assert passes == [3, 3]


def test_tiles_are_cut_even_below_the_autoencoders_own_size(pipeline, monkeypatch):
    made = plan(pipeline, "4GB", device="cpu", size=(64, 48), caption_tokens=60)
    expected = draw(pipeline)
    carry_out(pipeline, replace(made, tile=32), "cpu")
    shapes, plain = [], pipeline.vae.decoder.forward
    monkeypatch.setattr(pipeline.vae.decoder, "forward", lambda z: (shapes.append(z.shape[-2:]), plain(z))[1])
    picture = draw(pipeline)
    assert picture.shape == expected.shape and len(shapes) == len(made.call.tiles(32)) and max(shapes) == (4, 4)
    assert np.abs(picture - expected).max() > 1e-4  # it is a loss, as the plan says


def test_the_text_encoder_goes_after_the_first_captions_when_asked(pipeline):
    expected = draw(pipeline)
    pipeline.text_cache.clear()
    made = pipeline.fit_memory("4GB", device="cpu", size=(64, 48), caption_tokens=60, free_text_encoder=True)
    assert isinstance(pipeline.text_encoder._hf_hook, FreeHook) and made.places["text_encoder"] == "let go"
    np.testing.assert_array_equal(draw(pipeline), expected)
    assert sum(parameter.numel() for parameter in pipeline.text_encoder.parameters()) == 0
    np.testing.assert_array_equal(draw(pipeline), expected)  # embedded captions are kept
    with pytest.raises(RuntimeError, match="let go after the first captions"):
        draw(pipeline, "a blue dot")


# Errors


def test_fit_twice_is_refused(pipeline):
    pipeline.fit_memory("4GB", device="cpu", size=(64, 48))
    with pytest.raises(RuntimeError, match="fitted already"):
        pipeline.fit_memory("8GB", device="cpu", size=(64, 48))


def test_a_refused_fit_changes_nothing(pipeline):
    with pytest.raises(DoesNotFit):
        pipeline.fit_memory("601MB", device="cpu", size=(64, 48))
    assert pipeline.plan is None and pipeline.fit_memory("4GB", device="cpu", size=(64, 48))


def test_fit_after_compile_or_offloading_is_refused(pipeline):
    pipeline.compile()
    with pytest.raises(RuntimeError, match="compiled already"):
        pipeline.fit_memory("4GB", device="cpu")


def test_fit_after_offloading_is_refused(pipeline):
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(RuntimeError, match="offloaded already"):
        pipeline.fit_memory("4GB", device="cpu")


def test_a_pipeline_quantized_already_is_fitted_as_it_is(pipeline):
    pipeline.quantize("int8")
    with pytest.raises(ValueError, match="quantized already"):
        plan(pipeline, "4GB", quantize="int8")
    made = pipeline.fit_memory("4GB", device="cpu", size=(64, 48), caption_tokens=60)
    assert made.precision is None and not made.losses and "float32, quantized" in str(made)


def test_the_old_names_still_work_and_say_the_new_ones(pipeline):
    from ideoflow import fitting

    with pytest.warns(FutureWarning, match=r"`pipe\.fit` is called `pipe\.fit_memory` now") as said:
        made = pipeline.fit("4GB", device="cpu", size=(64, 48))
    assert pipeline.plan is made and said[0].filename == __file__
    with pytest.warns(FutureWarning, match=r"`ideoflow\.fitting\.fit_memory` now") as said:
        assert fitting.fit is fitting.fit_memory
    assert said[0].filename == __file__


# nf4


def test_nf4_rounds_the_blocks_linear_layers():
    pytest.importorskip("bitsandbytes")
    from ideoflow import sketch

    pipe = sketch.load(torch.bfloat16)
    x = torch.randn(3, pipe.transformer.hidden_size, dtype=torch.bfloat16)
    exact = pipe.transformer.layers[0].attention.to_q(x)
    names = to_nf4(pipe.transformer)
    pipe.transformer.to("cpu")
    assert len(names) == 7 * len(pipe.transformer.layers)
    off = (pipe.transformer.layers[0].attention.to_q(x) - exact).norm() / exact.norm()
    assert 0.01 < off < 0.3


def test_nf4_without_bitsandbytes_is_refused(pipeline, monkeypatch):
    monkeypatch.setattr("ideoflow.fitting.apply.has_bitsandbytes", lambda: False)
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        to_nf4(pipeline.transformer)

"""Arguments of `prompt_upsampling` that would do nothing are said to."""

from __future__ import annotations

import warnings

import pytest

from ideoflow import Ideogram4Pipeline
from ideoflow.captions import Caption, CaptionWarning
from ideoflow.captions.writing import Written


@pytest.fixture
def writing(pipeline: Ideogram4Pipeline, monkeypatch: pytest.MonkeyPatch) -> Ideogram4Pipeline:
    monkeypatch.setattr(pipeline, "caption_writer", lambda words, size: Written(Caption.from_text(words), "me"))
    return pipeline


def test_what_has_no_effect_on_another_writer_is_said(writing: Ideogram4Pipeline):
    with pytest.warns(CaptionWarning, match="`temperature` and `layout` have no effect where `caption_writer` writes"):
        writing.upsample_prompt("rain", 32, 32, temperature=0.5, layout=False)
    with pytest.warns(CaptionWarning, match="`grammar` has no effect"):
        writing.upsample_prompt("rain", 32, 32, grammar="start: /a/")


def test_what_diffusers_gives_unasked_is_no_reason_for_a_warning(writing: Ideogram4Pipeline):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptionWarning)
        writing.upsample_prompt("rain", 32, 32, 1.0, 1024, None, "cpu")


def test_a_temperature_without_a_writer_is_said_to_have_no_effect(pipeline: Ideogram4Pipeline):
    call = {"height": 32, "width": 32, "num_inference_steps": 1, "guidance_scale": 2.0, "guidance_schedule": None}
    with pytest.warns(UserWarning, match="`prompt_upsampling_temperature` has no effect without"):
        pipeline("rain", prompt_upsampling_temperature=0.5, output_type="latent", **call)

"""Memory that runs out: known by whatever library says so, met with what changes no picture, and else explained."""

import errno
import logging

import pytest
import torch

from ideoflow.engine.out_of_memory import NotEnoughMemory, out_of_memory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*outside what the weights were trained on"),
    pytest.mark.filterwarnings("ignore::ideoflow.captions.CaptionWarning"),
]
ONEDNN = "could not create a primitive"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(ONEDNN),
        RuntimeError("could not create a memory object"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_ran_out_is_known_by_what_libraries_say(error):
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive descriptor for a matmul primitive"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not out_of_memory(error)


def failing(monkeypatch, pipeline, fails, message=ONEDNN):
    """Let the autoencoder run out of memory for latents for which `fails` says so."""
    plain = pipeline.vae.decode

    def decode(latents, *args, **kwargs):
        if fails(latents):
            raise RuntimeError(message)
        return plain(latents, *args, **kwargs)

    monkeypatch.setattr(pipeline.vae, "decode", decode)


CALL = dict(height=32, width=32, num_inference_steps=1, guidance_schedule=(3.0,), output_type="pt")


def test_pictures_that_do_not_fit_together_are_decoded_one_by_one(pipeline, monkeypatch, caplog):
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    expected = pipeline(["a", "b", "c"], generator=generators, **CALL).images
    failing(monkeypatch, pipeline, lambda latents: len(latents) > 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]

    with caplog.at_level(logging.WARNING):
        images = pipeline(["a", "b", "c"], generator=generators, **CALL).images

    assert torch.allclose(images, expected, atol=1e-5)
    assert "3 pictures were decoded: they are decoded one by one" in caplog.text


def test_a_picture_that_cannot_be_decoded_leaves_its_latents_and_says_what_to_do(pipeline, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    expected = pipeline("a", generator=generator, **CALL).images
    with monkeypatch.context() as patch:
        failing(patch, pipeline, lambda latents: True)
        with pytest.raises(
            NotEnoughMemory, match=r"32 x 32 pixels was decoded.*enable_tiling.*decode_requests"
        ) as caught:
            pipeline("a", generator=torch.Generator().manual_seed(0), **CALL)

    assert isinstance(caught.value, torch.OutOfMemoryError) and str(caught.value.__cause__) == ONEDNN
    assert torch.equal(pipeline.decode_requests(caught.value.requests, "pt"), expected)


def test_other_errors_of_decoding_come_as_they_are(pipeline, monkeypatch):
    failing(monkeypatch, pipeline, lambda latents: True, "something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        pipeline("a", **CALL)


def test_an_engine_tries_to_decode_again_and_then_tells_what_to_do(pipeline, monkeypatch):
    tries = []
    failing(monkeypatch, pipeline, lambda latents: tries.append(1) is None)
    engine = pipeline.engine(output_type="pt")
    (request,) = pipeline.make_requests("a", 32, 32, 1, guidance_schedule=(3.0,))
    engine.add(request)

    (failed,) = [event for event in engine.run() if event.kind == "failed"]

    assert len(tries) == 2
    assert isinstance(failed.error, NotEnoughMemory) and failed.error.requests == [request]


def test_a_step_that_does_not_fit_alone_says_what_to_do(pipeline, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError(ONEDNN)

    monkeypatch.setattr(pipeline.transformer, "velocity", fail)

    with pytest.raises(NotEnoughMemory, match=r"a step of one picture of 2 x 2 tokens by itself: draw a smaller one"):
        pipeline("a", **CALL)


def test_a_pass_that_onednn_has_no_memory_for_is_taken_in_halves(pipeline, monkeypatch, caplog):
    plain = pipeline.transformer.velocity

    def velocity(latents, *args, **kwargs):
        if len(latents) > 4:
            raise RuntimeError(ONEDNN)
        return plain(latents, *args, **kwargs)

    monkeypatch.setattr(pipeline.transformer, "velocity", velocity)

    assert len(pipeline(["a", "b"], **CALL).images) == 2
    assert "from now on a pass has at most" in caplog.text

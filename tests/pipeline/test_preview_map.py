"""Previews by a linear map of the latents: near to the decoder's picture, quick, and fitted once for an autoencoder."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow import latents, sketch
from ideoflow.ops.weights import contents_digest
from ideoflow.pipeline import PreviewMap, preview_map, preview_map_of
from ideoflow.sketch import world
from tests.small import autoencoder

STEPS = (3, 6, 10)


@pytest.fixture(scope="module")
def pipe():
    """The bundled model. Shared: do not change it."""
    pipe = sketch.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def fitted(pipe):
    return PreviewMap.fit(pipe.vae)


@pytest.fixture
def fits(monkeypatch):
    """How often a map is fitted."""
    done, fit = [], PreviewMap.fit
    monkeypatch.setattr(PreviewMap, "fit", lambda vae: (done.append(vae), fit(vae))[1])
    monkeypatch.setattr("ideoflow.pipeline.preview_map._fitted", {})
    return done


def make_vae():
    return autoencoder(sample_size=64)


def make_published(sample_size=64):
    """An autoencoder with the published one's latents and depth, and few channels between."""
    torch.manual_seed(3)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=32, norm_num_groups=4,
        mid_block_add_attention=False, sample_size=sample_size,
    ).eval()  # fmt: skip
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 4.0)
    return vae


def averaged(vae, picture):
    """One colour for each latent pixel of a picture `(3, height, width)` in [-1, 1]."""
    return torch.nn.functional.avg_pool2d(picture.clamp(-1, 1), latents.scale_factor(vae))


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1


def levels(found, expected):
    """Mean absolute difference in grey levels."""
    return 127.5 * float((found.clamp(-1, 1) - expected).abs().mean())


def random_map(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, 6, channels + 1, generator=generator) / channels**0.5
    return PreviewMap(draw[..., :-1].contiguous(), draw[..., -1].contiguous())


# How near it comes


def test_a_preview_of_an_encoded_picture_is_near_to_the_decoders(pipe, fitted):
    errors, plain = [], []
    for index in range(6):
        image = world.sample(index, split="held_out").image
        grid = (image.height // 16, image.width // 16)
        (tokens,) = latents.encode(pipe.vae, [image])
        target = averaged(pipe.vae, latents.decode(pipe.vae, [tokens], [grid])[0])
        errors.append(levels(fitted.pixels(tokens, grid), target))
        plain.append(levels(target.mean((1, 2), keepdim=True).expand_as(target), target))

    assert np.mean(errors) < 15 and np.mean(errors) < np.mean(plain) / 2


def test_a_preview_of_a_picture_in_the_making_is_near_to_the_decoders(pipe, fitted):
    errors = {step: [] for step in STEPS}
    for index in range(3):
        sample = world.sample(index, split="held_out", size=(112, 96))
        engine = pipe.engine()
        (request,) = pipe.make_requests(
            sample.caption, size=(112, 96), preset="V4_TURBO_12", guidance_scale=sketch.GUIDANCE,
            generator=torch.Generator().manual_seed(index),
        )  # fmt: skip
        engine.add(request)
        for event in engine.run():
            if event.kind == "step" and event.step in STEPS:
                (picture,) = latents.decode(pipe.vae, [request.estimate], [request.grid])
                found = fitted.pixels(request.estimate, request.grid)
                errors[event.step].append(levels(found, averaged(pipe.vae, picture)))

    assert all(np.mean(own) < 25 for own in errors.values()), errors


@pytest.mark.parametrize("make", [make_vae, make_published])
def test_it_can_be_fitted_to_any_autoencoder_of_the_kind(make, monkeypatch):
    """Of random weights, whose latents tell little of colours, and yet that little: more than one colour does."""
    monkeypatch.setattr(preview_map, "NOISE", 0.0)
    vae, images = make(), preview_map._pictures()
    fitted = PreviewMap.fit(vae)
    found = torch.stack([fitted.pixels(tokens, (8, 8)) for tokens in latents.encode(vae, images)])
    expected = torch.stack([averaged(vae, pixels_of(image)) for image in images])

    assert fitted.channels == vae.config.latent_channels
    assert (found - expected).square().mean() < 0.99 * expected.var((0, 2, 3), unbiased=False).mean()


@pytest.mark.parametrize("kind", ["bfloat16", "tiling", "slicing", "offloaded"])
def test_types_tiles_and_hooks_change_little(kind, monkeypatch):
    monkeypatch.setattr(preview_map, "PICTURES", 4)
    vae, image = sketch.load().vae, world.sample(2, split="held_out", size=(160, 112)).image
    (tokens,) = latents.encode(vae, [image])
    expected = PreviewMap.fit(vae).pixels(tokens, (7, 10))
    if kind == "bfloat16":
        vae.to(torch.bfloat16)
    elif kind == "tiling":
        vae.enable_tiling(), vae.register_to_config(sample_size=64)
        vae.tile_sample_min_size, vae.tile_latent_min_size = 64, 8
    elif kind == "slicing":
        vae.enable_slicing()
    else:
        vae.enable_group_offload("cpu", "cpu", offload_type="leaf_level")

    assert levels(PreviewMap.fit(vae).pixels(tokens, (7, 10)), expected) < (4 if kind == "tiling" else 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_fitted_and_applied_on_a_device(pipe, fitted, dtype):
    vae, tokens = sketch.load().vae.to("cuda", dtype), torch.randn(77, 32)
    own = PreviewMap.fit(vae)

    assert own.pixels(tokens.cuda(), (7, 11)).device.type == "cuda"
    assert levels(own.pixels(tokens.cuda(), (7, 11)).cpu(), fitted.pixels(tokens, (7, 11)).clamp(-1, 1)) < 2
    assert own.rgb(tokens.cuda(), (7, 11)).size == (22, 14)


def test_a_fit_is_the_same_each_time_and_leaves_random_numbers_alone(pipe, fitted):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = PreviewMap.fit(pipe.vae)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(again.weight, fitted.weight, atol=1e-5) and torch.allclose(again.bias, fitted.bias, atol=1e-5)


def test_latents_that_are_not_finite_are_refused():
    vae = make_vae()
    vae.encoder.conv_in.weight.data.mul_(float("inf"))
    with pytest.raises(FloatingPointError, match="latents of pictures are not finite"):
        PreviewMap.fit(vae)


# What it computes


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 5), channels=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_pixel_has_its_latents_colours_and_the_mean_of_those_around(rows, cols, channels, seed):
    """Pixel by pixel; what lies outside is as the border."""
    own = random_map(channels, seed)
    tokens = torch.randn(rows * cols, 4 * channels, generator=torch.Generator().manual_seed(seed))
    height, width = 2 * rows, 2 * cols
    given_ = torch.zeros(6, height, width)
    for y in range(height):
        for x in range(width):
            part = y % 2 * 2 + x % 2
            latent = tokens[y // 2 * cols + x // 2, part * channels : (part + 1) * channels]
            given_[:, y, x] = own.weight[part] @ latent + own.bias[part]
    found = own.pixels(tokens, (rows, cols))

    assert found.shape == (3, height, width) and found.dtype == torch.float32
    for y in range(height):
        for x in range(width):
            around = [
                given_[3:, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                for dy in (-1, 0, 1) for dx in (-1, 0, 1)
            ]  # fmt: skip
            expected = given_[:3, y, x] + torch.stack(around).mean(0)
            assert torch.allclose(found[:, y, x], expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), scale=st.sampled_from([0.3, 1.0, 30.0]))
def test_a_picture_has_a_pixel_for_each_latent_one(rows, cols, scale):
    own, tokens = random_map(3), scale * torch.randn(rows * cols, 12)
    image = own.rgb(tokens, (rows, cols))
    expected = (own.pixels(tokens, (rows, cols)).clamp(-1, 1) + 1) * 127.5

    assert image.mode == "RGB" and image.size == (2 * cols, 2 * rows)
    assert np.abs(np.array(image) - expected.permute(1, 2, 0).numpy()).max() <= 0.5 + 1e-3


def test_tokens_of_any_type_and_view_will_do(fitted):
    tokens = torch.randn(12, 32)
    expected = np.array(fitted.rgb(tokens, (3, 4)), dtype=float)
    for other in (tokens.double(), tokens.bfloat16(), tokens.T.contiguous().T, tokens.requires_grad_()):
        assert np.abs(np.array(fitted.rgb(other, (3, 4)), dtype=float) - expected).mean() < 1


@pytest.mark.parametrize("shape", [(12,), (11, 32), (12, 31), (12, 128), (1, 12, 32), (0, 32)])
def test_tokens_that_do_not_fill_the_grid_are_refused(fitted, shape):
    with pytest.raises(ValueError, match=r"`tokens` has shape .*need \(12, 32\)"):
        fitted.rgb(torch.randn(shape), (3, 4))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_there_is_no_picture_of_what_is_not_finite(fitted, number):
    tokens = torch.randn(12, 32)
    tokens[5, 7] = number
    with pytest.raises(FloatingPointError, match="not finite"):
        fitted.rgb(tokens, (3, 4))


# Its file


def test_a_file_gives_the_same_map(fitted, tmp_path):
    fitted.save(tmp_path / "maps" / "own.json")
    read = PreviewMap.load(tmp_path / "maps" / "own.json")

    assert torch.equal(read.weight, fitted.weight) and torch.equal(read.bias, fitted.bias)


def content(**changes):
    own = random_map(3)
    return {"form": "ideoflow preview map 1", "weight": own.weight.tolist(), "bias": own.bias.tolist()} | changes


DAMAGED = {
    "empty": "",
    "cut off": json.dumps(content())[:200],
    "no JSON": "weights",
    "no text": b"\xff\xfe\x00",
    "a list": "[1, 2]",
    "another form": json.dumps(content(form="ideoflow preview map 2")),
    "no weight": json.dumps({"form": "ideoflow preview map 1", "bias": [[0.0] * 6] * 4}),
    "words": json.dumps(content(bias=[["a"] * 6] * 4)),
    "null": json.dumps(content(weight=None)),
    "ragged": json.dumps(content(bias=[[0.0] * 6] * 3 + [[0.0]])),
    "a shape of its own": json.dumps(content(bias=[[0.0] * 3] * 4)),
    "a number": json.dumps(content(weight=1.0)),
    "no channels": json.dumps(content(weight=[[[]] * 6] * 4)),
    "not a number": json.dumps(content(bias=[[float("nan")] * 6] * 4)),
    "infinite": json.dumps(content(bias=[[float("inf")] * 6] * 4)),
    "too large for float32": json.dumps(content(bias=[[1e300] * 6] * 4)),
    "a whole number of 500 digits": json.dumps(content(bias=[[10**500] * 6] * 4)),
    "nested": "[" * 100_000,
    "too long": " " * 2**20 + json.dumps(content()),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_file_that_is_no_map_is_refused_by_its_name(kind, tmp_path):
    path, data = tmp_path / "own.json", DAMAGED[kind]
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(ValueError, match=r"own\.json is no preview map that can be used: .* PreviewMap\.fit"):
        PreviewMap.load(path)


def test_a_folder_is_no_map(tmp_path):
    with pytest.raises(ValueError, match="is no preview map"):
        PreviewMap.load(tmp_path)


# Fitted once


def test_a_map_is_fitted_once_and_kept_in_the_folder(fits, tmp_path):
    vae, folder = make_vae(), tmp_path / "maps"
    first = preview_map_of(vae, folder)
    again = preview_map_of(make_vae(), folder)  # of the same weights

    assert len(fits) == 1 and [path.suffix for path in folder.iterdir()] == [".json"]
    assert torch.equal(first.weight, again.weight)


def test_without_a_folder_a_map_is_fitted_once_in_a_process(fits):
    assert preview_map_of(make_vae()) is preview_map_of(make_vae())
    assert len(fits) == 1


def test_other_weights_or_another_configuration_have_a_map_of_their_own(fits, tmp_path):
    vaes = [make_vae() for _ in range(4)]
    vaes[1].encoder.conv_out.weight.data[0, 0, 0, 0] += 1
    vaes[2].bn.running_var[3] *= 2
    vaes[3].register_to_config(batch_norm_eps=0.5)
    for vae in vaes:
        preview_map_of(vae, tmp_path)

    assert len(fits) == len(list(tmp_path.iterdir())) == 4


@pytest.mark.long
def test_a_digest_is_the_same_in_every_process_and_wherever_the_files_lie(tmp_path):
    make_vae().save_pretrained(tmp_path / "here")
    here = AutoencoderKLFlux2.from_pretrained(tmp_path / "here")
    code = (
        "from diffusers import AutoencoderKLFlux2; from ideoflow.ops.weights import contents_digest;"
        "print(contents_digest(AutoencoderKLFlux2.from_pretrained('there')))"
    )
    (tmp_path / "here").rename(tmp_path / "there")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert done.stdout.split()[-1] == contents_digest(here) == contents_digest(make_vae())


@pytest.mark.parametrize("damage", ["cut off", "of another autoencoder", "a folder"])
def test_a_file_that_does_not_serve_is_fitted_anew(damage, fits, tmp_path, caplog):
    vae = make_vae()
    expected = preview_map_of(vae, tmp_path)
    (path,) = tmp_path.iterdir()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:99])
    elif damage == "of another autoencoder":
        random_map(5).save(path)
    else:
        path.unlink(), path.mkdir()
    found = preview_map_of(vae, tmp_path)

    assert len(fits) == 2 and torch.allclose(found.weight, expected.weight) and "fitted anew" in caplog.text
    if damage != "a folder":
        assert torch.equal(PreviewMap.load(path).weight, found.weight)


def test_a_map_that_cannot_be_kept_is_given_with_a_warning(fits, tmp_path, caplog):
    (tmp_path / "maps").write_text("a file")
    preview_map_of(make_vae(), tmp_path / "maps")

    assert len(fits) == 1 and "cannot be kept" in caplog.text


def test_where_nothing_tells_the_weights_a_map_is_not_kept(fits, tmp_path):
    vae = make_vae()
    vae.encoder.conv_in.register_forward_hook(lambda module, given, output: 2 * output)
    preview_map_of(vae, tmp_path), preview_map_of(vae, tmp_path)

    assert len(fits) == 2 and not list(tmp_path.iterdir())


def test_weights_that_are_not_in_memory_have_no_digest():
    vae = make_vae()
    vae.decoder.to("meta")

    assert contents_digest(vae) is None


# In an engine


def test_an_engine_gives_linear_previews_and_decoded_pictures(pipe, fits):
    decoded = []
    for previews in ("linear", preview_map_of(pipe.vae)):
        engine = pipe.engine(output_type="pil", preview_every=1, previews=previews)
        (request,) = pipe.make_requests(
            world.sample(0).caption, size=(96, 112), num_inference_steps=3, guidance_scale=1.0, guidance_schedule=None
        )
        engine.add(request)
        images = [event.image for event in engine.run() if event.image is not None]
        assert [image.size for image in images] == [(12, 14), (12, 14), (96, 112)]
        decoded.append(images[-1])
    assert len(fits) == 1


def test_requests_have_intervals_of_their_own(pipe, fitted):
    engine = pipe.engine(output_type="pil", preview_every=2, previews=fitted)
    wanted = {None: [2, 4], 0: [], 1: [1, 2, 3, 4], 3: [3]}
    requests = {
        engine.add(
            *pipe.make_requests(
                world.sample(0).caption, size=(96, 96), num_inference_steps=5, guidance_scale=1.0,
                guidance_schedule=None, preview_every=every,
            )
        ): steps
        for every, steps in wanted.items()
    }  # fmt: skip
    seen = {request: [] for request in requests}
    for event in engine.run():
        if event.kind == "step" and event.image is not None:
            seen[event.request].append(event.step)

    assert seen == requests


def test_previews_that_cannot_be_are_refused(pipe, fits):
    with pytest.raises(ValueError, match="`previews` needs an `output_type` of pictures"):
        pipe.engine(previews="linear")
    with pytest.raises(ValueError, match="`previews` is 'quick': give \"decoded\""):
        pipe.engine(output_type="pil", previews="quick")
    with pytest.raises(TypeError, match="`previews` is a int"):
        pipe.engine(output_type="pil", previews=3)
    with pytest.raises(ValueError, match="`previews` is a map of 5 latent channels, but this autoencoder has 8"):
        pipe.engine(output_type="pil", previews=random_map(5))
    with pytest.raises(ValueError, match="`preview_every` is -1"):
        pipe.make_requests("a", preview_every=-1)
    with pytest.raises(TypeError, match="`preview_every` is 'all'"):
        pipe.make_requests("a", preview_every="all")
    assert fits == []

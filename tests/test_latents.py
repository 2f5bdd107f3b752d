"""Latent tokens: channel order, normalisation, and the way to pictures and back through the autoencoder."""

import numpy as np
import PIL.Image
import pytest
import torch

from ideoflow import latents
from tests.small import autoencoder


@pytest.fixture(scope="module")
def vae():
    return autoencoder(sample_size=32)


def test_channel_index_is_patch_row_then_patch_column_then_channel():
    channels, rows, cols = 3, 2, 5
    picture = torch.randn(1, channels, 2 * rows, 2 * cols)

    tokens = latents.patchify(picture)

    for row, col, patch_row, patch_col, channel in np.ndindex(rows, cols, 2, 2, channels):
        index = (patch_row * 2 + patch_col) * channels + channel
        expected = picture[0, channel, 2 * row + patch_row, 2 * col + patch_col]
        assert tokens[0, row * cols + col, index] == expected


def test_unpatchify_inverts_patchify():
    picture = torch.randn(2, 4, 6, 10)

    assert torch.equal(latents.unpatchify(latents.patchify(picture), (3, 5)), picture)


def test_denormalise_inverts_normalise(vae):
    tokens = torch.randn(7, 16, dtype=torch.float64)

    torch.testing.assert_close(latents.denormalise(vae, latents.normalise(vae, tokens)), tokens)


def test_denormalised_tokens_are_those_of_the_reference_decoding(vae):
    """The reference formula, written out: scale by the standard deviation, add the mean, undo the patches."""
    rows, cols = 2, 3
    tokens = torch.randn(2, rows * cols, 16)
    scaled = tokens * torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps) + vae.bn.running_mean
    reference = torch.empty(2, 4, 2 * rows, 2 * cols)
    for y, x in np.ndindex(2 * rows, 2 * cols):
        place = (y % 2) * 2 + x % 2
        reference[:, :, y, x] = scaled[:, (y // 2) * cols + x // 2, place * 4 : place * 4 + 4]

    pictures = latents.decode(vae, list(tokens), [(rows, cols)] * 2)

    with torch.no_grad():
        torch.testing.assert_close(torch.stack(pictures), vae.decode(reference).sample, atol=1e-5, rtol=1e-5)


def test_encoding_normalises_the_posteriors_mode(vae):
    picture = torch.rand(3, 32, 48) * 2 - 1

    (tokens,) = latents.encode(vae, [picture])

    with torch.no_grad():
        mode = vae.encode(picture[None]).latent_dist.mode()
    back = latents.unpatchify(latents.denormalise(vae, tokens[None]), (2, 3))
    torch.testing.assert_close(back, mode, atol=1e-5, rtol=1e-5)
    assert tokens.shape == (6, 16) and tokens.dtype == torch.float32


def test_pil_pictures_and_tensors_are_the_same_picture(vae):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1

    from_pil, from_tensor = latents.encode(vae, [PIL.Image.fromarray(pixels), tensor])

    torch.testing.assert_close(from_pil, from_tensor)


def test_mixed_sizes_keep_their_order_and_batch_by_size(vae, monkeypatch):
    sizes = [(16, 32), (32, 32), (16, 32), (32, 16)]
    pictures = [torch.rand(3, *size) * 2 - 1 for size in sizes]
    alone = [latents.encode(vae, [picture])[0] for picture in pictures]
    batches = []
    plain = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: (batches.append(len(z)), plain(z))[1])

    together = latents.encode(vae, pictures)
    decoded = latents.decode(vae, together, [(h // 16, w // 16) for h, w in sizes])

    for one, packed in zip(alone, together, strict=True):
        torch.testing.assert_close(one, packed, atol=1e-5, rtol=1e-5)
    assert [tuple(p.shape) for p in decoded] == [(3, h, w) for h, w in sizes]
    assert batches == [2, 1, 1]


def test_slicing_and_tiling_stay_usable(vae):
    tokens = [torch.randn(16, 16) for _ in range(2)]
    whole = latents.decode(vae, tokens, [(4, 4)] * 2)
    vae.enable_slicing()
    sliced = latents.decode(vae, tokens, [(4, 4)] * 2)
    vae.disable_slicing()
    vae.enable_tiling()
    tiled = latents.decode(vae, tokens, [(4, 4)] * 2)
    vae.disable_tiling()

    torch.testing.assert_close(torch.stack(sliced), torch.stack(whole), atol=1e-4, rtol=1e-4)
    assert tiled[0].shape == whole[0].shape
    assert not torch.allclose(tiled[0], whole[0])  # tiles see less context, so this really was tiled


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vae: latents.patchify(torch.zeros(1, 4, 3, 2)), "expected .batch, channels, even, even."),
        (lambda vae: latents.unpatchify(torch.zeros(1, 5, 16), (2, 3)), "grid of 2 x 3"),
        (lambda vae: latents.encode(vae, [torch.zeros(3, 30, 16)]), "multiples of 16"),
        (lambda vae: latents.encode(vae, [torch.zeros(1, 16, 16)]), "expected .3, height, width."),
        (lambda vae: latents.decode(vae, [torch.zeros(6, 16)], [(2, 2)]), "its grid .2, 2. needs"),
        (lambda vae: latents.decode(vae, [torch.zeros(4, 16)], []), "one grid for each"),
        (lambda vae: latents.normalise(vae, torch.zeros(4, 8)), "8 channels.*statistics of 16"),
    ],
)
def test_wrong_shapes_are_named(vae, call, message):
    with pytest.raises(ValueError, match=message):
        call(vae)

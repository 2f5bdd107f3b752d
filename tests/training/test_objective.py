"""The loss: a packed stream's gradient is the mean of those that the peer gives for each sample alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.packing import IMAGE_POSITION_OFFSET, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
from ideoflow.training.batches import Draw
from ideoflow.training.objective import Batch, FlowMatching, make_batch, snr_weights
from tests.small import NARROW

CONFIG = NARROW | dict(rope_theta=10_000)


@dataclass(frozen=True)
class Made:
    """A sample of random numbers."""

    name: str
    grid: tuple[int, int]
    text_tokens: int

    def load(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(int(self.name))
        rows, columns = self.grid
        latents = torch.randn(rows * columns, CONFIG["in_channels"], generator=generator)
        return latents, torch.randn(self.text_tokens, CONFIG["llm_features_dim"], generator=generator)


def made(seed: int, count: int) -> list[Made]:
    draw = random.Random(seed)
    return [
        Made(str(100 * seed + i), (draw.randint(1, 4), draw.randint(1, 4)), draw.randint(0, 6)) for i in range(count)
    ]


def models(seed: int) -> tuple[torch.nn.Module, Ideogram4Transformer2DModel]:
    torch.manual_seed(seed)
    peer = diffusers.Ideogram4Transformer2DModel(**CONFIG)
    for parameter in peer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    ours = Ideogram4Transformer2DModel(**CONFIG)
    ours.load_state_dict(peer.state_dict(), strict=True)
    return peer, ours


def alone(peer: torch.nn.Module, batch: Batch, index: int, text: bool = True) -> Tensor:
    """The peer's loss of one sample of the batch, written out from the definition."""
    texts, latents, noises = (
        list(t.split(n))
        for t, n in (
            (batch.text, list(batch.text_lengths)),
            (batch.latents, batch.image_lengths),
            (batch.noise, batch.image_lengths),
        )
    )
    words = texts[index] if text else texts[index][:0]
    clean, noise, t = latents[index], noises[index], batch.times[index]
    rows, columns = batch.grids[index]
    length = len(words) + len(clean)
    hidden = torch.zeros(1, length, CONFIG["in_channels"])
    hidden[0, len(words) :] = (1 - t) * noise + t * clean
    features = torch.zeros(1, length, CONFIG["llm_features_dim"])
    features[0, : len(words)] = words
    positions = torch.empty(1, length, 3, dtype=torch.long)
    positions[0, : len(words)] = torch.arange(len(words))[:, None]
    place = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
    positions[0, len(words) :] = place + IMAGE_POSITION_OFFSET
    indicator = torch.full((1, length), OUTPUT_IMAGE_INDICATOR)
    indicator[0, : len(words)] = LLM_TOKEN_INDICATOR
    velocity = peer(
        hidden_states=hidden,
        timestep=t[None],
        encoder_hidden_states=features,
        position_ids=positions,
        segment_ids=torch.ones(1, length, dtype=torch.long),
        indicator=indicator,
        return_dict=False,
    )[0][0, len(words) :]
    return (velocity - (clean - noise)).square().mean()


def worst_difference(ours: torch.nn.Module, peer: torch.nn.Module) -> float:
    """Largest difference of the gradients of one parameter, relative to that parameter's largest."""
    theirs = {name: p.grad for name, p in peer.named_parameters()}
    top = max(float(g.abs().max()) for g in theirs.values() if g is not None)
    differences = []
    for name, parameter in ours.named_parameters():
        gradient = theirs[name]
        if gradient is None or parameter.grad is None:
            assert gradient is None or not gradient.any()
            assert parameter.grad is None or not parameter.grad.any()
            continue
        scale = max(float(gradient.abs().max()), 0.01 * top)
        differences.append(float((parameter.grad - gradient).abs().max()) / scale)
    return max(differences)


@pytest.mark.parametrize("seed", range(20))
def test_gradient_of_a_packed_batch_is_the_mean_of_the_peers_per_sample_gradients(seed):
    samples = made(seed, random.Random(seed).randint(1, 7))
    batch = make_batch(samples, [Draw(0, i) for i in range(len(samples))], seed=seed, caption_dropout=0.2)
    peer, ours = models(seed)
    loss = FlowMatching(ours, projected=False)(batch)["conditional"]
    loss.backward()
    expected = sum(alone(peer, batch, i) for i in range(len(batch))) / len(batch)
    expected.backward()
    assert float((loss - expected).abs() / expected) <= 2e-5
    assert worst_difference(ours, peer) <= 2e-5


def test_both_branches_are_trained_each_by_its_own_loss():
    samples = made(31, 5)
    batch = make_batch(samples, [Draw(0, i) for i in range(5)])
    (peer, ours), (peer_free, free) = models(1), models(2)
    losses = FlowMatching(ours, free, projected=False)(batch)
    assert losses.keys() == {"conditional", "unconditional"}
    sum(losses.values()).backward()
    (sum(alone(peer, batch, i) for i in range(5)) / 5).backward()
    (sum(alone(peer_free, batch, i, text=False) for i in range(5)) / 5).backward()
    assert worst_difference(ours, peer) <= 2e-5
    assert worst_difference(free, peer_free) <= 2e-5


def test_projected_text_gives_the_same_loss():
    samples = made(7, 4)
    batch = make_batch(samples, [Draw(0, i) for i in range(4)])
    _, ours = models(4)
    raw = FlowMatching(ours, projected=False)(batch)["conditional"]
    projected = replace(batch, text=ours.project_text(batch.text).detach())
    assert torch.allclose(FlowMatching(ours)(projected)["conditional"], raw, rtol=1e-6)


def test_tokens_or_samples_count_alike():
    samples = made(8, 6)
    batch = make_batch(samples, [Draw(0, i) for i in range(6)])
    peer, ours = models(8)
    by_sample = torch.stack([alone(peer, batch, i) for i in range(6)])
    counts = torch.tensor(batch.image_lengths)
    assert len(set(batch.image_lengths)) > 2
    by_token = (by_sample * counts).sum() / counts.sum()
    assert torch.allclose(FlowMatching(ours, projected=False)(batch)["conditional"], by_sample.mean(), rtol=1e-5)
    per_token = FlowMatching(ours, projected=False, per="token")(batch)["conditional"]
    assert torch.allclose(per_token, by_token, rtol=1e-5)


@pytest.mark.parametrize("per", ["sample", "token"])
def test_parts_of_a_step_add_up_to_the_whole(per):
    samples = made(9, 6)
    draws = [Draw(3, i) for i in range(6)]
    _, ours = models(9)
    loss = FlowMatching(ours, projected=False, per=per)
    whole, parts = (
        make_batch(samples, draws),
        [make_batch(samples, part) for part in (draws[:1], draws[1:4], draws[4:])],
    )
    total = loss.count(whole)
    assert sum(loss.count(part) for part in parts) == total
    summed = sum(loss(part, total)["conditional"] for part in parts)
    assert torch.allclose(summed, loss(whole)["conditional"], rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**30), st.integers(0, 9), st.permutations(range(5)))
def test_what_is_drawn_for_a_sample_does_not_depend_on_its_batch(seed, epoch, order):
    samples = made(5, 5)
    together = make_batch(samples, [Draw(epoch, i) for i in order], seed=seed, caption_dropout=0.5)
    index = order.index(2)
    single = make_batch(samples, [Draw(epoch, 2)], seed=seed, caption_dropout=0.5)
    assert single.times[0] == together.times[index]
    assert single.text_lengths[0] == together.text_lengths[index]
    assert torch.equal(single.noise, together.noise.split(together.image_lengths)[index])
    other = make_batch(samples, [Draw(epoch + 1, 2)], seed=seed, caption_dropout=0.5)
    assert not torch.equal(other.noise, single.noise) and other.times[0] != single.times[0]


def test_captions_are_dropped_as_often_as_asked():
    samples = [replace(sample, text_tokens=3) for sample in made(6, 10)]
    draws = [Draw(epoch, i) for epoch in range(60) for i in range(10)]
    dropped = sum(length == 0 for length in make_batch(samples, draws, caption_dropout=0.25).text_lengths)
    assert 0.18 <= dropped / 600 <= 0.32
    assert not any(length == 0 for length in make_batch(samples, draws).text_lengths)


def test_min_snr_caps_the_weight_of_nearly_clean_samples():
    times = torch.tensor([0.1, 0.5, 0.9])
    snr = (times / (1 - times)).square()
    assert torch.allclose(snr_weights(times, 5.0), (1 - times).square() * snr.clamp_max(5.0))
    samples = made(11, 3)
    batch = make_batch(samples, [Draw(0, i) for i in range(3)])
    peer, ours = models(11)
    expected = sum(float(w) * alone(peer, batch, i) for i, w in enumerate(snr_weights(batch.times, 2.0))) / 3
    weighted = FlowMatching(ours, projected=False, min_snr=2.0)(batch)["conditional"]
    assert torch.allclose(weighted, expected, rtol=1e-5)


def test_what_makes_no_sense_is_named():
    _, ours = models(0)
    with pytest.raises(ValueError, match="nothing would be trained"):
        FlowMatching(None)
    with pytest.raises(ValueError, match="'sample' or 'token'"):
        FlowMatching(ours, per="batch")  # type: ignore[arg-type]

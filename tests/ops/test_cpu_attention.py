"""Attention as plain products: like float64, and taken where it is meant to be."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow import Ideogram4Transformer2DModel
from ideoflow.ops import cpu_attention
from ideoflow.packing import Layout
from tests.conftest import randomise
from tests.small import NARROW


def exact(query, key, value):
    parts = (x.double().transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(*parts).transpose(1, 2)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
@given(
    segments=st.integers(1, 3),
    queries=st.integers(1, 40),
    length=st.integers(1, 40),
    heads=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_it_is_softmax_attention_of_each_segment(dtype, bound, segments, queries, length, heads, seed):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(segments, queries, heads, 16, generator=generator).to(dtype)
    key, value = (torch.randn(segments, length, heads, 16, generator=generator).to(dtype) for _ in range(2))

    with torch.no_grad():
        out = cpu_attention.attend(query, key, value)

    assert out.dtype == dtype and out.shape == query.shape
    assert (out.double() - exact(query, key, value)).abs().max() <= bound * value.abs().max()


def test_queries_come_in_parts(monkeypatch):
    query, key = torch.randn(1, 25, 2, 8), torch.randn(1, 30, 2, 8)
    monkeypatch.setattr(cpu_attention, "QUERIES", 10)

    with torch.no_grad():
        torch.testing.assert_close(
            cpu_attention.attend(query, key, key).double(), exact(query, key, key), atol=2e-6, rtol=0
        )


def test_views_of_one_product_are_taken_as_they_are():
    query, key, value = torch.randn(1, 12, 3 * 2 * 16).unflatten(-1, (3, 2, 16)).unbind(2)

    with torch.no_grad():
        out = cpu_attention.attend(query, key, value)
    torch.testing.assert_close(out.double(), exact(query, key, value), atol=2e-6, rtol=0)


def test_short_narrow_or_trained_segments_are_left_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(cpu_attention, "FASTER", {torch.float32: True})
    long, short = torch.empty(1, 1024, 1, 128), torch.empty(1, 1023, 1, 128)

    assert not cpu_attention.is_faster(long, long)  # a gradient may be asked for
    with torch.no_grad():
        assert cpu_attention.is_faster(long, long)
        assert not cpu_attention.is_faster(long, short)
        assert not cpu_attention.is_faster(long[..., :64], torch.empty(1, 4096, 1, 64))
        assert cpu_attention.is_faster(torch.empty(1, 9, 1, 256), torch.empty(1, 512, 1, 256))
        assert not cpu_attention.is_faster(long.double(), long.double())


def test_the_transformer_takes_it_for_long_segments(monkeypatch):
    """Its velocities are those of the fused kernel."""
    ours = randomise(Ideogram4Transformer2DModel(**NARROW), 3)
    layout = Layout.of_samples([(3, 4, 5), (3, 4, 5), (1, 2, 3)])
    latents, times, calls = torch.randn(46, 8), torch.rand(3), []
    attend = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda *parts: (calls.append(parts[0].shape[0]), attend(*parts))[1])
    with torch.no_grad():
        context = ours.prepare(torch.randn(7, 20), layout)
        expected = ours.velocity(latents, times, context)
        assert calls == []
        monkeypatch.setattr(cpu_attention, "FASTER", {torch.float32: True})
        monkeypatch.setattr(cpu_attention, "SMALLEST", 10 * ours.layers[0].attention.head_dim)
        monkeypatch.setattr(cpu_attention, "NARROWEST", 1)
        torch.testing.assert_close(ours.velocity(latents, times, context), expected, atol=1e-5, rtol=1e-5)

    assert calls and set(calls) == {2}  # the two equal segments; the third is too short

"""Attention backends: exact ones are told from wrong ones and timed, the fastest is used, and pictures stay."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from ideoflow.ops import attention_backends as backends
from ideoflow.ops import ragged_attention
from ideoflow.ops.ragged_attention import attend
from ideoflow.packing import Bounds

NATIVE, MATH = AttentionBackendName.NATIVE, AttentionBackendName._NATIVE_MATH


def stream(lengths, heads=2, head_dim=16):
    generator = torch.Generator().manual_seed(0)
    begins = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
    parts = [torch.randn(sum(lengths), heads, head_dim, generator=generator) for _ in range(3)]
    return (*parts, Bounds.of(tuple(lengths), begins))


@pytest.mark.parametrize("lengths", [(1,), (70,), (200, 3), (5, 5, 90)])
def test_exact_is_softmax_attention_of_the_ends(lengths):
    query, key, value, bounds = stream(lengths)
    whole = []
    for q, k, v in zip(*(x.double().split(list(lengths)) for x in (query, key, value)), strict=True):
        whole.append(F.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)))[0].transpose(0, 1))
    expected = backends.exact(query, key, value, bounds)
    few = len(expected) // 2
    assert few == min(backends.CHECKED, lengths[0], lengths[-1])
    assert torch.allclose(expected[:few], torch.cat(whole)[:few])
    assert torch.allclose(expected[few:], torch.cat(whole)[-few:])
    assert backends.distance(torch.cat(whole), expected) <= 1e-12
    assert backends.distance(torch.cat(whole) * 1.01, expected) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_this_machine_has_is_timed_and_the_rest_is_told(dtype, caplog):
    with caplog.at_level(logging.INFO, logger="ideoflow.ops.attention_backends"):
        seconds = backends.time_backends((2, 32), [40, 70], dtype, torch.device("cpu"), rounds=2)
    assert {"native", "_native_math"} <= seconds.keys()
    assert list(seconds.values()) == sorted(seconds.values())
    told = {record.args[0] for record in caplog.records}
    assert told | seconds.keys() == set(backends.CANDIDATES) and not told & seconds.keys()


def test_a_wrong_backend_is_not_used(monkeypatch, caplog):
    def wrong(query, key, value, bounds, backend):
        return attend(query, key, value, bounds, backend) * (1.001 if backend == MATH else 1)

    monkeypatch.setattr(backends, "attend", wrong)
    with caplog.at_level(logging.INFO, logger="ideoflow.ops.attention_backends"):
        seconds = backends.time_backends((2, 32), [40], torch.float32, torch.device("cpu"), rounds=1)
    assert "native" in seconds and "_native_math" not in seconds
    assert any("_native_math is not used: it is 1.0e-03 of the largest" in record.message for record in caplog.records)


def test_the_fastest_is_used_from_then_on(ours, inputs, monkeypatch):
    expected = ours(**inputs).sample
    monkeypatch.setattr("ideoflow.ops.accelerated.time_backends", lambda *args: {"_native_math": 1.0, "native": 2.0})
    assert list(ours.tune_attention([11])) == ["_native_math", "native"]
    assert all(processor._attention_backend == MATH for processor in ours.attn_processors.values())
    used = []
    right = _AttentionBackendRegistry._backends[MATH]
    monkeypatch.setitem(_AttentionBackendRegistry._backends, MATH, lambda **kw: used.append(1) or right(**kw))
    assert torch.allclose(ours(**inputs).sample, expected, atol=1e-5)
    assert used
    ours.reset_attention_backend()
    assert torch.equal(ours(**inputs).sample, expected)


def test_tuning_times_the_models_own_shape_and_changes_nothing_else(ours, inputs):
    expected = ours(**inputs).sample
    state = torch.get_rng_state()
    seconds = ours.tune_attention([14, 6, 6], rounds=1)
    assert torch.equal(torch.get_rng_state(), state)
    chosen = {processor._attention_backend.value for processor in ours.attn_processors.values()}
    assert chosen == {next(iter(seconds))}
    assert torch.allclose(ours(**inputs).sample, expected, atol=1e-5)


@pytest.mark.parametrize("lengths", [[], [0], [3, -1], [2.5], "ab"])
def test_lengths_must_be_numbers_of_tokens(ours, lengths):
    with pytest.raises(ValueError, match="`lengths` is"):
        ours.tune_attention(lengths)


@pytest.mark.parametrize("backend", [NATIVE, AttentionBackendName.FLASH, AttentionBackendName._FLASH_3])
@pytest.mark.parametrize("is_tuple", [False, True])
def test_a_backends_ragged_kernel_takes_several_segments_at_once(backend, is_tuple, monkeypatch):
    """The kernels need CUDA: one that does the same stands in for them."""
    query, key, value, bounds = stream((5, 9, 9))
    expected = attend(query, key, value, bounds, NATIVE)
    calls = []

    def ragged(q, k, v, cu_queries, cu_keys, most_queries, longest):
        calls.append((cu_queries.tolist(), cu_keys.tolist(), most_queries, longest))
        segments = zip(*(x.tensor_split(cu_keys[1:-1].long()) for x in (q, k, v)), strict=True)
        out = torch.cat([attend(*parts, Bounds.of((len(parts[0]),), cu_keys), MATH) for parts in segments])
        return (out, None) if is_tuple else out

    monkeypatch.setattr(ragged_attention, "_ragged_takes", lambda query: True)
    monkeypatch.setitem(ragged_attention.RAGGED_KERNELS, backend, ragged)
    assert torch.allclose(attend(query, key, value, bounds, backend), expected, atol=1e-6)
    assert calls == [([0, 5, 14, 23], [0, 5, 14, 23], 9, 9)]

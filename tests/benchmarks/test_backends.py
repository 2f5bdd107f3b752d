"""The benchmark of attention backends: what is measured is right, and what cannot run or is wrong is told."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.attention import backends
from benchmarks.attention.backends import Shape, fastest, measure

RAGGED = Shape("ragged", ((3, 16), (5, 24), (5, 24), (80, 90)))


def draw(shape: Shape):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape.tokens, 2, 32, generator=generator) for _ in range(3)]


def by_segment(query, key, value, shape: Shape):
    parts = zip(*(x.split([sum(sample) for sample in shape.samples]) for x in (query, key, value)), strict=True)
    heads = ([x.transpose(0, 1)[None] for x in part] for part in parts)
    return torch.cat([F.scaled_dot_product_attention(*part)[0].transpose(0, 1) for part in heads])


@pytest.mark.parametrize("name", ["ideoflow", "native", "_native_math", "_native_flash"])
def test_backends_attend_within_segments(name):
    inputs = draw(RAGGED)
    out = backends.backends(RAGGED)[name](*inputs, RAGGED.bounds("cpu"))
    torch.testing.assert_close(out, by_segment(*inputs, RAGGED))


def test_what_cannot_run_or_is_wrong_is_told_and_not_timed(monkeypatch):
    monkeypatch.setattr(backends, "RAGGED", (("absent", "no_such_package", "attend"),))
    made = backends.backends(RAGGED)
    native, absent = made["native"], made["absent"]
    sides = {"native": native, "wrong": lambda query, key, value, bounds: -native(query, key, value, bounds)}
    monkeypatch.setattr(backends, "backends", lambda shape: sides | {"absent": absent})

    figures = measure(RAGGED, 2, 32, rounds=1, device="cpu")

    assert figures["backends"]["native"]["milliseconds"] > 0
    assert "away from float64" in figures["backends"]["wrong"]["failed"]
    assert "no_such_package" in figures["backends"]["absent"]["failed"]
    assert not any("milliseconds" in figures["backends"][name] for name in ("wrong", "absent"))
    assert fastest([figures]) == {"ragged": "native"}


def test_the_rate_is_that_of_the_products_of_each_segment(monkeypatch):
    native = backends.backends(RAGGED)["native"]
    monkeypatch.setattr(backends, "backends", lambda shape: {"native": native})
    figures = measure(RAGGED, 2, 32, rounds=1, device="cpu")
    assert figures["flops"] == 4 * 64 * (19**2 + 2 * 29**2 + 170**2)
    native = figures["backends"]["native"]
    assert native["tflops_per_second"] * native["milliseconds"] == pytest.approx(figures["flops"] / 1e9)

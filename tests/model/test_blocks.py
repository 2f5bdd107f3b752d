"""The blocks beside the kernels: what must see a norm called does, and the two ways agree."""

import pytest
import torch

from ideoflow.model import attention, blocks
from ideoflow.packing import Layout

LAYOUT = Layout.of_samples([(5, 2, 3), (2, 3, 3)])


@pytest.fixture
def stream(ours):
    return torch.randn(15, 8), torch.rand(2), ours.prepare(torch.randn(7, 20), LAYOUT)


def test_norms_with_hooks_are_called_and_give_the_same(ours, stream):
    expected = ours.velocity(*stream)
    calls = []
    norms = [module for module in ours.layers.modules() if type(module).__name__ == "RMSNorm"]
    handles = [norm.register_forward_hook(lambda *_: calls.append(1)) for norm in norms]

    torch.testing.assert_close(ours.velocity(*stream), expected, atol=1e-6, rtol=1e-6)
    assert len(calls) == len(norms) == 6 * len(ours.layers)
    for handle in handles:
        handle.remove()


def test_norms_whose_forward_was_replaced_are_called(ours, stream):
    """As offloading does it."""
    norm, calls = ours.layers[0].attention_norm1, []
    plain = norm.forward
    norm.forward = lambda x: (calls.append(1), plain(x))[1]

    ours.velocity(*stream)

    assert calls == [1]


def test_a_step_goes_through_the_kernels(ours, stream, monkeypatch):
    """Each of the four places of each block asks them, on a CPU to get the plain form."""
    calls = []
    for file, name in (
        (blocks, "norm_scale"),
        (blocks, "gate_norm_add"),
        (attention, "norm_rotate"),
        (blocks, "swiglu"),
    ):
        plain = getattr(file, name)
        monkeypatch.setattr(file, name, lambda *args, n=name, f=plain: (calls.append(n), f(*args))[1])

    ours.velocity(*stream)

    assert sorted(set(calls)) == ["gate_norm_add", "norm_rotate", "norm_scale", "swiglu"]
    assert [calls.count(n) for n in ("norm_scale", "gate_norm_add", "norm_rotate", "swiglu")] == [
        2 * len(ours.layers), 2 * len(ours.layers), 2 * len(ours.layers), len(ours.layers)
    ]  # fmt: skip

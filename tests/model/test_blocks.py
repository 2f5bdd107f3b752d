"""The blocks beside the kernels: what must see a norm called does, and the two ways agree."""

import pytest
import torch

from ideoflow.model import attention, blocks
from ideoflow.model import stream as stream_file
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
    """The places of each block ask them; what is left to be added goes into the next block's norm."""
    calls = []
    for file, name in (
        (stream_file, "norm_scale"),
        (stream_file, "gate_norm_add"),
        (stream_file, "gate_norm_add_norm_scale"),
        (attention, "norm_rotate"),
        (attention, "norm_rotate_pair"),
        (blocks, "swiglu"),
    ):
        plain = getattr(file, name)
        monkeypatch.setattr(file, name, lambda *args, n=name, f=plain, **rest: (calls.append(n), f(*args, **rest))[1])

    ours.velocity(*stream)

    layers = len(ours.layers)
    assert {name: calls.count(name) for name in set(calls)} == {
        "norm_scale": 1,  # before the first
        "gate_norm_add_norm_scale": 2 * layers - 1,
        "gate_norm_add": 1,  # after the last
        "norm_rotate_pair": layers - 1,
        "norm_rotate": 2,  # in the last, which has fewer queries than keys
        "swiglu": layers,
    }


@pytest.mark.parametrize("hooked", range(2))
def test_a_block_with_a_hook_is_given_the_whole_stream_and_gives_it(ours, stream, hooked):
    expected, seen = ours.velocity(*stream), []
    handle = ours.layers[hooked].register_forward_hook(lambda block, given, result: seen.append((given[0], result)))

    torch.testing.assert_close(ours.velocity(*stream), expected, atol=1e-6, rtol=1e-6)
    handle.remove()
    given, result = seen[0]
    assert isinstance(given, torch.Tensor) and given.shape == (22, 32)
    assert isinstance(result, torch.Tensor)


def test_a_block_of_another_class_is_given_the_whole_stream(ours, stream):
    class Own(blocks.Ideogram4TransformerBlock):
        def forward(self, hidden_states, *args, **kwargs):
            assert isinstance(hidden_states, torch.Tensor)
            return super().forward(hidden_states, *args, **kwargs)

    expected = ours.velocity(*stream)
    ours.layers[1].__class__ = Own
    torch.testing.assert_close(ours.velocity(*stream), expected, atol=1e-6, rtol=1e-6)
    ours.layers[1].__class__ = blocks.Ideogram4TransformerBlock

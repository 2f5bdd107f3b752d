"""What a forward pass costs: only valid tokens enter a product, and memory grows with tokens, not with their square."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ideoflow.packing import Layout, rows_to_layout


@contextmanager
def rows_entering(model: nn.Module) -> Iterator[dict[str, int]]:
    """Count the rows that enter each linear layer, by name."""
    counts: dict[str, int] = defaultdict(int)

    def count(name):
        return lambda module, args: counts.__setitem__(name, counts[name] + args[0].numel() // module.in_features)

    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_pre_hook(count(name)) for name, module in linears]
    yield counts
    for hook in hooks:
        hook.remove()


def expected_rows(model: nn.Module, tokens: int, text: int, image: int, times: int, final: int) -> dict[str, int]:
    """Rows of each linear layer; the last block computes for `final` tokens what does not serve as key or value."""
    rows = {}
    last = f"layers.{len(model.layers) - 1}."
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = name.removeprefix(last)
            if part != name and part.startswith(("attention.to_q", "attention.to_out", "feed_forward")):
                rows[name] = final
                continue
            if name.startswith(("t_embedding", "adaln_proj")) or name.endswith("adaln_modulation"):
                rows[name] = times
            else:
                rows[name] = {"input_proj": image, "llm_cond_proj": text, "final_layer.linear": final}.get(name, tokens)
    return rows


def test_forward_multiplies_valid_tokens_only_and_each_time_once(ours, inputs):
    with rows_entering(ours) as counts:
        ours(**inputs)
    assert counts == expected_rows(ours, tokens=23, text=7, image=16, times=2, final=23)


def test_forward_modulates_once_when_all_tokens_share_a_time(ours, inputs):
    inputs["timestep"] = torch.full((2, 14), 0.25)
    with rows_entering(ours) as counts:
        ours(**inputs)
    assert counts == expected_rows(ours, tokens=23, text=7, image=16, times=1, final=23)


def test_text_is_projected_once_per_request_and_a_step_reads_out_image_tokens_only(ours):
    layout = Layout.of_samples([(5, 2, 3), (2, 3, 3)])
    with rows_entering(ours) as counts:
        context = ours.prepare(torch.randn(7, 20), layout)
    assert counts == {"llm_cond_proj": 7}
    with rows_entering(ours) as counts:
        for _ in range(3):
            ours.velocity(torch.randn(15, 8), torch.rand(2), context)
    step = expected_rows(ours, tokens=22, text=0, image=15, times=2, final=15)
    del step["llm_cond_proj"]
    assert counts == {name: 3 * rows for name, rows in step.items()}


@pytest.mark.parametrize("features", [None, torch.empty(0, 20)])
def test_text_projection_never_runs_without_text(ours, features):
    layout = Layout.of_samples([(0, 2, 3), (0, 3, 3)])
    with rows_entering(ours) as counts:
        ours.velocity(torch.randn(15, 8), torch.rand(2), ours.prepare(features, layout))
    assert "llm_cond_proj" not in counts


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation produced."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


def largest_tensor(model: nn.Module, samples: list[tuple[int, int, int]], backward: bool) -> int:
    layout = Layout.of_samples(samples)
    with Largest() as largest, torch.set_grad_enabled(backward):
        context = model.prepare(torch.randn(len(layout.text), 20), layout)
        velocity = model.velocity(torch.randn(len(layout.image), 8), torch.rand(len(samples)), context)
        if backward:
            velocity.square().sum().backward()
    return largest.elements


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("segments", [1, 3])
def test_the_largest_tensor_of_a_step_grows_as_the_tokens(ours, segments, backward):
    """No L x L mask nor score matrix: the largest tensor is a layer's, at most 4 C for each token."""
    for thousands in (1, 2, 4):
        samples = [(24, 40, 25 * thousands // segments + i) for i in range(segments)]
        tokens = sum(text + rows * cols for text, rows, cols in samples)
        assert largest_tensor(ours, samples, backward) <= tokens * 4 * ours.hidden_size


def test_finding_the_segments_of_rows_costs_no_more_than_the_rows():
    length = 4096
    segment_ids = torch.arange(2 * length).view(2, -1) // 700
    with Largest() as largest:
        rows_to_layout(torch.zeros(2, length, 3, dtype=torch.long), segment_ids, torch.full_like(segment_ids, 2))
    assert largest.elements <= 3 * 2 * length


def test_the_last_block_computes_wanted_tokens_as_if_it_computed_all(ours):
    """Text alone, image alone, equal and unequal segments: the velocities are those of the whole stream."""
    layout = Layout.of_samples([(5, 2, 3), (5, 2, 3), (2, 3, 3), (0, 3, 3), (4, 0, 0)])
    features, latents, times = torch.randn(16, 20), torch.randn(30, 8), torch.rand(5)
    context = ours.prepare(features, layout)
    wanted = ours.velocity(latents, times, context)
    layout.__dict__["image_bounds"] = layout.bounds  # all tokens, which the last block then computes
    states, conditioning = ours._run(latents, times, layout.segment, context, None, layout.bounds)
    whole = ours.final_layer(states, conditioning, layout.segment).index_select(0, layout.image)

    torch.testing.assert_close(wanted, whole, atol=1e-5, rtol=1e-5)

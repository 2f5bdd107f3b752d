"""What the layers take from times, computed for a whole schedule at once: the same velocities."""

import torch

from ideoflow.model import Modulation
from ideoflow.packing import Layout

LAYOUT = Layout.of_samples([(5, 2, 3), (2, 3, 3), (0, 2, 2)])


def test_velocities_from_a_schedule_are_those_from_times(ours):
    latents, times = torch.randn(19, 8), torch.tensor([0.1, 0.7, 0.35])
    context = ours.prepare(torch.randn(7, 20), LAYOUT)
    schedules = [ours.modulate(torch.rand(4)) for _ in range(2)] + [ours.modulate(torch.linspace(0.05, 0.35, 3))]
    rows = [(ours.modulate(torch.tensor([0.9, 0.1])), 1), (ours.modulate(torch.tensor([0.7])), 0), (schedules[2], 2)]

    modulation = Modulation.of_steps(rows)

    assert modulation.blocks.shape == (len(ours.layers), 3, 4 * ours.hidden_size)
    torch.testing.assert_close(
        ours.velocity(latents, times, context, modulation=modulation),
        ours.velocity(latents, times, context),
        atol=1e-5,
        rtol=1e-5,
    )


def test_one_segment_broadcasts_its_row(ours):
    context = ours.prepare(torch.randn(5, 20), Layout.of_samples([(5, 2, 3)]))
    latents, times = torch.randn(6, 8), torch.tensor([0.4])

    torch.testing.assert_close(
        ours.velocity(latents, times, context, modulation=ours.modulate(times)),
        ours.velocity(latents, times, context),
        atol=1e-6,
        rtol=1e-6,
    )


def test_time_layers_are_those_that_see_nothing_but_times(ours):
    seen = []
    for layer in ours.time_layers:
        layer.register_forward_hook(lambda *_: seen.append(1))
    ours.modulate(torch.rand(3))

    assert len(seen) == len(ours.time_layers) == 3 + len(ours.layers)

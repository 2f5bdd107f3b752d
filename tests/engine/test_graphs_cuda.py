"""CUDA's own graphs, which only a GPU has: `test_graphs.py` tests all else about them."""

import warnings
from copy import deepcopy

import pytest
import torch

from ideoflow.engine import Denoiser, Engine, Request, graphs
from ideoflow.ops import quantize_
from ideoflow.schedule import logit_normal_sigmas

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SAMPLES = [
    dict(seed=1, text_tokens=5, grid=(2, 3)),
    dict(seed=2, text_tokens=17, grid=(4, 4), steps=9),
    dict(seed=3, text_tokens=5, grid=(3, 2), guidance=1.0),
    dict(seed=4, text_tokens=30, grid=(4, 6), guidance=(1.0,) * 3 + (7.0,) * 5 + (1.0,) * 4),
]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def on_cuda(request, transformers):
    return [deepcopy(transformer).to("cuda", request.param) for transformer in transformers]


def ordinary_one(transformers):
    """A denoiser without graphs."""
    return Denoiser(*transformers, cuda_graphs=False)


def make(denoiser, seed, text_tokens=5, grid=(2, 3), steps=12, guidance=7.0):
    generator = torch.Generator().manual_seed(seed)
    schedule = guidance if isinstance(guidance, tuple) else (guidance,) * steps
    return Request(
        conditional=denoiser.prepare_conditional(torch.randn(text_tokens, 13 * 32, generator=generator), grid),
        unconditional=denoiser.prepare_unconditional(grid),
        latents=torch.randn(grid[0] * grid[1], 16, generator=generator).cuda(),
        sigmas=logit_normal_sigmas(len(schedule), 16 * grid[1], 16 * grid[0]),
        guidance=schedule,
        grid=grid,
    )


def draw(denoiser, samples=SAMPLES, **limits):
    """Latents and velocities after each step of each request."""
    requests, seen = [make(denoiser, **sample) for sample in samples], []
    engine = Engine(denoiser, **limits)
    while active := [request for request in requests if not request.finished]:
        assert engine.advance(active) == {}
        seen += [tensor for request in active for tensor in (request.latents, request.velocity)]
    return seen


def kept(denoiser):
    return [len(graphs) for graphs in denoiser._graphs()]  # of each branch


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("limits", [{}, {"max_tokens": 60}], ids=["one pass", "several passes"])
@pytest.mark.parametrize("count", [1, len(SAMPLES)])
def test_replayed_steps_are_the_ordinary_ones_bit_for_bit(on_cuda, count, limits):
    recording = Denoiser(*on_cuda, cuda_graphs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of a recording that fails
        replayed = draw(recording, SAMPLES[:count], **limits)

    assert kept(recording)[0] > 0
    assert_equal(replayed, draw(ordinary_one(on_cuda), SAMPLES[:count], **limits))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantized_layers_are_replayed(on_cuda, kind):
    for transformer in on_cuda:
        quantize_(transformer, kind)
    recording = Denoiser(*on_cuda, cuda_graphs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        replayed = draw(recording)

    assert kept(recording)[0] > 0
    assert_equal(replayed, draw(ordinary_one(on_cuda)))


def test_weights_that_change_in_place_change_what_is_replayed(on_cuda):
    recording, ordinary = Denoiser(*on_cuda, cuda_graphs=True), ordinary_one(on_cuda)
    request, same = make(recording, 1), make(ordinary, 1)
    for step in range(6):
        if step == 4:
            with torch.no_grad():
                on_cuda[0].layers[0].feed_forward.w1.weight.mul_(1.5)
        recording.step([request])
        ordinary.step([same])

    assert kept(recording) == [1, 1]
    assert torch.equal(request.latents, same.latents)


def test_graphs_that_go_leave_the_others_as_they_are(on_cuda, monkeypatch):
    """Memory of a graph that is gone is used by others and by everything else; each request has its own layout."""
    recording, ordinary = Denoiser(*on_cuda, cuda_graphs=True), ordinary_one(on_cuda)
    monkeypatch.setattr(graphs, "KEPT", 8)  # four of each branch
    requests, same = ([make(denoiser, seed, 5 + seed) for seed in range(7)] for denoiser in (recording, ordinary))
    for _ in range(2):
        for request, other in zip(requests, same, strict=True):
            for _ in range(3):
                recording.step([request])
                ordinary.step([other])
            torch.full((2**20,), torch.nan, device="cuda")
    torch.cuda.empty_cache()
    for request, other in zip(requests[-4:], same[-4:], strict=True):
        recording.step([request])
        ordinary.step([other])

    assert 0 < sum(kept(recording)) <= 8
    assert_equal([request.latents for request in requests], [request.latents for request in same])


def test_a_pool_that_was_let_go_is_followed_by_another(on_cuda):
    recording, ordinary = Denoiser(*on_cuda, cuda_graphs=True), ordinary_one(on_cuda)
    for seed in range(3):
        request, same = make(recording, seed), make(ordinary, seed)
        for _ in range(4):
            recording.step([request])
            ordinary.step([same])
        assert torch.equal(request.latents, same.latents)
        recording.free_graphs()
        assert not recording._conditional.graphs._store.pool.graphs


def test_requests_of_one_layout_share_a_graph(on_cuda):
    """Which reads each one's own caption, size in rows and columns, and schedule."""
    recording, ordinary = Denoiser(*on_cuda, cuda_graphs=True), ordinary_one(on_cuda)
    shapes = [dict(grid=(2, 3)), dict(grid=(3, 2)), dict(grid=(2, 3), steps=9), dict(grid=(1, 6))]
    requests, same = ([make(one, seed, **shape) for seed, shape in enumerate(shapes)] for one in (recording, ordinary))
    for _ in range(4):
        for request, other in zip(requests, same, strict=True):
            recording.step([request])
            ordinary.step([other])

    assert kept(recording) == [1, 1]
    assert_equal([request.latents for request in requests], [request.latents for request in same])


def test_small_streams_are_recorded_unasked(on_cuda):
    automatic = Denoiser(*on_cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replayed = draw(automatic)

    assert kept(automatic)[0] > 0 and automatic._graphs()[0]._store.pool.bytes > 0
    assert_equal(replayed, draw(ordinary_one(on_cuda)))


def test_noise_is_drawn_after_replays_as_without_them(on_cuda):
    def noise(denoiser):
        torch.manual_seed(3)
        draw(denoiser)
        return torch.randn(64, device="cuda")

    assert torch.equal(noise(Denoiser(*on_cuda, cuda_graphs=True)), noise(ordinary_one(on_cuda)))


def test_a_step_that_waits_for_the_device_goes_on_without_graphs(on_cuda, monkeypatch):
    plain = type(on_cuda[0]).velocity

    def velocity(self, latents, *args, **kwargs):
        assert float(latents.abs().sum()) >= 0
        return plain(self, latents, *args, **kwargs)

    expected = draw(ordinary_one(on_cuda))
    monkeypatch.setattr(type(on_cuda[0]), "velocity", velocity)
    recording, stream = Denoiser(*on_cuda, cuda_graphs=True), torch.cuda.current_stream()
    with pytest.warns(RuntimeWarning, match="CUDA graphs are not used any more: recording one failed with"):
        latents = draw(recording)

    assert torch.cuda.current_stream() == stream
    assert kept(recording) == [0, 0]
    assert_equal(latents, expected)
    # Noise is drawn, memory given and taken, and steps recorded as before.
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved()
    noise = torch.randn(2**23, device="cuda")
    assert torch.isfinite(noise).all() and torch.cuda.memory_reserved() > held
    del noise
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() == held
    monkeypatch.undo()
    again = Denoiser(*on_cuda, cuda_graphs=True)
    assert_equal(draw(again), expected)
    assert kept(again)[0] > 0


def test_the_generator_goes_on_where_it_was_after_a_recording_that_was_broken_off(on_cuda, monkeypatch):
    plain = type(on_cuda[0]).velocity

    def velocity(self, latents, *args, **kwargs):
        assert float(latents.abs().sum()) >= 0
        return plain(self, latents, *args, **kwargs)

    torch.manual_seed(11)
    expected = [torch.randn(8, device="cuda") for _ in range(3)]
    monkeypatch.setattr(type(on_cuda[0]), "velocity", velocity)
    torch.manual_seed(11)
    found = [torch.randn(8, device="cuda")]
    with pytest.warns(RuntimeWarning, match="CUDA graphs are not used any more"):
        draw(Denoiser(*on_cuda, cuda_graphs=True), SAMPLES[:1])
    found += [torch.randn(8, device="cuda") for _ in range(2)]

    assert_equal(found, expected)


def test_graphs_free_their_memory(on_cuda):
    """All of it, with the workspace that cuBLAS has for their stream."""
    ordinary = ordinary_one(on_cuda)
    recording, request = Denoiser(*on_cuda, cuda_graphs=True), make(ordinary, 1)
    ordinary.step([make(ordinary, 1)])  # what libraries keep is there

    def held():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    before = held()
    for _ in range(4):
        recording.step([request])
    assert held() > before
    with pytest.warns(RuntimeWarning):
        recording.give_up_graphs("for a test")

    assert held() <= before + 2 * 2**20  # a block of small tensors of the steps themselves


def test_an_engine_decodes_beside_replays(on_cuda):
    def pictures(denoiser):
        engine = Engine(denoiser, decode=lambda request, latents: latents @ latents.T, max_requests=2)
        for sample in SAMPLES:
            engine.add(make(denoiser, **sample))
        return {event.request.grid: event.image for event in engine.run() if event.kind == "finished"}

    ours, theirs = pictures(Denoiser(*on_cuda, cuda_graphs=True)), pictures(ordinary_one(on_cuda))

    assert len(ours) == len(SAMPLES) and all(torch.equal(ours[grid], theirs[grid]) for grid in theirs)

"""The transformer computes what the peer computes, at every position that belongs to a sample, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ideoflow.ops import linear
from ideoflow.packing import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, Layout, rows_to_layout

TOLERANCE = 2e-5
TEXT, IMAGE, EMPTY = LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, 0


def close(actual, expected, tolerance=TOLERANCE, floor=1e-30) -> bool:
    """Whether all values agree to `tolerance` of the largest value (at least `floor`)."""
    difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
    return difference <= tolerance * max(expected.abs().max().item() if expected.numel() else 0.0, floor)


def configs() -> st.SearchStrategy[dict]:
    @st.composite
    def draw_config(draw) -> dict:
        head_dim = 2 * draw(st.integers(3, 12))
        half = head_dim // 2
        least_heads = -(-16 // head_dim)  # norms over fewer than 16 channels amplify rounding, in the peer as in ours
        return dict(
            in_channels=draw(st.integers(4, 9)),
            num_layers=draw(st.integers(1, 3)),
            attention_head_dim=head_dim,
            num_attention_heads=draw(st.integers(least_heads, 4)),
            intermediate_size=draw(st.integers(8, 48)),
            adaln_dim=draw(st.integers(4, 16)),
            llm_features_dim=draw(st.integers(4, 24)),
            rope_theta=draw(st.sampled_from([100, 10_000, 5_000_000])),
            mrope_section=(
                draw(st.integers(0, half)),
                draw(st.integers(1, (half + 1) // 3)),
                draw(st.integers(1, half // 3)),
            ),
            norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        )

    return draw_config()


def packed_rows() -> st.SearchStrategy[list[list[tuple[int, int]]]]:
    """Rows of tokens: segments may be interleaved, numbered in any order, without text or image, or empty."""

    @st.composite
    def draw_rows(draw) -> list[list[tuple[int, int]]]:
        batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 20))
        ids = st.sampled_from(draw(st.lists(st.integers(-3, 2**40), min_size=1, max_size=4, unique=True)))
        scattered = st.tuples(ids, st.sampled_from([TEXT, IMAGE, EMPTY, 1, -7]))
        rows = []
        for _ in range(batch):
            row: list[tuple[int, int]] = []
            while len(row) < length:
                if draw(st.booleans()):
                    segment, text, image = draw(ids), draw(st.integers(0, 5)), draw(st.integers(0, 8))
                    row += [(segment, TEXT)] * text + [(segment, IMAGE)] * image
                else:
                    row.append(draw(scattered))
            padding = draw(st.integers(0, length))
            rows.append((row[: length - padding] + [(-1, EMPTY)] * padding)[:length])
        return rows

    return draw_rows()


@settings(max_examples=220, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(config=configs(), rows=packed_rows(), per_token_times=st.booleans(), seed=st.integers(0, 2**31))
def test_outputs_and_all_gradients_are_the_peers(make_pair, make_rows, real, config, rows, per_token_times, seed):
    widths = {name: config[name] for name in ("in_channels", "llm_features_dim")}
    inputs = make_rows(rows, seed, per_token_times, **widths)
    is_real = real(inputs)[..., None]
    cotangent = torch.randn(inputs["hidden_states"].shape, generator=torch.Generator().manual_seed(seed)) * is_real

    def run(model, dtype):
        given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
        leaves = {name: given[name].clone().requires_grad_() for name in ("hidden_states", "encoder_hidden_states")}
        output = model.to(dtype)(**given | leaves).sample
        output.backward(cotangent.to(dtype))
        leaves |= dict(model.named_parameters())
        return {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}, output.detach()

    peer, ours = make_pair(seed, **config)
    (expected, wanted), (gradients, output) = run(peer, torch.float32), run(ours, torch.float32)

    assert close(output * is_real, wanted * is_real)
    assert not (output * ~is_real).any()
    # Where sums cancel (the queries of lone tokens, the time under a norm) the size of the other gradients counts.
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    apart = [n for n, gradient in expected.items() if not close(gradients[n], gradient, floor=1e-2 * largest)]
    if apart:
        # Rounding that the model magnifies: then ours must be as near to float64 as the peer's is.
        exact, _ = run(make_pair(seed, **config)[0], torch.float64)
        for name in apart:
            error = (gradients[name] - exact[name]).abs().max()
            assert error <= 3 * (expected[name] - exact[name]).abs().max() <= 1e-3 * largest, name


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
def test_wide_layers_are_the_peers_on_the_path_of_large_products(make_pair, make_rows, real, monkeypatch):
    """Widths at which float32 products may take oneDNN, whether or not this processor gains by it."""
    monkeypatch.setattr(linear, "ONEDNN_IS_FASTER", True)
    config = dict(attention_head_dim=64, num_attention_heads=3, intermediate_size=512, num_layers=2)
    peer, ours = make_pair(11, mrope_section=(12, 10, 10), **config)
    rows = [[(i // 40, TEXT if i % 40 < 10 else IMAGE) for i in range(200)]] * 2
    inputs = make_rows(rows, 3, True)
    outputs, gradients = [], []
    for model in (peer, ours):
        output = model(**inputs).sample
        (output * real(inputs)[..., None]).square().sum().backward()
        outputs.append(output.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})

    assert close(outputs[1], outputs[0])
    largest = max(gradient.abs().max().item() for gradient in gradients[0].values())
    for name, expected in gradients[0].items():
        assert close(gradients[1][name], expected, floor=1e-2 * largest), name


def test_padding_comes_out_zero(ours, inputs, real):
    output = ours(**inputs).sample
    assert torch.equal(output.abs().sum(-1) == 0, ~real(inputs))


def test_a_batch_of_padding_alone_comes_out_zero_and_can_be_trained_on(ours, make_rows):
    inputs = make_rows([[(-1, EMPTY)] * 4, [(5, EMPTY)] * 4])
    output = ours(**inputs).sample
    assert output.shape == (2, 4, 8) and not output.any()
    output.sum().backward()
    assert not ours.final_layer.linear.weight.grad.any()


def test_tokens_without_a_role_count_in_a_segment_with_a_role(pair, make_rows):
    """An id of -1 does not make padding, nor does a strange role: what matters is whether the segment has a token."""
    inputs = make_rows([[(-1, EMPTY), (-1, IMAGE), (-1, 9), (-1, TEXT), (0, EMPTY), (0, 9)]])
    peer, ours = (model(**inputs).sample for model in pair)
    assert close(ours[:, :4], peer[:, :4])
    assert not ours[:, 4:].any()
    alone = pair[1](**{name: x if name == "timestep" else x[:, [1, 3]] for name, x in inputs.items()}).sample
    assert not close(alone[:, 0], peer[:, 1])


def test_garbage_where_nothing_is_read_reaches_neither_outputs_nor_gradients(ours, inputs, real):
    clean = {name: x.clone() for name, x in inputs.items()}
    clean["timestep"] = clean["timestep"][:, None].expand(-1, 14).clone()
    dirty = {name: x.clone() for name, x in clean.items()}
    dirty["hidden_states"][inputs["indicator"] != IMAGE] = float("nan")
    dirty["encoder_hidden_states"][inputs["indicator"] != TEXT] = float("inf")
    dirty["timestep"][~real(inputs)] = float("nan")
    dirty["position_ids"][~real(inputs)] = 2**62

    results = []
    for given_inputs in (clean, dirty):
        ours.zero_grad()
        leaves = {n: given_inputs[n].requires_grad_() for n in ("hidden_states", "encoder_hidden_states")}
        output = ours(**given_inputs).sample
        output.square().sum().backward()
        gradients = [x.grad.clone() for x in [*leaves.values(), *ours.parameters()]]
        results.append([output.detach(), *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("per_token_times", [False, True])
def test_gradients_of_times_are_the_peers(pair, make_rows, real, per_token_times):
    rows = [[(0, TEXT)] * 2 + [(0, IMAGE)] * 3 + [(-1, EMPTY)], [(0, IMAGE)] * 4 + [(1, IMAGE)] * 2]
    inputs = make_rows(rows, per_token_times=per_token_times)
    gradients = []
    for model in pair:
        times = inputs["timestep"].clone().requires_grad_()
        output = model(**inputs | {"timestep": times}).sample
        (output * real(inputs)[..., None]).square().sum().backward()
        gradients.append(times.grad)
    assert close(gradients[1], gradients[0], 2e-4)  # the sinusoid turns 1e4 radians: times magnify rounding


def test_forward_is_prepare_and_velocity(ours, inputs, stream_inputs):
    features, layout, latents, times = stream_inputs(inputs)
    _, index = rows_to_layout(inputs["position_ids"], inputs["segment_ids"], inputs["indicator"])
    velocity = ours.velocity(latents, times, ours.prepare(features, layout))
    expected = ours(**inputs).sample.flatten(0, 1)[index[layout.image]]
    assert close(velocity, expected, 1e-6)


def test_a_sample_is_the_same_alone_and_packed_with_others_in_any_order(ours):
    generator = torch.Generator().manual_seed(0)
    samples = [(5, 2, 3), (0, 3, 3), (4, 2, 3), (1, 1, 1), (9, 2, 1), (4, 2, 3)]
    features = [torch.randn(text, 20, generator=generator) for text, _, _ in samples]
    latents = [torch.randn(rows * cols, 8, generator=generator) for _, rows, cols in samples]
    times = torch.rand(len(samples), generator=generator)
    contexts = [ours.prepare(f, Layout.of_samples([sample])) for f, sample in zip(features, samples, strict=True)]
    alone = [ours.velocity(x, times[i, None], contexts[i]) for i, x in enumerate(latents)]

    for order in ([0, 1, 2, 3, 4, 5], [4, 2, 5, 0, 3, 1]):
        context = type(contexts[0]).cat([contexts[i] for i in order])
        packed = ours.velocity(torch.cat([latents[i] for i in order]), times[order], context)
        for i, velocity in zip(order, packed.split(context.layout.image_lengths), strict=True):
            assert close(velocity, alone[i], 1e-5)


def test_contexts_made_apart_are_the_context_made_together(ours):
    samples = [(5, 2, 3), (0, 3, 3), (4, 2, 3)]
    features = torch.randn(9, 20)
    together = ours.prepare(features, Layout.of_samples(samples))
    parts = zip(features.split([5, 0, 4]), samples, strict=True)
    apart = type(together).cat([ours.prepare(part, Layout.of_samples([sample])) for part, sample in parts])
    assert apart.layout.lengths == together.layout.lengths
    assert close(apart.text, together.text, 1e-6)
    assert torch.equal(apart.cos, together.cos) and torch.equal(apart.sin, together.sin)


def test_float64_is_the_peers(pair, inputs, real):
    wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    peer, ours = (model.double()(**wide).sample for model in pair)
    assert ours.dtype == torch.float64
    # The peer takes the variances of its norms in float32.
    assert close(ours[real(inputs)], peer[real(inputs)], 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.006)])
def test_half_precision_is_as_near_to_float32_as_the_peer(pair, inputs, real, dtype, tolerance):
    expected = pair[0](**inputs).sample[real(inputs)]
    half = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    half["timestep"] = half["timestep"].float().to(dtype)
    exact_times = inputs | {"timestep": half["timestep"].float()}
    expected = pair[0](**exact_times).sample[real(inputs)]
    peer, ours = (model.to(dtype)(**half).sample[real(inputs)] for model in pair)
    assert ours.dtype == dtype
    assert close(ours.float(), expected, tolerance)
    error, peer_error = ((x.float() - expected).square().mean() for x in (ours, peer))
    assert error < 2 * peer_error


def test_times_stay_float32_in_a_half_precision_model(pair, inputs, real):
    """The peer rounds times to the model's type; ours takes them in float32 and is nearer to the exact velocity."""
    expected = pair[0](**inputs).sample[real(inputs)]
    half = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    ours = pair[1].bfloat16()
    exact = ours(**half | {"timestep": inputs["timestep"]}).sample[real(inputs)].float()
    rounded = ours(**half).sample[real(inputs)].float()
    assert (exact - expected).square().mean() < (rounded - expected).square().mean()


def test_float32_features_are_welcome_in_a_half_precision_model(ours, inputs, stream_inputs):
    features, layout, latents, times = stream_inputs(inputs)
    ours.bfloat16()
    context = ours.prepare(features, layout)
    assert context.text.dtype == torch.bfloat16
    assert ours.velocity(latents.bfloat16(), times, context).dtype == torch.bfloat16


def test_autocast_is_near_float32(ours, inputs, real):
    expected = ours(**inputs).sample[real(inputs)]
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(**inputs).sample[real(inputs)]
    assert output.dtype == torch.bfloat16
    assert close(output.float(), expected, 0.05)


def test_a_tuple_is_returned_on_request(ours, inputs):
    output = ours(**inputs, return_dict=False)
    assert isinstance(output, tuple) and torch.equal(output[0], ours(**inputs).sample)

"""What the roofline counts is what runs: FLOPs by PyTorch's own counter, bytes by the tensors of each operation.

PyTorch's counter knows matrix products and attention, ours and the peer's alike: `Work.matrix_flops` equals it.
Attention runs as two products here, as the counter does not know the CPU's fused kernel. It counts no element-wise
operation, so `Work.vector_flops` has no oracle; and it counts no bytes, so those of the blocks' element-wise work are
taken from the tensors that go in and out of each operation. Bytes of the other parts have no oracle but the weights'.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline
from benchmarks.roofline import (
    BASE,
    ELEMENTWISE,
    IMPLEMENTATIONS,
    MACHINES,
    PARTS,
    REQUEST,
    STEP,
    TABLES,
    TEXT,
    Config,
    Implementation,
    Machine,
    Part,
    Sample,
    count,
    seconds,
    work_of,
)
from ideoflow import Ideogram4Transformer2DModel
from ideoflow.engine import Denoiser, Request
from ideoflow.engine import denoiser as denoiser_module
from ideoflow.model import Context
from ideoflow.model.rope import rotate
from ideoflow.packing import IMAGE_POSITION_OFFSET, LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR, Layout

BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}
OURS, PEER, TRIMMED = BY_NAME[BASE], BY_NAME["diffusers"], BY_NAME["~ trimmed"]
WHOLE = Implementation("whole last block")
FULL = [Sample(400, 64, 64)]

NARROW = dict(
    in_channels=8,
    num_layers=2,
    attention_head_dim=16,
    num_attention_heads=2,
    intermediate_size=40,
    adaln_dim=12,
    llm_features_dim=20,
    mrope_section=(4, 2, 2),
)
WIDE = NARROW | dict(num_layers=3, num_attention_heads=3, intermediate_size=56, llm_features_dim=300, in_channels=16)
SHALLOW = NARROW | dict(num_layers=1, attention_head_dim=32, num_attention_heads=1, adaln_dim=5)
CONFIGS = pytest.mark.parametrize("sizes", [NARROW, WIDE, SHALLOW], ids=["narrow", "wide", "shallow"])

ONE = [Sample(5, 2, 3)]
SEVERAL = [Sample(5, 2, 3), Sample(11, 4, 2), Sample(1, 2, 3)]
SOME_UNGUIDED = [Sample(7, 3, 3, guided=False), Sample(4, 3, 3), Sample(0, 2, 5)]
NONE_GUIDED = [Sample(7, 3, 3, guided=False)]
TRAFFICS = pytest.mark.parametrize(
    "samples",
    [ONE, SEVERAL, SOME_UNGUIDED, NONE_GUIDED],
    ids=["one", "several", "some unguided", "none guided"],
)


@contextmanager
def flops_counted() -> Iterator[FlopCounterMode]:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def denoiser_request(denoiser: Denoiser, sample: Sample, config: Config) -> Request:
    return Request(
        conditional=denoiser.prepare_conditional(
            torch.randn(sample.text, config.llm_features_dim), (sample.rows, sample.cols)
        ),
        unconditional=denoiser.prepare_unconditional((sample.rows, sample.cols)),
        latents=torch.randn(sample.image, config.in_channels),
        sigmas=torch.tensor([1.0, 0.5, 0.0]),
        guidance=(7.0 if sample.guided else 1.0,) * 2,
        grid=(sample.rows, sample.cols),
    )


def peer_inputs(samples: list[Sample], config: Config, text: int) -> dict[str, Tensor]:
    """Rows of the peer's conditional call for pictures of one size, text padded on the left to `text` tokens."""
    rows, length = len(samples), text + samples[0].image
    roles = torch.zeros(rows, length, dtype=torch.long)
    for row, sample in enumerate(samples):
        roles[row, text - sample.text : text] = LLM_TOKEN_INDICATOR
    roles[:, text:] = OUTPUT_IMAGE_INDICATOR
    return dict(
        hidden_states=torch.randn(rows, length, config.in_channels),
        timestep=torch.full((rows,), 0.5),
        encoder_hidden_states=torch.randn(rows, length, config.llm_features_dim),
        position_ids=torch.zeros(rows, length, 3, dtype=torch.long) + IMAGE_POSITION_OFFSET,
        segment_ids=torch.where(roles > 0, 1, -1),
        indicator=roles,
    )


@CONFIGS
@TRAFFICS
def test_prepare_and_velocity_do_the_counted_flops(sizes, samples):
    config, model = Config.of(sizes), Ideogram4Transformer2DModel(**sizes).eval()
    parts = count(config, samples, OURS, "float32")
    for branch, texts, members in (
        ("conditional", [s.text for s in samples], samples),
        ("unconditional", [0] * len(samples), [s for s in samples if s.guided]),
    ):
        mine = [part for part in parts if part.call.startswith(branch)]
        contexts = []
        with flops_counted() as once:
            for sample, text in zip(members, texts, strict=False):
                features = torch.randn(text, config.llm_features_dim)
                contexts.append(model.prepare(features, Layout.of_samples([(text, sample.rows, sample.cols)])))
        assert work_of(mine, when=REQUEST).matrix_flops == once.get_total_flops()
        if not members:
            continue
        context = Context.cat(contexts)
        latents = torch.randn(sum(s.image for s in members), config.in_channels)
        with flops_counted() as step:
            model.velocity(latents, torch.rand(len(members)), context)
        assert work_of(mine).matrix_flops == step.get_total_flops()


@TRAFFICS
def test_the_engine_does_the_counted_flops(samples, monkeypatch):
    monkeypatch.setattr(denoiser_module, "SCHEDULES", 0)  # the modulations of a step at the step, as they are counted
    config = Config.of(WIDE)
    denoiser = Denoiser(*(Ideogram4Transformer2DModel(**WIDE).eval() for _ in range(2)))
    parts = count(config, samples, OURS, "float32")
    with flops_counted() as once:
        requests = [denoiser_request(denoiser, sample, config) for sample in samples]
    assert work_of(parts, when=REQUEST).matrix_flops == once.get_total_flops()
    for _ in range(2):
        with flops_counted() as step:
            denoiser.step(requests)
        assert work_of(parts).matrix_flops == step.get_total_flops()


@CONFIGS
@TRAFFICS
@pytest.mark.parametrize("padded", [0, 24], ids=["trimmed", "padded"])
def test_the_peer_does_the_counted_flops(sizes, samples, padded):
    config, model = Config.of(sizes), diffusers.Ideogram4Transformer2DModel(**sizes).eval()
    parts = count(config, samples, Implementation("peer", padded_text=padded), "float32")
    with flops_counted() as counter:
        for grid in {(s.rows, s.cols) for s in samples}:
            batch = [s for s in samples if (s.rows, s.cols) == grid]
            model(**peer_inputs(batch, config, padded or max(s.text for s in batch)))
            model(**peer_inputs([replace(s, text=0) for s in batch], config, 0))
    assert work_of(parts, when=None).matrix_flops == counter.get_total_flops()
    assert work_of(parts, when=REQUEST).matrix_flops == 0


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_the_peers_pipeline_makes_the_counted_calls(peer_pipeline, guidance):
    """Both transformers at each step, whatever the guidance, over captions padded to the same length."""
    steps, text, side = 2, 200, 4
    samples = [Sample(1, side, side, guided=guidance != 1)] * 2  # the length of a caption does not matter
    parts = count(Config.of(peer_pipeline.transformer.config), samples, Implementation("peer", text), "float32")
    counted = 0

    def counting(forward):
        def call(*args, **kwargs):
            nonlocal counted
            with flops_counted() as counter:
                output = forward(*args, **kwargs)
            counted += counter.get_total_flops()
            return output

        return call

    branches = (peer_pipeline.transformer, peer_pipeline.unconditional_transformer)
    with pytest.MonkeyPatch.context() as patch:
        for branch in branches:
            patch.setattr(branch, "forward", counting(branch.forward))
        peer_pipeline(
            ["a", "bc"], height=16 * side, width=16 * side, num_inference_steps=steps, max_sequence_length=text,
            guidance_schedule=[guidance] * steps, output_type="latent",
        )  # fmt: skip
    assert counted == steps * work_of(parts).matrix_flops


def test_a_last_block_at_image_tokens_does_the_counted_flops():
    """Queries and all that follows at image tokens: by hand on one layer, which gives the same velocities."""
    config, model = Config.of(SHALLOW), Ideogram4Transformer2DModel(**SHALLOW).eval()
    sample = Sample(6, 3, 4)
    context = model.prepare(torch.randn(6, 20), Layout.of_samples([(6, 3, 4)]))
    block, image = model.layers[0], context.layout.image
    latents, times = torch.randn(12, 8), torch.rand(1)
    with torch.no_grad():
        expected = model.velocity(latents, times, context)
    fed, attention = block.feed_forward, block.attention
    with flops_counted() as counter:
        # The time and the embedding as they are, then the block without its text rows.
        conditioning = torch.nn.functional.silu(model.adaln_proj(model.t_embedding(times, latents.dtype)))
        image_row = model.embed_image_indicator.weight[1]
        hidden = torch.cat((context.text, model.input_proj(latents) + image_row))
        scale1, gate1, scale2, gate2 = block.adaln_modulation(conditioning).chunk(4, dim=-1)
        normed = block.attention_norm1(hidden) * (1 + scale1)
        query, key, value = attention.to_q(normed[image]), attention.to_k(normed), attention.to_v(normed)
        attended = attend(attention, query, key, value, context, image)
        hidden = hidden[image] + gate1.tanh() * block.attention_norm2(attention.to_out[0](attended))
        hidden = hidden + gate2.tanh() * block.ffn_norm2(fed(block.ffn_norm1(hidden) * (1 + scale2)))
        velocity = model.final_layer(hidden, conditioning, None)
    torch.testing.assert_close(velocity, expected)
    parts = [p for p in count(config, [sample], OURS, "float32") if p.call == "conditional"]
    assert work_of(parts).matrix_flops == counter.get_total_flops()


def attend(attention, query, key, value, context, image) -> Tensor:
    query, key, value = (x.unflatten(-1, (attention.num_heads, attention.head_dim)) for x in (query, key, value))
    query = rotate(attention.norm_q(query), context.cos[image], context.sin[image])
    key = rotate(attention.norm_k(key), context.cos, context.sin)
    heads = (x.transpose(0, 1)[None] for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(*heads)[0].transpose(0, 1).flatten(1)


class Traffic(TorchDispatchMode):
    """Adds up the bytes of tensors in and out of each operation that is no view, weights and all."""

    def __init__(self, besides: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.besides = ("_unsafe_view", *besides)
        self.read = self.written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        if func.overloadpacket.__name__ not in self.besides and not func.is_view:
            self.read += sum(x.nbytes for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            self.written += sum(x.nbytes for x in tree_leaves(out) if isinstance(x, Tensor))
        return out


# `where` makes the peer's mask
PRODUCTS = ("mm", "addmm", "_linear_pointwise", "where", "_scaled_dot_product_flash_attention_for_cpu")
LARGER = NARROW | dict(attention_head_dim=32, num_attention_heads=4, intermediate_size=300, llm_features_dim=500)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
MOVING = pytest.mark.parametrize("samples", [[Sample(100, 20, 20)], [Sample(100, 20, 20)] * 2], ids=["one", "two"])


def bytes_moved(parts: list[Part]) -> tuple[int, int]:
    """Bytes read, weights among them, and written in conditional calls, as counted."""
    table = work_of([part for part in parts if part.call.startswith("conditional")], when=None).bytes_by_type()
    return sum(table["weights"].values()) + sum(table["read"].values()), sum(table["written"].values())


def of_type(model: type[nn.Module], dtype: str) -> nn.Module:
    return model(**LARGER).eval().to(getattr(torch, dtype))


@DTYPES
@MOVING
def test_our_blocks_move_the_counted_bytes(dtype, samples):
    """But for gains of norms and roots, one for each row of a norm: within 2%."""
    block = of_type(Ideogram4Transformer2DModel, dtype).layers[0]
    layout = Layout.of_samples([(s.text, s.rows, s.cols) for s in samples])
    hidden, conditioning, table = (
        torch.randn(rows, width, dtype=getattr(torch, dtype))
        for rows, width in ((layout.tokens, 128), (len(samples), 12), (layout.tokens, 32))
    )
    time_of_token = layout.segment if len(samples) > 1 else None
    with torch.no_grad(), Traffic(besides=PRODUCTS) as traffic:
        block(hidden, conditioning, time_of_token, (table, table), layout.bounds)
    parts = count(Config.of(LARGER | dict(num_layers=1)), samples, WHOLE, dtype, device="cpu")
    counted = bytes_moved([part for part in parts if part.name == ELEMENTWISE])
    assert (traffic.read, traffic.written) == pytest.approx(counted, rel=0.02)


@DTYPES
@MOVING
def test_the_peers_blocks_move_the_counted_bytes(dtype, samples):
    """Likewise."""
    block = of_type(diffusers.Ideogram4Transformer2DModel, dtype).layers[0]
    rows, length = len(samples), samples[0].text + samples[0].image
    hidden, conditioning, table = (
        torch.randn(rows, n, width, dtype=getattr(torch, dtype)) for n, width in ((length, 128), (1, 12), (length, 32))
    )
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
    with torch.no_grad(), Traffic(besides=PRODUCTS) as traffic:
        block(hidden, mask, (table, table), conditioning)
    parts = count(Config.of(LARGER | dict(num_layers=1)), samples, TRIMMED, dtype, device="cpu")
    counted = bytes_moved([part for part in parts if part.name == ELEMENTWISE])
    assert (traffic.read, traffic.written) == pytest.approx(counted, rel=0.02)


@DTYPES
@MOVING
def test_our_calls_move_the_counted_bytes(dtype, samples):
    """Within 2%: a kernel of attention also notes a number for each row."""
    model = of_type(Ideogram4Transformer2DModel, dtype)
    layouts = [Layout.of_samples([(s.text, s.rows, s.cols)]) for s in samples]
    features = torch.randn(samples[0].text, 500, dtype=model.dtype)
    with torch.no_grad(), Traffic() as once:
        contexts = [model.prepare(features, layout) for layout in layouts]
    context = Context.cat(contexts)
    context.layout.order  # noqa: B018 (made at the first step, and kept)
    latents, times = torch.randn(len(context.layout.image), 8, dtype=model.dtype), torch.rand(len(samples))
    with torch.no_grad(), Traffic() as step:
        model.velocity(latents, times, context)
    parts = count(Config.of(LARGER), samples, OURS, dtype, device="cpu")
    for traffic, when in ((once, REQUEST), (step, STEP)):
        counted = bytes_moved([part for part in parts if part.when == when])
        assert (traffic.read, traffic.written) == pytest.approx(counted, rel=0.02)


@DTYPES
@MOVING
def test_the_peers_calls_move_the_counted_bytes(dtype, samples):
    """Likewise."""
    model = of_type(diffusers.Ideogram4Transformer2DModel, dtype)
    inputs = peer_inputs(samples, Config.of(LARGER), samples[0].text)
    inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad(), Traffic() as traffic:
        model(**inputs)
    counted = bytes_moved(count(Config.of(LARGER), samples, TRIMMED, dtype, device="cpu"))
    assert (traffic.read, traffic.written) == pytest.approx(counted, rel=0.02)


@DTYPES
@pytest.mark.parametrize("side", [OURS, TRIMMED], ids=lambda i: i.name)
def test_what_is_outside_the_blocks_moves_the_counted_bytes(dtype, side):
    """A call of one layer less what a second one adds, as the blocks' bytes would hide these: within 5%.

    Our last block differs from the others: there it stays with what is outside, and depths are one more.

    Taking some rows of a tensor looks here as if it read them all. The peer's choice of angles, which puts a few into a
    tensor in place, is left out for that reason.
    """
    in_place = ("index", "index_put_")
    sample, moved = Sample(100, 20, 20), []
    depths = (2, 3) if side is OURS else (1, 2)
    for layers in depths:
        sizes = LARGER | dict(num_layers=layers, num_attention_heads=1, attention_head_dim=256, llm_features_dim=20)
        if side is OURS:
            model = Ideogram4Transformer2DModel(**sizes).eval().to(getattr(torch, dtype))
            layout = Layout.of_samples([(sample.text, sample.rows, sample.cols)])
            layout.order  # noqa: B018 (made at the first step, and kept)
            context = model.prepare(torch.randn(sample.text, 20, dtype=model.dtype), layout)
            arguments = torch.randn(sample.image, 8, dtype=model.dtype), torch.rand(1), context
            with torch.no_grad(), Traffic() as traffic:
                model.velocity(*arguments)
        else:
            model = diffusers.Ideogram4Transformer2DModel(**sizes).eval().to(getattr(torch, dtype))
            inputs = peer_inputs([sample], Config.of(sizes), sample.text)
            inputs = {name: x.to(model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}
            with torch.no_grad(), Traffic(besides=in_place) as traffic:
                model(**inputs)
        moved.append((traffic.read, traffic.written))
    outside = [2 * one - two for one, two in zip(*moved, strict=True)]
    # The modulations are a layer's too: count both depths, and subtract likewise.
    counted = []
    for layers in depths:
        parts = count(Config.of(sizes | dict(num_layers=layers)), [sample], side, dtype, device="cpu")
        counted.append(bytes_moved([part for part in parts if part.when == STEP]))
    assert outside == pytest.approx([2 * one - two for one, two in zip(*counted, strict=True)], rel=0.05)


def test_weights_are_read_once_a_call():
    """All but the table of roles and the gains of norms; no step of ours reads the text projection."""
    model: nn.Module = diffusers.Ideogram4Transformer2DModel(**WIDE)
    small = {n for n, _ in model.named_parameters() if "norm" in n or "indicator" in n}
    parameters = sum(p.numel() for n, p in model.named_parameters() if n not in small)
    text = sum(p.numel() for n, p in model.named_parameters() if n.startswith("llm_cond_proj"))
    config = Config.of(WIDE)
    peer = work_of(count(config, ONE, PEER, "bfloat16")).bytes_by_type()["weights"]
    ours = work_of(count(config, ONE, OURS, "bfloat16")).bytes_by_type()["weights"]
    assert peer == {"bfloat16": 2 * 2 * parameters}
    assert ours == {"bfloat16": 2 * 2 * (parameters - text)}


def test_the_defaults_are_those_of_the_transformer():
    defaults = {name: p.default for name, p in inspect.signature(Ideogram4Transformer2DModel).parameters.items()}
    assert asdict(Config()) == {name: defaults[name] for name in asdict(Config())}


def test_the_full_model_takes_172_tflop_and_the_peer_216_as_others_counted():
    """SPEC's figures, rounded as they are."""
    ours, peer = (work_of(count(Config(), FULL, side, "bfloat16")).matrix_flops for side in (OURS, PEER))
    assert ours == pytest.approx(172e12, rel=0.005)
    assert peer == pytest.approx(216e12, rel=0.005)


def test_the_published_weights_have_about_9_billion_parameters_to_read():
    weights = work_of(count(Config(), FULL, PEER, "bfloat16")).bytes_by_type()["weights"]["bfloat16"]
    assert weights / 2 / 2 == pytest.approx(9.28e9, rel=0.005)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
@pytest.mark.parametrize(
    "more",
    [[Sample(401, 64, 64)], [Sample(400, 65, 64)], [Sample(400, 64, 65)], FULL * 2, [*FULL, Sample(0, 8, 8, False)]],
    ids=["text", "rows", "cols", "twice", "another"],
)
def test_more_tokens_never_take_less(implementation, more):
    small, large = (count(Config(), samples, implementation, "bfloat16") for samples in (FULL, more))
    for name in PARTS:
        before, after = work_of(small, name, None), work_of(large, name, None)
        assert before.matrix_flops <= after.matrix_flops and before.bytes <= after.bytes
        assert before.vector_flops <= after.vector_flops
    grows = implementation.padded_text != 2048 or more[0].text == 400
    assert (work_of(small).matrix_flops < work_of(large).matrix_flops) == grows


@pytest.mark.parametrize("name", list(asdict(Config())))
@pytest.mark.parametrize("implementation", [OURS, PEER, WHOLE], ids=lambda i: i.name)
def test_a_larger_model_takes_more(name, implementation):
    config = Config()
    larger = replace(config, **{name: getattr(config, name) * 2})
    small, large = (count(c, FULL, implementation, "bfloat16") for c in (config, larger))
    assert work_of(small, when=None).matrix_flops < work_of(large, when=None).matrix_flops
    assert work_of(small, when=None).bytes < work_of(large, when=None).bytes


def test_each_implementation_takes_less_than_the_one_it_improves():
    work = {i.name: work_of(count(Config(), FULL, i, "bfloat16")) for i in IMPLEMENTATIONS}
    work["whole"] = work_of(count(Config(), FULL, WHOLE, "bfloat16"))
    flops = [work[name].matrix_flops for name in ("diffusers", "~ trimmed", "whole", BASE)]
    assert flops == sorted(flops, reverse=True) and len(set(flops)) == 4
    assert work["~ fused"].matrix_flops == work[BASE].matrix_flops
    assert work["~ fused"].vector_flops == work[BASE].vector_flops
    assert work["~ fused"].bytes < work[BASE].bytes
    assert work["~ trimmed, fused"].bytes < work["~ trimmed"].bytes < work["diffusers"].bytes


def test_without_text_there_is_nothing_to_leave_out_of_the_last_block():
    samples = [Sample(0, 8, 8)]
    assert count(Config(), samples, WHOLE, "bfloat16") == count(Config(), samples, OURS, "bfloat16")


def test_float32_moves_twice_the_bytes_of_bfloat16_where_types_are_all_one():
    single, half = (work_of(count(Config(), FULL, BY_NAME["~ fused"], dtype)) for dtype in ("float32", "bfloat16"))
    assert single.bytes == 2 * half.bytes and single.matrix_flops == half.matrix_flops


def test_a_part_takes_the_longer_of_its_products_and_its_bytes():
    parts = count(Config(), FULL, OURS, "bfloat16")
    flops, moved = 1e15, 1e12
    for name in PARTS:
        one_call = [part for part in parts if part.name == name and part.call == "conditional"]
        work = work_of(one_call)
        expected = max(work.matrix_flops / flops, work.bytes / moved)
        assert seconds(one_call, Machine("m", {"bfloat16": flops}, moved), "bfloat16") == pytest.approx(expected)
    fast_memory = Machine("m", {"bfloat16": flops}, 1e30)
    assert seconds(parts, fast_memory, "bfloat16") == pytest.approx(work_of(parts).matrix_flops / flops)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_ours_is_bound_to_less_time_than_the_peer_on_every_machine(machine):
    ours, trimmed, peer = (
        seconds(count(Config(), FULL, side, "bfloat16"), machine, "bfloat16") for side in (OURS, TRIMMED, PEER)
    )
    assert ours < trimmed < peer


def test_steps_of_ours_neither_project_text_nor_make_tables():
    parts = count(Config(), SEVERAL, OURS, "bfloat16")
    for name in (TEXT, TABLES):
        assert work_of(parts, name, STEP).bytes == 0 < work_of(parts, name, REQUEST).bytes
    assert {part.name for part in parts if part.when == STEP} == set(PARTS) - {TEXT, TABLES}


def test_a_caption_longer_than_the_peer_pads_to_is_refused():
    with pytest.raises(ValueError, match="2049 tokens is longer than the 2048"):
        count(Config(), [Sample(2049, 8, 8)], PEER, "bfloat16")


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="`samples` is empty"):
        count(Config(), [], OURS, "bfloat16")


def test_the_command_prints_a_table_of_each_machine_and_writes_json(tmp_path, capsys):
    out = tmp_path / "made" / "roofline.json"
    roofline.main(["--sample", "400,64,64", "--sample", "90,32,32,unguided", "--steps", "20", "--out", str(out)])
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["samples"][1] == {"text": 90, "rows": 32, "cols": 32, "guided": False}
    assert set(figures["implementations"]) == {i.name for i in IMPLEMENTATIONS}
    for machine in MACHINES.values():
        assert machine.name in printed
        for side in figures["implementations"].values():
            time = side["time"][machine.name]
            assert sum(part["share"] for part in time["parts"].values()) == pytest.approx(1)
            assert time["all_steps_seconds"] == pytest.approx(time["once_seconds"] + 20 * time["step_seconds"])
    for name in PARTS:
        assert printed.count(f"\n{name} ") == 1 + len(MACHINES)
    step = figures["implementations"][BASE]["work"]["cuda"][STEP]
    assert sum(step[name]["matrix_flops"] for name in PARTS) == step["total"]["matrix_flops"]
    by_type = figures["implementations"]["diffusers"]["work"]["cuda"][STEP][TABLES]["bytes"]
    assert set(by_type["written"]) == {"float32", "bfloat16", "bool"}


def test_the_command_takes_a_config_and_measures_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, out = tmp_path / "config.json", tmp_path / "roofline.json"
    Ideogram4Transformer2DModel(**NARROW).save_config(tmp_path)
    arguments = ["--measure", "--dtype", "float32", "--sample", "5,2,3", "--config", str(config), "--out", str(out)]
    roofline.main(arguments)
    figures = json.loads(out.read_text())
    assert figures["config"] == asdict(Config.of(NARROW))
    (machine,) = figures["machines"]
    assert machine["device"] == "cpu" and set(machine["matrix"]) == {"float32", "bfloat16"}
    assert min(*machine["matrix"].values(), machine["bandwidth"]) > 0
    assert "measured" in capsys.readouterr().out


def test_the_command_takes_a_machine_of_the_users_own(capsys):
    roofline.main(["--tflops", "100", "--bandwidth", "2", "--dtype", "float32"])
    assert "your machine: 100 TFLOP/s, 2 TB/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float32"], "use --measure, or --tflops and --bandwidth"),
        (["--tflops", "100"], "give both"),
        (["--tflops", "0", "--bandwidth", "1"], "must be positive"),
        (["--measure", "--machine", "h200"], "choose one"),
        (["--sample", "400,64"], "TEXT,ROWS,COLS"),
        (["--sample", "400,64,0"], "1 or more"),
        (["--sample", "400,64,64,guarded"], "TEXT,ROWS,COLS"),
        (["--sample", "2049,64,64"], "up to 2048 tokens"),
        (["--steps", "0"], "at least 1"),
        (["--config", "/nowhere/config.json"], "--config"),
    ],
)
def test_the_command_refuses_with_what_it_needs(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        roofline.main(arguments)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["[1]", '{"num_layers": 0}', '{"adaln_dim": "wide"}', "{"])
def test_the_command_refuses_a_file_that_is_no_config(content, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(SystemExit):
        roofline.main(["--config", str(path)])
    assert "--config:" in capsys.readouterr().err

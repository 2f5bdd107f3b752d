"""What the counts of the full model come to, how they grow, and the times that they bound."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace

import pytest

from benchmarks.roofline import (
    BASE,
    IMPLEMENTATIONS,
    MACHINES,
    PARTS,
    REQUEST,
    STEP,
    TABLES,
    TEXT,
    Config,
    Machine,
    Sample,
    count,
    seconds,
    work_of,
)
from ideoflow import Ideogram4Transformer2DModel

from .cases import BY_NAME, FULL, OURS, PEER, SEVERAL, TRIMMED, WHOLE


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

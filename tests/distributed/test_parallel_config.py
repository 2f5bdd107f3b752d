"""Plans that cannot be are refused before anything is loaded, saying what is allowed."""

import json
import os
import subprocess
import sys

import pytest
import torch

from ideoflow.distributed import ParallelConfig, joined, parallel_pipeline
from ideoflow.distributed.applied_plan import check_plan
from tests.distributed.cases import pipeline


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("guidance=2", ParallelConfig(guidance=2)),
        ("guidance=2,context=3", ParallelConfig(guidance=2, context=3)),
        (" tensor=2 , data=4", ParallelConfig(tensor=2, data=4)),
    ],
)
def test_plans_are_read_as_they_are_written(text, plan):
    assert ParallelConfig.parse(text) == plan


@pytest.mark.parametrize("text", ["", "guidance", "guidance=two", "context=2,context=2", "ring=2", "context=-2"])
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ValueError, match="no part of a plan: give each of context, data, guidance, tensor once"):
        ParallelConfig.parse(text)


@pytest.mark.parametrize(("name", "number"), [("guidance", 3), ("context", 0), ("tensor", -1)])
def test_numbers_that_cannot_be_are_refused(name, number):
    with pytest.raises(ValueError, match=f"`{name}` is {number}"):
        ParallelConfig(**{name: number})


def test_a_plan_needs_as_many_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"for 4 processes, and there are 3 .*torchrun --nproc-per-node 4"):
        joined(ParallelConfig(guidance=2, context=2), "cpu").__enter__()


def test_a_plan_for_one_process_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="shares nothing"):
        joined(ParallelConfig(), "cpu").__enter__()


@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_devices_that_ranks_cannot_have_are_refused(monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=device):
        joined(ParallelConfig(context=2), device).__enter__()


def test_heads_that_do_not_divide_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"num_attention_heads": 18}))
    with pytest.raises(ValueError, match=r"`tensor` is 4, but the conditional branch has 18 heads.* 1, 2, 3, 6"):
        parallel_pipeline(tmp_path, ParallelConfig(tensor=4), "cpu").__enter__()


@pytest.fixture(scope="module")
def pipe():
    return pipeline((2, 2))


def test_what_stands_against_a_plan_is_refused(pipe, monkeypatch):
    check_plan(ParallelConfig(context=2), pipe)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="CUDA graphs"):
        patch.setattr(pipe, "_cuda_graphs", True)
        check_plan(ParallelConfig(context=2), pipe)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="compiled"):
        patch.setattr(pipe.transformer.layers[0], "_compiled_call_impl", print)
        check_plan(ParallelConfig(context=2), pipe)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="different types"):
        patch.setattr(pipe, "unconditional_transformer", pipeline((2, 2)).unconditional_transformer.to(torch.bfloat16))
        check_plan(ParallelConfig(context=2), pipe)


def test_adapters_are_refused_where_a_branch_is_shared():
    adapted = pipeline((2, 2))
    from peft import LoraConfig

    adapted.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
    check_plan(ParallelConfig(guidance=2), adapted)
    for plan in (ParallelConfig(context=2), ParallelConfig(data=2), ParallelConfig(tensor=2)):
        with pytest.raises(ValueError, match="fuse them"):
            check_plan(plan, adapted)


def test_offloading_is_refused():
    from accelerate import cpu_offload

    moved = pipeline((2, 2))
    cpu_offload(moved.transformer, "cpu")
    with pytest.raises(ValueError, match="offloading"):
        check_plan(ParallelConfig(context=2), moved)


def test_nothing_of_torch_distributed_is_imported_before_it_is_asked_for():
    code = "import sys, ideoflow.distributed; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)

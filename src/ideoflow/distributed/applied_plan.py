"""Applying a plan to a pipeline: each rank loads and keeps what it computes with, rank 0 draws, the others follow."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..dtypes import name_of, of_name
from ..model import Ideogram4Transformer2DModel
from ..ops.adapters import adapter_layers
from ..ops.hooks import is_offloaded
from ..pipeline import Ideogram4Pipeline
from .context_parallel import share_context
from .followers import Follower, failing_together
from .parallel_config import ParallelConfig
from .parallel_denoiser import Leader, ParallelDenoiser
from .ranks import Branch, Ranks, joined
from .remote_branch import RemoteBranch
from .tensor_parallel import check_tensor, share_tensors

PARTS: dict[Branch, str] = {"conditional": "transformer", "unconditional": "unconditional_transformer"}
OTHERS = ("text_encoder", "tokenizer", "vae", "scheduler", "prompt_enhancer_head")  # of which only rank 0 has need


@contextmanager
def enable_parallelism(
    pipe: Ideogram4Pipeline, config: ParallelConfig | Ranks, device: str = ""
) -> Iterator[Ideogram4Pipeline | None]:
    """Share a pipeline's steps among the processes that torchrun has started, each of which has loaded it on the CPU.

    Each rank keeps what it computes with and moves that to its device. Within the block rank 0 draws with the pipeline,
    by calls and engines as ever. The others pass the block with None, and at its end follow until rank 0 comes to its
    own.

    Args:
        pipe: The pipeline, the same in each process; or, as `parallel_pipeline` loads it, without what its rank has no
            need of.
        config: The plan, or ranks that have `joined` already.
        device: As in `joined`.

    Yields:
        The pipeline in rank 0, None in the others.

    Raises:
        ValueError: if plan, processes and pipeline do not fit.
        RankLost: naming the rank that the run has failed from.
    """
    if not isinstance(config, Ranks):
        check_plan(config, pipe)
        with joined(config, device) as ranks, enable_parallelism(pipe, ranks) as shared:
            yield shared
        return
    config.begin()
    with failing_together(config):
        check_plan(config.config, pipe)
        own = _apply(pipe, config)
    if config.leads:
        leader = Leader(config, own, pipe.transformer.dtype)
        pipe.new_denoiser = partial(ParallelDenoiser, leader)
        try:
            yield pipe
        finally:
            leader.end()
    else:
        follower = Follower(config, own)
        yield None
        follower.run()


@contextmanager
def parallel_pipeline(
    model: str | os.PathLike[str], config: ParallelConfig | Ranks, device: str = "", **options: Any
) -> Iterator[Ideogram4Pipeline | None]:
    """`enable_parallelism` of a folder's or a hub id's pipeline, of which each rank loads what it needs alone.

    Args:
        model: As `Ideogram4Pipeline.from_pretrained` takes it.
        config: As in `enable_parallelism`.
        device: As in `joined`.
        options: Those of `from_pretrained`.

    Yields:
        The pipeline in rank 0, None in the others.

    Raises:
        ValueError: if plan and processes, or the plan and a folder's configurations, do not fit, before anything is
            loaded.
        RankLost: naming the rank that the run has failed from.
    """
    if not isinstance(config, Ranks):
        check_folder(config, model)
        with joined(config, device) as ranks, parallel_pipeline(model, ranks, **options) as shared:
            yield shared
        return
    with failing_together(config):
        pipe = Ideogram4Pipeline.from_pretrained(model, **{**options, **without(config)})
    with enable_parallelism(pipe, config) as shared:
        yield shared


def without(ranks: Ranks) -> dict[str, None]:
    """Components that this rank has no need of, as `from_pretrained` is told to leave them out."""
    branches = [name for branch, name in PARTS.items() if branch not in ranks.branches]
    return dict.fromkeys([*branches, *(() if ranks.leads else OTHERS)])


def check_folder(config: ParallelConfig, folder: str | os.PathLike[str]) -> None:
    """`check_model` of the configurations that a folder has, without its weights; of a hub id nothing is known yet.

    Raises:
        ValueError: as `ParallelConfig.check_model`.
    """
    for branch, name in PARTS.items():
        file = Path(folder).expanduser() / name / "config.json"
        if file.is_file():
            sizes = {"num_attention_heads": 18, "intermediate_size": 12288}  # as the transformer takes them
            config.check_model(f"{branch} branch", {**sizes, **json.loads(file.read_text(encoding="utf-8"))})


def check_plan(config: ParallelConfig, pipe: Ideogram4Pipeline) -> None:
    """See that a pipeline can be drawn with under a plan.

    Raises:
        ValueError: saying what stands against it.
    """
    transformers = {branch: getattr(pipe, name) for branch, name in PARTS.items() if getattr(pipe, name) is not None}
    for branch, transformer in transformers.items():
        config.check_model(f"{branch} branch", transformer.config)
        if is_offloaded(transformer):
            raise ValueError("a plan and offloading exclude each other: load the pipeline without `fit_memory`.")
        if any(getattr(block, "_compiled_call_impl", None) is not None for block in transformer.layers):
            raise ValueError("the blocks are compiled, which a plan changes: apply it without `compile`.")
        if config.context * config.tensor * config.data > 1 and adapter_layers(transformer):
            raise ValueError(
                "adapters under a plan that shares a branch (`context`, `tensor`, `data`) are not exchanged: fuse them"
                " in every process first (`fuse_lora`, then `unload_lora_weights`), or share by guidance alone."
            )
        if config.tensor > 1:
            check_tensor(transformer)
    if len({transformer.dtype for transformer in transformers.values()}) > 1:
        raise ValueError("the branches are of different types: load both in one `dtype`.")
    if pipe.cuda_graphs is True:
        raise ValueError("a plan and CUDA graphs exclude each other: call `disable_cuda_graphs` first.")


def _apply(pipe: Ideogram4Pipeline, ranks: Ranks) -> dict[Branch, Ideogram4Transformer2DModel]:
    """Leave this rank's part of the pipeline, shared out and on its device; the branches that it has."""
    config = ranks.config
    own: dict[Branch, Ideogram4Transformer2DModel] = {
        branch: getattr(pipe, PARTS[branch]) for branch in ranks.branches if getattr(pipe, PARTS[branch]) is not None
    }
    if config.guidance == 2:
        if not own:
            raise ValueError(f"`guidance` is 2, but the pipeline has no `{PARTS[ranks.branches[0]]}`: give 1.")
        _exchange_branches(pipe, ranks, own)
    for transformer in own.values():
        if config.tensor > 1:
            share_tensors(transformer, ranks.mesh["tensor"], ranks.tensor)
        transformer.to(ranks.device)
        if config.context > 1:
            share_context(transformer, ranks.context)
    if ranks.leads:
        pipe.to(ranks.device)
    return own


def _exchange_branches(pipe: Ideogram4Pipeline, ranks: Ranks, own: dict[Branch, Ideogram4Transformer2DModel]) -> None:
    """Put into rank 0's pipeline what stands for the branch that others have, which tell its sizes."""
    if ranks.rank == ranks.lead_of(0, "unconditional"):
        transformer = own["unconditional"]
        sizes = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
        ranks.store.set("sizes", json.dumps([sizes, name_of(transformer.dtype)]))
    if ranks.leads:
        sizes, dtype = json.loads(ranks.wait_for("sizes"))
        if of_name(dtype) != pipe.transformer.dtype:
            raise ValueError("the branches are of different types: load both in one `dtype`.")
        _put(pipe, PARTS["unconditional"], RemoteBranch(sizes, of_name(dtype)))


def _put(pipe: Ideogram4Pipeline, name: str, part: Any) -> None:
    """Put a stand-in in the place of a component; pictures are still made of what the pipeline was loaded from."""
    origin = pipe._origin
    known = origin.components.get(name)
    as_loaded = known is None if getattr(pipe, name) is None else known is not None and known() is getattr(pipe, name)
    setattr(pipe, name, part)
    if as_loaded and origin.components:
        origin.components[name] = weakref.ref(part)

"""A training run from settings to saved weights; every process of a run goes through the same code."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..dtypes import of_name
from ..files import in_place, write_text
from ..interrupts import Interrupted, noted
from ..model import Ideogram4Transformer2DModel
from ..pipeline import Ideogram4Pipeline
from . import run_state
from .batches import Draw, PackedStream
from .ema import Ema
from .encoding import Sample
from .objective import FlowMatching, make_batch
from .optimizers import make_optimizer, make_schedule
from .parallel import Group, like, reshard, share, syncing, whole
from .settings import SECTIONS, Settings, template
from .trained_adapter import AdapterSettings, adapter_weights, add_adapter, save_adapter
from .validation import HeldOut
from .watch import Step, Watcher

BRANCHES = {"conditional": "transformer", "unconditional": "unconditional_transformer"}
SETTLED = 10  # steps after which the recent average of the loss says something
# What may differ between two parts of a run: its length, where things are, and what is not part of the steps.
MAY_CHANGE: dict[str, set[str] | None] = {
    "data": {"data", "validation", "follow_links", "cache", "trigger"},  # the pictures' names are compared instead
    "model": {"device", "parallel"},
    "training": {"steps", "compile", "gradient_checkpointing", "accumulate"},
    "output": None,  # all of it
}
FROZEN = ("llm_cond_norm", "llm_cond_proj")  # their outputs are kept in the cache


class Stopped(RuntimeError):
    """A run that cannot go on: a loss that cannot be trained on, or something that cannot be written."""


class Trainer:
    """The trained weights of a run, and its steps.

    Args:
        settings: Options of the run.
        folder: The run's folder, as an absolute path: a watcher may change directory.
        pipeline: The pipeline whose transformers are trained, in place.
        samples: Encoded samples to train on.
        group: The processes that share the work.
        watchers: Watchers of the run, told of each step.
        held_out: Encoded samples that the validation loss is measured on; empty for none.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        pipeline: Ideogram4Pipeline,
        samples: Sequence[Sample],
        group: Group,
        watchers: Sequence[Watcher] = (),
        held_out: Sequence[Sample] = (),
    ) -> None:
        self.settings, self.pipeline, self.samples, self.group = settings, pipeline, samples, group
        self.watchers = watchers
        self.step = 0
        self.folder = folder
        train = settings.training
        self.stream = PackedStream(
            [s.text_tokens + math.prod(s.grid) for s in samples], train.tokens, window=train.window, seed=train.seed
        )
        self.held_out = HeldOut(held_out, train.tokens, train.mu, train.std)
        self.branches = self._open_branches()
        self.loss = FlowMatching(
            self.branches.get("conditional"),
            self.branches.get("unconditional"),
            per=train.loss_per,
            min_snr=train.min_snr or None,
        ).to(group.device)
        self.loss.train()
        self._wrapped = share(self.loss, group, settings.model.parallel)
        self.trained = {name: p for name, p in self.loss.named_parameters() if p.requires_grad}
        self.optimizer = make_optimizer(train.optimizer, self.loss, lr=train.lr, weight_decay=train.weight_decay)
        self.schedule = make_schedule(self.optimizer, train.schedule, train.warmup, train.steps)
        self.ema = Ema(self.trained, train.ema) if train.ema else None
        self._recent: float | None = None  # moving average of the loss
        self.stopping = False  # whether the run ends after this step, in all processes alike
        self._signalled: Callable[[], bool] = lambda: False

    def _open_branches(self) -> dict[str, Ideogram4Transformer2DModel]:
        """Choose and make trainable what the settings say, and freeze the rest."""
        model, train = self.settings.model, self.settings.training
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
        branches = {}
        for branch in BRANCHES if model.branch == "both" else (model.branch,):
            transformer = getattr(self.pipeline, BRANCHES[branch])
            if transformer is None:
                raise ValueError(f"`branch` is {model.branch!r}, but the model has no `{BRANCHES[branch]}`.")
            if model.method == "lora":
                add_adapter(transformer, self.adapter_settings)
            else:
                transformer.float().requires_grad_(True)
                for name in FROZEN:
                    getattr(transformer, name).requires_grad_(False)
            if train.gradient_checkpointing:
                transformer.enable_gradient_checkpointing()
            if train.compile:
                transformer.compile_repeated_blocks(dynamic=True)
            branches[branch] = transformer
        return branches

    @property
    def adapter_settings(self) -> AdapterSettings:
        """What the adapter is made with."""
        model = self.settings.model
        targets: Any = model.targets[0] if len(model.targets) == 1 else list(model.targets)
        return AdapterSettings(
            rank=model.rank, alpha=model.alpha or None, targets=targets, dora=model.dora,
            dropout=model.lora_dropout, seed=self.settings.training.seed,
        )  # fmt: skip

    def autocast(self) -> Any:
        """A context of the settings' precision."""
        if self.settings.model.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.group.device.type, of_name(self.settings.model.dtype))

    def run(self) -> list[Path]:
        """Train to the last step, with checkpoints on the way, and save the weights; returns what was written.

        SIGINT and SIGTERM end the run after the step that is under way, with a checkpoint.

        Raises:
            Stopped: when the loss or the gradient is not finite or explodes, or something cannot be written. The last
                checkpoint stays as it was.
            Interrupted: when a signal came; the checkpoint is written.
        """
        try:
            with noted(self._tell_of_signal) as self._signalled:
                self._take_steps()
                written = self.export()
                for watcher in self.watchers:
                    watcher.on_end(self, written)
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            raise Stopped(
                f"the run stopped after step {self.step}: {what.rstrip('.')}. {self._last_checkpoint()}"
            ) from error
        return written

    def _take_steps(self) -> None:
        if self.group.leads:
            write_text(self.folder / self.settings.output.record.name, template(self.settings))  # for --resume
        for watcher in self.watchers:
            watcher.on_begin(self)
        if self.step == 0:
            self.validate()
        last, output = self.settings.training.steps, self.settings.output
        while self.step < last:
            done = self.advance(time.perf_counter())
            for watcher in self.watchers:
                watcher.on_step(self, done)
            if self.group.size == 1:  # of several processes, the next step's exchange tells all of them
                self.stopping |= self._signalled()
            stopping = self.stopping and self.step < last
            if not stopping and (self.step % output.validate_every == 0 or self.step == last):
                self.validate()
            if stopping or self.step % output.save_every == 0 or self.step == last:
                self.save()
            if stopping:
                raise Interrupted(f"interrupted after step {self.step}, which is saved")

    def _tell_of_signal(self) -> None:
        for watcher in self.watchers:
            watcher.on_signal()

    def _last_checkpoint(self) -> str:
        kept = run_state.saved(self.folder / "checkpoints")
        return f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint was written yet."

    def advance(self, begun: float) -> Step:
        """Take one optimizer step."""
        train, group = self.settings.training, self.group
        batches = [next(self.stream) for _ in range(train.accumulate * group.size)]
        total = sum(self._count(batch) for batch in batches)
        mine = batches[group.rank :: group.size]
        torch.manual_seed(hash((train.seed, self.step, group.rank)))  # of LoRA's dropout
        self.optimizer.zero_grad()
        summed = torch.zeros((), device=group.device)
        for number, draws in enumerate(mine):
            batch = make_batch(
                self.samples, draws, seed=train.seed, mu=train.mu, std=train.std, caption_dropout=train.caption_dropout
            ).to(group.device)
            with syncing(self._wrapped, number == len(mine) - 1):
                with self.autocast():
                    loss = sum(self._wrapped(batch, total).values(), torch.zeros((), device=group.device))
                (loss * group.size).backward()  # gradients are averaged over the processes
            summed += loss.detach()
        # All processes learn in one exchange what the loss is and whether one of them was told to stop.
        sums = group.sum(torch.stack([summed, summed.new_tensor(self._signalled())]))
        loss_value, self.stopping = float(sums[0]), bool(sums[1])
        norm = nn.utils.clip_grad_norm_(self.trained.values(), train.clip or math.inf)
        norm_value = float(whole(norm))
        self._check(loss_value, norm_value, batches)
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        tokens = sum(self.stream.tokens_of(batch) for batch in batches)
        return Step(
            step=self.step,
            loss=loss_value,
            norm=norm_value,
            rate=rate,
            samples=sum(map(len, batches)),
            tokens=tokens,
            filled=tokens / (train.tokens * len(batches)),
            seconds=time.perf_counter() - begun,
            epoch=batches[-1][-1].epoch,
        )

    def _count(self, draws: Sequence[Draw], samples: Sequence[Sample] | None = None) -> int:
        if self.settings.training.loss_per == "sample":
            return len(draws)
        samples = self.samples if samples is None else samples
        return sum(math.prod(samples[draw.sample].grid) for draw in draws)

    @torch.no_grad()
    def validate(self) -> float | None:
        """The loss on what is held out, with the averaged weights if there are any; None where nothing is held out.

        It leaves no trace in the run. Every process must call it.
        """
        held, group = self.held_out, self.group
        if not len(held):
            return None
        total = sum(self._count(draws, held.samples) for draws in held.batches)
        summed = torch.zeros((), device=group.device)
        self.loss.eval()
        try:
            with self.averaged(), self.autocast():
                for first in range(0, len(held), group.size):
                    # Where weights are sharded, all processes compute together: with an old batch if there is no other.
                    index = first + group.rank
                    batch = held.batch(min(index, len(held) - 1)).to(group.device)
                    loss = sum(self.loss(batch, total).values(), torch.zeros((), device=group.device))
                    summed += loss * (index < len(held))
                reshard(self._wrapped)
        finally:
            self.loss.train()
        value = float(group.sum(summed))
        for watcher in self.watchers:
            watcher.on_validation(self, value)
        return value

    def _check(self, loss: float, norm: float, batches: Sequence[Sequence[Draw]]) -> None:
        """Stop before the weights are spoilt."""
        settled = self._recent is not None and self.step >= SETTLED
        limit = self.settings.training.explode * (self._recent or 0.0) if settled else math.inf
        if math.isfinite(loss) and math.isfinite(norm) and loss <= limit:
            self._recent = loss if self._recent is None else 0.95 * self._recent + 0.05 * loss
            return
        names = [self.samples[draw.sample].name for batch in batches for draw in batch]
        what = f"the loss is {loss:.4g} and the gradient's norm {norm:.4g}"
        if math.isfinite(loss) and math.isfinite(norm):
            what = f"the loss is {loss:.4g}, more than {self.settings.training.explode:g} times its recent average"
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise Stopped(
            f"step {self.step + 1} was not taken: {what}. Its batch: {listed}. {self._last_checkpoint()} Lower `lr`, or"
            " look at those samples."
        )

    def state(self) -> run_state.State:
        """Everything that `restore` needs. Every process must call it."""
        names = {id(p): name for name, p in self.trained.items()}
        optimizer = {k: whole(v) for k, v in run_state.optimizer_tensors(self.optimizer, names).items()}
        return run_state.State(
            step=self.step,
            weights={name: whole(p.detach()) for name, p in self.trained.items()},
            optimizer=optimizer,
            average={} if self.ema is None else {name: whole(v) for name, v in self.ema.values.items()},
            values=run_state.Values(
                stream=self.stream.state(),
                recent=self._recent,
                batches=self.settings.training.accumulate * self.group.size,
                samples=[s.name for s in self.samples],
                settings=self.settings.model_dump(),
            ),
        )

    def save(self) -> None:
        """Write a checkpoint into the run's folder."""
        state = self.state()
        if self.group.leads:
            path = run_state.save(self.folder / "checkpoints", state, self.settings.output.keep)
            for watcher in self.watchers:
                watcher.on_save(path)
        self.group.wait()

    def resume(self) -> bool:
        """Go on from the run's last checkpoint; returns whether there was one.

        Raises:
            ValueError: if the checkpoint is damaged, or of other data or settings that decide what the steps compute.
        """
        saved = run_state.saved(self.folder / "checkpoints")
        if not saved:
            return False
        self.restore(run_state.load(saved[-1]))
        return True

    @torch.no_grad()
    def restore(self, state: run_state.State) -> None:
        """Take over a checkpoint's state, all of it or, where something does not fit, nothing.

        Raises:
            ValueError: if it is of other data or settings, or damaged.
        """
        self._check_same(state.values)
        average = {} if self.ema is None else self.ema.values
        try:
            run_state.check_tensors("weights", state.weights, self.trained)
            run_state.check_tensors("averages", state.average, average)
            run_state.check_optimizer(state.optimizer, self.trained)
            self.stream.restore(state.values.stream)
        except ValueError as error:
            raise ValueError(
                f"the checkpoint of step {state.step} in {self.folder} is damaged: {error}. Remove it to use the one"
                " before."
            ) from None
        for name, parameter in self.trained.items():
            parameter.copy_(like(state.weights[name], parameter))
        for name, value in average.items():
            value.copy_(like(state.average[name], value))
        if self.ema is not None:
            self.ema.updates = state.step
        run_state.restore_optimizer(self.optimizer, self.trained, state.optimizer)
        run_state.restore_schedule(self.schedule, state.step)
        self._recent = state.values.recent
        self.step = state.step

    def _check_same(self, values: run_state.Values) -> None:
        now = self.settings.model_dump()
        for section, options in now.items():
            for name, value in options.items():
                allowed = MAY_CHANGE[section]
                before = values.settings.get(section, {}).get(name, SECTIONS[section].model_fields[name].default)
                if allowed is not None and name not in allowed and before != value:
                    raise ValueError(
                        f"`{name}` is {value!r}, but the run in {self.folder} began with {before!r}: use that, or begin"
                        " in another folder with --out."
                    )
        if values.samples != [s.name for s in self.samples]:
            raise ValueError(
                f"The run in {self.folder} was trained on other data: restore the data, or begin in another folder with"
                " --out."
            )
        batches = self.settings.training.accumulate * self.group.size
        if values.batches != batches:
            raise ValueError(
                f"A step takes {batches} batches (`accumulate` times the number of processes), but the run in"
                f" {self.folder} began with {values.batches}: change `accumulate` so that they agree."
            )

    def averaged(self) -> Any:
        """A context in which the trained weights are their moving average, if there is one."""
        return nullcontext() if self.ema is None else self.ema.swapped()

    def export(self) -> list[Path]:
        """Save what was trained in the forms that pipelines open: an adapter, or a whole model folder."""
        full = self.settings.model.method == "full"
        with self.averaged():
            if full:
                weights = {name: _whole_state(transformer) for name, transformer in self.branches.items()}
                written = self._write_model(weights) if self.group.leads else []
            else:
                adapters = {name: adapter_weights(transformer) for name, transformer in self.branches.items()}
                written = self._write_adapters(adapters) if self.group.leads else []
        self.group.wait()
        return written

    def _write_adapters(self, adapters: Mapping[str, Mapping[str, Mapping[str, Tensor]]]) -> list[Path]:
        settings = self.settings
        metadata = {
            "base": settings.model.model or "ideoflow sketch",
            "trigger": settings.data.trigger,
            "config": json.dumps(asdict(self.adapter_settings) | {"steps": self.step}),
        }
        written = []
        for branch, weights in adapters.items():
            folder = self.folder if branch == "conditional" else self.folder / branch
            written += save_adapter(folder, weights, metadata=metadata, also=settings.output.also)
        return written

    def _write_model(self, weights: Mapping[str, Mapping[str, Tensor]]) -> list[Path]:
        target = self.folder / "model"
        kept = dict(self.branches)
        try:
            for branch, transformer in kept.items():  # the trained ones may be sharded or compiled
                plain = type(transformer).from_config(transformer.config)
                plain.load_state_dict(weights[branch])
                setattr(self.pipeline, BRANCHES[branch], plain)
            with in_place(target) as temporary:
                self.pipeline.save_pretrained(temporary)
        finally:
            for branch, transformer in kept.items():
                setattr(self.pipeline, BRANCHES[branch], transformer)
        return [target]


def _whole_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The weights with all shards gathered, under their plain names. Every process must call it."""
    return {name.replace("_orig_mod.", ""): whole(t.detach()).cpu() for name, t in transformer.state_dict().items()}

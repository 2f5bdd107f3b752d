"""`ideoflow train`: fine-tune on a folder of pictures; every option of the settings is a flag."""

from __future__ import annotations

import inspect
import os
import shlex
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..checks import printable
from ..files import check_writable, write_text
from ..sizes import parse_size
from ..training import precheck
from ..training.columns import check_source
from ..training.settings import SECTIONS, Settings, check_new, template
from ..training.watch import Run, Step, Watcher
from . import console
from .values import parse_device, parse_model

if TYPE_CHECKING:
    from ..training.survey import Survey
    from ..training.trainer import Trainer

INIT = "init"
TEMPLATE = "train.toml"

HELP = """Fine-tune on a folder of pictures with captions: a LoRA by default, all weights with --method full.

Pictures of any size are packed together, without buckets, crops or padding. A caption stands beside its picture, in a
.json or .txt file of the same name, or in metadata.jsonl.

    ideoflow train --data pictures/ --out runs/mine --steps 500

    ideoflow train init mine.toml      (a file with every option explained)

    ideoflow train mine.toml

    torchrun --nproc-per-node 2 -m ideoflow train mine.toml      (on two devices)

Interrupted, it saves and ends, and --resume --out runs/mine alone goes on. --dry-run says what would be done and how
long it would take. What a file turns on, --no- before the option's name turns off."""


def command() -> Callable[..., None]:
    """The command as a function whose parameters are its arguments and all options of the settings."""

    def train(**given: Any) -> None:
        config, file = given.pop("config"), given.pop("file")
        resume, dry_run, force = given.pop("resume"), given.pop("dry_run"), given.pop("force")
        flags = {name: value for name, value in given.items() if value is not None and value != []}
        if config == INIT:
            _init(file or Path(TEMPLATE), force, flags)
        elif file is not None:
            console.fail(f"{file} is one argument too many: give one TOML file, or `{INIT}` and the file to write.")
        else:
            _train(config, flags, resume, dry_run)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default)
        for name, annotation, default in _parameters()
    ]
    train.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    train.__annotations__ = {p.name: p.annotation for p in parameters}
    train.__doc__ = HELP
    return train


def _parameters() -> Iterator[tuple[str, Any, Any]]:
    yield "config", Annotated[str | None, typer.Argument(metavar="[FILE.toml | init]", help="Options in a file.")], None
    yield "file", Annotated[Path | None, typer.Argument(help=f"After `init`: what to write ({TEMPLATE}).")], None
    yield (
        "resume",
        Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, with its settings.")],
        False,
    )
    yield "dry_run", Annotated[bool, typer.Option("--dry-run", help="Print the plan after three timed steps.")], False
    yield "force", Annotated[bool, typer.Option("--force", help="Let `init` replace a file.")], False
    for section, kind in SECTIONS.items():
        for name, field in kind.model_fields.items():
            option, base = _option(field.annotation)
            choices = f" One of {option}." if option else ""
            text = f"{field.description}{choices} [{_shown(field.default)}]"
            names = [f"--{name.replace('_', '-')}"]
            if base is bool:
                names = [f"{names[0]}/--no-{names[0][2:]}"]
            panel = f"{section}: {(kind.__doc__ or '').rstrip('.')}"
            default: Any = [] if get_origin(base) is list else None
            kept = typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)
            yield name, Annotated[base if default == [] else base | None, kept], default


def _option(annotation: Any) -> tuple[str | None, Any]:
    """The values that an option may have, where they are counted, and the type that the command line reads them as."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation))), str
    if get_origin(annotation) is list:
        return _option(get_args(annotation)[0])[0], list[str]
    if get_origin(annotation) in (Annotated, types.UnionType):
        return _option(get_args(annotation)[0])
    return None, annotation


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return ", ".join(default) or "none"
    return "none" if default == "" else str(default).lower() if isinstance(default, bool) else str(default)


def _init(path: Path, force: bool, flags: dict[str, Any]) -> None:
    with console.plain_errors():
        if path.exists() and not force:
            console.fail(f"{path} exists already: name another file, or replace it with --force.")
        text = template(Settings.read(None, **{"data": "pictures", **flags}))
        write_text(path, text)
    console.out.print(f"{path}: set `data`, look through the rest, and run `ideoflow train {path}`.", markup=False)


def _train(config: str | None, flags: dict[str, Any], resume: bool, dry_run: bool) -> None:
    with console.plain_errors():
        settings = Settings.resumed(**flags) if resume and config is None else Settings.read(config, **flags)
        _check(settings, resume, dry_run)
        with console.starting("importing torch, transformers and diffusers"):
            from ..training import run  # noqa: F401 (so that it is said)
        _run(settings, resume, dry_run)


def _check(settings: Settings, resume: bool, dry_run: bool) -> None:
    """Refuse what can be seen to be wrong before seconds of imports."""
    model, options = settings.model, settings.output
    if model.device:
        parse_device(model.device)
    if model.model:
        parse_model("--model", model.model)
    if options.preview_size:
        parse_size(options.preview_size, "--preview-size")
    check_source(settings.data.data, "data")
    if settings.data.validation and settings.data.share is None:
        check_source(settings.data.validation, "validation")
    precheck.check(settings)
    if os.environ.get("RANK", "0") != "0" or dry_run:
        return  # others look into the folder while the first process writes to it
    if not resume:
        check_new(Path(options.out))
    check_writable(options.record, "--out")


def _run(settings: Settings, resume: bool, dry_run: bool) -> None:
    with console.plain_warnings():
        from ..interrupts import Interrupted, terminated
        from ..training import run_state
        from ..training.parallel import processes
        from ..training.run import prepare, reserved
        from ..training.trainer import Stopped

        out = Path(settings.output.out)
        again = f"ideoflow train --resume --out {shlex.quote(str(out))}"
        try:
            with processes(settings.model.device) as group, _bars() as bars, terminated():
                watchers = _watchers(settings, bars, group.size, dry_run) if group.leads else []
                if dry_run:
                    _print_plan(prepare(settings, group, watchers), bars)
                    return
                with reserved(settings, group, resume):
                    trainer = prepare(settings, group, watchers)
                    if resume:
                        trainer.resume()
                    trainer.run()
        except Stopped as error:
            _end(str(error), console.FAILED)
        except Interrupted as error:
            _end(f"{error}; to go on: {again}", console.INTERRUPTED)
        except KeyboardInterrupt:
            saved = run_state.saved(out / "checkpoints")
            kept = f"to go on from {saved[-1].name}: {again}" if saved else "there is no checkpoint, start again."
            _end(f"interrupted; what is encoded is kept; {kept}", console.INTERRUPTED)


def _end(message: str, code: int) -> NoReturn:
    """End with a code, and say why in one of the processes, for it is the same in all."""
    if os.environ.get("RANK", "0") != "0":
        raise typer.Exit(code)
    console.fail(message, code)


def _watchers(settings: Settings, bars: Progress, processes: int, dry_run: bool) -> Sequence[Watcher]:
    lines = Lines(bars)
    if dry_run:
        return [lines]
    from ..training.previews import Previews
    from ..training.progress import Log, TensorBoard

    out = Path(settings.output.out).absolute()
    watchers: list[Watcher] = [lines, Log(out), TensorBoard(out)]
    if settings.model.parallel == "fsdp" and processes > 1:
        console.warn("no previews are drawn where weights are sharded.")
    else:
        watchers.append(Previews(settings))
    return watchers


def _print_plan(trainer: Trainer, bars: Progress) -> None:
    from ..training.dry_run import plan

    for name, value in plan(trainer):
        if trainer.group.leads:
            bars.stop()
            console.out.print(f"{name:22} {value}", markup=False)


@contextmanager
def _bars() -> Iterator[Progress]:
    bar = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
    columns = (*bar, TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[more]}"))
    # Elsewhere than on a terminal they would come once, at the end, cut to 80 columns.
    with Progress(*columns, console=console.err, disable=not console.err.is_terminal) as bars:
        yield bars


class Lines(Watcher):
    """A bar for each thing that takes a while, with what the last step did behind it."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, Any] = {}
        self.pace: float | None = None  # seconds a step, smoothed

    def _show(self, what: str, done: int, total: int, more: str = "") -> None:
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, more="")
        self.bars.update(self.tasks[what], completed=done, total=total, more=more)

    def on_scan(self, done: int, total: int) -> None:
        """Pictures looked at."""
        self._show("looking at pictures", done, total)

    def on_survey(self, survey: Survey) -> None:
        """What is skipped, and why."""
        for line in survey.report().splitlines() if survey.examples else ():  # else the error has it
            self.bars.console.print(line, markup=False)

    def on_encode(self, done: int, total: int, what: str) -> None:
        """Pictures or captions encoded."""
        self._show(f"encoding {what}", done, total)

    def on_begin(self, run: Run) -> None:
        """That nothing is left to be done."""
        steps = run.settings.training.steps
        if run.step >= steps:
            self.bars.console.print(f"all {steps} steps are taken already: a larger --steps goes on", markup=False)

    def on_step(self, run: Run, step: Step) -> None:
        """The live line."""
        self.pace = step.seconds if self.pace is None else 0.9 * self.pace + 0.1 * step.seconds
        more = (
            f"loss {step.loss:.4f}  {step.samples / self.pace:.1f} samples/s  {step.tokens / self.pace:,.0f} tokens/s"
            f"  {step.filled:.0%} filled"
        )
        self._show("training", step.step, run.settings.training.steps, more)
        every = max(1, run.settings.training.steps // 20)
        if not self.bars.console.is_terminal and step.step % every == 0:
            self.bars.console.print(f"step {step.step}  {more}", markup=False)

    def on_validation(self, run: Run, loss: float) -> None:
        """The loss on what is held out."""
        self.bars.console.print(f"step {run.step}  validation loss {loss:.4f}", markup=False)

    def on_signal(self) -> None:
        """That it was heard; past the bars, for a signal may come while they are drawn."""
        with suppress(OSError):
            os.write(2, b"\ninterrupted: this step is finished and saved; Ctrl-C again stops at once\n")

    def on_end(self, run: Run, written: list[Path]) -> None:
        """What was written."""
        for path in written:
            shown = Path(run.settings.output.out) / path.relative_to(run.folder)  # as the user named the folder
            self.bars.console.print(f"wrote {printable(shown)}", markup=False)

"""`ideoflow batch`: a file of captions, millions if need be, to pictures that are each drawn once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from ..checks import printable
from ..files import check_place
from ..interrupts import terminated
from ..pictures import FORMATS
from ..sizes import parse_size
from .chosen import Options
from .console import FAILED, err, out, plain_errors, plain_warnings, shown, starting
from .draw import load
from .drawing_options import (
    BaseOption,
    DeviceOption,
    DtypeOption,
    FormatOption,
    GuidanceOption,
    IgnoreUnknownOption,
    LoraOption,
    MaxSequenceLengthOption,
    MetadataOption,
    ModelOption,
    PresetOption,
    QuantizeOption,
    StepsOption,
)
from .generate import DEFAULT_SIZE, SKETCH_SIZE
from .jobs import SUFFIXES, Settings
from .values import expanded, parse_format

if TYPE_CHECKING:
    from ..batch.drawing import Tally
    from ..batch.results import Kind
    from ..batch.rows import Rejected, RowReader
    from ..batch.shares import Share
    from ..captions.writing import Writer

TOKENS = 16_384  # of a pass: twice a picture of 1024 x 1024 with guidance; smaller ones are packed by the dozen
MOST_PIXELS = 2048 * 2048  # of a row, unless told otherwise
EVERY = 10.0  # seconds from one line of progress to the next, where there is no terminal


def batch(
    captions: Annotated[
        str,
        typer.Argument(
            metavar="FILE.jsonl",
            help="One caption a line: a JSON object that is one, a string, or an object with `caption` and settings of"
            " its own (size, preset, steps, guidance, seed, n). '-' for standard input.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where results go, and where earlier ones are.")
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="KIND",
            help="folder: a file for each picture. webdataset: tar files of many. parquet: the same as tables (needs"
            " pyarrow).",
        ),
    ] = "folder",
    each: Annotated[int, typer.Option("--per-file", min=1, help="Pictures of each tar or Parquet file.")] = 1000,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Draw one of N equal shares: 2/8 is the second of eight. Start each on a machine or a GPU of its own.",
        ),
    ] = "1/1",
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            "-s",
            metavar="WxH",
            help="Width and height in pixels, of rows that have no size.",
            show_default="{}x{} with the bundled model, otherwise {}x{}".format(*SKETCH_SIZE, *DEFAULT_SIZE),
        ),
    ] = None,
    preset: PresetOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seeds of rows without one are made of this, their caption and their size.")
    ] = 0,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=10_000, help="Pictures of rows without `n`.")] = 1,
    model: ModelOption = None,
    base: BaseOption = None,
    lora: LoraOption = None,
    ignore_unknown: IgnoreUnknownOption = False,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = None,
    form: FormatOption = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformers. Needs a C++ compiler.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one pass: fewer need less memory.")] = TOKENS,
    max_requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures of one pass. With 1 each is drawn alone, and is the same to the last bit whatever stands"
            " beside it in the file.",
            show_default="as many as --max-tokens allows",
        ),
    ] = None,
    pixel_limit: Annotated[
        int, typer.Option(min=256, help="Reject rows that ask for more pixels than this.")
    ] = MOST_PIXELS,
    max_sequence_length: MaxSequenceLengthOption = 2048,
    drop_unknown: Annotated[
        bool, typer.Option("--drop-unknown", help="Leave out keys of captions that are not the schema's.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Reject captions that break the schema; without it they are noted.")
    ] = False,
    metadata: MetadataOption = True,
) -> None:
    """Draw every caption of a file, once each, and go on where an earlier run stopped.

    Rows are read as they are needed, and pictures of all sizes are packed into the same passes. A picture is there
    whole or not at all; start the command again after a crash, an interrupt or with more rows, and it draws what is
    missing. Rows that cannot be drawn go to rejected.jsonl with the reason.

    Examples:

      ideoflow batch captions.jsonl --out pictures

      ideoflow batch captions.jsonl --out shards --as webdataset --per-file 5000

      ideoflow batch captions.jsonl --out pictures --shard 2/8 --device cuda:1

      A row:  {"caption": "a red heart on pink", "size": "160x112", "steps": 12, "seed": 7}
    """
    # Read when torch loads. Threads that spin while they wait starve the one they wait for where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        from ..batch.parquet import check_installed
        from ..batch.results import KINDS, check_kind
        from ..batch.rows import Defaults, RowReader
        from ..batch.shares import Share

        options = Options.of(preset, steps, guidance, model, lora, dtype, device, quantize, base)
        if kind not in KINDS:
            raise ValueError(f"--as {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
        chosen = cast("Kind", kind)
        suffix = SUFFIXES[parse_format(form) if form else "png"]
        share = Share.of(shard)
        wanted = parse_size(size) if size else None
        if wanted and wanted[0] * wanted[1] > pixel_limit:
            raise ValueError(f"--size {size} has more pixels than --pixel-limit {pixel_limit}.")
        if kind == "parquet":
            check_installed()
        place = expanded("--out", str(output))
        check_place(place / "index.jsonl", "--out")
        check_kind(place, chosen)
        with _opened(captions) as (file, total):
            known = "" if total is None else f", {decimal(total)}"
            err.print(f"reading {printable(captions)}{known}; results go to {printable(place)}", markup=False)
            settings = options.settings(captions, {}, {}, trusted=False)
            defaults = Defaults(
                size=wanted or (SKETCH_SIZE if settings.of_sketch else DEFAULT_SIZE),
                preset=settings.preset,
                steps=settings.steps,
                guidance=settings.guidance,
                seed=seed,
                pictures=n,
                pixel_limit=pixel_limit,
            )
            reader = RowReader(defaults, _writer(settings), strict, drop_unknown)
            how = Drawing(
                settings, ignore_unknown, compile, max_tokens, max_requests, max_sequence_length, suffix, metadata
            )
            tally = _fill(place, chosen, each, share, reader, file, total, how)
    told = f"{place}/rejected{share.suffix}.jsonl"
    others = f", {tally.others:,} left to other shares" if share.count > 1 else ""
    rejected = f"{tally.rejected:,} rejected" + (f" ({printable(told)} says why)" if tally.rejected else "")
    out.print(f"{tally.rows:,} rows: {tally.drawn:,} pictures drawn, {tally.there:,} there already{others}, {rejected}")
    if tally.rejected:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn and kept.

    Attributes:
        settings: Model, adapters and device.
        ignore_unknown: Whether what an adapter's file holds beside adapters is left out.
        compiled: Whether the transformers are compiled.
        max_tokens: Tokens of a pass.
        max_requests: Pictures of a pass; None for no limit.
        max_sequence_length: Tokens of a caption, at the most.
        suffix: Of picture files.
        metadata: Whether they keep their settings.
    """

    settings: Settings
    ignore_unknown: bool
    compiled: bool
    max_tokens: int
    max_requests: int | None
    max_sequence_length: int
    suffix: str
    metadata: bool


def _fill(
    place: Path,
    kind: Kind,
    each: int,
    share: Share,
    reader: RowReader,
    file: IO[bytes],
    total: int | None,
    how: Drawing,
) -> Tally:
    """Draw what is missing in a place."""
    from ..batch.results import open_results
    from ..batch.shares import alone, taken

    place.mkdir(parents=True, exist_ok=True)
    with taken(place, share):
        with alone(place, share):
            results = open_results(place, kind, share, how.suffix, each)
        whole = False
        try:
            with starting("importing torch, transformers and diffusers"):
                from ..batch.drawing import Batch
            with plain_warnings(), err.status(f"loading {shown(how.settings.model)} on {how.settings.device}"):
                pipe = load(how.settings, how.ignore_unknown)
            pipe.set_progress_bar_config(disable=True)
            if how.compiled:
                pipe.compile()
            engine = pipe.engine(
                max_tokens=how.max_tokens, max_requests=how.max_requests, policy="fifo", output_type="pil"
            )
            with _progress(total) as tell, _rejects(place / f"rejected{share.suffix}.jsonl") as reject:
                batch = Batch(
                    pipe,
                    engine,
                    results,
                    reject,
                    share,
                    together=how.max_requests,
                    form=FORMATS[how.suffix],
                    settings=how.metadata,
                    max_sequence_length=how.max_sequence_length,
                    on_change=tell,
                )
                with terminated():
                    tally = batch.run(reader.read(file))
            whole = True
        finally:
            results.close(whole)
    return tally


@contextmanager
def _opened(captions: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """The input, and its bytes where they are known."""
    if captions == "-":
        yield sys.stdin.buffer, None
        return
    path = expanded("FILE", captions)
    if path.is_dir():
        raise ValueError(f"{printable(captions)} is a folder: give a .jsonl file, one caption a line.")
    with path.open("rb") as file:
        yield file, path.stat().st_size if path.is_file() else None


def _writer(settings: Settings) -> Writer | None:
    """What makes captions of words: the grammar of the bundled model's world, with that model."""
    if not settings.of_sketch:
        return None
    from ..sketch.prose import write

    return write


@contextmanager
def _rejects(path: Path) -> Iterator[Callable[[Rejected], None]]:
    """What writes rejected rows into a file, which is there if there are any; each run begins it anew."""
    path.unlink(missing_ok=True)
    file: IO[bytes] | None = None

    def reject(row: Rejected) -> None:
        nonlocal file
        if file is None:
            file = path.open("ab", buffering=0)  # a line is written whole
        line = {"line": row.line, "reason": row.reason, "row": row.row}
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())

    try:
        yield reject
    finally:
        if file is not None:
            file.close()


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[Tally], None]]:
    """A bar on a terminal, else a line now and then: pictures, their pace, and the time left."""
    begun = time.monotonic()
    last = begun - EVERY  # the first picture is told of at once
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:.0f}%"))
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("reading", total=total)

        def tell(tally: Tally) -> None:
            nonlocal last
            line = _line(tally, total)
            if err.is_terminal:
                bars.update(task, description=line, completed=tally.read)
            elif tally.drawn and time.monotonic() - last >= EVERY:
                last = time.monotonic()
                err.print(line, markup=False)

        yield tell


def _line(tally: Tally, total: int | None) -> str:
    """How far it is, in one line."""
    parts = [f"{tally.drawn:,} drawn"]
    if tally.there:
        parts.append(f"{tally.there:,} there already")
    if tally.rejected:
        parts.append(f"{tally.rejected:,} rejected")
    if tally.began is not None and tally.drawn:
        parts.append(f"{tally.drawn / max(1e-6, time.monotonic() - tally.began[0]):.3g} a second")
    left = tally.left(total)
    if left is not None:
        parts.append(f"{_duration(left)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])

"""The loop of a batch: rows come in while the engine has room, and pictures go out as they are done."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..captions import CaptionWarning
from ..checks import printable
from ..engine import Engine, Request
from ..engine.out_of_memory import out_of_memory
from ..pictures import encode_image
from ..placeholder import PLACEHOLDER, looks_like_placeholder
from ..presets import PRESETS, find_preset
from ..provenance import to_text
from .results import Results
from .rows import Order, Rejected, Row
from .shares import Share

if TYPE_CHECKING:
    from ..pipeline import Ideogram4Pipeline

# What of a pipeline's settings a picture depends on; of models and adapters the digest, where there is one.
_MODELS = ("model", "base")


@dataclass
class Tally:
    """What became of a batch so far.

    Attributes:
        rows: Rows read.
        drawn: Pictures drawn by this run.
        there: Pictures that were there already: of an earlier run, or of an equal row.
        others: Pictures that belong to other shares.
        rejected: Rows and pictures that could not be drawn.
        read: Bytes of the input that are done with.
        began: When the first picture was begun, in seconds of `time.monotonic`, and bytes that were read by then.
    """

    rows: int = 0
    drawn: int = 0
    there: int = 0
    others: int = 0
    rejected: int = 0
    read: int = 0
    began: tuple[float, int] | None = None

    def left(self, size: int | None) -> float | None:
        """Seconds that the rest of an input of `size` bytes takes at the pace so far; None while nobody can tell."""
        if self.began is None or size is None or not self.drawn:
            return None
        since, start = self.began
        done = self.read - start
        return (time.monotonic() - since) * (size - self.read) / done if done > 0 else None


@dataclass(frozen=True)
class Batch:
    """What draws rows, and where pictures go.

    Attributes:
        pipe: The pipeline, placed, with its adapters.
        engine: An engine of it that gives pictures.
        results: Where pictures go.
        reject: Called with each row, or picture of it, that cannot be drawn.
        share: Which pictures are drawn here.
        together: Pictures of a pass, beside the engine's budget of tokens; None for no limit.
        form: Pillow's name of the pictures' file type.
        settings: Whether pictures keep what they were drawn with.
        max_sequence_length: Tokens that a caption may have.
        on_change: Called with the tally after each step.
        tally: What became of the rows so far.
    """

    pipe: Ideogram4Pipeline
    engine: Engine
    results: Results
    reject: Callable[[Rejected], None]
    share: Share
    together: int | None = None
    form: str = "PNG"
    settings: bool = True
    max_sequence_length: int = 2048
    on_change: Callable[[Tally], None] = lambda tally: None
    tally: Tally = field(default_factory=Tally)

    def run(self, rows: Iterable[Row]) -> Tally:
        """Draw what the rows ask for and is not there yet.

        Raises:
            OSError: if results cannot be written; what was written is whole, and the next run goes on.
        """
        coming = self._missing(rows, drawn_by(self.pipe))
        waiting: dict[Request, tuple[Row, Order, str]] = {}
        under_way: set[str] = set()
        ended = False
        while waiting or not ended:
            while not ended and self._room(waiting):
                row, order, address = next(coming, (None, None, ""))
                if row is None or order is None:
                    ended = True
                elif address in under_way:  # of an equal row
                    self.tally.there += 1
                elif (request := self._begun(row, order)) is not None:
                    waiting[request] = (row, order, address)
                    under_way.add(address)
            for event in self.engine.step():
                if event.kind == "finished":
                    row, order, address = waiting.pop(event.request)
                    self._keep(event.image, event.request, row, order, address)
                    under_way.discard(address)
                elif event.kind == "failed":
                    row, order, address = waiting.pop(event.request)
                    under_way.discard(address)
                    self._failed(event.error, row)
            self.on_change(self.tally)
        return self.tally

    def _missing(self, rows: Iterable[Row], drawn_by: Mapping[str, Any]) -> Iterator[tuple[Row, Order, str]]:
        """The pictures that are this share's to draw, with their addresses."""
        for row in rows:
            self.tally.rows += 1
            if row.rejected is not None and self.share.takes_line(row.line):
                self._reject(row.rejected)
            for order in row.orders:
                address = order.address(drawn_by)
                if not self.share.takes(address):
                    self.tally.others += 1
                elif self.results.has(address, order.about()):
                    self.tally.there += 1
                else:
                    if self.tally.began is None:
                        self.tally.began = (time.monotonic(), self.tally.read)
                    yield row, order, address
            self.tally.read = row.end
            if self.tally.rows % 1000 == 0:
                self.on_change(self.tally)

    def _room(self, waiting: Mapping[Request, Any]) -> bool:
        """Whether the next pass has room, or nobody is ahead who waits for the one after it."""
        most, tokens = self.engine.max_tokens, sum(request.tokens for request in waiting if not request.finished)
        return (most is None or tokens <= most) and (self.together is None or len(waiting) <= self.together)

    def _begun(self, row: Row, order: Order) -> Request | None:
        """The request of a picture, in the engine; None if it is rejected."""
        preset = find_preset(order.preset).with_steps(order.steps)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", CaptionWarning)  # which the notes have
                (request,) = self.pipe.make_requests(
                    order.caption,
                    size=(order.width, order.height),
                    preset=preset,
                    guidance_scale=order.guidance,
                    # On the CPU: the noise depends on the seed alone, not on device or company.
                    generator=torch.Generator("cpu").manual_seed(order.seed),
                    max_sequence_length=self.max_sequence_length,
                    defer=True,
                )
            return self.engine.add(request)
        except ValueError as error:
            self._reject(Rejected(row.line, printable(error), row.text))
            return None

    def _keep(self, image: Any, request: Request, row: Row, order: Order, address: str) -> None:
        about = order.about()
        if looks_like_placeholder(image):
            about["notes"].append(PLACEHOLDER)
        text = to_text(request.settings) if self.settings and request.settings is not None else None
        try:
            data = encode_image(image, self.form, text)
        except ValueError as error:  # more settings than a JPEG holds
            self._reject(Rejected(row.line, printable(error), row.text))
            return
        self.results.add(address, data, about)
        self.tally.drawn += 1

    def _failed(self, error: Exception | None, row: Row) -> None:
        """Reject the row of a request that failed; a device that failed ends the run."""
        if isinstance(error, torch.AcceleratorError) and not out_of_memory(error):
            raise error
        self._reject(Rejected(row.line, printable(f"{type(error).__name__}: {error}"), row.text))

    def _reject(self, rejected: Rejected) -> None:
        self.tally.rejected += 1
        self.reject(rejected)


def drawn_by(pipe: Ideogram4Pipeline) -> dict[str, Any]:
    """What of a pipeline its pictures depend on: digests of models and adapters, precision."""
    (found,) = pipe._origin.settings(pipe, [""], [(16, 16)], PRESETS["V4_DEFAULT_20"], None, None)
    return {
        **{name: found[f"{name}_digest"] or found[name] for name in _MODELS},
        "loras": [[lora["digest"] or lora["path"], lora["scale"]] for lora in found["loras"]],
        "dtype": found["dtype"],
        "quantize": found["quantize"],
    }

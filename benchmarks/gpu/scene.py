"""What parts measure with: the device, transformers on random weights, the time that there is, a place for figures."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ideoflow.files import write_text

T = TypeVar("T")


class OutOfTime(Exception):
    """A part's time is over; what it has measured stays."""


@dataclass
class Scene:
    """Of one part.

    Attributes:
        device: "cuda" or "cpu".
        tiny: Measure at toy size, which shows that the code runs.
        until: When the part's time is over, by `time.monotonic`.
        place: The file of what the part has found.
        held: What parts that follow each other share: the transformers.
    """

    device: str
    tiny: bool
    until: float
    place: Path
    held: dict[str, Any] = field(default_factory=dict)
    _status: dict[str, Any] = field(default_factory=lambda: {"status": "running"})

    def tell(self, figures: dict[str, Any], headline: Iterable[str]) -> None:
        """Keep what has been found so far, all of it, and say it in a few lines."""
        self._status |= {"figures": figures, "headline": list(headline)}
        self._write()

    def end(self, status: str, **more: Any) -> None:
        """Keep how the part has ended."""
        self._status |= {"status": status, **more}
        self._write()

    def _write(self) -> None:
        write_text(self.place, json.dumps(self._status, indent=1) + "\n")

    def in_time(self, items: Iterable[T]) -> Iterator[T]:
        """The items, while there is time.

        Raises:
            OutOfTime: before the first that there is none for.
        """
        for item in items:
            if time.monotonic() > self.until:
                raise OutOfTime
            yield item

    def models(self) -> Any:
        """Both transformers, ours and the peer's, made once."""
        from benchmarks.full.models import TINY, Models

        if "models" not in self.held:
            self.held["models"] = Models(TINY if self.tiny else {}, self.device)
        return self.held["models"]

    def sizes(self) -> Any:
        """Sizes of the transformers."""
        from benchmarks.full.models import TINY
        from benchmarks.roofline import Config

        return Config.of(TINY if self.tiny else {})

    def forget(self) -> None:
        """Let go of the transformers."""
        from benchmarks._gpu import free

        self.held.clear()
        free()

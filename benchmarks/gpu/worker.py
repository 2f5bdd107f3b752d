"""The process that measures: parts are asked for by a line each, and whatever becomes of one, the next goes on."""

from __future__ import annotations

import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.gpu.scene import OutOfTime, Scene


def work(folder: Path, device: str, tiny: bool) -> None:
    """Measure what standard input names: `NAME MODULE:FUNCTION SECONDS` a line."""
    held: dict[str, Any] = {}
    for line in sys.stdin:
        name, place, seconds = line.split()
        module, _, function = place.partition(":")
        scene = Scene(device, tiny, time.monotonic() + float(seconds), folder / f"{name}.json", held)
        print(f"== {name}", flush=True)
        try:
            getattr(import_module(module), function)(scene)
        except OutOfTime:
            scene.end("cut")
        except Exception as error:
            traceback.print_exc()
            scene.end("failed", error=f"{type(error).__name__}: {error}"[:2000])
            traceback.clear_frames(error.__traceback__)
        else:
            scene.end("ok")
        if device == "cuda":
            from benchmarks._gpu import free

            free()

"""What the benchmarks share: sides timed in turn, the machine they ran on, and figures printed and written as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ideoflow.files import check_writable, write_text


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, one call of each in turn, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            begun = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def machine() -> dict[str, object]:
    """Where a figure was measured."""
    model = [line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")]
    gpu = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        gpu = {
            "gpu": properties.name,
            "gpu_memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda or torch.version.hip,
        }
    return {
        **gpu,
        "processor": model[0] if model else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": _version("diffusers"),
        "python": platform.python_version(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def make_parser(description: str | None, rounds: int | None = None) -> argparse.ArgumentParser:
    """A command line with `--out`, and with `--rounds` where a default is given."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=target, help="also write the figures as JSON")
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="counted calls of each side (%(default)s)")
    return made


def target(text: str) -> Path:
    """A file that an option names, refused before hours of measuring if it cannot be written."""
    try:
        check_writable(Path(text), "the file")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def write(report: dict[str, object], out: Path | None) -> None:
    """Write figures as JSON where a file is named: whole or not at all."""
    if out is not None:
        write_text(out, json.dumps(report, indent=1) + "\n")


def publish(report: dict[str, object], out: Path | None) -> None:
    """Print figures as JSON, and write them where a file is named."""
    print(json.dumps(report, indent=1))
    write(report, out)

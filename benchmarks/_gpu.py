"""What benchmarks on a GPU share: waiting, matrix rates, peaks of memory, kernels timed in turn, and failures."""

from __future__ import annotations

import gc
import statistics
import time
import traceback
from collections.abc import Callable
from functools import partial

import torch

from ideoflow.ops.rows import quantize_rows

CALLS = 10  # between two events, so that a launch's own time is hidden as it is in a model
NARROWEST = {"fp8": (8, 9), "int8": (8, 0)}  # capability from which a GPU multiplies so


def default_device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(device: str) -> None:
    """Until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Give memory that nothing holds back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def why(error: BaseException) -> str:
    """One line on a failure; lets go of what its frames hold."""
    traceback.clear_frames(error.__traceback__)
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def multiplies(precision: str, device: str) -> bool:
    """Whether the device multiplies in this precision as such; a CPU expands it, which shows that the code runs."""
    if device != "cuda" or precision not in NARROWEST:
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability() >= NARROWEST[precision]


def timed(call: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds of one call, from a device that has nothing to do until it has nothing to do; bytes it took at its peak.

    Bytes are those of the device's allocator, beyond what was there before; 0 on a CPU.
    """
    before = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    wait(device)
    begun = time.perf_counter()
    call()
    wait(device)
    seconds = time.perf_counter() - begun
    return seconds, torch.cuda.max_memory_allocated() - before if device == "cuda" else 0


@torch.no_grad()
def matrix_rate(precision: str, device: str, size: int) -> float:
    """FLOP/s of a product of two square matrices in "bf16", "fp8" or "int8", all of it that is no product left out.

    Args:
        precision: What is multiplied.
        device: "cuda" or "cpu".
        size: Side of the matrices; from 8192 on a large GPU is at its fastest, or at what its power allows.
    """
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    call: Callable[[], object]
    if precision == "fp8" and device == "cuda":
        (left, left_scale), (right, right_scale) = (quantize_rows(x, torch.float8_e4m3fn) for x in (a, b))
        scales = dict(scale_a=left_scale[:, None], scale_b=right_scale[None])
        call = partial(torch._scaled_mm, left, right.t(), **scales, out_dtype=torch.bfloat16)
    elif precision == "int8" and device == "cuda":
        (left, _), (right, _) = (quantize_rows(x, torch.int8) for x in (a, b))
        call = partial(torch._int_mm, left, right.t())
    else:
        call = partial(torch.nn.functional.linear, a, b)
    seconds = [timed(call, device)[0] for _ in range(12)]
    return 2 * size**3 / statistics.median(seconds[4:])


def alternate_kernels(
    sides: dict[str, Callable[[], object]], rounds: int, device: str = "cuda"
) -> dict[str, list[float]]:
    """Seconds of a call of each side, `CALLS` calls of each in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            taken = _of_calls(call) if device == "cuda" else timed(call, device)[0]
            if number:
                seconds[name].append(taken)
    return seconds


def _of_calls(call: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / CALLS

"""Amounts of memory: reading and printing them, what must stay free, and what a device has left.

GB and MB are powers of ten here, GiB and MiB powers of two: a "24 GB" card has 24 GiB or a little less, which is 25.8
GB or a little less.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
SMALLEST = 10**6  # bytes; less is a number whose unit was forgotten
_AMOUNT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*")

# What a process takes beyond weights and activations. Assumptions, to be set otherwise where they are known better.
ACCELERATOR_CONTEXT = 800_000_000  # bytes: CUDA context, loaded kernels, workspaces of cuBLAS and cuDNN
HOST_CONTEXT = 600_000_000  # bytes: the interpreter with torch, diffusers and transformers imported
FRAGMENTATION = 0.04  # of the memory: freed blocks that no later tensor fits

# Bytes that the C library's allocator keeps of freed tensors, of which those below 32 MiB do not go back at once. Four
# of the largest, after what `python -m benchmarks.memory` measured with glibc; small work leaves less.
HOST_ALLOCATOR_KEEPS = 4 * 32 * 2**20


def parse_memory(amount: str | int | float) -> int:
    """Bytes of an amount.

    Args:
        amount: "12GB" (12e9 bytes), "12GiB" (12 * 2**30), "11500MB", "0.5 TB" in any case, or a number of bytes.

    Raises:
        ValueError: if it is no amount, not finite, or below a megabyte.
    """
    given = amount
    if isinstance(amount, str):
        match = _AMOUNT.fullmatch(amount)
        if match is None or match[2].upper() not in UNITS:
            raise ValueError(f'`memory` is {given!r}: give a number and a unit, as in "12GB", "12GiB" or "11500MB".')
        amount = float(match[1]) * UNITS[match[2].upper()]
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not math.isfinite(amount):
        raise ValueError(f'`memory` is {given!r}: give bytes as a number, or a text such as "12GB".')
    if amount < SMALLEST:
        raise ValueError(f'`memory` is {given!r}, less than a megabyte: name a unit, as in "12GB".')
    return int(amount)


def show(amount: float) -> str:
    """Bytes in GB (1e9) with two decimals, or in MB (1e6) below a tenth of one."""
    return f"{amount / 1e9:.2f} GB" if amount >= 1e8 else f"{amount / 1e6:.1f} MB"


def reserve(memory: int, device: str) -> int:
    """Bytes of `memory` that a plan leaves alone on a device of this type: context, libraries and fragmentation."""
    context = HOST_CONTEXT if device == "cpu" else ACCELERATOR_CONTEXT
    return context + int(FRAGMENTATION * memory)


def with_reserve(needed: int, device: str) -> int:
    """The least memory of which `needed` bytes are left after the reserve."""
    memory = math.ceil((needed + reserve(0, device)) / (1 - FRAGMENTATION))
    while memory - reserve(memory, device) < needed:
        memory += 1
    return memory


def free_memory(device: str) -> int:
    """Bytes that this process may take on a device now, what it holds there already included.

    Args:
        device: A torch device: "cuda", "cuda:1", "cpu".

    Raises:
        ValueError: if the device does not tell.
    """
    kind = str(device).partition(":")[0]
    if kind in ("cuda", "mps"):
        import torch

        if kind == "mps":
            return torch.mps.recommended_max_memory()
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    information, own = Path("/proc/meminfo"), Path("/proc/self/status")
    if kind != "cpu" or not information.exists():
        raise ValueError(f"How much memory is free on {device!r} cannot be told here: name an amount, as in '12GB'.")
    return _kilobytes(information, "MemAvailable") + _kilobytes(own, "VmRSS")


def _kilobytes(path: Path, key: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024

"""Devices: those that the installed torch is built for, those that are here, and the one taken where none is named."""

from __future__ import annotations

import ast
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def built_for() -> frozenset[str]:
    """Types of devices that the installed torch is built for, which its version file says before seconds of import."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return frozenset(("cpu", "cuda", "mps", "xpu"))
    source = ast.parse(Path(spec.origin).with_name("version.py").read_text(encoding="utf-8"))
    said = {
        ast.unparse(line.target): isinstance(line.value, ast.Constant) and line.value.value
        for line in source.body
        if isinstance(line, ast.AnnAssign)  # cuda: Optional[str] = "13.0"
    }
    found = {"cpu": True, "cuda": said.get("cuda") or said.get("hip"), "xpu": said.get("xpu")}
    found["mps"] = platform.system() == "Darwin"
    return frozenset(kind for kind, there in found.items() if there)


def best_device() -> str:
    """The first accelerator, else the CPU."""
    if built_for() == {"cpu"}:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def available(device: str) -> bool:
    """Whether tensors can be made on a device."""
    kind = device.partition(":")[0]
    if kind == "cpu" or kind not in built_for():
        return kind == "cpu"
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # no such name, or torch is built without it
        return False
    return True

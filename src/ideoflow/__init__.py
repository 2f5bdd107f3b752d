"""ideoflow: Ideogram 4 as a packed-sequence engine; public names load on first use, so `import ideoflow` is quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._imports import quietly

if TYPE_CHECKING:
    from .captions import Caption
    from .model import Ideogram4Transformer2DModel
    from .pipeline import Ideogram4Pipeline, Ideogram4PipelineOutput
    from .schedule import PRESETS

__version__ = "0.1.0"

_MODULE_OF = {
    "Caption": ".captions",
    "Ideogram4Pipeline": ".pipeline",
    "Ideogram4PipelineOutput": ".pipeline",
    "Ideogram4Transformer2DModel": ".model",
    "PRESETS": ".schedule",
}

__all__ = [
    "PRESETS",
    "Caption",
    "Ideogram4Pipeline",
    "Ideogram4PipelineOutput",
    "Ideogram4Transformer2DModel",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name when the name is first asked for (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with quietly():
        value = getattr(importlib.import_module(_MODULE_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

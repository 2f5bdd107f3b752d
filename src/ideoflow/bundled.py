"""Where what comes with the package lies: the bundled model and the fonts of its world."""

from __future__ import annotations

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"
SKETCH = "sketch"  # the name by which users call the bundled model
SKETCH_FOLDER = _ASSETS / "sketch"
FONTS_FOLDER = _ASSETS / "fonts"

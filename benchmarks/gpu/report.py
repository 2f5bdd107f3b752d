"""The one file of a run, written anew whenever a part has found something: a run that is cut keeps what it has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
from ideoflow.files import write_text


class Report:
    """What is known of each part.

    Args:
        head: What is known of the run.
        parts: Those that were asked for.
        out: The file.
    """

    def __init__(self, head: dict[str, Any], parts: Sequence[Part], out: Path) -> None:
        self.out = out
        self.parts: dict[str, dict[str, Any]] = {part.name: {"status": "left out"} for part in parts}
        self._head = {"benchmark": "gpu", **head}
        self._seen: dict[str, str] = {}
        self.write()

    def put(self, name: str, **known: Any) -> None:
        """Keep something of a part."""
        self.parts[name] |= known
        self.write()

    def read(self, name: str, file: Path) -> str:
        """Keep what a part has written of itself so far; its status."""
        try:
            text = file.read_text()
        except FileNotFoundError:
            return "running"
        if text != self._seen.get(name):
            self._seen[name] = text
            self.put(name, **json.loads(text))
        return str(self.parts[name]["status"])

    def write(self) -> None:
        """Write all."""
        write_text(self.out, json.dumps({**self._head, "parts": self.parts}, indent=1) + "\n")

    def summary(self) -> str:
        """A few lines on each part."""
        lines = ["== summary"]
        for name, part in self.parts.items():
            seconds = f", {part['seconds']:.0f} of {part['limit']:.0f} s" if "seconds" in part else ""
            lines.append(f"{name}: {part['status']}{seconds}{': ' + part['error'] if 'error' in part else ''}")
            lines += [f"  {line}" for line in part.get("headline", [])]
        return "\n".join(lines)

    @property
    def exit_status(self) -> int:
        """0 if all went well, 1 if something failed, 3 if there was too little time."""
        found = {part["status"] for part in self.parts.values()}
        return 1 if "failed" in found else 3 if found - {"ok"} else 0

"""The report of a run: written after each case, and taken up again where a run was stopped."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks._measure import write
from benchmarks.full.bars import as_figures, bars
from benchmarks.full.cases import Case


class Report:
    """What was measured so far, in memory and in the file."""

    def __init__(self, head: dict[str, Any], out: Path | None, resume: bool, parser: ArgumentParser) -> None:
        self.head, self.out = head, out
        self.results: list[dict[str, Any]] = []
        if resume and out is not None and out.exists():
            before = json.loads(out.read_text())
            other = [key for key, value in head.items() if before.get(key) != json.loads(json.dumps(value))]
            if other:
                parser.error(f"--resume: {out} was measured with another {', '.join(other)}; name another file")
            self.results = [one for one in before["results"] if not broken([one])]

    def has(self, phase: str, case: Case) -> bool:
        """Whether this case of the phase was measured."""
        return any(all(one[k] == v for k, v in _key(phase, case).items()) for one in self.results)

    def add(self, phase: str, case: Case, figures: dict[str, Any], pixels: int) -> None:
        """Keep a case, and write all."""
        self.results.append(_key(phase, case) | figures)
        made = as_figures(bars(self.results, pixels))
        write({**self.head, "bars": made, "results": self.results}, self.out)


def _key(phase: str, case: Case) -> dict[str, Any]:
    return {"phase": phase, **asdict(case)}


def broken(results: Sequence[dict[str, Any]]) -> list[str]:
    """Sides that failed, but not for want of memory, and what from."""
    return sorted(
        {
            f"{name}: {side['failed']}"
            for case in results
            for name, side in case["sides"].items()
            if "failed" in side and "OutOfMemory" not in side["failed"]
        }
    )

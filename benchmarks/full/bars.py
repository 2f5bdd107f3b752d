"""The bars that the full model must clear on a GPU: the figure of each, the side that gave it, whether it is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.full.sides import SIDES

BY_NAME = {side.name: side for side in SIDES}
Results = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """What is asked of ours at one caption.

    Attributes:
        what: what is measured.
        caption_tokens: of the case.
        wanted: the least that is asked.
        step: the figure of one guided step, by which the bar is met or not; None where it was not measured.
        picture: the same figure of a whole picture, where there is one.
        side: ours that is the fastest there.
    """

    what: str
    caption_tokens: int
    wanted: float
    step: float | None = None
    picture: float | None = None
    side: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.step is None else self.step >= self.wanted


def bars(results: Results, pixels: int) -> list[Bar]:
    """All bars at every caption that was measured alone at pictures of this many pixels a side."""
    made = []
    cases = [case for case in results if (case["pixels"], case["batch"]) == (pixels, 1)]
    for text in sorted({case["caption_tokens"] for case in cases}):
        here = [case for case in cases if case["caption_tokens"] == text]
        made += [
            _faster("over diffusers as it comes", text, 1.8, here, _is_bf16, "diffusers"),
            _faster("over diffusers, trimmed and compiled", text, 1.3, here, _is_bf16, "diffusers, trimmed, compiled"),
            _share(text, 0.7, here),
            _faster("fp8 over our bf16", text, 1.4, here, _is_fp8, None),
        ]
    return made


def _is_bf16(name: str) -> bool:
    return BY_NAME[name].is_ours and BY_NAME[name].precision == "bf16"


def _is_fp8(name: str) -> bool:
    return BY_NAME[name].precision == "fp8"


def _faster(what: str, text: int, wanted: float, cases: Results, mine: Callable[[str], bool], other: str | None) -> Bar:
    """How many times as fast the fastest of `mine` is as `other`, or as the fastest of ours in bf16, in one phase."""
    best = Bar(what, text, wanted)
    for case in cases:
        fast = _fastest(case, mine)
        slow = _fastest(case, _is_bf16 if other is None else lambda name: name == other)
        if fast is None or slow is None:
            continue
        step = case["sides"][slow]["seconds"] / case["sides"][fast]["seconds"]
        pictures = [case["sides"][name].get("picture_seconds") for name in (slow, fast)]
        picture = pictures[0] / pictures[1] if all(pictures) else None
        if best.step is None or step > best.step:
            best = Bar(what, text, wanted, step, picture, fast)
    return best


def _share(text: int, wanted: float, cases: Results) -> Bar:
    what = "share of the measured bf16 matrix rate"
    found = [
        (figures["share_of_matrix_rate"], name)
        for case in cases
        for name, figures in case["sides"].items()
        if _is_bf16(name) and "seconds" in figures
    ]
    return Bar(what, text, wanted, max(found)[0], None, max(found)[1]) if found else Bar(what, text, wanted)


def _fastest(case: dict[str, Any], chosen: Callable[[str], bool]) -> str | None:
    timed = {name: f["seconds"] for name, f in case["sides"].items() if "seconds" in f and chosen(name)}
    return min(timed, key=timed.__getitem__) if timed else None


def as_figures(made: Sequence[Bar]) -> list[dict[str, Any]]:
    """The bars as they are written."""
    return [asdict(bar) | {"met": bar.met} for bar in made]


def table(made: Sequence[Bar]) -> str:
    """The bars as they are printed."""
    lines = [f"{'bar':40}{'caption':>8}{'wanted':>8}{'a step':>8}{'picture':>9}  {'met':13}by"]
    words = {None: "not measured", True: "met", False: "NOT met"}
    for bar in made:
        step, picture = (f"{value:.2f}" if value is not None else "" for value in (bar.step, bar.picture))
        lines.append(
            f"{bar.what:40}{bar.caption_tokens:8}{bar.wanted:8.2f}{step:>8}{picture:>9}  {words[bar.met]:13}{bar.side}"
        )
    return "\n".join(lines)

"""How long the command line takes to say its first word, to draw its first step, and to end: whole commands.

Each runs in a process of its own, on a pseudo-terminal as a person has it; medians of several rounds, after one that
warms the file cache. "First word" is the first byte on the terminal, "drawing" the first count of steps, "ended" the
end of the process; "end" is what passes between the last byte and the end.

    python -m benchmarks.startup --rounds 5
"""

from __future__ import annotations

import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ._measure import machine, make_parser, write

CAPTION = str(Path(__file__).parents[1] / "examples" / "captions" / "heart.json")
PROGRAM = [sys.executable, "-m", "ideoflow"]
COMMANDS = {
    "import ideoflow": [sys.executable, "-c", "import ideoflow"],
    "--help": [*PROGRAM, "--help"],
    "generate --help": [*PROGRAM, "generate", "--help"],
    "train --help": [*PROGRAM, "train", "--help"],
    "inspect sketch": [*PROGRAM, "inspect", "sketch"],
    "caption check": [*PROGRAM, "caption", "check", CAPTION],
    "simulate": [*PROGRAM, "simulate", "-j", "1024x1024:turbo", "--cost", "0.002,4e-6", "--count", "100"],
    "generate, refused: --size 100x100": [*PROGRAM, "generate", CAPTION, "--size", "100x100"],
    "generate, refused: --device cuda": [*PROGRAM, "generate", CAPTION, "--device", "cuda:9"],
    "train, refused: --optimizer adam": [*PROGRAM, "train", "--data", ".", "--optimizer", "adam"],
    "plan": [*PROGRAM, "plan", "--memory", "24GB"],
    "generate": [*PROGRAM, "generate", CAPTION, "--preset", "turbo", "--seed", "7"],
}
STEPPED = re.compile(rb"[1-9]\d?/12")  # of the turbo preset's steps


def watch(command: list[str], folder: str) -> dict[str, float]:
    """Seconds from the start of a command to its marks."""
    ours, theirs = pty.openpty()
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=os.environ | {"TERM": "xterm"}
    )
    os.close(theirs)
    marks: dict[str, float] = {}
    said, last = b"", begun
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's word for the end of a terminal that nobody holds any more
            break
        if not part:
            break
        last = time.perf_counter()
        marks.setdefault("first word", last - begun)
        said += part
        if STEPPED.search(said):
            marks.setdefault("drawing", last - begun)
    process.wait()
    ended = time.perf_counter()
    os.close(ours)
    return {**marks, "ended": ended - begun, "end": ended - last}


def main() -> None:
    """Print a table, and write all figures where a file is named."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument(
        "--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="NAME", help="of commands"
    )
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    columns = ("first word", "drawing", "ended", "end")
    print(f"{'seconds':36}" + "".join(f"{name:>12}" for name in columns))
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            rounds = [watch(COMMANDS[name], folder) for _ in range(arguments.rounds + 1)][1:]
            marks = {mark: [one[mark] for one in rounds if mark in one] for mark in columns}
            if not marks["first word"]:
                marks["end"] = []
            found[name] = {mark: statistics.median(values) for mark, values in marks.items() if values}
            shown = [f"{found[name][mark]:.2f}" if mark in found[name] else "" for mark in columns]
            print(f"{name:36}" + "".join(f"{text:>12}" for text in shown), flush=True)
    write({"machine": machine(), "rounds": arguments.rounds, "seconds": found}, arguments.out)


if __name__ == "__main__":
    main()

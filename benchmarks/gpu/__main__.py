"""What a GPU that is at hand for minutes can show, in order of worth, in one file.

Run as `MINUTES=8 benchmarks/gpu.sh`, or `python -m benchmarks.gpu --minutes 8`, where there is a GPU of 80 GB; parts
can be named, `--list` says which there are. Each has a share of the minutes, and what it leaves is the later ones'. A
part that fails is recorded with its error, one that takes too long with what it has found, and the next goes on. All
but the tests are measured in one process, since making 37 GB of weights takes time; if that dies or hangs, in another.

The file of `--out` is written anew whenever something was found. At the end, or when it is stopped, stands a summary.
The exit status is 0 if all parts went well, 1 if one failed, 3 if the time was too short, 4 if there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import TESTS, Part, chosen, limit
from benchmarks.gpu.report import Report

ROOT = Path(__file__).parents[2]
GRACE = 5.0  # seconds that a part may go on for after it was told to end
KEPT_BACK = 5.0  # seconds for what is to be said at the end
OUTCOME = re.compile(r"(?:^|\] )(PASSED|FAILED|ERROR|SKIPPED) (\S+)|^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b")


def _place(text: str) -> Path:
    """The file of --out; what looks at it takes seconds to import, which a worker has no need of."""
    from benchmarks._measure import target

    return target(text)


def parse() -> tuple[Namespace, ArgumentParser]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PART", help="measure these alone")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together (%(default)g)")
    parser.add_argument("--out", type=_place, default=Path("outputs/gpu.json"), help="the file (%(default)s)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any device: shows that the parts run")
    parser.add_argument("--list", action="store_true", help="say which parts there are, and measure nothing")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.minutes > 0:
        parser.error("--minutes must be above 0")
    return options, parser


class Worker:
    """The process that measures, started when it is needed, and again where it has died.

    Args:
        options: Of the command line.
        folder: Where parts write what they find.
    """

    def __init__(self, options: Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, part: Part, seconds: float, report: Report) -> None:
        """Measure a part, and keep what it finds."""
        file = self._folder / f"{part.name}.json"
        file.unlink(missing_ok=True)
        process = self._started()
        assert process.stdin is not None
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{part.name} {part.place} {seconds}\n")
            process.stdin.flush()
        while report.read(part.name, file) in ("running", "left out"):
            if process.poll() is not None:
                if report.read(part.name, file) == "running":
                    report.put(part.name, status="failed", error=f"the process ended with {process.returncode}")
                break
            if time.monotonic() - begun > seconds + GRACE:
                report.put(part.name, status="cut", error=f"it went on after its {seconds:.0f} seconds")
                self.close()
                break
            time.sleep(0.1)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            end(self._process)
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(self._folder)]
            command += ["--device", self._options.device] + ["--tiny"] * self._options.tiny
            with (self._folder / "worker.log").open("a") as log:
                self._process = subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, start_new_session=True
                )
        return self._process


def end(process: subprocess.Popen[Any], first: signal.Signals = signal.SIGKILL) -> None:
    """End a process with all that it has started."""
    for number in (first, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def run_tests(options: Namespace, folder: Path, seconds: float, report: Report) -> None:
    """Run the tests, and keep which failed."""
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *TESTS]
    if options.tiny:
        command.append("--collect-only")
    elif importlib.util.find_spec("xdist"):
        command += ["-n", "8"]
    log = folder / "tests.log"
    begun = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    counted = -1
    while process.poll() is None and time.monotonic() - begun < seconds:
        time.sleep(0.2)
        found = outcomes(log.read_text(errors="replace"))
        if sum(map(len, found.values())) != counted:
            counted = sum(map(len, found.values()))
            _told(report, found, "running")
    late = process.poll() is None
    if late:
        end(process, signal.SIGINT)
    text = log.read_text(errors="replace")
    found = outcomes(text)
    bad = bool(found["FAILED"] or found["ERROR"] or (not late and process.returncode))
    _told(report, found, "failed" if bad else "cut" if late else "ok")
    if bad:
        last = text.strip().splitlines()[-1:] or ["pytest said nothing"]
        report.put("tests", error=(found["FAILED"] + found["ERROR"] + last)[0])


def outcomes(text: str) -> dict[str, list[str]]:
    """Names of tests by what became of them, as pytest tells while it runs, alone or with workers."""
    found: dict[str, list[str]] = {"PASSED": [], "FAILED": [], "ERROR": [], "SKIPPED": []}
    for line in text.split("short test summary info")[0].splitlines():
        if match := OUTCOME.search(line):
            first, name, other, outcome = match.groups()
            found[first or outcome].append(name or other)
    return found


def _told(report: Report, found: dict[str, list[str]], status: str) -> None:
    counts = {outcome.lower(): len(names) for outcome, names in found.items()}
    failed = found["FAILED"] + found["ERROR"]
    line = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    report.put("tests", status=status, figures={**counts, "failures": failed}, headline=[line, *failed])


def has_gpu() -> bool:
    """Whether torch sees one, asked in a process of its own, which leaves nothing on it."""
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code]).returncode == 0


def described() -> dict[str, Any]:
    """The machine, as far as it can be described."""
    code = "import json; from benchmarks._measure import machine; print(json.dumps(machine()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"unknown": done.stderr[-500:]}


def measure(options: Namespace, parts: list[Part], say: Callable[[str], None]) -> int:
    """Run the parts within the minutes; the exit status."""
    folder = options.out.parent.resolve() / f"{options.out.stem}-parts"
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes - KEPT_BACK
    head = {"minutes": options.minutes, "device": options.device, "tiny": options.tiny, "machine": described()}
    report, worker = Report(head, parts, options.out.resolve()), Worker(options, folder)
    try:
        for number, part in enumerate(parts):
            begun = time.monotonic()
            seconds = limit(parts[number:], ends - begun)
            if seconds <= GRACE:
                break
            report.put(part.name, status="running", limit=seconds)
            say(f"== {part.name}: {part.what}, for {seconds:.0f} s at most")
            try:
                if part.place:
                    worker.run(part, seconds - GRACE, report)
                else:
                    run_tests(options, folder, seconds - GRACE, report)
            except Exception as error:
                report.put(part.name, status="failed", error=f"{type(error).__name__}: {error}")
            finally:
                report.put(part.name, seconds=time.monotonic() - begun)
    finally:
        for name, part_known in report.parts.items():
            if part_known["status"] == "running":
                report.put(name, status="cut")
        worker.close()
        say(report.summary())
        (folder / "summary.txt").write_text(report.summary() + "\n")
    return report.exit_status


def _stop(*_: object) -> None:
    raise SystemExit(1)


def main() -> None:
    """Measure, say, and write."""
    options, parser = parse()
    if options.worker is not None:
        from benchmarks.gpu.worker import work

        return work(options.worker, options.device, options.tiny)
    try:
        parts = chosen(options.names)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for number, part in enumerate(parts):
            seconds = limit(parts, 60 * options.minutes) * part.share / parts[0].share
            print(f"{number + 1}. {part.name:10}{seconds:5.0f} s  {part.what}")
        return None
    if options.device == "cpu" and not options.tiny:
        parser.error("the full model needs a GPU: on a CPU give --tiny")
    if options.device == "cuda" and not has_gpu():
        print("torch sees no GPU here; --device cpu --tiny shows that the parts run", file=sys.stderr)
        raise SystemExit(4)
    signal.signal(signal.SIGTERM, _stop)
    raise SystemExit(measure(options, parts, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()

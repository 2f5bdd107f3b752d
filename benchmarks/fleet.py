"""The server with two replicas on Ray against one, each with one thread: tokens a second under a queue that stays full.

Run as `python -m benchmarks.fleet`, with Ray installed (`pip install "ideoflow[ray]"`), on a machine that has nothing
else to do: two replicas take two cores, and the server itself and Ray a part of them. Servers with one replica and with
two take turns (`--rounds`); each is asked for a mix of small and large pictures of the bundled model, as many as its
queue has places for, and what its replicas step is counted by its own metrics once it has settled.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx

from benchmarks._measure import machine, make_parser, write

CAPTIONS = sorted((Path(__file__).resolve().parent.parent / "examples" / "captions").glob("*.json"))
KINDS = {"small": ("96x96", 12, 0.6), "large": ("192x192", 24, 0.4)}  # size, steps, share of jobs
STARTING = 600  # seconds that replicas may take to load
COUNTED = "ideoflow_pass_tokens_sum"


def main() -> None:
    """Measure, print the figures, and write them."""
    parser = make_parser(__doc__, rounds=2)
    parser.add_argument("--seconds", type=float, default=60, help="that are counted of each server")
    parser.add_argument("--settling", type=float, default=15, help="seconds of load before that")
    parser.add_argument("--replicas", type=int, default=2, help="against one (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=2000, help="of a pass (%(default)s)")
    options = parser.parse_args()
    paces: dict[int, list[float]] = {1: [], options.replicas: []}
    for _ in range(options.rounds):
        for replicas, found in paces.items():
            found.append(measure(replicas, options))
            print(f"{replicas} replicas: {found[-1]:.0f} tokens a second", flush=True)
    ratio = statistics.mean(paces[options.replicas]) / statistics.mean(paces[1])
    print(f"{options.replicas} replicas to one: {ratio:.2f} times the throughput")
    report = {
        "machine": machine(),
        "seconds": options.seconds,
        "max_tokens": options.max_tokens,
        "tokens a second": {str(replicas): found for replicas, found in paces.items()},
        "ratio": ratio,
    }
    write(report, options.out)


def measure(replicas: int, options: Any) -> float:
    """Tokens a second of a server with so many replicas."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as data:
        command = [sys.executable, "-m", "ideoflow", "serve", "--port", str(port), "--data", data, "--drain", "0"]
        command += ["--ray", "--replicas", str(replicas), "--max-tokens", str(options.max_tokens)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http:
                until_ready(http, replicas, process)
                load = Load(http)
                load.fill(options.settling)
                before, begun = counted(http), time.perf_counter()
                load.fill(options.seconds)
                return (counted(http) - before) / (time.perf_counter() - begun)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()
            process.wait()


class Load:
    """Jobs of the mix, as many as the server's queue has places for."""

    def __init__(self, http: httpx.Client) -> None:
        self._http, self._draw, self._asked = http, random.Random(0), 0

    def fill(self, seconds: float) -> None:
        """Keep the queue full for so many seconds."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            size, steps, _ = self._draw.choices(list(KINDS.values()), [share for _, _, share in KINDS.values()])[0]
            caption = CAPTIONS[self._asked % len(CAPTIONS)].read_text("utf-8")
            order = {"caption": caption, "size": size, "num_inference_steps": steps, "seed": 1, "preview_every": 0}
            self._asked += 1
            while (status := self._http.post("/v1/jobs", json=order).status_code) != 202:
                if status != 429:
                    raise RuntimeError(f"a job was answered {status}")
                if time.perf_counter() >= end:
                    return
                time.sleep(0.5)


def until_ready(http: httpx.Client, replicas: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until all replicas draw."""
    end = time.perf_counter() + STARTING
    while time.perf_counter() < end and process.poll() is None:
        with suppress(httpx.TransportError):
            told = http.get("/health/ready").json()
            if sum(one["state"] == "ready" for one in told.get("replicas", [])) == replicas:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{replicas} replicas have not come")


def counted(http: httpx.Client) -> float:
    """Tokens of all passes so far."""
    lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(COUNTED))


if __name__ == "__main__":
    main()

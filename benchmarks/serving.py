"""The server under ten times the load that it can carry, beside its engine alone: throughput, memory, and who waits.

Run as `python -m benchmarks.serving`. The engine alone steps a mix of small and large pictures of the bundled model, as
many at a time as the server's queue has places. Then servers in processes of their own, fair and first in first out,
are asked for jobs of the same mix, ten times as many a second as the engine's tokens are enough for. One in twenty is
cancelled at a random moment, one in twenty has somebody who follows its events and goes away. Where the queue is full,
the client is told so (429) and drops the job. Then all that was accepted is waited for: no wait is left out for being
long.

Clients and server share the machine, so engine and server compute with one thread (`--threads`).
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2 as httpx

from benchmarks._measure import machine, make_parser, write

CAPTIONS = sorted((Path(__file__).resolve().parent.parent / "examples" / "captions").glob("*.json"))
KINDS = {"small": ("64x64", 6, 0.8), "large": ("192x192", 48, 0.2)}  # size, steps, share of jobs
OVERLOAD = 10
SETTLING = 15  # seconds until the queue is full of jobs that came one by one, from which on tokens are counted
MAX_TOKENS = 600


def main() -> None:
    """Measure, print a table, and write the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of load on each server, once it has settled")
    parser.add_argument("--queue", type=int, default=24, help="places in the queue")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in the engine alone and in the server")
    parser.add_argument("--alone", action="store_true", help="measure the engine alone, for this program itself")
    options = parser.parse_args()
    if options.alone:
        engine_alone(options.seconds, options.queue)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    report: dict[str, Any] = {"machine": machine(), "seconds": options.seconds, "queue": options.queue}
    report["engine alone"] = run_alone(options, environment)
    pace = OVERLOAD * report["engine alone"]["jobs a second"]
    for policy in ("fair", "fifo"):
        report[policy] = asyncio.run(overload(policy, pace, options, environment))
    again = run_alone(options, environment)
    alone = statistics.mean(run["tokens a second"] for run in (report["engine alone"], again))
    report["engine alone, again"] = again
    report["ratios"] = {
        "throughput of the fair server to the engine's alone": report["fair"]["tokens a second"] / alone,
        "p95 of small jobs, fair to fifo": report["fair"]["small"]["p95"] / report["fifo"]["small"]["p95"],
    }
    for name in ("engine alone", "fair", "fifo", "engine alone, again", "ratios"):
        print(name, report[name], sep="\n  ")
    write(report, options.out)


def draw_kind(draw: random.Random) -> str:
    """A kind of job, by its share."""
    return draw.choices(list(KINDS), [share for _, _, share in KINDS.values()])[0]


def run_alone(options: Any, environment: dict[str, str]) -> dict[str, float]:
    """The engine alone in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--alone", "--seconds", str(options.seconds / 2)]
    done = subprocess.run(
        [*command, "--queue", str(options.queue)], env=environment, check=True, capture_output=True, text=True
    )
    tokens, jobs = map(float, done.stdout.split()[-2:])
    return {"tokens a second": tokens, "jobs a second": jobs}


def engine_alone(seconds: float, places: int) -> None:
    """Step a full queue of the mix for so many seconds; print tokens a second, and how many jobs they are."""
    import torch

    from ideoflow import sketch

    pipe = sketch.load()
    captions = [path.read_text("utf-8") for path in CAPTIONS]
    engine = pipe.engine(max_tokens=MAX_TOKENS, output_type="pil", preview_every=1, previews="linear")
    draw, added = random.Random(0), 0
    costs: list[int] = []

    def add() -> None:
        nonlocal added
        size, steps, _ = KINDS[draw_kind(draw)]
        (request,) = pipe.make_requests(
            captions[added % len(captions)],
            size=tuple(map(int, size.split("x"))),
            preset="V4_DEFAULT_20",
            num_inference_steps=steps,
            guidance_scale=sketch.GUIDANCE,
            generator=torch.Generator().manual_seed(added),
            defer=True,
        )
        costs.append(sum(request.tokens_of(step) for step in range(request.steps)))
        engine.add(request)
        added += 1

    for _ in range(places):
        add()
    settled = time.perf_counter() + SETTLING
    while time.perf_counter() < settled:
        for event in engine.step():
            if event.kind == "finished":
                add()
    tokens = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        for event in engine.step():
            if event.kind == "step":
                tokens += event.request.tokens_of(event.step - 1)
            if event.kind == "finished":
                add()
    span = time.perf_counter() - start
    print(tokens / span, tokens / span / statistics.mean(costs))


async def overload(policy: str, pace: float, options: Any, environment: dict[str, str]) -> dict[str, Any]:
    """A server under load: what was answered, how long jobs took, what was stepped, and the memory it took."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "ideoflow", "serve", "--port", str(port), "--data", data, "--policy", policy]
        command += ["--max-queue", str(options.queue), "--max-tokens", str(MAX_TOKENS)]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            limits = httpx.Limits(max_connections=200)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as http:
                await until_ready(http)
                return await measure(http, pace, options.seconds)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()


async def until_ready(http: httpx.AsyncClient) -> None:
    """Wait until jobs are accepted."""
    while True:
        with suppress(httpx.TransportError):
            if (await http.get("/health/ready")).status_code == 200:
                return
        await asyncio.sleep(0.1)


async def measure(http: httpx.AsyncClient, pace: float, seconds: float) -> dict[str, Any]:
    """Ask for jobs at a pace, for so many seconds after the first `SETTLING`."""
    captions = [path.read_text("utf-8") for path in CAPTIONS]
    draw, statuses, failures = random.Random(1), Counter[int](), Counter[str]()
    accepted: dict[str, str] = {}
    before = await counters(http)
    memory = [before["process_resident_memory_bytes"]]
    tasks: set[asyncio.Task[None]] = set()
    start = time.perf_counter()

    async def ask(kind: str, caption: str, fate: float, patience: float) -> None:
        size, steps, _ = KINDS[kind]
        order = {"caption": caption, "size": size, "num_inference_steps": steps, "seed": 1}
        try:
            answer = await http.post("/v1/jobs", json=order)
            statuses[answer.status_code] += 1
            if answer.status_code != 202:
                return
            id = answer.json()["id"]
            accepted[id] = kind
            if fate < 0.05:
                await asyncio.sleep(patience)
                await http.delete(f"/v1/jobs/{id}")
            elif fate < 0.1:
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience), http.stream("GET", f"/v1/jobs/{id}/events") as events:
                        async for _ in events.aiter_lines():
                            pass
        except httpx.HTTPError as error:
            failures[type(error).__name__] += 1

    asked, settled = 0, None
    while (now := time.perf_counter() - start) < SETTLING + seconds:
        if settled is None and now >= SETTLING:
            before, settled = await counters(http), time.perf_counter()
        due = int(now * pace)
        for _ in range(due - asked):
            caption = captions[asked % len(captions)]
            task = asyncio.create_task(ask(draw_kind(draw), caption, draw.random(), draw.uniform(0, 3)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            asked += 1
        await asyncio.sleep(0.05)
        if asked % 20 == 0:
            memory.append((await counters(http))["process_resident_memory_bytes"])
    after = await counters(http)
    span = time.perf_counter() - (settled or start)
    await asyncio.gather(*tasks)
    while (await http.get("/v1/jobs", params={"status": "queued,running", "limit": 1})).json()["data"]:
        await asyncio.sleep(1)
    jobs = {job["id"]: job for job in await every_job(http)}
    ended = Counter(jobs[id]["status"] for id in accepted)
    report: dict[str, Any] = {
        "asked": asked,
        "answers": dict(statuses),
        "broken connections": dict(failures),
        "ended": dict(ended),
        "tokens a second": (after["ideoflow_pass_tokens_sum"] - before["ideoflow_pass_tokens_sum"]) / span,
        "memory, first MB": round(memory[0] / 1e6),
        "memory, most MB": round(max(memory) / 1e6),
    }
    for kind in KINDS:
        waits = [
            job["finished_at"] - job["created_at"]
            for id, job in jobs.items()
            if accepted.get(id) == kind and job["status"] == "finished"
        ]
        if len(waits) > 1:
            shares = statistics.quantiles(waits, n=20)
            report[kind] = {"count": len(waits), "median": statistics.median(waits), "p95": shares[-1]}
    return report


async def every_job(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    """All jobs of the server, the newest first."""
    jobs: list[dict[str, Any]] = []
    while True:
        after = {"after": jobs[-1]["id"]} if jobs else {}
        page = (await http.get("/v1/jobs", params={"limit": 200, **after})).json()
        jobs += page["data"]
        if not page["has_more"]:
            return jobs


async def counters(http: httpx.AsyncClient) -> dict[str, float]:
    """The server's metrics that have no labels."""
    text = (await http.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r"^(\w+) ([\d.e+-]+)$", text, re.MULTILINE)}


if __name__ == "__main__":
    main()

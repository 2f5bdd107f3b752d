"""Guided steps of both transformers: the bars, where the time goes, mixed sizes packed, and CUDA graphs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks._gpu import free, matrix_rate, timed
from benchmarks.full.cases import Case
from benchmarks.full.measure import Effort, load, make_inputs, measure
from benchmarks.full.sides import EXACT, FP8, INT8, OurRun, Side
from benchmarks.gpu.scene import Scene
from benchmarks.roofline import IMPLEMENTATIONS, Sample, count, work_of
from ideoflow.engine import Denoiser, Engine
from ideoflow.schedule import logit_normal_sigmas

SMALL, LARGE = Case(512, 200, 1), Case(1024, 500, 1)
PEER = "diffusers, trimmed, compiled"
MIXED = ((512, 200), (768, 300), (640, 150), (1024, 500))  # pixels of a side, tokens of the caption


def fuse(branch: Any) -> None:
    branch.fuse_projections()


SIDES = {
    EXACT: (
        Side("ideoflow", (EXACT,)),
        Side(PEER, (EXACT,), "~ trimmed", compiled=True),
        Side("ideoflow, fused", (EXACT,), change=fuse),
        Side("ideoflow, fused, no graphs", (EXACT,), change=fuse, denoiser={"cuda_graphs": False}),
    ),
    FP8: (Side("ideoflow", (FP8,)), Side("ideoflow, fp8", (FP8,), precision="fp8")),
    INT8: (Side("ideoflow", (INT8,)), Side("ideoflow, int8", (INT8,), precision="int8")),
}
# What is asked: of a phase's sides, how many times as fast the second is, at 512 and at 1024 pixels.
ASKED = (
    (EXACT, PEER, "ideoflow", (1.15, 1.3)),
    (FP8, "ideoflow", "ideoflow, fp8", (1.0, 1.5)),
    (INT8, "ideoflow", "ideoflow, int8", (1.0, 1.25)),
)
SHARE = 0.88  # of the measured rate of bf16 at 1024 pixels


def cases(scene: Scene) -> tuple[Case, Case]:
    """A small one and a large one."""
    return (Case(64, 5, 1), Case(96, 7, 1)) if scene.tiny else (SMALL, LARGE)


def bars(scene: Scene) -> None:
    """A step of each side in turn, at both sizes, and what is asked of them."""
    models, sizes = scene.models(), scene.sizes()
    torch._dynamo.config.recompile_limit = 64
    effort = Effort(5, 8, 0, 20, 64 if scene.tiny else 8192)
    results: list[dict[str, Any]] = []
    for phase in scene.in_time(SIDES):
        sides = [side for side in SIDES[phase] if not (scene.tiny and side.compiled and scene.device == "cpu")]
        loaded = {side.name: load(side, models) for side in sides}
        for case in scene.in_time(cases(scene)):
            figures = measure(sides, loaded, case, sizes, scene.device, effort)
            results.append({"phase": phase, "pixels": case.pixels, "caption_tokens": case.caption_tokens, **figures})
            scene.tell({"results": results}, met(results, cases(scene)))
        loaded.clear()
        models.forget_quantized()
        free()
    failed = [f"{name}: {side['failed']}" for one in results for name, side in one["sides"].items() if "failed" in side]
    if failed:
        raise RuntimeError("; ".join(failed))


def met(results: Sequence[dict[str, Any]], both: Sequence[Case]) -> list[str]:
    """What was asked, what was found, and whether that is enough, a line each."""
    lines = []
    for one in results:
        seconds = {name: side["seconds"] for name, side in one["sides"].items() if "seconds" in side}
        told = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
        lines.append(f"{one['pixels']} px, {one['phase']}: {told}")
        size = [case.pixels for case in both].index(one["pixels"])
        for phase, slow, fast, wanted in ASKED:
            if phase == one["phase"] and slow in seconds and fast in seconds:
                lines.append(_line(f"{fast} over {slow}", seconds[slow] / seconds[fast], wanted[size]))
        if one["phase"] == EXACT and size == 1 and "ideoflow" in seconds:
            share = one["sides"]["ideoflow"]["share_of_matrix_rate"]
            lines.append(_line("ideoflow's share of the matrix rate", share, SHARE))
    return lines


def _line(what: str, found: float, wanted: float) -> str:
    return f"{what}: {found:.2f}, wanted {wanted:.2f}: {'met' if found >= wanted else 'NOT met'}"


def _run(scene: Scene, case: Case, **denoiser: Any) -> OurRun:
    """Pictures of ours with projections fused."""
    branches = scene.models().ours("bf16")
    for branch in branches:
        branch.fuse_projections()
    return OurRun(branches, make_inputs(case, scene.sizes(), scene.device, 20), denoiser)


@torch.no_grad()
def profile_steps(scene: Scene) -> None:
    """Kernels of a step by their time, and how long the device has none to compute, without and with graphs."""
    from torch.profiler import ProfilerActivity, profile

    found: list[dict[str, Any]] = []
    headline: list[str] = []
    chosen = [(case, graphs) for case in cases(scene) for graphs in (False, True)]
    for case, graphs in scene.in_time(chosen):
        run = _run(scene, case, cuda_graphs=graphs and scene.device == "cuda")
        for _ in range(3):
            run.step()
        step = statistics.median(timed(run.step, scene.device)[0] for _ in range(5))
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (scene.device == "cuda")
        with profile(activities=activities) as profiler:
            timed(run.step, scene.device)
        rows = _kernels(profiler, scene.device)
        busy = sum(row["milliseconds"] for row in rows) / 1e3
        row = {"pixels": case.pixels, "graphs": graphs, "seconds": step, "busy": busy, "kernels": rows[:25]}
        found.append(row | {"launches": sum(row["calls"] for row in rows)})
        headline.append(
            f"{case.pixels} px{', graphs' if graphs else ''}: {1e3 * step:.1f} ms a step, {found[-1]['launches']}"
            f" kernels of {1e3 * busy:.1f} ms"
        )
        scene.tell({"steps": found}, headline)


def _kernels(profiler: Any, device: str) -> list[dict[str, Any]]:
    """Calls and milliseconds of each kernel, the longest first; of each operation on a CPU."""
    rows = []
    for event in profiler.key_averages():
        on_device = "CUDA" in str(event.device_type)
        if on_device != (device == "cuda") or str(event.key).startswith("Activity"):
            continue
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        rows.append({"kernel": event.key[:160], "calls": event.count, "milliseconds": taken / 1e3})
    return sorted(rows, key=lambda row: -row["milliseconds"])


@torch.no_grad()
def packed(scene: Scene) -> None:
    """Pictures of several sizes in one pass, against each in a pass of its own."""
    mixed = ((64, 5), (96, 7)) if scene.tiny else MIXED
    runs = [_run(scene, Case(pixels, text, 1), cuda_graphs=False) for pixels, text in mixed]
    denoiser = runs[0].denoiser
    # Contexts depend on the weights alone, which all runs share.
    requests = [run._request(run.inputs.latents[0], *run.contexts[0]) for run in runs]
    calls: dict[str, Callable[[], object]] = {
        "packed": lambda: denoiser.compute(requests),
        "one by one": lambda: [denoiser.compute([request]) for request in requests],
    }
    for call in calls.values():
        call()
    rate = matrix_rate("bf16", scene.device, 64 if scene.tiny else 8192)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, int] = {}
    for _ in range(5):
        for name, call in calls.items():
            seconds, peaks[name] = timed(call, scene.device)
            taken[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ours = next(one for one in IMPLEMENTATIONS if one.name == "ideoflow")
    samples = [Sample(text, pixels // 16, pixels // 16) for pixels, text in mixed]
    flops = work_of(count(scene.sizes(), samples, ours, "bfloat16", scene.device)).matrix_flops
    shares = {name: flops / value / rate for name, value in medians.items()}
    figures = {"pictures": mixed, "seconds": medians, "peak_bytes": peaks, "share_of_matrix_rate": shares}
    told = ", ".join(f"{name} {1e3 * medians[name]:.1f} ms ({shares[name]:.0%} of the rate)" for name in medians)
    scene.tell(figures, [f"{len(mixed)} pictures of mixed sizes: {told}"])


@torch.no_grad()
def graphs(scene: Scene) -> None:
    """Whole pictures with graphs as they come and without: the same latents, seconds, and what graphs hold."""
    small, large = cases(scene)
    chosen = [small, Case(640, 300, 1), Case(768, 300, 1), large] if not scene.tiny else [small, large]
    results: list[dict[str, Any]] = []
    headline: list[str] = []
    for case in scene.in_time(chosen):
        found: dict[str, Any] = {"pixels": case.pixels, "caption_tokens": case.caption_tokens}
        latents = []
        for choice in (False, "auto"):
            free()
            branches = scene.models().ours("bf16")
            inputs = make_inputs(case, scene.sizes(), scene.device, 20)
            run = OurRun(branches, inputs, {"cuda_graphs": choice})
            run.step()
            seconds, peak = timed(run.picture, scene.device)
            latents.append(run.picture())
            again, _ = timed(run.picture, scene.device)
            found["auto" if choice else "off"] = {
                "first_picture": seconds,
                "next_picture": again,
                "peak_bytes": peak,
                "graphs": [len(one) for one in run.denoiser._graphs()],
                "graphs_bytes": sum({one._store.pool.bytes for one in run.denoiser._graphs()}),
            }
            del run, branches
        found["same"] = torch.equal(*latents)
        results.append(found)
        off, auto = found["off"], found["auto"]
        headline.append(
            f"{case.pixels} px, 20 steps: {off['next_picture']:.2f} s without, {auto['next_picture']:.2f} s with graphs"
            f" ({auto['graphs_bytes'] / 1e9:.2f} GB), {'the same' if found['same'] else 'OTHER'} latents"
        )
        scene.tell({"pictures": results}, headline)
    for pictures in scene.in_time([2, 4]):
        results.append(_many(scene, small, pictures))
        one = results[-1]
        headline.append(
            f"{pictures} pictures of one shape after each other: {one['off']:.2f} s without, {one['auto']:.2f} s with"
        )
        scene.tell({"pictures": results}, headline)
    if not all(one.get("same", True) for one in results):
        raise RuntimeError("graphs draw other pictures")


def _many(scene: Scene, case: Case, pictures: int) -> dict[str, Any]:
    """Seconds of pictures of one shape, each with a caption of its own, in one engine."""
    branches = scene.models().ours("bf16")
    inputs = make_inputs(case, scene.sizes(), scene.device, 20)
    sigmas = logit_normal_sigmas(4, case.pixels, case.pixels)
    found: dict[str, Any] = {"pictures": pictures, "steps": 4}
    for choice in (False, "auto"):
        engine = Engine(Denoiser(*branches, cuda_graphs=choice), max_requests=1)

        def draw(engine: Engine = engine) -> None:
            for _ in range(pictures):
                made = engine.denoiser
                context = made.prepare_conditional(inputs.features, inputs.grid)
                engine.complete([_request(inputs, sigmas, context, made.prepare_unconditional(inputs.grid))])

        draw()
        found["auto" if choice else "off"] = timed(draw, scene.device)[0]
    return found


def _request(inputs: Any, sigmas: Any, conditional: Any, unconditional: Any) -> Any:
    from ideoflow.engine import Request

    return Request(
        conditional=conditional,
        unconditional=unconditional,
        latents=inputs.latents[0],
        sigmas=sigmas,
        guidance=(7.0,) * (len(sigmas) - 1),
        grid=inputs.grid,
    )

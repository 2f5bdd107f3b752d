"""What the server counts, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from .records import ENDED, JobRecord

if TYPE_CHECKING:
    import torch

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000)


class Watched(Protocol):
    """What gauges look at."""

    @property
    def running(self) -> int:
        """Jobs that have begun."""

    @property
    def unfinished(self) -> int:
        """Jobs that have begun or wait."""


class WatchedFleet(Protocol):
    """What gauges look at where there are replicas elsewhere."""

    @property
    def views(self) -> list[dict[str, Any]]:
        """What is told of each replica."""

    @property
    def queued(self) -> int:
        """Pictures that no replica has yet."""

    @property
    def lost(self) -> int:
        """Replicas that were lost so far."""


class FleetCollector(Collector):
    """Reads a fleet when its metrics are asked for."""

    def __init__(self, fleet: WatchedFleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Replicas by state, tokens before each, pictures that wait for one, and replicas lost."""
        views = self._fleet.views
        states = GaugeMetricFamily("ideoflow_replicas", "Replicas, by state.", labels=["state"])
        for state in ("starting", "ready", "leaving"):
            states.add_metric([state], sum(view["state"] == state for view in views))
        tokens = GaugeMetricFamily("ideoflow_replica_tokens", "Tokens of all steps before it.", labels=["replica"])
        for view in views:
            tokens.add_metric([view["name"]], view["tokens"])
        yield states
        yield tokens
        yield GaugeMetricFamily(
            "ideoflow_pictures_unplaced", "Pictures that no replica has yet.", value=self._fleet.queued
        )
        yield CounterMetricFamily("ideoflow_replicas_lost", "Replicas that were lost.", value=self._fleet.lost)


class Metrics:
    """Counters of one server, each in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory among others
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "ideoflow_http_requests", "Requests answered, by route and status.", ("method", "route", "status"), **own
        )
        self.jobs = Counter("ideoflow_jobs", "Jobs that have ended, by how.", ("status",), **own)
        for status in ENDED:
            self.jobs.labels(status)  # 0 is told from the start
        self.pictures = Counter("ideoflow_pictures", "Pictures finished.", **own)
        self.queue_seconds = Histogram(
            "ideoflow_queue_seconds", "Seconds from a job's arrival to its first step.", buckets=SECONDS, **own
        )
        self.job_seconds = Histogram(
            "ideoflow_job_seconds", "Seconds from a job's arrival to its end.", ("status",), buckets=SECONDS, **own
        )
        self.step_seconds = Histogram("ideoflow_step_seconds", "Seconds of a pass.", buckets=SECONDS, **own)
        self.pass_tokens = Histogram("ideoflow_pass_tokens", "Tokens of a pass.", buckets=TOKENS, **own)
        self.pass_requests = Histogram(
            "ideoflow_pass_requests", "Pictures that share a pass.", buckets=(1, 2, 4, 8, 16, 32, 64), **own
        )
        self.running = Gauge("ideoflow_jobs_running", "Jobs that have begun and not ended.", **own)
        self.waiting = Gauge("ideoflow_jobs_waiting", "Jobs that wait for their first step.", **own)

    def watch(self, jobs: Watched) -> None:
        """Look at these jobs when gauges are read."""
        self.running.set_function(lambda: jobs.running)
        self.waiting.set_function(lambda: jobs.unfinished - jobs.running)

    def watch_fleet(self, fleet: WatchedFleet) -> None:
        """Look at these replicas when metrics are read."""
        self.registry.register(FleetCollector(fleet))

    def watch_device(self, device: torch.device) -> None:
        """Look at this device's memory when gauges are read, if it has its own and torch counts it."""
        if device.type != "cuda":
            return
        import torch

        for name, text, read in (
            ("ideoflow_device_memory_bytes", "Bytes of tensors on the model's device.", torch.cuda.memory_allocated),
            ("ideoflow_device_memory_peak_bytes", "The most they took.", torch.cuda.max_memory_allocated),
        ):
            Gauge(name, text, registry=self.registry).set_function(partial(read, device))

    def count_pass(self, tokens: int, requests: int, seconds: float) -> None:
        """Count a pass of the engine."""
        self.pass_tokens.observe(tokens)
        self.pass_requests.observe(requests)
        self.step_seconds.observe(seconds)

    def count_start(self, record: JobRecord) -> None:
        """Count a job's first step."""
        self.queue_seconds.observe(max(0.0, time.time() - record.created_at))

    def count_picture(self) -> None:
        """Count a finished picture."""
        self.pictures.inc()

    def count_end(self, record: JobRecord) -> None:
        """Count a job that has ended."""
        self.jobs.labels(record.status).inc()
        self.job_seconds.labels(record.status).observe(max(0.0, time.time() - record.created_at))

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count an answered request."""
        self.requests.labels(method, route, str(status)).inc()

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)

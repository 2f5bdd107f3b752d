"""Replicas as Ray actors, each placed by a group of its own.

Actors rather than a deployment of Ray Serve: jobs, their store and the HTTP server are here already, and whoever takes
up a lost replica's pictures must know which ones it had. Serve's router counts requests where this one counts tokens
(its interface for others is alpha), and its proxies and controller would be processes more with nothing to do.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...captions.writing import Written
from ..drawing_order import DrawingOrder
from ..server_settings import ServerSettings
from .remote_request import Measure, Report
from .replica_fleet import Fleet, NotStarted, ReplicaLost
from .replica_host import Introduction, ReplicaHost

logger = logging.getLogger(__name__)

OBJECT_STORE = 2**29  # bytes, of a Ray that is started here: pictures pass through, and nothing stays
THREADS = 16  # calls that a replica answers at a time: one waits for its next report, others measure
SILENCE = 60.0  # seconds without a report after which a replica is lost
ANSWER = 120.0  # seconds that another answer may take
ROOM = 3.0  # seconds in which a free place is found, if there is one


class RayReplica:
    """A `Link` to an actor.

    Args:
        settings: the server's options, without its secrets.
        group: where it is placed; removed with it.
        cpus: CPUs of its bundle.
        gpus: GPUs of its bundle.
    """

    def __init__(self, settings: ServerSettings, group: PlacementGroup, cpus: float, gpus: float) -> None:
        self._group = group
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": place}
        # Not started again by Ray, and no call is repeated: a fleet takes up what was lost, and knows what that was.
        host = ray.remote(ReplicaHost).options(max_concurrency=THREADS, max_restarts=0, max_task_retries=0, **options)
        self._actor = host.remote(settings)

    def introduce(self) -> Introduction:
        """Wait until it is ready, for as long as the cluster takes to find a place and the replica to load."""
        try:
            introduction: Introduction = ray.get(self._actor.introduce.remote())
        except ray.exceptions.RayTaskError as error:
            raise NotStarted(str(error.cause)) from error.cause
        except ray.exceptions.RayError as error:
            raise NotStarted(_short(error)) from None
        return introduction

    def measure(self, order: DrawingOrder) -> list[Measure] | str:
        """See `ReplicaHost`."""
        measures: list[Measure] | str = _answer(lambda: self._actor.measure.remote(order), ANSWER)
        return measures

    def draw(self, order: DrawingOrder) -> None:
        """See `ReplicaHost`."""
        self._actor.draw.remote(order)

    def cancel(self, name: str) -> None:
        """See `ReplicaHost`."""
        self._actor.cancel.remote(name)

    def write(self, words: str, size: tuple[int, int] | None) -> Written:
        """See `ReplicaHost`."""
        written: Written = _answer(lambda: self._actor.write.remote(words, size), ANSWER)
        return written

    def report(self) -> Report:
        """See `ReplicaHost`."""
        report: Report = _answer(lambda: self._actor.report.remote(), SILENCE)
        return report

    def end(self) -> None:
        """End its process, whatever it does."""
        try:
            ray.kill(self._actor)
            remove_placement_group(self._group)
        except Exception as error:  # the cluster may be gone, and with it what there was to end
            logger.debug("a replica could not be ended: %s", error)


class RayLauncher:
    """A `Launcher` on a Ray cluster.

    Args:
        settings: the server's options.
        most: the most replicas that there will be.
    """

    def __init__(self, settings: ServerSettings, most: int) -> None:
        self._settings = settings.model_copy(update={"api_keys": (), "database": None})
        self._most = most
        self._cpus, self._gpus = 1.0, settings.gpus_per_replica or 0.0
        self._free: PlacementGroup | None = None

    def open(self) -> None:
        """Join the cluster that `RAY_ADDRESS` names, or one that runs on this machine; where there is none, start one.

        Raises:
            ConnectionError: for an address where there is none.
        """
        _join(self._most, self._settings.log_json)
        asked = self._settings.gpus_per_replica
        if asked is None and self._settings.device != "cpu" and ray.cluster_resources().get("GPU"):
            self._gpus = 1.0

    def launch(self) -> RayReplica:
        """Start one, without waiting for it."""
        group, self._free = self._free or self._group(), None
        return RayReplica(self._settings, group, self._cpus, self._gpus)

    def has_room(self) -> bool:
        """Whether one more can be placed now; its place is kept for the next that is launched."""
        if self._free is None:
            group = self._group()
            if not group.wait(ROOM):
                remove_placement_group(group)
                return False
            self._free = group
        return True

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        ray.shutdown()

    def _group(self) -> PlacementGroup:
        # Its GPUs are of one machine: a bundle is never parted, and bundles that were more would be packed strictly.
        bundle = {"CPU": self._cpus, **({"GPU": self._gpus} if self._gpus else {})}
        return placement_group([bundle], strategy="STRICT_PACK")


def open_fleet(settings: ServerSettings) -> Fleet:
    """A fleet of the replicas that the options ask for, once the first is ready.

    Raises:
        Exception: why a replica could not be started.
    """
    least, most = settings.replicas or (1, 1)
    fleet = Fleet(RayLauncher(settings, most), least, most, settings.policy == "priority")
    fleet.open()
    return fleet


def _join(most: int, quiet: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # which would tell its makers of each cluster
    address = os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": not quiet, "logging_level": logging.WARNING}
    if address != "local":
        try:
            ray.init(address=address or "auto", **common)
            return
        except ConnectionError:
            if address:
                raise
    cpus = max(most, os.cpu_count() or 1)
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **common
    )  # fmt: skip


def _answer(ask: Callable[[], Any], seconds: float) -> Any:
    """What an actor answers.

    Raises:
        ReplicaLost: if it does not.
        Exception: what its method raises.
    """
    try:
        return ray.get(ask(), timeout=seconds)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.GetTimeoutError:
        raise ReplicaLost(f"it has not answered for {seconds:g} seconds") from None
    except ray.exceptions.RayError as error:
        raise ReplicaLost(_short(error)) from None


def _short(error: Exception) -> str:
    """The first line of what Ray says, which goes on for many."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

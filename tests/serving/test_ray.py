"""The server with replicas in a real Ray cluster on this machine: killed, rolled over, and ended.

    python -m pytest -m long tests/serving/test_ray.py

`IDEOFLOW_FLEET_JOBS=500` has so many jobs in place of 60. One of two replicas is killed every 20 seconds, and no sooner
than both are ready: on a busy machine it takes a replica longer than that to start.
"""

import io
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ideoflow.serving.drawing_order import DrawingOrder
from ideoflow.serving.fleet.replica_host import ReplicaHost
from ideoflow.serving.job_settings import JobSettings
from ideoflow.serving.server_settings import ServerSettings
from tests.serving.conftest import ENDED, Process, small

pytest.importorskip("ray", reason='Ray is not installed: pip install "ideoflow[ray]"')
pytestmark = pytest.mark.long

JOBS = int(os.environ.get("IDEOFLOW_FLEET_JOBS", "60"))
EVERY = 20.0  # seconds from kill to kill
LONG = 600.0  # seconds in which anything comes to its end on a busy machine
CAPTIONS = sorted((Path(__file__).parents[2] / "examples" / "captions").glob("*.json"))


@pytest.fixture
def ray_server(tmp_path):
    """A function that starts a server with two replicas on Ray; what it started is gone at the end."""
    started = []

    def start(*options, environment=None):
        own = {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        environment = {**own, **(environment or {})}
        two = ("--ray", "--replicas", "2", "--max-tokens", "400", *options)
        log = tmp_path / "log"
        running = Process([sys.executable], tmp_path / "kept", *two, environment=environment, seconds=LONG, log=log)
        started.append(running)
        until(lambda: len(ready(running)) == 2)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            family = descendants(running.process.pid)
            assert running.kill(signal.SIGTERM)[1] == 0
            until(lambda own=family: not any(alive(pid) for pid in own))


def until(reached, seconds=LONG):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.1)


def replicas(running):
    return running.http.get("/health/ready").json()["replicas"]


def ready(running):
    return [one for one in replicas(running) if one["state"] == "ready"]


def descendants(pid):
    """Processes below one."""
    found = [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return found + [below for child in found for below in descendants(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def orders(count):
    """Mixed jobs: captions, sizes, steps, and numbers of pictures."""
    draw = random.Random(19)
    for seed in range(count):
        yield {
            "caption": draw.choice(CAPTIONS).read_text("utf-8"),
            "size": draw.choice(["32x32", "64x48", "96x96", "48x96"]),
            "num_inference_steps": draw.choice([2, 4, 8, 12]),
            "n": draw.choice([1, 1, 2]),
            "seed": 100 * seed,
        }


def submit(running, order):
    """Have a job accepted, however long the queue is full; its id."""
    while True:
        answer = running.http.post("/v1/jobs", json=order)
        if answer.status_code == 202:
            return answer.json()["id"]
        assert answer.status_code == 429, answer.text
        time.sleep(0.2)


def wait(running, id):
    until(lambda: running.http.get(f"/v1/jobs/{id}").json()["status"] in ENDED)
    return running.http.get(f"/v1/jobs/{id}").json()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A function that draws a picture of a job by itself, in this process."""
    host = ReplicaHost(ServerSettings(data=tmp_path_factory.mktemp("alone")))
    host.introduce()

    def draw(job, index):
        settings = JobSettings.of_request(job["request"])
        host.draw(DrawingOrder(job["id"], job["prompt"], settings, (index,), job["created_at"]))
        while True:
            for event in host.report().events:
                assert event.kind not in ("failed", "cancelled"), event
                if event.kind == "finished":
                    return np.asarray(event.image).astype(int)

    return draw


def check(running, jobs, alone):
    """That each job is finished, with each of its pictures once, as it is drawn alone."""
    for job in jobs:
        assert job["status"] == "finished", job["error"]
        assert [one["index"] for one in job["pictures"]] == list(range(job["request"]["n"]))
        for one in job["pictures"]:
            kept = np.asarray(Image.open(io.BytesIO(running.http.get(one["url"]).content))).astype(int)
            assert np.abs(kept - alone(job, one["index"])).max() <= 1, (job["id"], one)


def metric(running, name):
    lines = running.http.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_a_replica_killed_every_20_seconds_loses_nothing_and_doubles_nothing(ray_server, where, request, alone):
    kept = request.getfixturevalue("postgres").database() if where == "postgres" else None
    running = ray_server(environment={"IDEOFLOW_DATABASE": kept} if kept else None)
    over, killed = threading.Event(), []

    def kill():
        draw = random.Random(JOBS)
        while not over.wait(EVERY if killed else EVERY / 4):
            while len(there := ready(running)) < 2 and not over.wait(0.2):
                pass
            if len(there) == 2:
                killed.append(draw.choice(there)["pid"])
                os.kill(killed[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    begun = time.monotonic()
    try:
        ids = [submit(running, order) for order in orders(JOBS)]
        jobs = [wait(running, id) for id in ids]
    finally:
        over.set()
        killer.join()
    print(f"{where}: {JOBS} jobs in {time.monotonic() - begun:.0f} s, {len(killed)} replicas killed")
    assert killed
    check(running, jobs, alone)
    pictures = sum(job["request"]["n"] for job in jobs)
    assert metric(running, "ideoflow_pictures_total") == pictures
    until(lambda: metric(running, "ideoflow_replicas_lost_total") == len(killed) and len(ready(running)) == 2)


def test_replicas_are_rolled_over_under_load_and_a_server_that_is_killed_goes_on(ray_server, alone):
    running = ray_server("--max-queue", "1000")
    before = {one["name"] for one in ready(running)}
    accepted = []
    running.process.send_signal(signal.SIGHUP)
    mixed = orders(10_000)
    while len(there := ready(running)) < 2 or before & {one["name"] for one in there}:
        answer = running.http.post("/v1/jobs", json=next(mixed))
        assert answer.status_code == 202, answer.text
        accepted.append(answer.json()["id"])
        time.sleep(0.5)
    assert not before & {one["name"] for one in replicas(running)}
    check(running, [wait(running, id) for id in accepted], alone)
    assert metric(running, "ideoflow_replicas_lost_total") == 0

    ids = [submit(running, small(num_inference_steps=20, seed=seed)) for seed in range(12)]
    cancelled = submit(running, small(num_inference_steps=100, size="96x96"))
    assert running.http.delete(f"/v1/jobs/{cancelled}").status_code == 200
    assert wait(running, cancelled)["status"] == "cancelled"
    family = descendants(running.process.pid)
    assert len(family) > 3
    running.kill(signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in family))  # Ray and its replicas with it
    again = ray_server()
    check(again, [wait(again, id) for id in ids], alone)


def test_a_model_that_no_replica_can_load_ends_the_server_with_one_line(tmp_path):
    import subprocess

    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "model_index.json").write_text(json.dumps({"_class_name": "Ideogram4Pipeline"}))
    ended = subprocess.run(
        [sys.executable, "-m", "ideoflow", "serve", str(broken), "--ray", "--port", "0", "--data", str(tmp_path / "d")],
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert ended.returncode == 1 and "the model could not be loaded" in ended.stderr, ended.stderr

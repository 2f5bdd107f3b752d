"""A fleet of replicas: real ones of the bundled model, in threads of this process, whose way to the server is cut.

What goes to them and comes from them is pickled on the way, as if it were another process's. `test_ray.py` has real
processes.
"""

import contextlib
import io
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ideoflow.serving.api_errors import ApiError
from ideoflow.serving.drawing_order import DrawingOrder
from ideoflow.serving.fleet import replica_fleet, replica_host
from ideoflow.serving.fleet.replica_fleet import Fleet, NotStarted, ReplicaLost
from ideoflow.serving.fleet.replica_host import ReplicaHost
from ideoflow.serving.job_settings import Order
from ideoflow.serving.jobs import Jobs
from ideoflow.serving.metrics import Metrics
from ideoflow.serving.server_settings import ServerSettings, read_settings
from ideoflow.serving.serving_model import load_model
from ideoflow.serving.store import Store
from tests.serving.conftest import small

PASS = 300  # tokens: some three of these pictures


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """The models, which are as good as new once a test is over: loading takes longer than drawing."""
    spare, one_by_one = [], threading.Lock()  # diffusers loads in one thread at a time

    def load(settings):
        with one_by_one:
            return spare.pop() if spare else load_model(settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replica_host, "load_model", load)
        yield spare


class Here:
    """A `Link` to a replica of this process that can be cut."""

    def __init__(self, settings, spare, fault=None):
        self.host, self.cut, self.spare, self.fault = ReplicaHost(settings), threading.Event(), spare, fault
        self.ending, self.ended = threading.Lock(), False

    def ask(self, method, *given):
        if self.cut.is_set():
            raise ReplicaLost("its process has died")
        answer = pickle.loads(pickle.dumps(getattr(self.host, method)(*pickle.loads(pickle.dumps(given)))))
        if self.cut.is_set():  # what was told last is lost with it
            raise ReplicaLost("its process has died")
        return answer

    def introduce(self):
        if self.fault is not None:
            raise NotStarted(str(self.fault)) from self.fault
        return self.ask("introduce")

    def measure(self, order):
        return self.ask("measure", order)

    def report(self):
        return self.ask("report")

    def draw(self, order):
        with contextlib.suppress(ReplicaLost):
            self.ask("draw", order)

    def cancel(self, name):
        with contextlib.suppress(ReplicaLost):
            self.ask("cancel", name)

    def end(self):
        self.cut.set()
        with self.ending:
            if self.host._replica is None or self.ended:
                return
            self.ended = True
            for request in self.host.replica.waiting:
                self.host.replica.cancel(request)
            self.host.replica.close(30)
            self.spare.append(self.host.replica.pipe)


class Places:
    """A `Launcher` of replicas in this process."""

    def __init__(self, settings, spare):
        self.settings, self.spare, self.links, self.fault, self.room = settings, spare, [], None, True

    def open(self):
        pass

    def launch(self):
        self.links.append(Here(self.settings, self.spare, self.fault))
        return self.links[-1]

    def has_room(self):
        return self.room

    def close(self):
        pass


@pytest.fixture
def server(tmp_path, loaded, monkeypatch):
    """A function that starts a fleet with its jobs: `(jobs, fleet, places)`."""
    monkeypatch.setattr(replica_fleet, "TICK", 0.02)
    monkeypatch.setattr(replica_host, "PATIENCE", 0.05)
    started = []

    def start(least=2, most=None, **options):
        settings = ServerSettings(data=tmp_path, max_tokens=PASS, **options)
        places = Places(settings, loaded)
        fleet = Fleet(places, least, most or least)
        served = fleet.open().served
        store, metrics = Store(tmp_path), Metrics()
        metrics.watch_fleet(fleet)
        jobs = Jobs(fleet.listen, served, store, metrics)
        jobs.metrics = metrics
        jobs.start()
        started.append((jobs, store))
        until(lambda: len(ready(fleet)) == least)
        return jobs, fleet, places

    yield start
    for jobs, store in started:
        jobs.close()
        store.close()


def until(reached, seconds=60):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.005)


def ready(fleet):
    return [view for view in fleet.views if view["state"] == "ready"]


def submit(jobs, **order):
    asked = Order(**small(**order))
    return jobs.submit(asked, jobs.read(asked.caption, asked.size))[0]


def ended(*given):
    for job in given:
        assert job.ended.wait(60), job.view()
    return [job.record.status for job in given]


def told(job, kind):
    return [event for event in job.journal.after(0) if event.type == kind]


def pixels(jobs, job, index):
    return np.asarray(Image.open(io.BytesIO(jobs.picture(job.id, index)[1]))).astype(int)


def mixed(jobs):
    """Jobs of mixed sizes and numbers of steps and pictures."""
    return [
        submit(jobs, seed=seed, n=1 + seed % 2, size="32x32" if seed % 2 else "48x32", num_inference_steps=2 + seed)
        for seed in range(4)
    ]


@pytest.fixture(scope="module")
def alone(loaded, tmp_path_factory):
    """A function that draws a picture of a job by itself: its pixels."""
    host = Here(ServerSettings(data=tmp_path_factory.mktemp("alone")), loaded)
    host.introduce()

    def draw(job, index):
        record = job.record
        host.draw(DrawingOrder(record.id, record.prompt, job.settings, (index,), record.created_at))
        while True:
            for event in host.report().events:
                assert event.kind not in ("failed", "cancelled"), event
                if event.kind == "finished":
                    return np.asarray(event.image).astype(int)

    yield draw
    host.end()


def test_what_a_lost_replica_had_is_drawn_by_others_and_nothing_twice(server, alone):
    jobs, fleet, places = server()
    given = mixed(jobs)
    until(lambda: all(member.requests for member in fleet._members))
    fleet._members[0].link.cut.set()
    assert ended(*given) == 4 * ["finished"]
    for job in given:
        assert told(job, "started") and told(job, "preview") and told(job, "finished")
        assert len(told(job, "picture")) == len(job.record.pictures) == len(job.settings.seeds)
        for index in range(len(job.settings.seeds)):
            assert np.abs(pixels(jobs, job, index) - alone(job, index)).max() <= 1
    until(lambda: len(ready(fleet)) == 2)
    assert fleet.lost == 1 and len(places.links) == 3
    text = jobs.metrics.text().decode()
    assert "ideoflow_pictures_total 6.0" in text and "ideoflow_replicas_lost_total 1.0" in text
    assert 'ideoflow_replicas{state="ready"} 2.0' in text


def test_jobs_wait_while_no_replica_is_there_and_are_accepted_too(server):
    jobs, fleet, places = server(least=1)
    job = submit(jobs, num_inference_steps=10)
    places.links[0].cut.set()
    assert fleet.healthy
    later = submit(jobs)
    assert ended(job, later) == ["finished", "finished"]
    assert fleet.views[0]["name"] == "replica-2"


def test_what_is_lost_with_a_replica_again_and_again_fails(server):
    jobs, fleet, places = server(least=1)
    job = submit(jobs, num_inference_steps=100, size="64x64")
    for number in range(replica_fleet.ATTEMPTS):
        until(lambda own=number: len(places.links) == own + 1)
        until(lambda: any(request.started for member in fleet._members for request in member.requests.values()))
        places.links[number].cut.set()
    assert ended(job) == ["failed"]
    assert "5 replicas were lost" in job.record.error["message"]
    assert ended(submit(jobs)) == ["finished"]


def test_what_was_drawn_on_a_device_that_fails_is_drawn_by_another(server, monkeypatch):
    jobs, fleet, places = server(least=1)

    def broken(requests):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    denoiser = places.links[0].host.replica.engine.denoiser
    with monkeypatch.context() as patch:
        patch.setattr(denoiser, "compute", broken)
        job = submit(jobs)
        until(lambda: fleet.lost == 1)
    assert ended(job) == ["finished"] and len(told(job, "picture")) == 1


def test_no_replica_is_sent_more_than_it_has_room_for(server):
    jobs, fleet, _ = server()
    given = [submit(jobs, num_inference_steps=100, seed=seed, size="64x64") for seed in range(20)]
    with fleet._changed:
        assert fleet.queued > 0
        assert all(member.in_pass < 3 * PASS for member in fleet._members)
    positions = [jobs.view(job)["queue_position"] for job in given[-3:]]
    assert positions == sorted(positions)
    for job in given:
        jobs.cancel(job)
    assert set(ended(*given)) == {"cancelled"}


def test_a_cancel_reaches_the_replica(server):
    jobs, fleet, places = server(least=1)
    job = submit(jobs, num_inference_steps=100, size="64x64")
    until(lambda: job.record.status == "running")
    jobs.cancel(job)
    assert ended(job) == ["cancelled"]
    assert not places.links[0].host.replica.waiting and not fleet.views[0]["pictures"]


def test_a_cancel_that_overtakes_its_picture_is_kept_for_it(server):
    jobs, _, places = server(least=1)
    host = places.links[0].host
    host.cancel("job picture 0")
    record = submit(jobs).record
    settings = jobs.get(record.id).settings
    host.draw(DrawingOrder("job", record.prompt, settings, (0,), record.created_at))
    assert not any(request.id == "job picture 0" for request in host.replica.waiting)


@pytest.mark.parametrize("room", [True, False])
def test_replicas_are_rolled_over_under_load(server, room):
    jobs, fleet, places = server()
    places.room = room
    given = mixed(jobs)
    fleet.roll_over()
    fewest, end = 2, time.monotonic() + 60
    while not (len(views := ready(fleet)) == 2 and {view["name"] for view in views} == {"replica-3", "replica-4"}):
        fewest = min(fewest, len(views))
        assert time.monotonic() < end
        if not any(not job.ended.is_set() for job in given[-2:]):
            given.append(submit(jobs, num_inference_steps=2))
        time.sleep(0.01)
    assert set(ended(*given)) == {"finished"}
    assert fleet.lost == 0 and fewest >= (2 if room else 1)
    assert not any(request.losses for member in fleet._members for request in member.requests.values())


def test_a_successor_that_cannot_start_leaves_the_others_drawing(server):
    jobs, fleet, places = server()
    places.fault = ValueError("the new weights are damaged")
    fleet.roll_over()
    until(lambda: len(places.links) == 3 and len(fleet.views) == 2)
    assert ended(submit(jobs)) == ["finished"]
    assert {view["name"] for view in ready(fleet)} == {"replica-1", "replica-2"}


def test_a_fleet_whose_first_replica_does_not_start_says_why(loaded, tmp_path):
    places = Places(ServerSettings(data=tmp_path), loaded)
    places.fault = ValueError("there are no such weights")
    with pytest.raises(ValueError, match="no such weights"):
        Fleet(places, 1, 1).open()


def test_where_no_replica_starts_any_longer_jobs_fail_and_say_so(server, monkeypatch):
    monkeypatch.setattr(replica_fleet, "pause", lambda failures: 0.0)
    jobs, _, places = server(least=1)
    job = submit(jobs, num_inference_steps=100, size="64x64")
    places.fault = ValueError("the disk is gone")
    places.links[0].cut.set()
    assert ended(job) == ["failed"] and job.record.error["type"] == "engine_failed"
    assert not jobs.healthy
    with pytest.raises(ApiError, match="engine has failed"):
        submit(jobs)


def test_more_replicas_come_with_the_work_and_go_without_it(server, monkeypatch):
    monkeypatch.setattr("ideoflow.serving.fleet.routing.QUEUED", 0.2)
    monkeypatch.setattr("ideoflow.serving.fleet.routing.IDLE", 0.2)
    jobs, fleet, _ = server(least=1, most=2)
    given = [submit(jobs, num_inference_steps=100, seed=seed, size="64x64") for seed in range(6)]
    until(lambda: len(ready(fleet)) == 2)
    for job in given:
        jobs.cancel(job)
    until(lambda: len(fleet.views) == 1)


def test_a_job_whose_time_is_over_before_it_is_placed_has_failed_of_that(server):
    jobs, _, _ = server(least=1)
    before = [submit(jobs, num_inference_steps=100, seed=seed, size="64x64") for seed in range(8)]
    late = submit(jobs, timeout=0.2)
    assert ended(late) == ["failed"] and late.record.error["type"] == "timeout"
    assert "before its first step" in late.record.error["message"]  # and not by a replica
    for job in before:
        jobs.cancel(job)
    ended(*before)


def test_what_the_pipeline_refuses_is_refused_to_the_client(server):
    jobs, _, _ = server(least=1)
    with pytest.raises(ApiError) as refused:
        submit(jobs, preset="V4_DEFAULT_20", num_inference_steps=1, guidance_scale=1e9 / 1e8, caption={"background": 3})
    assert refused.value.status == 400


def test_secrets_stay_with_the_server():
    ray_replicas = pytest.importorskip("ideoflow.serving.fleet.ray_replicas", exc_type=ImportError)
    settings = ServerSettings(api_keys=("a-key-of-nobody",), database="postgresql://me:pass@host/jobs", ray=True)
    sent = pickle.dumps(ray_replicas.RayLauncher(settings, 1)._settings)
    assert b"a-key-of-nobody" not in sent and b"pass" not in sent


@pytest.mark.parametrize(
    ("text", "numbers"), [("4", (4, 4)), ("2:8", (2, 8)), ("3:2", None), ("0", None), ("1:2:3", None), ("-1", None)]
)
def test_numbers_of_replicas_as_they_are_typed(text, numbers, monkeypatch):
    monkeypatch.setattr("ideoflow.serving.server_settings.find_spec", lambda name: object())
    if numbers is None:
        with pytest.raises(ValueError, match="--replicas"):
            read_settings({"ray": True, "replicas": text})
    else:
        assert read_settings({"ray": True, "replicas": text}).replicas == numbers


def test_a_replica_draws_on_one_gpu_at_most(monkeypatch):
    monkeypatch.setattr("ideoflow.serving.server_settings.find_spec", lambda name: object())
    assert read_settings({"ray": True, "gpus_per_replica": 0.5}).gpus_per_replica == 0.5
    with pytest.raises(ValueError, match=r"--gpus-per-replica 2.*one GPU"):
        read_settings({"ray": True, "gpus_per_replica": 2})


def test_replicas_need_ray_and_ray_needs_to_be_there(monkeypatch):
    monkeypatch.setattr("ideoflow.serving.server_settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ideoflow\[ray\]"):
        read_settings({"ray": True})
    for option in ({"replicas": "2"}, {"gpus_per_replica": 1}):
        with pytest.raises(ValueError, match="--ray"):
            read_settings(option)

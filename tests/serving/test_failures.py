"""What goes wrong inside: an engine that fails, a full disk, a job that kills the server; what clients see of it."""

import gc
import time
import weakref

import pytest
import torch

from ideoflow.bundled import SKETCH, SKETCH_FOLDER
from ideoflow.engine import Request
from ideoflow.serving.store import Store, StoreError
from tests.serving.conftest import HEART, small
from tests.serving.test_jobs import events_of


def jobs_of(running):
    return running.app.state.jobs


def keep(data, **changes):
    """Keep a job as a server that was killed left it; its id."""
    from ideoflow.captions.sent_prompt import read_prompt
    from ideoflow.serving.job_settings import Order, settle
    from ideoflow.serving.records import JobRecord
    from ideoflow.serving.server_settings import ServerSettings
    from ideoflow.serving.serving_model import served_by

    order = Order(**small(**changes.pop("order", {})))
    prompt = read_prompt(HEART)
    record = JobRecord(
        id="job_" + "a" * 22,
        status="running",
        created_at=time.time(),
        request=settle(order, served_by(ServerSettings(data=data), None)).as_request(prompt.caption),
        prompt=prompt.line,
        model=SKETCH,
    )
    for name, value in changes.items():
        setattr(record, name, value)
    store = Store(data)
    store.put(record)
    store.close()
    return record.id


def test_a_picture_that_has_ended_lets_go_of_its_tensors(server, monkeypatch):
    made = []
    monkeypatch.setattr(
        Request, "__init__", lambda self, *a, **k: (made.append(weakref.ref(self)), init(self, *a, **k))[1]
    )
    for job in (server.job(n=2), server.job(size="96x96", num_inference_steps=50)):
        if job["progress"]["steps"] == 50:
            server.http.delete(f"/v1/jobs/{job['id']}")
        server.wait(job["id"])
    server.wait(server.job()["id"])  # the engine holds what it drew last until it draws again
    end = time.monotonic() + 20
    while sum(one() is not None for one in made) > 1 and time.monotonic() < end:
        gc.collect()
        time.sleep(0.05)
    assert len(made) == 4 and sum(one() is not None for one in made) <= 1


init = Request.__init__


def test_an_engine_that_fails_fails_its_jobs_and_the_next_start_takes_up_those_that_are_stored(
    own_server, tmp_path, monkeypatch
):
    running = own_server(tmp_path / "data")
    engine = jobs_of(running)._replica.engine
    stored, fleeting = (running.job(size="96x96", num_inference_steps=100, stored=stored) for stored in (True, False))
    monkeypatch.setattr(engine, "step", lambda: 1 / 0)
    for job in (stored, fleeting):
        ended = running.wait(job["id"])
        assert ended["status"] == "failed" and ended["error"]["type"] == "engine_failed"
        assert events_of(running, job["id"])[-1][1] == "failed"
    assert running.http.get("/health/live").status_code == 503
    refused = running.http.post("/v1/jobs", json=small())
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_failed"
    running.close()
    again = own_server(tmp_path / "data")
    assert again.http.get(f"/v1/jobs/{stored['id']}").json()["status"] in ("queued", "running")
    assert again.http.get(f"/v1/jobs/{fleeting['id']}").status_code == 404
    again.http.delete(f"/v1/jobs/{stored['id']}")


def test_a_device_that_fails_for_good_is_not_asked_again(own_server, monkeypatch):
    running = own_server()

    def broken(requests):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(jobs_of(running)._replica.engine.denoiser, "compute", broken)
    assert running.wait(running.job()["id"])["status"] == "failed"
    end = time.monotonic() + 20
    while running.http.get("/health/live").status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert running.http.post("/v1/jobs", json=small()).json()["error"]["code"] == "engine_failed"


def test_a_server_with_a_full_disk_stops_in_order_and_its_jobs_are_taken_up(own_server, tmp_path, monkeypatch, caplog):
    running = own_server(tmp_path / "data")
    job = running.job(size="96x96", num_inference_steps=100)
    running.wait(job["id"], ("running",))

    def full(*_, **__):
        raise StoreError("database or disk is full")

    monkeypatch.setattr(jobs_of(running)._store, "update", full)
    running.close()
    assert f"{job['id']} stays as it is in the database" in caplog.text
    again = own_server(tmp_path / "data")
    assert again.http.get(f"/v1/jobs/{job['id']}").json()["status"] in ("queued", "running")
    again.http.delete(f"/v1/jobs/{job['id']}")


def test_a_start_that_cannot_be_written_down_frees_the_engine_and_shows_no_path(own_server, tmp_path, monkeypatch):
    running = own_server()
    store, update = jobs_of(running)._store, jobs_of(running)._store.update

    def fails_once(id, **changes):
        if changes.get("status") == "running":
            monkeypatch.setattr(store, "update", update)
            raise StoreError(f"{tmp_path}/jobs.sqlite: database or disk is full")
        update(id, **changes)

    monkeypatch.setattr(store, "update", fails_once)
    job = running.wait(running.job(size="96x96", num_inference_steps=100)["id"])
    assert job["status"] == "failed" and str(tmp_path) not in str(job) and "log" in job["error"]["message"]
    end = time.monotonic() + 20
    while jobs_of(running)._replica.engine.requests and time.monotonic() < end:
        time.sleep(0.02)
    assert not jobs_of(running)._replica.engine.requests
    assert running.wait(running.job()["id"])["status"] == "finished"


def test_an_end_that_cannot_be_written_down_is_written_with_the_next(own_server, monkeypatch):
    running = own_server()
    store, update = jobs_of(running)._store, jobs_of(running)._store.update

    def full(id, **changes):
        if changes.get("status") == "finished":
            raise StoreError("database or disk is full")
        update(id, **changes)

    monkeypatch.setattr(store, "update", full)
    first = running.wait(running.job()["id"])
    assert first["status"] == "finished" and store.get(first["id"]).status == "running"
    monkeypatch.setattr(store, "update", update)
    running.wait(running.job()["id"])
    end = time.monotonic() + 20
    while store.get(first["id"]).status != "finished":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert store.get(first["id"]).finished_at == first["finished_at"]


@pytest.mark.parametrize(("attempts", "status"), [(1, "finished"), (2, "failed")])
def test_a_job_that_was_running_when_the_server_was_killed_three_times_is_failed(
    own_server, tmp_path, attempts, status
):
    id = keep(tmp_path / "data", attempts=attempts)
    job = own_server(tmp_path / "data").wait(id)
    assert job["status"] == status
    assert status == "finished" or "killed 3 times" in job["error"]["message"]


def test_a_time_limit_counts_from_arrival_over_a_restart(own_server, tmp_path):
    id = keep(tmp_path / "data", created_at=time.time() - 100, order={"timeout": 50})
    job = own_server(tmp_path / "data").wait(id)
    assert job["status"] == "failed" and job["error"]["type"] == "timeout"


def test_who_followed_a_job_before_a_restart_is_told_all_that_comes_after(own_server, tmp_path):
    running = own_server(tmp_path / "data")
    job = running.job(size="96x96", num_inference_steps=30)
    running.wait(job["id"], ("running",))
    with running.http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        seen = [int(line.removeprefix("id: ")) for line in _lines(answer, 9) if line.startswith("id: ")]
    running.close()
    again = own_server(tmp_path / "data")
    told = [type for number, type, _ in events_of(again, job["id"], after=seen[-1]) if number > seen[-1]]
    assert told[0] == "queued" and "picture" in told and told[-1] == "finished"
    again.close()
    last = own_server(tmp_path / "data")
    assert events_of(last, job["id"], after=seen[-1])[-1][1] == "finished"


def _lines(answer, count):
    lines = answer.iter_lines()
    return [next(lines) for _ in range(count)]


def test_a_cancelled_job_shows_no_steps_that_were_not_taken(own_server, tmp_path):
    running = own_server(tmp_path / "data")
    job = running.job(size="96x96", num_inference_steps=100)
    running.wait(job["id"], ("running",))
    assert running.http.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
    running.close()
    assert own_server(tmp_path / "data").http.get(f"/v1/jobs/{job['id']}").json()["progress"]["step"] < 100


UNPLACED = {
    "compositional_deconstruction": {"background": "plain blue", "elements": [{"type": "obj", "desc": "a star"}]}
}


@pytest.mark.parametrize(
    ("change", "said"), [({"caption": UNPLACED}, "box"), ({"guidance_scale": 0}, "guidance of 0"), ({}, None)]
)
def test_what_would_be_a_picture_of_something_else_is_said(server, change, said):
    warnings = server.job(**{"size": "96x96", **change})["warnings"]
    assert any(said in warning for warning in warnings) if said else not warnings


def test_a_disk_that_is_full_is_told_as_that(own_server, monkeypatch, caplog):
    running = own_server()

    def full(*_, **__):
        raise StoreError("/somewhere/jobs.sqlite: database or disk is full")

    done = running.wait(running.job()["id"])
    for method in ("put", "forget"):
        monkeypatch.setattr(jobs_of(running)._store, method, full)
    for answer in (
        running.http.post("/v1/jobs", json=small()),
        running.http.delete(f"/v1/jobs/{done['id']}", params={"forget": True}),
    ):
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "storage_failed"
        assert "somewhere" not in answer.text
    assert "/somewhere/jobs.sqlite" in caplog.text and "Traceback" not in caplog.text
    assert running.wait(running.job(stored=False)["id"])["status"] == "finished"


def test_a_key_for_a_job_that_is_not_stored_is_refused(server):
    answer = server.http.post("/v1/jobs", json=small(stored=False), headers={"Idempotency-Key": "one"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stored"


def test_the_servers_folders_stay_its_own_and_what_was_understood_may_be_asked_for_again(own_server, tmp_path):
    import io

    from PIL import Image

    running = own_server(model=str(SKETCH_FOLDER))
    job = running.wait(running.job()["id"])
    assert str(SKETCH_FOLDER.parent) not in str(job) and "model" not in job["request"]
    picture = Image.open(io.BytesIO(running.http.get(job["pictures"][0]["url"]).content))
    assert str(SKETCH_FOLDER.parent) not in str(picture.info)
    again = running.http.post("/v1/jobs", json=job["request"])
    assert again.status_code == 202 and running.wait(again.json()["id"])["request"] == job["request"]

"""The server from its start to its end: told to stop, killed, started again; and the process that users start."""

import json
import random
import signal
import subprocess
import threading
import time

import httpx2 as httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import CliRunner

from ideoflow.cli import app
from ideoflow.serving.app import create_app
from ideoflow.serving.server_settings import ServerSettings
from ideoflow.serving.serving_model import load_model
from tests.serving.conftest import ENDED, Process, small, until_ready

KEYS = ("key-of-a-file-1", "key-of-environment-2")

# A process


@pytest.fixture(scope="module")
def alone(tmp_path_factory, warm):
    """A server in a process of its own, with keys and a log of JSON."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "keys").write_text(f"# of the team\n{KEYS[0]}\n")
    options = ("--log-json", "--api-key-file", str(folder / "keys"))
    running = Process(warm, folder / "kept", *options, environment={"IDEOFLOW_API_KEYS": KEYS[1]})
    running.data = folder / "kept"
    yield running
    if running.process.poll() is None:
        running.kill()


def serve(warm, *options):
    """`ideoflow serve` with options that it cannot be started with."""
    command = [*warm, "-m", "ideoflow", "serve", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr


def test_keys_come_from_a_file_and_from_the_environment(alone):
    for key in KEYS:
        assert alone.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert alone.http.get("/v1/jobs").status_code == 401


def test_two_servers_do_not_share_a_folder(alone, warm):
    told = serve(warm, "--port", "0", "--data", str(alone.data))
    assert "another" in told and str(alone.data) in told


def test_a_port_that_is_taken_is_one_clear_error(alone, warm):
    port = alone.url.rpartition(":")[2]
    told = serve(warm, "--port", port)
    assert port in told and "in use" in told


def test_a_folder_that_cannot_be_used_is_one_clear_error(warm):
    assert "/dev/null/x" in serve(warm, "--port", "0", "--data", "/dev/null/x")


def test_it_says_where_it_is_and_what_was_asked_and_ends_when_told(alone):
    alone.http.headers["Authorization"] = f"Bearer {KEYS[0]}"
    job = alone.wait(alone.job()["id"])
    assert job["status"] == "finished"
    text, code = alone.kill(signal.SIGTERM)
    assert code == 0 and f"studio and API: http://localhost:{alone.url.rpartition(':')[2]}/" in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (line,) = [one for one in lines if one.get("method") == "POST"]
    assert line["status"] == 202 and line["job"] == job["id"] and line["level"] == "info"
    assert "key-of" not in text and "Traceback" not in text


def test_with_jobs_in_postgres_it_goes_on_after_a_kill_and_tells_nobody_the_address(process, postgres):
    environment = {"IDEOFLOW_DATABASE": postgres.database()}
    running = process(environment=environment)
    ids = [running.job(num_inference_steps=6, n=2)["id"] for _ in range(3)]
    text, _ = running.kill()
    assert "postgresql:" not in text and "search_path" not in text
    again = process(environment=environment)
    assert [again.wait(id)["status"] for id in ids] == 3 * ["finished"]
    assert [job["id"] for job in again.http.get("/v1/jobs").json()["data"]] == ids[::-1]


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_loses_nothing(process, tmp_path, kills):
    data, draw = tmp_path / "kept", random.Random(kills)
    accepted = []
    for _ in range(kills):
        running = process(data=data)
        end = time.monotonic() + draw.uniform(0.5, 4 if kills > 1 else 1)
        while time.monotonic() < end:
            answer = running.http.post(
                "/v1/jobs", json=small(num_inference_steps=draw.randint(1, 6), n=draw.randint(1, 2))
            )
            if answer.status_code == 202:
                accepted.append(answer.json()["id"])
            else:
                assert answer.status_code == 429
                time.sleep(0.05)
        running.kill()
    again = process(data=data)
    for id in accepted:
        job = again.wait(id)
        if "killed 3 times while it was running" in str(job["error"]):
            continue
        assert job["status"] == "finished", job
        assert len(job["pictures"]) == job["request"]["n"]
        for picture in job["pictures"]:
            data_of_picture = again.http.get(picture["url"]).content
            file = tmp_path / "picture.png"
            file.write_bytes(data_of_picture)
            with Image.open(file) as image:
                image.load()
            assert len(data_of_picture) == picture["bytes"]
    rows = []
    while True:
        page = again.http.get("/v1/jobs", params={"limit": 200, **({"after": rows[-1]["id"]} if rows else {})}).json()
        rows += page["data"]
        if not page["has_more"]:
            break
    assert {row["id"] for row in rows} == set(accepted) and all(row["status"] in ENDED for row in rows)
    files = {path.name for path in (data / "pictures").rglob("*") if path.is_file()}
    assert files == {f"{row['id']}-{one['index']}.png" for row in rows for one in row["pictures"]}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["./nowhere"], "no such folder or file"),
        (["--lora", "ink"], "NAME=PATH"),
        (["--lora", "ink=nowhere.safetensors"], "no such folder or file"),
        (["--policy", "lifo"], "--policy 'lifo'"),
        (["--on-restart", "forget"], "--on-restart 'forget'"),
        (["--precision", "fp4"], "fp4"),
        (["--timeout", "-1"], "--timeout"),
        (["--api-key-file", "nowhere"], "nowhere"),
        (["--keep-bytes", "much"], "much"),
        (["--port", "70000"], "65535"),
        (["--cuda-graphs", "--device", "cpu"], "--cuda-graphs needs --device cuda"),
        (["--max-pictures", "0"], "--max-pictures 0"),
        (["--allowed-host", "https://studio.example"], "--allowed-host"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, told):
    ended = CliRunner().invoke(app, ["serve", "--port", "0", *options])
    assert ended.exit_code == 2 and told in ended.stderr, ended.stderr


def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line(warm, tmp_path):
    (tmp_path / "ink.safetensors").write_bytes(b"no weights at all")
    ended = subprocess.run(
        [*warm, "-m", "ideoflow", "serve", "--port", "0", "--data", "data", "--lora", "ink=ink.safetensors"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    starting, address, line = ended.stderr.strip().splitlines()
    assert starting.startswith("starting")
    assert ended.returncode == 1 and address.startswith("studio and API")
    assert "the model could not be loaded" in line and "ink.safetensors" in line


# Its end


def test_told_to_stop_it_lets_running_jobs_end_and_accepts_no_others(own_server):
    server = own_server(drain=60)
    job = server.job(size="96x96", num_inference_steps=20)
    server.wait(job["id"], ("running",))
    server.stop()
    assert server.http.get("/health/ready").status_code == 503
    assert server.http.get("/health/live").status_code == 200
    refused = server.http.post("/v1/jobs", json=small())
    assert refused.status_code == 503 and refused.headers["retry-after"]
    with server.http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        types = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert types[-1] == "finished"
    server.thread.join(60)
    assert not server.thread.is_alive()


@pytest.mark.parametrize(("on_restart", "status"), [("requeue", "finished"), ("fail", "failed")])
def test_a_job_that_does_not_end_in_time_is_taken_up_or_failed_at_the_next_start(own_server, on_restart, status):
    server = own_server(drain=0)
    job = server.job(size="96x96", num_inference_steps=60, n=2)
    server.wait(job["id"], ("running",))
    server.stop()
    server.thread.join(60)
    done = own_server(on_restart=on_restart).wait(job["id"])
    assert done["status"] == status
    if status == "failed":
        assert done["error"]["type"] == "restarted"
    else:
        assert len(done["pictures"]) == 2


@pytest.fixture
def slow_load(monkeypatch):
    """Has models loaded only once this is set."""
    go_on = threading.Event()

    def load(settings):
        assert go_on.wait(60)
        return load_model(settings)

    monkeypatch.setattr("ideoflow.serving.app.load_model", load)
    yield go_on
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "loading":
            thread.join(60)


def test_a_client_that_comes_before_the_model_is_told_to_wait(own_server, slow_load):
    server = own_server(ready=False)
    answer = server.http.post("/v1/jobs", json=small())
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json()["error"]["code"] == "loading"
    slow_load.set()
    until_ready(server.http)
    assert server.http.post("/v1/jobs", json=small()).status_code == 202


def test_told_to_stop_while_the_model_is_loaded_it_stops(own_server, slow_load):
    server = own_server(ready=False)
    assert server.http.get("/health/ready").json() == {"status": "loading"}
    server.stop()
    server.thread.join(30)
    assert not server.thread.is_alive() and not slow_load.is_set()
    slow_load.set()
    for thread in threading.enumerate():
        if thread.name == "loading":
            thread.join(60)
    assert server.app.state.jobs is None and server.app.state.failure is None  # no job was taken up


def test_an_application_of_its_own_tells_of_a_model_that_cannot_be_loaded(tmp_path, monkeypatch):
    def fail(settings):
        raise ValueError("there is no such model")

    monkeypatch.setattr("ideoflow.serving.app.load_model", fail)
    with TestClient(create_app(ServerSettings(data=tmp_path)), base_url="http://localhost") as client:
        end = time.monotonic() + 30
        while (ready := client.get("/health/ready")).json() == {"status": "loading"}:
            assert time.monotonic() < end
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
        assert client.get("/health/live").status_code == 503
        refused = client.post("/v1/jobs", json=small())
        assert refused.status_code == 503 and "could not be loaded" in refused.json()["error"]["message"]
        assert not client.get("/v1/server").json()["ready"]


def test_at_the_end_of_the_drain_those_who_wait_are_told(own_server, caplog):
    server = own_server(drain=0.2)
    body = {**small(size="192x192", num_inference_steps=100), "seed": 1}
    body["prompt"] = body.pop("caption")
    answers = {}

    def ask(name, method, path, json=None):
        answers[name] = httpx.request(method, f"{server.url}{path}", json=json, timeout=60)

    kept = server.job(size="192x192", num_inference_steps=100)["id"]
    lost = server.job(size="192x192", num_inference_steps=100, stored=False)["id"]
    asked = {
        "picture": ("POST", "/v1/images/generations", body),
        "stream": ("POST", "/v1/images/generations", {**body, "stream": True}),
        "link": ("POST", "/v1/images/generations", {**body, "response_format": "url"}),
        "web interface": (
            "POST",
            "/sdapi/v1/txt2img",
            {"prompt": "a red star", "width": 192, "height": 192, "steps": 100},
        ),
        "events of a kept job": ("GET", f"/v1/jobs/{kept}/events"),
        "events of a lost job": ("GET", f"/v1/jobs/{lost}/events"),
    }
    threads = [threading.Thread(target=ask, args=(name, *call)) for name, call in asked.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60
    while server.app.state.jobs.unfinished < 6:
        assert time.monotonic() < end
        time.sleep(0.01)
    server.stop()
    for thread in threads:
        thread.join(60)
    server.thread.join(60)
    assert not server.thread.is_alive()
    for name in ("picture", "link", "web interface"):
        error = answers[name].json()["error"]
        assert answers[name].status_code == 503 and answers[name].headers["retry-after"], name
        assert (error["type"], error["code"]) == ("service_unavailable_error", "stopping"), name
    assert "event: error" in answers["stream"].text and '"code": "stopping"' in answers["stream"].text
    assert (
        "event: failed" in answers["events of a lost job"].text and "stopping" in answers["events of a lost job"].text
    )
    assert answers["events of a kept job"].status_code == 200  # it ends there, to be taken up again
    assert "event: failed" not in answers["events of a kept job"].text
    assert "Traceback" not in caplog.text and "ASGI" not in caplog.text

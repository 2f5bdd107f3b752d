"""The server as a process: started from the command line, told to stop, killed, started again."""

import json
import random
import signal
import subprocess
import sys
import time

import httpx2 as httpx
import pytest
from PIL import Image

from tests.serving.conftest import ENDED, small

pytestmark = pytest.mark.long  # servers and clients that wait for each other, for minutes on a busy machine


def test_it_says_where_it_is_and_ends_when_told(process):
    running = process()
    job = running.job()
    assert running.wait(job["id"])["status"] == "finished"
    text, code = running.kill(signal.SIGTERM)
    assert code == 0 and f"studio and API: http://localhost:{running.url.rpartition(':')[2]}/" in text
    assert "POST /v1/jobs 202" in text and job["id"] in text and "Traceback" not in text


def test_told_to_stop_it_lets_running_jobs_end_and_accepts_no_others(process):
    running = process("--drain", "60")
    job = running.job(size="96x96", num_inference_steps=20)
    running.wait(job["id"], ("running",))
    running.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 30
    while running.http.get("/health/ready").status_code == 200:
        assert time.monotonic() < end
    assert running.http.get("/health/live").status_code == 200
    refused = running.http.post("/v1/jobs", json=small())
    assert refused.status_code == 503 and refused.headers["retry-after"]
    with running.http.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        types = [line.removeprefix("event: ") for line in answer.iter_lines() if line.startswith("event: ")]
    assert types[-1] == "finished"
    assert running.process.wait(60) == 0


def test_a_job_that_does_not_end_in_time_is_taken_up_at_the_next_start(process, tmp_path):
    running = process("--drain", "0.2", data=tmp_path / "kept")
    job = running.job(size="192x192", num_inference_steps=60, n=2)
    running.wait(job["id"], ("running",))
    _, code = running.kill(signal.SIGTERM)
    assert code == 0
    again = process(data=tmp_path / "kept")
    done = again.wait(job["id"])
    assert done["status"] == "finished" and len(done["pictures"]) == 2


def test_unfinished_jobs_can_be_failed_at_the_next_start(process, tmp_path):
    running = process(data=tmp_path / "kept")
    job = running.job(size="192x192", num_inference_steps=100)
    running.wait(job["id"], ("running",))
    running.kill()
    again = process("--on-restart", "fail", data=tmp_path / "kept")
    failed = again.wait(job["id"])
    assert failed["status"] == "failed" and failed["error"]["type"] == "restarted"


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_loses_nothing(process, tmp_path, kills):
    data, draw = tmp_path / "kept", random.Random(kills)
    accepted = []
    for _ in range(kills):
        running = process(data=data)
        end = time.monotonic() + draw.uniform(0.5, 4)
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


def test_two_servers_do_not_share_a_folder(process, tmp_path):
    process(data=tmp_path / "kept")
    other = subprocess.run(
        [sys.executable, "-m", "ideoflow", "serve", "--port", "0", "--data", str(tmp_path / "kept")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert other.returncode in (1, 2) and "Traceback" not in other.stderr
    assert "another" in other.stderr and str(tmp_path / "kept") in other.stderr


def test_keys_come_from_a_file_and_from_the_environment(process, tmp_path):
    (tmp_path / "keys").write_text("# of the team\nkey-of-a-file-1\n")
    running = process(
        "--api-key-file", str(tmp_path / "keys"), environment={"IDEOFLOW_API_KEYS": "key-of-environment-2"}
    )
    for key in ("key-of-a-file-1", "key-of-environment-2"):
        assert running.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert running.http.get("/v1/jobs").status_code == 401
    text, _ = running.kill(signal.SIGTERM)
    assert "key-of" not in text


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
        (["--data", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options, told):
    ended = subprocess.run(
        [sys.executable, "-m", "ideoflow", "serve", "--port", "0", *options],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2 and told in ended.stderr and "Traceback" not in ended.stderr, ended.stderr


def test_a_port_that_is_taken_is_one_clear_error(process):
    running = process()
    port = running.url.rpartition(":")[2]
    ended = subprocess.run(
        [sys.executable, "-m", "ideoflow", "serve", "--port", port], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2 and port in ended.stderr and "in use" in ended.stderr, ended.stderr


def test_the_log_can_be_json(process):
    running = process("--log-json")
    job = running.wait(running.job()["id"])
    text, _ = running.kill(signal.SIGTERM)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (line,) = [one for one in lines if one.get("method") == "POST"]
    assert line["status"] == 202 and line["job"] == job["id"] and line["level"] == "info"


def test_a_client_that_comes_before_the_model_is_told_to_wait(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = subprocess.Popen(
        [sys.executable, "-m", "ideoflow", "serve", "--port", str(port), "--data", str(tmp_path / "data")],
        stderr=subprocess.DEVNULL,
    )
    try:
        statuses, end = set(), time.monotonic() + 120
        while 200 not in statuses:
            assert time.monotonic() < end
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/jobs", json=small())
            except httpx.TransportError:
                continue
            if answer.status_code == 503:
                assert answer.headers["retry-after"] and "loaded" in answer.json()["error"]["message"]
            statuses.add(200 if answer.status_code == 202 else answer.status_code)
        assert statuses <= {200, 503}
    finally:
        started.kill()
        started.wait()

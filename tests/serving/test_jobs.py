"""Jobs over HTTP: asked for, followed, cancelled, found again."""

import io
import json
import statistics
import threading
import time

import httpx2 as httpx
import pytest
from PIL import Image

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.pictures import read_settings
from ideoflow.serving.serving_model import load_model
from tests.serving.conftest import HEART, small


def events_of(running, id, after=None):
    """The events of a job up to its last: (number, type, data)."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    found = []
    with running.http.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        number = None
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                number = int(value)
            elif name == "data":
                data = json.loads(value)
                found.append((number, data["type"], data))
    return found


def test_a_job_gives_the_pictures_that_the_pipeline_draws(server, tmp_path):
    job = server.job(size="48x32", num_inference_steps=3, seed=11, n=2, format="png")
    assert job["status"] in ("queued", "running") and job["progress"]["steps"] == 6
    job = server.wait(job["id"])
    assert job["status"] == "finished" and [one["seed"] for one in job["pictures"]] == [11, 12]
    import torch

    pipe = sketch.load()
    drawn = pipe(
        [json.loads(HEART)] * 2,
        size=(48, 32),
        preset="V4_DEFAULT_20",
        num_inference_steps=3,
        guidance_scale=sketch.GUIDANCE,
        generator=[torch.Generator().manual_seed(seed) for seed in (11, 12)],
    ).images
    for index, wanted in enumerate(drawn):
        answer = server.http.get(job["pictures"][index]["url"])
        assert answer.headers["content-type"] == "image/png"
        got = Image.open(io.BytesIO(answer.content))
        assert got.size == (48, 32)
        differences = [abs(a - b) for a, b in zip(got.tobytes(), wanted.tobytes(), strict=True)]
        assert max(differences) <= 1
        file = tmp_path / f"{index}.png"
        file.write_bytes(answer.content)
        assert (found := read_settings(file))["seed"] == 11 + index and found["unrepeatable"] is None
        assert found["model"] == "sketch" and found["steps"] == 3


@pytest.mark.parametrize(("form", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_pictures_come_in_the_format_that_was_asked_for(server, form, kind):
    job = server.wait(server.job(format=form)["id"])
    answer = server.http.get(job["pictures"][0]["url"], params={"download": True})
    assert Image.open(io.BytesIO(answer.content)).format == kind
    assert answer.headers["content-type"] == f"image/{form}"
    assert answer.headers["content-disposition"] == f'attachment; filename="{job["id"]}-0.{form}"'
    assert len(answer.content) == job["pictures"][0]["bytes"]


@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_thumbnail_is_the_picture_made_smaller(server, form):
    job = server.wait(server.job(size="128x64", format=form)["id"])
    url = job["pictures"][0]["url"]
    whole = Image.open(io.BytesIO(server.http.get(url).content)).convert("RGB")
    for side, size in ((32, (32, 16)), (2048, (128, 64))):
        answer = server.http.get(url, params={"side": side})
        small = Image.open(io.BytesIO(answer.content))
        assert answer.headers["content-type"] == "image/jpeg" and small.format == "JPEG" and small.size == size
        wanted = whole.resize(size, Image.Resampling.LANCZOS)
        difference = statistics.mean(abs(a - b) for a, b in zip(small.tobytes(), wanted.tobytes(), strict=True))
        assert difference < 8
    assert server.http.get(url, params={"side": 15}).status_code == 400


def test_events_tell_a_job_from_its_queue_to_its_pictures(server):
    job = server.job(num_inference_steps=4, n=2, preview_every=2)
    events = events_of(server, job["id"])
    types = [type for _, type, _ in events]
    assert types[0] == "queued" and types[-1] == "finished" and types.count("picture") == 2
    assert [number for number, _, _ in events] == sorted({number for number, _, _ in events})
    assert all(data["job"] == job["id"] for _, type, data in events if type != "finished")
    assert events[-1][2]["job"]["status"] == "finished"
    late = [type for _, type, _ in events_of(server, job["id"])]
    assert late.count("step") == 2 and late[-1] == "finished"  # the latest of each picture stay


def test_a_stream_of_events_is_taken_up_after_the_last_that_was_seen(server):
    job = server.job(num_inference_steps=3)
    events = events_of(server, job["id"])
    seen = events[1][0]
    again = events_of(server, job["id"], after=seen)
    assert [number for number, _, _ in again][-1] == events[-1][0] and all(number > seen for number, _, _ in again)
    assert [type for _, type, _ in events_of(server, job["id"], after=events[-1][0])] == ["finished"]


def test_a_cancelled_job_leaves_the_engine_within_a_step(server):
    job = server.job(size="192x192", num_inference_steps=100)
    server.wait(job["id"], ("running",))
    answer = server.http.delete(f"/v1/jobs/{job['id']}")
    assert answer.status_code == 200 and answer.json()["status"] == "cancelled"
    assert answer.json()["progress"]["step"] < 100 and answer.json()["pictures"] == []
    assert [type for _, type, _ in events_of(server, job["id"])][-1] == "cancelled"
    assert server.http.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"  # twice does no harm


def test_a_finished_job_stays_until_it_is_forgotten(server):
    job = server.wait(server.job()["id"])
    assert server.http.delete(f"/v1/jobs/{job['id']}").json()["status"] == "finished"
    assert server.http.get(job["pictures"][0]["url"]).status_code == 200
    assert server.http.delete(f"/v1/jobs/{job['id']}", params={"forget": True}).status_code == 204
    for path in ("", "/events", "/pictures/0"):
        assert server.http.get(f"/v1/jobs/{job['id']}{path}").status_code == 404


def test_jobs_are_listed_by_status_and_words_in_pages(own_server):
    server = own_server()
    made = [server.job(caption=json.loads(HEART) | {"high_level_description": f"heart number {i}"}) for i in range(5)]
    for job in made:
        server.wait(job["id"])
    newest_first = [job["id"] for job in reversed(made)]
    first = server.http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == newest_first[:2] and first["has_more"]
    rest = server.http.get("/v1/jobs", params={"limit": 3, "after": newest_first[1]}).json()
    assert [job["id"] for job in rest["data"]] == newest_first[2:] and not rest["has_more"]
    assert [job["id"] for job in server.http.get("/v1/jobs", params={"q": "number 3"}).json()["data"]] == [
        made[3]["id"]
    ]
    assert server.http.get("/v1/jobs", params={"status": "queued,running"}).json()["data"] == []
    assert len(server.http.get("/v1/jobs", params={"status": "finished"}).json()["data"]) == 5
    assert server.http.get("/v1/jobs", params={"status": "done"}).status_code == 400


def test_an_idempotency_key_gives_the_same_job_again(server):
    headers = {"Idempotency-Key": f"key {time.time()}"}
    first = server.http.post("/v1/jobs", json=small(), headers=headers)
    again = server.http.post("/v1/jobs", json=small(), headers=headers)
    assert (first.status_code, again.status_code) == (202, 200) and first.json()["id"] == again.json()["id"]
    other = server.http.post("/v1/jobs", json=small(seed=4), headers=headers)
    assert other.status_code == 409 and other.json()["error"]["code"] == "idempotency_key_reused"


def test_one_key_from_many_clients_at_once_makes_one_job(server):
    headers = {"Idempotency-Key": f"at once {time.time()}"}
    answers = []

    def ask():
        answers.append(server.http.post("/v1/jobs", json=small(), headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [202]


def test_a_full_queue_tells_when_to_ask_again(own_server):
    server = own_server(max_queue=2)
    jobs = [server.job(size="192x192", num_inference_steps=100) for _ in range(2)]
    server.wait(jobs[0]["id"], ("running",))
    answer = server.http.post("/v1/jobs", json=small())
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "queue_full"
    assert 1 <= int(answer.headers["retry-after"]) <= 3600
    for job in jobs:
        server.http.delete(f"/v1/jobs/{job['id']}")
    assert server.wait(server.job()["id"])["status"] == "finished"


def test_a_job_past_its_deadline_fails_and_says_so(server):
    job = server.wait(server.job(size="192x192", num_inference_steps=100, timeout=0.2)["id"])
    assert job["status"] == "failed" and job["error"]["type"] == "timeout"
    assert "deadline" in job["error"]["message"]
    assert server.wait(server.job()["id"])["status"] == "finished"


def test_a_job_that_is_not_stored_is_there_for_a_while_and_in_no_list(server):
    job = server.wait(server.job(stored=False)["id"])
    assert server.http.get(job["pictures"][0]["url"]).status_code == 200
    assert job["id"] not in [one["id"] for one in server.http.get("/v1/jobs", params={"limit": 200}).json()["data"]]


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"size": "100x100"}, "size", "96x96 and 112x112"),
        ({"size": "9999999x16"}, "size", "WIDTHxHEIGHT"),
        ({"size": "4096x4096"}, "size", "at most 262144 pixels"),
        ({"n": 11}, "n", "at most 10 pictures"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"preset": "quick"}, "preset", "V4_TURBO_12"),
        ({"preset": "fast", "num_inference_steps": 17}, "preset", "calibrated for 20 steps"),
        ({"num_inference_steps": 101}, "num_inference_steps", "at most 100 steps"),
        ({"guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"seed": 2**64}, "seed", "less than"),
        ({"adapters": {"ink": 1}}, "adapters", "this server has none"),
        ({"caption": ""}, "caption", "1 to 100000 characters"),
        ({"caption": 3}, "caption", "JSON object or as text"),
        ({"caption": {"a": 1}}, "caption", "none of high_level_description"),
        ({"caption": "x " * 60_000}, "caption", "characters"),
        ({"caption": HEART.replace("heart", "heart " * 2100)}, "caption", "2048"),
        ({"caption": {"high_level_description": "x " * 60_000}}, "caption", "characters"),
        ({"widht": 32}, "widht", "no such field"),
        ({"format": "gif"}, "format", "'png', 'jpeg' or 'webp'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_the_field(server, change, field, told):
    answer = server.http.post("/v1/jobs", json=small(**change))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and told in error["message"], error
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/jobs", {"caption": {"high_level_description": "\ud800"}, "size": "32x32"}, {"Idempotency-Key": "half"}),
        ("/v1/images/generations", {"prompt": "a", "width": int("1" * 50), "height": 16}, {}),
        ("/v1/images/generations", {"prompt": "a", "n": int("1" * 4000)}, {}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "width": int("1" * 50), "height": 16}, {}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "batch_size": int("1" * 4000), "n_iter": int("1" * 4000)}, {}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "width": 32, "height": 32, "negative_prompt": "\ud800"}, {}),
        ("/v1/jobs", {"caption": "a", "num_inference_steps": int("1" * 4000)}, {}),
    ],
)
def test_numbers_and_characters_beyond_all_bounds_are_refused_in_few_words(server, path, body, headers):
    headers = {"Content-Type": "application/json", **headers}
    answer = server.http.post(path, content=json.dumps(body), headers=headers)  # in ASCII, which can say half a pair
    assert answer.status_code == 400 and len(answer.text) < 2000, answer.text


def test_what_is_called_otherwise_elsewhere_is_told_its_name_here(server):
    ask = server.http.post
    assert (
        "`num_inference_steps`"
        in ask("/v1/images/generations", json={"prompt": "a", "steps": 4}).text.split("Known")[0]
    )
    assert "takes none" in ask("/v1/images/generations", json={"prompt": "a", "negative_prompt": "b"}).text
    assert "end `base_url` in /v1" in ask("/images/generations", json={"prompt": "a"}).text
    assert "/v1/images/generations" in ask("/v1/chat/completions", json={}).text


def test_a_body_that_is_no_json_is_refused(server):
    for body in ("{", "[1, 2]", '"text"', ""):
        answer = server.http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"], body


def test_a_reader_that_goes_away_leaves_a_stored_job_alone(server, caplog):
    job = server.job(num_inference_steps=30)
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.Client(base_url=server.url, timeout=0.01) as other,
        other.stream("GET", f"/v1/jobs/{job['id']}/events") as answer,
    ):
        for _ in answer.iter_lines():
            time.sleep(0.001)
    assert server.wait(job["id"])["status"] == "finished"
    assert "Traceback" not in caplog.text


def test_the_server_tells_what_it_has(server):
    told = server.http.get("/v1/server").json()
    assert told["model"] == "sketch" and told["bundled"] and told["ready"] and not told["auth"]
    assert told["sizes"] == {"default": "128x128", "trained": [96, 192]}
    published = ["V4_QUALITY_48", "V4_DEFAULT_20", "V4_TURBO_12"]
    assert [preset["name"] for preset in told["presets"]] == [*published, "FAST_20", "FASTER_20"]


def test_the_sides_that_a_model_was_trained_on_are_told(own_server, monkeypatch):
    def load(settings):
        pipe = load_model(settings)
        pipe.register_to_config(side_limits=[64, 320])
        return pipe

    monkeypatch.setattr("ideoflow.serving.app.load_model", load)
    assert own_server().http.get("/v1/server").json()["sizes"]["trained"] == [64, 320]


@pytest.mark.parametrize(("options", "choice"), [({}, "auto"), ({"cuda_graphs": False}, False)])
def test_the_engine_uses_cuda_graphs_as_the_server_was_told(own_server, monkeypatch, options, choice):
    seen = []
    made = Ideogram4Pipeline.engine

    def engine(self, *arguments, **given):
        seen.append(given["cuda_graphs"])
        return made(self, *arguments, **given)

    monkeypatch.setattr(Ideogram4Pipeline, "engine", engine)
    own_server(**options)
    assert seen == [choice]


def test_a_server_that_drains_is_not_ready(own_server):
    server = own_server()
    server.app.state.jobs.drain()
    assert not server.http.get("/v1/server").json()["ready"]
    assert server.http.get("/health/ready").json() == {"status": "draining"}


def test_its_examples_are_those_of_the_repository(server):
    from pathlib import Path

    examples = server.http.get("/v1/server").json()["examples"]
    for example in examples:
        assert example["caption"] == json.loads(Path(f"examples/captions/{example['name']}.json").read_text("utf-8"))
    assert len(examples) >= 6


def test_metrics_count_what_was_done(own_server):
    server = own_server()
    server.wait(server.job(n=2)["id"])
    text = server.http.get("/metrics").text
    for line in (
        'ideoflow_jobs_total{status="finished"} 1.0',
        'ideoflow_jobs_total{status="cancelled"} 0.0',
        "ideoflow_pictures_total 2.0",
        "ideoflow_jobs_running 0.0",
        "ideoflow_queue_seconds_count 1.0",
        'ideoflow_http_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0',
    ):
        assert line in text, line
    assert "process_resident_memory_bytes" in text and "ideoflow_device_memory" not in text


def test_metrics_tell_a_devices_memory(monkeypatch):
    import torch

    from ideoflow.serving.metrics import Metrics

    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3_000 + device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5_000 + device.index)
    metrics = Metrics()
    metrics.watch_device(torch.device("cuda", 7))
    text = metrics.text().decode()
    assert "ideoflow_device_memory_bytes 3007.0" in text and "ideoflow_device_memory_peak_bytes 5007.0" in text

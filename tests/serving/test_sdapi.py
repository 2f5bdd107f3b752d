"""AUTOMATIC1111's API as Open WebUI and others use it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import pytest
from PIL import Image

from ideoflow.serving.waiting import picture_base64
from ideoflow.sketch.prose import write

LINE = write("a red circle", (64, 32)).caption.line()
BODY = {"prompt": "a red circle", "width": 64, "height": 32, "steps": 2, "seed": 7}


def draw(server, **fields):
    answer = server.http.post("/sdapi/v1/txt2img", json={**BODY, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_pictures_come_with_what_they_were_drawn_with(server):
    answer = draw(server)
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert (image.format, image.size) == ("PNG", (64, 32))
    assert answer["parameters"]["steps"] == 2
    info = json.loads(answer["info"])
    assert (info["seed"], info["all_seeds"], info["prompt"]) == (7, [7], LINE)
    assert (info["width"], info["height"], info["sampler_name"], info["sd_model_name"]) == (64, 32, "Euler", "sketch")


def test_pictures_are_read_beside_the_loop_that_answers_everyone(server, monkeypatch):
    threads = []

    def note(*given):
        threads.append(threading.current_thread())
        return picture_base64(*given)

    monkeypatch.setattr("ideoflow.serving.sdapi.picture_base64", note)
    assert draw(server, batch_size=2)["images"]
    assert len(threads) == 2 and server.thread not in threads


def test_batches_and_repeats_are_pictures_of_seeds_that_count_on(server):
    answer = draw(server, batch_size=2, n_iter=2, steps=1)
    assert len(set(answer["images"])) == 4
    assert json.loads(answer["info"])["all_seeds"] == [7, 8, 9, 10]


def test_a_seed_of_minus_one_is_drawn_at_random(server):
    seeds = {json.loads(draw(server, seed=-1, steps=1)["info"])["seed"] for _ in range(3)}
    assert len(seeds) == 3 and min(seeds) >= 0


def test_what_means_nothing_here_is_let_pass_and_a_negative_prompt_is_told(server):
    answer = draw(server, sampler_name="DPM++ 2M", scheduler="Karras", enable_hr=True, negative_prompt="cats", steps=1)
    assert any("negative_prompt" in warning for warning in json.loads(answer["info"])["warnings"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"width": 63}, "size"),
        ({"height": None}, "width"),
        ({"steps": 0}, "steps"),
        ({"batch_size": 11}, "n"),
        ({"seed": -2}, "seed"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(server, fields, param):
    answer = server.http.post("/sdapi/v1/txt2img", json={**BODY, **fields})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_progress_shows_the_picture_under_way_and_interrupt_gives_it_up(server):
    idle = server.http.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["current_image"], idle["state"]["job_count"]) == (0, None, 0)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(draw(server, width=128, height=128, steps=100)))
    thread.start()
    end = time.monotonic() + 60
    while not (now := server.http.get("/sdapi/v1/progress").json())["current_image"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert 0 < now["progress"] < 1 and now["state"]["job_count"] == 1
    assert 0 < now["state"]["sampling_step"] < now["state"]["sampling_steps"] == 100
    Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).load()
    without = server.http.get("/sdapi/v1/progress", params={"skip_current_image": True}).json()
    assert without["current_image"] is None
    assert server.http.post("/sdapi/v1/interrupt").json() == {}
    thread.join(60)
    assert answers[0]["images"] == []
    assert server.http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_interrupt_leaves_jobs_of_other_apis_alone(server):
    job = server.job(num_inference_steps=20)
    server.http.post("/sdapi/v1/interrupt")
    assert server.wait(job["id"])["status"] == "finished"


def test_what_programs_probe_is_there(server):
    assert server.http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "sketch"
    assert [model["model_name"] for model in server.http.get("/sdapi/v1/sd-models").json()] == ["sketch"]
    assert [sampler["name"] for sampler in server.http.get("/sdapi/v1/samplers").json()] == ["Euler"]


def test_the_model_can_be_set_to_the_one_that_is_there_alone(server):
    post = server.http.post
    assert post("/sdapi/v1/options", json={"sd_model_checkpoint": "sketch", "eta": 1}).status_code == 200
    wrong = post("/sdapi/v1/options", json={"sd_model_checkpoint": "flux"})
    assert wrong.status_code == 404 and "'sketch'" in wrong.json()["error"]["message"]

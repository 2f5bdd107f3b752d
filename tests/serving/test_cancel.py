"""Jobs that are given up, by a word or by going away: the engine is free of them with its next step."""

import json
import random
import time

import httpx2 as httpx
import pytest

from tests.serving.conftest import HEART, small


def long_order(**more):
    return small(size="96x96", num_inference_steps=100, **more)


def requests_of(server, job):
    return [picture.request for picture in server.app.state.jobs.find(job).pictures.values()]


def ids(server):
    return {job.id for job in server.app.state.jobs.table.unfinished}


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.long)])
def test_a_word_frees_the_engine_within_one_step(server, times):
    draw = random.Random(times)
    for _ in range(times):
        job = server.http.post("/v1/jobs", json=long_order()).json()["id"]
        (request,) = requests_of(server, job)
        until(lambda request=request: request.step > 0)
        time.sleep(draw.uniform(0, 0.1))
        before = request.step
        answer = server.http.delete(f"/v1/jobs/{job}").json()
        at_answer = request.step
        assert answer["status"] == "cancelled" and request.step - before <= 2  # one may have ended while it was asked
        time.sleep(0.1)
        assert request.step == at_answer and request.conditional is None


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("stream", [True, False])
def test_going_away_frees_the_engine_within_one_step(server, times, stream):
    draw = random.Random(times)
    times, measured = times if stream else times // 5, 0
    body = {"prompt": HEART, "size": "96x96", "num_inference_steps": 100, "seed": 1, "stream": stream}
    for _ in range(times):
        known = ids(server)
        other = httpx.Client(base_url=server.url, timeout=0.3 + draw.uniform(0, 0.3))
        with other, pytest.raises(httpx.TimeoutException):
            if stream:
                with other.stream("POST", "/v1/images/generations", json=body) as answer:
                    for _ in answer.iter_bytes():
                        pass
            else:
                other.post("/v1/images/generations", json=body)
        (job,) = ids(server) - known or {None}
        if job is None:  # it is gone already
            continue
        (request,) = requests_of(server, job)
        until(lambda request=request: request.cancelled)
        step = request.step
        time.sleep(0.1)
        assert request.step == step < 100
        measured += 1
    assert measured >= times // 2


def test_a_job_of_a_client_that_stays_goes_on(server):
    body = {"prompt": json.loads(HEART), "size": "32x32", "num_inference_steps": 3, "stream": True}
    with server.http.stream("POST", "/v1/images/generations", json=body) as answer:
        text = "".join(answer.iter_text())
    assert "image_generation.completed" in text and text.rstrip().endswith("[DONE]")

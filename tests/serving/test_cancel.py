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


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def cancels(server, monkeypatch):
    """The step that each request had when the engine was told to give it up."""
    engine, steps = server.app.state.jobs._replica.engine, {}
    cancel = engine.cancel

    def note(request):
        steps.setdefault(request, request.step)
        return cancel(request)

    monkeypatch.setattr(engine, "cancel", note)
    return steps


def free_within_a_step(request, cancels):
    """Whether no more than the step that was under way was taken, and nothing is held for another."""
    time.sleep(0.1)
    return request.step - cancels[request] <= 1 and request.step < 100 and request.conditional is None


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.long)])
def test_a_word_frees_the_engine_within_one_step(server, cancels, times):
    draw = random.Random(times)
    for _ in range(times):
        job = server.http.post("/v1/jobs", json=long_order()).json()["id"]
        (request,) = requests_of(server, job)
        until(lambda request=request: request.step > 0)
        time.sleep(draw.uniform(0, 0.1))
        answer = server.http.delete(f"/v1/jobs/{job}").json()
        at_answer = request.step
        assert answer["status"] == "cancelled"
        assert free_within_a_step(request, cancels) and request.step == at_answer


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("stream", [True, False])
def test_going_away_frees_the_engine_within_one_step(server, cancels, times, stream):
    draw = random.Random(times)
    times = times if stream else times // 5
    body = {"prompt": HEART, "size": "96x96", "num_inference_steps": 100, "seed": 1, "stream": stream}
    for number in range(times):
        other = httpx.Client(base_url=server.url, timeout=0.3 + draw.uniform(0, 0.3))
        with other, pytest.raises(httpx.TimeoutException):
            if stream:
                with other.stream("POST", "/v1/images/generations", json=body) as answer:
                    for _ in answer.iter_bytes():
                        pass
            else:
                other.post("/v1/images/generations", json=body)
        until(lambda number=number: len(cancels) > number)
        assert free_within_a_step(list(cancels)[number], cancels)


def test_a_job_of_a_client_that_stays_goes_on(server):
    body = {"prompt": json.loads(HEART), "size": "32x32", "num_inference_steps": 3, "stream": True}
    with server.http.stream("POST", "/v1/images/generations", json=body) as answer:
        text = "".join(answer.iter_text())
    assert "image_generation.completed" in text and text.rstrip().endswith("[DONE]")

"""Captions written over HTTP: by the bundled model's grammar, and by a language model that the server was given."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image

from ideoflow.captions import Caption
from ideoflow.serving import guard
from ideoflow.sketch.prose import write
from tests.captions.chat_server import chat_server, completion

from .conftest import serve

HEART = write("a red heart on pink").caption
CHANGED = {
    **HEART.data(),
    "compositional_deconstruction": {
        "background": "plain pink",
        "elements": [{"type": "obj", "bbox": [200, 0, 800, 600], "desc": "a blue heart"}],
    },
}


def ask(server, route, status=200, **body):
    answer = server.http.post(f"/v1/captions/{route}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def picture(size: tuple[int, int] = (32, 32)) -> str:
    data = io.BytesIO()
    Image.new("RGB", size, "#E53935").save(data, format="PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")


def test_words_are_written_by_the_bundled_models_grammar(server):
    written = ask(server, "write", words="a red heart on pink and a dragon", size="128x128")
    assert written["line"] == HEART.line() and written["caption"] == HEART.data()
    assert written["by"] == "the bundled model's grammar"
    assert written["notes"] == ["not understood: dragon"] and written["changes"] == []


def test_words_that_cannot_be_written_of_are_refused(server):
    error = ask(server, "write", 400, words="a dragon")["error"]
    assert (error["code"], error["param"]) == ("invalid_caption", "words") and "not understood: dragon" in error[
        "message"
    ]
    assert ask(server, "write", 400, words="")["error"]["param"] == "words"
    assert ask(server, "write", 400, words="a heart", size="1x")["error"]["param"] == "size"


def test_without_a_language_model_nothing_is_changed_or_described(server):
    asked = {"words": "bluer", "caption": HEART.data()}, {"wish": "bluer", "caption": HEART.data()}
    for route, body in (("write", asked[0]), ("edit", asked[1]), ("describe", {"image": picture()})):
        error = ask(server, route, 400, **body)["error"]
        assert error["code"] == "no_caption_writer" and "--endpoint and --llm" in error["message"]


@pytest.fixture(scope="module")
def written_by(tmp_path_factory):
    """A server of the bundled model whose captions a language model writes; and what that model is to answer."""
    answers: list = []
    with chat_server(lambda body: answers[0](body) if callable(answers[0]) else answers[0]) as chat:
        running = serve(tmp_path_factory.mktemp("written"), endpoint=chat.url, llm="small", llm_timeout=2)
        yield running, answers, chat
        running.close()


def test_a_language_model_writes_changes_and_describes(written_by):
    server, answers, chat = written_by
    told = server.http.get("/v1/server").json()
    assert (told["writer"], told["describes"]) == ("small", True)
    answers[:] = [json.dumps(CHANGED)]
    written = ask(server, "write", words="a heart", size="64x32")
    assert written["line"] == Caption.parse(CHANGED).line() and written["by"].startswith("small at 127.0.0.1")
    assert "2:1" in chat.bodies[-1]["messages"][-1]["content"]
    changed = ask(server, "write", words="make it blue, left", caption=HEART.data())
    assert changed["changes"] == [
        "elements[0].bbox: [200,200,800,800] became [200,0,800,600]",
        'elements[0].desc: "a red heart" became "a blue heart"',
    ]
    described = ask(server, "describe", image=f"data:image/png;base64,{picture()}")
    assert described["caption"]["compositional_deconstruction"]["elements"][0]["color_palette"] == ["#E53935"]
    assert ask(server, "describe", 400, image="no picture")["error"]["param"] == "image"
    large = ask(server, "describe", 400, image=picture((8200, 8200)))["error"]
    assert large["param"] == "image" and "8200 x 8200 pixels" in large["message"]


def test_a_caption_is_changed_by_a_route_of_its_own(written_by):
    server, answers, _ = written_by
    answers[:] = [json.dumps(CHANGED)]
    changed = ask(server, "edit", caption=HEART.data(), wish="make it blue, left")
    assert changed == ask(server, "write", caption=HEART.data(), words="make it blue, left")
    assert len(changed["changes"]) == 2
    assert ask(server, "edit", 400, caption="a heart", wish="bluer")["error"]["param"] == "caption"
    assert ask(server, "edit", 400, caption=HEART.data(), wish=" ")["error"]["param"] == "wish"
    wrong = {"compositional_deconstruction": {"background": "x", "elements": [{"type": "obj"}]}}
    assert ask(server, "edit", 400, caption=wrong, wish="bluer")["error"]["param"] == "caption"


# Of each route, what would do nothing, and how it is called.
IGNORED = [
    ("write", {"words": "a heart", "seed": 3}, "seed"),
    ("write", {"words": "a heart", "temperature": 0.5}, "temperature"),
    ("write", {"words": "a heart", "layout": False}, "layout"),
    ("write", {"words": "bluer", "caption": HEART.data(), "size": "64x32"}, "size"),
    ("write?size=64x32", {"words": "a heart"}, "size"),
    ("edit", {"wish": "bluer", "caption": HEART.data(), "size": "64x32"}, "size"),
    ("edit", {"words": "bluer", "caption": HEART.data()}, "wish"),
    ("describe", {"image": picture(), "words": "a heart"}, "words"),
    ("describe?llm=large", {"image": picture()}, "llm"),
    ("check", {"caption": HEART.data(), "drop_unknown": True}, "drop_unknown"),
    ("check?strict=1", {"caption": HEART.data()}, "strict"),
    ("repair", {"caption": HEART.data(), "boxes": "xyxy"}, "boxes"),
]


@pytest.mark.parametrize(("route", "body", "param"), IGNORED)
def test_what_would_do_nothing_is_refused_by_name(written_by, route, body, param):
    server, _, chat = written_by
    asked = len(chat.bodies)
    assert ask(server, route, 400, **body)["error"]["param"] == param
    assert len(chat.bodies) == asked


def test_a_picture_larger_than_other_bodies_is_described(written_by):
    server, answers, _ = written_by
    answers[:] = [json.dumps(CHANGED)]
    data = io.BytesIO()
    Image.effect_noise((1200, 1200), 80).save(data, format="PNG")
    assert len(data.getvalue()) > 2**20
    image = base64.b64encode(data.getvalue()).decode("ascii")
    assert ask(server, "describe", image=image)["by"].startswith("small at")
    assert server.app.state.settings.max_body == 2**20
    too_large = ask(server, "write", 413, words="a heart", caption=image)["error"]
    assert too_large["code"] == "body_too_large"


@pytest.mark.parametrize("rest", ['"a",' * 30, "[" * 65, '"b":1,' * 22, "\\" * 65])
def test_a_large_body_has_a_picture_in_it_and_little_else(written_by, monkeypatch, rest):
    server, _, _ = written_by
    monkeypatch.setattr(guard, "POURING_SECONDS", 3600)  # which nobody waits for: the body has come whole
    body = '{"image": "' + "A" * 2**20 + '", "x": [' + rest
    answer = server.http.post("/v1/captions/describe", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_pictures_that_are_described_take_no_more_memory_than_there_is(written_by, monkeypatch):
    server, answers, _ = written_by
    answers[:] = [json.dumps(CHANGED)]
    assert ask(server, "describe", image=picture())["caption"]
    monkeypatch.setattr(guard, "FILES_AT_ONCE", 100)
    assert ask(server, "describe", 503, image=picture())["error"]["code"] == "too_many_files"
    monkeypatch.undo()
    assert ask(server, "describe", image=picture())["caption"], "what was counted is let go of"


def test_words_of_jobs_are_written_by_it_and_what_it_wrote_is_told(written_by):
    server, answers, _ = written_by
    answers[:] = [json.dumps(CHANGED)]
    job = server.job(caption="a heart that is blue", size="32x32")
    assert job["prompt_was"] == "written" and job["caption"] == Caption.parse(CHANGED).data()
    assert job["warnings"][0].startswith("the caption was written by small at 127.0.0.1")
    server.wait(job["id"])


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ("nothing to say", "no caption that can be drawn"),
        ((402, b"{}"), "(402)"),
        ((200, completion("")), "empty text"),
    ],
)
def test_a_language_model_that_fails_is_told_and_nothing_is_queued(written_by, reply, told):
    server, answers, _ = written_by
    answers[:] = [lambda body: reply]
    before = len(server.http.get("/v1/jobs").json()["data"])
    for route, body in (("/v1/captions/write", {"words": "a heart"}), ("/v1/jobs", {"caption": "a heart"})):
        answer = server.http.post(route, json=body)
        assert answer.status_code == 502 and answer.json()["error"]["code"] == "caption_writer_failed"
        assert told in answer.json()["error"]["message"]
    assert len(server.http.get("/v1/jobs").json()["data"]) == before


def test_a_server_told_so_writes_nothing(tmp_path):
    running = serve(tmp_path, writer="none")
    try:
        job = running.job(caption="a red heart on pink", size="32x32")
        assert job["prompt_was"] == "wrapped" and job["prompt"] == Caption.from_text("a red heart on pink").line()
        assert running.http.get("/v1/server").json()["writer"] is None
        assert ask(running, "write", 400, words="a heart")["error"]["code"] == "no_caption_writer"
        running.wait(job["id"])
    finally:
        running.close()

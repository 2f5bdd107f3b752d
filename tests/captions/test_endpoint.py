"""Captions from a language model behind an address: what is sent, what is made of the answers, and every bad server."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image, ImageDraw

from ideoflow.captions import Caption, CaptionError
from ideoflow.captions.writing import Endpoint, WritingError, describe, differences, edit, write
from ideoflow.captions.writing import endpoint as endpoint_module
from ideoflow.captions.writing.endpoint import MOST_BYTES
from ideoflow.captions.writing.giving_up import GivenUpError, Wait
from ideoflow.captions.writing.instructions import writing_instructions

from .chat_server import chat_server, completion, compressed, dripping, dripping_headers, endless, hanging_up, silent

RIGHT = {
    "high_level_description": "A cup under a sign.",
    "compositional_deconstruction": {
        "background": "a wall",
        "elements": [
            {"type": "obj", "bbox": [500, 300, 900, 700], "desc": "a white cup", "color_palette": ["#FAFAFA"]},
            {"type": "text", "bbox": [100, 200, 300, 800], "text": "OPEN", "desc": "red letters"},
        ],
    },
}
LINE = Caption.parse(RIGHT).line()


def changed(data: dict[str, Any], **more: Any) -> str:
    copy = json.loads(json.dumps(data))
    copy["compositional_deconstruction"]["elements"][0].update(more)
    return json.dumps(copy)


def test_words_become_the_caption_that_the_model_writes():
    with chat_server(LINE) as server:
        written = write("a cup under a sign", server.endpoint(), (1920, 1080))
    assert (written.caption.line(), written.notes) == (LINE, ())
    assert written.by == f"small at {server.url[7:-3]}"
    (body,) = server.bodies
    assert body["model"] == "small" and "16:9" in body["messages"][1]["content"]
    assert body["messages"][1]["content"].endswith("Idea: a cup under a sign")
    assert body["response_format"]["type"] == "json_schema"


def test_the_examples_of_the_instructions_keep_the_schema():
    for layout in (True, False):
        examples = [line for line in writing_instructions(layout).splitlines() if line.startswith('{"high')]
        assert len(examples) == 2
        for example in examples:
            caption = Caption.parse(example)
            assert caption.check() == [] and caption.line() == example


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        (f"```json\n{LINE}\n```", "Markdown fence"),
        (f"<think>a cup...</think>{LINE}", "thinking"),
        (f"Here you are: {LINE} Enjoy!", "other text"),
        (LINE[:-1] + ",}", "trailing commas"),
        (changed(RIGHT, color_palette=["#fafafa"]), "wrote #FAFAFA"),
        (changed(RIGHT, mood="calm"), "left out `mood`"),
    ],
)
def test_what_is_certain_is_mended_and_said(answer: str, note: str):
    with chat_server(answer) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == LINE
    assert any(note in said for said in written.notes), written.notes


def test_what_stays_wrong_is_asked_for_again_with_the_complaint():
    with chat_server(changed(RIGHT, bbox=[900, 300, 500, 1700]), "no.", LINE) as server:
        written = write("a cup", server.endpoint())
    assert written.caption.line() == LINE and written.notes == ("took 3 attempts",)
    second, third = server.bodies[1]["messages"], server.bodies[2]["messages"]
    assert "elements[0].bbox" in second[-1]["content"] and second[-2]["role"] == "assistant"
    assert "no JSON object" in third[-1]["content"] and len(third) == 6


def test_after_three_attempts_the_error_shows_the_text():
    with chat_server("I would rather talk about cups.") as server, pytest.raises(WritingError) as failed:
        write("a cup", server.endpoint())
    assert "in 3 attempts" in str(failed.value) and "I would rather talk about cups." in str(failed.value)
    assert failed.value.text == "I would rather talk about cups." and len(server.bodies) == 3


@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_server_without_structured_output_is_asked_for_json_and_then_for_text(status: int):
    def picky(body: dict[str, Any]) -> Any:
        return (status, b'{"error": {"message": "response_format is unknown"}}') if "response_format" in body else LINE

    with chat_server(picky) as server:
        endpoint = server.endpoint()
        assert write("a cup", endpoint).caption.line() == LINE
        formats = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert formats == ["json_schema", "json_object", None]
        write("a cup", endpoint)
    assert "response_format" not in server.bodies[-1] and len(server.bodies) == 4, "what it takes is remembered"


# Servers that fail


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (silent, "did not answer within 1 seconds"),
        (dripping, "took longer than its time to answer"),
        (dripping_headers, "did not answer within 1 seconds"),
        (compressed, "answered compressed"),
        (endless, f"more than {MOST_BYTES // 2**20} MiB"),
        (hanging_up, "cannot be reached"),
        ((200, b"<html>It works!</html>"), "no JSON, and so is no chat API: '<html>It works!</html>'"),
        ((200, b"\xff\xfe\x00garbage"), "no JSON, and so is no chat API"),
        ((200, b"[" * 100_000), "no JSON, and so is no chat API"),
        ((200, b'{"object": "list", "data": []}'), "answered without a text"),
        ((200, b'{"choices": [{"message": {"content": null}}]}'), "answered without a text"),
        ((200, b'{"choices": "none"}'), "answered without a text"),
        ((200, b'{"error": "out of memory"}'), "out of memory"),
        ((200, completion("")), "an empty text"),
        ((200, completion("", refusal="I will not draw cups.")), "will not write this: I will not draw cups."),
        ((200, completion("", refusal="Not\n\x1b[31mthis.")), "will not write this: Not [31mthis."),
        ((401, b'{"error": {"message": "bad key"}}'), "refuses the key (401)"),
        ((404, b'{"error": {"message": "model small not found"}}'), "(404): model small not found"),
        ((429, b"{}"), "too busy"),
        ((503, b"loading the model\x1b[31m"), "(503): loading the model"),
        ((307, b""), "leads elsewhere (307)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_bad_server_is_one_clear_error(reply: Any, told: str):
    with chat_server(reply) as server, pytest.raises(WritingError) as failed:
        write("a cup", server.endpoint(timeout=1))
    assert told in str(failed.value) and "small at 127.0.0.1" in str(failed.value)
    assert str(failed.value).isprintable()


def test_a_dead_server_is_one_clear_error():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = Endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "small", retries=0, timeout=5)
        with pytest.raises(WritingError, match=r"cannot be reached \(.*refused.*\): is it running\?"):
            write("a cup", endpoint)


@pytest.mark.parametrize("half", ["a \ud800 cup", "\udfff{"])
def test_half_a_character_is_complained_about(half: str):
    with chat_server((200, completion(half)), (200, completion(changed(RIGHT, desc=half))), LINE) as server:
        assert write("a cup", server.endpoint()).caption.line() == LINE
    assert len(server.bodies) == 3


def test_a_busy_server_is_asked_again():
    with chat_server((503, b"{}"), LINE) as server:
        assert write("a cup", server.endpoint(retries=1)).caption.line() == LINE
    assert len(server.bodies) == 2


@pytest.mark.parametrize(("after", "pauses"), [("3", [3.0, 3.0]), ("60", []), ("soon", [0.5, 1.0])])
def test_a_busy_server_is_waited_for_no_longer_than_its_time(after: str, pauses: list[float], monkeypatch):
    paused: list[float] = []
    monkeypatch.setattr(endpoint_module, "pause", paused.append)

    def busy(handler: Any) -> None:
        handler.send_response(503)
        handler.send_header("Retry-After", after)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    busy.raw = True  # type: ignore[attr-defined]
    with chat_server(busy) as server, pytest.raises(WritingError, match=r"failed \(503\)"):
        write("a cup", server.endpoint(retries=2))
    assert paused == pauses and len(server.bodies) == len(pauses) + 1


def test_whoever_waits_no_longer_ends_a_call_at_once():
    came, wait = threading.Event(), Wait()

    def deaf(handler: Any) -> None:
        came.set()
        handler.close_connection = True
        handler.connection.settimeout(20)
        handler.connection.recv(1)

    deaf.raw = True  # type: ignore[attr-defined]
    with chat_server(deaf) as server, ThreadPoolExecutor(1) as pool:
        call = pool.submit(wait.run, lambda: write("a cup", server.endpoint(timeout=60, retries=2)))
        assert came.wait(20)
        wait.give_up()
        with pytest.raises(GivenUpError):
            call.result(15)
    assert len(server.bodies) == 1


# What is sent, and where


def test_keys_and_names_of_the_environment_go_to_nobody_they_are_not_for(monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "secret-of-openai")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Mine: secret-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/elsewhere")
    monkeypatch.delenv("IDEOFLOW_LLM_KEY", raising=False)
    with chat_server(LINE) as server:
        write("a cup", server.endpoint())
        monkeypatch.setenv("IDEOFLOW_LLM_KEY", "own-key")
        write("a cup", server.endpoint())
    assert "secret-of-openai" not in json.dumps(server.headers)
    assert server.headers[1]["authorization"] == "Bearer own-key"
    assert "own-key" not in repr(server.endpoint(key="own-key"))


@pytest.mark.parametrize("key", ["own key", "own\nkey", "schlüssel", "a\x7fb"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IDEOFLOW_LLM_KEY", key)
    with chat_server(LINE) as server:
        with pytest.raises(WritingError, match="environment's IDEOFLOW_LLM_KEY holds") as failed:
            write("a cup", server.endpoint())
        monkeypatch.setenv("IDEOFLOW_LLM_KEY", " own-key\n")
        write("a cup", server.endpoint())
    assert key not in str(failed.value)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer own-key"]


@pytest.mark.parametrize("status", [200, 400, 404, 429, 500])
def test_a_server_that_sends_the_key_back_has_it_shown_to_nobody(status: int):
    def echo(handler: Any) -> None:
        data = json.dumps({"error": {"message": f"bad header: {handler.headers['Authorization']}"}}).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    echo.raw = True  # type: ignore[attr-defined]
    with chat_server(echo) as server, pytest.raises(WritingError, match=r"bad header: Bearer \*\*\*") as failed:
        write("a cup", server.endpoint(key="own-secret-key"))
    assert "own-secret" not in f"{failed.value}{failed.value.text}"


@pytest.mark.parametrize("url", ["/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions/"])
def test_an_address_may_be_given_with_what_is_asked_there(url: str):
    with chat_server(LINE) as server:
        Endpoint(server.url.removesuffix("/v1") + url, "small", timeout=20).ask([{"role": "user", "content": "x"}])
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    ("url", "model", "told"),
    [
        ("127.0.0.1:8000", "small", "is no address"),
        ("ftp://example.org/v1", "small", "is no address"),
        ("http:///v1", "small", "is no address"),
        ("http://me:pass@127.0.0.1/v1", "small", "give the key in the environment"),
        ("http://127.0.0.1/v1", " ", "has no name"),
        ("http://127.0.0.1:abc/v1", "small", "is no address"),
        ("http://127.0.0.1:99999/v1", "small", "is no address"),
        ("http://127.0.0.1/v1\n", "small", "is no address"),
        ("http://127.0.0.1/\0v1", "small", "is no address"),
        ("http://127.0.0.1/v1?api-version=1", "small", "before /chat/completions"),
    ],
)
def test_an_endpoint_that_is_none_is_refused_before_anything_is_sent(url: str, model: str, told: str):
    with pytest.raises(ValueError, match=told):
        Endpoint(url, model)


@pytest.mark.parametrize("words", ["", "  \n", "cup " * 6000, "a \udcff fox"])
def test_words_that_cannot_be_written_of_are_refused_before_anything_is_sent(words: str):
    with chat_server(LINE) as server, pytest.raises(CaptionError):
        write(words, server.endpoint())
    assert server.bodies == []


# Changing, and describing


def test_a_wish_changes_what_it_names_and_what_changed_is_told():
    after = changed(RIGHT, bbox=[500, 100, 900, 500], desc="a blue cup", color_palette=["#1E60E5"])
    with chat_server(after) as server:
        written = edit(Caption.parse(RIGHT), "make the cup blue and move it left", server.endpoint())
    assert differences(Caption.parse(RIGHT), written.caption) == [
        "elements[0].bbox: [500,300,900,700] became [500,100,900,500]",
        'elements[0].desc: "a white cup" became "a blue cup"',
        'elements[0].color_palette: ["#FAFAFA"] became ["#1E60E5"]',
    ]
    assert LINE in server.bodies[0]["messages"][1]["content"]


def test_elements_that_came_and_went_are_told():
    data = json.loads(LINE)
    taken = data["compositional_deconstruction"]["elements"].pop(0)
    less = Caption.parse(data)
    assert differences(Caption.parse(RIGHT), less) == [
        f"an element was taken out: {json.dumps(taken, separators=(',', ':'))}"
    ]
    assert differences(less, Caption.parse(RIGHT))[0].startswith("an element was added: ")
    assert differences(less, less) == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_time_limit_that_is_none_is_refused(timeout: float):
    with pytest.raises(ValueError, match="limits are"):
        Endpoint("http://127.0.0.1/v1", "small", timeout=timeout)


def pictured(*things: str) -> Caption:
    elements = [{"type": "obj", "desc": thing} for thing in things]
    return Caption.parse({"compositional_deconstruction": {"background": "a wall", "elements": elements}})


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (("fox", "fox"), ("fox",), ["taken out"]),
        (("fox",), ("fox", "fox"), ["added"]),
        (("fox", "cat", "cat"), ("cat", "wolf"), ["fox.*wolf", "taken out.*cat"]),
        (("fox", "cat", "cat"), ("dog", "fox", "cat"), [r"elements\[2\]\.desc: \"cat\" became \"dog\""]),
        (("fox", "cat"), ("cat", "fox"), ["in another order"]),
        (("x" * 200 + "a",), ("x" * 200 + "b",), ["xa.* became .*xb"]),
    ],
)
def test_elements_are_counted_and_what_differs_is_shown(before, after, told):
    lines = differences(pictured(*before), pictured(*after))
    assert len(lines) == len(told)
    for line, words in zip(lines, told, strict=True):
        assert re.search(words, line), line


def test_a_caption_that_was_not_changed_is_asked_for_again():
    after = changed(RIGHT, desc="a blue cup")
    with chat_server(LINE, after) as server:
        edit(Caption.parse(RIGHT), "make the cup blue", server.endpoint())
    assert "nothing was changed" in server.bodies[1]["messages"][-1]["content"]


def test_a_picture_is_described_with_colours_measured_from_its_pixels():
    picture = Image.new("RGB", (400, 200), "#F48FB1")
    ImageDraw.Draw(picture).rectangle((100, 50, 299, 149), fill="#E53935")
    told = {
        "compositional_deconstruction": {
            "background": "pink",
            "elements": [
                {"type": "obj", "bbox": [200, 200, 800, 800], "desc": "a square", "color_palette": ["#00FF00"]}
            ],
        }
    }
    with chat_server(json.dumps(told)) as server:
        written = describe(picture, server.endpoint())
    (element,) = written.caption.data()["compositional_deconstruction"]["elements"]
    assert element["color_palette"] == ["#E53935"]
    content = server.bodies[0]["messages"][1]["content"]
    sent = Image.open(io.BytesIO(base64.b64decode(content[1]["image_url"]["url"].partition(",")[2])))
    assert sent.size == (400, 200) and "2:1" in content[0]["text"]


def test_a_large_picture_is_sent_smaller_and_without_what_its_file_says():
    picture = Image.effect_noise((3000, 1500), 20)
    picture.info["comment"] = "where I live"
    with chat_server(LINE) as server:
        describe(picture, server.endpoint())
    sent = base64.b64decode(server.bodies[0]["messages"][1]["content"][1]["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(sent)).size == (1024, 512) and b"where I live" not in sent


def sent_picture(picture: Image.Image) -> tuple[Image.Image, str]:
    """What an endpoint is sent of a picture, and what is said of its proportions."""
    with chat_server(LINE) as server:
        describe(picture, server.endpoint())
    content = server.bodies[0]["messages"][1]["content"]
    data = base64.b64decode(content[1]["image_url"]["url"].partition(",")[2])
    return Image.open(io.BytesIO(data)), content[0]["text"]


def test_a_picture_that_is_held_sideways_is_described_upright():
    picture = Image.new("RGB", (200, 100), "#F48FB1")
    picture.getexif()[0x0112] = 6  # to be turned by a quarter
    sent, told = sent_picture(picture)
    assert sent.size == (100, 200) and "1:2" in told


def test_what_is_transparent_is_described_as_white():
    sent, _ = sent_picture(Image.new("RGBA", (64, 64), (255, 0, 0, 0)))
    assert sent.convert("RGB").getcolors() == [(64 * 64, (255, 255, 255))]


def test_a_colour_profile_is_not_sent_along():
    picture = Image.new("RGB", (64, 64), "#F48FB1")
    picture.info["icc_profile"] = b"profile of my camera"
    sent, _ = sent_picture(picture)
    assert sent.info == {}

"""OpenAI's images API as the `openai` client speaks it: pictures, streams, links, and errors of its classes."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import httpx2
import openai
import pytest
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent, ImagesResponse
from PIL import Image, ImageChops

from ideoflow.serving.openai_answer import due_steps
from ideoflow.sketch.prose import write

CAPTION = write("a red circle", (64, 32)).caption.line()
SMALL = {"num_inference_steps": 3, "seed": 7}
SIZE = "64x32"


def client_of(server, **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options})


@pytest.fixture
def client(server):
    return client_of(server)


def draw(client, **fields):
    own = {**SMALL, **fields.pop("extra_body", {})}
    return client.images.generate(**{"prompt": CAPTION, "size": SIZE, "extra_body": own, **fields})


def opened(b64_json: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


# Pictures


def test_a_picture_comes_as_the_clients_types_expect(client):
    answer = draw(client)
    assert isinstance(answer, ImagesResponse)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    (picture,) = answer.data
    assert (opened(picture.b64_json).format, opened(picture.b64_json).size) == ("PNG", (64, 32))
    assert picture.url is None and picture.revised_prompt is None
    assert (answer.size, answer.quality, answer.output_format, answer.background) == (SIZE, "medium", "png", "opaque")
    assert abs(answer.created - time.time()) < 100
    usage = answer.usage
    assert usage.output_tokens == usage.output_tokens_details.image_tokens == 4 * 2
    assert usage.input_tokens == usage.input_tokens_details.text_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_n_pictures_have_seeds_that_count_on_and_are_each_what_one_would_be(client):
    answer = draw(client, n=3)
    assert [picture.seed for picture in answer.data] == [7, 8, 9]
    assert len({picture.b64_json for picture in answer.data}) == 3
    assert answer.usage.output_tokens == 3 * 8
    alone, third = (opened(one.b64_json) for one in (draw(client, extra_body={"seed": 9}).data[0], answer.data[2]))
    assert max(high for _, high in ImageChops.difference(alone, third).getextrema()) <= 1


def test_a_link_leads_to_the_picture_that_the_server_keeps(client, server):
    (picture,) = draw(client, response_format="url").data
    assert picture.b64_json is None and picture.url.startswith(server.url)
    file = httpx2.get(picture.url)
    assert file.headers["content-type"] == "image/png"
    assert file.content == base64.b64decode(draw(client).data[0].b64_json)


def test_pictures_that_are_sent_are_not_kept(client, server):
    id = draw(client).id
    assert id not in [job["id"] for job in server.http.get("/v1/jobs").json()["data"]]


@pytest.mark.parametrize(
    ("fields", "form"), [({"output_format": "webp"}, "WEBP"), ({"extra_body": {"format": "jpeg"}}, "JPEG")]
)
def test_pictures_come_in_the_format_that_is_asked_for(client, fields, form):
    answer = draw(client, **fields)
    assert opened(answer.data[0].b64_json).format == form
    assert answer.output_format == form.lower()


def test_compression_makes_files_smaller(client):
    sizes = [
        len(draw(client, output_format="jpeg", output_compression=quality).data[0].b64_json) for quality in (0, 50, 100)
    ]
    assert sizes == sorted(set(sizes))
    assert draw(client, output_format="png", output_compression=100).output_format == "png"


@pytest.mark.parametrize(
    ("fields", "quality"),
    [
        ({"quality": "low"}, "low"),
        ({"quality": "auto"}, "medium"),
        ({"quality": "standard"}, "medium"),
        ({"quality": "hd"}, "high"),
        ({"extra_body": {"preset": "V4_TURBO_12"}}, "low"),
        ({"quality": "high", "extra_body": {"preset": "turbo"}}, "low"),
    ],
)
def test_a_quality_is_a_preset_and_a_preset_decides(client, fields, quality):
    assert draw(client, **fields).quality == quality


def test_a_quality_alone_sets_the_steps(client, server):
    answer = client.images.generate(prompt=CAPTION, size="32x32", quality="low", response_format="url")
    assert server.http.get(f"/v1/jobs/{answer.id}").json()["request"]["num_inference_steps"] == 12


def test_sides_are_another_way_to_give_a_size(client):
    assert draw(client, size="auto", extra_body={"width": 48, "height": 32}).size == "48x32"


def test_words_are_drawn_as_the_caption_that_the_answer_shows(client):
    answer = draw(client, prompt="a red circle")
    assert answer.prompt_was == "written"
    assert answer.data[0].revised_prompt == CAPTION
    assert answer.warnings[:2] == [
        "the caption was written by the bundled model's grammar",
        "no background was named: it is white",
    ]
    assert answer.data[0].b64_json == draw(client).data[0].b64_json


def test_words_of_which_nothing_can_be_drawn_are_refused_with_what_can(client):
    with pytest.raises(openai.BadRequestError, match=r"not understood: dragon\. The bundled model draws circle, ring"):
        draw(client, prompt="a dragon on pink")


def test_a_caption_may_be_an_object(client):
    answer = draw(client, prompt=json.loads(CAPTION))
    assert answer.prompt_was == "json" and answer.data[0].b64_json == draw(client).data[0].b64_json


def test_a_caption_that_lost_its_quotation_marks_is_drawn_all_the_same(client):
    answer = draw(client, prompt=CAPTION.replace('"', ""))
    assert answer.prompt_was == "repaired" and "quotation marks" in answer.warnings[0]
    assert answer.data[0].b64_json == draw(client).data[0].b64_json


@pytest.mark.parametrize(
    "fields",
    [
        # As Open WebUI, LibreChat and LiteLLM send them
        {"model": "sketch", "n": 1, "response_format": "b64_json"},
        {"model": "gpt-image-1", "n": 1, "quality": "auto", "background": "auto", "output_format": "png",
         "output_compression": 100},
        {"model": "dall-e-3", "style": "vivid", "user": "somebody", "quality": "hd", "response_format": "b64_json"},
        {"moderation": "low", "safety_identifier": "1f", "complexity": "low", "partial_images": 2},
        {"model": None, "n": None, "quality": None, "user": None, "stream": None, "size": None,
         "extra_body": {"seed": None, "preset": None, "adapters": None, "guidance_scale": None}},
    ],
)  # fmt: skip
def test_what_clients_send_beside_the_prompt_is_taken(client, fields):
    answer = draw(client, **{"size": "32x32", **fields})
    assert answer.data[0].b64_json
    assert [name for name in ("style", "complexity") if name in fields] == [
        warning.split("`")[1] for warning in answer.warnings if "no effect" in warning
    ]


# Streams


def test_a_stream_has_its_partial_pictures_and_then_the_picture(client):
    events = list(draw(client, stream=True, partial_images=2))
    assert [type(event) for event in events] == [ImageGenPartialImageEvent] * 2 + [ImageGenCompletedEvent]
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)
        assert (event.size, event.quality, event.output_format, event.background) == (SIZE, "medium", "png", "opaque")
        assert opened(event.b64_json).format == "PNG"
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[2].b64_json == draw(client).data[0].b64_json
    assert events[2].usage.output_tokens == 8


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_partial_pictures_are_counted_from_0_where_there_are_fewer_steps_than_are_asked_for(client, steps):
    events = list(draw(client, stream=True, partial_images=3, extra_body={"num_inference_steps": steps}))
    assert [event.partial_image_index for event in events[:-1]] == list(range(steps - 1))


def test_a_stream_without_partial_pictures_has_one_event(client):
    (event,) = draw(client, stream=True, prompt="a red circle")
    assert event.type == "image_generation.completed"
    assert event.revised_prompt == CAPTION


def test_partial_pictures_have_the_format_that_is_asked_for(client):
    events = list(draw(client, stream=True, partial_images=1, output_format="webp"))
    assert [opened(event.b64_json).format for event in events] == ["WEBP", "WEBP"]


def test_a_stream_of_several_pictures_says_which_each_event_is_of(client):
    events = list(draw(client, stream=True, partial_images=1, n=2))
    assert sorted((event.type.rpartition(".")[2], event.picture) for event in events) == [
        ("completed", 0), ("completed", 1), ("partial_image", 0), ("partial_image", 1),
    ]  # fmt: skip


def test_a_stream_is_of_server_sent_events_that_end_with_done(server):
    body = {"prompt": CAPTION, "size": SIZE, "stream": True, "partial_images": 1, **SMALL}
    answer = server.http.post("/v1/images/generations", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.strip().split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == [
        "event: image_generation.partial_image", "event: image_generation.completed", "data: [DONE]",
    ]  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 12, 20, 48, 1000])
@pytest.mark.parametrize("partials", [0, 1, 2, 3])
def test_partial_pictures_are_spread_over_the_steps_before_the_last(steps, partials):
    due = due_steps(steps, partials)
    assert len(due) == min(partials, steps - 1)
    assert due == sorted(set(due)) and all(1 <= step < steps for step in due)


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"size": "63x32"}, "size", "multiple of 16"),
        ({"size": "huge"}, "size", "WIDTHxHEIGHT"),
        ({"size": "16384x16384"}, "size", "at most"),
        ({"n": 11}, "n", "at most 10 pictures"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"output_format": "gif"}, "output_format", "png"),
        ({"output_compression": 50}, "output_compression", "jpeg and webp"),
        ({"quality": "splendid"}, "quality", "low"),
        ({"partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({"prompt": " "}, "prompt", "1 to 100000 characters"),
        ({"prompt": "a" * 100_001}, "prompt", "1 to 100000 characters"),
        ({"prompt": CAPTION.replace("a red", "red " * 3000)}, "prompt", "2048"),
        ({"prompt": {"shape": "circle"}}, "prompt", "no caption"),
        ({"prompt": 3}, "prompt", "JSON object or as text"),
        ({"prompt": CAPTION[:-3]}, "prompt", "cut off"),
        ({"extra_body": {"preset": "quick"}}, "preset", "V4_TURBO_12"),
        ({"extra_body": {"num_inference_steps": 0}}, "num_inference_steps", "greater than or equal to 1"),
        ({"extra_body": {"num_inference_steps": 1001}}, "num_inference_steps", "at most"),
        ({"extra_body": {"adapters": {"ink": 1}}}, "adapters", "'ink'"),
        ({"extra_body": {"seed": -1}}, "seed", "greater than or equal to 0"),
        ({"extra_body": {"seeds": 1}}, None, "`seeds` is not known here. Did you mean `seed`?"),
        ({"extra_body": {"negative_prompt": "cats"}}, None, "`negative_prompt` is not known here"),
        ({"extra_body": {"width": 64}}, None, "go together"),
        ({"extra_body": {"width": 32, "height": 64}}, None, "give one"),
        ({"output_format": "webp", "extra_body": {"format": "jpeg"}}, None, "give one"),
    ],
)
def test_what_cannot_be_drawn_is_a_bad_request_that_names_the_field(client, fields, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        draw(client, **fields)
    assert message in caught.value.message
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")


def test_names_that_are_no_text_are_refused_too(server):
    for field in ({"\ud800": 1}, {"adapters": {"\ud800": 1}}, {"model": "\ud800"}, {"prompt": {"\ud800": "\ud800"}}):
        body = json.dumps({"prompt": CAPTION, **field})
        answer = server.http.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_model_that_is_not_there_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        draw(client, model="flux")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'sketch'" in caught.value.message


def test_a_wrong_key_is_an_authentication_error(own_server):
    server = own_server(api_keys=("right-key-1",))
    with pytest.raises(openai.AuthenticationError) as caught:
        draw(client_of(server, api_key="wrong-key-1"))
    assert caught.value.code == "invalid_api_key"
    assert client_of(server, api_key="right-key-1").models.list().data[0].id == "sketch"


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_again(own_server):
    server = own_server(max_queue=1)
    waiting = server.job(num_inference_steps=100, size="256x256")
    with pytest.raises(openai.RateLimitError) as caught:
        draw(client_of(server))
    assert int(caught.value.response.headers["retry-after"]) >= 1
    server.http.delete(f"/v1/jobs/{waiting['id']}")


def test_a_job_that_takes_too_long_is_a_server_error_that_is_not_tried_again(own_server):
    server = own_server(timeout=0.2)
    client = client_of(server, max_retries=2)
    with pytest.raises(openai.InternalServerError) as caught:
        draw(client, size="256x256", extra_body={"num_inference_steps": 100})
    assert (caught.value.status_code, caught.value.code) == (504, "timeout")
    with pytest.raises(openai.APIError, match="deadline"):
        list(draw(client, size="256x256", stream=True, extra_body={"num_inference_steps": 100}))


def test_a_client_that_runs_out_of_patience_gives_up_its_job(client, server):
    before = server.app.state.jobs.unfinished
    with pytest.raises(openai.APITimeoutError):
        draw(client.with_options(timeout=0.5), size="256x256", extra_body={"num_inference_steps": 100})
    settle(server, before)


def test_closing_a_stream_gives_up_its_job(client, server):
    before = server.app.state.jobs.unfinished
    stream = draw(client, size="128x128", stream=True, partial_images=3, extra_body={"num_inference_steps": 60})
    assert next(iter(stream)).partial_image_index == 0
    stream.close()
    settle(server, before)


def test_a_job_that_somebody_else_cancels_is_a_conflict(client, server):
    jobs = server.app.state.jobs

    def cancel_soon():
        end = time.monotonic() + 30
        while time.monotonic() < end and not jobs.unfinished:
            time.sleep(0.01)
        jobs.cancel(jobs.table.unfinished[0])

    threading.Thread(target=cancel_soon).start()
    with pytest.raises(openai.ConflictError, match="cancelled"):
        draw(client, size="256x256", extra_body={"num_inference_steps": 100})


def settle(server, number):
    """Wait until no more than so many jobs are unfinished: cancelled, not finished."""
    jobs, end = server.app.state.jobs, time.monotonic() + 20
    while jobs.unfinished > number:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert next(reversed(jobs.table._ended.values())).record.status == "cancelled"


# Models


def test_models_are_listed_and_looked_up(client):
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("sketch", "model", "ideoflow")
    assert client.models.retrieve("sketch") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("flux/dev")

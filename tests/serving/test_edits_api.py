"""Edits as the `openai` client asks for them: masks by transparency, streams, and what is refused with its reason."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import openai
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent, ImagesResponse
from PIL import Image

from ideoflow import latents
from ideoflow.pictures import read_settings
from ideoflow.serving import guard, jobs, preparing
from ideoflow.serving.picture_changes import Wanted

SQUARE = {"type": "obj", "bbox": [200, 200, 600, 600], "desc": "a blue square"}
BEFORE = {"compositional_deconstruction": {"background": "plain yellow", "elements": [SQUARE]}}
AFTER = {
    "compositional_deconstruction": {"background": "plain yellow", "elements": [{**SQUARE, "desc": "a red circle"}]}
}
QUICK = {"num_inference_steps": "3", "seed": "7"}


def png(image: Image.Image, name: str = "picture.png") -> tuple[str, bytes, str]:
    data = io.BytesIO()
    image.save(data, "PNG")
    return name, data.getvalue(), "image/png"


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.full((64, 96, 3), (0xFD, 0xD8, 0x35), np.uint8)
    pixels[13:39, 19:58] = (0x1E, 0x60, 0xE5)
    return Image.fromarray(pixels)


@pytest.fixture
def hole() -> Image.Image:
    """A mask as OpenAI's API has it: the left half is transparent."""
    clear = np.full((64, 96, 4), 255, np.uint8)
    clear[:, :48, 3] = 0
    return Image.fromarray(clear, "RGBA")


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def edit(client, picture, **fields):
    own = {**QUICK, **fields.pop("extra_body", {})}
    return client.images.edit(image=png(picture), prompt=json.dumps(AFTER), extra_body=own, **fields)


def opened(b64_json: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(b64_json))) as image:
        return np.asarray(image.convert("RGB"))


def test_what_the_mask_leaves_alone_is_the_pictures_to_the_last_bit(client, picture, hole):
    answer = edit(client, picture, mask=png(hole))
    assert isinstance(answer, ImagesResponse)
    ImagesResponse.model_validate(answer.model_dump(), strict=True)
    (one,) = answer.data
    pixels = opened(one.b64_json)

    assert (pixels[:, 48:] == np.asarray(picture)[:, 48:]).all() and (pixels != np.asarray(picture)).any()
    assert answer.size == "96x64"
    usage = answer.usage
    assert usage.input_tokens_details.image_tokens == usage.output_tokens == 4 * 6


@pytest.mark.parametrize("changes", ["white", "black"])
def test_masks_of_other_polarities_are_said_and_draw_the_same(client, picture, hole, changes):
    light = np.zeros((64, 96), np.uint8)
    light[:, :48] = 255
    mask = Image.fromarray(light if changes == "white" else 255 - light)
    one = edit(client, picture, mask=png(hole)).data[0].b64_json
    other = edit(client, picture, mask=png(mask), extra_body={"mask_changes": changes}).data[0].b64_json

    assert (opened(one) == opened(other)).all()


def test_a_transparent_picture_is_its_own_mask(client, picture, hole):
    own = Image.merge("RGBA", [*picture.split(), hole.getchannel("A")])

    assert (opened(edit(client, own).data[0].b64_json)[:, 48:] == np.asarray(picture)[:, 48:]).all()


def test_without_a_mask_the_picture_is_drawn_anew_from_itself(client, picture):
    weak, strong = (
        opened(edit(client, picture, extra_body={"strength": strength}).data[0].b64_json) for strength in ("0.2", "1")
    )

    def gap(pixels):
        return np.abs(pixels.astype(int) - np.asarray(picture, int)).mean()

    assert gap(weak) < gap(strong)


@pytest.mark.parametrize("how", ["redraw", "caption"])
def test_two_captions_say_what_changes(client, picture, how):
    found = opened(edit(client, picture, extra_body={"how": how, "before": json.dumps(BEFORE)}).data[0].b64_json)

    assert (found != np.asarray(picture)).any()
    if how == "redraw":
        assert (found[48:] == np.asarray(picture)[48:]).all()


def test_a_caption_of_the_picture_as_it_is_asks_for_a_redraw(client, picture):
    found = opened(edit(client, picture, extra_body={"before": json.dumps(BEFORE)}, size="96x64").data[0].b64_json)

    assert (found[48:] == np.asarray(picture)[48:]).all()


def test_a_damaged_picture_is_named_as_the_picture(server, picture):
    name, data, kind = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)))
    cut = name, data[: len(data) // 2], kind
    answer = server.http.post("/v1/images/edits", data={"prompt": json.dumps(AFTER)}, files={"image": cut})

    assert answer.status_code == 400 and answer.json()["error"]["param"] == "image", answer.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ([("mask", png(Image.new("RGBA", (96, 64)))), ("mask", png(Image.new("RGBA", (96, 64))))], "mask"),
        ([("strength", (None, "0.2")), ("strength", (None, "0.4"))], "strength"),
        ([("prompt", (None, "a circle"))], "prompt"),
        ([("mask", (None, ""))], "mask"),
        ([("mask", (None, "words"))], "mask"),
        ([("image", (None, "picture.png"))], "image"),
    ],
)
def test_fields_that_would_be_ignored_are_refused_by_name(server, picture, fields, param):
    form = [("prompt", (None, json.dumps(AFTER))), ("image", png(picture)), *fields]
    answer = server.http.post("/v1/images/edits", files=form)

    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


def test_a_list_of_one_picture_may_be_indexed(server, picture):
    form = {"prompt": json.dumps(AFTER), **QUICK}
    answer = server.http.post("/v1/images/edits", data=form, files={"image[0]": png(picture)})

    assert answer.status_code == 200, answer.text


def test_a_body_of_json_is_told_of_forms(server):
    answer = server.http.post("/v1/images/edits", json={"prompt": "a circle", "image": "picture.png"})

    assert answer.status_code == 400 and "multipart/form-data" in answer.json()["error"]["message"]


def test_pictures_are_prepared_a_few_at_a_time_and_a_stop_does_not_wait_for_them(own_server, picture, monkeypatch):
    def stuck(*_):
        nonlocal begun
        begun += 1
        held.wait(60)

    begun, held = 0, threading.Event()
    server = own_server(max_queue=preparing.AT_ONCE, drain=0)
    monkeypatch.setattr(Wanted, "change", stuck)
    form = {"data": {"prompt": json.dumps(AFTER)}, "files": {"image": png(picture)}}
    with ThreadPoolExecutor(preparing.AT_ONCE) as clients:
        asked = [clients.submit(server.http.post, "/v1/images/edits", **form) for _ in range(preparing.AT_ONCE)]
        while begun < preparing.AT_ONCE:
            time.sleep(0.01)
        more = server.http.post("/v1/images/edits", **form)
        server.stop()
        server.thread.join(60)
        stopped = not server.thread.is_alive()
        held.set()

    assert (more.status_code, more.json()["error"]["code"]) == (429, "queue_full") and begun == preparing.AT_ONCE
    assert stopped and {answer.result().status_code for answer in asked} == {503}


def test_sizes_that_are_no_multiples_of_16_come_back_as_they_were(client, picture, hole):
    size = (90, 50)
    answer = edit(client, picture.resize(size), mask=png(hole.resize(size, Image.Resampling.NEAREST)))

    assert answer.size == "90x50" and opened(answer.data[0].b64_json).shape == (50, 90, 3)


def test_n_pictures_have_seeds_that_count_on(client, picture, hole):
    answer = edit(client, picture, mask=png(hole), n=2)

    assert [one.seed for one in answer.data] == [7, 8]
    assert len({one.b64_json for one in answer.data}) == 2


def test_a_stream_has_the_events_of_edits(client, picture, hole):
    events = list(edit(client, picture, mask=png(hole), stream=True, extra_body={"partial_images": "2"}))

    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    assert isinstance(events[0], ImageEditPartialImageEvent) and isinstance(events[-1], ImageEditCompletedEvent)
    assert (opened(events[-1].b64_json)[:, 48:] == np.asarray(picture)[:, 48:]).all()


def test_the_picture_says_what_was_done(client, picture, hole, tmp_path):
    (one,) = edit(client, picture, mask=png(hole)).data
    (tmp_path / "edited.png").write_bytes(base64.b64decode(one.b64_json))
    settings = read_settings(tmp_path / "edited.png")

    assert settings["edit"]["kind"] == "inpaint" and json.loads(settings["caption"]) == AFTER


def test_edits_are_not_kept(client, server, picture, hole):
    before = server.http.get("/v1/jobs").json()
    edit(client, picture, mask=png(hole))

    assert server.http.get("/v1/jobs").json() == before
    with pytest.raises(openai.BadRequestError, match="edits are not kept"):
        edit(client, picture, mask=png(hole), response_format="url")


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"extra_body": {"strenght": "0.5"}}, "strenght", "is not known here"),
        ({"extra_body": {"strength": "1.5"}}, "strength", "less than or equal to 1"),
        ({"extra_body": {"how": "redraw"}}, "before", "give `before`"),
        ({"extra_body": {"how": "redraw", "before": "a square"}}, "before", "differ in `background`"),
        ({"extra_body": {"how": "redraw", "before": json.dumps(AFTER)}}, "before", "say the same"),
        ({"extra_body": {"how": "caption", "before": json.dumps(AFTER)}}, "before", "say the same"),
        ({"extra_body": {"how": "inpaint"}}, "mask", "give a mask"),
        ({"extra_body": {"how": "outpaint"}}, "how", "Input should be"),
        ({"extra_body": {"feather": "3"}}, "feather", "goes with redraw and inpaint, and `how` is image"),
        ({"extra_body": {"harmonise": "1"}}, "harmonise", "goes with redraw and inpaint, and `how` is image"),
        ({"extra_body": {"mask_changes": "black"}}, "mask_changes", "goes with inpaint"),
        ({"extra_body": {"how": "image", "before": "{}"}}, "before", "goes with redraw and caption"),
        ({"extra_body": {"before": "{"}}, "before", "`before` is no JSON"),
        ({"extra_body": {"before": json.dumps(BEFORE)}, "size": "64x64"}, "size", "in its own, 96x64"),
        ({"mask": png(Image.new("RGBA", (96, 64))), "size": "64x64"}, "size", "in its own, 96x64"),
        ({"extra_body": {"num_inference_steps": "100000"}}, "num_inference_steps", "at most 100 steps"),
        ({"mask": png(Image.new("L", (5, 5)))}, "mask", "has no transparency"),
        ({"mask": png(Image.new("RGBA", (5, 5)))}, "mask", "has 5 x 5 pixels, and the picture 96 x 64"),
        ({"mask": ("m.png", b"words", "image/png")}, "mask", "not a picture"),
        ({"size": "90x64"}, "size", "multiple of 16"),
        ({"size": "99999x16"}, "size", "positive multiple of 16"),
        ({"quality": "best"}, "quality", "Input should be"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"n": 99}, "n", "at most"),
        ({"extra_body": {"num_inference_steps": "5000"}}, "num_inference_steps", "at most"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(client, picture, fields, param, message):
    with pytest.raises(openai.BadRequestError) as caught:
        edit(client, picture, **fields)

    assert message in str(caught.value) and caught.value.param == param


def test_several_pictures_are_refused_with_a_reason(client, picture):
    with pytest.raises(openai.BadRequestError, match="no reference pictures"):
        client.images.edit(image=[png(picture)] * 2, prompt="x")


@pytest.mark.parametrize("data", [b"", b"words", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(client, data):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("x.png", data, "image/png"), prompt="x")
    assert caught.value.param == "image"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(own_server):
    server = own_server(max_pixels=64 * 64)
    large = Image.new("1", (64 * 4 + 1, 64 * 4))
    answer = server.http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": png(large)})

    assert answer.status_code == 400 and "takes in 65536 at most" in answer.json()["error"]["message"]


def test_a_photograph_of_many_megabytes_is_taken(client):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "PNG", compress_level=0)
    assert len(data.getvalue()) > 2**23
    answer = client.images.edit(image=("photo.png", data.getvalue()), prompt=json.dumps(AFTER), extra_body=QUICK)

    assert opened(answer.data[0].b64_json).shape[1] > 96


def test_a_mask_of_too_many_bytes_is_refused_by_its_name(client, picture):
    with pytest.raises(openai.BadRequestError, match="fewer than 4194304 are allowed") as caught:
        edit(client, picture, mask=("mask.png", b"x" * 2**22, "image/png"))
    assert caught.value.param == "mask"


def test_pictures_that_are_sent_at_a_time_fit_into_memory(server, picture, monkeypatch):
    def send():
        answer = server.http.post("/v1/images/edits", data={"prompt": "x", "how": "redraw"}, files={"image": large})
        return answer.status_code, answer.json()["error"]["code"]

    large = ("picture.bmp", bytes(3000))
    monkeypatch.setattr(guard, "FILES_AT_ONCE", 2000)
    assert send() == (503, "too_many_files")
    monkeypatch.setattr(guard, "FILES_AT_ONCE", 5000)
    assert [send()[0] for _ in range(3)] == [400] * 3


def test_pictures_that_wait_to_be_changed_fit_into_memory(server, before, monkeypatch):
    monkeypatch.setattr(jobs, "MOST_GIVEN", 96 * 64)
    order = {"caption": AFTER, "num_inference_steps": 100, "edit": {"job": before["id"]}}
    first = server.http.post("/v1/jobs", json=order)
    second = server.http.post("/v1/jobs", json=order)
    server.http.delete(f"/v1/jobs/{first.json()['id']}")

    assert first.status_code == 202
    assert (second.status_code, second.json()["error"]["code"]) == (429, "queue_full")
    assert changed(server, before)["status"] == "finished"


def test_an_edit_without_a_picture_is_a_bad_request(server):
    answer = server.http.post("/v1/images/edits", data={"prompt": "a blue circle"}, files={"mask": ("m", b"x")})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "image"


# Jobs that change a picture that is kept


def drawn(server) -> dict:
    """A finished job of one small picture."""
    answer = server.http.post(
        "/v1/jobs", json={"caption": BEFORE, "size": "96x64", "num_inference_steps": 3, "seed": 5}
    )
    return server.wait(answer.json()["id"])


def pixels_of(server, job, index=0) -> np.ndarray:
    with Image.open(io.BytesIO(server.http.get(f"/v1/jobs/{job['id']}/pictures/{index}").content)) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def before(server) -> dict:
    return drawn(server)


def changed(server, kept, fails=None, caption=AFTER, **edit) -> dict:
    order = {"caption": caption, "num_inference_steps": 3, "seed": 7, "edit": {"job": kept["id"], **edit}}
    answer = server.http.post("/v1/jobs", json=order)
    assert answer.status_code == (fails or 202), answer.text
    return answer.json() if fails else server.wait(answer.json()["id"])


def test_a_job_redraws_what_its_caption_changes_in_a_kept_picture(server, before):
    job = changed(server, before)
    old, new = pixels_of(server, before), pixels_of(server, job)

    assert job["status"] == "finished" and job["stored"] and (old[48:] == new[48:]).all() and (old != new).any()
    assert (job["request"]["edit"]["job"], job["request"]["edit"]["how"]) == (before["id"], "redraw")
    assert job["request"]["size"] == "96x64"


@pytest.mark.parametrize("form", ["boxes", "mask"])
def test_a_job_draws_a_part_of_a_kept_picture_anew(server, before, form):
    light = Image.new("L", (96, 64))
    light.paste(255, (0, 0, 48, 64))
    hole = {"boxes": [[0, 0, 1000, 500]], "mask": base64.b64encode(png(light)[1]).decode()}[form]
    job = changed(server, before, how="inpaint", caption=BEFORE, **{form: hole})

    assert (pixels_of(server, before)[:, 48:] == pixels_of(server, job)[:, 48:]).all()


def test_a_change_can_be_changed_again_and_says_what_it_was_made_of(server, before):
    first = changed(server, before)
    second = changed(server, first, caption=BEFORE)

    assert second["request"]["edit"]["job"] == first["id"] and first["request"]["edit"]["job"] == before["id"]


@pytest.mark.parametrize(
    ("edit", "status", "param"),
    [
        ({"job": "job_none"}, 404, "edit.job"),
        ({"picture": 3}, 404, "edit.picture"),
        ({"how": "inpaint"}, 400, "edit.mask"),
        ({"how": "inpaint", "mask": "no base64!"}, 400, "edit.mask"),
        ({"how": "inpaint", "mask": base64.b64encode(b"words").decode()}, 400, "edit.mask"),
        ({"how": "inpaint", "mask": base64.b64encode(png(Image.new("L", (5, 5)))[1]).decode()}, 400, "edit.mask"),
        ({"how": "inpaint", "boxes": [[0, 0, 1]]}, 400, "edit.boxes"),
        ({"how": "inpaint", "boxes": [[0, 0, 9, 9]], "mask": base64.b64encode(b"words").decode()}, 400, "edit.mask"),
        ({"how": "inpaint", "boxes": [[0, 0, 9, 9]], "mask_changes": "black"}, 400, "edit.mask_changes"),
        ({"boxes": [[0, 0, 500, 500]]}, 400, "edit.boxes"),
        ({"how": "image", "feather": 3}, 400, "edit.feather"),
        ({"how": "image", "before": BEFORE}, 400, "edit.before"),
        ({"how": "caption", "harmonise": 1}, 400, "edit.harmonise"),
        ({"before": {}}, 400, "edit.before"),
        ({"before": json.dumps(AFTER)}, 400, "edit.before"),
        ({"strenght": 1}, 400, "edit.strenght"),
        ({"strength": 2}, 400, "edit.strength"),
    ],
)
def test_changes_that_cannot_be_are_refused(server, before, edit, status, param):
    answer = changed(server, before, fails=status, **edit)
    assert answer["error"]["param"] == param


def test_a_picture_that_is_not_finished_cannot_be_changed_yet(server):
    slow = server.job(num_inference_steps=100, size="96x64")
    answer = changed(server, slow, fails=409)
    server.http.delete(f"/v1/jobs/{slow['id']}")

    assert (answer["error"]["param"], answer["error"]["code"]) == ("edit.job", "not_finished")


def test_a_change_has_its_pictures_size(server, before):
    order = {"caption": AFTER, "size": "128x64", "edit": {"job": before["id"]}}
    answer = server.http.post("/v1/jobs", json=order)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "size"


@pytest.fixture
def encoding(monkeypatch):
    """Where pictures are encoded, which waits for `free`: the names of its threads, and how many it has begun."""

    def encode(vae, pictures):
        held.threads.append(threading.current_thread().name)
        held.free.wait(20)
        return own(vae, pictures)

    own, held = latents.encode, SimpleNamespace(free=threading.Event(), threads=[])
    monkeypatch.setattr(latents, "encode", encode)
    yield held
    held.free.set()


def test_a_change_is_accepted_and_listed_before_its_picture_is_encoded_and_can_be_given_up(server, before, encoding):
    order = {"caption": AFTER, "num_inference_steps": 3, "seed": 7, "edit": {"job": before["id"]}}
    first, second, third = (server.http.post("/v1/jobs", json=order).json()["id"] for _ in range(3))
    while not encoding.threads:
        time.sleep(0.01)
    listed = {job["id"]: job["status"] for job in server.http.get("/v1/jobs?status=queued,running").json()["data"]}
    given_up = server.http.delete(f"/v1/jobs/{second}").json()["id"]
    encoding.free.set()

    assert listed == dict.fromkeys([first, second, third], "queued")
    assert [server.wait(id)["status"] for id in (first, given_up, third)] == ["finished", "cancelled", "finished"]
    assert encoding.threads == ["engine"] * 2  # one after another, between its steps


def test_a_change_whose_picture_was_not_encoded_yet_is_taken_up_after_a_restart(own_server, tmp_path, encoding):
    encoding.free.set()
    server = own_server(tmp_path / "data")
    before = drawn(server)
    encoding.free.clear(), encoding.threads.clear()
    order = {"caption": AFTER, "num_inference_steps": 3, "seed": 7, "edit": {"job": before["id"]}}
    id = server.http.post("/v1/jobs", json=order).json()["id"]
    while not encoding.threads:
        time.sleep(0.01)
    running = server.app.state.jobs
    server.server.should_exit = True
    while not (running.closed and all(request.cancelled for request in running.table.requests)):
        time.sleep(0.01)
    encoding.free.set()
    server.close()
    again = own_server(tmp_path / "data")

    assert again.wait(id)["status"] == "finished" and encoding.threads == ["engine"] * 2
    old, new = pixels_of(again, before), pixels_of(again, {"id": id})
    assert (old[48:] == new[48:]).all() and (old != new).any()


@pytest.mark.long
def test_a_change_that_was_unfinished_is_taken_up_after_a_restart(own_server, tmp_path):
    server = own_server(tmp_path / "data")
    before = drawn(server)
    order = {"caption": AFTER, "num_inference_steps": 60, "preview_every": 0, "seed": 7, "edit": {"job": before["id"]}}
    answer = server.http.post("/v1/jobs", json=order)
    assert answer.status_code == 202, answer.text
    id = answer.json()["id"]
    server.wait(id, until=("running",))
    server.close()
    again = own_server(tmp_path / "data")

    assert again.http.get(f"/v1/jobs/{id}").json()["status"] in ("queued", "running")
    assert again.wait(id)["status"] == "finished"
    old, new = pixels_of(again, before), pixels_of(again, {"id": id})
    assert (old[48:] == new[48:]).all() and (old != new).any()

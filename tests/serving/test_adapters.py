"""Adapters by request: those of one set share a pass, others take turns, and nobody's picture is another's."""

import io
import json
import threading

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ideoflow import sketch
from ideoflow.ops.exclusive import exclusive
from tests.serving.conftest import HEART, serve

ORDER = {"size": "48x32", "num_inference_steps": 3, "seed": 5}
SETS = [{}, {"ink": 1.0}, {"ink": 0.5}, {"wash": -0.7}, {"ink": 0.3, "wash": 0.6}]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRA files of random matrices."""
    folder, model = tmp_path_factory.mktemp("loras"), sketch.load().transformer
    for seed, name in enumerate(("ink", "wash")):
        generator, tensors = torch.Generator().manual_seed(seed), {}
        for layer in ("layers.0.attention.to_q", "layers.1.feed_forward.w1", "llm_cond_proj"):
            rows, columns = model.get_submodule(layer).weight.shape
            down = torch.randn(4, columns, generator=generator) / columns**0.5
            tensors[f"transformer.{layer}.lora_A.weight"] = down
            tensors[f"transformer.{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 2
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in ("ink", "wash")}


@pytest.fixture(scope="module")
def server(files, tmp_path_factory):
    running = serve(tmp_path_factory.mktemp("server"), loras=files)
    yield running
    running.close()


def pixels(running, job):
    answer = running.http.get(running.wait(job["id"])["pictures"][0]["url"])
    return torch.tensor(list(Image.open(io.BytesIO(answer.content)).convert("RGB").tobytes()), dtype=torch.float32)


def test_each_request_has_its_own_adapters_whatever_is_drawn_beside_it(server, files):
    together = [server.job(**ORDER, adapters=chosen) for chosen in SETS * 2]
    drawn = [pixels(server, job) for job in together]
    pipe = sketch.load()
    for name, file in files.items():
        pipe.load_lora_weights(file, adapter_name=name)
    for index, chosen in enumerate(SETS):
        if chosen:
            pipe.set_adapters(list(chosen), list(chosen.values()))
        else:
            pipe.disable_lora()
        alone = pipe(
            json.loads(HEART), size=(48, 32), preset="V4_DEFAULT_20", num_inference_steps=3,
            guidance_scale=sketch.GUIDANCE, generator=torch.Generator().manual_seed(5),
        ).images[0]  # fmt: skip
        pipe.enable_lora()
        wanted = torch.tensor(list(alone.tobytes()), dtype=torch.float32)
        for place in (index, index + len(SETS)):
            assert (drawn[place] - wanted).abs().max() <= 1, chosen
    assert all((drawn[0] - other).abs().max() > 5 for other in drawn[1 : len(SETS)])


def test_names_that_are_not_there_are_told_those_that_are(server):
    answer = server.http.post("/v1/jobs", json={"caption": HEART, **ORDER, "adapters": {"inc": 1}})
    assert answer.status_code == 400 and "ink, wash" in answer.json()["error"]["message"]


def test_a_job_is_accepted_while_a_pass_is_under_way(server):
    pipe = server.app.state.jobs._replica.pipe
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with exclusive(pipe.transformer, pipe.unconditional_transformer):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(60)
    try:
        answer = server.http.post("/v1/jobs", json={"caption": HEART, **ORDER, "adapters": {"ink": 1}}, timeout=20)
    finally:
        leave.set()
        thread.join()
    assert answer.status_code == 202 and server.wait(answer.json()["id"])["status"] == "finished"

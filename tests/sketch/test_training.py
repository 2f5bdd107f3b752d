"""The sketch model's training: the export computes what was trained, and a stopped run goes on as if it had not."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file

from ideoflow.sketch import train_autoencoder, train_text, train_transformers
from ideoflow.sketch.export import export
from ideoflow.sketch.text import TRAINED, Encoder, Probe, Reader, Truth, build_tokenizer, features, line
from ideoflow.sketch.world import sample
from ideoflow.text_encoder import encode_captions


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(captions=400)


def test_every_caption_survives_the_tokenizer(tokenizer):
    captions = [line(sample(i, split="held_out").caption) for i in range(60)]
    for text in [*captions, "plain text, Ünïcode 漢字 \n and 123 #A1B2C3"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_numbers_of_the_grid_and_bytes_of_colours_are_one_token_each(tokenizer):
    assert tokenizer.tokenize("[125,1000,0,975]")[1:-1] == ["125,", "1000,", "0,", "975"]
    assert len(tokenizer.tokenize("#A1B2C3")) == 3


def test_the_encoder_sees_what_the_pipeline_would_and_finds_each_closing_token(tokenizer):
    encode = Encoder(tokenizer)
    for index in range(60):
        drawn = sample(index)
        ids, places = encode(drawn.caption)
        message = [{"role": "user", "content": [{"type": "text", "text": line(drawn.caption)}]}]
        assert ids.tolist() == tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        tokens = [tokenizer.decode(ids[place]) for place in places]
        assert tokens[0] == '","elements":[' and set(tokens[1:]) <= {'"}', '"]}'}
        assert len(tokens) == 1 + len(drawn.elements)


def test_the_exported_text_encoder_gives_the_features_that_were_trained(tokenizer):
    torch.manual_seed(1)
    reader = Reader(len(tokenizer)).eval()
    captions = [line(sample(i).caption) for i in range(5)]
    ids = [Encoder(tokenizer)(sample(i).caption)[0] for i in range(5)]
    with torch.no_grad():
        trained = features(reader(ids), [len(i) for i in ids])
    exported = torch.cat(encode_captions(reader.export(), tokenizer, captions))
    assert trained.shape == exported.shape
    assert (trained - exported).abs().max() <= 2e-5 * exported.abs().max()


def test_untrained_layers_are_exact_identities(tokenizer):
    layers = Reader(len(tokenizer)).export().language_model.layers
    hidden = torch.randn(1, 7, 128)
    rotary = (torch.ones(1, 7, 32), torch.zeros(1, 7, 32))
    for index, layer in enumerate(layers):
        out = layer(hidden, position_embeddings=rotary, attention_mask=None)
        assert torch.equal(out, hidden) == (index not in TRAINED)


def test_the_read_outs_learn_from_the_features(tokenizer):
    torch.manual_seed(2)
    reader, probe, encode = Reader(len(tokenizer)), Probe(128), Encoder(tokenizer)
    pictures = [sample(i) for i in range(16)]
    ids, places = zip(*(encode(p.caption) for p in pictures), strict=True)
    truths = [Truth(p) for p in pictures]
    optimizer = torch.optim.AdamW([*reader.parameters(), *probe.parameters()], lr=3e-3)
    history = []
    for _ in range(15):
        loss, box_error = probe(reader(list(ids))[-1], list(places), truths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss.item(), box_error.item()))
    assert history[-1][0] < 0.6 * history[0][0] and history[-1][1] < 0.7 * history[0][1]


def test_batches_hold_every_picture_once_within_their_tokens():
    drawn = [random.Random(i).randint(40, 200) for i in range(300)]
    pictures = [
        train_transformers.Picture(torch.zeros(n // 2), None, None, torch.zeros(n - n // 2, 1), None, None, (1, 1), 1)  # type: ignore[arg-type]
        for n in drawn
    ]
    packed = list(train_transformers.batches(pictures, 1000, random.Random(0)))
    assert sorted(id(p) for batch in packed for p in batch) == sorted(map(id, pictures))
    assert all(sum(p.tokens for p in batch) <= 1000 for batch in packed)
    assert sum(len(drawn) and p.tokens for p in packed[0]) > 700
    assert max(p.tokens for p in packed[0]) - min(p.tokens for p in packed[0]) < 40


class Killed(BaseException):
    """Not an error that anything could catch: the process is gone."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders after four steps of each stage: one run in one go, the other killed after two steps and begun again."""
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    stages = {
        train_autoencoder: {"batch": 4},
        train_text: {"batch": 4},
        train_transformers: {"tokens": 600, "shards": 1},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_transformers, "SHARD", 64)
        patch.setattr(train_transformers, "hasten", lambda _: None)  # compiling takes longer than these few steps
        for stage, options in stages.items():
            patch.setattr(stage, "SAVE_EVERY", 2)
            stage.train(whole, 10, total_steps=4, **options)

            def save_and_die(*args, save=stage.save_state):
                save(*args)
                raise Killed

            with pytest.MonkeyPatch.context() as death:
                death.setattr(stage, "save_state", save_and_die)
                with pytest.raises(Killed):
                    stage.train(killed, 10, total_steps=4, **options)
            stage.train(killed, 10, total_steps=4, **options)
    return whole, killed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "text", "sketch"])
def test_a_stopped_run_goes_on_bit_for_bit(trained, stage):
    whole, killed = (load_file(folder / f"{stage}.safetensors") for folder in trained)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.slow
def test_export_writes_a_folder_that_draws(trained, tmp_path):
    from ideoflow import Ideogram4Pipeline

    export(trained[0], tmp_path / "model")
    assert not (tmp_path / "model.new").exists()
    pipeline = Ideogram4Pipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        sample(0).caption, size=(96, 112), num_inference_steps=2, guidance_scale=2.0, guidance_schedule=None
    ).images
    assert images[0].size == (96, 112)
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 25e6

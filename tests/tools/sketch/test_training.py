"""The sketch model's training: the export computes what was trained, and a stopped run goes on as if it had not."""

from __future__ import annotations

import random

import pytest
import torch
from safetensors.torch import load_file

from ideoflow.sketch.scene import Background, Element, Sample
from ideoflow.sketch.wording import line
from ideoflow.sketch.world import sample
from ideoflow.text_encoder import encode_captions
from tools.sketch import train_autoencoder, train_text, train_transformers
from tools.sketch.export import export
from tools.sketch.readouts import ITEMS, CaptionProbe, LayoutProbe, Truth
from tools.sketch.text import TRAINED, Encoder, Reader, build_tokenizer, features


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(captions=400)


def test_every_caption_survives_the_tokenizer(tokenizer):
    captions = [line(sample(i, split="held_out").caption) for i in range(60)]
    for text in [*captions, "plain text, Ünïcode 漢字 \n and 123 #A1B2C3"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_numbers_of_the_grid_letters_and_bytes_of_colours_are_one_token_each(tokenizer):
    assert tokenizer.tokenize("[125,1000,0,975]")[1:4] == ["125,", "1000,", "0,"]
    assert tokenizer.tokenize("A25BC") == ["A", "2", "5", "B", "C"]
    assert len(tokenizer.tokenize("#A1B2C3")) == 3


def test_the_encoder_sees_what_the_pipeline_would_and_finds_each_closing_token(tokenizer):
    encode = Encoder(tokenizer)
    for index in range(60):
        drawn = sample(index)
        ids, places = encode(drawn.caption)
        message = [{"role": "user", "content": [{"type": "text", "text": line(drawn.caption)}]}]
        assert ids.tolist() == tokenizer.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
        assert tokenizer.decode(ids[places.background]) == '","elements":['
        assert {tokenizer.decode(ids[i]) for i in places.closings} <= {'"}', '"]}'}
        assert len(places.closings) == len(drawn.elements)
        assert "".join(tokenizer.decode(ids[i]) for i in places.letters) == "".join(
            e.word or "" for e in drawn.elements
        )


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
    reader, probe, encode = Reader(len(tokenizer)), CaptionProbe(128), Encoder(tokenizer)
    pictures = [sample(i) for i in range(16)]
    ids, places = zip(*(encode(p.caption) for p in pictures), strict=True)
    truths = [Truth(p) for p in pictures]
    optimizer = torch.optim.AdamW([*reader.parameters(), *probe.parameters()], lr=3e-3)
    history = []
    for _ in range(15):
        loss, errors = probe(reader(list(ids))[-1], list(places), truths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((loss.item(), errors["box"].item()))
    assert history[-1][0] < 0.6 * history[0][0] and history[-1][1] < 0.7 * history[0][1]


def test_image_tokens_show_what_covers_them():
    background = Background("gradient", ("white", "black"), "vertical")
    word = Element((0, 0, 500, 500), "red", word="A7", font="serif")
    square = Element((500, 375, 1000, 1000), "#102030", shape="square", outline=True)
    truth = Truth(Sample(128, 64, background, (word, square), {}))  # 4 rows of 8 tokens
    item, edges, paint = truth.shown
    names = [[ITEMS[i] for i in row] for row in item.view(4, 8)]
    assert names[1] == ["serif A", "serif A", "serif 7", "serif 7", *["nothing"] * 4]
    assert names[3] == ["nothing"] * 3 + ["square outline"] * 5
    # Token (2, 4) lies half a token below the square's top, 1.5 off its left, 1.5 above its bottom, 3.5 off its right.
    assert edges.view(4, 8, 4)[2, 4].tolist() == [0.5, 1.5, 1.5, 3.5]
    assert torch.allclose(paint.view(4, 8, 3)[2, 4] * 255, torch.tensor([16.0, 32.0, 48.0]))
    ground = truth.ground.view(4, 8, 3).mean((1, 2))
    assert torch.allclose(ground, torch.linspace(1, 0, 9)[1::2] * (250 - 33) / 255 + 33 / 255, atol=1e-3)


def test_the_layouts_read_outs_learn():
    torch.manual_seed(3)
    truths = [Truth(sample(i)) for i in range(12)]
    tokens, letters = sum(len(t.places) for t in truths), sum(len(t.letter_boxes) for t in truths)
    states = [torch.nn.Parameter(torch.randn(n, 64)) for n in (tokens, letters, tokens)]
    probe = LayoutProbe(64)
    optimizer = torch.optim.AdamW([*states, *probe.parameters()], lr=3e-2)
    history = []
    for _ in range(60):
        errors = probe(*states, truths)
        optimizer.zero_grad()
        sum(errors.values()).backward()
        optimizer.step()
        history.append({name: error.item() for name, error in errors.items()})
    assert history[0].keys() == {"place", "letter", "item", "edges", "paint", "ground"}
    assert all(history[-1][name] < 0.35 * history[0][name] for name in history[0])


def test_batches_hold_every_picture_once_within_their_tokens():
    drawn = [random.Random(i).randint(40, 200) for i in range(300)]
    pictures = [
        train_transformers.Picture(torch.zeros(n // 2), None, None, torch.zeros(n - n // 2, 1))  # type: ignore[arg-type]
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


@pytest.mark.long
@pytest.mark.parametrize("stage", ["autoencoder", "text", "sketch"])
def test_a_stopped_run_goes_on_bit_for_bit(trained, stage):
    whole, killed = (load_file(folder / f"{stage}.safetensors") for folder in trained)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.long
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

"""Text features are those of the reference pipeline, without padding and without company."""

from copy import deepcopy

import accelerate
import pytest
import torch

from ideoflow.text_encoder import TAPS, encode_captions, tokenise

CAPTIONS = ["a red circle", '{"compositional_deconstruction":{"background":"blue","elements":[]}}', "ß → 猫"]


@pytest.fixture(scope="module")
def text_encoder(peer_pipeline):
    return peer_pipeline.text_encoder


@pytest.fixture(scope="module")
def tokenizer(peer_pipeline):
    return peer_pipeline.tokenizer


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=2e-5 * theirs.abs().max().item(), rtol=0)


def test_features_are_those_of_the_reference_pipeline(peer_pipeline, text_encoder, tokenizer):
    features = encode_captions(text_encoder, tokenizer, CAPTIONS)

    with torch.no_grad():
        reference, _, _, indicator = peer_pipeline.encode_prompt(CAPTIONS, 1, 1, 128, torch.device("cpu"))
    for i, ours in enumerate(features):
        theirs = reference[i][indicator[i] == 3]
        assert ours.shape == theirs.shape and ours.dtype == torch.float32
        close(ours, theirs)


def test_a_caption_gives_what_it_gives_alone(text_encoder, tokenizer):
    together = encode_captions(text_encoder, tokenizer, CAPTIONS)

    for caption, features in zip(CAPTIONS, together, strict=True):
        assert torch.equal(encode_captions(text_encoder, tokenizer, [caption])[0], features)


def test_feature_index_is_channel_then_tap(text_encoder, tokenizer):
    taps = (2, 0, 5)
    (features,) = encode_captions(text_encoder, tokenizer, CAPTIONS[:1], taps)

    channels = features.unflatten(1, (-1, len(taps)))
    for place, tap in enumerate(taps):
        assert torch.equal(channels[..., place], encode_captions(text_encoder, tokenizer, CAPTIONS[:1], (tap,))[0])


def test_equal_captions_run_once_and_layers_after_the_last_tap_not_at_all(text_encoder, tokenizer):
    runs = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: runs.append(i))
        for i, layer in enumerate(text_encoder.language_model.layers)
    ]

    encode_captions(text_encoder, tokenizer, ["same", "same"], taps=(0, 3))

    for handle in handles:
        handle.remove()
    assert runs == [0, 1, 2, 3]


def test_the_caption_is_one_user_message_with_the_generation_prompt(tokenizer):
    (ids,) = tokenise(tokenizer, ["hello"])

    assert tokenizer.decode(ids) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.cpu_offload_with_hook])
def test_offloaded_encoders_give_the_same_features(peer_pipeline, tokenizer, offload, text_encoder):
    expected = encode_captions(text_encoder, tokenizer, CAPTIONS[:1])[0]
    offloaded = deepcopy(text_encoder)
    offload(offloaded, torch.device("cpu"))

    assert torch.equal(encode_captions(offloaded, tokenizer, CAPTIONS[:1])[0], expected)


def test_a_model_offload_hook_is_fired_once_before_the_layers_run(text_encoder, tokenizer):
    encoder = deepcopy(text_encoder)
    _, previous_hook = accelerate.cpu_offload_with_hook(torch.nn.Linear(1, 1), torch.device("cpu"))
    accelerate.cpu_offload_with_hook(encoder, torch.device("cpu"), previous_hook)
    fired = []
    plain = encoder._hf_hook.pre_forward
    encoder._hf_hook.pre_forward = lambda *a, **k: (fired.append(1), plain(*a, **k))[1]

    encode_captions(encoder, tokenizer, CAPTIONS)

    assert fired == [1]


def test_the_published_taps_are_the_default(text_encoder, tokenizer):
    assert TAPS == (0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 35)
    assert encode_captions(text_encoder, tokenizer, ["x"])[0].shape[1] == 32 * len(TAPS)


def test_a_caption_that_is_too_long_is_refused(tokenizer):
    length = len(tokenise(tokenizer, ["a" * 50])[0])

    assert len(tokenise(tokenizer, ["a" * 50], max_sequence_length=length)) == 1
    with pytest.raises(ValueError, match=rf"{length} tokens.*`max_sequence_length` \({length - 1}\)"):
        tokenise(tokenizer, ["a" * 50], max_sequence_length=length - 1)


@pytest.mark.parametrize("taps", [(0, 36), (-1,), ()])
def test_taps_out_of_range_are_refused(text_encoder, tokenizer, taps):
    with pytest.raises(ValueError, match="decoder layers 0 to 35"):
        encode_captions(text_encoder, tokenizer, ["x"], taps)


def test_a_tokenizer_without_a_chat_template_is_refused(text_encoder, tokenizer):
    plain = deepcopy(tokenizer)
    plain.chat_template = None
    with pytest.raises(ValueError, match="`tokenizer` has no chat template"):
        encode_captions(text_encoder, plain, ["x"])


def test_a_text_encoder_without_a_language_model_is_refused(tokenizer):
    with pytest.raises(TypeError, match="`text_encoder` is a Linear"):
        encode_captions(torch.nn.Linear(1, 1), tokenizer, ["x"])

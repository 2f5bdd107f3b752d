"""Bytes of components: of configurations, against published figures and against models that are there."""

import math

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from transformers import AutoModel, Qwen3VLTextConfig

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.fitting import Model
from ideoflow.fitting.components import FULL_TEXT
from ideoflow.fitting.precisions import quantized_bytes
from ideoflow.ops import quantize_

from .configs import AUTOENCODER, TEXT, TRANSFORMER


def weight_of(module: torch.nn.Module) -> int:
    tensors = {id(x): x for x in [*module.parameters(), *module.buffers()]}
    return sum(x.nbytes for x in tensors.values() if x.is_floating_point())


def test_the_full_configuration_has_the_published_sizes(full):
    conditional, unconditional = full.components["transformer"], full.components["unconditional_transformer"]
    assert conditional.numbers == pytest.approx(9.28e9, rel=1e-3)
    assert conditional.sizes().block / 2 == pytest.approx(264.3e6, rel=1e-3)  # parameters of a block, in bfloat16
    text_projection = 53248 * 4608 + 4608 + 53248
    assert conditional.numbers - unconditional.numbers == text_projection
    assert conditional.bytes() - unconditional.bytes() == pytest.approx(0.49e9, rel=2e-3)


def test_the_text_encoder_of_the_full_configuration_is_counted_by_hand(full):
    hidden, wide, vocabulary = FULL_TEXT["hidden_size"], FULL_TEXT["intermediate_size"], FULL_TEXT["vocab_size"]
    attention = hidden * 128 * (32 + 8 + 8 + 32) + 2 * 128
    layer = attention + 3 * hidden * wide + 2 * hidden
    parameters = vocabulary * hidden + 36 * layer + hidden
    assert full.components["text_encoder"].numbers - parameters in range(1, 200)  # rotary frequencies
    assert full.components["text_encoder"].bytes("float32") == 4 * full.components["text_encoder"].numbers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_configuration_weighs_what_its_models_weigh(dtype):
    model = Model.of_configs(TEXT, TRANSFORMER, TRANSFORMER, AUTOENCODER, dtype)
    kind = getattr(torch, dtype)
    made = {
        "text_encoder": AutoModel.from_config(Qwen3VLTextConfig(**TEXT)),
        "transformer": Ideogram4Transformer2DModel(**TRANSFORMER),
        "vae": AutoencoderKLFlux2(**AUTOENCODER),
    }
    for name, module in made.items():
        # Rotary frequencies are buffers that stay in float32 or follow; a few bytes either way.
        assert model.components[name].bytes() == pytest.approx(weight_of(module.to(kind)), abs=64)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_quantized_blocks_weigh_what_the_count_says(small, kind, dtype):
    module = Ideogram4Transformer2DModel(**TRANSFORMER).to(getattr(torch, dtype))
    quantize_(module, kind)
    assert small.components["transformer"].bytes(kind, dtype) == weight_of(module) + sum(
        x.nbytes for x in module.parameters() if not x.is_floating_point()
    )


def test_the_bytes_of_a_quantized_weight_follow_the_formulas():
    weights, rows = 4608 * 12288, 12288
    assert quantized_bytes("int8", weights, rows) == weights + 4 * rows
    assert quantized_bytes("nf4 single", weights, rows) == weights // 2 + 4 * weights // 64 + 64
    nested = weights // 2 + weights // 64 + 4 * math.ceil(weights / 64 / 256) + 64 + 1024 + 4
    assert quantized_bytes("nf4", weights, rows) == nested
    with pytest.raises(ValueError, match="int4"):
        quantized_bytes("int4", weights, rows)


def test_nf4_weighs_what_bitsandbytes_holds(small):
    pytest.importorskip("bitsandbytes")
    from ideoflow.fitting.apply import to_nf4
    from ideoflow.fitting.components import _stored

    module = Ideogram4Transformer2DModel(**TRANSFORMER).bfloat16()
    to_nf4(module)
    module.to("cpu")  # rounds
    held = sum(_stored(module).values())
    assert small.components["transformer"].bytes("nf4", "bfloat16") == pytest.approx(held, rel=1e-3)


def test_a_folder_and_the_pipeline_loaded_from_it_weigh_the_same():
    folder, loaded = Model.of_folder(sketch.path(), "float32"), Model.of_pipeline(sketch.load())
    for name in loaded.components:
        # The loaded batch norm counts its batches in an int64, which the configuration counts as one number.
        assert folder.components[name].bytes() == pytest.approx(loaded.components[name].bytes(), abs=8)
    assert folder.taps == loaded.taps and loaded.kind is None


def test_a_quantized_pipeline_weighs_what_it_is():
    pipe = sketch.load()
    before = Model.of_pipeline(pipe)
    pipe.quantize("int8")
    after = Model.of_pipeline(pipe)
    assert after.kind == "int8"
    assert after.components["transformer"].bytes() == before.components["transformer"].bytes("int8")
    assert after.components["transformer"].dtype == "float32"


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        Model.of_folder(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        Model.of_folder(tmp_path)

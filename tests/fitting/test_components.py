"""Bytes of components: of configurations, against published figures and against models that are there."""

import math

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from transformers import AutoModel, Qwen3VLTextConfig

from ideoflow import Ideogram4Transformer2DModel, sketch
from ideoflow.fitting import Model
from ideoflow.fitting.components import FULL_TEXT
from ideoflow.fitting.loaded import weigh
from ideoflow.fitting.precisions import quantized_bytes
from ideoflow.fitting.shapes import AUTOENCODER_DEFAULTS, TEXT_DEFAULTS, autoencoder_shapes, text_encoder_shapes
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


AUTOENCODERS = [
    {},
    AUTOENCODER,
    dict(AUTOENCODER, layers_per_block=1, mid_block_add_attention=False, latent_channels=8),
    dict(decoder_block_out_channels=(32, 64, 64, 96), block_out_channels=(32, 64, 96, 96), use_quant_conv=False),
    dict(AUTOENCODER, in_channels=4, out_channels=5, use_post_quant_conv=False, patch_size=(1, 2)),
]
TEXTS = [
    FULL_TEXT,
    {},
    TEXT,
    dict(TEXT, attention_bias=True, num_key_value_heads=None, head_dim=24, vocab_size=7, num_hidden_layers=1),
]


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in [*module.named_parameters(), *module.named_buffers()]}


@pytest.mark.parametrize("config", AUTOENCODERS, ids=str)
def test_the_autoencoders_parameters_are_those_of_diffusers(config):
    with torch.device("meta"):
        built = AutoencoderKLFlux2(**config)
    assert autoencoder_shapes({**AUTOENCODER_DEFAULTS, **config}) == shapes_of(built)
    own = dict(built.config)
    assert {name: own[name] for name in AUTOENCODER_DEFAULTS} == {**AUTOENCODER_DEFAULTS, **config}


@pytest.mark.parametrize("config", TEXTS, ids=str)
def test_the_text_encoders_parameters_are_those_of_transformers(config):
    with torch.device("meta"):
        built = AutoModel.from_config(Qwen3VLTextConfig(**config))
    whole = {name: getattr(built.config, name) for name in TEXT_DEFAULTS}
    assert text_encoder_shapes(whole) == shapes_of(built)
    model = Model.of_configs(config, TRANSFORMER, None, AUTOENCODER)
    assert {name: model.text[name] for name in TEXT_DEFAULTS} == whole
    assert model.components["text_encoder"].layers == weigh(built)[0]


@pytest.mark.parametrize("config", [{}, TRANSFORMER], ids=str)
def test_the_transformers_layers_are_those_of_the_class(config):
    with torch.device("meta"):
        built = Ideogram4Transformer2DModel(**config)
    model = Model.of_configs(TEXT, config, config, AUTOENCODER)
    assert model.components["transformer"].layers == weigh(built)[0]
    unused = ("llm_cond_norm", "llm_cond_proj")
    kept = tuple(layer for layer in weigh(built)[0] if layer.name not in unused)
    assert model.components["unconditional_transformer"].layers == kept


@pytest.mark.parametrize(
    ("part", "config", "says"),
    [
        ("text", {"hidden_size": "wide"}, "the text encoder has 'wide' as `hidden_size`"),
        ("text", {"num_hidden_layers": 0}, "`num_hidden_layers`"),
        ("transformer", {"num_layers": -1}, "the transformer has -1 as `num_layers`"),
        ("autoencoder", {"latent_channels": None}, "the autoencoder has None as `latent_channels`"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(part, config, says):
    configs = dict(text=TEXT, transformer=TRANSFORMER, unconditional=None, autoencoder=AUTOENCODER)
    with pytest.raises(ValueError, match=says):
        Model.of_configs(**{**configs, part: {**configs[part], **config}})


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

    module = Ideogram4Transformer2DModel(**TRANSFORMER).bfloat16()
    to_nf4(module)
    module.to("cpu")  # rounds
    held = sum(weigh(module)[1].values())
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

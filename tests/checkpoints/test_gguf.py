"""GGUF files: read without loss, kept in their blocks, and refused where they are damaged."""

from __future__ import annotations

import copy
import json
import struct

import gguf
import numpy as np
import peft
import pytest
import torch
from diffusers import GGUFQuantizationConfig
from gguf import GGMLQuantizationType
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ideoflow import Ideogram4Pipeline, sketch
from ideoflow.checkpoints import CheckpointError, open_checkpoint
from ideoflow.checkpoints.gguf import PLAIN, GgufSource
from ideoflow.checkpoints.storage_kinds import BLOCKS, Gguf
from ideoflow.ops.gguf_blocks import QUANTIZED
from ideoflow.ops.gguf_linear import GgufLinear, expand

from .forms import load_transformer, original_weights, random_model, write, write_config
from .forms_low_bit import expanded_gguf, random_blocks, write_gguf

WIDE = dict(attention_head_dim=64, intermediate_size=256)  # 256 channels: whole blocks of any type in each row


@pytest.fixture(scope="module")
def model():
    return random_model(4, **WIDE)


def assert_same(loaded, weights):
    found = loaded.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "Q5_1", "F16", "BF16"])
@pytest.mark.parametrize("naming", ["diffusers", "original"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_either_naming_loads_exactly_what_the_file_holds(model, tmp_path, kind, naming, prefix):
    weights = model.state_dict()
    stored = weights if naming == "diffusers" else original_weights(weights)
    plain = kind if kind in ("F16", "BF16") else "F32"
    quantized = "Q8_0" if plain == kind else kind
    file = write_gguf(
        tmp_path / "any name", stored, quantized, prefix=prefix, plain=plain,
        only=(lambda name: False) if plain == kind else (lambda name: name.startswith("layers.")),
    )  # fmt: skip
    write_config(tmp_path, dict(model.config))

    checkpoint = open_checkpoint(file)

    assert checkpoint.form == (naming if plain == kind else f"{naming}, gguf")
    wanted = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind)
    exact = (
        {name: tensor.to(wanted).float() for name, tensor in weights.items()}
        if wanted
        else expanded_gguf(weights, kind)
    )
    assert_same(load_transformer(checkpoint, dequantize=True), exact)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in exact.items()}
    assert_same(load_transformer(checkpoint, dtype=torch.bfloat16, dequantize=True), half)


def test_types_are_those_of_the_gguf_package():
    for name, kind in (*QUANTIZED.items(), *((name, kind) for name, (kind, _) in PLAIN.items())):
        number = GGMLQuantizationType[name]
        assert (int(number), gguf.GGML_QUANT_SIZES[number]) == (kind.number, (kind.values, kind.size))


@pytest.mark.parametrize("kind", list(QUANTIZED))
def test_every_type_expands_as_the_gguf_package_does(kind):
    """Random blocks: of most types, Q4_K among them, the gguf package has no encoder."""
    data = random_blocks(kind, 48, 768)
    wanted = torch.from_numpy(gguf.quants.dequantize(data, GGMLQuantizationType[kind]))
    assert wanted.shape == (48, 768) and torch.isfinite(wanted).all() and wanted.std() > 0

    assert torch.equal(expand(torch.from_numpy(data), kind, (48, 768), torch.float32), wanted)
    assert torch.equal(expand(torch.from_numpy(data), kind, (48, 768), torch.float16), wanted.half())


@given(
    kind=st.sampled_from(list(QUANTIZED)),
    rows=st.integers(1, 9),
    width=st.integers(1, 12),
    cuts=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
@settings(max_examples=60, deadline=None)
def test_rows_are_taken_without_loss_wherever_they_begin(kind, rows, width, cuts):
    """Also of weights in another shape than that in the file, whose rows may begin inside a block."""
    storage, sizes = Gguf(), QUANTIZED[kind]
    width *= sizes.values // 4
    rows *= 4
    start, stop = sorted(min(cut * 4 // 3, rows) for cut in cuts)
    data = torch.from_numpy(random_blocks(kind, 1, rows * width)).flatten()
    parts = {"weight": data, BLOCKS: torch.tensor([sizes.number, rows, width])}
    whole = storage.expand(parts, torch.float32)
    if start < stop:
        assert torch.equal(storage.expand(storage.rows(parts, start, stop), torch.float32), whole[start:stop])


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_keep_their_blocks_and_compute_what_expanded_ones_do(model, inputs_of, tmp_path, kind, dtype):
    file = write_gguf(tmp_path / "x.gguf", original_weights(model.state_dict()), kind)
    checkpoint = open_checkpoint(file, config=dict(model.config))

    kept = load_transformer(checkpoint, dtype=dtype)

    layers = [layer for layer in kept.modules() if isinstance(layer, GgufLinear)]
    assert len(layers) == 2 * (8 if kind == "Q8_0" else 7) and all(layer.kind == kind for layer in layers)
    assert kept.layers[1].attention.to_v.weight.dtype == torch.uint8
    inputs = inputs_of(kept, dtype)
    expanded = load_transformer(checkpoint, dtype=dtype, dequantize=True)
    with torch.no_grad():
        assert torch.equal(kept(**inputs).sample, expanded(**inputs).sample)
        moved = copy.deepcopy(kept).to("meta").to_empty(device="cpu")
        moved.load_state_dict(kept.state_dict())
        assert torch.equal(moved(**inputs).sample, expanded(**inputs).sample)
        if dtype == torch.float32:  # the bytes stay bytes
            half = load_transformer(checkpoint, dtype=torch.bfloat16, dequantize=True)
            kept.to(torch.bfloat16)
            assert kept.layers[0].feed_forward.w1.weight.dtype == torch.uint8
            inputs = inputs_of(kept, torch.bfloat16)
            assert torch.equal(kept(**inputs).sample, half(**inputs).sample)


def test_an_adapter_trains_on_kept_blocks_as_on_expanded_ones(model, inputs_of, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", model.state_dict(), "Q8_0")
    checkpoint = open_checkpoint(file, config=dict(model.config))
    results = []
    for dequantize in (False, True):
        transformer = load_transformer(checkpoint, dequantize=dequantize)
        torch.manual_seed(0)
        transformer.add_adapter(
            peft.LoraConfig(r=4, target_modules=["to_q", "to_v", "w2"], init_lora_weights=False, use_dora=True)
        )
        inputs = inputs_of(transformer, torch.float32)
        output = transformer(**inputs).sample
        output.square().mean().backward()
        gradients = {name: p.grad for name, p in transformer.named_parameters() if p.grad is not None}
        results.append((output.detach(), gradients))
    (kept, kept_gradients), (plain, gradients) = results
    torch.testing.assert_close(kept, plain, rtol=1e-5, atol=1e-6)
    gradients = {name: value for name, value in gradients.items() if "lora" in name}
    assert gradients and kept_gradients.keys() >= gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(kept_gradients[name], value, rtol=1e-4, atol=1e-6)


def test_a_model_that_keeps_blocks_is_not_saved_but_can_be_expanded(model, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", model.state_dict(), "Q8_0")
    kept = load_transformer(open_checkpoint(file, config=dict(model.config)))

    with pytest.raises(CheckpointError, match="dequantize=True"):
        kept.save_pretrained(tmp_path / "saved")

    kept.dequantize()
    kept.save_pretrained(tmp_path / "saved")
    assert_same(load_transformer(open_checkpoint(tmp_path / "saved")), expanded_gguf(model.state_dict(), "Q8_0"))


def test_projections_in_blocks_are_not_fused(model, inputs_of, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", model.state_dict(), "Q8_0")
    kept = load_transformer(open_checkpoint(file, config=dict(model.config)))
    inputs = inputs_of(kept, torch.float32)
    with torch.no_grad():
        before = kept(**inputs).sample
        kept.fuse_qkv_projections()
        assert torch.equal(kept(**inputs).sample, before)


def test_the_header_may_hold_the_configuration_and_shapes_of_tensors_that_were_stored_in_others(model, tmp_path):
    weights = dict(model.state_dict())
    name = "embed_image_indicator.weight"
    shape, weights[name] = tuple(weights[name].shape), weights[name].reshape(-1)
    config = {"ideoflow.config": json.dumps(dict(model.config))}
    file = write_gguf(tmp_path / "x.gguf", weights, "Q8_0", metadata=config, original_shapes={name: shape})
    assert GgufSource(file).infos[name].shape == shape
    assert_same(load_transformer(open_checkpoint(file), dequantize=True), expanded_gguf(model.state_dict(), "Q8_0"))


def test_a_quantization_config_says_what_to_compute_in(model, tmp_path):
    file = write_gguf(tmp_path / "x.gguf", model.state_dict(), "Q8_0")
    checkpoint = open_checkpoint(file, config=dict(model.config))
    kept = load_transformer(checkpoint, quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16))
    assert kept.dtype == kept.layers[0].attention.to_k.compute_dtype == torch.bfloat16
    assert isinstance(kept.layers[0].attention.to_k, GgufLinear)

    write(tmp_path / "x.safetensors", model.state_dict())
    plain = open_checkpoint(tmp_path / "x.safetensors", config=dict(model.config))
    with pytest.raises(CheckpointError, match=r"is for GGUF files, and .*x\.safetensors is diffusers"):
        load_transformer(plain, quantization_config=GGUFQuantizationConfig())


def test_a_pipeline_from_a_gguf_file_draws_nearly_the_same(tmp_path):
    """Of tensors in another shape too, as ComfyUI's tools write those whose rows are no whole blocks."""
    weights = {
        branch: load_file(next((sketch.path() / branch).glob("*.safetensors")))
        for branch in ("transformer", "unconditional_transformer")
    }
    files = [
        write_gguf(tmp_path / f"{branch}.gguf", original_weights(one), "Q4_K", reshape=True)
        for branch, one in weights.items()
    ]
    quantized = load_transformer(open_checkpoint(files[0], config=sketch.path() / "transformer"))
    layers = [layer for layer in quantized.modules() if isinstance(layer, GgufLinear)]
    assert len(layers) == 7 * 8 and {layer.kind for layer in layers} == {"Q4_K"}

    pipes = [
        Ideogram4Pipeline.from_single_file(
            files[0], unconditional_transformer=files[1], config=sketch.path(), dequantize=dequantize
        )
        for dequantize in (False, True)
    ]
    call = dict(height=96, width=96, num_inference_steps=2, guidance_scale=2.0, guidance_schedule=None)
    pictures = []
    for pipe in (*pipes, sketch.load()):
        pipe.set_progress_bar_config(disable=True)
        image = pipe("a red circle", generator=torch.Generator().manual_seed(5), **call).images[0]
        pictures.append(np.asarray(image).astype(int))
    kept, expanded, exact = pictures
    assert np.abs(kept - expanded).max() <= 1
    assert 0 < np.abs(kept - exact).mean() < 20


def header(tensors=1, entries=0, body=b"", version=3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + body


@pytest.mark.parametrize("kind", [kind for kind, sizes in QUANTIZED.items() if sizes.scales])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_scales_that_are_not_finite_are_refused_by_name(kind, number):
    sizes = QUANTIZED[kind]
    for offset in sizes.scales:
        data = random_blocks(kind, 4, 256)
        parts = {"weight": torch.from_numpy(data).flatten(), BLOCKS: torch.tensor([sizes.number, 4, 256])}
        Gguf().check(parts, "it")
        last = parts["weight"].view(-1, sizes.size)[-1]
        last[offset : offset + 2] = torch.from_numpy(np.array([number], np.float16).view(np.uint8))
        assert not torch.isfinite(Gguf().expand(parts, torch.float32)).all()
        with pytest.raises(CheckpointError, match="it holds scales that are not finite"):
            Gguf().check(parts, "it")


def test_a_file_with_such_scales_is_refused_unless_it_is_not_looked_through(model, tmp_path):
    name = "layers.1.feed_forward.w2.weight"
    file = write_gguf(tmp_path / "x.gguf", model.state_dict())
    checkpoint = open_checkpoint(file, config=dict(model.config))
    blocks = checkpoint.source.read(name)
    data = bytearray(file.read_bytes())
    place = data.index(bytes(blocks[:68].tolist()))
    data[place + 34 : place + 36] = np.array([np.inf], np.float16).tobytes()
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"x\.gguf: '{name}' holds scales"):
        load_transformer(checkpoint)
    load_transformer(checkpoint, check=False)


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor(name=b"a", dims=(32,), kind=0, offset=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


ZEROS = b"\0" * 4096
BAD = {
    "empty": (b"GGUF", "wants 4 bytes"),
    "version 1": (header(version=1), "GGUF of version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 0), "big-endian"),
    "tensors without end": (header(2**64 - 1, body=ZEROS), "promises 18446744073709551615 tensors"),
    "entries without end": (header(1, 2**63, ZEROS), "promises 9223372036854775808 entries"),
    "a name without end": (header(1, 0, struct.pack("<Q", 2**63) + ZEROS), "a name in its header has"),
    "a text without end": (header(0, 1, string(b"k") + struct.pack("<IQ", 8, 2**62) + ZEROS), "its header has"),
    "an array without end": (header(0, 1, string(b"k") + struct.pack("<IIQ", 9, 4, 2**62) + ZEROS), "wants"),
    "texts without end": (header(0, 1, string(b"k") + struct.pack("<IIQ", 9, 8, 2**62) + ZEROS), "promises"),
    "arrays of arrays": (header(0, 1, string(b"k") + struct.pack("<IIQ", 9, 9, 1) + ZEROS), "an array of type 9"),
    "an unknown entry": (header(0, 1, string(b"k") + struct.pack("<I", 77) + ZEROS), "entry of type 77"),
    "no text": (header(0, 1, string(b"\xff\xfe") + struct.pack("<I", 0) + ZEROS), "codec can't decode"),
    "alignment": (
        header(0, 1, string(b"general.alignment") + struct.pack("<II", 4, 3) + ZEROS),
        "alignment is 3",
    ),
    "too many dimensions": (header(1, 0, tensor(dims=(1,) * 5) + ZEROS), "has 5 dimensions"),
    "dimensions that overflow": (header(1, 0, tensor(dims=(2**63, 2**63)) + ZEROS), "should end at byte"),
    "dimensions whose product wraps to nothing": (header(1, 0, tensor(dims=(2**32, 2**32)) + ZEROS), "should end at"),
    "a dimension of nothing": (header(1, 0, tensor(dims=(0, 4)) + ZEROS), "no whole number of F32 blocks"),
    "half a block": (header(1, 0, tensor(dims=(33, 2), kind=8) + ZEROS), "no whole number of Q8_0 blocks"),
    "an unknown type": (header(1, 0, tensor(kind=99) + ZEROS), "is of GGUF type 99"),
    "a type of the past": (header(1, 0, tensor(kind=4) + ZEROS), "is of GGUF type 4"),
    "an offset beyond the file": (header(1, 0, tensor(offset=2**64 - 64) + ZEROS), "should end at byte"),
    "the same name twice": (header(2, 0, tensor() * 2 + ZEROS), "holds 'a' twice"),
    "a cut tensor": (header(1, 0, tensor(dims=(2**20,)) + ZEROS), "should end at byte"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_damaged_file_is_refused_with_its_name(tmp_path, case):
    data, message = BAD[case]
    file = tmp_path / "bad.gguf"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(file)
    assert str(file) in str(error.value)


def test_a_shape_that_does_not_fit_the_tensor_is_refused(tmp_path):
    note = string(b"comfy.gguf.orig_shape.a") + struct.pack("<IIQii", 9, 5, 2, 3, 11)
    (tmp_path / "x").write_bytes(header(1, 1, note + tensor() + ZEROS))
    with pytest.raises(CheckpointError, match=r"\[32\] cannot stand for \[3, 11\]"):
        open_checkpoint(tmp_path / "x")


@given(cut=st.integers(4, 2**17), changes=st.dictionaries(st.integers(4, 3000), st.integers(1, 255), max_size=4))
@settings(max_examples=150, deadline=None)
def test_damage_anywhere_in_the_header_makes_a_checkpoint_error_or_a_source(whole_file, cut, changes):
    whole, path = whole_file
    damaged = bytearray(whole[:cut] if cut < 2**16 else whole)
    for place, change in changes.items():
        if place < len(damaged):
            damaged[place] ^= change
    path.write_bytes(damaged)
    try:
        source = GgufSource(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    for name in source.infos:
        source.read(name)


@given(place=st.integers(4, 2**17), data=st.binary(min_size=1, max_size=100), instead=st.integers(0, 100))
@example(place=3000, data=bytes(32), instead=0)  # a whole unit of alignment
@example(place=2**17, data=bytes(32), instead=0)  # after the last tensor
@settings(max_examples=150, deadline=None)
def test_bytes_inserted_or_lost_anywhere_never_shift_tensors(whole_file, place, data, instead):
    whole, path = whole_file
    place = min(place, len(whole))
    assume(len(data) != min(instead, len(whole) - place))
    path.write_bytes(whole[:place] + data + whole[place + instead :])
    with pytest.raises(CheckpointError) as error:
        GgufSource(path)
    assert str(path) in str(error.value)


def test_the_last_tensor_may_be_padded_or_not(tmp_path):
    for end in (b"", bytes(24)):
        values = np.arange(2, dtype=np.float32)
        start = header(1, 0, tensor(dims=(2,)))
        (tmp_path / "x").write_bytes(start + bytes(-len(start) % 32) + values.tobytes() + end)
        assert torch.equal(GgufSource(tmp_path / "x").read("a"), torch.from_numpy(values))
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="its last tensor ends at byte"):
        GgufSource(tmp_path / "x")


def test_tensors_that_overlap_are_refused(tmp_path):
    start = header(2, 0, tensor(b"a") + tensor(b"b", offset=64))
    (tmp_path / "x").write_bytes(start + bytes(-len(start) % 32) + bytes(64 + 128))
    with pytest.raises(CheckpointError, match=r"'b' should begin at byte .* and is said to at"):
        GgufSource(tmp_path / "x")


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("damage")
    weights = {name: one for name, one in model.state_dict().items() if name.startswith("layers.0.attention")}
    file = write_gguf(
        folder / "whole",
        weights,
        metadata={"x": "y"},
        original_shapes={"layers.0.attention.to_q.weight": (256, 256)},
    )
    return file.read_bytes(), folder / "damaged"


def test_a_file_of_123_tensors_is_not_taken_for_safetensors(tmp_path):
    """The number stands where a safetensors file has its brace."""
    writer = gguf.GGUFWriter(tmp_path / "x", "test")
    for number in range(123):
        writer.add_tensor(f"t{number}", np.full(32, number, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "x").read_bytes()[8:9] == b"{"
    with pytest.raises(CheckpointError, match=r"holds no Ideogram 4 transformer .*found 123 tensors"):
        open_checkpoint(tmp_path / "x")
    assert torch.equal(GgufSource(tmp_path / "x").read("t77"), torch.full((32,), 77.0))

"""The text encoder, of any form that its weights may have, without its vision tower, which no caption needs."""

from __future__ import annotations

import copy
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModel, PreTrainedModel, Qwen3VLConfig  # noqa: F401 (diffusers looks for the second here)
from transformers.initialization import no_init_weights

from ..checkpoints.component_configs import making, read_text_encoder_config
from ..checkpoints.errors import CheckpointError, read_json, some, unusable_quantization
from ..checkpoints.hub import HUB_ARGUMENTS, local_folder
from ..checkpoints.left_in_file import LeftInFile, Reader
from ..checkpoints.load import expanded, fill
from ..checkpoints.nf4 import bitsandbytes_settings
from ..checkpoints.pretrained import asked_dtype, one_device, option
from ..checkpoints.save import FLOAT8
from ..checkpoints.source import open_source
from ..checkpoints.storage_kinds import Infos, Storage
from ..checkpoints.stored_weights import StoredWeight, match_tensors, parameters, part_of, recognise
from ..checkpoints.tensors import Source
from ..ops.quantized_linear import Float8Linear

TOWER = "visual."
WHY = "captions need the language model alone. `transformers.Qwen3VLModel.from_pretrained` loads the vision tower too."
BLOCKS = r"language_model\.layers\..*"  # whose linear layers may keep few bits; embeddings are looked up
# Arguments that mean the same here as there; with any other, transformers' own loader is asked.
KNOWN = {"dtype", "torch_dtype", "device_map", "variant", "subfolder", "dequantize", *HUB_ARGUMENTS}
NO_MEANING = {"use_safetensors", "low_cpu_mem_usage", "disable_mmap", "proxies"}

# llama.cpp's names, as its converter writes them for Qwen's models; the vision tower is a file of its own there.
_LLAMA = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.((?:weight|bias).*)")


class Qwen3VLModel(transformers.Qwen3VLModel):
    """transformers' model of this name, its vision tower left in the file it was loaded from.

    Weights in float8 with their scales, in bitsandbytes' 4 bits and in GGUF's blocks stay so, or are expanded with
    `dequantize`. Saving the model writes the tower too, as long as its file is there.
    """

    _keys_to_ignore_on_load_unexpected = (r"(.*\.)?visual\..*", r"lm_head\..*")

    def __init__(self, config: Qwen3VLConfig) -> None:
        transformers.Qwen3VLPreTrainedModel.__init__(self, config)
        self.visual = LeftInFile({}, WHY, torch.float32)
        self.language_model = AutoModel.from_config(config.text_config)
        self.rope_deltas = None
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a text encoder from a folder or a hub id, in any form that its weights may have.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            args: As transformers' method.
            kwargs: As transformers' method, and `dequantize=True` to expand weights that are stored in few bits. With
                a `quantization_config` or a device map over several devices, transformers loads the model itself.

        Raises:
            CheckpointError: a ValueError that names the file, and the tensor, that cannot be used.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if kwargs.get(key)}
        folder = local_folder(pretrained_model_name_or_path, kwargs.get("subfolder"), kwargs.get("variant"), hub)
        config, fp8 = read_text_encoder_config(folder)
        if getattr(config, "quantization_config", None) == FLOAT8:
            del config.quantization_config
            fp8 = True
        _check_quantization(folder, config)
        source = open_source(folder, kwargs.get("variant"))
        if _is_for_transformers(config, source, args, kwargs):
            return cls._from_transformers(folder, source, *args, **kwargs)
        return cls._load(source, config, fp8, str(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_single_file(
        cls, path: str | os.PathLike[str], *, config: str | os.PathLike[str], **kwargs: Any
    ) -> Qwen3VLModel:
        """Load a text encoder from one file of any form, as users of ComfyUI and llama.cpp have it.

        Args:
            path: The file.
            config: The text encoder's folder in the layout of transformers, for its `config.json`.
            kwargs: `dtype`, `device_map` and `dequantize`, as in `from_pretrained`.
        """
        settings, _ = read_text_encoder_config(Path(config).expanduser())
        return cls._load(open_source(path), settings, False, str(path), **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As transformers' method; float8 in the form that is published, with a note that its own loader refuses.

        It knows no scales, and what it made of such a folder would draw noise. Expand the model (`dequantize=True` when
        it is loaded) to save it for other readers.
        """
        config = self.config
        if any(isinstance(part, Float8Linear) for part in self.modules()):
            config = copy.copy(config)
            config.quantization_config, config.ideogram_fp8_weight_only = FLOAT8, True
        own = self.__dict__["config"]
        try:
            self.__dict__["config"] = config
            super().save_pretrained(*args, **kwargs)
        finally:
            self.__dict__["config"] = own

    @classmethod
    def _load(cls, source: Source, config: Qwen3VLConfig, fp8: bool, name: str, **kwargs: Any) -> Qwen3VLModel:
        named = kwargs.get("dtype") or kwargs.get("torch_dtype")
        if isinstance(named, str):  # as transformers allows
            named = config.dtype or torch.float32 if named == "auto" else getattr(torch, named, named)
        dtype = asked_dtype({"dtype": named}, torch.get_default_dtype())
        config.dtype = config.text_config.dtype = config.vision_config.dtype = dtype
        config.name_or_path = name
        for mark in ("quantization_config", "ideogram_fp8_weight_only"):  # of the file, not of what becomes of it
            if hasattr(config, mark):
                delattr(config, mark)
        with making(source.path, "text encoder"), no_init_weights(), init_empty_weights(include_buffers=False):
            model = cls(config)
        matches = match_tensors(source, model, _name, scaled=fp8)
        device = one_device(kwargs.get("device_map"))
        assert device is not None
        dequantize = option("dequantize", kwargs)
        kept = fill(
            model,
            source,
            matches,
            dtype=dtype,
            device=device,
            keep=None if dequantize else re.compile(BLOCKS).fullmatch,
            what="text_encoder",
            exact=True,
        )
        for module in model.modules():
            for key, buffer in module._buffers.items():
                module._buffers[key] = None if buffer is None else buffer.to(device)  # rotary frequencies
        model.visual = LeftInFile(_tower(source), WHY, dtype)
        for storage in kept:
            _finish(model, storage, dtype)
        return model.eval()

    @classmethod
    def _from_transformers(cls, folder: Path, source: Source, *args: Any, **kwargs: Any) -> Any:
        """By transformers, which knows more kinds of quantization; what it only logs is an error here."""
        low = {
            source.infos[name].dtype for name in source.infos if part_of(name)[1] in ("weight_scale", "scale_weight")
        }
        config = kwargs.get("quantization_config")
        if low and config is None and "quantization_config" not in read_json(folder / "config.json"):
            raise CheckpointError(
                f"{folder} holds weights with scales, which transformers' loader would leave out: load it without"
                f" {', '.join(sorted(set(kwargs) - KNOWN - NO_MEANING)) or '`device_map` over several devices'}."
            )
        wants_info = kwargs.pop("output_loading_info", False)
        settled = {"dequantize", "subfolder", *HUB_ARGUMENTS}
        own = {key: value for key, value in kwargs.items() if key not in settled}
        own |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, info = super().from_pretrained(folder, *args, **own)
        except ImportError as error:  # of a package that its kind of quantization needs
            raise CheckpointError(f"{folder} cannot be loaded here: {' '.join(str(error).split())}") from error
        except (AttributeError, KeyError, TypeError) as error:
            if config is not None or "quantization_config" not in read_json(folder / "config.json"):
                raise
            raise unusable_quantization(folder, error) from error
        wrong = {
            what: sorted(map(str, names))
            for what, names in (
                ("missing are", info.get("missing_keys", ())),
                ("no place is there for", info.get("unexpected_keys", ())),
                ("of another shape are", info.get("mismatched_keys", ())),
            )
            if names
        }
        if wrong:
            told = "; ".join(f"{what} {some(names)}" for what, names in wrong.items())
            raise CheckpointError(
                f"{folder} does not hold what the text encoder of its configuration is made of: {told}."
            )
        model.visual = LeftInFile(_tower(source), WHY, model.dtype)
        return (model, info) if wants_info else model


def _check_quantization(folder: Path, config: Qwen3VLConfig) -> None:
    """Refuse a note on quantization that transformers would end over in its own words, or answer with code of a hub."""
    quantized = getattr(config, "quantization_config", None)
    if quantized is None:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if not isinstance(method, str):
        raise CheckpointError(
            f"{folder / 'config.json'}: `quantization_config` is {quantized!r:.80}; it must be an object that says its"
            " `quant_method`."
        )
    if method == "fp8":
        raise CheckpointError(
            f"{folder / 'config.json'}: `quantization_config` says `quant_method` fp8, weights with a scale for each"
            " block (`weight_scale_inv`), which transformers computes with by kernels from a hub, and without a GPU not"
            " at all. Take the text encoder in bfloat16, or in the fp8 of Ideogram or ComfyUI (`weight_scale`); if the"
            " weights are plain, remove the note."
        )


def _is_for_transformers(config: Qwen3VLConfig, source: Source, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether something is asked for that transformers' loader alone does."""
    asked = {key for key, value in kwargs.items() if value is not None and value is not False}
    quantized = getattr(config, "quantization_config", None)
    four_bits = any(part_of(name)[1] == "weight.absmax" for name in source.infos)
    return (
        bool(args)
        or bool(asked - KNOWN - NO_MEANING)
        or one_device(kwargs.get("device_map")) is None
        or isinstance(kwargs.get("dtype"), dict)
        or (quantized is not None and not four_bits)
    )


def _name(full: str) -> str | None:
    """The model's name of a tensor; None for the vision tower's and the output's, which no caption needs."""
    name = full.removeprefix("model.")
    if TOWER in full or name.startswith(("lm_head.", "output.weight", "v.", "mm.")):
        return None
    match = _LLAMA_NAME.fullmatch(full)
    if match and match[2] in _LLAMA:
        layer = f"layers.{match[1]}." if match[1] else ""
        return f"language_model.{layer}{_LLAMA[match[2]]}.{match[3]}"
    if name.startswith(("layers.", "embed_tokens.", "norm.")):  # the language model alone
        return f"language_model.{name}"
    return name


def _finish(model: Qwen3VLModel, storage: Storage, dtype: torch.dtype) -> None:
    """Say to the model what transformers asks of one that has layers of this kind."""
    if storage.name != "nf4":
        storage.finish(model, dtype)
        return
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    plain = [name for name, part in model.named_modules() if type(part) is nn.Linear]
    skipped = ["visual", "lm_head", *plain]
    config = BitsAndBytesConfig(**bitsandbytes_settings(model, dtype), llm_int8_skip_modules=skipped)
    model.hf_quantizer = Bnb4BitHfQuantizer(config, pre_quantized=True)
    model.hf_quantizer.postprocess_model(model)


def _tower(source: Source) -> dict[str, Reader]:
    """What reads each parameter of the vision tower; nothing where the files hold none."""
    found, _ = parameters(source, lambda full: full[full.index(TOWER) + len(TOWER) :] if TOWER in full else None)
    return {name: partial(_expanded, source, infos) for name, infos in found.items()}


def _expanded(source: Source, infos: Infos) -> torch.Tensor:
    """A parameter of the tower, whatever it is stored as."""
    return expanded(source, StoredWeight(infos, recognise(source, infos)[0], ()), torch.float32)

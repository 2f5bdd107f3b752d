"""What each component of a pipeline weighs, counted layer by layer on the meta device: no weights are needed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from torch import nn
from transformers import AutoModel, Qwen3VLTextConfig

from ..model import Ideogram4Transformer2DModel
from ..ops import KINDS
from ..ops.quantized_layers import is_quantized_layer
from ..text_encoder import TAPS
from .precisions import Layer

# The published model, from its parts' configurations. Text encoder: the language model of Qwen3-VL-8B-Instruct
# (https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct/blob/main/config.json, `text_config`). Transformers and autoencoder:
# the defaults of their classes.
FULL_TEXT: dict[str, Any] = dict(
    hidden_size=4096,
    num_hidden_layers=36,
    intermediate_size=12288,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
)
FULL_TRANSFORMER: dict[str, Any] = {}
FULL_AUTOENCODER: dict[str, Any] = {}

TEXT_ENCODER, CONDITIONAL, UNCONDITIONAL, AUTOENCODER = (
    "text_encoder",
    "transformer",
    "unconditional_transformer",
    "vae",
)
NAMES = (TEXT_ENCODER, CONDITIONAL, UNCONDITIONAL, AUTOENCODER)
UNUSED = ("llm_cond_norm", "llm_cond_proj")  # layers of the unconditional transformer that no step calls
_TEXT_LAYER = re.compile(r"(?:language_model\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")
_BLOCK = re.compile(r"(?:.*\.)?layers\.(\d+)(?:\..*)?")


@dataclass(frozen=True)
class Component:
    """One model of a pipeline.

    Attributes:
        name: Its name in the pipeline.
        layers: Its layers, in order.
        dtype: Of its weights as they are: "float32", "bfloat16" or "float16".
        stored: Bytes of each layer as it is, by name, where they are known from weights that are there (quantized ones
            for instance); empty for those of a configuration.
    """

    name: str
    layers: tuple[Layer, ...]
    dtype: str = "bfloat16"
    stored: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Parameters and buffers."""
        return sum(layer.numbers for layer in self.layers)

    @property
    def is_quantized(self) -> bool:
        """Whether weights that can be quantized take less than two bytes as they are."""
        return any(self.stored.get(layer.name, 2 * layer.weights) < 2 * layer.weights for layer in self.layers)

    def without(self, *names: str) -> Component:
        """The component without some of its outermost layers."""
        kept = tuple(layer for layer in self.layers if layer.name.split(".")[0] not in names)
        return Component(self.name, kept, self.dtype, self.stored)

    @cached_property
    def _sizes(self) -> dict[tuple[str | None, str | None], Sizes]:
        return {}

    def sizes(self, precision: str | None = None, base: str | None = None) -> Sizes:
        """Its bytes in a precision.

        Args:
            precision: "float32", "bfloat16" or "float16" of all; "int8", "fp8", "nf4" or "nf4 single" of the blocks'
                linear layers; None for as it is.
            base: Type of what is not quantized; None for that of its weights as they are.
        """
        key = (precision, base)
        if key not in self._sizes:
            self._sizes[key] = Sizes.of([(layer.block, self._layer(layer, *key)) for layer in self.layers])
        return self._sizes[key]

    def _layer(self, layer: Layer, precision: str | None, base: str | None) -> int:
        if precision is None:
            return self.stored.get(layer.name, layer.bytes(self.dtype))
        return layer.bytes(precision, base or self.dtype)

    def bytes(self, precision: str | None = None, base: str | None = None) -> int:
        """All its bytes; arguments as those of `sizes`."""
        return self.sizes(precision, base).all


@dataclass(frozen=True)
class Sizes:
    """Bytes of a component in one precision.

    Attributes:
        all: Of the whole.
        block: Of the largest of its equal blocks.
        outside: Of what is in no block.
        layer: Of its largest layer.
    """

    all: int
    block: int
    outside: int
    layer: int

    @classmethod
    def of(cls, layers: list[tuple[int | None, int]]) -> Sizes:
        """Of layers, each with its block and its bytes."""
        blocks: dict[int | None, int] = {}
        for block, size in layers:
            blocks[block] = blocks.get(block, 0) + size
        outside = blocks.pop(None, 0)
        largest = max((size for _, size in layers), default=0)
        return cls(outside + sum(blocks.values()), max(blocks.values(), default=0), outside, largest)


def count_layers(module: nn.Module) -> tuple[Layer, ...]:
    """The layers of a module that hold parameters or buffers themselves; those on the meta device count too."""
    layers, seen = [], set()
    for name, part in module.named_modules():
        numbers = 0
        weights = rows = 0
        for key, tensor in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if key == "weight" and (is_quantized_layer(name) or _TEXT_LAYER.fullmatch(name)):
                rows = getattr(part, "out_features", 0)
                weights = rows * getattr(part, "in_features", 0)
            elif not (key == "weight_scale" and weights):
                numbers += tensor.numel()
        if weights + numbers:
            match = _BLOCK.fullmatch(name)
            layers.append(Layer(name, weights, rows, numbers, int(match[1]) if match else None))
    return tuple(layers)


def _stored(module: nn.Module) -> dict[str, int]:
    """Bytes of each layer as it is, what quantized tensors carry beside them included."""
    found, seen = {}, set()
    for name, part in module.named_modules():
        size = 0
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                size += tensor.nbytes + _state_bytes(getattr(tensor, "quant_state", None))
        if size:
            found[name] = size
    return found


def _state_bytes(state: Any) -> int:
    """Bytes of a quantization state of bitsandbytes."""
    if state is None:
        return 0
    own = sum(getattr(state, name).nbytes for name in ("absmax", "code") if getattr(state, name, None) is not None)
    return own + _state_bytes(getattr(state, "state2", None))


def _dtype_of(module: nn.Module) -> str:
    """The type that the module computes in: that of most of its numbers in 16 bits or more."""
    counts: dict[str, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize >= 2:
            name = str(parameter.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + parameter.numel()
    return max(counts, key=lambda name: counts[name], default="bfloat16")


@dataclass(frozen=True)
class Model:
    """All that a plan needs to know of a pipeline.

    Attributes:
        components: By name; a pipeline may lack the unconditional transformer.
        text: Configuration of the text encoder's language model.
        transformer: Configuration of the conditional transformer.
        unconditional: Configuration of the other one; None where there is none.
        autoencoder: Configuration of the autoencoder.
        taps: Number of layers whose outputs are text features.
        name: What printed plans call it.
        kind: How the transformers' weights are quantized as they are: "int8", "fp8", "other", or None for not at all.
    """

    components: Mapping[str, Component]
    text: Mapping[str, Any]
    transformer: Mapping[str, Any]
    unconditional: Mapping[str, Any] | None
    autoencoder: Mapping[str, Any]
    taps: int = len(TAPS)
    name: str = "the full configuration"
    kind: str | None = None

    @cached_property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return 2 * 2 ** (len(self.autoencoder["block_out_channels"]) - 1)

    @classmethod
    def full(cls, dtype: str = "bfloat16") -> Model:
        """The published model's configuration, with the unconditional transformer as the loader leaves it."""
        return cls.of_configs(
            FULL_TEXT, FULL_TRANSFORMER, FULL_TRANSFORMER, FULL_AUTOENCODER, dtype, name="the full configuration"
        )

    @classmethod
    def of_configs(
        cls,
        text: Mapping[str, Any],
        transformer: Mapping[str, Any],
        unconditional: Mapping[str, Any] | None,
        autoencoder: Mapping[str, Any],
        dtype: str = "bfloat16",
        taps: int = len(TAPS),
        name: str = "this configuration",
    ) -> Model:
        """A model of configurations alone; arguments that they lack have their classes' defaults."""
        encoder, text = _text_encoder(json.dumps(dict(text)))
        conditional, transformer = _transformer(json.dumps(dict(transformer)))
        decoder, autoencoder = _autoencoder(json.dumps(dict(autoencoder)))
        components = {
            TEXT_ENCODER: Component(TEXT_ENCODER, encoder, dtype),
            CONDITIONAL: Component(CONDITIONAL, conditional, dtype),
            AUTOENCODER: Component(AUTOENCODER, decoder, dtype),
        }
        if unconditional is not None:
            layers, unconditional = _transformer(json.dumps(dict(unconditional)))
            components[UNCONDITIONAL] = Component(UNCONDITIONAL, layers, dtype).without(*UNUSED)
        return cls(components, text, transformer, unconditional, autoencoder, taps, name)

    @classmethod
    def of_folder(cls, folder: str | Path, dtype: str = "bfloat16") -> Model:
        """A model of a folder's configurations, in diffusers' layout; its weights are not looked at.

        Raises:
            ValueError: if a configuration is missing or is none.
        """
        folder = Path(folder).expanduser()

        def read(name: str, required: bool = True) -> dict[str, Any]:
            path = folder / name
            try:
                return json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                if not required:
                    return {}
                raise ValueError(f"{path} is missing: give a model's folder in the diffusers layout.") from None
            except ValueError as error:
                raise ValueError(f"{path} is no JSON: {error}") from None

        text = read("text_encoder/config.json")
        taps = len(read("model_index.json", required=False).get("text_encoder_taps") or TAPS)
        branch = folder / "unconditional_transformer"
        return cls.of_configs(
            text.get("text_config", text),
            read("transformer/config.json"),
            read("unconditional_transformer/config.json") if branch.is_dir() else None,
            read("vae/config.json"),
            dtype,
            taps,
            name=str(folder),
        )

    @classmethod
    def of_pipeline(cls, pipe: Any) -> Model:
        """A loaded pipeline: its weights as they are, quantized or not."""
        components = {}
        for name in NAMES:
            module = getattr(pipe, name)
            if module is not None:
                components[name] = Component(name, count_layers(module), _dtype_of(module), _stored(module))
        config = pipe.text_encoder.config
        text = getattr(config, "text_config", config).to_dict()
        other = pipe.unconditional_transformer
        unconditional = None if other is None else dict(other.config)
        taps, vae = len(pipe.taps), dict(pipe.vae.config)
        conditional = dict(pipe.transformer.config)
        kind = _kind_of(pipe.transformer) or ("other" if components[CONDITIONAL].is_quantized else None)
        return cls(components, text, conditional, unconditional, vae, taps, "this pipeline", kind)


def _kind_of(module: nn.Module) -> str | None:
    """ "int8" or "fp8" where layers are of that kind."""
    kinds = (kind for kind, layer in KINDS.items() if any(type(part) is layer for part in module.modules()))
    return next(kinds, None)


# Built on the meta device, once for each configuration.


@cache
def _text_encoder(config: str) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    with torch.device("meta"):
        model = AutoModel.from_config(Qwen3VLTextConfig(**json.loads(config)))
    return count_layers(model), model.config.to_dict()


@cache
def _transformer(config: str) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    with torch.device("meta"):
        model = Ideogram4Transformer2DModel(**_arguments(config))
    return count_layers(model), dict(model.config)


@cache
def _autoencoder(config: str) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    with torch.device("meta"):
        model = AutoencoderKLFlux2(**_arguments(config))
    return count_layers(model), dict(model.config)


def _arguments(config: str) -> dict[str, Any]:
    """What a configuration file says beside the names of its class and version."""
    return {key: value for key, value in json.loads(config).items() if not key.startswith("_")}

"""What each component of a pipeline weighs, and the model that they make: from configurations alone, or as loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configuration import DEFAULTS, TAPS, parameter_shapes
from .loaded import dtype_of, kind_of, weigh
from .precisions import Layer, layers_of
from .shapes import AUTOENCODER_DEFAULTS, TEXT_DEFAULTS, autoencoder_shapes, text_encoder_shapes

# The published model's text encoder: the language model of Qwen3-VL-8B-Instruct
# (https://huggingface.co/Qwen/Qwen3-VL-8B-Instruct/blob/main/config.json, `text_config`). Its transformers and its
# autoencoder are the defaults of their classes.
FULL_TEXT: dict[str, Any] = TEXT_DEFAULTS | dict(intermediate_size=12288, num_hidden_layers=36, num_key_value_heads=8)

NAMES = TEXT_ENCODER, CONDITIONAL, UNCONDITIONAL, AUTOENCODER = (
    "text_encoder",
    "transformer",
    "unconditional_transformer",
    "vae",
)
UNUSED = ("llm_cond_norm", "llm_cond_proj")  # layers of the unconditional transformer that no step calls


@dataclass(frozen=True)
class Component:
    """One model of a pipeline.

    Attributes:
        name: Its name in the pipeline.
        layers: Its layers, in order.
        dtype: Type of its weights as they are: "float32", "bfloat16" or "float16".
        stored: Bytes of each layer as it is, by name, where weights are there (quantized ones for instance); empty for
            a configuration.
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
        all: The whole component.
        block: The largest of its equal blocks.
        outside: All layers that are in no block.
        layer: The largest layer.
    """

    all: int
    block: int
    outside: int
    layer: int

    @classmethod
    def of(cls, layers: list[tuple[int | None, int]]) -> Sizes:
        """The sizes of layers, each given by its block and its bytes."""
        blocks: dict[int | None, int] = {}
        for block, size in layers:
            blocks[block] = blocks.get(block, 0) + size
        outside = blocks.pop(None, 0)
        largest = max((size for _, size in layers), default=0)
        return cls(outside + sum(blocks.values()), max(blocks.values(), default=0), outside, largest)


@dataclass(frozen=True)
class Model:
    """All that a plan needs to know of a pipeline.

    Attributes:
        components: The components by name; a pipeline may lack the unconditional transformer.
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

    @property
    def one_branch(self) -> Model:
        """The model without its unconditional transformer, as distilled ones are: every step has guidance 1."""
        components = {name: own for name, own in self.components.items() if name != UNCONDITIONAL}
        name = self.name if self.unconditional is None else f"{self.name} without its unconditional transformer"
        return replace(self, components=components, unconditional=None, name=name)

    @cached_property
    def token_side(self) -> int:
        """Pixels of a token's side."""
        return 2 * 2 ** (len(self.autoencoder["block_out_channels"]) - 1)

    @classmethod
    def full(cls, dtype: str = "bfloat16") -> Model:
        """The published model's configuration, with the unconditional transformer as the loader leaves it."""
        return cls.of_configs(FULL_TEXT, {}, {}, {}, dtype, name="the full configuration")

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
        if text.get("num_key_value_heads", 1) is None:
            text = {**text, "num_key_value_heads": text.get("num_attention_heads")}
        text = _whole("text encoder", text, TEXT_DEFAULTS)
        transformer = _whole("transformer", transformer, DEFAULTS)
        autoencoder = _whole("autoencoder", autoencoder, AUTOENCODER_DEFAULTS)
        shapes = {
            TEXT_ENCODER: text_encoder_shapes(text),
            CONDITIONAL: parameter_shapes(transformer),
            AUTOENCODER: autoencoder_shapes(autoencoder),
        }
        if unconditional is not None:
            unconditional = _whole("unconditional transformer", unconditional, DEFAULTS)
            used = parameter_shapes(unconditional).items()
            shapes[UNCONDITIONAL] = {key: shape for key, shape in used if not key.startswith(UNUSED)}
        components = {key: Component(key, layers_of(own), dtype) for key, own in shapes.items()}
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
                layers, stored = weigh(module)
                components[name] = Component(name, layers, dtype_of(module), stored)
        config = pipe.text_encoder.config
        text = getattr(config, "text_config", config).to_dict()
        other = pipe.unconditional_transformer
        unconditional = None if other is None else dict(other.config)
        taps, vae = len(pipe.taps), dict(pipe.vae.config)
        conditional = dict(pipe.transformer.config)
        kind = kind_of(pipe.transformer) or ("other" if components[CONDITIONAL].is_quantized else None)
        return cls(components, text, conditional, unconditional, vae, taps, "this pipeline", kind)


def _whole(what: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the defaults of its class where it says nothing.

    Raises:
        ValueError: naming a number that is no positive one.
    """
    found = {**defaults, **{key: value for key, value in config.items() if not key.startswith("_")}}
    for key, default in defaults.items():
        value = found[key]
        if type(default) is int and (not isinstance(value, int) or value < 1):
            raise ValueError(f"the configuration of the {what} has {value!r} as `{key}`: give a positive whole number.")
    return found

"""What a pipeline was loaded from, and with that the settings from which each of its pictures can be made again.

What cannot be told from files and a call's arguments (components put in by hand, noise from a generator that was drawn
from before) is not guessed: the settings then say why the picture cannot be made again.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from ..bundled import SKETCH, SKETCH_FOLDER
from ..checkpoints.lora_files import PipelineAdapters, find_lora
from ..digests import digest_file, digest_hub, digest_model
from ..dtypes import COMPUTED, name_of
from ..provenance import QUANTIZED
from ..schedule import PRESETS, Preset
from .acceleration import PipelineSpeed
from .loading import HUB_ID, PipelineFiles

# Arguments of `from_pretrained` that change where or how weights are loaded, but no picture.
HARMLESS = {"dtype", "torch_dtype", "local_files_only", "token", "cache_dir", "force_download", "use_safetensors",
            "low_cpu_mem_usage", "disable_mmap", "device_map"}  # fmt: skip
F = TypeVar("F", bound=Callable[..., Any])
COMPONENTS = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer", "unconditional_transformer")


@dataclass(frozen=True)
class Source:
    """Where a model or an adapter is, and what tells that it is still the same.

    Attributes:
        path: `sketch`, an absolute path, or a hub id.
        digest: Of what is there; None where there is no telling.
    """

    path: str
    digest: str | None


def find_source(path: str | os.PathLike[str]) -> Source:
    """The source of a model: of the bundled one, a folder, a file or a hub id."""
    place = Path(path).expanduser()
    if path == SKETCH and not place.exists():
        place = SKETCH_FOLDER
    if not place.exists():
        return Source(str(path), digest_hub(str(path)))
    bundled = place.is_dir() and os.path.samefile(place, SKETCH_FOLDER)
    return Source(SKETCH if bundled else os.path.abspath(place), digest_model(place))


def find_adapter(path: str | os.PathLike[str], **where: Any) -> Source:
    """The source of an adapter: of its file, or of a hub id; arguments as of `find_lora`."""
    file = find_lora(path, **where)
    here = Path(path).expanduser().exists() or where.get("weight_name") or where.get("subfolder")
    return Source(os.path.abspath(file) if here else str(path), digest_file(file))


def _as(method: Callable[..., Any]) -> Callable[[F], F]:
    """Give a method the signature and the docstring of the one that it calls."""

    def alike(own: F) -> F:
        return cast(F, functools.wraps(method)(own))

    return alike


class PipelineOrigin:
    """Keeps where a pipeline and its adapters come from, for `Ideogram4Pipeline`."""

    _origin: tuple[Source, Source | None] | None = None  # of the model, and of what everything beside it comes from
    _doubt: str | None = None  # why files alone do not make the pipeline
    _parts: dict[str, Any]
    _adapters: dict[str, tuple[Source, Any]]
    _quantized: str | None = None
    transformer: Any
    unconditional_transformer: Any

    @classmethod
    @_as(PipelineFiles.from_pretrained.__func__)  # type: ignore[attr-defined]
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)  # type: ignore[misc]
        others = {key: value for key, value in kwargs.items() if key != "config"}
        pipeline._remember(pretrained_model_name_or_path, kwargs.get("config"), others)
        return pipeline

    @classmethod
    @_as(PipelineFiles.from_single_file.__func__)  # type: ignore[attr-defined]
    def from_single_file(cls, pretrained_model_link_or_path: Any, **kwargs: Any) -> Any:
        pipeline = super().from_single_file(pretrained_model_link_or_path, **kwargs)  # type: ignore[misc]
        others = {key: value for key, value in kwargs.items() if key != "config"}
        pipeline._remember(pretrained_model_link_or_path, kwargs.get("config", HUB_ID), others)
        return pipeline

    def _remember(self, path: Any, base: Any, kwargs: dict[str, Any]) -> None:
        strange = sorted(key for key, value in kwargs.items() if key not in HARMLESS and value is not None)
        self._doubt = f"the pipeline was loaded with `{strange[0]}`" if strange else None
        self._origin = find_source(path), None if base is None else find_source(base)
        self._parts = {name: weakref.ref(getattr(self, name)) for name in COMPONENTS if getattr(self, name, None)}

    @_as(PipelineAdapters.load_lora_weights)
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        before = set(getattr(self.transformer, "peft_config", {}))
        super().load_lora_weights(  # type: ignore[misc]
            pretrained_model_name_or_path_or_dict, adapter_name, hotswap, **kwargs
        )
        configs = getattr(self.transformer, "peft_config", {})
        names = {adapter_name} if adapter_name is not None else set(configs) - before
        if isinstance(pretrained_model_name_or_path_or_dict, (str, os.PathLike)):
            where = {key: kwargs[key] for key in ("weight_name", "subfolder") if kwargs.get(key)}
            source = find_adapter(pretrained_model_name_or_path_or_dict, **where)
            self._adapters = {**getattr(self, "_adapters", {}), **{name: (source, configs[name]) for name in names}}

    @_as(PipelineSpeed.quantize)
    def quantize(self, kind: str, skip: str | Sequence[str] = ()) -> None:
        super().quantize(kind, skip)  # type: ignore[misc]
        self._quantized = kind
        if skip:
            self._doubt = self._doubt or "some of its layers were left out of quantizing"

    def settings_of_call(
        self,
        lines: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        plan: Preset,
        generator: Any,
        given: str | None,
    ) -> list[dict[str, Any]]:
        """Settings of each picture of a call, before its noise is drawn.

        Args:
            lines: The caption of each picture.
            sizes: `(width, height)` of each.
            plan: Of all.
            generator: As in the call.
            given: What the call was given that no settings hold, in words; None for nothing.
        """
        seeds = _seeds(generator, len(lines))
        loras, fault = self._loras()
        model, base = self._origin or (None, None)
        schedule, strange = _of_preset(plan)
        models = [getattr(self, name, None) for name in ("transformer", "text_encoder", "vae")]
        dtypes = {model.dtype for model in models if model is not None}
        dtype = name_of(next(iter(dtypes))) if len(dtypes) == 1 else None
        shared: dict[str, Any] = {
            "model": model and model.path,
            "model_digest": model and model.digest,
            "base": base and base.path,
            "base_digest": base and base.digest,
            "loras": loras,
            "dtype": dtype if dtype in COMPUTED else None,
            "device": str(self._execution_device),  # type: ignore[attr-defined]
            **schedule,
            "quantize": self._quantized if self._quantized in QUANTIZED else None,
            "together": len(lines),
        }
        doubts = (given, self._changed(), fault, strange, None if dtype in COMPUTED else "its parts have several types")
        made = []
        for line, (width, height), seed in zip(lines, sizes, seeds, strict=True):
            unseeded = "its noise came from no fresh generator of its own on the CPU" if seed is None else None
            why = next((doubt for doubt in (*doubts, unseeded) if doubt), None)
            made.append(
                {"caption": line, "seed": seed, "width": width, "height": height, **shared, "unrepeatable": why}
            )
        return made

    def _changed(self) -> str | None:
        """Why the pipeline is not what its files make, if it is not."""
        if self._origin is None:
            return "its pipeline was put together in Python"
        for name in COMPONENTS:
            part = getattr(self, name, None)
            if part is not None and (name not in self._parts or self._parts[name]() is not part):
                return f"the pipeline's {name} was replaced"
        if getattr(self, "num_fused_loras", 0):
            return "an adapter was fused into the weights"
        if getattr(self.unconditional_transformer, "peft_config", None):
            return "the unconditional transformer has an adapter"
        return self._doubt

    def _loras(self) -> tuple[list[dict[str, Any]], str | None]:
        """The adapters in use, and what keeps them from being used again, if anything does."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        configs = getattr(self.transformer, "peft_config", None) or {}
        if not configs:
            return [], None
        scales: dict[str, set[float]] = {}
        fault = None
        for layer in self.transformer.modules():
            if not isinstance(layer, BaseTunerLayer):
                continue
            if layer.merged:
                fault = "an adapter was fused into the weights"
            for name in () if layer.disable_adapters else layer.active_adapters:
                if name in layer.scaling:
                    scales.setdefault(name, set()).add(round(_strength(layer, name), 12))
        loras = []
        for name, strengths in scales.items():
            source, config = getattr(self, "_adapters", {}).get(name, (None, None))
            if source is None or config is not configs.get(name):
                fault = fault or f"its adapter {name!r} was loaded from no file"
            elif len(strengths) > 1:
                fault = fault or f"its adapter {name!r} has several strengths"
            else:
                loras.append({"path": source.path, "scale": strengths.pop(), "digest": source.digest})
        return loras, fault


def _strength(layer: Any, name: str) -> float:
    """How strongly an adapter acts in a layer, over what its file says."""
    alpha = layer.lora_alpha if hasattr(layer, "lora_alpha") else layer.alpha  # of LoKr and LoHa
    rank = layer.r[name] ** 0.5 if getattr(layer, "use_rslora", {}).get(name) else layer.r[name]
    strength: float = layer.scaling[name] * rank / alpha[name] if alpha[name] else 1.0  # of 0, any is the same
    return strength


def _seeds(generator: Any, pictures: int) -> list[int | None]:
    """The seed of each picture's own generator, None where there is none, it was drawn from, or is not on the CPU."""
    each = generator if isinstance(generator, (list, tuple)) else [generator] * pictures
    if len(each) != pictures or len({id(one) for one in each}) < pictures:
        return [None] * pictures
    return [_seed(one) for one in each]


def _seed(generator: Any) -> int | None:
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        return None
    seed = generator.initial_seed() % 2**64
    fresh = torch.Generator().manual_seed(seed)
    return seed if torch.equal(fresh.get_state(), generator.get_state()) else None


def _of_preset(plan: Preset) -> tuple[dict[str, Any], str | None]:
    """Preset, steps and guidance that give the plan; or what it is that gives it."""
    for preset in PRESETS.values():
        own = preset.with_steps(plan.steps)
        constant = len(set(plan.guidance)) == 1
        if (own.mu, own.std) == (plan.mu, plan.std) and (own.guidance == plan.guidance or constant):
            return {
                "preset": preset.name,
                "steps": None if plan.steps == preset.steps else plan.steps,
                "guidance": None if own.guidance == plan.guidance else plan.guidance[0],
            }, None
    return {"preset": None, "steps": plan.steps, "guidance": None}, "its schedule is that of no preset"

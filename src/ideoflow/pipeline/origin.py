"""What a pipeline was loaded from, and with that the settings from which each of its pictures can be made again.

What cannot be told from files and a call's arguments (components put in by hand, noise from a generator that was drawn
from before) is not guessed: the settings then say why the picture cannot be made again.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..bundled import SKETCH, SKETCH_FOLDER
from ..captions import CaptionWarning
from ..captions.schema import is_placed
from ..checkpoints.hub import find_lora
from ..digests import COMPONENTS, digest_file, digest_hub, digest_model
from ..dtypes import COMPUTED, name_of
from ..presets import PRESETS, Preset
from ..provenance import QUANTIZED

# Arguments of `from_pretrained` that change where or how weights are loaded, but no picture.
HARMLESS = {"config", "dtype", "torch_dtype", "local_files_only", "token", "cache_dir", "force_download",
            "use_safetensors", "low_cpu_mem_usage", "disable_mmap", "device_map"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where a model or an adapter is, and what tells that it is still the same.

    Attributes:
        path: `sketch`, an absolute path, or a hub id.
        digest: Digest of what is there; None where there is no telling.
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
    is_sketch = place.is_dir() and os.path.samefile(place, SKETCH_FOLDER)
    return Source(SKETCH if is_sketch else os.path.abspath(place), digest_model(place))


def find_adapter(path: str | os.PathLike[str], weight_name: str | None, subfolder: str | None) -> Source:
    """The source of an adapter: of its file, or of a hub id; arguments as of `find_lora`."""
    file = find_lora(path, weight_name, subfolder)
    here = Path(path).expanduser().exists() or weight_name or subfolder
    return Source(os.path.abspath(file) if here else str(path), digest_file(file))


@dataclass
class Origin:
    """Where the models and adapters of a pipeline come from. Methods are handed the pipeline, which may change.

    Attributes:
        model: Source of the model; None for a pipeline that was put together in Python.
        base: Source of everything beside the transformer, where that is another.
        components: The components as they were loaded, by name.
        adapters: Source of each adapter that a file gave, and peft's configuration of it.
        quantized: What the transformers' layers were quantized to since.
        doubt: Why files alone do not make the pipeline, in words.
    """

    model: Source | None = None
    base: Source | None = None
    components: dict[str, weakref.ref[Any]] = field(default_factory=dict)
    adapters: dict[str, tuple[Source, Any]] = field(default_factory=dict)
    quantized: str | None = None
    doubt: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle it without the components, which are others in a copy."""
        return {**self.__dict__, "components": {}}

    def loaded(self, pipeline: Any, path: Any, base: Any, arguments: Mapping[str, Any]) -> None:
        """Note what a pipeline was loaded from, and the arguments that it was loaded with."""
        strange = sorted(key for key, value in arguments.items() if key not in HARMLESS and value is not None)
        self.doubt = f"the pipeline was loaded with `{strange[0]}`" if strange else None
        self.model, self.base = find_source(path), None if base is None else find_source(base)
        self.components = {
            name: weakref.ref(getattr(pipeline, name)) for name in COMPONENTS if getattr(pipeline, name, None)
        }

    def loaded_adapter(
        self, names: set[str], configs: Mapping[str, Any], source: Any, where: Mapping[str, Any]
    ) -> None:
        """Note the file that adapters of these names were loaded from, if it was one.

        Args:
            names: Names of the adapters.
            configs: peft's configurations by name.
            source: What they were loaded from.
            where: The other arguments of `load_lora_weights`.
        """
        if isinstance(source, (str, os.PathLike)):
            found = find_adapter(source, where.get("weight_name") or None, where.get("subfolder") or None)
            self.adapters.update({name: (found, configs[name]) for name in names})

    @property
    def folder(self) -> Path | None:
        """The folder of the model; None where it is no folder here."""
        if self.model is None:
            return None
        place = SKETCH_FOLDER if self.model.path == SKETCH else Path(self.model.path)
        return place if place.is_dir() else None

    def quantize(self, kind: str, skip: str | Sequence[str]) -> None:
        """Note that the transformers were quantized."""
        self.quantized = kind
        if skip:
            self.doubt = self.doubt or "some of its layers were left out of quantizing"

    def warn_of_unplaced(self, lines: Iterable[str]) -> None:
        """Warn of captions for which the bundled model, if it is this one, draws an empty field."""
        if not any(source is not None and source.path == SKETCH for source in (self.model, self.base)):
            return
        for line in lines:
            if not is_placed(line):
                warnings.warn(
                    f"the bundled model draws elements with a box (`bbox`) alone, and {line[:60]!r} has others: give"
                    " captions with a background and boxes, such as those in examples/captions/.",
                    CaptionWarning,
                    stacklevel=3,
                )

    def settings(
        self,
        pipeline: Any,
        lines: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        plan: Preset,
        generator: Any,
        given: str | None,
    ) -> list[dict[str, Any]]:
        """Settings of each picture of a call, before its noise is drawn.

        Args:
            pipeline: The pipeline as it is now.
            lines: The caption of each picture.
            sizes: `(width, height)` of each.
            plan: Steps and guidance of all.
            generator: As in the call.
            given: What the call was given that no settings hold, in words; None for nothing.
        """
        seeds = _seeds(generator, len(lines))
        loras, fault = self._loras(pipeline.transformer)
        schedule, strange = _of_preset(plan)
        models = [getattr(pipeline, name, None) for name in ("transformer", "text_encoder", "vae")]
        dtypes = {name_of(model.dtype) for model in models if model is not None}
        dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(COMPUTED) else None
        shared: dict[str, Any] = {
            "model": self.model and self.model.path,
            "model_digest": self.model and self.model.digest,
            "base": self.base and self.base.path,
            "base_digest": self.base and self.base.digest,
            "loras": loras,
            "dtype": dtype,
            "device": str(pipeline._execution_device),
            **schedule,
            "quantize": self.quantized if self.quantized in QUANTIZED else None,
            "together": len(lines),
        }
        doubts = (given, self._changed(pipeline), fault, strange, None if dtype else "its parts have several types")
        why = next((doubt for doubt in doubts if doubt), None)
        unseeded = "its noise came from no fresh generator of its own on the CPU"
        return [
            {
                "caption": line,
                "seed": seed,
                "width": width,
                "height": height,
                **shared,
                "unrepeatable": why or (unseeded if seed is None else None),
            }
            for line, (width, height), seed in zip(lines, sizes, seeds, strict=True)
        ]

    def _changed(self, pipeline: Any) -> str | None:
        """Why a pipeline is not what its files make, if it is not."""
        if self.model is None:
            return "its pipeline was put together in Python"
        for name in COMPONENTS:
            part = getattr(pipeline, name, None)
            if part is not None and (name not in self.components or self.components[name]() is not part):
                return f"the pipeline's {name} was replaced"
        if getattr(pipeline, "num_fused_loras", 0):
            return "an adapter was fused into the weights"
        if getattr(pipeline.unconditional_transformer, "peft_config", None):
            return "the unconditional transformer has an adapter"
        return self.doubt

    def _loras(self, transformer: Any) -> tuple[list[dict[str, Any]], str | None]:
        """The adapters in use, and what keeps them from being used again, if anything does."""
        configs = getattr(transformer, "peft_config", None) or {}
        scales, fault = _strengths(transformer) if configs else ({}, None)
        loras = []
        for name, strengths in scales.items():
            source, config = self.adapters.get(name, (None, None))
            if source is None or config is not configs.get(name):
                fault = fault or f"its adapter {name!r} was loaded from no file"
            elif len(strengths) > 1:
                fault = fault or f"its adapter {name!r} has several strengths"
            else:
                loras.append({"path": source.path, "scale": strengths.pop(), "digest": source.digest})
        return loras, fault


def _strengths(transformer: Any) -> tuple[dict[str, set[float]], str | None]:
    """The strengths of each active adapter over a transformer's layers; and that one was fused, if one was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    scales: dict[str, set[float]] = {}
    fault = None
    for layer in transformer.modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if layer.merged:
            fault = "an adapter was fused into the weights"
        for name in () if layer.disable_adapters else layer.active_adapters:
            if name in layer.scaling:
                scales.setdefault(name, set()).add(round(_strength(layer, name), 12))
    return scales, fault


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

"""How strong adapters are, where a file says so outside the tensors: in peft's configuration, or in header entries."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import printable
from . import lycoris
from .errors import CheckpointError
from .names import ORIGINAL, targets
from .tensors import Source

HEADER = "lora_adapter_metadata"  # diffusers' key in a file's header: peft's configuration as JSON
PEFT_CONFIG = "adapter_config.json"  # the same in a file of its own, beside weights that peft itself saved

# Entries of a header that give the strength of tensors without an alpha: plain, or after the model's name.
STRENGTH = re.compile(
    r"(?:transformer\.|diffusion_model\.)?(?:(?P<alpha>lora_alpha|network_alpha|alpha)|(?P<rank>r|rank|lora_rank)"
    r"|(?P<root>use_rslora))"
)


@dataclass(frozen=True)
class PeftSettings:
    """Strengths and ranks as peft writes them: for all layers, and for those that a pattern matches.

    Attributes:
        where: the place of the configuration, for messages.
        rank: the rank of layers that no pattern matches.
        alpha: the alpha of layers that no pattern matches.
        ranks: ranks by pattern.
        alphas: alphas by pattern.
        root: whether alpha is divided by the root of the rank, in place of the rank.
    """

    where: str
    rank: int
    alpha: float
    ranks: dict[re.Pattern[str], int]
    alphas: dict[re.Pattern[str], float]
    root: bool

    def of(self, layer: str) -> tuple[int, float]:
        """Rank and alpha of a layer."""
        rank = next((value for pattern, value in self.ranks.items() if pattern.match(layer)), self.rank)
        alpha = next((value for pattern, value in self.alphas.items() if pattern.match(layer)), self.alpha)
        return rank, alpha * math.sqrt(rank) if self.root else alpha

    def scale(self, layer: str) -> float:
        """The factor of the change that an adapter makes."""
        rank, alpha = self.of(layer)
        return alpha / rank

    def alpha_of(self, origin: str, layer: str, rank: int | None, own: Tensor | None) -> Tensor:
        """The alpha of a layer's adapter, on top of its own."""
        told = {self.of(target) for target in targets(layer, ORIGINAL)}
        if len(told) > 1:
            raise CheckpointError(f"{origin}: {self.where} gives the parts of {layer} different strengths.")
        said, alpha = told.pop()
        if said != rank:
            raise CheckpointError(
                f"{origin}: the adapter of {layer} has rank {rank}, {self.where} says {said}: they do not belong"
                " together."
            )
        return as_alpha(alpha if own is None else alpha * own.item() / said)


@dataclass(frozen=True)
class HeaderEntries:
    """What single entries of a header say of the strength of all layers.

    Attributes:
        alpha: every layer's alpha.
        rank: every layer's rank, if it is said.
        root: whether alpha is divided by the root of the rank, in place of the rank.
    """

    alpha: float
    rank: int | None
    root: bool

    def alpha_of(self, origin: str, layer: str, rank: int | None, own: Tensor | None) -> Tensor:
        """The alpha of a layer's adapter: its own, if it has one."""
        if own is not None:
            return own
        if rank is None or self.rank not in (None, rank):
            raise CheckpointError(
                f"{origin}: the adapter of {layer} has rank {rank}, and the header gives an alpha of {self.alpha:g} for"
                f" rank {self.rank}: they do not belong together."
            )
        return as_alpha(self.alpha * math.sqrt(rank) if self.root else self.alpha)


def read_strengths(
    origin: str, weights: Source, names: Mapping[str, Mapping[str, str]]
) -> PeftSettings | HeaderEntries | None:
    """What a file says of its adapters' strengths outside the tensors; None for nothing.

    Args:
        origin: the file, for messages.
        weights: its tensors and header.
        names: the tensors' names by layer and part.

    Raises:
        CheckpointError: what cannot be read as a strength.
    """
    if HEADER in weights.metadata:
        return parse_settings(weights.metadata[HEADER], f"the header of {origin}", names)
    if any(name.startswith("base_model.model.") for parts in names.values() for name in parts.values()):
        beside = weights.path.parent / PEFT_CONFIG
        if weights.files and beside.is_file():
            if beside.stat().st_size > 2**24:
                raise CheckpointError(f"{beside} is too large to be peft's configuration.")
            return parse_settings(beside.read_text(encoding="utf-8", errors="replace"), str(beside), names)
        if not all("alpha" in parts for parts in names.values()):
            warnings.warn(
                f"{origin} was saved by peft, which keeps the adapter's strength in {PEFT_CONFIG}; it is not beside the"
                " file, and alpha is taken for the rank.",
                stacklevel=3,
            )
    return _header_entries(origin, weights.metadata)


def parse_settings(text: str, where: str, layers: Mapping[str, Any]) -> PeftSettings:
    """Read peft's configuration of an adapter.

    Args:
        text: JSON, its keys bare or after `transformer.`.
        where: the place of it, for messages.
        layers: the layers that have adapters, each with its parts.

    Raises:
        CheckpointError: what is no such configuration.
    """
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise TypeError("it is no object")
        prefixed = {k.removeprefix("transformer."): v for k, v in found.items() if k.startswith("transformer.")}
        found = prefixed or found
        kinds = {lycoris.kind_of(parts) for parts in layers.values()}
        if len(kinds) > 1:
            raise ValueError("it is for one kind of adapter, and the file holds several")
        kind = {None: "LORA", "LoKr": "LOKR", "LoHa": "LOHA"}[kinds.pop() if kinds else None]
        if found.get("peft_type") not in ((None, "LORA") if kind == "LORA" else (kind,)):
            raise ValueError(f"it is of {found.get('peft_type')}, not of {kind}")
        settings = PeftSettings(
            where,
            int(_number(found, "r", 8)),
            _number(found, "lora_alpha" if kind == "LORA" else "alpha", 8),
            {_pattern(key): int(_number(found["rank_pattern"], key)) for key in found.get("rank_pattern") or {}},
            {_pattern(key): _number(found["alpha_pattern"], key) for key in found.get("alpha_pattern") or {}},
            bool(found.get("use_rslora")),
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, re.error) as error:
        raise CheckpointError(f"{where} holds no configuration of a LoRA adapter: {error}.") from error
    if found.get("use_dora") and not any("magnitude" in parts for parts in layers.values()):
        raise CheckpointError(f"{where} speaks of DoRA, but no layer has a magnitude: the file is not whole.")
    return settings


def _header_entries(origin: str, metadata: Mapping[str, str]) -> HeaderEntries | None:
    """The strength by a header's single entries; None where there is no alpha among them."""
    told: dict[str, set[str]] = {"alpha": set(), "rank": set(), "root": set()}
    for key, text in metadata.items():
        if match := STRENGTH.fullmatch(key):
            told[match.lastgroup or ""].add(text.strip().strip('"').lower())
    if not told["alpha"]:
        return None
    try:
        alphas, ranks = {float(text) for text in told["alpha"]}, {int(text) for text in told["rank"]}
    except ValueError:
        alphas, ranks = set(), set()
    if len(alphas) != 1 or len(ranks) > 1 or not all(math.isfinite(alpha) for alpha in alphas):
        given = ", ".join(f"{key}={text}" for key, text in sorted(metadata.items()) if STRENGTH.fullmatch(key))
        raise CheckpointError(f"{origin}: the header's entries for the strength cannot be read: {printable(given)}.")
    return HeaderEntries(alphas.pop(), ranks.pop() if ranks else None, told["root"] == {"true"})


def _number(found: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = found.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{key}` is {value!r}, which is no finite number")
    return value


def _pattern(pattern: str) -> re.Pattern[str]:
    """A pattern for the ends of layers' names, if it is a regular expression that takes no endless time."""
    if len(pattern) > 200 or len(re.findall(r"[*+?{]", pattern)) > 3 or re.search(r"\)[*+?{]", pattern):
        raise ValueError(f"the pattern {pattern[:200]!r} is too involved")
    return re.compile(rf"(.*\.)?({pattern})$")


def as_alpha(value: float) -> Tensor:
    """A number as the tensor that holds it exactly: float32 where that does, else float64."""
    single = torch.tensor(value, dtype=torch.float32)
    return single if single.item() == value else torch.tensor(value, dtype=torch.float64)


def peft_header(
    ranks: Mapping[str, int], alphas: Mapping[str, float], use_dora: bool, lora_bias: bool
) -> dict[str, Any]:
    """peft's configuration of adapters as diffusers keeps it in a header, each key after `transformer.`.

    Args:
        ranks: by layer.
        alphas: by layer.
        use_dora: whether the layers have magnitudes.
        lora_bias: whether they have biases.
    """
    alphas = {name: int(value) if value == int(value) else value for name, value in alphas.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    found = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks),
        "use_dora": use_dora,
        "lora_bias": lora_bias,
    }
    return {f"transformer.{key}": value for key, value in found.items()}


def _commonest(values: Mapping[str, Any]) -> Any:
    counts = Counter(values.values())
    return min(counts, key=lambda value: (-counts[value], value))

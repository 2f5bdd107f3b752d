"""What is counted for: a transformer's sizes, the pictures of a step, and the implementations that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

PEER_TEXT = 2048  # `max_sequence_length` of the peer's pipeline unless set


@dataclass(frozen=True)
class Config:
    """Sizes of a transformer, named as in its configuration; the defaults are those of the published weights."""

    in_channels: int = 128
    num_layers: int = 34
    attention_head_dim: int = 256
    num_attention_heads: int = 18
    intermediate_size: int = 12288
    adaln_dim: int = 512
    llm_features_dim: int = 53248

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {size!r}.")

    @property
    def hidden(self) -> int:
        """Channels of the stream."""
        return self.attention_head_dim * self.num_attention_heads

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """The sizes in a transformer's configuration; what is not a size is passed over, what is missing is default."""
        if not isinstance(values, Mapping):
            raise ValueError(f"a configuration maps names to sizes, got {type(values).__name__}.")
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})


@dataclass(frozen=True)
class Sample:
    """One picture in the making: text tokens of its caption, rows and columns of image tokens (of 16 x 16 pixels)."""

    text: int
    rows: int
    cols: int
    guided: bool = True

    def __post_init__(self) -> None:
        if self.text < 0 or self.rows < 1 or self.cols < 1:
            raise ValueError(f"{self}: `text` must not be negative, `rows` and `cols` must be positive.")

    @property
    def image(self) -> int:
        """Image tokens."""
        return self.rows * self.cols


@dataclass(frozen=True)
class Implementation:
    """A way to compute the same velocities.

    Attributes:
        name: how tables call it.
        padded_text: text tokens that the peer pads to, 0 for the longest caption of a call; None for ours, which does
            not pad.
        fused: whether each chain of element-wise work of a block is one kernel.
        last_block_image_only: whether the last block computes queries and all that follows at image tokens only.
        joined: whether a kernel goes on from one layer into the next: sum and norm in one, queries and keys in one.
        rounded: by what the inputs of float8 products are rounded: "torch" in passes of its own, "kernels" where they
            are computed; None for products in the type of the tokens.
    """

    name: str
    padded_text: int | None = None
    fused: bool = False
    last_block_image_only: bool = False
    joined: bool = False
    rounded: str | None = None


IMPLEMENTATIONS = (
    Implementation("diffusers", padded_text=PEER_TEXT),
    Implementation("~ trimmed", padded_text=0),
    Implementation("~ trimmed, fused", padded_text=0, fused=True),
    Implementation("ideoflow", last_block_image_only=True),
    Implementation("~ fused", fused=True, last_block_image_only=True, joined=True),
)
# Whose element-wise bytes are told apart from the rest, pairs of before and after.
KERNELS = (
    Implementation("a kernel for each", fused=True, last_block_image_only=True),
    IMPLEMENTATIONS[-1],
    Implementation("fp8, inputs rounded by torch", fused=True, last_block_image_only=True, rounded="torch"),
    Implementation("fp8, kernels write rows", fused=True, last_block_image_only=True, joined=True, rounded="kernels"),
)
BASE = "ideoflow"  # what the others are compared with

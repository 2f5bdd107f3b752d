"""Which layers of the transformer are quantized."""

from __future__ import annotations

import re

# What holds nearly all weights and takes nearly all time. The rest stays: the layers at both ends, the time embedding
# and the modulation are small, and their errors reach every token.
QUANTIZED_LAYER = re.compile(
    r"layers\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])(\.base_layer)?"  # under an adapter
)


def is_quantized_layer(name: str) -> bool:
    """Whether `quantize_` quantizes the layer of that name."""
    return QUANTIZED_LAYER.fullmatch(name) is not None

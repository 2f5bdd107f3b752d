"""Interleaved multi-axis rotary positions; angles are float32 whatever the model's type, cos and sin are cast after."""

from __future__ import annotations

import torch
from torch import Tensor

from ..configuration import AXES
from ..ops.host import HOST


def rotary_tables(
    position_ids: Tensor, head_dim: int, theta: float, sections: tuple[int, ...], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each token's angles.

    Frequency j < head_dim / 2 is theta^(-2j / head_dim). Its angle comes from the h axis if j % 3 == 1 and
    j < 3 * sections[1], from the w axis if j % 3 == 2 and j < 3 * sections[2], from the t axis otherwise. The angles
    stand twice, for the two halves of a head; the sine of the first half is negated, which `rotate` counts on.

    Args:
        position_ids: (tokens, 3) positions on the axes t, h, w.
        head_dim: channels of a head, even.
        theta: base of the frequencies.
        sections: number of frequencies of the axes t, h, w.
        dtype: type of the result.

    Returns:
        Two tensors (tokens, head_dim).
    """
    # On the host for every device: a last-bit difference of a frequency is 1e-3 of a turn at position 65536.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=HOST) / head_dim
    frequencies = 1.0 / theta**exponents
    axis = torch.zeros(head_dim // 2, dtype=torch.long, device=HOST)
    for h_or_w in (1, 2):
        axis[h_or_w : AXES * sections[h_or_w] : AXES] = h_or_w

    device = position_ids.device
    # Element by element and no matrix product, which autocast would round: bfloat16 cannot tell image positions apart.
    angles = position_ids[:, axis.to(device)].to(torch.float32) * frequencies.to(device)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)

"""The same on a CPU while no gradient is needed: few passes over memory, in place, some tokens at a time.

Float32 inside and one rounding at the end, as the Triton kernels have it. Nothing here checks its arguments:
`ideoflow.ops.kernels` does, and hands over what these take.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rms_norm import RMSNorm
from ..scratch_bytes import BLOCK


def norm_scale(norm: RMSNorm, x: Tensor, scale: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.norm_scale`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    for part in _parts(x):
        wide = x[part].float()
        wide = torch.mul(wide, _inverse_rms(wide, norm.epsilon), out=_room(out[part], wide))
        wide.mul_(_factor(norm.weight, scale, row, part))
        _round_into(out[part], wide)
    return out


def gate_norm_add(norm: RMSNorm, h: Tensor, y: Tensor, gate: Tensor, row: Tensor | None = None) -> Tensor:
    """See `ideoflow.ops.kernels.gate_norm_add`."""
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    for part in _parts(y):
        wide = y[part].float()
        wide = torch.mul(wide, _inverse_rms(wide, norm.epsilon), out=_room(out[part], wide))
        torch.addcmul(h[part].float(), wide, _factor(norm.weight, gate, row, part), out=wide)
        _round_into(out[part], wide)
    return out


def norm_rotate(norm: RMSNorm, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.norm_rotate`."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    half = x.shape[-1] // 2
    weight = norm.weight.float()
    swapped = weight.roll(half)
    for part in _parts(x):
        wide = x[part].float()
        # The weight goes into the tables, which all heads share, and the norm comes last.
        cosine, sine = (cos[part] * weight)[:, None], (sin[part] * swapped)[:, None]
        rotated = torch.mul(wide, cosine, out=out[part] if out.dtype == wide.dtype else torch.empty_like(wide))
        rotated[..., :half].addcmul_(wide[..., half:], sine[..., :half])
        rotated[..., half:].addcmul_(wide[..., :half], sine[..., half:])
        rotated.mul_(_inverse_rms(wide, norm.epsilon))
        _round_into(out[part], rotated)
    return out


def swiglu(x1: Tensor, x3: Tensor) -> Tensor:
    """See `ideoflow.ops.kernels.swiglu`; in half precision rounded twice, as in plain torch."""
    return F.silu(x1).mul_(x3)


def _parts(x: Tensor) -> Iterator[slice]:
    """Slices of the tokens of x, about equal, of at most `BLOCK` entries or one token."""
    tokens = x.shape[0]
    count = min(tokens, -(-x.numel() // BLOCK))
    for number in range(count):
        yield slice(tokens * number // count, tokens * (number + 1) // count)


def _inverse_rms(wide: Tensor, eps: float) -> Tensor:
    """One over the root mean square of the last dimension, which stays with one entry."""
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return norm.square_().div_(wide.shape[-1]).add_(eps).rsqrt_()


def _room(out: Tensor, wide: Tensor) -> Tensor:
    """Where float32 results may go: into the output if that is float32, else over the float32 copy of the input."""
    return out if out.dtype == torch.float32 else wide


def _factor(weight: Tensor, modulation: Tensor, row: Tensor | None, part: slice) -> Tensor:
    """The weight times each token's row of the modulation, in float32."""
    if row is None:
        return modulation.float() * weight
    return modulation.index_select(0, row[part]).float().mul_(weight)


def _round_into(out: Tensor, wide: Tensor) -> None:
    if out.dtype != torch.float32:
        out.copy_(wide)

"""The residual stream that layers read and add to: a sum waits for the norm that follows, since both are one pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..ops.kernels import gate_norm_add, gate_norm_add_norm_scale, norm_scale


class Stream:
    """Hidden states of tokens, and what a layer gave to be added to them.

    What waits is added when the next layer reads, or where the whole is asked for: the numbers are the same.

    Args:
        hidden_states: (tokens, channels).
        time_of_token: (tokens,) row of the modulation of each token.
    """

    def __init__(self, hidden_states: Tensor, time_of_token: Tensor) -> None:
        self._hidden_states = hidden_states
        self._time_of_token = time_of_token
        self._waiting: tuple[nn.Module, Tensor, Tensor] | None = None  # norm, what is to be added, gate

    def read(self, norm: nn.Module, scale: Tensor, reader: nn.Module) -> Any:
        """What `reader` reads, in the form that it takes: norm(whole) * scale, scale (times, channels)."""
        if self._waiting is None:
            return norm_scale(norm, self._hidden_states, scale, self._time_of_token, reader)
        own, added, gate = self._waiting
        self._waiting = None
        self._hidden_states, scaled = gate_norm_add_norm_scale(
            own, self._hidden_states, added, gate, norm, scale, self._time_of_token, reader
        )
        return scaled

    def add(self, norm: nn.Module, added: Tensor, gate: Tensor) -> None:
        """Add gate * norm(added); gate (times, channels)."""
        self.whole()
        self._waiting = norm, added, gate

    def keep(self, wanted: Tensor) -> None:
        """Go on with the tokens of these indices alone."""
        self._hidden_states = self.whole().index_select(0, wanted)
        self._time_of_token = self._time_of_token.index_select(0, wanted)

    def whole(self) -> Tensor:
        """(tokens, channels), all that was added among it."""
        if self._waiting is not None:
            norm, added, gate = self._waiting
            self._waiting = None
            self._hidden_states = gate_norm_add(norm, self._hidden_states, added, gate, self._time_of_token)
        return self._hidden_states

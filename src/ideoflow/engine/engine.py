"""The engine: one Euler step for any set of requests, each branch in one packed stream, until all are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import Context, Ideogram4Transformer2DModel
from ..offload import execution_device
from ..packing import Layout
from .request import Request


class Engine:
    """Steps requests of any sizes, captions and progress together, without changing what each would be alone.

    Args:
        transformer: The conditional branch: text and image tokens.
        unconditional_transformer: The unconditional branch: image tokens alone. None if no request is guided.
        attention_kwargs: Passed to both transformers; `{"scale": s}` scales LoRA adapters.
    """

    def __init__(
        self,
        transformer: Ideogram4Transformer2DModel,
        unconditional_transformer: Ideogram4Transformer2DModel | None,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.attention_kwargs = attention_kwargs
        self._conditional = _Branch(transformer, attention_kwargs)
        self._unconditional = (
            _Branch(unconditional_transformer, attention_kwargs) if unconditional_transformer is not None else None
        )

    @torch.no_grad()
    def prepare_conditional(self, features: Tensor, grid: tuple[int, int]) -> Context:
        """Context of a caption's text features `(tokens, llm_features_dim)` and a picture of `(rows, cols)` tokens."""
        return self._conditional.prepare(features, grid)

    @torch.no_grad()
    def prepare_unconditional(self, grid: tuple[int, int]) -> Context | None:
        """Context of a picture of `(rows, cols)` tokens alone; None without an unconditional transformer."""
        return None if self._unconditional is None else self._unconditional.prepare(None, grid)

    @torch.no_grad()
    def step(self, requests: Sequence[Request]) -> None:
        """Take the next step of each request. Does not wait for the device.

        Args:
            requests: Unfinished ones, each once, in any order.

        Raises:
            ValueError: if a request is done, occurs twice, or is guided without an unconditional transformer.
        """
        if not requests:
            return
        self._check(requests)
        guided = [request for request in requests if request.guided]
        conditional = self._conditional.velocities(requests, [r.conditional for r in requests])
        unconditional: dict[Request, Tensor] = {}
        if guided and self._unconditional is not None:
            contexts = [request.unconditional for request in guided]
            unconditional = self._unconditional.velocities(guided, contexts)  # type: ignore[arg-type]
        for request in requests:
            velocity = conditional[request]
            if request in unconditional:
                guidance = request.guidance[request.step]
                velocity = guidance * velocity + (1.0 - guidance) * unconditional[request]
            request.advance(velocity)

    def run(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Step all requests until each is done; a request that needs fewer steps leaves earlier.

        The caller may change the latents of a request between steps, and interrupts by not going on.

        Yields:
            After each step, the requests that took it.

        Raises:
            FloatingPointError: naming a request that is done and whose latents are not finite.
        """
        active = [request for request in requests if request.status != "done"]
        while active:
            self.step(active)
            for request in active:
                if request.status == "done":
                    request.check()
            yield active
            active = [request for request in active if request.status != "done"]

    def _check(self, requests: Sequence[Request]) -> None:
        if len(set(requests)) != len(requests):
            raise ValueError("`requests` holds a request twice: a request takes one step at a time.")
        for request in requests:
            if request.status == "done":
                raise ValueError(f"{request} has taken all its {request.steps} steps: leave it out of `requests`.")
            if request.guided and self._unconditional is None:
                raise ValueError(
                    f"{request} is guided ({request.guidance[request.step]}), but the engine has no"
                    " `unconditional_transformer`: load one, or use guidance 1."
                )


class _Branch:
    """One transformer, and the packed context of the set of requests that it last ran."""

    def __init__(self, transformer: Ideogram4Transformer2DModel, attention_kwargs: dict[str, Any] | None) -> None:
        self.transformer = transformer
        self.attention_kwargs = attention_kwargs
        self._parts: list[Context] = []
        self._packed: Context | None = None

    def prepare(self, features: Tensor | None, grid: tuple[int, int]) -> Context:
        device = execution_device(self.transformer)
        text_tokens = 0 if features is None else features.shape[0]
        if features is not None:
            features = features.to(device, self.transformer.dtype)
        layout = Layout.of_samples([(text_tokens, *grid)], device=device)
        return self.transformer.prepare(features, layout, attention_kwargs=self.attention_kwargs)

    def velocities(self, requests: Sequence[Request], contexts: Sequence[Context]) -> dict[Request, Tensor]:
        """Velocities `(image_tokens, channels)` of each request in float32, on its latents' device."""
        # Segments of equal length lie side by side, where attention takes them as one batch.
        order = sorted(range(len(requests)), key=lambda i: contexts[i].layout.tokens)
        context = self._pack([contexts[i] for i in order])
        device = context.layout.device
        latents = torch.cat([requests[i].latents for i in order]).to(device, self.transformer.dtype)
        times = torch.stack([requests[i].time for i in order]).to(device)
        velocity = self.transformer.velocity(latents, times, context, attention_kwargs=self.attention_kwargs)
        parts = velocity.to(torch.float32).split(context.layout.image_lengths)
        return {requests[i]: part.to(requests[i].latents.device) for i, part in zip(order, parts, strict=True)}

    def _pack(self, contexts: list[Context]) -> Context:
        """One stream of all contexts, kept while the same ones come in the same order."""
        same = len(contexts) == len(self._parts) and all(a is b for a, b in zip(contexts, self._parts, strict=True))
        if self._packed is None or not same:
            self._packed = None  # free the last set's before making the next
            self._parts, self._packed = contexts, Context.cat(contexts)
        return self._packed

"""One Euler step for any set of requests, each branch in one packed stream."""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from ..model import Context, Ideogram4Transformer2DModel, Modulation
from ..ops.adapters import adapters_active, adapters_scaled, check_adapters
from ..ops.exclusive import exclusive
from ..ops.hooks import execution_device, is_offloaded
from ..ops.weights import Snapshot, snapshot
from ..packing import Layout
from .graphs import Choice, Graphs, Inputs, Store, check_choice
from .out_of_memory import out_of_memory
from .request import Request, Step
from .uninterrupted import uninterrupted

T = TypeVar("T")

SCHEDULES = 4  # kept for each branch: at full size one of 48 steps takes 60 MB


class Denoiser:
    """Steps requests of any sizes, captions and progress together, without changing what each would be alone.

    Args:
        transformer: The conditional branch: text and image tokens.
        unconditional_transformer: The unconditional branch: image tokens alone. None if no request is guided.
        attention_kwargs: Passed to both transformers; `{"scale": s}` scales LoRA adapters.
        cuda_graphs: On CUDA, record the kernels of a step when its layout comes a second time, and replay them whenever
            it comes again, in other requests too. Changes no number. "auto" does so where it pays: in small streams,
            within a share of the memory that is free. True does so in all, and warns where it cannot; False never does.

    Raises:
        ValueError: `cuda_graphs` is none of these.
    """

    def __init__(
        self,
        transformer: Ideogram4Transformer2DModel,
        unconditional_transformer: Ideogram4Transformer2DModel | None,
        attention_kwargs: dict[str, Any] | None = None,
        *,
        cuda_graphs: Choice = "auto",
    ) -> None:
        self.attention_kwargs = attention_kwargs
        insisted = check_choice(cuda_graphs) is True
        store = Store(limit=not insisted) if cuda_graphs else None

        def branch(transformer: Ideogram4Transformer2DModel) -> _Branch:
            graphs = None if store is None else Graphs(transformer, store, insisted)
            return _Branch(transformer, attention_kwargs, graphs)

        self._conditional = branch(transformer)
        self._unconditional = None if unconditional_transformer is None else branch(unconditional_transformer)

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return execution_device(self._conditional.transformer)

    @torch.no_grad()
    def prepare_conditional(self, features: Tensor, grid: tuple[int, int]) -> Context:
        """Context of a caption's text features `(tokens, llm_features_dim)` and a picture of `(rows, cols)` tokens."""
        return self.prepare_projected(self.project_text(features), grid)

    @torch.no_grad()
    def project_text(self, features: Tensor) -> Tensor:
        """Text features `(tokens, llm_features_dim)` to what a context keeps of them, `(tokens, hidden_size)`."""
        with self._exclusive():
            return self._conditional.project(features)

    @torch.no_grad()
    def prepare_projected(self, text: Tensor, grid: tuple[int, int]) -> Context:
        """`prepare_conditional` from what `project_text` gave."""
        with self._exclusive():
            return self._conditional.prepare_projected(text, grid)

    @torch.no_grad()
    def prepare_unconditional(self, grid: tuple[int, int]) -> Context | None:
        """Context of a picture of `(rows, cols)` tokens alone; None without an unconditional transformer."""
        if self._unconditional is None:
            return None
        with self._exclusive():
            return self._unconditional.prepare_projected(None, grid)

    def step(self, requests: Sequence[Request]) -> None:
        """Take the next step of each request, or, if anything fails, of none. Arguments and errors as `compute`."""
        steps = self.compute(requests)
        with uninterrupted():
            for request, step in steps.items():
                request.take(step)

    @torch.no_grad()
    def compute(self, requests: Sequence[Request]) -> dict[Request, Step]:
        """The next step of each request, computed and not taken (`Request.take`).

        Of requests with a cache, those whose steps are not computed pass by: no transformer sees them.

        Does not wait for the device, unless it records a CUDA graph.

        Args:
            requests: Prepared and unfinished ones, each once, in any order.

        Raises:
            ValueError: if a request is finished, not prepared, occurs twice, is guided without an unconditional
                transformer, or has other adapters than the others.
        """
        if not requests:
            return {}
        self._check(requests)
        try:
            return self._euler_steps(requests)
        except Exception as error:
            if not (out_of_memory(error) and self.give_up_graphs("memory ran out")):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the pass's tensors
        return self._euler_steps(requests)

    def retried(self, work: Callable[[], T]) -> T:
        """The outcome of `work`, tried once more if memory runs out, with the memory of graphs and what torch keeps."""
        try:
            return work()
        except Exception as error:
            if not out_of_memory(error):
                raise
        self.give_up_graphs("memory ran out")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return work()

    def give_up_graphs(self, why: str) -> bool:
        """Free all CUDA graphs and record no more, with a warning that says why; whether there were any."""
        found = [graphs for graphs in self._graphs() if len(graphs)]
        for graphs in found:
            graphs.give_up(why)
        return bool(found)

    def free_graphs(self) -> None:
        """Free all CUDA graphs; later steps record others."""
        for graphs in self._graphs():
            graphs.free()

    def _graphs(self) -> list[Graphs]:
        branches = [branch for branch in (self._conditional, self._unconditional) if branch is not None]
        return [branch.graphs for branch in branches if branch.graphs is not None]

    @contextmanager
    def adapted(self, adapters: Sequence[tuple[str, float]] | None) -> Iterator[None]:
        """Prepare contexts, in the block, with adapters of these names and weights; None for those that are active."""
        with self._exclusive(), adapters_active(self._conditional.transformer, adapters):
            yield

    def check_adapters(self, adapters: Sequence[tuple[str, float]]) -> None:
        """See that requests can be computed with adapters of these names.

        Raises:
            ValueError: naming an adapter that the model does not have.
            RuntimeError: if an adapter was fused into the weights.
        """
        check_adapters(self._conditional.transformer, dict(adapters))

    def _exclusive(self) -> AbstractContextManager[None]:
        """While the block runs, no other thread computes with these transformers, if they bear one thread only."""
        branches = [branch for branch in (self._conditional, self._unconditional) if branch is not None]
        return exclusive(*(branch.transformer for branch in branches))

    def _euler_steps(self, requests: Sequence[Request]) -> dict[Request, Step]:
        sides = [side for request in requests for side in request.sides]
        # Contexts are read at once: requests that are cancelled meanwhile let go of theirs.
        needs = {side: side.computes for side in sides}
        conditional = {side: side.conditional for side, (needed, _) in needs.items() if needed}
        unconditional = {side: side.unconditional for side, (_, needed) in needs.items() if needed}
        guided: dict[Request, Tensor] = {}
        unguided: dict[Request, Tensor] = {}
        if conditional:
            with self.adapted(requests[0].adapters):
                guided, unguided = self.velocities(conditional, unconditional)  # type: ignore[arg-type]
        computed = {side: (guided.get(side), unguided.get(side)) for side in sides}
        return {request: request.after(computed) for request in requests}

    def velocities(
        self, conditional: Mapping[Request, Context], unconditional: Mapping[Request, Context]
    ) -> tuple[dict[Request, Tensor], dict[Request, Tensor]]:
        """Velocities `(image_tokens, channels)` of each branch for the next step of requests, by their contexts."""
        velocities = self._conditional.velocities(conditional)
        guided = self._unconditional is not None and unconditional
        return velocities, self._unconditional.velocities(unconditional) if guided else {}  # type: ignore[union-attr]

    def _check(self, requests: Sequence[Request]) -> None:
        if len(set(requests)) != len(requests):
            raise ValueError("`requests` holds a request twice: a request takes one step at a time.")
        if len({request.adapters for request in requests}) > 1:
            raise ValueError("`requests` have different adapters: those of one set share a pass, others take turns.")
        for request in requests:
            if request.status == "done":
                raise ValueError(f"{request} has taken all its {request.steps} steps: leave it out of `requests`.")
            self.check(request)
            if any(one.conditional is None or (one.guided and one.unconditional is None) for one in request.sides):
                raise ValueError(f"{request} is not prepared: call its `prepare` before its first step.")

    def check(self, request: Request) -> None:
        """See that the transformers can take the steps that `request` has before it.

        Raises:
            ValueError: if one is guided and there is no branch to guide it, or the request was made for other sizes of
                transformer.
        """
        ahead = [guidance for guidance in request.guidance[request.step :] if guidance != 1]
        if ahead and self._unconditional is None:
            raise ValueError(
                f"{request} is guided ({ahead[0]}), but there is no `unconditional_transformer`: load one, or use"
                " guidance 1."
            )
        sizes = self._conditional.transformer.config
        found = [("channels of latents", request.latents.shape[1], sizes.in_channels)]
        if request.conditional is not None:
            hidden = sizes.num_attention_heads * sizes.attention_head_dim
            found.append(("channels of text", request.conditional.text.shape[1], hidden))
        for what, given, wanted in found:
            if given != wanted:
                raise ValueError(
                    f"{request} has {given} {what}, but the transformer takes {wanted}: let the pipeline that steps a"
                    " request make it."
                )
        if request.edit is not None and request.edit.source is not None:
            self.check(request.edit.source)


class _Branch:
    """One transformer, and the packed context of the set of requests that it last ran."""

    def __init__(
        self, transformer: Ideogram4Transformer2DModel, attention_kwargs: dict[str, Any] | None, graphs: Graphs | None
    ) -> None:
        self.transformer = transformer
        self.attention_kwargs = attention_kwargs
        self.graphs = graphs
        self._parts: list[Context] = []
        self._packed: Context | None = None
        self._schedules: OrderedDict[tuple[float, ...], Modulation] = OrderedDict()  # the latest last
        self._begun: WeakSet[Request] = WeakSet()  # whose schedules were computed from the weights of `_weights`
        self._weights: Snapshot | None = None

    def project(self, features: Tensor) -> Tensor:
        device = execution_device(self.transformer)
        features = features.to(device, self.transformer.dtype)
        with adapters_scaled(self.transformer, self.attention_kwargs) as rest:
            return self.transformer.project_text(features, attention_kwargs=rest)

    def prepare_projected(self, text: Tensor | None, grid: tuple[int, int]) -> Context:
        layout = Layout.of_samples([(0 if text is None else len(text), *grid)], execution_device(self.transformer))
        return self.transformer.prepare_projected(text, layout)

    def velocities(self, contexts: Mapping[Request, Context]) -> dict[Request, Tensor]:
        """Velocities `(image_tokens, channels)` of each request in float32, on its latents' device."""
        # Segments of equal length lie side by side, where attention takes them as one batch.
        requests = sorted(contexts, key=lambda request: contexts[request].layout.tokens)
        parts = [contexts[request] for request in requests]
        device = parts[0].layout.device
        latents = torch.cat([request.latents for request in requests]).to(device, self.transformer.dtype)
        times = torch.stack([request.time for request in requests]).to(device)
        inputs = Inputs(latents, times, self._modulation(requests))
        if self.graphs is None:
            velocity = self._velocity(inputs, self._pack(parts))
        else:
            velocity = self.graphs.velocity(self._velocity, inputs, parts, lambda: self._pack(parts))
        own = velocity.to(torch.float32).split([length for part in parts for length in part.layout.image_lengths])
        return {request: part.to(request.latents.device) for request, part in zip(requests, own, strict=True)}

    def _velocity(self, inputs: Inputs, context: Context) -> Tensor:
        with adapters_scaled(self.transformer, self.attention_kwargs) as rest:
            return self.transformer.velocity(
                inputs.latents, inputs.times, context, attention_kwargs=rest, modulation=inputs.modulation
            )

    def _pack(self, contexts: list[Context]) -> Context:
        """One stream of all contexts, kept while the same ones come in the same order."""
        same = len(contexts) == len(self._parts) and all(a is b for a, b in zip(contexts, self._parts, strict=True))
        if self._packed is None or not same:
            self._packed = None  # free the last set's before making the next
            self._parts, self._packed = contexts, Context.cat(contexts)
        return self._packed

    def _modulation(self, requests: Sequence[Request]) -> Modulation | None:
        """Rows of whole schedules, computed once for each; None where steps are better computed one by one.

        A schedule is computed anew when a request begins, and when weights have changed as far as that shows: writes
        through `.data` do not, so a request that is under way does not see them.
        """
        ahead = self.transformer.modulates_ahead and not is_offloaded(self.transformer)
        weights = snapshot(self.transformer.time_layers) if ahead else None
        if weights is None or len({request.schedule for request in requests}) > SCHEDULES:
            return None
        if self._weights is None or not self._weights.is_still(weights):
            self._schedules.clear()
        self._weights = weights
        for request in requests:
            if request not in self._begun:
                self._schedules.pop(request.schedule, None)
                self._begun.add(request)
        rows = []
        for request in requests:
            if request.schedule not in self._schedules:
                times = torch.tensor(request.schedule, device=self.transformer.device)
                self._schedules[request.schedule] = self.transformer.modulate(times)
            self._schedules.move_to_end(request.schedule)
            rows.append((self._schedules[request.schedule], request.step))
        while len(self._schedules) > SCHEDULES:
            self._schedules.popitem(last=False)
        return Modulation.of_steps(rows)

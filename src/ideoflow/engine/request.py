"""A request: one picture in the making."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor

from ..checks import all_finite, whole
from ..model import Context
from .step_cache import StepCache, Velocities

Status = Literal["waiting", "running", "done", "failed", "cancelled"]


Guide = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass(eq=False)
class Edit:
    """What the steps of a request do beside Euler's rule, and what is made of its picture at the end.

    Attributes:
        guide: Called as `guide(step, latents, of_source)` with the number of a step, counted from 0, and the latents
            that Euler's rule gives for the request and its source; gives those that the next step begins with. It
            depends on nothing but its arguments: a step that is interrupted is computed again.
        ends: `(steps,)` noise level at which each Euler step ends, where the next one begins at another, to which the
            guide brings the latents; None where each begins where the last one ended.
        source: A request of the same grid that is stepped along, for what the guide makes of the difference. It may
            have fewer steps; then it takes no part in the last ones.
        finish: Makes of the decoded picture `(3, height, width)` in [-1, 1] the one that is given back, which may be of
            another size.
        start: Called with the request by an engine before its first step: gives it what it starts from, such as the
            latents of a picture that is encoded then; None where it has all that. It is called again where memory ran
            out, or it was interrupted.
    """

    guide: Guide | None = None
    ends: Tensor | None = None
    source: Request | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    start: Callable[[Request], None] | None = None

    def check(self, request: Request) -> None:
        """See that the parts fit the request.

        Raises:
            TypeError: a guide, or what starts requests or finishes pictures, that is no function.
            ValueError: noise levels that are not one a step, a source of another grid, of more steps, or without guide.
        """
        for name in ("guide", "finish", "start"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise TypeError(f"{request}: `edit.{name}` is {function!r}: give a function, or None.")
        if self.ends is not None:
            if self.ends.shape != (request.steps,):
                shape = tuple(self.ends.shape)
                raise ValueError(
                    f"{request}: `edit.ends` has shape {shape}: give one for each of {request.steps} steps."
                )
            self.ends = self.ends.to("cpu", torch.float32)
        source = self.source
        if source is None:
            return
        if self.guide is None:
            raise ValueError(f"{request}: a source needs a `guide`, which makes something of it.")
        if source.grid != request.grid or source.steps > request.steps or source.step > request.step:
            raise ValueError(
                f"{request} has {request.steps} steps on a grid of {request.grid}, its source {source.steps} on"
                f" {source.grid}: give a source of the same grid that has as many steps, or fewer."
            )


@dataclass(frozen=True, eq=False)
class Step:
    """A step of a request that has been computed and not taken.

    Attributes:
        velocity: Guided velocity.
        latents: Latents after the step.
        kept: Velocities that steps after it are extrapolated from; None of a request without a cache.
        source: The same of its edit's source; None where there is none, or it has no step left.
    """

    velocity: Tensor
    latents: Tensor
    kept: Velocities | None = None
    source: Step | None = None


@dataclass(eq=False)
class Request:
    """One picture in the making: what it is conditioned on, where it goes, and how far it has come.

    Attributes:
        conditional: Context of its text and image tokens; may be shared with other requests. None until its first step
            if `prepare` makes it.
        unconditional: Context of its image tokens alone; None if no step is guided, or until `prepare` makes it.
        latents: `(image_tokens, channels)`, kept in float32.
        sigmas: `(steps + 1,)` noise levels, decreasing to 0; step i goes from entry i to entry i + 1.
        guidance: Guidance of each step; a step of guidance 1 does not need the unconditional branch.
        grid: `(rows, cols)` of the image tokens.
        id: Name, for messages and for `Engine.cancel`.
        step: Steps taken.
        times: `(steps,)` model time of each step; `1 - sigma` if not given. A caller that follows a scheduler's own
            rounding passes it: the time embedding magnifies the last bit by 10^4.
        text_tokens: Tokens of its caption; read from `conditional` where that is given.
        prepare: Makes both contexts, `(conditional, unconditional)`, when the request starts, so that requests that
            wait hold little memory. They are let go when it is finished.
        priority: Higher goes first, under the engine's policy of that name.
        deadline: Time of `time.monotonic()` at which it fails unless its last step has been taken; None for none.
        adapters: Names and weights of the adapters of its steps, which its contexts were computed with; None for those
            that are active when it is stepped. Requests of other adapters never share a pass.
        on_step: Called with the request once after each of its steps; may change its latents. What it raises fails this
            request and no other. An interrupt from the keyboard within it counts as its return: the step is taken.
        error: What a failed request failed from.
        cancelled: Whether it was given up.
        velocity: Guided velocity of its last step; None before the first.
        settings: What makes the picture again (`ideoflow.provenance`); None where nothing is known of it.
        preview_every: Steps from one preview to the next, where its engine makes any; 0 for none, None for the
            engine's own interval.
        edit: What changes a picture that there is; None where the picture is drawn from noise alone.
        cache: Which steps compute its velocities, the others taking them from those; None where all do.
        kept: Velocities of its last computed steps, where it has a cache.
        engine: The engine that it has been added to, as long as it has steps before it there.
        started: Whether that engine has told of its start.
    """

    conditional: Context | None
    unconditional: Context | None
    latents: Tensor
    sigmas: Tensor
    guidance: tuple[float, ...]
    grid: tuple[int, int]
    id: str = ""
    step: int = 0
    times: Tensor | None = None
    text_tokens: int = 0
    prepare: Callable[[], tuple[Context, Context | None]] | None = None
    priority: int = 0
    deadline: float | None = None
    adapters: tuple[tuple[str, float], ...] | None = None
    on_step: Callable[[Request], None] | None = None
    error: Exception | None = None
    cancelled: bool = False
    velocity: Tensor | None = None
    settings: dict[str, Any] | None = None
    preview_every: int | None = None
    edit: Edit | None = None
    cache: StepCache | None = None
    kept: Velocities = field(default_factory=Velocities, init=False, repr=False)
    engine: weakref.ref[Any] | None = field(default=None, init=False, repr=False)
    started: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            TypeError: naming the part that is of another type.
            ValueError: naming the part that does not.
        """
        self._check_types()
        self.guidance = all_finite("guidance", self.guidance)
        if len(self.guidance) == 0:
            raise ValueError(f"{self}: `guidance` is empty: give the guidance of each step, of one at least.")
        if whole("step", self.step, 0) > self.steps:
            raise ValueError(f"{self}: `step` is {self.step}, but it has {self.steps} steps.")
        if not _is_finite_number(self.priority):
            raise ValueError(f"{self}: `priority` is {self.priority!r}: give a number; higher goes first.")
        if self.deadline is not None and not _is_finite_number(self.deadline):
            raise ValueError(f"{self}: `deadline` is {self.deadline!r}: give a time of `time.monotonic()`, or None.")
        if self.preview_every is not None:
            self.preview_every = whole("preview_every", self.preview_every, 0, ", or None for the engine's")
        self._check_contexts()
        tokens = self.image_tokens
        if self.latents.ndim != 2 or self.latents.shape[0] != tokens:
            raise ValueError(
                f"{self}: `latents` has shape {tuple(self.latents.shape)}, but the grid {self.grid} needs"
                f" ({tokens}, channels)."
            )
        if len(self.sigmas) != len(self.guidance) + 1:
            raise ValueError(
                f"{self}: {len(self.guidance)} steps of `guidance` need {len(self.guidance) + 1} `sigmas`, got"
                f" {len(self.sigmas)}."
            )
        if self.times is not None and self.times.shape != (self.steps,):
            shape = tuple(self.times.shape)
            raise ValueError(f"{self}: `times` has shape {shape}: give one for each of {self.steps} steps.")
        self.latents = self.latents.to(torch.float32)
        self.sigmas = self.sigmas.to("cpu", torch.float32)
        times = 1 - self.sigmas[:-1] if self.times is None else self.times
        # On the device beforehand, so that no step has to wait for a copy.
        self._times = times.to(self.latents.device, torch.float32)
        self._schedule = tuple(times.to("cpu", torch.float32).tolist())
        self._clean: Tensor | None = None  # as estimated by the last step, where a guide has moved the latents since
        if self.cache is not None and (not isinstance(self.cache, StepCache) or self.cache.steps != self.steps):
            steps = f"of {self.cache.steps} steps" if isinstance(self.cache, StepCache) else repr(self.cache)
            raise ValueError(f"{self}: `cache` is {steps}: give a StepCache of {self.steps} steps, or None.")
        if self.edit is not None:
            self.edit.check(self)

    def __repr__(self) -> str:
        return f"Request {self.id or hex(id(self))}"

    @property
    def steps(self) -> int:
        """Number of steps from noise to picture."""
        return len(self.guidance)

    @property
    def image_tokens(self) -> int:
        """Number of image tokens."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens that the next step takes through the transformers, both branches together where it is guided."""
        return self.tokens_of(min(self.step, self.steps - 1))

    def tokens_of(self, step: int) -> int:
        """Tokens that a step takes through the transformers, those of an edit's source among them."""
        branches = 2 if self.guidance[step] != 1 else 1
        text = self.text_tokens
        if self.cache is not None:
            conditional, unconditional = self._computes(step)
            branches, text = conditional + unconditional, text if conditional else 0
        source = self._source(step)
        return text + branches * self.image_tokens + (source.tokens_of(step) if source is not None else 0)

    def _computes(self, step: int) -> tuple[bool, bool]:
        """Whether a step computes the velocity of the conditional branch, and that of the other."""
        guided = self.guidance[step] != 1
        if self.cache is None:
            return True, guided
        # What has nothing to go on from is computed, whatever the cache says.
        lacking = step == self.step and not self.kept.clean
        unguided = guided and not (self.kept.guidance if step == self.step else self._guided_before(step))
        conditional = self.cache.conditional[step] or lacking or unguided
        return conditional, guided and (self.cache.unconditional[step] or unguided)

    def _guided_before(self, step: int) -> bool:
        return any(guidance != 1 for guidance in self.guidance[:step])

    @property
    def sides(self) -> tuple[Request, ...]:
        """Whose velocities the next step needs: the request itself, and its edit's source while that has steps."""
        source = self._source(self.step)
        return (self,) if source is None else (self, source)

    def _source(self, step: int) -> Request | None:
        source = None if self.edit is None else self.edit.source
        return source if source is not None and step < source.steps else None

    @property
    def status(self) -> Status:
        """Whether it has not begun, has steps before it, or has none left; or was given up, and why."""
        if self.error is not None:
            return "failed"
        if self.cancelled:
            return "cancelled"
        if self.step == self.steps:
            return "done"
        return "running" if self.step else "waiting"

    @property
    def finished(self) -> bool:
        """Whether no step will follow."""
        return self.status not in ("waiting", "running")

    @property
    def given_up(self) -> bool:
        """Whether it has failed or was cancelled."""
        return self.status in ("failed", "cancelled")

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and monotonic() >= self.deadline

    @property
    def guided(self) -> bool:
        """Whether its next step needs the unconditional branch."""
        return self.guidance[self.step] != 1

    @property
    def computes(self) -> tuple[bool, bool]:
        """Whether its next step needs the conditional branch, and whether the unconditional one."""
        return self._computes(self.step)

    @property
    def time(self) -> Tensor:
        """Model time of the next step, a float32 scalar on the latents' device.

        The reference pipeline rounds it to the transformer's dtype; in bfloat16 that moves the time by up to 0.002.
        """
        return self._times[self.step]

    @property
    def schedule(self) -> tuple[float, ...]:
        """Model times of all steps, on the host."""
        return self._schedule

    def begin(self, conditional: Context, unconditional: Context | None) -> None:
        """Take the contexts that `prepare` made.

        Raises:
            ValueError: if they do not fit the request.
        """
        self.conditional, self.unconditional = conditional, unconditional
        self._check_contexts()

    def release(self) -> None:
        """Let go of contexts that `prepare` could make again."""
        if self.prepare is not None:
            self.conditional = self.unconditional = None
        if self.edit is not None and self.edit.source is not None:
            self.edit.source.release()

    def moved(self, velocity: Tensor) -> Tensor:
        """Latents after one Euler step along the guided velocity `(image_tokens, channels)`, in float32."""
        levels = self.sigmas[1:] if self.edit is None or self.edit.ends is None else self.edit.ends
        change = float(levels[self.step] - self.sigmas[self.step])
        return self.latents + change * -velocity  # the velocity points to data, where sigma falls

    def after(self, computed: Mapping[Request, tuple[Tensor | None, Tensor | None]]) -> Step:
        """The step that follows from what the branches computed, which `take` takes.

        Args:
            computed: Velocities of the conditional and the unconditional branch, of each of the `sides`; None of a
                branch that was not needed.
        """
        velocity, kept = self._velocity(*computed[self])
        latents = self.moved(velocity)
        if self.edit is None or self.edit.guide is None:
            return Step(velocity, latents, kept)
        source = self._source(self.step)
        if source is None:
            return Step(velocity, self.edit.guide(self.step, latents, None)[0], kept)
        of_source, source_kept = source._velocity(*computed[source])
        latents, source_latents = self.edit.guide(self.step, latents, source.moved(of_source))
        assert source_latents is not None
        return Step(velocity, latents, kept, Step(of_source, source_latents, source_kept))

    def _velocity(self, conditional: Tensor | None, unconditional: Tensor | None) -> tuple[Tensor, Velocities | None]:
        """The guided velocity of the next step, and what a cache keeps after it."""
        guidance = self.guidance[self.step]
        if self.cache is not None:
            level = float(self.sigmas[self.step])
            return self.kept.step(self.cache.order, level, self.latents, guidance, conditional, unconditional)
        assert conditional is not None
        if unconditional is None:
            return conditional, None
        return guidance * conditional + (1.0 - guidance) * unconditional, None

    def take(self, step: Step) -> None:
        """Take a step that has been computed."""
        if self.edit is not None and self.edit.guide is not None:
            self._clean = self.latents + float(self.sigmas[self.step]) * step.velocity
            if step.source is not None and self.edit.source is not None:
                self.edit.source.take(step.source)
        self.velocity, self.latents = step.velocity, step.latents
        self.step += 1
        if step.kept is not None:
            self.kept = step.kept if self.step < self.steps else Velocities()

    @property
    def estimate(self) -> Tensor:
        """Clean latents as the last step's velocity points to them; the latents themselves before the first step."""
        if self._clean is not None:
            return self._clean
        if self.velocity is None:
            return self.latents
        return self.latents + float(self.sigmas[self.step]) * self.velocity

    def check(self) -> None:
        """Wait for the latents and see that they are finite.

        Raises:
            FloatingPointError: if not; a velocity that was not finite shows here, whatever step it came from.
        """
        if not torch.isfinite(self.latents).all():
            raise FloatingPointError(
                f"{self}: its latents are not finite after step {self.step} of {self.steps}. Check the weights, or use"
                " bfloat16 or float32 where float16 overflows."
            )

    def check_latents(self, shape: torch.Size) -> None:
        """See that latents that somebody else has set are a tensor of this shape, and keep them in float32.

        Raises:
            ValueError: if not.
        """
        given = self.latents
        if not isinstance(given, Tensor) or given.shape != shape:
            what = f"has shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"is a {type(given).__name__}"
            raise ValueError(f"{self}: after `on_step` its `latents` {what}: keep a tensor of shape {tuple(shape)}.")
        self.latents = given.detach().to(self._times.device, torch.float32)

    def _check_types(self) -> None:
        for name, required in (("latents", True), ("sigmas", True), ("times", False)):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and (required or value is not None):
                raise TypeError(f"{self}: `{name}` is a {type(value).__name__}: give a tensor.")
        for name in ("prepare", "on_step"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{self}: `{name}` is {value!r}: give a function, or None.")
        if not isinstance(self.grid, (tuple, list)) or len(self.grid) != 2:
            raise TypeError(f"{self}: `grid` is {self.grid!r}: give (rows, cols).")
        for side in self.grid:
            whole("grid", side, 1, " of rows and of columns")

    def _check_contexts(self) -> None:
        if self.conditional is None:
            if self.prepare is None:
                raise ValueError(f"{self}: give the `conditional` context, or `prepare` to make it.")
            return
        contexts = [self.conditional] + ([] if self.unconditional is None else [self.unconditional])
        if any(context.layout.image_lengths != (self.image_tokens,) for context in contexts):
            raise ValueError(
                f"{self}: a grid of {self.grid} needs contexts of one segment with {self.image_tokens} image tokens."
            )
        if self.unconditional is None and any(guidance != 1 for guidance in self.guidance):
            raise ValueError(f"{self}: guidance other than 1 needs the `unconditional` context.")
        self.text_tokens = self.conditional.layout.tokens - self.image_tokens


def _is_finite_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)

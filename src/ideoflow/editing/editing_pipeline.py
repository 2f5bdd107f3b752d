"""What pipelines that change pictures can do: a method for each kind of change, and the requests behind it."""

# No `from __future__ import annotations`: diffusers reads the types of the constructor's arguments.
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .. import latents as latent_tokens
from ..checks import whole
from ..engine import Request
from ..pipeline import Ideogram4Pipeline, Ideogram4PipelineOutput
from ..pipeline.arguments import Drawing, lines_of, prompts_of
from ..pipeline.decoding import check_output_type, explained
from ..pipeline.noise import noise_of
from ..presets import Preset
from ..provenance import KEY, to_text
from ..sizes import SIDE_LIMITS
from .canvas import Canvas, digest
from .caption_edit import CaptionEdit
from .caption_window import seen_caption
from .change import Known
from .image_to_image import ImageToImage
from .inpainting import Inpaint
from .outpainting import outpainted
from .redrawing import redrawn
from .tiles import Tile
from .unknown_options import check_known
from .upscaling import KeptTiles, Tiling, Upscale, key_of
from .variation import Variation

Change = ImageToImage | Inpaint | CaptionEdit | Variation
KINDS = (ImageToImage, Inpaint, CaptionEdit, Variation)


class EditingPipeline(Ideogram4Pipeline):
    """What both pipelines that change pictures can do beside their calls; their parts are those of `Ideogram4Pipeline`.

    `from_pipe` makes one of the other and back; nothing is copied.
    """

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline over the components of another, as `Ideogram4Pipeline.from_pipe` makes it; nothing is copied.

        Args:
            pipeline: The one whose components to take.
            kwargs: As of `Ideogram4Pipeline.from_pipe`.

        Raises:
            TypeError: what is no pipeline.
            ValueError: components that cannot be shared.
        """
        if not isinstance(pipeline, DiffusionPipeline):
            shown = repr(pipeline) if isinstance(pipeline, str) else f"a {type(pipeline).__name__}"
            raise TypeError(
                f"`pipeline` is {shown}: give a pipeline, such as ideoflow.sketch.load() or"
                " Ideogram4Pipeline.from_pretrained(...) gives."
            )
        return super().from_pipe(pipeline, **kwargs)

    @torch.no_grad()
    def make_edits(self, changes: Change | Sequence[Change], prompt: Any, **drawing: Any) -> list[Request]:
        """Make the requests of changed pictures without running them: what an engine steps, alone or among others.

        Args:
            changes: What is to be done, one for each prompt.
            prompt: The caption of what the picture becomes, or a list of them. Boxes count to the picture that is given
                back.
            drawing: Arguments of `make_requests`, but for sizes, which the changes have. `defer` leaves the pictures to
                the engine as well, which encodes each when its request takes its first step.

        Returns:
            `num_images_per_prompt` requests for each prompt, in the order of the prompts.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
        """
        if sized := sorted({"size", "width", "height"} & set(drawing)):
            raise TypeError(f"There is no argument `{sized[0]}`: the changes say their sizes themselves.")
        changes = _changes(changes)
        prompts = prompts_of(prompt)
        if len(changes) != len(prompts):
            raise ValueError(f"{len(changes)} changes and {len(prompts)} prompts: give one prompt for each change.")
        for one, after in zip(changes, prompts, strict=True):
            if isinstance(one, CaptionEdit):
                one.check(after)
        most = (self.config.get("side_limits") or SIDE_LIMITS)[1]
        canvases = [change.canvas(self._unit, most) for change in changes]
        seen = [_seen(*each) for each in zip(prompts, changes, canvases, strict=True)]
        sizes = [
            change.size if canvas is None else canvas.picture.size
            for change, canvas in zip(changes, canvases, strict=True)
        ]
        fresh = self.make_requests(seen, **drawing, size=sizes)
        known: list[Known | None]
        if drawing.get("defer"):  # once for all pictures of a change, when the first of them starts
            known = [None if canvas is None else cache(partial(self._encoded_alone, canvas)) for canvas in canvases]
        else:
            encoded = iter(self._encoded([canvas for canvas in canvases if canvas is not None]))
            known = [None if canvas is None else next(encoded) for canvas in canvases]
        edits = []
        for place, request in enumerate(fresh):
            number = place * len(changes) // len(fresh)  # each change has as many requests, one after another
            change: Any = changes[number]
            canvas = canvases[number]
            if request.settings is not None and seen[number] is not prompts[number]:
                (request.settings["caption"],) = lines_of(prompts[number], strict=False)
            if isinstance(change, CaptionEdit):
                before = self._before(change, canvas, request, drawing)
                edits.append(change.request(request, canvas, known[number], before))  # type: ignore[arg-type]
            else:
                edits.append(change.request(request, canvas, known[number]))
        return edits

    def _encoded(self, canvases: Sequence[Canvas]) -> list[Tensor]:
        """Clean latents of canvases."""
        with self._exclusive():
            return latent_tokens.encode(self.vae, [canvas.picture for canvas in canvases])

    def _encoded_alone(self, canvas: Canvas) -> Tensor:
        return self._encoded([canvas])[0]

    def _before(self, change: CaptionEdit, canvas: Any, fresh: Request, drawing: dict[str, Any]) -> Request:
        """The request of a fresh picture of the old caption, with its own guidance."""
        own = ("generator", "latents", "prompt_features", "num_images_per_prompt")
        same = {name: value for name, value in drawing.items() if name not in own}
        guidance = {"guidance_scale": change.guidance_before, "guidance_schedule": None, "guidance_interval": None}
        seen = _seen(change.before, change, canvas)
        (before,) = self.make_requests(seen, **{**same, **guidance}, size=canvas.picture.size, latents=[fresh.latents])
        if before.settings is not None and seen is not change.before:
            (before.settings["caption"],) = lines_of(change.before, strict=False)
        return before

    def edit(
        self,
        changes: Change | Sequence[Change],
        prompt: Any,
        *,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        max_tokens: int | None = None,
        **drawing: Any,
    ) -> Ideogram4PipelineOutput | tuple[Any]:
        """Make changed pictures, of several kinds of changes at once, all in one packed stream.

        Args:
            changes: What is to be done, one for each prompt: `ImageToImage`, `Inpaint`, `CaptionEdit`, `Variation`.
            prompt: The caption of what the picture becomes, or a list of them.
            output_type: As of `Ideogram4Pipeline.__call__`, and so are all the others.
            return_dict: Whether to return an `Ideogram4PipelineOutput` or a tuple of one.
            attention_kwargs: Strength of adapters.
            callback_on_step_end: Called after each step; it is given the pictures that took it.
            callback_on_step_end_tensor_inputs: What the callback is given.
            max_tokens: Tokens of one pass.
            drawing: `generator`, `preset`, `guidance_scale` and the others of `make_requests`.

        Returns:
            The pictures, `num_images_per_prompt` for each prompt, in the order of the prompts.
        """
        changes = _changes(changes)
        plan = self._plan(prompt, drawing, self.edit)
        tensor_inputs = callback_on_step_end_tensor_inputs or ()
        self.check_inputs(prompt, 2048, 2048, plan.steps, None, plan.guidance, tensor_inputs)
        images = self._draw(
            lambda: self.make_edits(changes, prompt, attention_kwargs=attention_kwargs, **drawing),
            output_type, attention_kwargs, max_tokens, callback_on_step_end, tensor_inputs,
        )  # fmt: skip
        return Ideogram4PipelineOutput(images=images) if return_dict else (images,)

    def redraw(self, image: Any, before: Any, after: Any, **options: Any) -> Any:
        """Draw what differs between two captions of a picture, and leave the rest as it is to the last bit.

        Args:
            image: The picture.
            before: Its caption.
            after: What it is to become.
            options: `margin`, `strength`, `feather`, `harmonise` and `padding` of `redrawn`; the rest as of `edit`.

        Returns:
            As `edit`.
        """
        own, rest = self._parted(options, self.redraw, redrawn)
        return self.edit(redrawn(image, before, after, **own), after, **rest)

    def outpaint(self, image: Any, size: tuple[int, int], prompt: Any, **options: Any) -> Any:
        """Draw a larger picture around a picture, which stays as it is to the last bit.

        Args:
            image: The picture.
            size: `(width, height)` in pixels of the larger one.
            prompt: The caption of the larger one.
            options: `place`, `strength`, `feather` and `harmonise` of `outpainted`; the rest as of `edit`.

        Returns:
            As `edit`.
        """
        own, rest = self._parted(options, self.outpaint, outpainted)
        return self.edit(outpainted(image, size, **own), prompt, **rest)

    def edit_caption(self, image: Any, before: Any, after: Any, **options: Any) -> Any:
        """Change a picture from what its old caption says to what the new one says, without a mask.

        Args:
            image: The picture.
            before: Its caption.
            after: What it is to become.
            options: `strength`, `refine`, `guidance_before` and `fit` of `CaptionEdit`; the rest as of `edit`.

        Returns:
            As `edit`.
        """
        own, rest = self._parted(options, self.edit_caption, CaptionEdit)
        return self.edit(CaptionEdit(image, before, **own), after, **rest)

    def vary(self, prompt: Any, size: tuple[int, int], seed: int, amount: float = 0.2, **options: Any) -> Any:
        """Draw a picture from noise near its own seed's.

        Args:
            prompt: The caption.
            size: `(width, height)` in pixels.
            seed: The other seed.
            amount: How far it goes towards that, from 0 to 1.
            options: As of `edit`; `generator` gives the picture's own noise.

        Returns:
            As `edit`.
        """
        _, rest = self._parted(options, self.vary)
        return self.edit(Variation(seed, size, amount), prompt, **rest)

    @torch.no_grad()
    def upscale(
        self,
        image: Any,
        prompt: Any,
        factor: float = 2.0,
        *,
        strength: float = 0.3,
        tile: int | None = None,
        overlap: float = 0.25,
        keep: Path | str | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        **drawing: Any,
    ) -> Ideogram4PipelineOutput | tuple[Any]:
        """Enlarge a picture beyond what the weights know, drawn anew at low strength in tiles that overlap.

        Args:
            image: The picture.
            prompt: Its caption, of which each tile is given its part.
            factor: How much longer each side becomes; each is rounded to a whole pixel.
            strength: Share of the steps that each tile takes: more invents more.
            tile: Pixels of a tile's side, a multiple of 16; None for 1024, or what the weights know if that is less.
            overlap: Share of a tile's side that it overlaps its neighbours by.
            keep: A folder for tiles that are done: the same call goes on from them where it was stopped. It needs a
                generator of the same seed.
            generator: Source of the noise.
            output_type: "pil", "np", "pt", or "latent" for the tokens, which cover sides in whole tokens.
            return_dict: Whether to return an `Ideogram4PipelineOutput` or a tuple of one.
            attention_kwargs: `{"scale": s}` scales LoRA adapters.
            max_tokens: Tokens of one pass; None for those of one tile, which bounds the memory.
            drawing: `preset`, `guidance_scale` and others of `make_requests`.

        Returns:
            The picture, alone.

        Raises:
            TypeError: naming the argument that is of another type.
            ValueError: naming the argument that does not fit.
            OSError: a file that cannot be read, or written.
        """
        change = Upscale(image, factor, strength, tile, overlap, keep)
        check_output_type(output_type)
        if max_tokens is not None:
            whole("max_tokens", max_tokens, 1)
        prompts = prompts_of(prompt)
        for name, given in (
            ("prompt", len(prompts)),
            ("num_images_per_prompt", drawing.pop("num_images_per_prompt", 1)),
        ):
            if whole(name, given, 1) != 1:
                raise ValueError(f"`{name}` says {given} pictures: one is enlarged at a time.")
        (prompt,) = prompts
        for name in ("latents", "prompt_features"):
            if drawing.pop(name, None) is not None:
                raise ValueError(f"`{name}` is given: each tile has its own, made of `generator` and `prompt`.")
        plan = self._plan(prompt, drawing, self.upscale)
        tiling = change.layout(self._unit, (self.config.get("side_limits") or SIDE_LIMITS)[1])
        (line,) = lines_of(prompt, strict=False)
        (settings,) = self._origin.settings(self, [line], [change.size], plan, generator, None)
        channels = self.transformer.config.in_channels
        (field,) = noise_of([tiling.grid], channels, self._execution_device, generator, None)
        key = {} if keep is None else key_of(change, tiling, field, settings, self.components, attention_kwargs)
        kept = KeptTiles(None if change.keep is None else Path(change.keep), key, channels)
        done = {one: latents for one in tiling.tiles if (latents := kept.get(one)) is not None}
        with self._calls.begin(attention_kwargs), self._in_turn():
            ahead = replace(tiling, tiles=[one for one in tiling.tiles if one not in done])
            requests = self._of_tiles(ahead, field, prompt, change.strength, attention_kwargs, drawing)
            budget = max_tokens or max((one.tokens_of(0) for one in requests), default=1)
            engine = self.engine(attention_kwargs, max_tokens=budget, policy="fifo")
            of_request = dict(zip(requests, ahead.tiles, strict=True))
            for request in requests:
                engine.add(request)
            with self.progress_bar(total=sum(request.steps for request in requests)) as progress:
                for event in engine.run():
                    if event.error is not None:
                        raise explained(event.error, event.request)
                    if event.kind == "step":
                        progress.update()
                    if event.kind == "finished":
                        done[of_request[event.request]] = event.request.latents.cpu()
                        kept.put(of_request[event.request], event.request.latents)
            tokens = tiling.merged(done)
            if output_type == "latent":
                images: Any = tokens.reshape(1, -1, channels)
            else:
                with self._exclusive():
                    picture = tiling.decoded(self.vae, tokens)
                images = self.image_processor.postprocess(picture[None], output_type=output_type)
            self.maybe_free_model_hooks()
        if output_type == "pil":
            told = {"kind": "upscale", "factor": change.factor, "strength": change.strength, "tile": tile,
                    "overlap": overlap, "image": digest(change.image)}  # fmt: skip
            images[0].info[KEY] = to_text({**settings, "edit": told})
        return Ideogram4PipelineOutput(images=images) if return_dict else (images,)

    def _of_tiles(
        self,
        tiling: Tiling,
        field: Tensor,
        prompt: Any,
        strength: float,
        attention_kwargs: Any,
        drawing: dict[str, Any],
    ) -> list[Request]:
        """The requests of an enlarged picture's tiles."""
        if not tiling.tiles:
            return []
        parts = {tile: tiling.part(tile) for tile in tiling.tiles}
        fresh = self.make_requests(
            [tiling.caption(prompt, tile) for tile in tiling.tiles], size=[part.size for part in parts.values()],
            latents=[tiling.noise(tile, field) for tile in tiling.tiles], attention_kwargs=attention_kwargs, defer=True,
            **drawing,
        )  # fmt: skip

        def known(tile: Tile) -> Tensor:
            with self._exclusive():  # one by one, which bounds the memory
                return latent_tokens.encode(self.vae, [parts[tile]])[0]

        return tiling.requests(fresh, field, known, strength)

    def _plan(self, prompt: Any, drawing: dict[str, Any], method: Callable[..., Any]) -> Preset:
        """Check the arguments of `make_requests` among those of a method, and give what its steps are."""
        check_known(drawing, self._drawing(), method)
        return Drawing(prompt, **{name: value for name, value in drawing.items() if name in DRAWN}).plan

    def _drawing(self) -> list[str]:
        """The arguments of `make_requests` that changes leave to a call."""
        return [name for name in inspect.signature(self.make_requests).parameters if name not in NOT_DRAWN]

    def _parted(
        self, options: dict[str, Any], method: Callable[..., Any], maker: Callable[..., Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A method's options: those of what makes the change, and those of `edit`.

        Raises:
            TypeError: an option that there is none of, saying what there is.
        """
        own = [] if maker is None else list(inspect.signature(maker).parameters)
        of_edit = [name for name in inspect.signature(self.edit).parameters if name not in ("changes", "drawing")]
        check_known(options, [*own, *of_edit, *self._drawing()], method)
        made = {name: value for name, value in options.items() if name in own}
        return made, {name: value for name, value in options.items() if name not in own}


DRAWN = tuple(inspect.signature(Drawing).parameters)
NOT_DRAWN = ("prompt", "defer", "size", "width", "height")  # arguments of requests that changes have in their place


def _changes(given: Any) -> list[Change]:
    """Changes as they were given, one or several.

    Raises:
        TypeError: something else.
    """
    changes = [given] if isinstance(given, KINDS) else list(given) if isinstance(given, (list, tuple)) else None
    kinds = ", ".join(kind.__name__ for kind in KINDS)
    if changes is None:
        further = " An `Upscale` is no change: call `upscale`." if isinstance(given, Upscale) else ""
        raise TypeError(f"`changes` is a {type(given).__name__}: give one of {kinds}, or a list of them.{further}")
    if not all(isinstance(change, KINDS) for change in changes):
        raise TypeError(f"`changes` holds something else than {kinds}.")
    return changes


def _seen(prompt: Any, change: Any, canvas: Canvas | None) -> Any:
    return prompt if canvas is None else seen_caption(prompt, change.image.size, canvas.seen)

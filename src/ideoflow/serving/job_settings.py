"""What a client asks for: fields that are checked one by one, and then settled by what the server serves."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidatorFunctionWrapHandler, WrapValidator

from ..captions.schema import encodes
from ..presets import PRESETS, Preset, find_preset
from ..sizes import MAX_ASPECT, misfit
from .api_errors import ApiError
from .records import Format
from .server_settings import MEBIBYTE, ServerSettings

SEEDS = 2**64  # how many a torch generator takes
FRESH_SEEDS = 2**32  # of those drawn here: programs that read JSON numbers as doubles keep them
MOST_SIDE = 100_000  # of numbers that are looked at any further; what the server takes is far less
MOST_COUNT = 10**9
MOST_TEXT = 100_000  # characters of a caption


def _object_or_text(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuse in plain words what a union of types would refuse once for each."""
    if not isinstance(value, (dict, str)):
        raise ValueError("give a caption as a JSON object or as text")
    if isinstance(value, str) and not 0 < len(value.strip()) <= MOST_TEXT:
        raise ValueError(f"give a text of 1 to {MOST_TEXT} characters")
    if isinstance(value, str) and not encodes(value):
        raise ValueError("it holds half of a surrogate pair, which is no character")
    return check(value)


# What a client gives as a caption: JSON as an object or as text, or words.
Given = Annotated[
    dict[str, Any] | Annotated[str, Field(min_length=1, max_length=MOST_TEXT)], WrapValidator(_object_or_text)
]


How = Literal["inpaint", "redraw", "image", "caption"]


class EditOrder(BaseModel):
    """Which picture a job changes, and how."""

    model_config = ConfigDict(extra="forbid")

    job: str = Field(min_length=1, max_length=100, description="The job whose picture is changed; it must be kept.")
    picture: int = Field(0, ge=0, description="Index of that picture.")
    how: How = Field(
        "redraw",
        description="redraw: what differs between the two captions, and nothing else. inpaint: what `mask` or `boxes`"
        " say. caption: from the old caption to the new one, without a mask. image: the whole anew, starting from it.",
    )
    before: Given | None = Field(None, description="The picture's caption as it is; that of its job if left out.")
    boxes: list[list[float]] | None = Field(
        None, min_length=1, max_length=1000, description="For inpaint: [y_min, x_min, y_max, x_max] in thousandths."
    )
    mask: str | None = Field(
        None, max_length=MEBIBYTE, description="For inpaint: a picture file in base64, of the picture's size."
    )
    mask_changes: Literal["white", "black", "transparent"] | None = Field(
        None, description="What of the mask changes; white if left out."
    )
    strength: float | None = Field(None, ge=0, le=1, description="Share of the steps that are taken.")
    feather: int | None = Field(None, ge=0, le=256, description="Pixels over which what is drawn fades in.")
    harmonise: int | None = Field(
        None, ge=0, le=4, description="Further rounds of each step, against seams; none if left out."
    )


class Order(BaseModel):
    """A job's body, as `POST /v1/jobs` takes it."""

    model_config = ConfigDict(extra="forbid")

    caption: Given = Field(description="A caption as a JSON object, the same as text, or prose.")
    size: str | None = Field(
        None, max_length=40, description='"WxH" in pixels, multiples of 16; the server\'s default if left out.'
    )
    preset: str | None = Field(None, max_length=100, description="Name of one that `/v1/server` lists.")
    num_inference_steps: int | None = Field(None, ge=1, le=MOST_COUNT, description="Steps instead of the preset's.")
    guidance_scale: float | None = Field(
        None, ge=0, le=100, allow_inf_nan=False, description="One guidance for all steps instead of the preset's."
    )
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Picture i has seed + i; drawn at random if left out.")
    n: int = Field(1, ge=1, le=MOST_COUNT, description="Pictures.")
    adapters: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, description="Names and weights of the server's adapters; none if left out."
    )
    format: Format = Field("png", description="File type of the pictures.")
    compression: int | None = Field(
        None, ge=0, le=100, description="Quality of JPEG and WebP; if left out, 95, and WebP keeps every pixel."
    )
    preview_every: int = Field(1, ge=0, le=1000, description="Steps from preview to preview; 0 for none.")
    priority: int = Field(0, ge=-100, le=100, description="Higher goes first, where the server's policy is that.")
    timeout: float | None = Field(None, gt=0, allow_inf_nan=False, description="Seconds that the job may take.")
    stored: bool = Field(True, description="Keep job and pictures; False to let go of them soon after they are done.")
    edit: EditOrder | None = Field(None, description="A kept picture to change, in place of drawing a new one.")


@dataclass(frozen=True)
class ServedModel:
    """What a server has that orders are settled by.

    Attributes:
        settings: its options.
        default_size: (width, height) of pictures where none is asked for.
        default_preset: name of the preset where none is asked for.
        default_guidance: guidance of all steps where none is asked for; None for the preset's.
        side_limits: smallest and largest side that the weights were trained on.
        adapters: names of the adapters.
        writer: who writes captions of clients' words, as far as is known; None for nobody.
        calibrated: steps, mu and std of pictures that the model is calibrated for, which presets with a cache need.
    """

    settings: ServerSettings
    default_size: tuple[int, int]
    default_preset: str
    default_guidance: float | None
    side_limits: tuple[int, int]
    adapters: tuple[str, ...]
    writer: str | None = None
    calibrated: frozenset[tuple[int, float, float]] = frozenset()

    def draws(self, preset: Preset, steps: int) -> bool:
        """Whether the model can draw by a preset in so many steps."""
        return preset.cache is None or (steps, preset.mu, preset.std) in self.calibrated


@dataclass(frozen=True)
class JobSettings:
    """An order with nothing left open.

    Attributes:
        width: pixels.
        height: pixels.
        preset: name of the preset.
        steps: denoising steps.
        guidance: guidance of all steps; None for the preset's of each.
        seeds: seed of each picture.
        adapters: names and weights.
        format: file type.
        preview_every: steps from preview to preview.
        priority: higher goes first.
        timeout: seconds that the job may take; None for no limit.
        stored: whether it is kept.
        compression: quality of JPEG and WebP; None for 95, and WebP that keeps every pixel.
        edit: the picture that is changed, and how; None where a new one is drawn.
    """

    width: int
    height: int
    preset: str
    steps: int
    guidance: float | None
    seeds: tuple[int, ...]
    adapters: Mapping[str, float]
    format: Format
    preview_every: int
    priority: int
    timeout: float | None
    stored: bool
    compression: int | None = None
    edit: EditOrder | None = None

    @classmethod
    def of_request(cls, asked: Mapping[str, Any]) -> JobSettings:
        """What `as_request` wrote, read again."""
        width, height = map(int, asked["size"].split("x"))
        return cls(
            width=width,
            height=height,
            preset=asked["preset"],
            steps=asked["num_inference_steps"],
            guidance=asked["guidance_scale"],
            seeds=tuple((asked["seed"] + picture) % SEEDS for picture in range(asked["n"])),
            adapters=asked["adapters"],
            format=asked["format"],
            preview_every=asked["preview_every"],
            priority=asked["priority"],
            timeout=asked["timeout"],
            stored=asked["stored"],
            compression=asked.get("compression"),
            edit=EditOrder.model_validate(asked["edit"]) if asked.get("edit") else None,
        )

    def as_request(self, caption: dict[str, Any] | str) -> dict[str, Any]:
        """The body that asks for just this."""
        return {
            "caption": caption,
            "size": f"{self.width}x{self.height}",
            "preset": self.preset,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "seed": self.seeds[0],
            "n": len(self.seeds),
            "adapters": dict(self.adapters),
            "format": self.format,
            "compression": self.compression,
            "preview_every": self.preview_every,
            "priority": self.priority,
            "timeout": self.timeout,
            "stored": self.stored,
            **({} if self.edit is None else {"edit": self.edit.model_dump(exclude_none=True)}),
        }


def settle(order: Order, served: ServedModel) -> JobSettings:
    """Fill in what an order leaves open, within what the server allows.

    Raises:
        ApiError: with status 400, naming the field that does not fit.
    """
    settings = served.settings
    width, height = read_size(order.size, served.default_size)
    if width * height > settings.pixel_limit:
        raise wrong(
            "size", f"`size` is {width}x{height}: this server draws at most {settings.pixel_limit} pixels a picture."
        )
    if order.n > settings.max_pictures:
        raise wrong("n", f"`n` is {order.n}: this server draws at most {settings.max_pictures} pictures a job.")
    try:
        preset = find_preset(order.preset or served.default_preset)
    except ValueError as error:
        raise wrong("preset", f"{str(error).replace(', or pass a Preset', '')}") from None
    steps = order.num_inference_steps or preset.steps
    if steps > settings.max_steps:
        raise wrong(
            "num_inference_steps",
            f"`num_inference_steps` is {steps}: this server takes at most {settings.max_steps} steps.",
        )
    if not served.draws(preset, steps):
        known = ", ".join(sorted({str(known) for known, *_ in served.calibrated})) or "no number of"
        raise wrong(
            "preset",
            f"`preset` is {preset.name} and the steps are {steps}: it leaves steps out, and this server's model is"
            f" calibrated for {known} steps.",
        )
    adapters = order.adapters or {}
    for name in adapters:
        if name not in served.adapters:
            known = f"this server has {', '.join(served.adapters)}" if served.adapters else "this server has none"
            raise wrong("adapters", f"`adapters` names {name[:80]!r}: {known}.")
    seed = secrets.randbelow(FRESH_SEEDS) if order.seed is None else order.seed
    limits = [limit for limit in (order.timeout, settings.timeout) if limit is not None]
    return JobSettings(
        width=width,
        height=height,
        preset=preset.name,
        steps=steps,
        guidance=served.default_guidance if order.guidance_scale is None else order.guidance_scale,
        seeds=tuple((seed + picture) % SEEDS for picture in range(order.n)),
        adapters={name: adapters[name] for name in sorted(adapters)},
        format=order.format,
        preview_every=order.preview_every,
        priority=order.priority,
        timeout=min(limits, default=None),
        stored=order.stored,
        compression=order.compression,
        edit=order.edit,
    )


def read_size(text: str | None, default: tuple[int, int]) -> tuple[int, int]:
    """`(width, height)` of `"WxH"`; the default of None and `"auto"`.

    Raises:
        ApiError: with status 400 for what is no size, or none that can be drawn.
    """
    if text is None or text == "auto":
        return default
    width, cross, height = text.lower().partition("x")
    if not (cross and all(side.isascii() and side.isdecimal() and len(side) < 7 for side in (width, height))):
        raise wrong("size", f"`size` is {text[:40]!r}: give WIDTHxHEIGHT in pixels, such as 1024x768, or leave it out.")
    size = int(width), int(height)
    if fault := misfit(*size):
        raise wrong("size", f"`size` is {text}: {fault}")
    return size


def unusual_size(width: int, height: int, limits: Sequence[int]) -> str | None:
    """A remark on a size that the weights were not trained on."""
    least, most = limits
    if min(width, height) >= least and max(width, height) <= min(most, MAX_ASPECT * min(width, height)):
        return None
    return (
        f"{width}x{height} pixels are outside what the weights were trained on (sides of {least} to {most}, aspect"
        f" ratio up to {MAX_ASPECT}:1): the picture may be poor."
    )


def wrong(field: str, message: str) -> ApiError:
    """An error of status 400 that names a field."""
    return ApiError(400, message, code="invalid_value", param=field)


def preset_list(served: ServedModel) -> list[dict[str, Any]]:
    """The presets that the model can draw by, as the server tells of them."""
    return [
        {"name": preset.name, "steps": preset.steps}
        for preset in PRESETS.values()
        if served.draws(preset, preset.steps)
    ]

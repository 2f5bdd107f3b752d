"""What clients of OpenAI's images API send and get, field by field, and the order that a body means.

The fields are those of the `openai` client and, beside them, ours and those that sglang's users know.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from .job_settings import MOST_COUNT, MOST_SIDE, SEEDS, Given, Order, wrong
from .records import Format

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
PRESETS = {
    "low": "V4_TURBO_12",
    "standard": "V4_DEFAULT_20",
    "medium": "V4_DEFAULT_20",
    **dict.fromkeys(("high", "hd", "xhigh", "max"), "V4_QUALITY_48"),
}
QUALITIES: dict[str, Literal["low", "medium", "high"]] = {
    "V4_TURBO_12": "low",
    "V4_DEFAULT_20": "medium",
    "V4_QUALITY_48": "high",
}
EFFECTLESS = ("style", "complexity")  # that would change a picture of OpenAI's models; users hear that they do not here
MOST_PARTIAL = 3
Compression = Annotated[int, Field(ge=0, le=100)]


# What other programs call it, and what there is here.
ELSEWHERE = {
    "steps": "It is called `num_inference_steps`.",
    "cfg_scale": "It is called `guidance_scale`.",
    "guidance": "It is called `guidance_scale`.",
    "batch_size": "It is called `n`.",
    "num_images": "It is called `n`.",
    "loras": "It is called `adapters`: names and weights of those that the server was started with.",
    "negative_prompt": "The model takes none: say in the caption what there is to be instead.",
    "sampler": "There is one sampler; `preset` chooses its steps.",
    "scheduler": "There is one sampler; `preset` chooses its steps.",
}


class ImageBody(BaseModel):
    """A body of `POST /v1/images/generations`. A null means what leaving the field out does."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Given = Field(
        description="A caption as JSON, as text or as an object; or words, which become a minimal caption."
    )
    model: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="The name that /v1/models gives, or one of OpenAI's models, which stands for it."
    )
    n: Annotated[int, Field(ge=1, le=MOST_COUNT)] | None = Field(None, description="Pictures; 1 if left out.")
    size: Annotated[str, Field(max_length=40)] | None = Field(
        None, description='"WxH" in pixels, multiples of 16; the server\'s default if left out, or "auto".'
    )
    quality: Quality | None = Field(
        None,
        description="low is V4_TURBO_12, medium and standard V4_DEFAULT_20, all above V4_QUALITY_48; `preset` decides.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json (if left out), or links to pictures that the server keeps."
    )
    output_format: Format | None = Field(None, description="File type of the pictures; png if left out.")
    output_compression: Compression | None = Field(
        None, description="Quality of JPEG and WebP. If left out, JPEG has 95 and WebP keeps every pixel."
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None, description="auto or opaque; transparent is refused, for the model draws none."
    )
    moderation: Literal["auto", "low"] | None = Field(None, description="Without effect: nothing is moderated.")
    style: Literal["vivid", "natural"] | None = Field(None, description="Without effect: a caption says the style.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Without effect.")
    user: Annotated[str, Field(max_length=1000)] | None = Field(None, description="Without effect, and not kept.")
    safety_identifier: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="Without effect, and not kept."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: Annotated[int, Field(ge=0, le=MOST_PARTIAL)] | None = Field(
        None, description="Previews of each picture in a stream, spread over its steps."
    )
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = Field(
        None, description="Picture i has seed + i; drawn at random if left out."
    )
    preset: Annotated[str, Field(max_length=100)] | None = Field(
        None, description="V4_QUALITY_48, V4_DEFAULT_20 or V4_TURBO_12."
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=MOST_COUNT)] | None = Field(
        None, description="Steps instead of the preset's."
    )
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="One guidance for all steps instead of the preset's."
    )
    adapters: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] | None = Field(
        None, description="Names and weights of the server's adapters."
    )
    format: Format | None = Field(None, description="Another name of `output_format`.")
    width: Annotated[int, Field(ge=1, le=MOST_SIDE)] | None = Field(
        None, description="With `height`, another way to give `size`."
    )
    height: Annotated[int, Field(ge=1, le=MOST_SIDE)] | None = Field(
        None, description="With `width`, another way to give `size`."
    )
    output_quality: Compression | None = Field(None, description="Another name of `output_compression`.")
    drop_unknown: bool = Field(False, description="Leave out all keys of the caption that are not the schema's.")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        """Refuse what is not known, by name: a misspelt field would otherwise change nothing, unseen."""
        if isinstance(data, dict) and (unknown := [name for name in data if name not in cls.model_fields]):
            close = get_close_matches(unknown[0], cls.model_fields, 1)
            meant = ELSEWHERE.get(unknown[0]) or (f"Did you mean `{close[0]}`?" if close else "")
            hint = f" {meant}" if meant else ""
            named = ", ".join(f"`{name[:40]}`" for name in unknown[:5])
            known = ", ".join(cls.model_fields)
            message = f"{named} is not known here.{hint} Known are {known}"
            raise PydanticCustomError(
                "unknown_field", "{message}", {"message": message.encode(errors="replace").decode()}
            )
        return data

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuse a field that contradicts another of the same meaning."""
        if (self.width is None) != (self.height is None):
            raise PydanticCustomError("half_a_size", "`width` and `height` go together")
        own = None if self.width is None else f"{self.width}x{self.height}"
        pairs = (
            ("size", None if self.size == "auto" else self.size, "width` and `height", own),
            ("output_format", self.output_format, "format", self.format),
            ("output_compression", self.output_compression, "output_quality", self.output_quality),
        )
        for name, value, other, same in pairs:
            if value is not None and same is not None and str(value).lower() != str(same):
                raise PydanticCustomError(
                    "contradiction",
                    "{message}",
                    {"message": f"`{name}` is {value!r:.60} and `{other}` say {same!r}: give one"},
                )
        return self

    @property
    def file_format(self) -> Format:
        """File type of the pictures."""
        return self.output_format or self.format or "png"

    @property
    def partials(self) -> int:
        """Previews of each picture."""
        return (self.partial_images or 0) if self.stream else 0

    def order(self) -> Order:
        """What the body asks for.

        Raises:
            ApiError: with status 400 for what the model cannot do.
        """
        if self.background == "transparent":
            raise wrong(
                "background", "`background` is transparent: the model draws opaque pictures. Give auto or opaque."
            )
        compression = self.output_compression if self.output_compression is not None else self.output_quality
        if compression is not None and self.file_format == "png" and compression != 100:
            raise wrong(
                "output_compression",
                f"`output_compression` is {compression}: it goes with jpeg and webp, and a png keeps every pixel.",
            )
        return Order(
            caption=self.prompt,
            size=self.size if self.width is None else f"{self.width}x{self.height}",
            preset=self.preset or PRESETS.get(self.quality or "auto"),
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            n=self.n or 1,
            adapters=self.adapters,
            format=self.file_format,
            compression=None if self.file_format == "png" else compression,
            preview_every=1 if self.partials else 0,
            stored=self.response_format == "url" and not self.stream,
        )

    def remarks(self) -> list[str]:
        """What the body asks for and does not get."""
        return [f"`{name}` has no effect here: say it in the caption" for name in EFFECTLESS if getattr(self, name)]


class ImageView(BaseModel):
    """One picture of an answer."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(None, description="The caption that was drawn, where it is not what was sent.")
    seed: int


class TokenDetails(BaseModel):
    """Tokens of either kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens of a call: those of the caption, and those of the pictures."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    output_tokens_details: TokenDetails
    total_tokens: int


class ImageAnswer(BaseModel):
    """The answer of a call that does not stream."""

    id: str = Field(description="The job's id.")
    created: int
    data: list[ImageView]
    background: Literal["opaque"]
    output_format: Format
    quality: Literal["low", "medium", "high"]
    size: str
    usage: Usage
    prompt_was: str = Field(description="json as sent, repaired, wrapped words, or written by a caption writer.")
    warnings: list[str]


class ModelView(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The models that can be asked for: one."""

    object: Literal["list"]
    data: list[ModelView]

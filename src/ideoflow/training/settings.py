"""Every option of a training run, in sections: one description serves the TOML file, the flags and the checks."""

from __future__ import annotations

import json
import textwrap
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..captions.schema import encodes
from ..presets import MAX_STEPS
from ..sizes import UNIT

# Of `training.optimizers`, and of transformers what depends on warm-up and steps alone; named here without torch.
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adamw_8bit_torchao", "muon"]
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*")
    @classmethod
    def _utf8(cls, given: Any) -> Any:
        for text in given if isinstance(given, list) else [given]:
            if isinstance(text, str) and not encodes(text):
                raise ValueError("holds bytes that are not UTF-8: rename what it names")
        return given


class Data(_Section):
    """What is trained on."""

    data: str = Field("", description="A folder of images with .json or .txt captions beside them or a metadata.jsonl, "
                      "a datasets folder saved to disk, or the name of a dataset on the hub.")  # fmt: skip
    image_column: str = Field("image", description="Of a dataset: the column of pictures.")
    caption_column: str = Field("", description="Of a dataset: the column of captions; found by itself when empty.")
    pixels: Annotated[int, Field(ge=UNIT**2)] = Field(
        1024 * 1024, description="Pixel budget of a picture: larger ones are made smaller, sides multiples of 16."
    )
    crop: bool = Field(False, description="Crop to the exact aspect ratio instead of stretching by a few pixels.")
    convert: bool = Field(False, description="Take 16-bit pictures and other colour models too, plainly converted.")
    wrap: bool = Field(True, description="Put captions in plain text into a minimal JSON caption, the only form the "
                       "model was trained on, as `ideoflow generate` does.")  # fmt: skip
    follow_links: bool = Field(
        False, description="Follow links to pictures, captions and folders outside of the folder."
    )
    validation: str = Field("", description="What is held out and only measured: a share of the data such as 0.1, or a "
                            "folder or dataset of its own; nothing when empty.")  # fmt: skip
    cache: str = Field("", description="Where encoded pictures and captions are kept; by default `cache` in `out`.")
    trigger: str = Field("", description="The word that calls what is taught; written into the adapter's metadata.")

    @field_validator("validation", mode="before")
    @classmethod
    def _share_or_source(cls, given: Any) -> Any:
        text = str(given) if isinstance(given, int | float) and not isinstance(given, bool) else given
        if (share := _number(text)) is not None and not 0 < share < 1:
            raise ValueError("give a share above 0 and below 1, or a folder or dataset")
        return text

    @property
    def share(self) -> float | None:
        """The share of the data that is held out; None where `validation` is empty or names a source."""
        return _number(self.validation)


class Model(_Section):
    """What is trained."""

    model: str = Field("", description="Model folder, file of a transformer's weights, or name on the hub; the bundled "
                       "sketch model when empty.")  # fmt: skip
    base: str = Field(
        "", description="Where all but the transformer comes from when `model` holds a transformer alone."
    )
    branch: Literal["conditional", "unconditional", "both"] = Field(
        "conditional", description="The transformer that sees captions, the one that does not, or both."
    )
    method: Literal["lora", "full"] = Field(
        "lora", description="Train an adapter, or all weights (but the text projection's)."
    )
    rank: Positive = Field(16, description="LoRA: rank of the adapter.")
    alpha: float = Field(0.0, ge=0, description="LoRA: scale of the adapter is alpha / rank; 0 for alpha = rank.")
    targets: list[str] = Field(
        ["attention"], min_length=1,
        description='LoRA: "attention", "attention+feed_forward", "all", or patterns of module names.',
    )  # fmt: skip
    dora: bool = Field(False, description="LoRA: learn magnitudes apart from directions (DoRA).")
    lora_dropout: Share = Field(0.0, description="LoRA: dropout before the adapter.")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Precision of the arithmetic; the weights that are trained stay in float32."
    )
    device: str = Field("", description="cpu, cuda, mps ...; the best there is when empty.")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="Several processes: copy the weights or shard them.")


class Training(_Section):
    """How it is trained."""

    steps: Positive = Field(1000, description="Optimizer steps.")
    tokens: Positive = Field(8192, description="Token budget of a batch: text and image tokens of its samples.")
    accumulate: Positive = Field(1, description="Batches of one step, in all processes together.")
    window: Positive = Field(1024, description="Samples that are packed into batches together.")
    lr: float = Field(1e-4, gt=0, description="Learning rate at its peak.")
    schedule: Schedule = Field("constant_with_warmup", description="Of the learning rate.")
    warmup: Annotated[int, Field(ge=0)] = Field(20, description="Steps until the learning rate is at its peak.")
    optimizer: Optimizer = Field("adamw", description="Those in 8 bits need bitsandbytes or torchao.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Of matrices.")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="Largest norm of the gradient; 0 for no limit.")
    caption_dropout: Share = Field(0.05, description="Share of samples shown without their caption.")
    mu: float = Field(0.0, description="Times: mean of the logit-normal at 512 x 512 pixels.")
    std: float = Field(1.5, gt=0, description="Times: its standard deviation.")
    loss_per: Literal["sample", "token"] = Field("sample", description="What counts the same: samples or image tokens.")
    min_snr: Annotated[float, Field(ge=0)] = Field(0.0, description="Gamma of min-SNR weights; 0 for none.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of the moving average that is saved; 0 for none."
    )
    gradient_checkpointing: bool = Field(False, description="Compute blocks again in the backward pass to save memory.")
    compile: bool = Field(False, description="Compile the blocks with torch.compile.")
    seed: int = Field(0, description="Of adapters, order, times and noise.")
    explode: Annotated[float, Field(gt=1)] = Field(
        20.0, description="Stop when the loss is this many times its recent average."
    )


class Output(_Section):
    """What is written."""

    out: str = Field("runs/train", description="Folder of the run.")
    save_every: Positive = Field(100, description="Steps between checkpoints.")
    validate_every: Positive = Field(50, description="Steps between losses on what `validation` holds out.")
    keep: Positive = Field(3, description="Checkpoints that are kept.")
    also: list[Literal["comfy"]] = Field([], description='Other forms of the adapter: "comfy".')
    preview_every: Annotated[int, Field(ge=0)] = Field(0, description="Steps between previews; 0: only at the end.")
    previews: list[str] = Field([], description="Captions (text, JSON, files) to draw; the data's first 4 if empty.")
    preview_steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = Field(20, description="Denoising steps of a preview.")
    preview_guidance: Annotated[float, Field(ge=1)] = Field(7.0, description="Guidance of a preview.")
    preview_size: str = Field("", description="WIDTHxHEIGHT of the previews; the data's first sizes when empty.")

    @property
    def record(self) -> Path:
        """The file in the run's folder that keeps its settings."""
        return Path(self.out) / "train.toml"


SECTIONS: dict[str, type[_Section]] = {"data": Data, "model": Model, "training": Training, "output": Output}


class Settings(BaseModel):
    """All options of a run. `Settings.read` makes one from a file and flags, `template` the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Data = Data()
    model: Model = Model()
    training: Training = Training()
    output: Output = Output()

    @field_validator("data")
    @classmethod
    def _named(cls, data: Data) -> Data:
        if not data.data:
            raise ValueError("name a folder of pictures with captions, or a dataset.")
        return data

    @classmethod
    def read(cls, path: str | Path | None = None, **flags: Any) -> Settings:
        """Settings from a TOML file, single options overridden by name.

        Raises:
            ValueError: an option that does not exist or cannot have its value; the message names it and what it takes.
            OSError: if the file cannot be read.
        """
        values: dict[str, dict[str, Any]] = {}
        if path is not None:
            try:
                values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{path} is not TOML: {error}.") from None
        homes = {name: section for section, kind in SECTIONS.items() for name in kind.model_fields}
        for name, value in flags.items():
            if name not in homes:
                raise ValueError(f"there is no option `{name}`; there are {', '.join(homes)}.")
            values.setdefault(homes[name], {})[name] = value
        return cls.of(values)

    @classmethod
    def resumed(cls, **flags: Any) -> Settings:
        """Settings of the run in the folder `out`, single options overridden by name.

        Raises:
            ValueError: if the folder holds no run and the flags do not say enough for a new one.
        """
        record = Output.model_validate({k: flags[k] for k in ("out",) if k in flags}).record
        if record.is_file():
            return cls.read(record, **flags | {"out": str(record.parent)})
        if "data" not in flags:
            raise ValueError(f"{record.parent} holds no run to go on with: name its folder with --out.")
        return cls.read(**flags)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Settings:
        """Settings from nested values, with errors for people."""
        try:
            return cls.model_validate({"data": {}, **values})
        except ValidationError as error:
            raise ValueError("; ".join(_explain(e) for e in error.errors())) from None


def check_new(out: Path) -> None:
    """See that a folder holds no other run.

    Raises:
        ValueError: if checkpoints are in it.
    """
    if any(path.is_dir() for path in (out / "checkpoints").glob("step-*")):
        raise ValueError(
            f"{out} holds checkpoints of an earlier run: go on with it (--resume), remove them, or train into another"
            " folder (--out)."
        )


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _explain(error: Any) -> str:
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        known = SECTIONS[where[0]].model_fields if len(where) > 1 else SECTIONS
        return f"there is no option `{'.'.join(where)}`; there are {', '.join(known)}"
    given = "" if isinstance(error["input"], dict | BaseModel) else f", got {error['input']!r}"
    return f"`{'.'.join(where)}`: {error['msg'].removeprefix('Value error, ')}{given}"


def template(settings: Settings | None = None) -> str:
    """A TOML file with every option, its default (or its value in `settings`) and what it means."""
    lines = ["# Options of `ideoflow train`; each is also a flag, as in --lr 2e-4, which wins over this file."]
    for section, kind in SECTIONS.items():
        lines += ["", f"# {kind.__doc__}", f"[{section}]"]
        for name, field in kind.model_fields.items():
            lines += [f"# {line}" for line in textwrap.wrap(field.description or "", 110)]
            value = field.default if settings is None else getattr(getattr(settings, section), name)
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # Of strings, numbers, booleans and lists of them, JSON is TOML, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

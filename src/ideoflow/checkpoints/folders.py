"""A pipeline's folder: what its index names must be there, and the components without weights are read from it.

All of this is checked before a weight is loaded.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Collection, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import transformers
from diffusers import SchedulerMixin
from transformers import PreTrainedTokenizerBase

from .component_configs import making, not_misspelt
from .errors import CheckpointError, read_json, read_object, some

INDEX = "model_index.json"
LARGEST = 256 * 2**20  # bytes of a tokenizer's file; Qwen's has 11 MB
NEEDED = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
OPTIONAL = ("unconditional_transformer", "prompt_enhancer_head")
NUMBERS = ("text_encoder_taps", "side_limits")  # which our pipeline writes into an index, besides components
# A folder without an index is a pipeline if it holds these, and the scheduler may be missing too.
USUAL: dict[str, tuple[str, str]] = {
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "transformer": ("diffusers", "Ideogram4Transformer2DModel"),
    "unconditional_transformer": ("diffusers", "Ideogram4Transformer2DModel"),
    "text_encoder": ("transformers", "Qwen3VLModel"),
    "prompt_enhancer_head": (
        "ideogram4",
        "Ideogram4PromptEnhancerHead",
    ),  # as diffusers writes it: its pipeline's folder
}
# Modules that an index may name without having been imported: nothing else is, for importing runs code.
LIBRARIES = ("diffusers", "transformers", "ideogram4")
# Other names of a class that the weights of the same component can be loaded into.
_SAME = {"Qwen3VLForConditionalGeneration": "Qwen3VLModel", "AutoModel": "Qwen3VLModel"}
# Text that a byte-level tokenizer gives back as it was, whatever its vocabulary.
PROBE = f"{{{string.printable.strip()} naïve 日本 ÷ A quick brown fox}}"


def index_of(folder: Path, given: Collection[str] = ()) -> dict[str, Any]:
    """The index of a pipeline's folder: the one it holds, or one made by the folders in it. Everything is there.

    Args:
        folder: the pipeline's.
        given: components that the caller has, so that they need not be there.

    Raises:
        CheckpointError: naming the component, and the folder, that is missing or not what it should be.
    """
    if not (folder / INDEX).is_file():
        return _made_index(folder, given)
    file = folder / INDEX
    index = read_json(file)
    if not isinstance(index, dict):
        raise CheckpointError(f"{file} is no index of a pipeline: it must be a JSON object.")
    name = index.get("_class_name")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{file}: `_class_name` is {str(name)[:60]!r}; a pipeline whose code comes with its files is never run."
        )
    not_misspelt(index, (*NEEDED, *OPTIONAL, *NUMBERS), file)
    for component in (*NEEDED, *OPTIONAL):
        if component not in given:
            _check_component(folder, component, index.get(component, [None, None]), name)
    for key in NUMBERS:
        numbers = index.get(key, [])
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise CheckpointError(f"{file}: {key!r} is {str(numbers)[:60]}, and must be a list of whole numbers.")
    limits = index.get("side_limits")
    if limits is not None and not (len(limits) == 2 and 0 < limits[0] <= limits[1]):
        raise CheckpointError(f"{file}: 'side_limits' is {str(limits)[:60]}, and must be the smallest and the largest.")
    other = OPTIONAL[0]
    if other not in (*index, *given) and (folder / other).is_dir():
        raise CheckpointError(
            f"{file} does not name {folder / other}, which is there: name it, or write [null, null] to do without it."
        )
    return index


def _check_component(folder: Path, name: str, entry: Any, pipeline: str) -> None:
    """Raise unless an index's entry names a class that is known, and the component's folder is there."""
    file = folder / INDEX
    if not (isinstance(entry, list) and len(entry) == 2):
        raise CheckpointError(f"{file}: {name!r} is {str(entry)[:60]}, and must be a library and a class.")
    library, kind = entry
    if library is None and kind is None:
        if name in NEEDED:
            raise CheckpointError(
                f"{file}, the index of a {pipeline}, names no {name!r}, which the pipeline needs:"
                f" {_alone(folder) or f'give one (`{name}=...`), or fetch the folder again.'}"
            )
        return
    if not all(isinstance(one, str) and re.fullmatch(r"[\w.]{1,200}", one) for one in entry):
        raise CheckpointError(f"{file}: {name!r} is {str(entry)[:60]}, and must be a library and a class.")
    if not (folder / name).is_dir():
        raise CheckpointError(
            f"{folder / name} is missing: {file} names this component ({kind}). The download may have stopped early:"
            f" fetch the folder again{_without(name)}."
        )
    if (folder / name / f"{library}.py").exists() or (library not in LIBRARIES and library not in sys.modules):
        raise CheckpointError(
            f"{file}: {name!r} is of {library!r}, code that is no part of diffusers or transformers and is never run."
            f" Load the component yourself and give it: `{name}=...`."
        )
    wanted = USUAL.get(name)
    library = "ideogram4" if name == "prompt_enhancer_head" and library == "diffusers" else library
    if name not in ("scheduler", "tokenizer") and wanted and (library, _SAME.get(kind, kind)) != wanted:
        raise CheckpointError(
            f"{file}: {name!r} is a {library}.{kind}, and this pipeline's is a {'.'.join(wanted)}. If it fits, load it"
            f" yourself and give it: `{name}=...`."
        )


def _without(name: str) -> str:
    if name != "unconditional_transformer":
        return ""
    return ", or, for a model that is made to do without it, write [null, null] in its place"


def _made_index(folder: Path, given: Collection[str]) -> dict[str, Any]:
    found = [name for name in USUAL if (folder / name).is_dir()]
    missing = [name for name in NEEDED if name not in (*found, *given, "scheduler")]
    if missing:
        there = sorted(entry.name for entry in folder.iterdir())
        raise CheckpointError(
            f"{folder} is no pipeline: it has no {INDEX}, and of the folders that would do without one"
            f" {some(missing)} are missing (there is {some(there) or 'nothing'})."
            f" {_alone(folder) or 'For a single model, load it with its own class.'}"
        )
    return {"_class_name": "Ideogram4Pipeline", **{name: list(USUAL[name]) for name in found}}


def _alone(folder: Path) -> str:
    """What to do with a folder that holds a transformer alone; nothing where it does not."""
    if not is_alone(folder):
        return ""
    return (
        "It holds a transformer alone: say which folder everything else comes from"
        " (`from_pretrained(folder, config=...)`; on the command line, --base)."
    )


def transformer_folder(folder: Path) -> Path | None:
    """Where in a folder the transformer's weights lie: in `transformer/`, or in the folder itself."""
    for place in (folder / "transformer", folder):
        if place.is_dir() and any(entry.name.endswith((".safetensors", ".gguf")) for entry in place.iterdir()):
            return place
    return None


def is_alone(folder: Path) -> bool:
    """Whether a folder holds a transformer without what else a pipeline needs."""
    others = ("vae", "text_encoder", "tokenizer")
    return transformer_folder(folder) is not None and not any((folder / name).is_dir() for name in others)


def load_scheduler(folder: Path, index: Mapping[str, Any]) -> Any:
    """The scheduler of a pipeline's folder.

    Raises:
        CheckpointError: naming its file and what is wrong in it.
    """
    file = folder / "scheduler" / "scheduler_config.json"
    kind = _class(folder, "scheduler", index, SchedulerMixin, diffusers)
    found = read_object(file)
    not_misspelt(found, kind._get_init_keys(kind), file)
    for key, value in found.items():
        if isinstance(value, (dict, list)) and key in kind._get_init_keys(kind) and "betas" not in key:
            raise CheckpointError(f"{file}: `{key}` is {str(value)[:60]}, and must be a single value.")
    steps = found.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 < steps <= 2**20:
        raise CheckpointError(f"{file}: `num_train_timesteps` is {str(steps)[:60]}, and must be a whole number.")
    with making(file, "scheduler"):
        scheduler = kind.from_config(found)
        if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            _check_levels(scheduler)
    return scheduler


def _check_levels(scheduler: Any) -> None:
    """Raise unless the noise levels that come of its configuration are numbers that fall to 0."""
    for key, kind in type(scheduler).__init__.__annotations__.items():
        value = scheduler.config.get(key)
        if kind is bool and not isinstance(value, bool):
            raise ValueError(f"`{key}` is {value!r}, and must be true or false")
        if (
            kind in (int, float)
            and value is not None
            and (isinstance(value, bool) or not isinstance(value, (int, float)))
        ):
            raise ValueError(f"`{key}` is {value!r}, and must be a number")
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(sigmas=[0.9, 0.5, 0.1], device="cpu", **({"mu": 1.0} if own.config.use_dynamic_shifting else {}))
    levels = own.sigmas.tolist()
    falling = all(a > b for a, b in pairwise(levels))
    if not (all(0 <= level <= 1 for level in levels) and (falling or own.config.invert_sigmas)):
        raise ValueError(f"noise levels of 0.9, 0.5, 0.1 become {levels}")


def load_tokenizer(folder: Path, index: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of a pipeline's folder, which must have a chat template and give a text back as it was.

    Raises:
        CheckpointError: naming the folder and what is missing or wrong in it.
    """
    place = folder / "tokenizer"
    files = sorted(entry.name for entry in place.iterdir())
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
        raise CheckpointError(
            f"{place} holds no tokenizer: it must have a tokenizer.json, or a vocab.json and a merges.txt (there is"
            f" {some(files) or 'nothing'}). Fetch the folder again."
        )
    kind = _class(folder, "tokenizer", index, PreTrainedTokenizerBase, transformers)
    for name in files:
        if name.endswith(".json"):
            found = read_json(place / name, LARGEST)
            if not isinstance(found, dict):
                raise CheckpointError(f"{place / name} must be a JSON object, as its kind are.")
            if "auto_map" in found:
                raise CheckpointError(f"{place / name} names code that comes with the tokenizer, which is never run.")
    with making(place, "tokenizer"):
        tokenizer = _loaded(kind, place)
        said = tokenizer.decode(
            tokenizer(PROBE, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False
        )
        if said.strip() != PROBE:
            raise ValueError(f"it gives {PROBE!r} back as {said[:200]!r}")
        numbers = sorted(tokenizer.get_vocab().values())
        if numbers != list(range(len(numbers))):
            raise ValueError(f"its {len(numbers)} tokens are not numbered from 0 to {len(numbers) - 1}")
    if not tokenizer.chat_template:
        raise CheckpointError(
            f"{place} holds no chat template, which every caption is put into: it must have a chat_template.jinja, or"
            " `chat_template` in its tokenizer_config.json. Fetch the folder again."
        )
    with making(place, "chat template"):
        message = [{"role": "user", "content": [{"type": "text", "text": PROBE}]}]
        put = [
            tokenizer.apply_chat_template(message, add_generation_prompt=ask, tokenize=False) for ask in (True, False)
        ]
        if PROBE not in put[0]:
            raise ValueError("it leaves the caption out")
        if put[0] == put[1]:
            raise ValueError("it has no generation prompt")
    return tokenizer


def _loaded(kind: Any, place: Path) -> Any:
    try:
        return kind.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # a panic of the tokenizers' Rust code is no Exception
        if type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from error
        raise


def _class(folder: Path, name: str, index: Mapping[str, Any], base: type, library: Any) -> Any:
    """The class that an index names for a component, which is of `base`."""
    module, kind = index[name]
    found = getattr(library if module in LIBRARIES else sys.modules[module], kind, None)
    if not isinstance(found, type) or not issubclass(found, base):
        raise CheckpointError(f"{folder / INDEX}: {name!r} is a {module}.{kind}, and there is no such {name}.")
    return found

"""Files by path, folder or hub id: the few that a transformer or an adapter needs, fetched once and kept."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import HfHubHTTPError

from ..bundled import SKETCH
from .errors import CheckpointError, some
from .source import STEMS

HUB_ERRORS = (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
# The file of an adapter's folder, where several could be meant: what diffusers and peft write.
LORA_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def local_folder(path: str | os.PathLike[str], subfolder: str | None, variant: str | None, hub: dict[str, Any]) -> Path:
    """The folder on this machine: as it is, or of a hub id after fetching its configuration and weights.

    Args:
        path: a folder, or a hub id such as `name/model`.
        subfolder: a folder in it.
        variant: the variant whose weights are fetched.
        hub: arguments of `huggingface_hub`, those of `HUB_ARGUMENTS`.

    Raises:
        CheckpointError: what is no folder here, and no model that the hub gives.
    """
    folder = Path(path).expanduser()
    if folder.exists():
        return folder / subfolder if subfolder else folder
    check_id(path)
    inside = f"{subfolder}/" if subfolder else ""

    def fetch(names: list[str] | None, hub: Mapping[str, Any]) -> Path:
        patterns = [f"{inside}config.json", *_weights(names, inside, variant)] if names else [f"{inside}*"]
        return Path(snapshot_download(str(path), allow_patterns=patterns, **hub)) / (subfolder or "")

    return _fetched(path, str(path), hub, fetch)


def _fetched(
    path: str | os.PathLike[str],
    repository: str,
    hub: Mapping[str, Any],
    fetch: Callable[[list[str] | None, Mapping[str, Any]], Path],
) -> Path:
    """What `fetch` gives for the names of a repository's files, or for None where the cache alone is looked into.

    The hub is asked once. Where it cannot be reached, huggingface_hub's downloads would try for half a minute.

    Args:
        path: what the user asked for, for messages.
        repository: its name.
        hub: arguments of `huggingface_hub`.
        fetch: called with the names and with the arguments for fetching.

    Raises:
        CheckpointError: what neither the hub nor its cache gives.
    """
    with fetching(path):
        if hub.get("local_files_only"):
            return fetch(None, hub)
        try:
            found = HfApi(token=hub.get("token")).model_info(repository, revision=hub.get("revision"))
        except Exception as error:
            if not _is_of_the_way(error):
                raise
            try:
                return fetch(None, {**hub, "local_files_only": True})
            except LocalEntryNotFoundError:
                raise error from None
        return fetch([file.rfilename for file in found.siblings or ()], hub)


def _is_of_the_way(error: Exception) -> bool:
    """Whether an error is about the way to the hub, and not the hub's answer."""
    # Where there is no connection the hub's library lets its HTTP library's errors out; which one that is changes.
    kinds = isinstance(error, (OfflineModeIsEnabled, OSError)) or type(error).__module__.startswith("httpx")
    return kinds and not isinstance(error, HfHubHTTPError)


def check_id(path: str | os.PathLike[str]) -> None:
    """Raise for what is nothing here and can be no hub id, or is nearly the name of a folder: no network is asked.

    Raises:
        CheckpointError: with the names that are near.
    """
    text = str(path)
    near = _near(text)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and not near:
        return
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if text == SKETCH:
        hint = " Only the command line knows the bundled model by that name: give `ideoflow.sketch.path()`."
    raise CheckpointError(f"{text}: there is no such folder here, and a hub id has the form name/model.{hint}")


def _near(text: str) -> list[str]:
    """Folders here, and the bundled model, whose names are nearly this one."""
    place = Path(text).expanduser()
    if not place.name or not place.parent.is_dir():
        return []
    try:
        folders = {entry.name: str(entry) for entry in place.parent.iterdir() if entry.is_dir()}
    except OSError:
        folders = {}
    if place.name == text:
        folders[SKETCH] = f"{SKETCH} (the bundled model; in Python `ideoflow.sketch.path()`)"
    likeness = 0.75 if place.name == text else 0.9  # a hub's names may be near those of folders: 4-nf4 and 4-fp8
    return [folders[name] for name in difflib.get_close_matches(place.name, folders, 3, likeness)]


@contextmanager
def fetching(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a hub raises, or the way to it, into one error that names what was asked for.

    Raises:
        CheckpointError: in place of those.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, HUB_ERRORS) and not _is_of_the_way(error):
            raise
        reason = str(error).strip().splitlines()
        address = str(path).startswith(("http://", "https://"))
        what = "it" if address else "there is no such file or folder here, and as a hub id it"
        raise CheckpointError(
            f"{path}: {what} cannot be fetched ({type(error).__name__}: {reason[0] if reason else 'no reason given'})."
        ) from error


def local_file(path: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    """The file on this machine: as it is, or of a hub address `https://HOST/name/model/blob/main/FILE`."""
    match = re.fullmatch(r"https?://[^/]+/([^/]+/[^/]+)/(?:blob|resolve)/([^/]+)/(.+)", str(path))
    if match is None:
        if str(path).startswith(("http://", "https://")):
            raise CheckpointError(f"{path} is no address of a hub's file: fetch it yourself, and give its path.")
        return Path(path).expanduser()
    name, revision, file = match.groups()
    return _fetched(path, name, {"revision": revision, **hub}, lambda _, hub: Path(hf_hub_download(name, file, **hub)))


def _weights(names: list[str], inside: str, variant: str | None) -> list[str]:
    """Of a repository's files, those that hold the weights of one variant."""
    part = re.escape(f".{variant}") if variant else ""
    stems = "|".join(STEMS)
    known = re.compile(
        rf"{re.escape(inside)}(({stems}){part}(-\d+-of-\d+)?\.safetensors|({stems})\.safetensors\.index{part}\.json)"
    )
    found = [name for name in names if known.fullmatch(name)]
    loose = [n for n in names if n.startswith(inside) and "/" not in n[len(inside) :] and n.endswith(".safetensors")]
    return found or ([] if variant else loose)


def find_lora(
    path: str | os.PathLike[str],
    weight_name: str | None = None,
    subfolder: str | None = None,
    hub: Mapping[str, Any] | None = None,
) -> Path:
    """The file of a LoRA adapter on this machine, of whatever `path` is.

    Args:
        path: a file, a folder, a hub's address of a file, or a hub id.
        weight_name: the file's name in the folder; None for what diffusers and peft call theirs, or the only one.
        subfolder: a folder in it.
        hub: arguments of `huggingface_hub`, those of `HUB_ARGUMENTS`.

    Raises:
        CheckpointError: no such file, or several that could be meant.
    """
    if str(path).startswith(("http://", "https://")):
        return local_file(path, dict(hub or {}))
    place = Path(path).expanduser()
    if place.is_file():
        return place
    if place.is_dir():
        folder = place / (subfolder or "")
        if weight_name is not None:
            if not (folder / weight_name).is_file():
                raise CheckpointError(f"{folder}: there is no file {weight_name!r} in this folder.")
            return folder / weight_name
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file()) if folder.is_dir() else []
        return folder / _choose_lora(str(folder), names)
    if place.is_absolute() or str(path).startswith((".", "~")) or place.suffix in (".safetensors", *PICKLED):
        raise CheckpointError(f"{place}: there is no such file or folder.")
    return _fetched_lora(str(path), weight_name, subfolder, hub or {})


def _choose_lora(where: str, names: list[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    for name in LORA_NAMES:
        if name in found:
            return name
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{where} holds {some(found)}: give the path of one, or its `weight_name`.")
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        raise CheckpointError(
            f"{where} holds {some(pickled)} and no safetensors file: such files can run code when they are opened, so"
            " they never are. Convert them to safetensors with a program that you trust them with."
        )
    raise CheckpointError(f"{where} holds no safetensors file.")


def _fetched_lora(repository: str, weight_name: str | None, subfolder: str | None, hub: Mapping[str, Any]) -> Path:
    inside = f"{subfolder}/" if subfolder else ""

    def fetch(names: list[str] | None, hub: Mapping[str, Any]) -> Path:
        name = weight_name
        if name is None:
            if names is None:  # what is in the cache
                folder = Path(snapshot_download(repository, **hub))
                names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
            here = [one.removeprefix(inside) for one in names if one.startswith(inside)]
            name = _choose_lora(repository, [one for one in here if "/" not in one])
        return Path(hf_hub_download(repository, inside + name, **hub))

    return _fetched(repository, repository, hub, fetch)

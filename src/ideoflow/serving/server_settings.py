"""Every option of the server: one description serves the command line's flags and the checks."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from ..bundled import SKETCH
from ..captions.writing import Endpoint
from ..engine.scheduler import Policy

MEBIBYTE = 2**20
OPTIONS = {
    "loras": "--lora",
    "cors_origins": "--cors-origin",
    "allowed_hosts": "--allowed-host",
}  # that come several times
SECRETS = ("api_keys", "database")  # options that messages do not show


class ServerSettings(BaseModel):
    """What a server serves, to whom, and within which limits.

    Attributes:
        model: the bundled model's name, a folder, a hub id, or a transformer's file.
        base: with a transformer alone: what everything else comes from.
        loras: adapters by name: the path or hub id of each.
        device: device of the model; None for the best that is here.
        dtype: type that weights are loaded in; None for what suits the device.
        memory: amount of the device's memory to fit into, as `fit_memory` takes it.
        quantize: precision of one byte a weight; None for the weights as they are.
        policy: who goes first in the engine.
        max_tokens: tokens of one pass; None for what the plan of `memory` chose, or 65,536.
        cuda_graphs: whether steps are replayed as CUDA graphs, as the pipeline's `cuda_graphs`.
        writer: "auto" has clients' words written as captions, by `endpoint`, else by the bundled model's grammar or
            the model's own prompt enhancer; "none" puts them into minimal ones.
        endpoint: address of the language model that writes captions.
        llm: its name there.
        llm_timeout: seconds that its answer may take.
        host: address to listen on.
        port: port to listen on; 0 for a free one.
        api_keys: keys of which a request must bear one; empty for none.
        no_auth: whether a public host may be served without a key.
        cors_origins: origins of other pages that may use the server from a browser.
        allowed_hosts: names that a server of this machine alone is asked by beside its own, such as that of a proxy.
        data: folder of jobs and pictures.
        database: address of a PostgreSQL database for the jobs; None for a file of SQLite in the folder.
        keep_jobs: finished jobs that are kept, the oldest go first; None for all.
        keep_bytes: bytes of pictures that are kept; None for all.
        on_restart: what becomes of jobs that were not finished when the server stopped.
        max_queue: jobs that are unfinished at a time.
        max_pixels: pixels of a picture; None for those of 2048 x 2048, and of 512 x 512 with the bundled model, which
            was trained on a sixteenth of that.
        max_steps: denoising steps of a picture.
        max_pictures: pictures of a job.
        max_body: bytes of a request's body.
        max_connections: connections that are open at a time.
        timeout: seconds that a job may take from its arrival; None for no limit.
        drain: seconds that running jobs are given when the server is told to stop.
        ray: whether pictures are drawn by replicas in a Ray cluster.
        replicas: with `ray`: the fewest replicas and the most; None for one.
        gpus_per_replica: with `ray`: GPUs of each; None for one where the cluster has any.
        log_json: whether each line of the log is a JSON object.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = SKETCH
    base: str | None = None
    loras: dict[str, str] = {}
    device: str | None = None
    dtype: str | None = None
    memory: str | None = None
    quantize: str | None = None
    policy: Policy = "fair"
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    cuda_graphs: bool | Literal["auto"] = "auto"
    writer: Literal["auto", "none"] = "auto"
    endpoint: str | None = None
    llm: str | None = None
    llm_timeout: float = Field(120, gt=0, allow_inf_nan=False)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_keys: tuple[SecretStr, ...] = ()
    no_auth: bool = False
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    data: Path = Path("outputs/server")
    database: SecretStr | None = None
    keep_jobs: Annotated[int, Field(ge=1)] | None = None
    keep_bytes: Annotated[int, Field(ge=1)] | None = None
    on_restart: Literal["requeue", "fail"] = "requeue"
    max_queue: int = Field(64, ge=1)
    max_pixels: Annotated[int, Field(ge=256)] | None = None
    max_steps: int = Field(100, ge=1, le=1000)
    max_pictures: int = Field(10, ge=1, le=1000)
    max_body: int = Field(MEBIBYTE, ge=1024)
    max_connections: int = Field(512, ge=1)
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    drain: float = Field(30, ge=0, allow_inf_nan=False)
    ray: bool = False
    replicas: tuple[Annotated[int, Field(ge=1, le=10_000)], Annotated[int, Field(ge=1, le=10_000)]] | None = None
    gpus_per_replica: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    log_json: bool = False

    @field_validator("replicas", mode="before")
    @classmethod
    def _numbers(cls, replicas: Any) -> Any:
        if not isinstance(replicas, str):
            return replicas
        parts = replicas.split(":")
        if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
            raise ValueError("give a number such as 4, or the fewest and the most, 2:8.")
        numbers = [int(part) for part in parts]
        return numbers[0], numbers[-1]

    @field_validator("gpus_per_replica")
    @classmethod
    def _one_at_most(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1:
            raise ValueError("a replica draws on one GPU: give 1, a part of one such as 0.5, or 0 for a CPU.")
        return gpus

    @field_validator("replicas")
    @classmethod
    def _in_order(cls, replicas: tuple[int, int] | None) -> tuple[int, int] | None:
        if replicas is not None and replicas[0] > replicas[1]:
            raise ValueError("the fewest comes first, then the most.")
        return replicas

    @field_validator("api_keys")
    @classmethod
    def _long_enough(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in keys:
            text = key.get_secret_value()
            if not (8 <= len(text) <= 512 and text.isascii() and text.isprintable() and " " not in text):
                raise ValueError("a key has 8 to 512 printable ASCII characters and no space; another one was given.")
        return keys

    @field_validator("database")
    @classmethod
    def _address(cls, database: SecretStr | None) -> SecretStr | None:
        if database is not None:
            from .database import postgres_url  # which takes its time to import

            postgres_url(database.get_secret_value())
        return database

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not re.fullmatch(r"[\w.-]+|\[?[0-9a-fA-F:.]+\]?", host):
                raise ValueError("give names such as studio.example.org, without scheme, port and path.")
        return hosts

    @model_validator(mode="after")
    def _guarded(self) -> ServerSettings:
        if not (self.api_keys or self.no_auth or self.is_local):
            raise ValueError(
                f"--host {self.host} is an address that others can reach, and there is no key: give --api-key-file or"
                " IDEOFLOW_API_KEYS, or say --no-auth to serve everyone."
            )
        return self

    @model_validator(mode="after")
    def _graphs_on_cuda(self) -> ServerSettings:
        if self.device is not None:
            self.check_graphs(self.device)
        return self

    def check_graphs(self, device: str) -> None:
        """See that CUDA graphs are asked for on CUDA alone.

        Raises:
            ValueError: naming the device.
        """
        if self.cuda_graphs is True and not device.startswith("cuda"):
            raise ValueError(f"--cuda-graphs needs --device cuda, and the model is to be on {device!r}.")

    @model_validator(mode="after")
    def _whole_endpoint(self) -> ServerSettings:
        if (self.endpoint is None) != (self.llm is None):
            raise ValueError("--endpoint and --llm go together: where the language model is, and its name there.")
        _ = self.language_model
        return self

    @model_validator(mode="after")
    def _of_ray(self) -> ServerSettings:
        for name in ("replicas", "gpus_per_replica"):
            if getattr(self, name) is not None and not self.ray:
                raise ValueError(f"--{name.replace('_', '-')} goes with --ray, which has replicas.")
        if self.ray and find_spec("ray") is None:
            raise ValueError('--ray needs Ray, which is not installed here: pip install "ideoflow[ray]"')
        return self

    @property
    def language_model(self) -> Endpoint | None:
        """The language model that writes captions, if there is one."""
        if self.endpoint is None or self.llm is None:
            return None
        return Endpoint(self.endpoint, self.llm, timeout=self.llm_timeout)

    @property
    def pixel_limit(self) -> int:
        """Pixels that a picture may have."""
        return self.max_pixels or (512 * 512 if self.model == SKETCH else 2048 * 2048)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def plain_name(host: str) -> str:
    """A host's name or address without what changes nothing: case, a dot at the end, and an IPv6 address's brackets."""
    return host.strip("[]").rstrip(".").lower()


def is_loopback(host: str) -> bool:
    """Whether a name or an address leads to the machine itself, whoever asks."""
    plain = plain_name(host)
    try:
        return ipaddress.ip_address(plain).is_loopback
    except ValueError:
        return plain == "localhost"


def read_settings(options: Mapping[str, Any]) -> ServerSettings:
    """The settings of these options.

    Raises:
        ValueError: naming the first option that does not fit.
    """
    try:
        return ServerSettings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        name = OPTIONS.get(field, "--" + field.replace("_", "-")) if field else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        given = f" {first['input']!r}" if name and field not in SECRETS else ""
        raise ValueError(f"{name}{given}: {message}" if name else message) from None


def without_folders(model: str) -> str:
    """The name of a model for others than the one who serves it: a path without its folders, a hub id as it is."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.exists() else model


def read_keys(text: str) -> tuple[str, ...]:
    """Keys, one a line or parted by commas; lines that begin with # are left out."""
    lines = (line.strip() for line in text.replace(",", "\n").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))

"""`ideoflow serve`: the server with its studio page, from the command line to the last job.

What an option is where it is left out, and what it may be, is the settings' to say.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checks import printable
from ..serving.server_settings import ServerSettings, read_keys, read_settings
from ..standard_streams import FAILED
from .console import err, plain_errors, starting
from .drawing_options import CudaGraphsOption
from .values import expanded, parse_amount, parse_device, parse_dtype, parse_model, parse_quantize
from .writing import TIMEOUT, TimeoutOption, endpoint_of

KEYS = "IDEOFLOW_API_KEYS"
DATABASE = "IDEOFLOW_DATABASE"
DEFAULTS = ServerSettings()


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="A model folder or hub id in the diffusers layout, or a transformer's file of any form.",
            show_default="sketch, the small model that comes with ideoflow",
        ),
    ] = DEFAULTS.model,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With a transformer alone: where everything else comes from."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="An adapter that requests may name, of any form; may be repeated. Nothing is drawn with it unasked.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = DEFAULTS.host,
    port: Annotated[int, typer.Option(metavar="N", help="Port to listen on; 0 for a free one.")] = DEFAULTS.port,
    api_key_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help=f"Keys of which a request must bear one, one a line. The environment's {KEYS} does the same, its keys "
            "parted by commas.",
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Serve everyone who can reach a public --host, without a key.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin use the server; may be repeated."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name beside localhost that a server without keys answers to, such as a proxy's; may be repeated.",
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="FOLDER", help="Where jobs and pictures are kept.")] = str(DEFAULTS.data),
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar=DATABASE,
            show_envvar=False,
            help="PostgreSQL database for the jobs, postgresql://USER@HOST/NAME; pictures stay in --data. The "
            f"environment's {DATABASE} does the same, and is seen by no other user.",
            show_default="a file of SQLite in --data",
        ),
    ] = None,
    keep_jobs: Annotated[
        int | None, typer.Option(metavar="N", help="Finished jobs to keep; the oldest go first.", show_default="all")
    ] = None,
    keep_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Pictures to keep: 500MB, 20GB.", show_default="all")
    ] = None,
    on_restart: Annotated[
        str,
        typer.Option(
            metavar="requeue|fail", help="What becomes of jobs that were unfinished when the server last stopped."
        ),
    ] = DEFAULTS.on_restart,
    max_queue: Annotated[
        int, typer.Option(metavar="N", help="Jobs that wait or run at a time; more are told to wait.")
    ] = DEFAULTS.max_queue,
    max_pixels: Annotated[
        int | None,
        typer.Option(metavar="N", help="Pixels of a picture.", show_default="4194304; 262144 with the bundled model"),
    ] = DEFAULTS.max_pixels,
    max_steps: Annotated[int, typer.Option(metavar="N", help="Denoising steps of a picture.")] = DEFAULTS.max_steps,
    max_pictures: Annotated[int, typer.Option(metavar="N", help="Pictures of a job.")] = DEFAULTS.max_pictures,
    max_connections: Annotated[
        int, typer.Option(metavar="N", help="Connections that are open at a time; more are told to come again.")
    ] = DEFAULTS.max_connections,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that a job may take from its arrival.", show_default="no limit")
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds that jobs are given to end when the server is told to stop.")
    ] = DEFAULTS.drain,
    policy: Annotated[
        str, typer.Option(metavar="fair|fifo|priority", help="Who goes first where not all fit: see docs/engine.md.")
    ] = DEFAULTS.policy,
    max_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of one pass.", show_default="65536, or what --memory plans"),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Fit the model into so much memory: 12GB, or auto.", show_default="everything on the device"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16, or fp8 or int8 for one byte a weight.",
            show_default="what suits the device",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...", show_default="the first accelerator, else cpu")
    ] = None,
    cuda_graphs: CudaGraphsOption = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible server whose --llm writes captions of clients' words, changes and describes; its "
            "key is read from the environment's IDEOFLOW_LLM_KEY.",
            show_default="words are written by the bundled model's grammar, or the model's own prompt enhancer",
        ),
    ] = None,
    llm: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the language model at --endpoint.")] = None,
    llm_timeout: TimeoutOption = None,
    writer: Annotated[
        str,
        typer.Option(metavar="auto|none", help="none: put clients' words into minimal captions, written by nobody."),
    ] = "auto",
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Draw by replicas in a Ray cluster: the one that RAY_ADDRESS names or that runs here, else one that "
            "is started here. See docs/scale.md.",
        ),
    ] = False,
    replicas: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN:MAX",
            help="With --ray: how many; between two numbers, as the work that waits asks for.",
            show_default="1",
        ),
    ] = None,
    gpus_per_replica: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="With --ray: GPUs of each, at most 1.", show_default="1 where the cluster has any"
        ),
    ] = None,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Open the studio page in the browser, where there is one.")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write the log as JSON, an object a line.")] = False,
) -> None:
    """Serve pictures over HTTP, and the studio page to lay them out with boxes.

    The API is OpenAI's images API, and jobs with events of their own; docs/serving.md has both.

    Examples:

      ideoflow serve

      ideoflow serve ./ideogram-4 --lora ink=ink.safetensors --port 9000

      IDEOFLOW_API_KEYS=$(cat key) ideoflow serve ./ideogram-4 --host 0.0.0.0

      ideoflow serve ./ideogram-4 --ray --replicas 2:8
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with plain_errors():
        parse_model("MODEL", model)
        if precision is not None and precision not in ("fp8", "int8"):
            parse_dtype(precision)
        quantize = parse_quantize(precision) if precision in ("fp8", "int8") else None
        if memory:
            parse_amount(memory)
        endpoint_of(endpoint, llm, llm_timeout)
        settings: dict[str, Any] = {
            "model": model,
            "base": base,
            "loras": dict(_adapter(value) for value in lora or []),
            "device": parse_device(device) if device else None,
            "dtype": None if quantize else precision,
            "quantize": quantize,
            "memory": memory,
            "policy": policy,
            "max_tokens": max_tokens,
            "cuda_graphs": "auto" if cuda_graphs is None else cuda_graphs,
            "host": host,
            "port": port,
            "api_keys": _keys(api_key_file),
            "no_auth": no_auth,
            "cors_origins": tuple(cors_origin or ()),
            "allowed_hosts": tuple(allowed_host or ()),
            "data": expanded("--data", data),
            "database": database,
            "keep_jobs": keep_jobs,
            "keep_bytes": parse_amount(keep_bytes) if keep_bytes else None,
            "on_restart": on_restart,
            "max_queue": max_queue,
            "max_pixels": max_pixels,
            "max_steps": max_steps,
            "max_pictures": max_pictures,
            "max_connections": max_connections,
            "timeout": timeout,
            "drain": drain,
            "endpoint": endpoint,
            "llm": llm,
            "llm_timeout": TIMEOUT if llm_timeout is None else llm_timeout,
            "writer": writer,
            "ray": ray,
            "replicas": replicas,
            "gpus_per_replica": gpus_per_replica,
            "log_json": log_json,
        }
        checked = read_settings(settings)
        if not err.is_terminal:
            err.print("starting: the address follows, and `ready` once the model is there")
        with starting("importing the server"):
            from ..serving.running import run
    if not run(checked, announce=_announce, open_browser=open_browser):
        raise typer.Exit(FAILED)


def _announce(address: str, data: Path) -> None:
    err.print(f"studio and API: {address}   (jobs and pictures are kept in {printable(data)}; Ctrl-C stops)")


def _adapter(value: str) -> tuple[str, str]:
    """`NAME=PATH` of an adapter."""
    name, equals, path = value.partition("=")
    if not (equals and path and name.isascii() and name.replace("-", "_").isidentifier()):
        raise ValueError(f"--lora {value!r}: give NAME=PATH; a name is of letters, digits, - and _.")
    parse_model("--lora", path)
    return name, path


def _keys(file: str | None) -> tuple[str, ...]:
    """The keys of a file and of the environment."""
    keys = read_keys(os.environ.get(KEYS, ""))
    if file is not None:
        try:
            own = read_keys(expanded("--api-key-file", file).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise ValueError(f"--api-key-file {file!r}: {why}. Make one by: openssl rand -hex 32 > {file}") from None
        if not own:
            raise ValueError(f"--api-key-file {file!r} holds no key: write one a line.")
        keys += own
    return keys

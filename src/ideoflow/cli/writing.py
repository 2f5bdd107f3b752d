"""`ideoflow caption write`, `describe` and `edit`: captions from words, a picture, or a caption and a wish."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..captions.paths import existing, missing
from ..files import check_writable, write_text
from ..pictures import FORMATS, read_settings
from .console import err, plain_errors, shown, starting, warn, write
from .values import parse_sizes

if TYPE_CHECKING:
    from ..captions.writing import Endpoint, Written

TIMEOUT = 120.0

EndpointOption = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        metavar="URL",
        help="Address of an OpenAI-compatible server (vLLM, Ollama, llama.cpp, a hosted one), up to and with /v1. What "
        "is asked is sent there; its key is read from the environment's IDEOFLOW_LLM_KEY.",
        show_default=False,
    ),
]
LanguageModelOption = Annotated[
    str | None,
    typer.Option("--llm", metavar="NAME", help="Name of the language model at --endpoint.", show_default=False),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--llm-timeout",
        help="Seconds that an answer of --endpoint may take.",
        min=1,
        show_default=f"{TIMEOUT:g}",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="Where to write the caption; missing folders are made. Standard output if left out.",
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Let --out replace an existing file.")]


def write_caption(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="What the picture is to show.", show_default=False)],
    endpoint: EndpointOption = None,
    llm: LanguageModelOption = None,
    size: Annotated[
        str | None, typer.Option("--size", "-s", metavar="WxH", help="The picture's size, for its proportions.")
    ] = None,
    layout: Annotated[bool, typer.Option(help="With a style, boxes and palettes; --no-layout for words alone.")] = True,
    timeout: TimeoutOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a caption of plain words.

    Without --endpoint, the small grammar of the bundled model writes it, which knows shapes, colours and short words;
    what it did not understand is said. With one, a language model writes it.

    Ends with 0 when the caption is written, 1 if the language model fails, 2 if something that was given is wrong.

    Examples:

      ideoflow caption write "a red heart on pink"

      ideoflow caption write "a fox asleep in snow" --endpoint http://127.0.0.1:11434/v1 --llm qwen3:8b --out fox.json
    """
    with plain_errors():
        (wanted,) = parse_sizes([size] if size else [], 1)
        asked = endpoint_of(endpoint, llm, timeout)
        target = file_of(output, overwrite)
        if asked is None and not layout:
            raise ValueError(
                "--no-layout is for a language model at --endpoint: the bundled model's grammar writes boxes always,"
                " for that model draws nothing without. Leave it out, or give --endpoint and --llm."
            )
        if existing(words) is not None:
            raise ValueError(
                f"{words!r} is a file, and words are wanted: say what the picture is to show. A caption's file is drawn"
                " by `ideoflow generate` and changed by `ideoflow caption edit`."
            )
        if asked is None:
            from ..sketch.prose import write as by_grammar

            try:
                written = by_grammar(words, wanted)
            except ValueError as error:
                if "The bundled model draws" in str(error):  # it cannot draw what was asked for
                    told = "Of other things a language model writes: give --endpoint and --llm."
                    raise ValueError(f"{error} {told}") from None
                raise
        else:
            from ..captions.writing import write as by_endpoint

            with starting(f"asking {asked.name}"):
                written = by_endpoint(words, asked, wanted, layout=layout)
        _give(written, target)


def describe(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="A picture file.", show_default=False)],
    endpoint: EndpointOption = None,
    llm: LanguageModelOption = None,
    timeout: TimeoutOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Describe a picture as a caption, by a language model that sees pictures; colours are measured from its pixels.

    The picture is sent to --endpoint, made smaller and without what its file holds beside the pixels. Ends as `write`
    does.

    Example:

      ideoflow caption describe photo.jpg --endpoint http://127.0.0.1:8000/v1 --llm Qwen3-VL-8B-Instruct
    """
    with plain_errors():
        asked = _needed(endpoint, llm, timeout, "a picture is described by a language model that sees pictures")
        target = file_of(output, overwrite)
        from ..captions.writing import describe as by_endpoint
        from ..images import flattened, open_image, upright
        from ..images import plain_errors as plain_image_errors

        if existing(picture) is None:
            raise ValueError(missing(picture))
        try:
            with plain_image_errors():
                image = flattened(upright(open_image(picture)))
        except ValueError as error:
            raise ValueError(f"{picture} {error}") from None
        with starting(f"asking {asked.name}"):
            written = by_endpoint(image, asked)
        _give(written, target)


def edit_caption(
    caption: Annotated[
        str,
        typer.Argument(
            metavar="CAPTION",
            help="A caption's file, a picture made by ideoflow, or JSON.",
            show_default=False,
        ),
    ],
    wish: Annotated[
        str, typer.Argument(metavar="WISH", help='What is to change: "make the heart blue".', show_default=False)
    ],
    endpoint: EndpointOption = None,
    llm: LanguageModelOption = None,
    timeout: TimeoutOption = None,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Change a caption as you wish, everything else in it kept, by a language model; what changed is told.

    Ends as `write` does.

    Example:

      ideoflow caption edit heart.json "make the heart blue and move it left" --endpoint ... --llm ... --out blue.json
    """
    with plain_errors():
        asked = _needed(endpoint, llm, timeout, "a caption is changed by a language model")
        target = file_of(output, overwrite)
        from ..captions import Caption
        from ..captions.writing import differences
        from ..captions.writing import edit as by_endpoint

        before, mended = Caption.parse(of_picture(caption) or caption).mended()
        for breach in mended:
            err.print(f"[yellow]mended[/] {shown(breach.mended)}")
        with starting(f"asking {asked.name}"):
            written = by_endpoint(before, wish, asked)
        for line in differences(before, written.caption):
            err.print(f"[green]changed[/] {shown(line)}")
        _give(written, target)


def of_picture(source: str) -> str | None:
    """The caption in a picture's file that ideoflow made; None for what is no picture's file.

    Raises:
        ValueError: for a picture that tells of no caption, or of more than a caption.
    """
    path = existing(source)
    if path is None or path.suffix.lower() not in FORMATS:
        return None
    caption: str = read_settings(path)["caption"]
    return caption


def endpoint_of(url: str | None, llm: str | None, timeout: float | None) -> Endpoint | None:
    """The endpoint that options name; None if they name none.

    Raises:
        ValueError: naming the option that is missing or wrong.
    """
    if url is None:
        if llm is not None:
            raise ValueError("--llm names a language model, and no --endpoint says where it is: give both.")
        if timeout is not None:
            raise ValueError("--llm-timeout is for a language model at --endpoint, and there is none: leave it out.")
        return None
    if llm is None:
        raise ValueError("--endpoint needs --llm, the name that the language model has there.")
    from ..captions.writing import Endpoint
    from ..captions.writing.endpoint import check_client

    check_client()
    return Endpoint(url, llm, timeout=TIMEOUT if timeout is None else timeout)


def _needed(url: str | None, llm: str | None, timeout: float | None, why: str) -> Endpoint:
    asked = endpoint_of(url, llm, timeout)
    if asked is None:
        raise ValueError(f"{why}: say where it is with --endpoint and --llm. Nothing is sent anywhere without.")
    return asked


def file_of(output: str | None, overwrite: bool) -> Path | None:
    """The file that --out names.

    Raises:
        ValueError: as of `check_output`, and for what is written like a folder.
    """
    if output is not None and output.endswith(("/", os.sep)):
        raise ValueError(f"--out {output} is a folder: name a file, such as {output}caption.json.")
    path = None if output is None else Path(output)
    check_output(path, overwrite)
    return path


def check_output(path: Path | None, overwrite: bool) -> None:
    """See that --out can be written.

    Raises:
        ValueError: if it is there already and is not to be replaced, or cannot be written; or if there is none, and
            --overwrite has nothing to replace.
    """
    if path is None:
        if overwrite:
            raise ValueError("--overwrite lets --out replace a file, and there is no --out: give it, or leave it out.")
        return
    if path.is_file() and not overwrite:
        raise ValueError(f"--out {path} exists already: give --overwrite to replace it, or another name.")
    check_writable(path, "--out")


def _give(written: Written, output: Path | None) -> None:
    """Say what is to be said of a caption, and write it."""
    for note in written.notes:
        warn(note)
    line = written.caption.line() + "\n"
    if output is None:
        write(line)
    else:
        write_text(output, line)

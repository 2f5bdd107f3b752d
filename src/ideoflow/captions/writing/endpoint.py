"""A language model behind an OpenAI-compatible address: vLLM, Ollama, llama.cpp, or a hosted one.

Nothing is sent to any other address than the one that was named, and no key but the one that is meant for it. Answers
are bounded in time and in bytes, whatever the server does.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .attempts import Message
from .giving_up import check_wait, interrupted_by, pause
from .written import WritingError

KEY = "IDEOFLOW_LLM_KEY"
OPENAI_KEY, OPENAI_HOST = "OPENAI_API_KEY", "api.openai.com"  # a key that is sent to this host alone
MOST_BYTES = 4 * 2**20  # of an answer
MOST_TOLD = 300  # characters of a server's own words in an error
MOST_SECONDS = 86_400.0
CONNECTING = 10.0  # seconds of them in which a server is reached
# What an address is sent beside its body: others of the client's headers come from the environment, and are nobody's.
HEADERS = ("host", "content-type", "content-length", "accept", "authorization", "user-agent")
# How a server is asked to keep to the schema; where it refuses one, the next is tried, and kept.
MODES = ("json_schema", "json_object", "text")
REFUSES_MODE = (400, 404, 415, 422, 500, 501)
BUSY = (408, 409, 429)  # and what is 500 or above: asked again


@dataclass
class Endpoint:
    """Where a language model answers, and within which limits.

    Attributes:
        url: the address that ends before `/chat/completions`, such as http://127.0.0.1:11434/v1.
        model: the model's name there.
        key: sent as a bearer's token; None for that of the environment, `IDEOFLOW_LLM_KEY`.
        timeout: seconds that an answer may take as a whole.
        max_tokens: tokens that an answer may have.
        temperature: of sampling; None for the server's own.
        seed: for servers that know one; None for none.
        retries: times that a server that cannot be reached or is too busy is asked again.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    max_tokens: int = 3000
    temperature: float | None = 0.7
    seed: int | None = None
    retries: int = 2
    _mode: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        parts = _parts(self.url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint {self.url!r} is no address: give one such as http://127.0.0.1:11434/v1.")
        if parts.query or parts.fragment:
            raise ValueError(f"the endpoint {self.url!r} has a ? or a #: give what stands before /chat/completions.")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        if parts.username or parts.password:
            raise ValueError(f"the endpoint has a password in its address: give the key in the environment's {KEY}.")
        if not self.model.strip():
            raise ValueError("the language model has no name: give the one that the endpoint knows.")
        if not 0 < self.timeout <= MOST_SECONDS or self.max_tokens < 1:
            raise ValueError(
                f"the endpoint's limits are {self.timeout:g} seconds and {self.max_tokens} tokens: give more than"
                f" none, and at most {MOST_SECONDS:g} seconds."
            )

    @property
    def name(self) -> str:
        """The model and where it is, for people."""
        return f"{self.model} at {urlsplit(self.url).netloc}"

    def ask(self, messages: list[Message], schema: dict[str, Any] | None = None) -> str:
        """The model's answer.

        Args:
            messages: as chat models take them.
            schema: of the JSON object that the answer is to be; held to as far as the server can.

        Raises:
            WritingError: if there is none: the server cannot be reached, refuses, takes too long, or answers with what
                is no answer.
            ImportError: naming the extra, if the client is not installed.
        """
        for mode in range(self._mode, len(MODES)):
            try:
                text = self._send(messages, MODES[mode], schema)
            except _RefusedError as refused:
                if mode + 1 == len(MODES):
                    raise WritingError(str(refused)) from None
                continue
            self._mode = mode
            return text
        raise AssertionError("the last mode answers or raises")

    def _send(self, messages: list[Message], mode: str, schema: dict[str, Any] | None) -> str:
        openai = _client_library()
        options: dict[str, Any] = {"model": self.model, "messages": messages, "max_tokens": self.max_tokens}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.seed is not None:
            options["seed"] = self.seed
        if mode == "json_schema" and schema is not None:
            named = {"name": "caption", "schema": schema, "strict": False}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        elif mode != "text":
            options["response_format"] = {"type": "json_object"}
        deadline = time.monotonic() + self.timeout
        key = self._key()
        for again in range(self.retries, -1, -1):
            check_wait()
            line = _Line()
            with interrupted_by(line.cut), self._client(openai, key, deadline, line) as client:
                try:
                    answer = client.chat.completions.with_raw_response.create(**options, stream=False)
                    return self._text(_without(key, answer.http_response.content))
                except openai.APIConnectionError as error:
                    check_wait()
                    failure, after = self._unreached(error, deadline), None
                except openai.APIStatusError as error:
                    failure = self._of_status(error.status_code, _told(_without(key, error.response.content)))
                    if error.status_code not in BUSY and error.status_code < 500:
                        raise failure from None
                    after = error.response.headers.get("retry-after")
                except _BoundError as error:
                    raise WritingError(f"{self.name} {error}") from None
            seconds = _pause(after, self.retries - again)
            if not again or time.monotonic() + seconds >= deadline:
                raise failure
            pause(seconds)
        raise AssertionError("the last try answers or raises")

    def _unreached(self, error: Exception, deadline: float) -> WritingError:
        """What to say where no answer came."""
        if time.monotonic() >= deadline:
            return WritingError(f"{self.name} did not answer within {self.timeout:g} seconds.")
        if type(error.__cause__).__name__ == "ConnectTimeout":
            return WritingError(f"{self.name} cannot be reached within {CONNECTING:g} seconds: is it running?")
        return WritingError(f"{self.name} cannot be reached ({_cause(error)}): is it running?")

    def _client(self, openai: Any, key: str | None, deadline: float, line: _Line) -> Any:
        import httpx2

        remaining = max(0.01, deadline - time.monotonic())
        inner = httpx2.HTTPTransport(retries=0)
        web = httpx2.Client(transport=_bounded(inner, deadline, line), timeout=remaining, follow_redirects=False)
        return openai.OpenAI(
            base_url=self.url, api_key=key or "none", timeout=remaining, max_retries=0, http_client=web
        )

    def _key(self) -> str | None:
        """The key for this address, if there is one."""
        own, name = self.key, "the endpoint's key"
        if not own:
            own, name = os.environ.get(KEY), f"the key in the environment's {KEY}"
        if not own and urlsplit(self.url).hostname == OPENAI_HOST:
            own, name = os.environ.get(OPENAI_KEY), f"the key in the environment's {OPENAI_KEY}"
        own = own.strip() if own else None
        if own and not (own.isascii() and own.isprintable() and " " not in own):
            raise WritingError(f"{name} holds a space, a line end or a letter that no key has: put it there anew.")
        return own or None

    def _of_status(self, status: int, told: str) -> WritingError:
        said = f": {told}" if told else ""
        if status in (401, 403):
            return WritingError(
                f"{self.name} refuses the key ({status}): put the right one into the environment's {KEY}."
            )
        if status in REFUSES_MODE:
            return _RefusedError(f"{self.name} refuses to answer ({status}){said}")
        if status == 429:
            return WritingError(f"{self.name} is too busy, or has had enough requests (429){said}")
        if 300 <= status < 400:
            return WritingError(f"{self.name} leads elsewhere ({status}), where nothing is sent: give its new address.")
        return WritingError(f"{self.name} failed ({status}){said}")

    def _text(self, body: bytes) -> str:
        """The text of an answer's body, whatever the server made of it."""
        try:
            data = json.loads(body)
        except (ValueError, RecursionError):
            raise WritingError(
                f"{self.name} answered with what is no JSON, and so is no chat API: {_told(body)!r}", _told(body)
            ) from None
        choices = data.get("choices") if isinstance(data, dict) else None
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = first.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):  # in parts, as some servers give it
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        if isinstance(message, dict) and isinstance(message.get("refusal"), str) and message["refusal"]:
            raise WritingError(f"{self.name} will not write this: {_plain(message['refusal'])}")
        if not isinstance(content, str):
            raise WritingError(f"{self.name} answered without a text: {_told(body)!r}")
        if not content.strip():
            ended = " (it used up its tokens: give it more)" if first.get("finish_reason") == "length" else ""
            raise WritingError(f"{self.name} answered with an empty text{ended}.")
        return content


class _RefusedError(WritingError):
    """A server does not take a request of this form; it may take another."""


class _BoundError(Exception):
    """An answer goes beyond its bounds."""


class _Line:
    """The connection over which a server is asked; cut, whoever reads from it wakes."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._is_cut = False

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Take up a connection as it is made; what the transport tells of its doings."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]
            if self._is_cut:
                self.cut()

    def cut(self) -> None:
        """End the connection, from any thread; closing alone would leave whoever reads from it asleep."""
        self._is_cut = True
        if self._stream is None:
            return
        number = self._stream.get_extra_info("socket").fileno()
        with suppress(OSError, ValueError), socket.socket(fileno=os.dup(number)) as twin:  # or it is closed already
            twin.shutdown(socket.SHUT_RDWR)


def _bounded(inner: Any, deadline: float, line: _Line) -> Any:
    """A transport whose answers end at a deadline and after so many bytes, however they come."""
    import httpx2

    class Stream(httpx2.SyncByteStream):
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            taken = 0
            for chunk in self.stream:
                taken += len(chunk)
                if taken > MOST_BYTES:
                    raise _BoundError(
                        f"answered with more than {MOST_BYTES // 2**20} MiB, and was not heard to the end."
                    )
                if time.monotonic() > deadline:
                    raise _BoundError("took longer than its time to answer, and was not heard to the end.")
                yield chunk

        def close(self) -> None:
            self.stream.close()

    class Transport(httpx2.BaseTransport):
        def handle_request(self, request: Any) -> Any:
            left = deadline - time.monotonic()
            if left <= 0:
                raise httpx2.ReadTimeout("its time is over", request=request)
            check_wait()
            timeout = dict.fromkeys(("read", "write", "pool"), left)
            request.extensions["timeout"] = {**timeout, "connect": min(left, CONNECTING)}
            request.extensions["trace"] = line.note
            kept = [(name, value) for name, value in request.headers.items() if name.lower() in HEADERS]
            sent = httpx2.Request(
                request.method,
                request.url,
                headers=[*kept, ("accept-encoding", "identity"), ("connection", "close")],
                stream=request.stream,
                extensions=request.extensions,
            )
            # Headers may come a line at a time, each in its time: the connection ends when the time of all is over.
            watch = threading.Timer(left, inner.close)
            watch.daemon = True
            watch.start()
            try:
                response = inner.handle_request(sent)
            finally:
                watch.cancel()
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                response.close()
                raise _BoundError("answered compressed, which was not asked for: it may unpack to any size.")
            response.stream = Stream(response.stream)
            return response

        def close(self) -> None:
            inner.close()

    return Transport()


def _pause(after: str | None, tried: int) -> float:
    """Seconds until a server is asked again: what it says, else longer each time."""
    try:
        return max(0.0, float(after or ""))
    except ValueError:  # none, or a date
        return 0.5 * 2.0**tried


def check_client() -> None:
    """See that the client is installed by which language models are asked.

    Raises:
        ImportError: naming the extra, if not.
    """
    if find_spec("openai") is None or find_spec("httpx2") is None:
        raise ImportError("a language model is asked by the openai client: pip install 'ideoflow[write]'")


def _client_library() -> Any:
    check_client()
    import openai

    return openai


def _cause(error: BaseException) -> str:
    """The innermost reason that a connection failed."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).strip() or type(error).__name__


def _told(body: bytes) -> str:
    """A server's own words: the message of an error, or the beginning of what came."""
    try:
        data = json.loads(body)
        error = data.get("error", data) if isinstance(data, dict) else data
        told = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, RecursionError):
        told = body[: 4 * MOST_TOLD].decode("utf-8", "replace")
    return _plain(str(told))


def _plain(told: str) -> str:
    """A server's words on one line of moderate length, without control characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in told).split())
    return text if len(text) <= MOST_TOLD else f"{text[:MOST_TOLD]}..."


def _without(key: str | None, body: bytes) -> bytes:
    """An answer without the key that it was asked with, should a server send it back: others may be told of it."""
    return body if key is None else body.replace(key.encode(), b"***")


def _parts(url: str) -> SplitResult | None:
    """The parts of an address; None if it is none."""
    if any(character.isspace() or not character.isprintable() for character in url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts

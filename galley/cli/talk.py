"""Clients of `galley chat` and `galley complete`: a server at a URL, or a model in this process.

Both stream text. `connect` chooses: a MODEL argument runs the model in this process, a URL uses
that server. With neither, a server on the default port is used if it answers, else the built-in
model.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from galley.errors import ConfigError, GalleyError, ServerError

if TYPE_CHECKING:
    from galley.llm import LLM

DEFAULT_URL = "http://localhost:8000/v1"
Message = dict[str, str]


@dataclass(frozen=True)
class ChatFlags:
    """Chat"""

    url: str | None = None
    """Base URL of the API, e.g. http://localhost:8000/v1. Default: that one if a server answers
    there, else the model runs in this process."""
    model_name: str | None = None
    """Name of the model at the URL. Default: the first that it lists."""
    api_key: str | None = None
    """API key for the URL."""
    system_prompt: str | None = None
    """System message that opens the conversation."""
    quick: str | None = None
    """Send this message, print the answer and exit."""
    stats: bool = False
    """Print tokens, seconds and tokens per second after each answer."""
    temperature: float | None = None
    """Sampling temperature; 0 = greedy. Default: the model's own."""
    max_tokens: int | None = None
    """Maximum tokens of an answer."""


@dataclass
class Usage:
    """Token counts of the last answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class Talker(Protocol):
    """Streams answers as pieces of text; `usage` holds the last answer's counts."""

    name: str
    usage: Usage

    def chat(self, messages: list[Message], options: dict[str, Any]) -> Iterator[str]: ...

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]: ...


class HttpTalker:
    """An OpenAI-compatible server."""

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key
        self.usage = Usage()
        self.name = model or self._first_model()

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as e:
            raise ServerError(f"{self.url} answers {e.code}: {_error_text(e)}") from e
        except (urllib.error.URLError, OSError, ValueError) as e:
            reason = getattr(e, "reason", e)
            raise ServerError(
                f"no server answers at {self.url} ({reason}). Start one with `galley serve`, or "
                "name a model to run it here: `galley chat MODEL`."
            ) from e

    def _first_model(self) -> str:
        with self._request("/models") as reply:
            models = json.load(reply).get("data") or []
        if not models:
            raise ServerError(f"{self.url} lists no model.")
        return str(models[0]["id"])

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        body |= {"model": self.name, "stream": True, "stream_options": {"include_usage": True}}
        with self._request(path, body) as reply:
            try:
                for line in reply:
                    if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ServerError(str(event["error"].get("message", event["error"])))
                    if event.get("usage"):
                        self.usage = Usage(
                            event["usage"].get("prompt_tokens", 0),
                            event["usage"].get("completion_tokens", 0),
                        )
                    yield from event.get("choices", [])
            except (http.client.HTTPException, ConnectionError) as e:
                raise ServerError(f"the connection to {self.url} broke: {e}") from e

    def chat(self, messages: list[Message], options: dict[str, Any]) -> Iterator[str]:
        for choice in self._stream("/chat/completions", {"messages": messages, **options}):
            yield choice["delta"].get("content") or ""

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        for choice in self._stream("/completions", {"prompt": prompt, **options}):
            yield choice.get("text") or ""


def _error_text(error: urllib.error.HTTPError) -> str:
    text = error.read(4096).decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return text or error.reason


class LocalTalker:
    """A model in this process."""

    def __init__(self, llm: LLM, name: str) -> None:
        self.llm = llm
        self.name = name
        self.usage = Usage()

    def _pieces(self, outputs: Iterator[Any]) -> Iterator[str]:
        count = 0
        for output in outputs:
            count += len(output.outputs[0].token_ids)
            self.usage = Usage(len(output.prompt_token_ids), count)
            yield output.outputs[0].text

    def _params(self, options: dict[str, Any]) -> Any:
        params = self.llm.get_default_sampling_params()
        params.max_tokens = None
        for name, value in options.items():
            setattr(params, name, value)
        params.verify()
        return params

    def chat(self, messages: list[Message], options: dict[str, Any]) -> Iterator[str]:
        return self._pieces(self.llm.stream_chat(messages, self._params(options)))

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        return self._pieces(self.llm.stream(prompt, self._params(options)))


def connect(flags: ChatFlags, engine_values: dict[str, Any]) -> Talker:
    """Return the client for the flags. Raises ConfigError for flags of both kinds."""
    if flags.url is not None and engine_values:
        name = next(iter(engine_values))
        raise ConfigError(f"--url and {name.replace('_', '-')} exclude each other.", field=name)
    if flags.url is not None or not engine_values:
        try:
            return HttpTalker(flags.url or DEFAULT_URL, flags.model_name, flags.api_key)
        except GalleyError:
            if flags.url is not None:
                raise
            print(
                f"galley: no server at {DEFAULT_URL}: running the built-in model here",
                file=sys.stderr,
            )
    from galley.llm import LLM

    llm = LLM(**engine_values)
    return LocalTalker(llm, engine_values.get("model") or "SmolLM2-135M-Instruct")


def sampling_options(flags: ChatFlags) -> dict[str, Any]:
    """The sampling fields that were given."""
    given = {"temperature": flags.temperature, "max_tokens": flags.max_tokens}
    return {k: v for k, v in given.items() if v is not None}

"""Clients of `galley chat` and `galley complete`: a server at a URL, or a model in this process.

Both stream text. `connect` chooses: a MODEL argument runs the model in this process, a URL uses
that server. With neither, a server on the default port is used if it answers, else the built-in
model.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from galley.errors import ConfigError, GalleyError, ServerError

if TYPE_CHECKING:
    from galley.llm import LLM

DEFAULT_URL = "http://localhost:8000/v1"
#: Seconds in which a server must list its models; what else listens on its port may never answer.
_LISTING = 10
Message = dict[str, str]


@dataclass(frozen=True)
class TalkFlags:
    """Talk"""

    url: str | None = None
    """Base URL of the API, e.g. http://localhost:8000/v1. Default: that one if a server answers
    there, else the model runs in this process."""
    model_name: str | None = None
    """Name of the model at the URL. Default: the first that it lists."""
    api_key: str | None = None
    """API key for the URL. Default: $VLLM_API_KEY or $OPENAI_API_KEY."""
    quick: str | None = None
    """Send this, print the answer and exit."""
    stats: bool = False
    """Print tokens, seconds and tokens per second after each answer."""
    history: bool = True
    """Remember what was typed for the next time (below $XDG_STATE_HOME or ~/.local/state)."""
    temperature: float | None = None
    """Sampling temperature; 0 = greedy. Default: the model's own."""
    top_p: float | None = None
    """Sample from the most likely tokens whose probabilities add up to this. Default: the model's
    own."""
    top_k: int | None = None
    """Sample from this many of the most likely tokens; 0 = all. Default: the model's own."""
    seed: int | None = None
    """Seed of the answers (of the engine as well, where it runs in this process)."""
    max_tokens: int | None = None
    """Maximum tokens of an answer."""

    def __post_init__(self) -> None:
        if self.quick is not None and not self.quick.strip():
            raise ConfigError("--quick is empty: there is nothing to send.", field="quick")


@dataclass(frozen=True)
class ChatFlags(TalkFlags):
    """Chat"""

    system_prompt: str | None = None
    """System message that opens the conversation."""
    markdown: bool = True
    """Show the Markdown of answers as styles, at a terminal."""


@dataclass(frozen=True)
class CompleteFlags(TalkFlags):
    """Complete"""


@dataclass
class Usage:
    """Token counts of the last answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class ChatBackend(Protocol):
    """Streams answers as pieces of text.

    Attributes:
        limit: tokens of prompt and answer together, at most; None if not known.
        usage: token counts of the last answer.
        finish_reason: why the last answer ended; None if it was interrupted.
    """

    name: str
    limit: int | None
    usage: Usage
    finish_reason: str | None

    def chat(
        self, messages: list[Message], options: dict[str, Any], go_on: bool = False
    ) -> Iterator[str]: ...

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]: ...


class HttpBackend:
    """An OpenAI-compatible server.

    Args:
        url: with or without a scheme and `/v1`.
        model: None takes the first that the server lists.
        api_key: None takes the environment's.
    """

    def __init__(self, url: str, model: str | None, api_key: str | None) -> None:
        self.url = base_url(url)
        self.api_key = api_key or os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY")
        self.usage = Usage()
        self.finish_reason: str | None = None
        self.name, self.limit = self._model(model)

    def _request(
        self, path: str, body: dict[str, Any] | None = None, timeout: float | None = None
    ) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            return urllib.request.urlopen(request, timeout=timeout)
        except urllib.error.HTTPError as e:
            hint = ""
            if e.code == 401:
                hint = " Give a key with --api-key or $OPENAI_API_KEY."
            raise ServerError(f"{self.url} answers {e.code}: {_error_text(e)}{hint}") from e
        except (urllib.error.URLError, OSError, ValueError) as e:
            reason = getattr(e, "reason", e)
            raise ServerError(
                f"no server answers at {self.url} ({reason}). Start one with `galley serve`, or "
                "name a model to run it here: `galley chat MODEL`."
            ) from e

    def _model(self, name: str | None) -> tuple[str, int | None]:
        """Name and length limit of the model: the one of that name, or the first."""
        with self._request("/models", timeout=_LISTING) as reply:
            models = json.load(reply).get("data") or []
        if name is not None:
            models = [m for m in models if m["id"] == name] or [{"id": name}]
        if not models:
            raise ServerError(f"{self.url} lists no model.")
        return str(models[0]["id"]), models[0].get("max_model_len")

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.usage, self.finish_reason = Usage(), None
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
                    for choice in event.get("choices", []):
                        self.finish_reason = choice.get("finish_reason") or self.finish_reason
                        yield choice
            except (http.client.HTTPException, ConnectionError) as e:
                raise ServerError(f"the connection to {self.url} broke: {e}") from e

    def chat(
        self, messages: list[Message], options: dict[str, Any], go_on: bool = False
    ) -> Iterator[str]:
        body: dict[str, Any] = {"messages": messages, **options}
        if go_on:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        for choice in self._stream("/chat/completions", body):
            yield choice["delta"].get("content") or ""

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        for choice in self._stream("/completions", {"prompt": prompt, **options}):
            yield choice.get("text") or ""


def base_url(url: str) -> str:
    """The URL with a scheme, and with `/v1` where it names no path."""
    if "://" not in url:
        url = "http://" + url
    parts = urllib.parse.urlsplit(url)
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _error_text(error: urllib.error.HTTPError) -> str:
    text = error.read(4096).decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(text)["error"]["message"])
    return text or error.reason


class LocalBackend:
    """A model in this process."""

    def __init__(self, llm: LLM, name: str) -> None:
        self.llm = llm
        self.name = name
        self.limit: int | None = llm.max_model_len
        self.usage = Usage()
        self.finish_reason: str | None = None

    def _pieces(self, outputs: Iterator[Any]) -> Iterator[str]:
        count = 0
        self.finish_reason = None
        for output in outputs:
            answer = output.outputs[0]
            count += len(answer.token_ids)
            self.usage = Usage(len(output.prompt_token_ids), count)
            self.finish_reason = answer.finish_reason
            yield answer.text

    def _params(self, options: dict[str, Any]) -> Any:
        params = self.llm.get_default_sampling_params()
        params.max_tokens = None
        for name, value in options.items():
            setattr(params, name, value)
        params.verify()
        return params

    def chat(
        self, messages: list[Message], options: dict[str, Any], go_on: bool = False
    ) -> Iterator[str]:
        outputs = self.llm.stream_chat(messages, self._params(options), not go_on, go_on)
        return self._pieces(outputs)

    def complete(self, prompt: str, options: dict[str, Any]) -> Iterator[str]:
        return self._pieces(self.llm.stream(prompt, self._params(options)))


def connect(flags: TalkFlags, engine_values: dict[str, Any]) -> ChatBackend:
    """Return the client for the flags. Raises ConfigError for flags of both kinds."""
    # --seed is a flag of both: by itself it does not ask for an engine in this process.
    own = [name for name in engine_values if name != "seed"]
    if flags.url is not None and own:
        what = "MODEL" if own[0] == "model" else "--" + own[0].replace("_", "-")
        raise ConfigError(
            f"{what} is for a model in this process, and --url names a server: give one of them.",
            field=own[0],
        )
    if flags.url is not None or not own:
        try:
            return HttpBackend(flags.url or DEFAULT_URL, flags.model_name, flags.api_key)
        except GalleyError:
            if flags.url is not None:
                raise
            print(
                f"galley: no server at {DEFAULT_URL}: running the built-in model here",
                file=sys.stderr,
            )
    check_model(engine_values.get("model"), flags)
    from galley.llm import LLM

    llm = LLM(**engine_values)
    return LocalBackend(llm, engine_values.get("model") or "SmolLM2-135M-Instruct")


def check_model(model: str | None, flags: TalkFlags) -> None:
    """Raise ConfigError for a question in the place of a model."""
    if model and " " in model.strip() and not Path(model).expanduser().exists():
        command = "complete" if isinstance(flags, CompleteFlags) else "chat"
        raise ConfigError(
            f"no model {model!r}. To send that and exit: galley {command} -q {shlex.quote(model)}",
            field="model",
        )


#: Sampling fields that can be set, with their types.
SAMPLING: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "seed": int,
    "max_tokens": int,
}


def sampling_options(flags: TalkFlags) -> dict[str, Any]:
    """The sampling fields that were given."""
    given = {name: getattr(flags, name) for name in SAMPLING}
    return {k: v for k, v in given.items() if v is not None}

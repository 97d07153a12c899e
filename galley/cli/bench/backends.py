"""Request bodies and stream parsing for each API. An open set: `BACKENDS`.

Token counts come from the stream's `usage`. If a server sends none, each piece of text counts as
one token. Times are those of text, so that a token without text of its own (a special one, half a
character) counts with the next; `--extra-body '{"return_token_ids": true}'` shows it at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from galley.cli.bench.client import Mark, Reply, unframe
from galley.cli.bench.datasets import Sample


@dataclass
class Outcome:
    """One request's times (seconds) and counts, vLLM's `RequestFuncOutput`."""

    start: float
    """`time.perf_counter()` when it was sent."""
    success: bool = False
    error: str = ""
    text: str = ""
    ttft: float = 0.0
    itls: list[float] = field(default_factory=list)
    """Seconds between consecutive pieces of text or token ids."""
    latency: float = 0.0
    """Seconds from sending to the last of them."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    """Prompt tokens taken from the server's prefix cache; None: not reported."""
    finish_reason: str | None = None
    client: int = 0
    queue_time: float = 0.0
    """Seconds spent waiting in the client because of --max-concurrency."""

    @property
    def tpot(self) -> float:
        """Seconds per output token after the first; 0 if there is only one."""
        after = self.output_tokens - 1
        return (self.latency - self.ttft) / after if after > 0 else 0.0


@dataclass(frozen=True)
class Options:
    """Fields common to all request bodies of a run."""

    model: str
    stream: bool = True
    ignore_eos: bool = False
    logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: dict[str, Any] | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Message | None = None
    message: _Message | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None

    def content(self) -> str:
        part = self.delta or self.message
        if part is None:
            return self.text or ""
        return (part.reasoning_content or part.reasoning or "") + (part.content or "")


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


def completion_body(options: Options, sample: Sample) -> dict[str, Any]:
    return {"prompt": sample.prompt}


def chat_body(options: Options, sample: Sample) -> dict[str, Any]:
    messages = sample.messages or [{"role": "user", "content": sample.prompt}]
    return {"messages": messages}


@dataclass(frozen=True)
class Backend:
    """One API: its default path, body builder and name of the output length field."""

    path: str
    body: Callable[[Options, Sample], dict[str, Any]]
    length_field: str


BACKENDS: dict[str, Backend] = {
    "openai": Backend("/v1/completions", completion_body, "max_tokens"),
    "vllm": Backend("/v1/completions", completion_body, "max_tokens"),
    "openai-chat": Backend("/v1/chat/completions", chat_body, "max_completion_tokens"),
}


def request_body(backend: Backend, options: Options, sample: Sample) -> bytes:
    """JSON body of one request."""
    body: dict[str, Any] = {"model": options.model, **backend.body(options, sample)}
    body[backend.length_field] = sample.output_len
    if options.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.logprobs is not None:
        chat = backend.length_field == "max_completion_tokens"
        body |= (
            {"logprobs": True, "top_logprobs": options.logprobs}
            if chat
            else {"logprobs": options.logprobs}
        )
    body.update(options.extra)
    return json.dumps(body).encode()


def read_reply(reply: Reply, sample: Sample) -> Outcome:
    """Times and counts of a raw reply. Never raises: a failure is the outcome's `error`."""
    outcome = Outcome(start=reply.sent, prompt_tokens=sample.prompt_len, client=sample.client)
    if reply.error:
        outcome.error = reply.error
        return outcome
    try:
        answer = unframe(reply)
        if answer.status != 200:
            outcome.error = f"HTTP {answer.status}: {answer.body[:300].decode(errors='replace')}"
            return outcome
        _read_events(outcome, answer.pieces)
    except (ValueError, msgspec.DecodeError) as e:
        outcome.error = f"unreadable answer: {e}"
    return outcome


def _events(pieces: list[Mark]) -> Iterator[tuple[float, bytes]]:
    """Yield (time, data) of each server-sent event; a plain JSON body is one event."""
    if pieces and pieces[0][1].lstrip().startswith(b"{"):
        yield pieces[-1][0], b"".join(data for _, data in pieces)
        return
    buffer = b""
    for when, data in pieces:
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield when, line[5:].strip()


def _read_events(outcome: Outcome, pieces: list[Mark]) -> None:
    texts: list[str] = []
    times: list[float] = []
    ended = 0.0
    usage: _Usage | None = None
    for when, data in _events(pieces):
        if data == b"[DONE]":
            continue
        event = _decode(data)
        if event.error:
            outcome.error = str(event.error)[:300]
            return
        usage = event.usage or usage
        for choice in event.choices:
            if choice.finish_reason is not None:
                outcome.finish_reason, ended = choice.finish_reason, when
            text = choice.content()
            if text or choice.token_ids:
                texts.append(text)
                times.append(when)
    if not times and outcome.finish_reason is None:
        outcome.error = "the answer has no text"
        return
    # A model may end at once: an empty answer is complete.
    times = times or [ended]
    outcome.success = True
    outcome.text = "".join(texts)
    outcome.ttft = times[0] - outcome.start
    outcome.itls = [after - before for before, after in pairwise(times)]
    outcome.latency = times[-1] - outcome.start
    outcome.output_tokens = len(texts)
    if usage is not None:
        outcome.prompt_tokens = usage.prompt_tokens
        outcome.output_tokens = usage.completion_tokens or len(texts)
        if usage.prompt_tokens_details is not None:
            outcome.cached_tokens = usage.prompt_tokens_details.get("cached_tokens") or 0

"""The parts that routes are built from, and what all routes need of them."""

from __future__ import annotations

import asyncio
import codecs
import functools
import hashlib
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request

from galley import __version__
from galley.chat.parts import AssistantParser, CountedCalls
from galley.config import EngineConfig
from galley.config.pooling import PoolingSettings
from galley.config.server import ServerConfig
from galley.errors import InvalidRequest, NotFound, PayloadTooLarge
from galley.frontend.client import EngineClient
from galley.request import TokenMarker
from galley.server.callers import note_user
from galley.server.errors import ClientDisconnected
from galley.server.event_response import EventResponse
from galley.server.fast_stream import Relay
from galley.server.hosting import Hosting
from galley.server.output_log import OutputLog
from galley.server.protocol.base import BodyReader, T, ignored_of, suggestion
from galley.server.protocol.generation import Caps, SamplingFields
from galley.server.response_builder import UsageCounter
from galley.server.sagemaker_sessions import Sessions
from galley.server.stream import EventEncoder, OutputStream
from galley.server.tool_use import ToolUse

if TYPE_CHECKING:
    from galley.chat.parsers import OutputFormats
    from galley.chat.templates import ChatRenderer
    from galley.observability.sleep_metrics import SleepMetrics
    from galley.observability.tool_metrics import ToolCallMetrics
    from galley.request import Adapter
    from galley.server.adapters import ServedAdapters
    from galley.server.protocol.embeddings import CohereEmbedRequest
    from galley.server.protocol.generative_scoring import GenerativeScoringRequest
    from galley.server.protocol.pooling import PoolingFields
    from galley.text import Tokenizer


#: Key of a request's scope: the id that was made for it and is sent in a header.
NEW_ID = "galley.request_id"


@dataclass(slots=True)
class InFlight:
    """The number of POST requests in flight, and whether new ones are refused."""

    count: int = 0
    draining: bool = False

    def drain(self) -> None:
        self.draining = True


@dataclass(frozen=True)
class Context:
    """The parts.

    Attributes:
        formats: of reasoning and tool calls in the model's text; None: none is configured.
        tokenizer, chat: None where no tokenizer is loaded (--skip-tokenizer-init), or where the
            model has no chat template.
        defaults: sampling defaults of the model, by `SamplingParams` field.
        metrics: the text of /metrics and its content type.
        root: the model's path or hub name, shown by /v1/models.
        store_responses: keep responses for retrieval (VLLM_ENABLE_RESPONSES_API_STORE).
        admit: raises Overloaded while a limit on requests in flight is reached.
        dev_mode: serve routes that must not be open in production (VLLM_SERVER_DEV_MODE).
        output_log: of answers (--enable-log-outputs).
        hosting: handlers and middleware of the model's own script (SageMaker).
        sessions: of /invocations (SageMaker); None: requests that name one are refused.
        on_sleep: called with the level of a sleep that has begun, and with None at wake-up.
        sleep_metrics: of the routes that put engines to sleep.
        tool_metrics: of answers that a tool call parser reads; None: no such parser is named.
        sources: where the values that were given came from, by name of the flag.
        template_thread: waits for the process that renders requests' templates.
        pooling: of a server that pools.
        adapters: that are offered beside the model; None without --enable-lora.
        update_adapters: they are loaded and unloaded at run time
            (VLLM_ALLOW_RUNTIME_LORA_UPDATING).
        renders_only: there is no engine (`galley launch render`).
        any_model_name: accept any model name in a request (VLLM_SKIP_MODEL_NAME_VALIDATION).
    """

    engine: EngineClient
    config: EngineConfig
    server: ServerConfig
    tokenizer: Tokenizer | None
    chat: ChatRenderer | None
    metrics: Callable[[], tuple[bytes, str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    caps: Caps = field(default_factory=Caps)
    formats: OutputFormats | None = None
    root: str = ""
    renders_only: bool = False
    any_model_name: bool = False
    adapters: ServedAdapters | None = None
    update_adapters: bool = False
    admit: Callable[[], None] = lambda: None
    store_responses: bool = False
    dev_mode: bool = False
    output_log: OutputLog | None = None
    hosting: Hosting | None = None
    sessions: Sessions | None = None
    on_sleep: Callable[[int | None], None] = lambda level: None
    sleep_metrics: SleepMetrics | None = None
    tool_metrics: ToolCallMetrics | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    load: InFlight = field(default_factory=InFlight)
    relay: Relay = field(default_factory=Relay)
    template_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "chat-template")
    )
    pooling: PoolingSettings = field(default_factory=PoolingSettings)
    created: int = field(default_factory=lambda: int(time.time()))
    _markers: dict[str, TokenMarker] = field(default_factory=dict, init=False, repr=False)

    @property
    def model_names(self) -> tuple[str, ...]:
        return self.config.model.served_model_name

    async def model_name(self, requested: str | None) -> str:
        """The name to answer under; an adapter that is not loaded yet is looked for. Raises
        NotFound for a model that is not served."""
        if not requested:
            return self.model_names[0]
        known = requested in self.model_names
        adapters = self.adapters
        if adapters is not None and not known and adapters.find(requested) is None:
            await adapters.resolve(requested)
        self.adapter(requested)
        return requested

    def adapter(self, requested: str | None) -> Adapter | None:
        """The adapter that a request names; None for the model alone. Raises NotFound."""
        if not requested or requested in self.model_names:
            return None
        adapter = None if self.adapters is None else self.adapters.find(requested)
        if adapter is None and not self.any_model_name:
            raise NotFound(
                f"The model `{requested:.200}` does not exist. Served here: {self._names()}.",
                field="model",
            )
        return adapter

    def _names(self) -> str:
        """The first of the names that a request may use."""
        names = [*self.model_names, *(self.adapters.entries if self.adapters else ())]
        return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")

    @property
    def max_tokens_cap(self) -> int | None:
        """The operator's limit on the tokens of every answer (`max_new_tokens` of
        --override-generation-config; that of a file limits requests that name no maximum).
        """
        cap = self.config.model.override_generation_config.get("max_new_tokens")
        return cap if isinstance(cap, int) else None

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text has at least its length through this tokens."""
        tokenizer = self.require_tokenizer()
        return max(len(tokenizer.id_to_token(i) or "") for i in range(tokenizer.vocab_size))

    def require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidRequest("No tokenizer is loaded (--skip-tokenizer-init).")
        return self.tokenizer

    def token_ids_for_texts(self, requested: bool | None) -> bool:
        """Whether logprobs name tokens by id; the request's setting wins over the server's.
        Without a tokenizer there is nothing else to name them by."""
        if self.tokenizer is None:
            return True
        return self.server.return_tokens_as_token_ids if requested is None else requested

    async def body(self, request: Request) -> bytes:
        """The request's body, which must be JSON. Raises ClientError, ClientDisconnected."""
        body = await read_json_body(request, self.server.max_request_body_bytes)
        if self.config.scheduler.fairness_by == "user":
            note_user(body)
        return body

    async def read(self, request: Request, reader: BodyReader[T]) -> T:
        """The request's body as a checked wire type. Raises ClientError, ClientDisconnected."""
        return self.parse(request, reader, await self.body(request))

    def parse(self, request: Request, reader: BodyReader[T], body: bytes) -> T:
        """A body as a checked wire type; its unknown fields are collected for the answer's header.
        Raises ClientError, with --strict-requests for an unknown field too.
        """
        ignored = ignored_of(request.scope)
        value = reader.read(body, ignored)
        if ignored and self.server.strict_requests:
            name, near = min(ignored.items())
            message = f"{name:.100}: there is no such field.{suggestion(near)}"
            raise InvalidRequest(f"{message} (--strict-requests)", field=name[:100])
        return value

    def events(self, streams: Sequence[OutputStream], answer: EventEncoder) -> EventResponse:
        """The answer of `streams` as events."""
        # User middleware may hold parts back, so nothing may overtake them; the log of answers
        # needs all of the text.
        slow_path_only = self.server.middleware or self.hosting or self.output_log is not None
        relay = None if slow_path_only else self.relay
        return EventResponse(relay, streams, answer, self.server.sse_keep_alive_interval)

    def parser_of(self, prompt: str, use: ToolUse) -> AssistantParser | None:
        """A parser of one answer to a prompt; None where the text is the answer."""
        formats = self.formats
        if formats is None:
            if use.choice.mode == "none":
                return None
            from galley.chat.parsers import OutputFormats  # only for requests with tools

            formats = OutputFormats()
        width = None if self.tokenizer is None else self._width
        parser = formats.parser(prompt, use.tools, use.choice, reasoning=use.reasoning, width=width)
        if parser is None or self.tool_metrics is None or use.choice.mode == "none":
            return parser
        count = self.tool_metrics.count
        return CountedCalls(
            parser,
            lambda called: count(use.request_type, streaming=use.streaming, called=called),
        )

    def parsers(self, prompt: str, n: int, use: ToolUse) -> list[AssistantParser]:
        """A parser for each of `n` answers to a prompt; [] where the text is the answer."""
        made = (self.parser_of(prompt, use) for _ in range(n))
        return [parser for parser in made if parser is not None]

    async def marker_of(self, text: str) -> TokenMarker:
        """A marker in answers, however tokens spell it. The first time it takes a while."""
        marker = self._markers.get(text)
        if marker is None:
            from galley.text.markers import marker_of  # only for reasoning that is limited

            marker = await asyncio.to_thread(marker_of, self.require_tokenizer(), text)
            self._markers[text] = marker
        return marker

    def _width(self, token_id: int) -> int:
        return len(self.require_tokenizer().token_bytes(token_id))

    def usage_counter(
        self, count_generated: bool = True, parsers: Sequence[AssistantParser] = ()
    ) -> UsageCounter:
        """Counts the tokens of an answer, also those of its reasoning if the server reads that."""
        server, reads = self.server, self.formats is not None and self.formats.reasoning
        return UsageCounter(
            server.enable_prompt_tokens_details,
            count_generated,
            server.enable_per_request_metrics,
            parsers if reads else (),
        )

    def fingerprint(self) -> str | None:
        """`system_fingerprint`: equal for equal answers to equal requests."""
        mode = self.server.fingerprint_mode
        if mode == "none":
            return None
        if mode == "custom":
            return self.server.fingerprint_value
        model_info = (__version__, self.config.model, self.config.device.backend)
        digest = hashlib.sha256(repr(model_info).encode()).hexdigest()[:8]
        return digest if mode == "hash" else f"galley-{__version__}-{digest}"


def request_id(request: Request, prefix: str, body_id: str | None, max_length: int) -> str:
    """The id of an answer: the client's X-Request-Id, its `request_id`, or a new one."""
    own = request.headers.get("x-request-id") or body_id
    own = own or request.scope.get(NEW_ID) or uuid.uuid4().hex
    if len(own) > max_length:
        raise InvalidRequest(
            f"X-Request-Id is limited to {max_length} characters.", field="X-Request-Id"
        )
    return f"{prefix}-{own}"


def apply_priority_header(
    raw: Request,
    request: SamplingFields | PoolingFields | CohereEmbedRequest | GenerativeScoringRequest,
) -> None:
    """Set `request.priority` from the X-Vllm-Priority header; one that is no number is ignored."""
    value = raw.headers.get("x-vllm-priority", "")
    if re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
        request.priority = int(value)


async def read_json_body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it.

    Raises:
        InvalidRequest: the content type is not JSON's.
        PayloadTooLarge: more than `limit` bytes, announced or sent.
        ClientDisconnected: the client went away while sending.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        raise InvalidRequest(
            "Unsupported Media Type: Only 'application/json' is allowed. Send the header "
            "Content-Type: application/json.",
            field="Content-Type",
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
    except ClientDisconnect as e:
        raise ClientDisconnected from e
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    return body.removeprefix(codecs.BOM_UTF8)


def too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The request body is larger than the {limit} bytes allowed (--max-request-body-bytes)."
    )

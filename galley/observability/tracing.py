"""One OpenTelemetry span per request, sent to --otlp-traces-endpoint.

The caller's W3C context is the span's parent: `TraceContext` reads it from the headers, and the
observer finds it when the request is accepted. The opentelemetry packages are imported only here,
and only when tracing is on; spans are sent by a separate thread.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from galley.config.extras import install_command
from galley.errors import ConfigError
from galley.messages import Outputs, Ready
from galley.request import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
#: Seconds for sending the remaining spans at shutdown.
FLUSH_TIMEOUT = 2.0


@dataclass(slots=True)
class Trace:
    """State of a request until its span is created. Times are `time.time`, 0 = not yet.

    Attributes:
        parent: the caller's context.
        model_seconds: the engine's time in model execution when this request was scheduled.
    """

    request: Request
    n: int
    parent: Context
    num_unfinished: int
    tokens: int = 0
    queued: float = 0.0
    scheduled: float = 0.0
    first: float = 0.0
    last: float = 0.0
    model_seconds: float = 0.0
    failed: bool = False


class RequestTracer:
    """A `RequestObserver` that creates a span for each request when it has ended.

    Args:
        detailed: add child spans for the time in queue, prefill and decode.
    """

    def __init__(self, provider: TracerProvider, model_name: str, detailed: bool = False) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("galley")
        self._model_name = model_name
        self._detailed = detailed
        self._traces: dict[int, Trace] = {}
        self._groups: dict[int, Trace] = {}
        self._waiting: set[int] = set()
        self._model_seconds = 0.0

    # ------------------------------------------------------------------ RequestObserver

    def ready(self, message: Ready) -> None:
        """Nothing to record."""

    def added(self, request: Request, index: int, n: int) -> None:
        from opentelemetry.context import get_current

        if index == 0:
            trace = Trace(request, n, get_current(), num_unfinished=n)
            if n > 1:
                self._groups[request.share_group] = trace
        else:
            trace = self._groups[request.share_group]
        self._traces[request.handle] = trace
        self._waiting.add(request.handle)

    def outputs(self, message: Outputs) -> None:
        for started in message.started:
            trace = self._traces.get(started.handle)
            if trace is not None and not trace.scheduled:
                trace.queued, trace.scheduled = started.queued_time, started.scheduled_time
                trace.model_seconds = self._model_seconds
        if message.stats is not None:
            self._model_seconds = message.stats.model_seconds
        if self._waiting and message.handles:
            for handle in self._waiting & set(memoryview(message.handles).cast("q")):
                self._waiting.discard(handle)
                trace = self._traces[handle]
                trace.first = trace.first or message.timestamp

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        self._waiting.discard(handle)
        trace = self._traces.pop(handle, None)
        if trace is None:
            return
        trace.tokens += num_tokens
        trace.num_unfinished -= 1
        trace.failed |= reason == FinishReason.ERROR
        if not trace.num_unfinished:
            self._groups.pop(trace.request.share_group, None)
            trace.last = time.time()
            self._create_spans(trace)

    # ------------------------------------------------------------------ spans

    def _create_spans(self, trace: Trace) -> None:
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        span = self._tracer.start_span(
            "llm_request",
            trace.parent,
            SpanKind.SERVER,
            self._attributes(trace),
            start_time=_nanoseconds(trace.request.arrival_time),
        )
        if trace.failed:
            span.set_status(StatusCode.ERROR)
        if self._detailed:
            context = set_span_in_context(span)
            for name, begin, end in (
                ("queue", trace.request.arrival_time, trace.scheduled),
                ("prefill", trace.scheduled, trace.first),
                ("decode", trace.first, trace.last),
            ):
                if begin and end:
                    self._part(name, begin, end, context)
        span.end(_nanoseconds(trace.last))

    def _part(self, name: str, begin: float, end: float, context: Context) -> None:
        part: Span = self._tracer.start_span(name, context, start_time=_nanoseconds(begin))
        part.end(_nanoseconds(max(begin, end)))

    def _attributes(self, trace: Trace) -> dict[str, Any]:
        request, params = trace.request, trace.request.params
        arrival = request.arrival_time
        attributes: dict[str, Any] = {
            "gen_ai.response.model": self._model_name,
            "gen_ai.request.id": request.request_id.removeprefix("0_"),
            "gen_ai.request.n": trace.n,
            "gen_ai.usage.num_sequences": trace.n,
            "gen_ai.usage.prompt_tokens": len(request.prompt_token_ids) // 4,
            "gen_ai.usage.completion_tokens": trace.tokens,
            "gen_ai.latency.e2e": trace.last - arrival,
        }
        if isinstance(params, SamplingParams):
            attributes["gen_ai.request.temperature"] = params.temperature
            attributes["gen_ai.request.top_p"] = params.top_p
            if params.max_tokens is not None:
                attributes["gen_ai.request.max_tokens"] = params.max_tokens
        if trace.scheduled:
            attributes["gen_ai.latency.time_in_queue"] = trace.scheduled - trace.queued
            attributes["gen_ai.latency.time_in_scheduler"] = trace.scheduled - arrival
        if trace.first:
            attributes["gen_ai.latency.time_to_first_token"] = trace.first - arrival
            attributes["gen_ai.latency.time_in_model_prefill"] = trace.first - trace.scheduled
            attributes["gen_ai.latency.time_in_model_decode"] = trace.last - trace.first
            attributes["gen_ai.latency.time_in_model_inference"] = trace.last - trace.scheduled
        if self._detailed and trace.scheduled:
            model = max(self._model_seconds - trace.model_seconds, 0.0)
            attributes["gen_ai.latency.time_in_model_execute"] = model
        return attributes

    def shutdown(self) -> None:
        """Send the remaining spans, for at most FLUSH_TIMEOUT."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(FLUSH_TIMEOUT)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class TraceContext:
    """ASGI middleware: makes the caller's W3C context current while a request is served."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from opentelemetry.context import attach, detach
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope.get("headers", ())
            if name in (b"traceparent", b"tracestate")
        }
        if not carrier:
            await self.app(scope, receive, send)
            return
        token = attach(TraceContextTextMapPropagator().extract(carrier))
        try:
            await self.app(scope, receive, send)
        finally:
            detach(token)


def open_tracer(endpoint: str, protocol: str, model_name: str, detailed: bool) -> RequestTracer:
    """A tracer that sends to `endpoint`.

    Args:
        protocol: "grpc" or "http/protobuf".

    Raises:
        ConfigError: the packages are missing, or the protocol is unknown.
    """
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(endpoint, protocol)
    except ImportError as e:
        raise ConfigError(
            f"--otlp-traces-endpoint needs the OpenTelemetry packages ({e}): "
            f"{install_command('otel')}",
            field="otlp_traces_endpoint",
        ) from e
    resource = Resource.create()
    if str(resource.attributes.get("service.name")).startswith("unknown_service"):
        # Neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES has named it.
        resource = resource.merge(Resource({"service.name": "galley"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return RequestTracer(provider, model_name, detailed)


def _exporter(endpoint: str, protocol: str) -> SpanExporter:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=endpoint)
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        if urlsplit(endpoint).path in ("", "/"):
            endpoint = endpoint.rstrip("/") + "/v1/traces"
        return HttpExporter(endpoint=endpoint)
    raise ConfigError(
        f"{PROTOCOL} must be grpc or http/protobuf, got {protocol!r}.", field=PROTOCOL
    )

"""Spans at a collector, over gRPC and over HTTP (checklist 217–221)."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc

from galley.config.engine import ObservabilityConfig
from galley.config.resolve import from_kwargs
from galley.errors import ConfigError
from galley.observability.tracing import RequestTracer, open_tracer
from tests.server.served import MODEL, Served, serve
from tests.server.test_disconnect import send, wait_for

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BODY: dict[str, Any] = {"prompt": "hi", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9}


class Collector(service_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[service.ExportTraceServiceRequest] = []

    def Export(self, request: Any, context: Any) -> service.ExportTraceServiceResponse:
        self.requests.append(request)
        return service.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Any]:
        return [
            s
            for r in self.requests
            for p in r.resource_spans
            for c in p.scope_spans
            for s in c.spans
        ]


@pytest.fixture(params=["grpc", "http/protobuf"])
def collector(request: pytest.FixtureRequest) -> Iterator[tuple[Collector, str, str]]:
    """A collector, its endpoint, and the protocol that it speaks."""
    found = Collector()
    if request.param == "grpc":
        server = grpc.server(futures.ThreadPoolExecutor(2))
        service_grpc.add_TraceServiceServicer_to_server(found, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield found, f"http://127.0.0.1:{port}", request.param
        server.stop(None)
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            found.requests.append(service.ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield found, f"http://127.0.0.1:{web.server_port}", request.param
    web.shutdown()
    web.server_close()


def traced(endpoint: str, tracer: RequestTracer) -> Any:
    return serve(observing=ObservabilityConfig(otlp_traces_endpoint=endpoint), tracer=tracer)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_a_span_of_each_request(collector: tuple[Collector, str, str]) -> None:
    found, endpoint, protocol = collector
    tracer = open_tracer(endpoint, protocol, MODEL, detailed=False)
    with traced(endpoint, tracer) as served:
        begin = time.time()
        served.post("/v1/completions", BODY, headers={"traceparent": PARENT})
        served.post("/v1/completions", {**BODY, "n": 3, "prompt": "hi there"})
        took = time.time() - begin
    tracer.shutdown()
    assert len(found.spans) == 2
    first, second = found.spans
    assert first.name == "llm_request"
    assert first.trace_id.hex() == PARENT.split("-")[1]
    assert first.parent_span_id.hex() == PARENT.split("-")[2]
    assert second.parent_span_id == b""
    told = attributes(first)
    assert told["gen_ai.response.model"] == MODEL
    assert told["gen_ai.request.id"].startswith("cmpl-")
    assert (told["gen_ai.request.n"], told["gen_ai.request.max_tokens"]) == (1, 5)
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.request.top_p"] == 0.9
    assert (told["gen_ai.usage.prompt_tokens"], told["gen_ai.usage.completion_tokens"]) == (1, 5)
    for name in (
        *("e2e", "time_in_queue", "time_in_scheduler", "time_to_first_token"),
        *("time_in_model_prefill", "time_in_model_decode", "time_in_model_inference"),
    ):
        assert 0 <= told[f"gen_ai.latency.{name}"] <= took, name
    seconds = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert seconds == pytest.approx(told["gen_ai.latency.e2e"], abs=1e-3)
    several = attributes(second)
    assert several["gen_ai.usage.num_sequences"] == 3
    assert several["gen_ai.usage.completion_tokens"] == 15
    [resource] = {r.resource_spans[0].resource.SerializeToString() for r in found.requests}
    assert b"galley" in resource


def test_detailed(collector: tuple[Collector, str, str]) -> None:
    found, endpoint, protocol = collector
    tracer = open_tracer(endpoint, protocol, MODEL, detailed=True)
    with traced(endpoint, tracer) as served:
        served.engine.pause = 0.01
        served.post("/v1/completions", BODY)
    tracer.shutdown()
    spans = {span.name: span for span in found.spans}
    assert set(spans) == {"llm_request", "queue", "prefill", "decode"}
    whole = spans.pop("llm_request")
    assert "gen_ai.latency.time_in_model_execute" in attributes(whole)
    for part in spans.values():
        assert part.parent_span_id == whole.span_id
        assert part.start_time_unix_nano >= whole.start_time_unix_nano
        assert part.end_time_unix_nano <= whole.end_time_unix_nano
    assert spans["queue"].end_time_unix_nano == spans["prefill"].start_time_unix_nano


def test_failures_and_aborts_have_spans_too(collector: tuple[Collector, str, str]) -> None:
    found, endpoint, protocol = collector
    tracer = open_tracer(endpoint, protocol, MODEL, detailed=False)
    with traced(endpoint, tracer) as served:
        served.engine.failure = "it broke"
        assert served.post("/v1/completions", BODY).status_code == 500
        served.engine.failure = None
        served.engine.hold = True
        sock = send(served, "/v1/completions", BODY)
        wait_for(lambda: served.engine.num_unfinished == 1)
        sock.close()
        wait_for(lambda: served.engine.num_unfinished == 0)
    tracer.shutdown()
    failed, aborted = found.spans
    assert failed.status.code == 2
    assert aborted.status.code != 2


def test_an_unreachable_collector_does_not_disturb_requests() -> None:
    tracer = open_tracer("http://127.0.0.1:9", "http/protobuf", MODEL, detailed=False)
    with traced("http://127.0.0.1:9", tracer) as served:
        assert served.post("/v1/completions", BODY).status_code == 200
    begin = time.monotonic()
    tracer.shutdown()
    assert time.monotonic() - begin < 30


def test_nothing_is_left_of_requests_that_have_ended(served: Served) -> None:
    tracer = open_tracer("http://127.0.0.1:9", "http/protobuf", MODEL, detailed=False)
    with traced("http://127.0.0.1:9", tracer) as traced_server:
        traced_server.post("/v1/completions", {**BODY, "n": 2})
    assert not tracer._traces
    assert not tracer._groups
    assert not tracer._waiting


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="needs --otlp-traces-endpoint"):
        from_kwargs({"collect_detailed_traces": ["all"]}, "server", {})
    with pytest.raises(ConfigError, match="'everything'"):
        from_kwargs(
            {"collect_detailed_traces": ["everything"], "otlp_traces_endpoint": "x"}, "server", {}
        )
    with pytest.raises(ConfigError, match="carrier-pigeon"):
        open_tracer("http://127.0.0.1:9", "carrier-pigeon", MODEL, detailed=False)

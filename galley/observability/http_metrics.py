"""Prometheus metrics of HTTP requests, under the names of prometheus-fastapi-instrumentator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

_FINE = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5),
    *(5, 7.5, 10, 30, 60),
)


class HttpMetrics:
    """Counts requests by method, status class and handler (the route's path)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests by method, status and handler.",
            ["method", "status", "handler"],
            registry=registry,
        )
        self._request_size = Summary(
            "http_request_size_bytes",
            "Content length of requests by handler; 0 without one.",
            ["handler"],
            registry=registry,
        )
        self._response_size = Summary(
            "http_response_size_bytes",
            "Bytes of response bodies by handler.",
            ["handler"],
            registry=registry,
        )
        self._fine = Histogram(
            "http_request_duration_highr_seconds",
            "Latency in many buckets and without labels.",
            registry=registry,
            buckets=_FINE,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Latency in few buckets, by handler.",
            ["method", "handler"],
            registry=registry,
            buckets=(0.1, 0.5, 1),
        )

    def observe(
        self,
        method: str,
        status: int,
        handler: str,
        *,
        request_bytes: int,
        response_bytes: int,
        seconds: float,
    ) -> None:
        self._requests.labels(method, f"{status // 100}xx", handler).inc()
        self._request_size.labels(handler).observe(request_bytes)
        self._response_size.labels(handler).observe(response_bytes)
        self._fine.observe(seconds)
        self._duration.labels(method, handler).observe(seconds)

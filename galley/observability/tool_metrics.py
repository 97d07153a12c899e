"""Answers that a tool call parser has read, under vLLM's name."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter

RequestType = Literal["chat_completions", "responses", "other"]


class ToolCallMetrics:
    """Counts answers with and without calls.

    Args:
        model_name: label of all series.
    """

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._counter = Counter(
            "vllm:tool_call_parser_invocations",
            "Answers that a tool call parser has read.",
            ["model_name", "mode", "outcome", "request_type"],
            registry=registry,
        )
        self._model_name = model_name

    def count(self, request_type: RequestType, *, streaming: bool, called: bool) -> None:
        """An answer has ended."""
        self._counter.labels(
            model_name=self._model_name,
            mode="streaming" if streaming else "non_streaming",
            outcome="tool_call" if called else "no_tool_call",
            request_type=request_type,
        ).inc()

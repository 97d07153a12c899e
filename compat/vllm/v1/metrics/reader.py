"""The values of `LLM.get_metrics`."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    dict.fromkeys(
        ("Counter", "Gauge", "Histogram", "Metric", "Vector"), "galley.frontend.metric_values"
    ),
)

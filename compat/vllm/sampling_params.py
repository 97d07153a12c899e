"""Sampling parameters."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {
        "SamplingParams": "galley",
        "StructuredOutputsParams": "galley",
        "BeamSearchParams": "galley",
        "RequestOutputKind": "galley.request",
    },
)

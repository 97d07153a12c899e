"""Adapters of a request."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {"LoRARequest": "galley"},
)

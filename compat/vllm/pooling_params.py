"""Pooling parameters."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {"PoolingParams": "galley"},
)

"""Data sets of benchmarks: none of vLLM's functions has a counterpart."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(__name__, {})

"""The engine, stepped by its caller."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {"LLMEngine": "vllm.v1.engine.llm_engine"},
)

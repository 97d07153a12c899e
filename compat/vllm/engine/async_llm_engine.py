"""The engine for asyncio."""

from vllm._names import resolver

__getattr__, __dir__ = resolver(
    __name__,
    {"AsyncLLMEngine": "vllm.v1.engine.async_llm:AsyncLLM"},
)

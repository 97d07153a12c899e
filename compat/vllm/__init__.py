"""The module `vllm`, run by Galley: its names resolve lazily to Galley's."""

from __future__ import annotations

from vllm._names import resolver

#: The version whose names this module has.
__version__ = "0.32.0+galley"
__version_tuple__ = (0, 32, 0)

_GALLEY = (
    *("SamplingParams", "PoolingParams", "PromptType", "TextPrompt", "TokensPrompt"),
    *("RequestOutput", "CompletionOutput", "PoolingOutput", "PoolingRequestOutput"),
    *("EmbeddingOutput", "EmbeddingRequestOutput", "ClassificationOutput"),
    *("ClassificationRequestOutput", "ScoringOutput", "ScoringRequestOutput"),
)
_WHERE = {
    **dict.fromkeys(_GALLEY, "galley"),
    "LLM": "vllm.entrypoints.llm",
    "EngineArgs": "vllm.engine.arg_utils",
    "AsyncEngineArgs": "vllm.engine.arg_utils",
    "LLMEngine": "vllm.v1.engine.llm_engine",
    "AsyncLLMEngine": "vllm.v1.engine.async_llm:AsyncLLM",
}
__all__ = ["__version__", "__version_tuple__", *_WHERE]
__getattr__, __dir__ = resolver(__name__, _WHERE)

"""Galley: an LLM inference and serving engine.

Names resolve lazily, so that ``import galley`` costs nothing until something is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__version_tuple__ = tuple(int(part) for part in __version__.split("."))

if TYPE_CHECKING:
    from galley.frontend.beam_search import BeamSearchParams
    from galley.frontend.prompts import Prompt as PromptType
    from galley.frontend.prompts import TextPrompt, TokensPrompt
    from galley.llm import LLM
    from galley.outputs import (
        ClassificationOutput,
        ClassificationRequestOutput,
        CompletionOutput,
        EmbeddingOutput,
        EmbeddingRequestOutput,
        PoolingOutput,
        PoolingRequestOutput,
        RequestOutput,
        ScoringOutput,
        ScoringRequestOutput,
    )
    from galley.request import LoRARequest, PoolingParams, SamplingParams, StructuredOutputsParams
    from galley.runner.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

#: Name → where it is defined: the module, and its name there if that is another.
_WHERE = {
    "LLM": ("galley.llm", "LLM"),
    "SamplingParams": ("galley.request", "SamplingParams"),
    "StructuredOutputsParams": ("galley.request", "StructuredOutputsParams"),
    "BeamSearchParams": ("galley.frontend.beam_search", "BeamSearchParams"),
    "RequestOutput": ("galley.outputs", "RequestOutput"),
    "CompletionOutput": ("galley.outputs", "CompletionOutput"),
    "ClassificationOutput": ("galley.outputs", "ClassificationOutput"),
    "ClassificationRequestOutput": ("galley.outputs", "ClassificationRequestOutput"),
    "ScoringOutput": ("galley.outputs", "ScoringOutput"),
    "ScoringRequestOutput": ("galley.outputs", "ScoringRequestOutput"),
    "EmbeddingOutput": ("galley.outputs", "EmbeddingOutput"),
    "EmbeddingRequestOutput": ("galley.outputs", "EmbeddingRequestOutput"),
    "LoRARequest": ("galley.request", "LoRARequest"),
    "PoolingOutput": ("galley.outputs", "PoolingOutput"),
    "PoolingParams": ("galley.request", "PoolingParams"),
    "PoolingRequestOutput": ("galley.outputs", "PoolingRequestOutput"),
    "PromptType": ("galley.frontend.prompts", "Prompt"),
    "TextPrompt": ("galley.frontend.prompts", "TextPrompt"),
    "TokensPrompt": ("galley.frontend.prompts", "TokensPrompt"),
    "LogitsProcessor": ("galley.runner.logits_processor", "LogitsProcessor"),
    "BatchUpdate": ("galley.runner.logits_processor", "BatchUpdate"),
    "MoveDirectionality": ("galley.runner.logits_processor", "MoveDirectionality"),
}
__all__ = [
    "LLM",
    "BatchUpdate",
    "BeamSearchParams",
    "ClassificationOutput",
    "ClassificationRequestOutput",
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "LoRARequest",
    "LogitsProcessor",
    "MoveDirectionality",
    "PoolingOutput",
    "PoolingParams",
    "PoolingRequestOutput",
    "PromptType",
    "RequestOutput",
    "SamplingParams",
    "ScoringOutput",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
    "__version_tuple__",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        hint = ""
        if name in ("EngineArgs", "AsyncEngineArgs", "LLMEngine", "AsyncLLMEngine"):
            hint = f": LLM takes the flags; `pip install ./compat` provides vllm.{name}"
        raise AttributeError(f"module 'galley' has no attribute {name!r}{hint}")
    import importlib

    module, attribute = _WHERE[name]
    return getattr(importlib.import_module(module), attribute)

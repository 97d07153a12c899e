"""Galley: an LLM inference and serving engine.

Names resolve lazily, so that ``import galley`` costs nothing until something is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from galley.frontend.beam_search import BeamSearchParams
    from galley.llm import LLM
    from galley.request import CompletionOutput, RequestOutput, SamplingParams

_WHERE = {
    "LLM": "galley.llm",
    "SamplingParams": "galley.request",
    "BeamSearchParams": "galley.frontend.beam_search",
    "RequestOutput": "galley.request",
    "CompletionOutput": "galley.request",
}
__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "RequestOutput",
    "SamplingParams",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'galley' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)

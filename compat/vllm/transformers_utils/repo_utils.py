"""The hub's client."""

from __future__ import annotations

from typing import Any

__all__ = ["hf_api"]


def hf_api() -> Any:
    """`huggingface_hub.HfApi`; raises ImportError without that package."""
    from huggingface_hub import HfApi

    return HfApi(library_name="galley")
